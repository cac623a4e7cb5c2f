"""Features of a set and the table of distances made of them."""

import hashlib
import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from mirage_steps import embed, fid, settings
from mirage_steps.errors import UserError
from mirage_steps.evaluation_sets import evaluation_sets, table_rows
from mirage_steps.files.command import run
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.image_set import OWN_WHITE
from mirage_steps.method.evidence import coverage
from mirage_steps.method.metrics import frechet_from_features, kernel_distance
from mirage_steps.networks import inception
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.fetching import FILES

CPU = torch.device("cpu")
SIDE = 16
INCEPTION_FILE = Path(FILES["inception"].path).name


class _DummyInception(nn.Module):
    """Has the interface of the published TorchScript file: features from a submodule ``layers``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2048))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def inception_folder(tmp_path_factory):
    """A folder with a dummy network under the file name that clean-fid looks for."""
    folder = tmp_path_factory.mktemp("inception")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(_DummyInception().eval()).save(str(folder / INCEPTION_FILE))
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Settings of a tiny random DINOv2 in a local folder."""
    torch.manual_seed(1)
    config = Dinov2Config(
        image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    Dinov2Model(config).save_pretrained(folder)
    return settings.Backbone(model=str(folder), resolution=32, batch_size=4)


def _images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def _set(path: Path, images: np.ndarray, **attributes: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as out:
        out["images"] = images
        out.attrs.update(attributes)
    return path


def _features(
    path: Path, n: int, seed: int, inception: str | None = None, nan: bool = False, **other: object
) -> Path:
    """A file as the embed step writes it, of random features."""
    rng = np.random.default_rng(seed)
    about = dict(
        count=n, image_size=64, sam="", backbone="dinov2-base", resolution=224, token="cls"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as out:
        values = rng.normal(size=(n, 6)).astype(np.float32)
        values[0, 0] = np.nan if nan else values[0, 0]
        out["backbone"] = values
        if inception:
            out["inception"] = rng.normal(size=(n, 8)).astype(np.float32)
            about["inception"] = inception
        else:
            about["inception_absent"] = "not configured (embed.inception is none)"
        out.attrs.update(about | other)
    return path


def _table(folder: Path) -> tuple[list[str], dict[str, list[str]], dict]:
    """Header, cells of each row by its name (numbers only), and the JSON of a written table."""
    lines = (folder / "fid.txt").read_text().splitlines()
    content = json.loads((folder / "metrics.json").read_text())
    start = next(i for i, line in enumerate(lines) if line.startswith("row "))
    names = [row["row"] for row in content["rows"]]
    cells = {line.split()[0]: line.split()[1:5] for line in lines[start + 2 :] if line}
    return lines, {name: cells[name] for name in names}, content


# --- embed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["cls", "mean-patch"])
def test_features_are_the_backbones_in_order_and_say_what_they_are(tmp_path, backbone, token):
    images = _images(11)
    embed.main(
        images=_set(tmp_path / "set.h5", images, sam="vit_h"),
        out=tmp_path / "out",
        backbone=backbone,
        embed=settings.Embed(inception="none", token=token),
        device="cpu",
    )
    patches, cls = Backbone.load(
        settings.Backbone(model=backbone.model, resolution=32), CPU
    ).tokens(images)
    expected = cls if token == "cls" else patches.mean(1)
    with open_h5(tmp_path / "out/features.h5") as file:
        np.testing.assert_allclose(file["backbone"][:], expected.numpy(), atol=1e-5)
        assert "inception" not in file
        assert dict(file.attrs) == {
            "count": 11,
            "image_size": SIDE,
            "sam": "vit_h",
            "backbone": "tiny-dino",
            "resolution": 32,
            "token": token,
            "inception_absent": "not configured (embed.inception is none)",
        }


def test_equal_images_are_warned_of_and_features_that_are_no_number_refused(
    tmp_path, backbone, monkeypatch, caplog
):
    path, none = _set(tmp_path / "set.h5", np.full((6, SIDE, SIDE, 3), 255, np.uint8)), "none"
    arguments = {"images": path, "backbone": backbone, "device": "cpu"}
    embed.main(**arguments, out=tmp_path, embed=settings.Embed(inception=none))
    assert "all 6 images have the same features" in caplog.text
    monkeypatch.setattr(Backbone, "feature", lambda self, *_: np.full((4, self.dim), np.nan))
    with pytest.raises(UserError, match=r"set\.h5, image 0: its backbone features .* not finite"):
        embed.main(**arguments, out=tmp_path / "out", embed=settings.Embed(inception=none))
    assert not list((tmp_path / "out").iterdir())


def test_a_set_is_read_in_batches(tmp_path, backbone, monkeypatch):
    reads = []

    def feature(self, images: np.ndarray, token: str) -> np.ndarray:
        reads.append(len(images))
        return np.repeat(images.mean(axis=(1, 2, 3))[:, None], self.dim, 1)

    monkeypatch.setattr(Backbone, "feature", feature)
    images = _images(10)
    small = backbone.model_copy(update={"batch_size": 4})
    none = settings.Embed(inception="none")
    path = _set(tmp_path / "set.h5", images)
    embed.main(images=path, out=tmp_path, backbone=small, embed=none, device="cpu")
    with h5py.File(tmp_path / "features.h5") as file:
        np.testing.assert_allclose(file["backbone"][:, 0], images.mean((1, 2, 3)), rtol=1e-6)
    assert reads == [4, 4, 2]


def test_inception_of_any_file_name_is_cleanfids(tmp_path, inception_folder):
    other = tmp_path / "my.inception.pt"
    shutil.copy(inception_folder / INCEPTION_FILE, other)
    images = _images(5)
    found = inception.Inception(str(other), CPU).features(images)

    resize = build_resizer("clean")
    pixels = torch.from_numpy(np.stack([resize(image) for image in images])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = InceptionV3W(str(inception_folder), download=False)(pixels).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.shape == (5, 2048) and found.std() > 0


def test_features_of_another_network_do_not_carry_the_name_of_cleanfids(
    tmp_path, inception_folder, backbone, monkeypatch
):
    def name() -> str:
        embed.main(
            images=_set(tmp_path / "set.h5", _images(3)),
            out=tmp_path,
            backbone=backbone,
            embed=settings.Embed(inception=str(inception_folder / INCEPTION_FILE)),
            device="cpu",
        )
        with open_h5(tmp_path / "features.h5") as file:
            assert file["inception"].shape == (3, 2048)
            return file.attrs["inception"]

    assert name() == INCEPTION_FILE
    content = (inception_folder / INCEPTION_FILE).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(FILES, "inception", replace(FILES["inception"], sha256=digest))
    assert name() == inception.INCEPTION


def test_a_missing_or_wrong_inception_file_is_one_line_with_key_and_url(tmp_path):
    with pytest.raises(UserError, match="embed.inception .*absent.pt: no such file"):
        inception.Inception(str(tmp_path / "absent.pt"), CPU)
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="embed.inception .*wrong.pt: not clean-fid's") as error:
        inception.Inception(str(wrong), CPU)
    assert FILES["inception"].url in str(error.value) and "\n" not in str(error.value)


def test_auto_is_the_published_file_in_the_shared_folder(tmp_path, inception_folder, monkeypatch):
    content = (inception_folder / INCEPTION_FILE).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(FILES, "inception", replace(FILES["inception"], sha256=digest))
    (tmp_path / "inception").mkdir()
    (tmp_path / "inception" / INCEPTION_FILE).write_bytes(content)
    assert inception.Inception("auto", CPU, tmp_path).name == inception.INCEPTION


# --- table ------------------------------------------------------------------------------------


def test_table_holds_the_distances_of_the_files(tmp_path):
    real = _features(tmp_path / "a.h5", 20, 0, inception.INCEPTION)
    other = _features(tmp_path / "b.h5", 20, 1, inception.INCEPTION)
    views = _features(tmp_path / "v.h5", 20, 2, inception.INCEPTION)
    rows = (("real-vs-real", str(other), str(real)), ("mv-bg-hag", str(views), str(real)))
    _table_of(row=rows, dataset="cars", out=tmp_path)
    lines, cells, content = _table(tmp_path)

    assert lines[0].startswith("cars:") and "20 images" in lines[1]
    assert _header(lines) == HEADER and "* of dinov2-base at" in lines[1] and "cls" in lines[1]
    for row, path in zip(content["rows"], (other, views), strict=True):
        with h5py.File(path) as x, h5py.File(real) as y:
            expected = frechet_from_features(x["inception"][:], y["inception"][:])
            frechet = frechet_from_features(x["backbone"][:], y["backbone"][:])
            kernel = kernel_distance(x["backbone"][:], y["backbone"][:])
            found = coverage(y["backbone"][:], x["backbone"][:])
        assert (row["fid"], row["fd_backbone"], row["kid_backbone"]) == (expected, frechet, kernel)
        assert (row["n"], row["inception"]) == (20, inception.INCEPTION)
        distances = ["20", f"{expected:.3f}", f"{frechet:.3f}", f"{kernel:.6f}"]
        shares = [f"{values.mean():.2f}" for values in found.values()]
        assert cells[row["row"]] == distances
        line = next(line for line in lines if line.startswith(row["row"]))
        assert line.split()[5:9] == shares
        means = {key: values.mean() for key, values in found.items()}
        assert row["coverage_backbone"] == pytest.approx(means)
    assert "what it shows" in next(line for line in lines if line.startswith("real-vs-real"))
    assert not any(line.startswith("- in ") for line in lines)


def test_an_absent_column_is_a_dash_with_its_reason(tmp_path):
    one, two = _features(tmp_path / "a.h5", 9, 0), _features(tmp_path / "b.h5", 9, 1)
    _table_of(row=(("no-mv", str(one), str(two)),), dataset="cars", out=tmp_path)
    lines, cells, content = _table(tmp_path)
    assert cells["no-mv"][1] == "-" and float(cells["no-mv"][2]) > 0
    assert "- in FID: not configured (embed.inception is none)" in lines
    assert content["rows"][0]["fid"] is None and content["rows"][0]["fd_inception"] is None
    assert content["rows"][0]["inception_absent"] == "not configured (embed.inception is none)"


def test_a_dash_in_some_rows_only_names_them(tmp_path):
    one, two = (_features(tmp_path / f"{i}.h5", 9, i) for i in range(2))
    full = [str(_features(tmp_path / f"{i}.h5", 9, i, inception.INCEPTION)) for i in (2, 3)]
    rows = (("no-mv", str(one), str(two)), ("mv-bg-hag", *full))
    _table_of(row=rows, dataset="cars", out=tmp_path)
    lines, cells, _ = _table(tmp_path)
    assert cells["no-mv"][1] == "-" and float(cells["mv-bg-hag"][1]) > 0
    assert "- in FID: not configured (embed.inception is none) (no-mv)" in lines


def test_distance_of_an_unpublished_inception_is_not_called_fid(tmp_path):
    files = [str(_features(tmp_path / f"{i}.h5", 9, i, "my.pt")) for i in range(2)]
    _table_of(row=(("no-mv", *files),), dataset="cars", out=tmp_path)
    lines, _, content = _table(tmp_path)
    header = next(line for line in lines if line.startswith("row "))
    assert "FD my.pt" in header and "FID" not in header
    assert content["rows"][0]["fid"] is None and content["rows"][0]["fd_inception"] > 0
    assert any(line.startswith("my.pt is not the Inception network") for line in lines)


@pytest.mark.parametrize("name, said", [("stand-in-dino-cars", True), ("dinov2-base", False)])
def test_stand_in_features_are_said_to_be_not_comparable(tmp_path, name, said):
    files = [str(_features(tmp_path / f"{i}.h5", 9, i, backbone=name)) for i in range(2)]
    _table_of(row=(("no-mv", *files),), dataset="cars", out=tmp_path)
    assert ("not comparable with published numbers" in (tmp_path / "fid.txt").read_text()) == said


def test_rows_without_background_name_the_network_that_removed_it(tmp_path):
    files = [str(_features(tmp_path / f"{i}.h5", 9, i, sam="stand-in-sam-cars")) for i in range(2)]
    _table_of(row=(("mv-nobg-hag", *files),), dataset="cars", out=tmp_path)
    note = "Backgrounds were removed by stand-in-sam-cars, the embedded stand-in for SAM."
    assert note in (tmp_path / "fid.txt").read_text().splitlines()


@pytest.mark.parametrize(
    "n, other, said",
    [
        (8, {}, "row no-mv: images differ, .*: 8, .*: 9"),
        (9, {"sam": "vit_h"}, "background removal differ"),
        (9, {"image_size": 32}, "networks differ"),
        (9, {"token": "mean-patch"}, "networks differ"),
        (9, {"inception": inception.INCEPTION}, "Inception differ"),
        (9, {"nan": True}, "not finite"),
    ],
)
def test_unlike_sets_are_refused(tmp_path, n, other, said):
    generated = _features(tmp_path / "g.h5", n, 0, **other)
    real = _features(tmp_path / "r.h5", 9, 1)
    with pytest.raises(UserError, match=said):
        _table_of(row=(("no-mv", str(generated), str(real)),), dataset="cars", out=tmp_path)
    assert not (tmp_path / "fid.txt").exists() and not (tmp_path / "metrics.json").exists()


def test_rows_of_different_networks_are_refused(tmp_path):
    files = [str(_features(tmp_path / f"{i}.h5", 9, i)) for i in range(2)]
    small = [str(_features(tmp_path / f"{i}.h5", 9, i, backbone="small")) for i in (2, 3)]
    with pytest.raises(UserError, match="cannot share a table .*small"):
        _table_of(row=(("a", *files), ("b", *small)), dataset="cars", out=tmp_path)


def test_command_line_takes_a_row_as_often_as_needed(tmp_path, monkeypatch):
    one, two = (str(_features(tmp_path / f"{i}.h5", 9, i)) for i in range(2))
    words = ["--dataset", "cars", "--out", str(tmp_path / "out")]
    words += ["--row", "real-vs-real", one, two, "the floor"]
    words += ["--row", "untrained", two, one, "the ceiling"]
    monkeypatch.setattr(sys, "argv", ["fid", *words])
    run(fid.main)
    assert list(_table(tmp_path / "out")[1]) == ["real-vs-real", "untrained"]
    monkeypatch.setattr(sys, "argv", ["fid", *words[:4]])
    with pytest.raises(SystemExit, match="error: --row is needed at least once"):
        run(fid.main)


# --- table: the paper's numbers and other methods' images -------------------------------------


def _table_of(row, caption="what it shows", **arguments) -> None:
    """The step on rows without captions."""
    fid.main(row=tuple((*one, caption) for one in row), **arguments)


def _pair(folder: Path, number: int = 0, **attributes: object) -> list[str]:
    """Features of a scored and of a real set, with Inception's."""
    files = (folder / f"{number}-{side}.h5" for side in ("scored", "real"))
    return [
        str(_features(path, 9, 2 * number + i, inception.INCEPTION, **attributes))
        for i, path in enumerate(files)
    ]


def _header(lines: list[str]) -> list[str]:
    line = next(line for line in lines if line.startswith("row "))
    return [part.strip() for part in line.split("  ") if part.strip()]


HEADER = ["row", "n", "FID", "FD*", "KID*", "prec.*", "recall*", "density*", "coverage*"]
PAPER = (("mv-bg-hag", 23.0), ("mv-nobg-hag", 11.25), ("no-mv", 12.345678))


def test_the_paper_s_fid_stands_beside_this_run_s_and_changes_none(tmp_path):
    rows = (("no-mv", *_pair(tmp_path, 0)), ("untrained", *_pair(tmp_path, 1)))
    _table_of(row=rows, dataset="cars", out=tmp_path / "plain")
    _table_of(row=rows, paper=PAPER, dataset="cars", out=tmp_path / "paper")
    plain, before, without = _table(tmp_path / "plain")
    lines, after, content = _table(tmp_path / "paper")
    assert _header(plain) == HEADER
    assert _header(lines) == [*_header(plain)[:3], "paper's FID", *_header(plain)[3:]]
    assert after["no-mv"][:3] == [*before["no-mv"][:2], "12.346"]
    assert after["untrained"][:3] == [*before["untrained"][:2], "-"]
    assert [after[name][3] for name in after] == [before[name][2] for name in before]
    assert [row["paper_fid"] for row in content["rows"]] == [12.345678, None]
    assert [row["paper_fid"] for row in without["rows"]] == [None, None]
    for row, other in zip(content["rows"], without["rows"], strict=True):
        assert row | {"paper_fid": None} == other


def test_notes_say_what_the_paper_s_column_is_and_what_it_also_gives(tmp_path):
    row = (("no-mv", *_pair(tmp_path)),)
    _table_of(row=row, dataset="cars", out=tmp_path, differs=("80 images",))
    lines, _, content = _table(tmp_path)
    assert not any("aper" in line for line in lines) and not any("80" in line for line in lines)
    _table_of(
        row=row,
        paper=PAPER,
        paper_source="table 9, row 3",
        differs=("80 images, not 100k", "K is 4"),
        dataset="cars",
        out=tmp_path,
    )
    lines, _, content = _table(tmp_path)
    assert content["notes"] == lines[-len(content["notes"]) :]
    assert content["notes"][-3:] == [
        "paper's FID: from table 9, row 3; the paper does not state the number of images, so "
        "compare it with column FID only, and only roughly.",
        "The paper also gives: mv-bg-hag 23.000, mv-nobg-hag 11.250.",
        "Not as in the paper: 80 images, not 100k; K is 4.",
    ]
    _table_of(row=row, paper=PAPER[2:], dataset="cars", out=tmp_path)
    notes = _table(tmp_path)[2]["notes"]
    assert notes[-1].startswith("paper's FID: from the paper; ")


def test_command_line_takes_the_paper_s_numbers(tmp_path, monkeypatch):
    words = ["fid", "--dataset", "cars", "--out", str(tmp_path / "out")]
    words += ["--row", "no-mv", *_pair(tmp_path), "single", "--paper-source", "table 2"]
    words += ["--paper", "no-mv", "8.5", "--paper", "mv-bg-hag", "23"]
    words += ["--differs", "80 images", "--differs", "K is 4"]
    monkeypatch.setattr(sys, "argv", words)
    run(fid.main)
    lines, cells, content = _table(tmp_path / "out")
    assert cells["no-mv"][2] == "8.500" and content["rows"][0]["paper_fid"] == 8.5
    assert "The paper also gives: mv-bg-hag 23.000." in lines
    assert "Not as in the paper: 80 images; K is 4." in lines
    assert any("from table 2;" in line for line in lines)


def test_rows_end_with_their_captions(tmp_path):
    _table_of(row=(("gan", *_pair(tmp_path)),), caption="by a GAN", dataset="cars", out=tmp_path)
    ends = {line.split()[0]: line for line in _table(tmp_path)[0] if line}
    assert ends["gan"].endswith("  by a GAN")


def test_every_row_is_declared_with_its_reference_and_caption():
    rows = table_rows(evaluation_sets({"gan": "kept", "nerf": "removed", "vae": "remove"}))
    assert rows["no-mv"].caption == "single images, without cross-frame attention"
    references = {name: one.reference for name, one in rows.items()}
    assert references["gan"] == "real-a" and rows["gan"].caption == "another method's images"
    assert references["nerf"] == references["vae-nobg"] == "real-a-nobg" and "vae" not in rows
    assert rows["vae-nobg"].unmasked == "vae"
    both = "another method's images, both sides without background"
    assert rows["nerf"].caption == rows["vae-nobg"].caption == both


def test_without_sam_there_are_no_rows_without_background(tmp_path):
    masked = set(evaluation_sets({}, masked=False))
    assert masked == {"real-a", "real-b", "no-mv", "mv-bg-no-hag", "mv-bg-hag", "untrained"}
    _table_of(row=(("a", *_pair(tmp_path)),), dataset="cars", out=tmp_path)
    told = "All backgrounds were kept: nothing was there to remove them (masks.sam)."
    assert told in _table(tmp_path)[0]


def test_images_rendered_on_white_compare_with_masked_real_ones_only(tmp_path):
    scored = str(_features(tmp_path / "gan.h5", 9, 0, sam=OWN_WHITE))
    masked = str(_features(tmp_path / "masked.h5", 9, 1, sam="vit_h"))
    kept = str(_features(tmp_path / "kept.h5", 9, 1))
    _table_of(row=(("gan", scored, masked),), dataset="cars", out=tmp_path)
    lines, cells, content = _table(tmp_path)
    assert float(cells["gan"][2]) > 0 and content["rows"][0]["sam"] == "vit_h"
    note = "gan: its images came on white; vit_h removed only the real ones' background."
    assert note in lines and note in content["notes"]
    assert "Backgrounds were removed by vit_h, segment-anything." in lines
    with pytest.raises(UserError, match="row gan: background removal differ, .*rendered on white"):
        _table_of(row=(("gan", scored, kept),), dataset="cars", out=tmp_path)
    with pytest.raises(UserError, match="background removal differ"):
        _table_of(row=(("gan", masked, scored),), dataset="cars", out=tmp_path)


def test_only_images_rendered_on_white_are_said_to_have_come_so(tmp_path):
    _table_of(row=(("gan", *_pair(tmp_path, sam="vit_h")),), dataset="cars", out=tmp_path)
    assert "came on white" not in (tmp_path / "fid.txt").read_text()
