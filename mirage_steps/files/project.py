"""The project's own files, found from any folder: configurations, networks, examples."""

import functools
import os
from pathlib import Path

from mirage_steps.files.terminal import log

_PACKAGE = Path(__file__).parents[1]
# A wheel holds them inside the package (pyproject.toml), a checkout beside it.
PROJECT = _PACKAGE / "project" if (_PACKAGE / "project").is_dir() else _PACKAGE.parent
# Folders that a wheel has, too. A path below another folder of the project is a mistake.
_FOLDERS = ("config", "examples", "weights")


def project_path(path: Path | str) -> Path:
    """A path in the current folder, or the project's file or folder, which the log then tells.

    Args:
        path: where it is below ``config``, ``examples`` or ``weights`` and the current folder does
            not have it, the project's own is meant.
    """
    path = Path(os.path.expanduser(path))
    of_project = PROJECT / path
    own = path.parts and path.parts[0] in _FOLDERS
    if not own or os.path.lexists(path) or not os.path.exists(of_project):
        return path
    _tell(path)
    return of_project


@functools.cache
def _tell(path: Path) -> None:
    """Log, once, that a file of the project is used."""
    log.info("%s: not in the current folder; the one in %s is used", path, PROJECT)
