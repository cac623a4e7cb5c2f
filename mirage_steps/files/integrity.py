"""Notices files that are no longer what their step wrote, by the hashes in its record."""

from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import identity
from mirage_steps.files.records import read_json


def changed_since(path: Path) -> str | None:
    """The step that wrote a file, if its record has another hash; None if it has not, or has none.

    Records are in the folder of the file, or in the one above, where one step fills several.
    """
    records = [*path.parent.glob("*.run.json"), *path.parent.parent.glob("*.run.json")]
    for record in map(read_json, records):
        for name in (path.name, f"{path.parent.name}/{path.name}"):
            expected = record.get("outputs", {}).get(name)
            if expected and expected != identity(path).get("sha256"):
                return str(record.get("step")).rpartition(".")[2]
    return None


def require_unchanged(path: Path) -> None:
    """Refuse arrays that a disk or a copy damaged, which their format would not show.

    Raises:
        UserError: the file is not what its step wrote.
    """
    if step := changed_since(path):
        raise UserError(
            f"{path}: is not what the step {step} wrote (its SHA-256 differs) "
            f"but damaged or replaced; make it again: snakemake --forcerun {path}"
        )
