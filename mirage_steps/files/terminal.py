"""What a step tells while it works: its log, and progress fit for a terminal or for a file."""

import io
import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from mirage_steps.errors import printable

log = logging.getLogger("mirage_steps")

_LOGGED_EVERY = 30  # s, where bars would fill a file


def start_log() -> None:
    """Send the log to stderr, also that of libraries."""
    handler = _AboveBars()
    handler.setFormatter(_Lines("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.raiseExceptions = False  # a reader of the log that has gone is no error


def progress(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A progress bar in a terminal; elsewhere a line of the log every half minute.

    Args:
        iterable: to wrap, if any.
        options: of tqdm, such as ``total`` and ``unit``.
    """
    shown = tqdm if sys.stderr.isatty() else _LoggedProgress
    return shown(iterable, **{"mininterval": 1.0, **options})


def end_bars() -> None:
    """Finish the lines of bars that an error left open."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


class _AboveBars(logging.StreamHandler):
    """Lines on stderr that do not run into a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _Lines(logging.Formatter):
    """Warnings say so; other lines begin with the time."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno < logging.WARNING:
            return super().format(record)
        return f"{record.levelname.lower()}: {printable(record.getMessage())}"


class _LoggedProgress(tqdm):
    """Progress as lines of the log."""

    monitor_interval = 0  # no thread
    _logged: float = -1  # the count in the last line

    def __init__(self, iterable: Iterable | None, **options: Any):
        silent = options | {"file": io.StringIO(), "delay": _LOGGED_EVERY}
        silent |= {"mininterval": _LOGGED_EVERY, "miniters": 1}
        name = f"{options.get('desc', 'done')}: "
        form = name + "{n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        super().__init__(iterable, **silent, bar_format=form)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log the state; called only after ``delay`` and at the end."""
        if msg is None and self.n != self._logged:
            log.info("%s", str(self))
            self._logged = self.n
