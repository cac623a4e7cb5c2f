"""safetensors files with a checksum, which the format lacks, written atomically."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mirage_steps.errors import first_line
from mirage_steps.files.atomic import atomic


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], about: str = "") -> None:
    """Write named arrays, and a text as metadata.

    Raises:
        OSError: of the disk, naming ``path``.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic(path) as temporary:
        try:
            # In one entry: safetensors orders several at random.
            save_file(arrays, temporary, {"about": f"{_sha256(arrays, about)} {about}"})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(temporary)) from None


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Arrays and text that :func:`write_tensors` wrote.

    Raises:
        OSError: it is missing or may not be read.
        ValueError: it is damaged, or an earlier version wrote it.
    """
    with open(path, "rb"):
        pass  # safetensors calls every error of the system a missing file, and does not name it
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(first_line(error)) from None
    if "about" not in about:
        raise ValueError("it has no checksum, so an earlier version wrote it")
    checksum, _, text = about["about"].partition(" ")
    if checksum != _sha256(arrays, text):
        raise ValueError("its checksum is wrong")
    return arrays, text


def _sha256(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """Checksum of names, types, shapes and values of arrays, and of a text."""
    sha256 = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha256.update(f"{name} {array.dtype} {array.shape}".encode())
        sha256.update(array.tobytes() if array.ndim == 0 else array.data)
    return sha256.hexdigest()
