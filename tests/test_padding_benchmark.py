"""The benchmark of padding: its photos, its true crops, and what it compares."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mirage_steps.method.boxes import crop, padded_share, square_window

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "padding.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("padding_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("shape, background", [("3:2", "rendered"), ("2:1", "photos")])
def test_photos_show_the_whole_car_and_scenes_what_lies_beyond(benchmark, shape, background):
    aspect = benchmark.SHAPES[shape]
    for scene in benchmark.scenes(4, aspect, background):
        photo = scene.image.crop(scene.photo)
        x0, y0, x1, y1 = np.subtract(scene.box, scene.photo[:2] * 2)
        assert 0 <= x0 < x1 <= photo.width and 0 <= y0 < y1 <= photo.height
        assert photo.width / photo.height == pytest.approx(aspect, rel=0.03)
        assert 0.58 < (x1 - x0) / photo.width < 0.92
        window = square_window((x0, y0, x1, y1), *photo.size, 0.06)
        assert padded_share(window, *photo.size) > 0
        on_scene = np.add(window, scene.photo[:2] * 2)
        assert padded_share(on_scene, *scene.image.size) == 0
        # Where a window lies on the photo, photo and scene show the same.
        inside = (x0 + 1, y0 + 1, x0 + 13, y0 + 13)
        found = np.asarray(crop(photo, inside, 12))
        np.testing.assert_array_equal(found, scene.true_crop(inside, 12))


def test_choices_differ_in_the_padding_alone_and_only_some_pad_less(benchmark):
    (scene,) = benchmark.scenes(1, 16 / 9, "rendered")
    made = {
        name: benchmark._padded(scene, choice, 32) for name, choice in benchmark.CHOICES.items()
    }
    usual, share, ratio = made["edge, blur grows with distance"]
    photo = scene.image.crop(scene.photo)
    window = square_window(np.subtract(scene.box, scene.photo[:2] * 2), *photo.size, 0.06)
    np.testing.assert_array_equal(usual, np.asarray(crop(photo, window, 32)))
    for name, (window_of, _) in benchmark.CHOICES.items():
        pixels, padded, _ = made[name]
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
        if window_of is benchmark._default and name != "edge, blur grows with distance":
            assert padded == share and (pixels != usual).any()
            same = (pixels == usual).all((1, 2)).sum()
            assert same >= round(32 * (1 - share)) - 1  # rows of the photo
    assert made["window that fits, object cut"][1:] == (0, None)
    assert made["reflection"][2] < ratio
