"""The one error a user may see without a traceback, and exceptions in one line."""


class UserError(Exception):
    """An error that the user can fix, in one line: where, what is wrong, what to do."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message, its representation where it has none.

    Args:
        error: raised by a library.
        limit: most characters.
    """
    return (str(error).strip() or repr(error)).splitlines()[0][:limit]
