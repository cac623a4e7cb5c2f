"""Reads ``tokens.h5`` of the features step in batches."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py

from mirage_steps.errors import UserError, rerun
from mirage_steps.files.h5 import open_h5, read_names, slices
from mirage_steps.files.terminal import progress
from mirage_steps.method.finite import require_finite
from mirage_steps.method.foreground import TokenBatch

_BATCH = 64


@dataclass(frozen=True)
class Tokens:
    """Tokens of the images named ``images``; iterating reads them in batches, any number of times.

    ``backbone`` is what made them, as a pose estimator keeps it.
    """

    file: h5py.File
    images: list[str]
    backbone: dict[str, object]

    def __iter__(self) -> Iterator[TokenBatch]:
        rows = list(slices(len(self.images), _BATCH))
        for part in progress(rows, desc="tokens", unit="batch"):
            arrays = [self.file[key][part] for key in ("patch_tokens", "cls_token", "content")]
            remedy = rerun("features")
            require_finite(self.images[part], "tokens", remedy, *arrays)
            masks = self.file["masks"][part] if "masks" in self.file else None
            yield TokenBatch(part, *arrays)._replace(masks=masks)


@contextlib.contextmanager
def open_tokens(path: Path) -> Iterator[Tokens]:
    """Open ``tokens.h5``.

    Raises:
        UserError: missing, damaged, or not of the features step.
    """
    with open_h5(path, "patch_tokens", "cls_token", "content", "image") as file:
        if "backbone" not in file.attrs:
            raise UserError(f"{path}: does not say which backbone made it; {rerun('features')}")
        yield Tokens(file, read_names(file), json.loads(file.attrs["backbone"]))
