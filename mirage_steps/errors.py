"""The one error a user may see without a traceback, and exceptions in one line."""

import contextlib
import errno
import re
from collections.abc import Iterator

# Control characters, ends of lines and lone surrogates.
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """An error that the user can fix, in one line: where, what is wrong, what to do.

    Whatever the message quotes is made printable.
    """

    def __init__(self, message: object):
        super().__init__(printable(str(message)))


class Incomplete(UserError):
    """Some of several things were done, others could not be.

    Args:
        message: the line of the error.
        done: names of the records of what was done.
    """

    def __init__(self, message: str, done: list[str]):
        super().__init__(message)
        self.done = done


def printable(text: str) -> str:
    """A text whose control characters are written as escapes, so that it is one line."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def rerun(*rules: str) -> str:
    """What to do, for the end of an error's message: make again what these rules make."""
    return f"run snakemake with --forcerun {' '.join(rules)}"


@contextlib.contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Begin the errors of the block with the place that they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}{error}") from None


@contextlib.contextmanager
def parsing(where: str, wrong: str, *rules: str) -> Iterator[None]:
    """One line if the block cannot parse the file at ``where``, which ``rules`` make again."""
    try:
        yield
    except (FileNotFoundError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{where}: {wrong} ({error!r}); {rerun(*rules)}") from None


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message, its representation where it has none.

    Args:
        error: raised by a library. Where torch refuses to run what a file holds, it advises to load
            the file unsafely; told is what it holds.
        limit: most characters.
    """
    text = str(error).strip() or repr(error)
    if "weights_only" in text:
        found = re.search(r"GLOBAL (\S+)", text)
        return f"it holds {found[1]}, not only tensors" if found else "it does not hold tensors"
    return text.splitlines()[0][:limit]


def is_of_system(error: BaseException) -> bool:
    """Whether the operating system refused, such as a permission; not that a file is absent."""
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
