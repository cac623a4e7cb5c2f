"""The one error a user may see without a traceback."""


class UserError(Exception):
    """A mistake the user can mend: says what is wrong, where, and what to do, in one line."""
