"""Flags and code hash of a step, read without importing it.

Importing a step would import torch, which takes longer than Snakemake's planning of all jobs.
"""

import ast
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
# Modules whose edits make no output stale: settings reach a step through its flags, and a new
# layout of a picture must not cost a training.
_IGNORED = {
    "settings", "errors", "evaluation_sets", "files.command", "files.provenance",
    "files.step_code", "files.plots", "files.tiles", "files.page",
    "files.pack", "files.generated_objects",  # for Python and --run, not for rules
    "networks.fetching",  # how networks are fetched; which they are is a setting
}  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """The arguments of a step's ``main``.

    Args:
        positional: names of the positional ones.
        flags: name -> annotation of the keyword arguments, as written but for ``| None``.
    """

    positional: tuple[str, ...]
    flags: dict[str, str]


def signature(step: str) -> Signature:
    """Arguments of ``main`` in the module of a step, such as ``poses``."""
    main = next(
        node
        for node in _parsed(step).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    written = {one.arg: ast.unparse(one.annotation) for one in main.args.kwonlyargs}
    flags = {name: text.removesuffix(" | None") for name, text in written.items()}
    return Signature(tuple(one.arg for one in main.args.args), flags)


def version(step: str) -> int:
    """The constant ``VERSION`` of a step whose results are too dear to go stale by any edit."""
    for node in _parsed(step).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VERSION":
            return ast.literal_eval(node.value)
    raise LookupError(f"{step} has no VERSION")


def code_hash(step: str) -> str:
    """Hash of a step's module and of every module of this package it imports, however deep.

    Snakemake does not follow imports of helpers. Comments, docstrings and layout do not count, nor
    imports inside functions, which no rule needs (`Run.mesh`; meshes of a pipeline have a step).

    Args:
        step: name of the module in ``mirage_steps``, such as ``poses``.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for module in sorted(_modules(step)):
        tree = _without_docstrings(ast.parse(_path(module).read_bytes()))
        digest.update(f"{module}:{ast.dump(tree)}".encode())
    return digest.hexdigest()[:16]


def _path(module: str) -> Path:
    return _PACKAGE / f"{module.replace('.', '/')}.py"


@functools.cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(_path(module).read_bytes())


def _modules(step: str) -> set[str]:
    """The step and the modules it imports, relative to the package."""
    found: set[str] = set()
    waiting = [step]
    while waiting:
        module = waiting.pop()
        if module not in found | _IGNORED and _path(module).is_file():
            found.add(module)
            waiting += _imports(_parsed(module))
    return found


@functools.cache
def _imports(tree: ast.Module) -> list[str]:
    """Modules of this package that a module imports at its top, relative to the package."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` and `from package.module import name` look alike.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    prefix = f"{_PACKAGE.name}."
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    node: Any
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [
                part
                for part in node.body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return tree
