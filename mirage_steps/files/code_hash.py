"""What code a step depends on, so that an edit of it makes its results stale."""

import ast
import hashlib
from collections.abc import Collection
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# Settings reach a step through its flags; the others do not change what is computed. Pictures do
# change, but a new layout must not make a training stale.
_IGNORED = {
    "settings", "errors", "files.command", "files.code_hash", "files.plots", "files.tiles",
    "networks.fetching",  # how networks are fetched; which they are is a setting
}  # fmt: skip


def code_hash(step: str, without: Collection[str] = ()) -> str:
    """Hash of a step's module and of every module of this package it imports, however deep.

    Comments, docstrings and layout do not count.

    Args:
        step: name of the module in ``mirage_steps``, such as ``poses``.
        without: modules that do not count, nor what only they import.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for module in sorted(_modules(step, _IGNORED.union(without))):
        tree = ast.parse((_PACKAGE / f"{module.replace('.', '/')}.py").read_text())
        digest.update(f"{module}:{ast.dump(_without_docstrings(tree))}".encode())
    return digest.hexdigest()[:16]


def _modules(step: str, ignored: Collection[str]) -> set[str]:
    found: set[str] = set()
    waiting = [step]
    while waiting:
        module = waiting.pop()
        path = _PACKAGE / f"{module.replace('.', '/')}.py"
        if module in found or module in ignored or not path.is_file():
            continue
        found.add(module)
        waiting += _imports(ast.parse(path.read_text()))
    return found


def _imports(tree: ast.Module) -> list[str]:
    """Modules of this package that a module imports, relative to the package."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` and `from package.module import name` look alike.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    prefix = f"{_PACKAGE.name}."
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return tree


def version(step: str) -> int:
    """The constant ``VERSION`` of a step whose results are too dear to go stale by any edit."""
    tree = ast.parse((_PACKAGE / f"{step}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VERSION":
            return ast.literal_eval(node.value)
    raise LookupError(f"{step} has no VERSION")
