"""Update the graphs in docs/architecture.md, and the schema and the page of all keys.

Run ``python docs/graphs.py`` in the project's folder after rules, imports or settings changed.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("architecture.md")

PACKAGE = Path(__file__).parents[1] / "mirage_steps"
# From top to bottom; a module belongs to the longest prefix, all others are steps.
LAYERS = (
    ("steps", "tools", "demo.stand_ins"),
    ("training_scores",),
    ("judge",),
    ("run",),
    ("references", "sources"),
    ("networks",),
    ("files",),
    ("method", "demo.renderer"),
    ("settings",),
    ("evaluation_sets", "errors"),
)


def group(module: str) -> str:
    """The part of a layer that a module such as ``files.h5`` belongs to."""
    names = [name for layer in LAYERS for name in layer]
    return next((name for name in names if f"{module}.".startswith(f"{name}.")), "steps")


def level(name: str) -> int:
    """Height of a group, 0 at the bottom."""
    return next(n for n, layer in enumerate(reversed(LAYERS)) if name in layer)


def imports() -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports, at the top or in a function."""
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
            elif isinstance(node, ast.Import):
                names |= {one.name for one in node.names}
        inside = {name.removeprefix(f"{PACKAGE.name}.") for name in names}
        found[module] = inside & paths.keys()
    return found


def layers() -> str:
    """The groups as boxes, an arrow for what one imports of another."""
    edges = {
        (group(module), group(other)) for module, others in imports().items() for other in others
    }
    boxes = {name: name.replace(".", "_") for layer in LAYERS for name in layer}
    lines = [f'    {box}["{name}"]' for name, box in boxes.items()]
    lines += [f"    {boxes[a]} --> {boxes[b]}" for a, b in sorted(edges) if a != b]
    return "\n".join(["flowchart TD", *lines])


def rules(folder: Path = PACKAGE.parent, *words: str) -> str:
    """The rules that make the demo's overview, as Snakemake draws them, in a fixed order."""
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rulegraph", "mermaid-js", *words]
    target = ["--", "results/demo/overview.txt"]
    done = subprocess.run([*command, *target], cwd=folder, capture_output=True, text=True)
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", done.stdout))
    edges = re.findall(r"(id\d+) --> (id\d+)", done.stdout)
    lines = sorted(f"    {names[a]} --> {names[b]}" for a, b in edges)
    return "\n".join(["flowchart TD", *lines])


def page() -> str:
    """The page with both graphs as they are now."""
    text = PAGE.read_text()
    for name, graph in (("rules", rules()), ("layers", layers())):
        block = rf"(<!-- {name} -->\n```mermaid\n).*?(\n```)"
        text = re.sub(
            block, lambda found, graph=graph: found[1] + graph + found[2], text, flags=re.S
        )
    return text


if __name__ == "__main__":
    import reference  # beside this file

    for path, text in {PAGE: page(), **reference.contents()}.items():
        path.write_text(text)
