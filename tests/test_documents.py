"""Links and anchors of all Markdown files hold, and the site has all pages."""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "config/*.md", "weights/s*-*/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)


def wrong_links(path: Path) -> Iterator[str]:
    """Relative links and pictures of a Markdown file whose file or heading is not there."""
    for token in MarkdownIt().enable("table").parse(path.read_text()):
        for part in token.children or ():
            link = unquote(str(part.attrs.get("href", part.attrs.get("src", ""))))
            if not link or re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            if not target.exists() or (anchor and anchor not in anchors(target)):
                yield link


@functools.cache
def anchors(path: Path) -> set[str]:
    """Those that GitHub gives the headings of a Markdown file."""
    tokens = MarkdownIt().enable("table").parse(path.read_text())
    seen: Counter[str] = Counter()
    found = set()
    for before, token in zip(tokens, tokens[1:], strict=False):
        if before.type == "heading_open":
            shown = "".join(part.content for part in token.children if part.type != "html_inline")
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_have_no_gaps_and_no_dead_links(path):
    gap = r"^(?:- )?[A-Z][A-Z_]{5,}$|TODO|FIXME"  # a word in capitals that stands for a paragraph
    assert not re.findall(gap, path.read_text(), flags=re.MULTILINE)
    assert list(wrong_links(path)) == []


def test_dead_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# One, `two` & three\n\n## Same\n\n## Same\n")
    (tmp_path / "page.md").write_text(
        "# Here\n\n[a](other.md#one-two--three) [b](other.md#same-1) [c](#here) [d](https://x.y)\n\n"
        "`[code](no.md)` [e](other.md#same-2) ![f](no.png) [g](no.md#one) [h](#there)\n\n"
        "| table |\n|---|\n| [i](gone.md) |\n"
    )
    wrong = ["other.md#same-2", "no.png", "no.md#one", "#there", "gone.md"]
    assert list(wrong_links(tmp_path / "page.md")) == wrong


def test_the_site_has_all_pages_and_no_other():
    pages: list[str] = []
    waiting = [yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]]
    while waiting:
        for title in waiting.pop():
            (inside,) = title.values()
            (waiting if isinstance(inside, list) else pages).append(inside)
    hidden = {path for path in DOCUMENTS if ".github" in path.parts}
    shown = {path.relative_to(ROOT) for path in DOCUMENTS if path not in hidden}
    notebooks = {path.relative_to(ROOT).with_suffix(".md") for path in ROOT.glob("docs/*.ipynb")}
    assert sorted(pages) == sorted(map(str, shown | notebooks))
