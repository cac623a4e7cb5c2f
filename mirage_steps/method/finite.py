"""Values that are not finite: found where they arise or are read, not in a result."""

from collections.abc import Sequence

import numpy as np

from mirage_steps.errors import UserError


def require_finite(names: Sequence[str], what: str, remedy: str, *arrays: np.ndarray) -> None:
    """Refuse arrays with values that are not finite, by the first name of such a row.

    Args:
        names: (n,) of what each row belongs to.
        what: the values, such as ``tokens``.
        remedy: what to do.
        arrays: (n, ...) of floats.

    Raises:
        UserError: a value is NaN or infinite.
    """
    for array in arrays:
        rows = np.isfinite(array).reshape(len(array), -1).all(1)
        if not rows.all():
            others = f" and those of {count} others" if (count := int((~rows).sum()) - 1) else ""
            name = names[int(rows.argmin())]
            are = "are" if others or what.endswith("s") else "is"
            raise UserError(f"{name}: its {what}{others} {are} not finite; {remedy}")
