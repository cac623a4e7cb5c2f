"""Files that were damaged after their step wrote them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from mirage_steps.errors import UserError
from mirage_steps.files.h5 import by_image, create_h5, open_h5
from mirage_steps.files.integrity import changed_since
from mirage_steps.files.provenance import write_provenance


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    with create_h5(tmp_path / "crops.h5") as file:
        by_image(file, "images", 9, (64, 64, 3), np.uint8)[:] = 7
    write_provenance("mirage_steps.crops", ["crops"], {"out": tmp_path}, 0.0)
    return tmp_path / "crops.h5"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_record_lists_what_was_written(recorded: Path):
    outputs = json.loads((recorded.parent / "crops.run.json").read_text())["outputs"]
    assert outputs.keys() == {"crops.h5"} and len(outputs["crops.h5"]) == 64
    with open_h5(recorded, "images") as file:
        assert file["images"].shape == (9, 64, 64, 3)


def test_a_flipped_bit_is_refused_wherever_it_is(recorded: Path):
    flip(recorded, recorded.stat().st_size // 2)
    with pytest.raises(UserError, match="crops.h5: is not what the step crops wrote"):
        with open_h5(recorded):
            pass


def test_a_set_in_a_folder_of_its_own_has_the_record_above_it(tmp_path: Path):
    with create_h5(tmp_path / "real-a/images.h5") as file:
        by_image(file, "images", 2, (8, 8, 3), np.uint8)
    write_provenance("mirage_steps.real", ["real"], {"out": tmp_path}, 0.0)
    assert changed_since(tmp_path / "real-a/images.h5") is None
    flip(tmp_path / "real-a/images.h5", 100)
    assert changed_since(tmp_path / "real-a/images.h5") == "real"


def test_a_file_without_a_record_is_taken_as_it_is(tmp_path: Path):
    with create_h5(tmp_path / "other.h5") as file:
        by_image(file, "images", 2, (8, 8, 3), np.uint8)
    assert changed_since(tmp_path / "other.h5") is None


def test_images_have_checksums_of_their_own(tmp_path: Path):
    """For files too large to hash."""
    with create_h5(tmp_path / "large.h5") as file:
        by_image(file, "images", 1, (64, 64, 3), np.uint8)[:] = 7
    content = (tmp_path / "large.h5").read_bytes()
    flip(tmp_path / "large.h5", content.index(bytes([7]) * 100) + 50)
    with h5py.File(tmp_path / "large.h5") as file, pytest.raises(OSError):
        file["images"][0]
