"""What was found out about large or many files, kept as long as these do not change."""

import os
from collections.abc import Callable
from pathlib import Path

from mirage_steps.files.atomic import write_json
from mirage_steps.files.names import encoded
from mirage_steps.files.records import read_json

CACHE = ".files.json"  # in the folder of all results


class FileCache:
    """JSON values by file, computed again where its size or time has changed.

    Args:
        path: of the JSON file that keeps them; need not exist.
    """

    def __init__(self, path: Path):
        self.path, self._known, self._changed = path, read_json(path), False

    def get(self, file: Path, what: str, compute: Callable[[Path], object]) -> object:
        """A value of a file.

        Args:
            file: to look at.
            what: the value's name.
            compute: gives it from the file.

        Raises:
            OSError: the file cannot be looked at.
        """
        stat = os.stat(file)
        state, key = [stat.st_size, stat.st_mtime_ns], f"{what} {encoded(os.path.abspath(file))}"
        found = self._known.get(key)
        if not isinstance(found, list) or found[:2] != state or len(found) != 3:
            found = self._known[key] = [*state, compute(file)]
            self._changed = True
        return found[2]

    def save(self) -> None:
        """Write what was computed since."""
        if self._changed:
            write_json(self.path, self._known)
            self._changed = False
