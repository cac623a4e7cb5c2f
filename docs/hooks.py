"""Hooks of MkDocs: pages keep their paths in the repository, so that its links hold in the site.

Pages lie in several folders and link to code. Each file is a page or a copy at its own path.
"""

import base64
import json
import re
from pathlib import Path

import mmdr
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Pages, and what they link to.
SHOWN = (
    "*.md", "LICENSE", "CITATION.cff", "config/*", "docs/*.*", "docs/pictures/*",
    "mirage_steps/**/*.py", "mirage_steps/files/page.html", "weights/s*-*/README.md",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and those of the repository that the site has, by their paths in it."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in (path for pattern in SHOWN for path in sorted(ROOT.glob(pattern))):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
        if path.suffix == ".ipynb":
            page = str(Path(name).with_suffix(".md"))
            files.append(File.generated(config, page, content=_notebook(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page with its Mermaid graphs drawn, for which a browser would need a script."""
    return re.sub(r"```mermaid\n(.*?)```", _drawn, markdown, flags=re.DOTALL)


def on_page_content(html: str, **_: object) -> str:
    """Names in docstrings without the roles by which Sphinx would link them."""
    return re.sub(r":(?:attr|class|func|meth|mod):<code>[~.]*", "<code>", html)


def _notebook(path: Path) -> str:
    """An executed notebook as Markdown, with what its cells printed and drew."""
    parts = [f"*As a notebook: [{path.name}]({path.name})*"]
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            kind = next((one for one in data if one.startswith("image/")), None)
            if kind:
                source = f"data:{kind};base64,{data[kind].strip()}"
                parts.append(f'<img alt="what the cell drew" src="{source}">')
            else:
                parts.append("```text\n" + "".join(data["text/plain"]).rstrip() + "\n```")
    return "\n\n".join(parts)


def _drawn(fence: re.Match[str]) -> str:
    image = base64.b64encode(mmdr.render(fence[1]).svg().encode()).decode()
    return f'<img alt="graph" src="data:image/svg+xml;base64,{image}">'
