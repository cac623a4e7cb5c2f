"""Hooks of MkDocs: pages keep their paths in the repository, so that its links hold in the site.

Pages lie in several folders and link to code. Each file is a page or a copy at its own path.
"""

import base64
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
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page with its Mermaid graphs drawn, for which a browser would need a script."""
    return re.sub(r"```mermaid\n(.*?)```", _drawn, markdown, flags=re.DOTALL)


def on_page_content(html: str, **_: object) -> str:
    """Names in docstrings without the roles by which Sphinx would link them."""
    return re.sub(r":(?:attr|class|func|meth|mod):<code>[~.]*", "<code>", html)


def _drawn(fence: re.Match[str]) -> str:
    image = base64.b64encode(mmdr.render(fence[1]).svg().encode()).decode()
    return f'<img alt="graph" src="data:image/svg+xml;base64,{image}">'
