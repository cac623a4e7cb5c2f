"""``pose_estimator.safetensors``: arrays of a pose estimator, its configuration as metadata."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mirage_steps.errors import UserError, first_line, rerun
from mirage_steps.files.names import not_a
from mirage_steps.files.tensors import read_tensors, write_tensors
from mirage_steps.method.categories import CategoryModel
from mirage_steps.method.foreground import ForegroundModel
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.method.poses import PoseModel

ESTIMATOR = "pose_estimator.safetensors"


def save_estimator(path: Path, estimator: PoseEstimator) -> None:
    """Write an estimator, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    configuration = json.dumps(_named(asdict(estimator), "", arrays))
    write_tensors(path, arrays, configuration)


def _named(part: object, name: str, arrays: dict[str, np.ndarray]) -> object:
    """Replace arrays by their names and collect them in ``arrays``."""
    if isinstance(part, np.ndarray):
        arrays[name] = part
        return {"array": name}
    if isinstance(part, tuple):
        return [_named(one, f"{name}.{index}", arrays) for index, one in enumerate(part)]
    if isinstance(part, dict):
        return {k: _named(v, f"{name}.{k}".lstrip("."), arrays) for k, v in part.items()}
    return part


def load_estimator(path: Path, part: str = "foreground") -> PoseEstimator:
    """Read what :func:`save_estimator` wrote.

    Args:
        path: of the file.
        part: attribute that it must have, such as ``poses``.

    Raises:
        UserError: missing, damaged or without that part.
        OSError: it may not be read.
    """
    if wrong := not_a("file", path):
        step = path.parent.name
        hint = f"; run snakemake again, its step {step} makes it" if not path.exists() else ""
        raise UserError(f"{path}: {wrong}{hint}")
    try:
        arrays, configuration = read_tensors(path)

        def loaded(node: dict) -> object:
            if node.keys() != {"array"}:
                return node
            if not np.isfinite(arrays[node["array"]]).all():
                raise ValueError(f"{node['array']} is not finite")
            return arrays[node["array"]]

        estimator = _join(**json.loads(configuration, object_hook=loaded))
    except (ValueError, LookupError, TypeError) as error:
        step = rerun(path.parent.name)
        raise UserError(f"{path}: cannot be used ({first_line(error)}); {step}") from None
    if getattr(estimator, part) is None:
        raise UserError(f"{path}: has no {part} yet; give the file of the step that fits them")
    return estimator


def _join(
    foreground: dict,
    categories: dict | None,
    pcas: list | None,
    poses: list | None,
    centers: list | None = None,
    **others: Any,
) -> PoseEstimator:
    """The estimator of nested dictionaries."""
    return PoseEstimator(
        foreground=ForegroundModel(**foreground | {"pca": Pca(**foreground["pca"])}),
        categories=CategoryModel(**categories | {"pca": Pca(**categories["pca"])})
        if categories
        else None,
        pcas=tuple(Pca(**part) for part in pcas) if pcas else None,
        poses=tuple(PoseModel(**part) for part in poses) if poses else None,
        centers=tuple(centers) if centers else None,
        **others,
    )
