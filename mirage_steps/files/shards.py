"""Shards: the rows of a step, divided among several jobs.

Shards end at batch boundaries: every batch has the same rows as in a single job, so that not even
rounding depends on the number of jobs.
"""

import re
from dataclasses import dataclass

from mirage_steps.errors import UserError

# Attribute of a shard's file: its first row, the one after its last, and the rows of the whole.
ROWS = "rows"


@dataclass(frozen=True)
class Shard:
    """A job's place among those that share the work.

    Args:
        number: of the job, from 1.
        of: number of jobs.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From text such as ``2-of-7``.

        Raises:
            UserError: it is no such text.
        """
        found = re.fullmatch(r"(\d{1,6})-of-(\d{1,6})", text)
        number, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= of:
            raise UserError(f"--shard {text}: give one such as 2-of-7")
        return cls(number, of)

    def rows(self, count: int, batch: int) -> range:
        """Rows of this job, of ``count`` in batches of ``batch``; none where jobs outnumber them.

        The batches are divided as evenly as can be.
        """
        batches = -(-count // batch)
        first, last = ((self.number + k) * batches // self.of * batch for k in (-1, 0))
        return range(min(first, count), min(last, count))

    def note(self, rows: range, total: int) -> dict[str, list[int]]:
        """Attributes by which :mod:`mirage_steps.gather` joins shards; none for a single job."""
        return {} if self.of == 1 else {ROWS: [rows.start, rows.stop, total]}

    def name(self, stem: str) -> str:
        """Name of this job's file or record, without suffix."""
        return stem if self.of == 1 else f"{stem}.{self.number}-of-{self.of}"
