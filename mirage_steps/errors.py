"""The one error a user may see without a traceback, and exceptions in one line."""


class UserError(Exception):
    """An error that the user can fix, in one line: where, what is wrong, what to do."""


class Incomplete(UserError):
    """Some of several things were done, others could not be.

    Args:
        message: the line of the error.
        done: names of the records of what was done.
    """

    def __init__(self, message: str, done: list[str]):
        super().__init__(message)
        self.done = done


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message, its representation where it has none.

    Args:
        error: raised by a library.
        limit: most characters.
    """
    return (str(error).strip() or repr(error)).splitlines()[0][:limit]
