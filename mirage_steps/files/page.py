"""Self-contained HTML pages: tables, pictures, turntables and meshes, nothing from a network."""

import base64
import functools
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image

from mirage_steps.files.atomic import atomic, human_size
from mirage_steps.files.names import encoded
from mirage_steps.files.records import read_json

MOST = 17_000_000  # characters of embedded files; with three.js and texts less than 20 MB
ABOUT_PHOTOS = (
    "Drag a picture, or use its slider and the arrow keys. Each frame is an image by the diffusion "
    "model, from the photo's inverted noise; in the photo's own pose it is the photo's crop. What "
    "the photo does not show is invented. A mesh is the hull of the views' masks, by cameras that "
    "were found from the data: it has no hollows, and is as wrong as the views are."
)
_LARGE = 300_000  # bytes of a picture that is embedded as it is
_WIDEST = 2400  # pixels of one that is not


class Page:
    """Sections of blocks, in the order of the calls; all texts are escaped.

    Files go into the page as long as they take at most ``most`` characters; more are linked.
    """

    def __init__(self, path: Path, title: str, lead: str = ""):
        self.path, self.title, self.lead = path, title, lead
        self.most, self._taken = MOST, 0
        self.sections: list[dict[str, Any]] = []

    def section(self, title: str, about: str = "") -> None:
        """Begin a section, to which the blocks that follow belong."""
        self.sections.append({"title": title, "about": about, "blocks": []})

    def add(self, kind: str, **block: Any) -> None:
        """Add a block of the template: ``note`` and ``warning`` with ``text``, or another."""
        self.sections[-1]["blocks"].append({"kind": kind, **block})

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table whose first column names the rows."""
        self.add("table", head=head, rows=rows)

    def text(self, text: str) -> None:
        """Add paragraphs, and tables that :func:`.text_table.aligned` made."""
        for part in re.split(r"\n\s*\n", text.strip("\n")):
            lines = part.splitlines()
            rule = next((n for n, line in enumerate(lines) if re.fullmatch("-{8,}", line)), 0)
            table = _cells(lines[rule - 1 :]) if rule else None
            if above := lines[: rule - 1] if table else lines:
                self.add("text", text="\n".join(above))
            if table:
                self.table(*table)

    def picture(self, path: Path, alt: str, caption: str, kind: str = "picture") -> bool:
        """Add a picture; large ones are compressed, damaged ones say so and give False."""
        try:
            mime, content, size = _compressed(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self.add("warning", text=f"{encoded(path.name)} cannot be shown: {error}")
            return False
        uri, link = self._embedded(mime, content), self.link(path)
        self.add(kind, uri=uri, alt=alt, caption=caption, size=size, link=link)
        return True

    def turntable(
        self, views: np.ndarray, labels: Sequence[str], start: int, alt: str, caption: str
    ) -> None:
        """Add an object that one drags around; without scripts its views side by side.

        Args:
            views: (k, S, S, 3) uint8 in circular order.
            labels: (k,) what each shows.
            start: the view that is shown first.
            alt, caption: of the picture.
        """
        strip = Image.fromarray(np.concatenate(views, axis=1))
        uri = self._embedded("image/webp", _encoded(strip, quality=92))
        self.add("turntable", uri=uri, labels=labels, start=start, alt=alt, caption=caption)

    def mesh(self, glb: Path, caption: str) -> None:
        """Add a mesh that one rotates, with its picture ``STEM.mesh.png``."""
        alt = "The views; below them the mesh with colors and in gray, as the cameras see it"
        if self.picture(glb.with_suffix(".mesh.png"), alt, caption, "mesh"):
            uri = self._embedded("model/gltf-binary", glb.read_bytes())
            self.sections[-1]["blocks"][-1] |= {"glb": uri, "link": self.link(glb)}

    def photo(self, record: Path, glb: Path | None, names: Mapping[int, str]) -> None:
        """Add a photo's novel views, and its mesh if there is one.

        Args:
            record: PHOTO.json, with PHOTO.views beside it.
            glb: PHOTO.glb, with PHOTO.mesh.png beside it.
            names: of the poses.
        """
        about, folder = read_json(record), record.with_suffix(".views")
        try:
            name, own, poses = about["photo"], about["pose"], about["poses"]
            views = [_rgb(folder / f"pose_{pose:02d}.png") for pose in poses]
            labels = [
                names.get(pose, f"pose {pose}") + ", the photo's own" * (pose == own)
                for pose in poses
            ]
            lines = [f"{name}: reconstructed at {about['reconstruction_psnr_db']:.1f} dB"]
            lines += [f"warning: {one['reason']}" for one in about["warnings"]]
            alt, start = f"{name} in {len(poses)} poses", poses.index(own)
            self.turntable(np.stack(views), labels, start, alt, "; ".join(lines))
            if glb is not None:
                self.mesh(glb, name)
        except (OSError, ValueError, LookupError, TypeError, SyntaxError) as error:
            self.add("warning", text=f"{encoded(record.name)} cannot be shown: {error!r}")

    def link(self, path: Path) -> dict[str, str]:
        """What the template needs to link a file."""
        there = os.path.relpath(path.absolute(), self.path.absolute().parent)
        size = human_size(path.stat().st_size)
        return {"to": quote(os.fsencode(there)), "name": encoded(path.name), "size": size}

    def write(self) -> Path:
        """Write the page without its empty sections, whole or not at all; return its path."""
        self.sections = [one for one in self.sections if one["blocks"]]
        meshes = any(block.get("glb") for one in self.sections for block in one["blocks"])
        html = _template().render(page=self, three=_three() if meshes else "")
        with atomic(self.path) as temporary:
            # File names that are not UTF-8 reach Python as lone surrogates.
            temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
        return self.path

    def _embedded(self, mime: str, content: bytes) -> str:
        """A file as a data URI, empty where the page would grow too large."""
        uri = f"data:{mime};base64,{base64.b64encode(content).decode()}"
        fits = self._taken + len(uri) <= self.most
        self._taken += len(uri) * fits
        return uri * fits


def _rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _compressed(path: Path) -> tuple[str, bytes, tuple[int, int]]:
    """Type, content, and width and height in pixels of a picture."""
    with Image.open(path) as image:
        image.load()
        if path.stat().st_size <= _LARGE and image.format in ("PNG", "JPEG", "WEBP"):
            return Image.MIME[image.format], path.read_bytes(), image.size
        smaller = image.convert("RGB")
    smaller.thumbnail((_WIDEST, 4 * _WIDEST))
    return "image/webp", _encoded(smaller, quality=85), smaller.size


def _encoded(image: Image.Image, quality: int) -> bytes:
    content = io.BytesIO()
    image.save(content, "webp", quality=quality)
    return content.getvalue()


def _cells(lines: Sequence[str]) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows of an aligned table; None where the cells of its lines do not match."""
    head, *rows = (re.split(" {2,}", line.strip()) for line in (lines[0], *lines[2:]))
    if lines[0].startswith(" "):
        head.insert(0, "")
    head += [""] * (max(map(len, rows), default=0) - len(head))  # a last column without a head
    return (head, rows) if {*map(len, rows)} == {len(head)} else None


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(
        "page.html"
    )


@functools.cache
def _three() -> str:
    """three.js with its loader of GLB, out of trimesh's page that shows a mesh."""
    import trimesh  # slow to import

    packed = io.BytesIO(trimesh.resources.get_bytes("templates/viewer.zip"))
    html = trimesh.util.decompress(packed, "zip")["viewer.html.template"].read().decode()
    return html.partition("<script>")[2].partition("var camera,")[0]
