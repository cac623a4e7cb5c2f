"""The project's own files, found from any folder: configurations, networks, examples."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A wheel holds them inside the package (pyproject.toml), a checkout beside it.
PROJECT = _PACKAGE / "project" if (_PACKAGE / "project").is_dir() else _PACKAGE.parent


def project_path(path: Path | str) -> Path:
    """A relative path in the current folder, or in the project's where only that one has it."""
    path = Path(os.path.expanduser(path))
    of_project = PROJECT / path
    return of_project if not os.path.lexists(path) and os.path.exists(of_project) else path
