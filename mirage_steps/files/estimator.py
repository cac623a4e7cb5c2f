"""``pose_estimator.safetensors``: a pose estimator's arrays, its configuration in the metadata."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mirage_steps.errors import UserError, first_line
from mirage_steps.files.atomic import atomic
from mirage_steps.method.categories import CategoryModel
from mirage_steps.method.foreground import ForegroundModel
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.method.poses import PoseModel

ESTIMATOR = "pose_estimator.safetensors"


def save_estimator(path: Path, estimator: PoseEstimator) -> None:
    """Write an estimator, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    configuration = _split(estimator, "", arrays)
    with atomic(path) as temporary:
        save_file(arrays, temporary, {"configuration": json.dumps(configuration)})


def load_estimator(path: Path, complete: bool = False) -> PoseEstimator:
    """Read what :func:`save_estimator` wrote.

    Args:
        path: of the file.
        complete: it must have its poses.

    Raises:
        UserError: missing, damaged or not complete.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; run snakemake again, its step {path.parent.name} "
                        "makes it")  # fmt: skip
    try:
        with safe_open(path, "np") as file:
            configuration = json.loads(file.metadata()["configuration"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        estimator = _join(configuration, arrays)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({first_line(error)}); delete it and run snakemake again"
        ) from None
    if complete and estimator.poses is None:
        raise UserError(f"{path}: has no poses yet; give the file that the step poses makes")
    return estimator


def _split(part: object, name: str, arrays: dict[str, np.ndarray]) -> object:
    """What JSON can hold of a part; its arrays go to ``arrays`` under dotted names."""
    if isinstance(part, np.ndarray):
        arrays[name] = np.ascontiguousarray(part)
        return None
    prefix = f"{name}." if name else ""
    if isinstance(part, tuple):
        return [_split(one, f"{prefix}{index}", arrays) for index, one in enumerate(part)]
    if is_dataclass(part):
        names = (field.name for field in fields(part))
        return {key: _split(getattr(part, key), f"{prefix}{key}", arrays) for key in names}
    return part


def _join(configuration: dict, arrays: dict[str, np.ndarray]) -> PoseEstimator:
    """The estimator that :func:`_split` took apart."""

    def part(cls: type, name: str, values: dict, **parts: object) -> object:
        own = {key: arrays.get(f"{name}.{key}", value) for key, value in values.items()}
        return cls(**{**own, **parts})

    def pca(name: str) -> Pca:
        return Pca(*(arrays[f"{name}.{field.name}"] for field in fields(Pca)))

    known = dict(configuration)
    known["foreground"] = part(
        ForegroundModel, "foreground", known["foreground"], pca=pca("foreground.pca")
    )
    if known["categories"] is not None:
        known["categories"] = part(
            CategoryModel, "categories", known["categories"], pca=pca("categories.pca")
        )
    if known["pcas"] is not None:
        known["pcas"] = tuple(pca(f"pcas.{index}") for index in range(len(known["pcas"])))
    if known["poses"] is not None:
        known["poses"] = tuple(
            part(PoseModel, f"poses.{index}", values) for index, values in enumerate(known["poses"])
        )
    return PoseEstimator(**known)
