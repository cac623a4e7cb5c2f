"""Names of networks in tables and reports."""

from pathlib import Path

# Names of the embedded networks begin with it, so that no table passes them off as published ones.
STAND_IN = "stand-in"
# The Inception of published FIDs; features of any other file carry that file's name.
INCEPTION = "clean-fid Inception"


def network_name(path: str | Path, stand_in: bool) -> str:
    """The last component of a network's path, after ``stand-in`` for an embedded network.

    Args:
        path: a file or folder, or a published name.
        stand_in: whether it is an embedded network.
    """
    name = Path(path).name
    return f"{STAND_IN} {name}" if stand_in and not name.startswith(STAND_IN) else name
