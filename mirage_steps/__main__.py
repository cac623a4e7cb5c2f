"""``mirage-steps NAME ...``: a step or tool, as ``python -m mirage_steps.NAME ...`` runs it."""

import ast
import difflib
import os
import sys
from pathlib import Path

from mirage_steps import __version__
from mirage_steps.errors import printable

_COMMAND = '\nif __name__ == "__main__":\n'


def commands() -> dict[str, Path]:
    """Files of all steps and tools by the name that the command line takes, such as novel-views."""
    here = Path(__file__).parent
    paths = [*sorted(here.glob("*.py")), *sorted(here.glob("tools/*.py"))]
    found = {path.stem.replace("_", "-"): path for path in paths if path != Path(__file__)}
    return {name: path for name, path in found.items() if _COMMAND in path.read_text()}


def usage() -> str:
    """All commands with the first line of what they do."""
    lines = ["usage: mirage-steps NAME ...; mirage-steps NAME --help has its flags", ""]
    for name, path in commands().items():
        about = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        lines.append(f"  {name:16} {about.splitlines()[0]}")
    return "\n".join(lines)


def main() -> None:
    """Become the command that the first word names."""
    name, *words = sys.argv[1:] or ["--help"]
    if name == "--version":
        print(f"mirage-steps {__version__}")
    elif name in ("-h", "--help"):
        print(usage())
    elif path := commands().get(name.replace("_", "-")):
        tool = "tools." if path.parent.name == "tools" else ""
        # -P: modules of the current folder must not be taken for others of their name.
        words = ["-P", "-m", f"mirage_steps.{tool}{path.stem}", *words]
        os.execv(sys.executable, [sys.executable, *words])
    else:
        meant = difflib.get_close_matches(name, commands(), n=1)
        hint = f"did you mean {meant[0]}?" if meant else "mirage-steps --help lists them"
        sys.exit(printable(f"error: NAME {name}: no such step or tool; {hint}"))


if __name__ == "__main__":
    main()
