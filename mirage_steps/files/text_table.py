"""Tables of plain text."""

from collections.abc import Sequence

from mirage_steps.errors import printable


def aligned(rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    """Lines of a table with a rule below its head.

    Args:
        rows: cells, the head first, all rows of one length.
        alignment: ``<`` or ``>`` for each column.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:{side}{width}}"
            for cell, side, width in zip(row, alignment, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
