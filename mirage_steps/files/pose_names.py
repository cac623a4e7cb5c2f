"""``names.json``, what pictures call the poses of a run; no result depends on it."""

from pathlib import Path

from mirage_steps.files.records import read_json

NAMES = Path("poses/names.json")  # in the folder of a run


def read_pose_names(path: Path | None, count: int) -> list[str]:
    """Names of so many poses; ``pose N`` where the file is missing or of other poses."""
    found = read_json(path).get("names") if path else None
    if isinstance(found, list) and len(found) == count:
        return [str(name) for name in found]
    return [f"pose {pose}" for pose in range(count)]
