"""Another method's images as a set: which are taken, and what becomes of their pixels."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from mirage_steps import baseline, settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.image_set import OWN_WHITE

COUNT, SIDE = 12, 24


@pytest.fixture
def folder(tmp_path):
    """Square images of noise, some of them deeper in."""
    root = tmp_path / "theirs"
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = root / ("deep/er" if number % 3 else "") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
    return root


def _take(
    folder, out, samples: int, seed: int = 0, background: str = "kept", image_size: int = 16
) -> tuple[np.ndarray, dict]:
    """Images and attributes of the written set."""
    baseline.main(
        baseline=settings.Baseline(path=folder, background=background),
        out=out,
        fid=settings.Fid(samples=samples, seed=seed),
        image_size=image_size,
    )
    with open_h5(out / "images.h5") as file:
        return file["images"][:], dict(file.attrs)


def _resized(folder, size: int) -> dict[bytes, str]:
    """Name of every readable image by its pixels as Pillow resizes it."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((size, size), Image.BICUBIC))
        found[pixels.tobytes()] = path.name
    return found


def _names(folder, images: np.ndarray) -> list[str]:
    known = _resized(folder, images.shape[1])
    return [known[image.tobytes()] for image in images]


@pytest.mark.parametrize("size", [16, 24, 40])
def test_images_are_those_of_the_folder_resized_each_once(folder, tmp_path, size):
    images, about = _take(folder, tmp_path / "gan", COUNT, image_size=size)
    assert images.shape == (COUNT, size, size, 3) and images.dtype == np.uint8
    names = _names(folder, images)
    assert sorted(names) == [f"{number:02d}.png" for number in range(COUNT)]
    assert "sam" not in about
    assert read_csv(tmp_path / "gan/rejected.csv") == []
    with Image.open(tmp_path / "gan/images.png") as picture:
        assert picture.width > 10 * size


def test_the_seed_fixes_the_choice_and_its_order(folder, tmp_path):
    one, same, other = (
        _take(folder, tmp_path / name, 6, seed=seed)[0]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    np.testing.assert_array_equal(one, same)
    assert set(_names(folder, one)) != set(_names(folder, other))
    assert len(set(_names(folder, one))) == 6
    # Sorted names are not a choice: what a method made first may be of one kind.
    assert _names(folder, one) != sorted(_names(folder, one))


def test_more_samples_of_one_seed_go_on_where_fewer_stopped(folder, tmp_path):
    few, many = (_take(folder, tmp_path / str(n), n, seed=1)[0] for n in (4, 9))
    np.testing.assert_array_equal(many[:4], few)


def test_unreadable_and_oblong_files_are_listed_and_passed_over(folder, tmp_path):
    (folder / "notes.txt").write_text("hello")
    (folder / "empty.jpg").touch()
    Image.new("RGB", (30, 20)).save(folder / "wide.jpg")
    known = {
        str(folder / "notes.txt"): "not an image",
        str(folder / "empty.jpg"): "empty file",
        str(folder / "wide.jpg"): "not square: 30x20; crop it first",
    }
    listed: dict[str, str] = {}
    for seed in range(6):
        out = tmp_path / f"gan{seed}"
        images, _ = _take(folder, out, COUNT, seed=seed)
        assert len(set(_names(folder, images))) == COUNT
        listed |= {row["image"]: row["reason"] for row in read_csv(out / "rejected.csv")}
    # Of each choice those that lie before the last image it needed.
    assert listed == known


def test_rejected_names_that_are_no_utf_8_are_printable(folder, tmp_path):
    try:
        with open(os.fsencode(folder) + b"/\xff.png", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    listed = []
    for seed in range(6):
        out = tmp_path / f"gan{seed}"
        _take(folder, out, COUNT, seed=seed)
        listed += [row["image"] for row in read_csv(out / "rejected.csv")]
    assert set(listed) == {f"{folder}/%FF.png"}


def test_linked_folders_count_and_what_is_passed_over_is_listed(folder, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all/linked").symlink_to(folder)
    (folder / "@eaDir").mkdir()
    images, _ = _take(tmp_path / "all", tmp_path / "gan", COUNT)
    assert len(images) == COUNT
    (row,) = read_csv(tmp_path / "gan/rejected.csv")
    assert row["image"].endswith("linked/@eaDir") and row["reason"] == "copies of photos"


def test_gray_and_transparent_images_become_rgb_on_white(tmp_path):
    (tmp_path / "theirs").mkdir()
    Image.new("L", (18, 18), 77).save(tmp_path / "theirs/gray.png")
    Image.new("RGBA", (18, 18), (0, 0, 0, 0)).save(tmp_path / "theirs/clear.png")
    images, _ = _take(tmp_path / "theirs", tmp_path / "gan", 2)
    assert sorted({int(image.min()) for image in images}) == [77, 255]
    assert all(image.min() == image.max() for image in images)


@pytest.mark.parametrize("background", ["kept", "removed", "remove"])
def test_only_images_that_came_on_white_are_said_to_be(folder, tmp_path, background):
    _, about = _take(folder, tmp_path / "gan", 2, background=background)
    assert about.get("sam") == (OWN_WHITE if background == "removed" else None)


def test_too_few_images_are_one_line_with_numbers_and_key(folder, tmp_path):
    def told() -> str:
        with pytest.raises(UserError) as error:
            _take(folder, tmp_path / "out/gan", COUNT + 1)
        assert not list((tmp_path / "out/gan").rglob("*.*"))
        return str(error.value)

    where = f"baselines.gan.path {folder}: "
    assert told() == (
        f"{where}{COUNT} usable images of {COUNT} files, fid.samples = {COUNT + 1}; "
        "every row needs as many"
    )
    Image.new("RGB", (30, 20)).save(folder / "wide.jpg")
    message = told()
    assert message.startswith(f"{where}{COUNT} usable images of {COUNT + 1} files, ")
    assert message.endswith(f"; the first, {folder / 'wide.jpg'}: not square: 30x20; crop it first")


def test_a_missing_folder_is_one_line_with_the_key(tmp_path):
    expected = f"baselines.gan.path {tmp_path / 'gone'}: no such folder"
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        _take(tmp_path / "gone", tmp_path / "gan", 2)
    assert "\n" not in str(error.value) and not (tmp_path / "gan").exists()
