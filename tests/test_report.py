"""The report: in a browser, of half a run, with names that are markup, and below its size."""

import ast
import base64
import json
import re
from html import unescape
from pathlib import Path

import h5py
import numpy as np
import pytest
import trimesh
from browser import CHROMIUM, Browser

from mirage_steps import report
from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import write_csv, write_json
from mirage_steps.files.meshes import _write
from mirage_steps.files.page import Page
from mirage_steps.files.text_table import aligned
from mirage_steps.method.texture import TexturedMesh
from mirage_steps.tools import compare

ROOT = Path(__file__).parents[1]
MARKUP = "<script>document.title='taken'</script>.png"
TABLE = [("row", "n", ""), ("no-mv", "200", "single images"), ("mv-bg-hag", "200", "views")]
in_browser = pytest.mark.skipif(
    not CHROMIUM, reason="NOT TESTED IN A BROWSER: no Chromium here (apt-get install chromium)"
)


def _record(folder: Path, path: str, **more) -> None:
    content = {"settings": {"k": 4}, "commit": "abc", "packages": {"torch": "2"}, "inputs": {}}
    content |= {"networks": {}, "seconds": 61.0, "started": "2026-01-02T03:04:05+0000"}
    write_json(folder / f"{path}.run.json", {"step": f"mirage_steps.{path}", **content, **more})


def _views(count: int = 4, side: int = 32) -> np.ndarray:
    """Views of one color each."""
    colors = np.linspace(0, 255, count).astype(np.uint8)
    views = np.full((count, side, side, 3), 90, np.uint8)
    views[..., 0] = colors[:, None, None]
    return views


def _mesh(path: Path) -> None:
    """A box with a red and a blue half."""
    box = trimesh.creation.box((1.0, 0.6, 0.3))
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:, :4, 0] = texture[:, 4:, 2] = 255
    uv = np.stack([(box.vertices[:, 0] > 0) * 0.5 + 0.25, np.full(len(box.vertices), 0.5)], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path.parent, path.stem, TexturedMesh(box.vertices, box.faces, uv, texture, 1.0))
    tiles.save_image(path.with_suffix(".mesh.png"), np.zeros((9, 36, 3), np.uint8))


def _photo(folder: Path, name: str, photo: str) -> None:
    """What the photo command writes."""
    for pose, view in enumerate(_views()):
        tiles.save_image(folder / f"novel_views/{name}.views/pose_{pose:02d}.png", view)
    warnings = [{"reason": "far from every pose", "name": "distance", "value": 2, "limit": 1}]
    about = {"photo": photo, "poses": [0, 1, 2, 3], "pose": 1, "warnings": warnings}
    write_json(folder / f"novel_views/{name}.json", {**about, "reconstruction_psnr_db": 30.0})


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with one of everything that a report shows otherwise than as a picture."""
    folder = tmp_path / "results & more/mine"
    _record(folder, "dataset", settings={"path": MARKUP})
    write_csv(folder / "rejected.csv", ("image", "reason"), [(MARKUP, "unreadable")])
    (folder / "logs").mkdir()
    (folder / "logs/dataset.log").write_text(f"12:00:00 x\nwarning: {MARKUP}: is odd\n")
    (folder / "fid.txt").write_text("head\n\n" + "\n".join(aligned(TABLE, "<><")) + "\n")
    (folder / "sheet").mkdir()
    with h5py.File(folder / "sheet/objects.h5", "w") as file:
        file["images"], file["reference"] = np.stack([_views()] * 2), np.array([0, 2])
        file["pose"] = np.arange(4)[None].repeat(2, 0)
    _photo(folder, "odd", MARKUP)
    _mesh(folder / "meshes/odd.glb")
    return folder


def _html(run: Path) -> str:
    report.main(run=run, out=run)
    return (run / "report.html").read_text()


def test_a_half_finished_run_says_which_command_makes_the_rest(run):
    html = _html(run)
    path = f"{run}/evidence/evidence.txt"
    assert f"snakemake --cores 2 -- &#39;{path.replace('&', '&amp;')}&#39;" in html
    assert "<th>mv-bg-hag</th><td>200</td><td>views</td>" in html
    assert "2026-01-02 03:04" in html and "0:01:01" in html and "unreadable" in html
    assert "warning: far from every pose" in html


@pytest.mark.parametrize("guided", [True, False])
def test_views_are_shown_only_with_their_row(run, guided):
    for name in ("mv-bg-hag", "mv-bg-no-hag"):
        tiles.save_image(run / f"sets/{name}/images.png", _views()[0])
    rows = ["mv-bg-no-hag", *(["mv-bg-hag"] if guided else [])]
    write_json(run / "metrics.json", {"rows": [{"row": row} for row in rows]})
    html = _html(run)
    assert "Views without guidance" in html and ("Guided views: the row" in html) == guided


def test_names_and_settings_are_escaped(run):
    html = _html(run)
    assert html.count("&lt;script&gt;document.title") >= 4  # photo, log, table, settings
    assert "<script>document.title='" not in html and "<script>document.title=&#39;" not in html


def test_nothing_is_asked_of_a_network_and_every_picture_has_a_text(run):
    html = _html(run)
    images = re.findall("<img [^>]*>", html)
    assert images and all(re.search(r'alt="[^"]{5,}"', image) for image in images)
    assert all(' src="data:image/' in image for image in images)
    assert not re.findall(
        r"<(?:link|iframe)|<script[^>]+src|@import|\burl\(", html.split("var THREE")[0]
    )


def test_a_damaged_part_is_named_and_the_rest_is_there(run):
    (run / "foreground").mkdir()
    (run / "foreground/foreground.png").write_bytes(b"\x89PNG and no more")
    (run / "novel_views/odd.views/pose_02.png").unlink()
    (run / "rejected.csv").write_bytes(b"\xff\xfe")
    (run / "sheet/objects.h5").write_bytes(b"no HDF5")
    html = _html(run)
    assert "foreground.png cannot be shown" in html and "odd.json cannot be shown" in html
    assert "not a readable UTF-8 CSV file" in html and "not a readable HDF5 file" in html
    assert "<th>mv-bg-hag</th>" in html


def test_poses_of_all_categories_are_counted_and_null_is_a_missing_value(run):
    write_json(run / "poses/poses.json", {"k": 4, "categories": 2, "images": [3] * 8})
    _record(run, "training/train", settings={"iterations": 7}, device="cpu")
    html = _html(run)
    assert "8 poses, 7 training steps in 0:01:01 on cpu" in html
    write_json(run / "poses/poses.json", {"k": 4, "categories": 2, "images": None})
    _record(run, "training/train", settings=None, seconds=None, packages=None)
    _record(run, "features/features", settings=None, seconds=None, started=None)
    html = _html(run)
    assert "8 poses" not in html and "training steps" not in html
    assert "<th>dataset</th><td>2026-01-02 03:04</td><td>0:01:01</td>" in html


def test_turntables_of_objects_and_photos_tell_the_names_of_poses(run):
    write_json(run / "poses/poses.json", {"k": 4, "categories": 1, "images": [3] * 4})
    write_json(run / "poses/names.json", {"names": ["front", "<b>", "pose 2", "pose 3"]})
    found = re.findall('data-labels="([^"]*)"', _html(run))
    assert [json.loads(unescape(one)) for one in found] == [
        ["front, the reference", "<b>", "pose 2", "pose 3"],
        ["front", "<b>", "pose 2, the reference", "pose 3"],
        ["front", "<b>, the photo's own", "pose 2", "pose 3"],
    ]


def test_without_results_there_is_one_line_and_no_report(tmp_path):
    for folder, told in ((tmp_path, "no results there"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(UserError, match=told):
            report.main(run=folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_large_pictures_are_compressed_and_what_exceeds_the_page_is_linked(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    tiles.save_image(tmp_path / "a b.png", noise)
    page = Page(tmp_path / "page.html", "title")
    page.section("pictures")
    for most in (2_000_000, 0):
        page.most = most
        page.picture(tmp_path / "a b.png", "noise", "caption")
    html = page.write().read_text()
    (shown,) = re.findall('src="data:image/webp;base64,([^"]*)"', html)
    assert len(base64.b64decode(shown)) < 0.5 * (tmp_path / "a b.png").stat().st_size
    assert html.count('<a href="a%20b.png">a b.png</a> (2.4 MB)') == 2


def test_tables_that_do_not_parse_stay_text(tmp_path):
    page = Page(tmp_path / "page.html", "title")
    page.section("texts")
    page.text("a  b\n----------\n1  2\n1  2  3  4\n\nlast")
    kinds = [one["kind"] for one in page.sections[0]["blocks"]]
    assert kinds == ["text", "text"]


def test_compare_writes_a_page_of_several_runs(run, tmp_path, capsys):
    other = tmp_path / "results & more/other"
    _record(other, "dataset", settings={"path": "y"})
    for folder in (run, other):
        tiles.save_image(folder / "poses/poses.png", _views()[0])
    compare.main((run, other), html=tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert html.count("<img ") == 2 and "&lt;script&gt;" in html and "<td>path</td>" in html
    assert "results%20%26%20more/other/poses/poses.png" in html
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"


def test_every_rule_that_snakemake_s_report_shows_has_a_caption():
    found = set()
    for path in (ROOT / "rules").glob("*.smk"):
        rules = re.split(r"^(?:    )?rule \w+:", path.read_text(), flags=re.MULTILINE)[1:]
        found |= {
            re.search(r'step\(\s*"(\w+)"', body)[1]
            for body in rules
            if re.search("[=:] ?shown\\(", body)
        }
    text = (ROOT / "rules/caption.rst").read_text()
    assert found == ast.literal_eval(text[text.index("{\n") : text.index("}[")] + "}").keys()


@in_browser
def test_a_browser_drags_a_turntable_and_rotates_a_mesh(run, tmp_path):
    _html(run)
    with Browser(tmp_path / "profile") as browser:
        browser.open(run / "report.html")
        assert browser.run("document.title") == "mine: report"  # no name was run
        told = "[...document.querySelectorAll('.turntable output')].map(one => one.textContent)"
        assert browser.run(told) == [
            "pose 0, the reference",
            "pose 2, the reference",
            "pose 1, the photo's own",
        ]
        place = "document.querySelector('.turntable img').style.objectPosition"
        browser.drag(".turntable img", 0.3)  # a quarter of the way around is a view
        assert browser.run(told)[0] == "pose 1" and browser.run(place).startswith("33.3")
        browser.run("document.querySelector('.turntable input').focus()")
        for _ in range(3):  # a circle
            browser.press("ArrowRight")
        assert browser.run(told)[0] == "pose 0, the reference"
        browser.run("document.querySelector('.mesh button').click()")
        browser.wait("document.querySelector('canvas[tabindex]') !== null")
        shown = [browser.look("canvas")]
        browser.drag("canvas", 0.3)
        shown.append(browser.look("canvas"))
        browser.run("document.querySelector('canvas').focus()")
        browser.press("ArrowDown")
        shown.append(browser.look("canvas"))
        assert len(set(shown)) == 3
        assert browser.problems == []


@in_browser
def test_on_a_phone_without_scripts_all_pictures_and_tables_are_there(run, tmp_path):
    _html(run)
    with Browser(tmp_path / "profile", width=390, scripts=False) as browser:
        browser.open(run / "report.html")
        assert browser.run("document.documentElement.className") == ""
        loaded = "[...document.images].every(one => one.complete && one.naturalWidth)"
        assert browser.run(loaded) and browser.run("document.images.length") == 4
        assert browser.run("document.querySelectorAll('table').length") >= 3
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.problems == []


@in_browser
def test_a_browser_reports_what_is_wrong(tmp_path):
    (tmp_path / "page.html").write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('one'); two();</script>"
    )
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "page.html")
        told = " ".join(browser.problems)
        assert "asked for http://127.0.0.1:9/x.png" in told and "one" in told and "two" in told
