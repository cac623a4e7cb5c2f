"""Letterboxes and crop windows: geometry, padding, pixels."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from mirage_steps.method.boxes import (
    centered,
    content_box,
    crop,
    from_letterbox,
    letterbox,
    padded_share,
    square_window,
    valid_patches,
)

FILL = (1, 200, 3)


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _sizes(count: int, seed: int, largest: int = 300):
    """Widths and heights of all aspects, the extreme ones included."""
    rng = np.random.default_rng(seed)
    yield from ((1, 1), (1, largest), (largest, 1), (largest, largest), (3, largest))
    for _ in range(count):
        yield tuple(int(side) for side in np.exp(rng.uniform(0, np.log(largest), 2)).round())


def _boxes(count: int, seed: int):
    """Images with a box of an object inside."""
    rng = np.random.default_rng(seed)
    for width, height in _sizes(count, seed):
        x0, x1 = np.sort(rng.uniform(0, width, 2))
        y0, y1 = np.sort(rng.uniform(0, height, 2))
        yield (x0, y0, x1 + 1e-3, y1 + 1e-3), width, height


# Letterbox


@pytest.mark.parametrize("width, height", [(64, 64), (128, 64), (50, 100), (300, 7), (1, 90)])
def test_a_letterbox_is_the_scaled_image_between_bars(width, height):
    # Green over the whole image: its pixels are told from the bars exactly.
    square = np.asarray(letterbox(Image.new("RGB", (width, height), (9, 9, 9)), 64, FILL))
    assert square.shape == (64, 64, 3)
    on_image = (square == 9).all(2)
    assert ((square == FILL).all(2) == ~on_image).all()
    rows, columns = np.flatnonzero(on_image.any(1)), np.flatnonzero(on_image.any(0))
    assert on_image.sum() == len(rows) * len(columns)
    x0, y0, x1, y1 = (64 * value for value in content_box(width, height))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    np.testing.assert_allclose(found, (x0, y0, x1, y1), atol=1)


def test_a_square_image_of_the_right_size_is_unchanged():
    image = _noise(48, 48)
    np.testing.assert_array_equal(np.asarray(letterbox(image, 48, FILL)), np.asarray(image))


def test_content_boxes_are_centered_and_keep_the_aspect():
    for width, height in _sizes(100, 1):
        x0, y0, x1, y1 = content_box(width, height)
        assert max(x1 - x0, y1 - y0) == 1
        np.testing.assert_allclose([x0 + x1, y0 + y1], 1)
        np.testing.assert_allclose((x1 - x0) * height, (y1 - y0) * width, rtol=1e-9)


# Valid patches


@pytest.mark.parametrize("grid", [4, 7, 16])
def test_padding_is_never_counted_as_image(grid):
    """Against the definition in exact arithmetic."""
    for width, height in _sizes(60, 2):
        side = max(width, height)
        valid = valid_patches(np.array([content_box(width, height)], np.float32), grid)[0]
        for axis, length in ((0, width), (1, height)):
            start = Fraction(side - length, 2 * side)
            overlaps = [
                min(Fraction(i + 1, grid), 1 - start) - max(Fraction(i, grid), start)
                for i in range(grid)
            ]
            found = valid.any(axis)
            half = Fraction(1, 2 * grid)
            expected = [overlap > half for overlap in overlaps]
            if not any(expected):
                assert found.sum() == 1 and found[grid // 2]
                continue
            for one, other, overlap in zip(found, expected, overlaps, strict=True):
                # Exactly half a patch may fall on either side of float32.
                assert one == other or abs(overlap - half) < Fraction(1, 10**6)


def test_whole_images_have_all_patches_and_boxes_in_a_batch_do_not_mix():
    content = np.array([(0, 0, 1, 1), (0, 0.25, 1, 0.75), (0.25, 0, 0.75, 1)], np.float32)
    valid = valid_patches(content, 8)
    assert valid.shape == (3, 8, 8) and valid.dtype == bool
    assert valid[0].all()
    assert valid[1, 2:6].all() and valid[1].sum() == 32
    np.testing.assert_array_equal(valid[2], valid[1].T)


@pytest.mark.parametrize("grid", range(1, 40))
def test_an_image_thinner_than_a_patch_has_one_row_of_patches(grid):
    valid = valid_patches(np.array([(0, 0.5 - 1e-5, 1, 0.5 + 1e-5)]), grid)[0]
    assert valid.any(1).sum() == 1 and valid.any(0).all()


# Boxes and windows


def test_boxes_of_the_letterbox_come_back_to_pixels():
    assert from_letterbox((0.25, 0.25, 0.75, 0.5), 100, 100) == (25, 25, 75, 50)
    assert from_letterbox((0, 0.25, 1, 0.75), 200, 100) == (0, 0, 200, 100)
    # What lies on the bars is cut off.
    assert from_letterbox((0, 0, 0.5, 1), 200, 100) == (0, 0, 100, 100)
    for width, height in _sizes(100, 3):
        box = from_letterbox(content_box(width, height), width, height)
        np.testing.assert_allclose(box, (0, 0, width, height), atol=1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.06, 0.3])
def test_windows_are_square_show_the_object_and_stay_inside_if_they_can(margin):
    for box, width, height in _boxes(200, 4):
        window = square_window(box, width, height, margin)
        side = window[2] - window[0]
        longer = max(box[2] - box[0], box[3] - box[1])
        np.testing.assert_allclose(window[3] - window[1], side, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(side * (1 - 2 * margin), longer, rtol=1e-9)
        assert window[0] <= box[0] + 1e-2 and window[2] >= box[2] - 1e-2
        assert window[1] <= box[1] + 1e-2 and window[3] >= box[3] - 1e-2
        for low, limit in ((0, width), (1, height)):
            start, end = window[low], window[low + 2]
            if side < limit:
                assert start >= 0 and end <= limit + 1e-9
            else:
                assert start <= 0 and end >= limit - 1e-9
            center = (box[low] + box[low + 2]) / 2
            # Centered on the object unless one end of the image is in the way.
            if min(abs(start), abs(end - limit)) > 1e-9:
                np.testing.assert_allclose((start + end) / 2, center, rtol=1e-9, atol=1e-9)


def test_a_window_at_the_edge_is_shifted_not_padded():
    assert square_window((0, 40, 20, 60), 100, 100, 0.25) == (0, 30, 40, 70)
    assert square_window((80, 80, 100, 100), 100, 100, 0.25) == (60, 60, 100, 100)


def test_a_window_taller_than_the_photo_is_centered_on_the_object_where_that_pads_no_more():
    whole = square_window((0, 0, 100, 40), 100, 40, 0.1)
    np.testing.assert_allclose(whole, (-12.5, -42.5, 112.5, 82.5))
    for y in (0, 5, 10, 20):  # an object of 80 x 20 in the lower and the upper half
        x0, y0, x1, y1 = square_window((10, y, 90, y + 20), 100, 40, 0.1)
        assert (x0, x1) == (0, 100) and y0 + y1 == 2 * y + 20
        assert padded_share((x0, y0, x1, y1), 100, 40) == pytest.approx(0.6)
    # Centered at y = 5 it would begin 45 above the photo and end 5 above its lower edge.
    window = square_window((10, 0, 90, 10), 100, 60, 0.1)
    np.testing.assert_allclose(window, (0, -40, 100, 60))
    assert padded_share(centered(window, (10, 0, 90, 10)), 100, 60) > padded_share(window, 100, 60)


def test_a_centered_window_keeps_its_side_and_shows_the_box_in_its_middle():
    for box, width, height in _boxes(100, 8):
        window = square_window(box, width, height, 0.06)
        moved = centered(window, box)
        np.testing.assert_allclose(np.subtract(moved[2:], moved[:2]), window[2] - window[0])
        np.testing.assert_allclose(np.add(moved[2:], moved[:2]), np.add(box[2:], box[:2]))
        if padded_share(moved, width, height) == 0:
            np.testing.assert_allclose(moved, window, atol=1e-9)
    assert centered((0, 30, 40, 70), (0, 40, 20, 60)) == (-10, 30, 30, 70)


def test_padded_share_is_the_share_of_pixels_outside():
    assert padded_share((0, 0, 10, 10), 10, 10) == 0
    assert padded_share((-10, 0, 10, 20), 50, 50) == 0.5
    assert padded_share((60, 60, 70, 70), 50, 50) == 1
    rng = np.random.default_rng(5)
    for _ in range(100):
        width, height = rng.integers(5, 40, 2)
        x0, y0 = rng.integers(-30, 50, 2)
        side = int(rng.integers(1, 60))
        inside = np.zeros((side, side), bool)
        for y in range(side):
            for x in range(side):
                inside[y, x] = 0 <= x0 + x < width and 0 <= y0 + y < height
        share = padded_share((x0, y0, x0 + side, y0 + side), width, height)
        np.testing.assert_allclose(share, 1 - inside.mean(), atol=1e-12)


def test_the_content_of_a_window_agrees_with_its_padding():
    for box, width, height in _boxes(200, 6):
        window = square_window(box, width, height, 0.06)
        x0, y0, x1, y1 = content_box(width, height, window)
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        share = padded_share(window, width, height)
        np.testing.assert_allclose(1 - (x1 - x0) * (y1 - y0), share, atol=1e-9)
    assert content_box(20, 50, (-10, 5, 30, 45)) == (0.25, 0, 0.75, 1)


# Pixels of crops


def test_a_crop_of_the_whole_image_at_its_size_is_the_image():
    image = _noise(40, 40)
    np.testing.assert_array_equal(np.asarray(crop(image, (0, 0, 40, 40), 40)), np.asarray(image))


def test_a_crop_inside_is_a_plain_cut_and_a_scaled_one_is_pillows():
    image = _noise(90, 70)
    cut = crop(image, (11, 7, 43, 39), 32)
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(image)[7:39, 11:43])
    box = (10.5, 3.25, 60.5, 53.25)
    expected = image.resize((32, 32), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    np.testing.assert_array_equal(np.asarray(crop(image, box, 32)), np.asarray(expected))


def _literal_blur(edge: np.ndarray, away: int) -> np.ndarray:
    """A row (w, 3) under a Gaussian of standard deviation ``away``, its ends repeated."""
    columns = np.arange(len(edge))
    offsets = np.arange(-5 * away, 5 * away + 1)
    weights = np.exp(-(offsets**2) / (2 * away**2))
    near = edge[np.clip(columns[:, None] + offsets, 0, len(edge) - 1)].astype(float)
    return (near * (weights / weights.sum())[:, None]).sum(1)


def test_above_and_below_a_photo_its_edge_is_blurred_by_the_distance():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (20, 160, 3), np.uint8)
    found = np.asarray(crop(Image.fromarray(photo), (0, -70, 160, 90), 160)).astype(float)
    np.testing.assert_array_equal(found[70:90], photo)
    for away in (1, 2, 5, 10, 15):
        # Blurs follow one another, which at the ends is not one large blur.
        middle = slice(3 * away, -3 * away)
        for row, edge in ((found[70 - away], photo[0]), (found[89 + away], photo[-1])):
            expected = _literal_blur(edge, away)
            np.testing.assert_allclose(row[middle], expected[middle], atol=1.5)


def test_padding_beside_a_photo_is_that_above_it_turned():
    photo = np.asarray(_noise(40, 16))
    above = np.asarray(crop(Image.fromarray(photo), (0, -10, 40, 30), 40))
    turned = Image.fromarray(photo.swapaxes(0, 1))
    beside = np.asarray(crop(turned, (-10, 0, 30, 40), 40))
    np.testing.assert_array_equal(beside.swapaxes(0, 1), above)


def test_a_stripe_on_the_edge_is_not_drawn_out():
    photo = np.full((20, 64, 3), 200, np.uint8)
    photo[:, 31:33] = 0
    found = np.asarray(crop(Image.fromarray(photo), (0, -22, 64, 42), 64))[..., 0].astype(int)
    depth = 200 - found[:22].min(1)[::-1]  # from the edge outwards
    assert depth[0] > 80 and (np.diff(depth) <= 0).all() and depth[-1] < 12
    assert (found[22:42, 31:33] == 0).all()


@pytest.mark.parametrize(
    "window", [(-8, 0, 12, 20), (0, -5, 20, 15), (15, 4, 35, 24), (3, 9, 23, 29), (-9, -8, 41, 42)]
)
def test_what_a_window_has_of_the_image_is_a_plain_cut_wherever_it_lies(window):
    image = _noise(24, 20)
    x0, y0, x1, y1 = window
    found = np.asarray(crop(image, window, x1 - x0))
    rows = slice(max(y0, 0), min(y1, 20))
    columns = slice(max(x0, 0), min(x1, 24))
    inside = found[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
    np.testing.assert_array_equal(inside, np.asarray(image)[rows, columns])


def test_any_window_of_any_image_gives_a_crop_of_the_size_asked():
    for number, (box, width, height) in enumerate(_boxes(150, 7)):
        window = square_window(box, width, height, 0.06)
        size = (8, 33, 64)[number % 3]
        # As the table of windows rounds it.
        window = tuple(float(f"{value:.3f}") for value in window)
        if window[2] - window[0] < 0.1:
            continue
        flat = crop(Image.new("RGB", (width, height), (7, 80, 250)), window, size)
        assert flat.size == (size, size) and flat.mode == "RGB"
        assert (np.asarray(flat) == (7, 80, 250)).all()


def test_a_window_that_rounding_made_taller_than_wide_still_gives_a_square():
    image = _noise(12, 12)
    assert crop(image, (2.0, 3.0, 2.285, 3.288), 224).size == (224, 224)
    assert crop(image, (2.0, 3.0, 2.288, 3.285), 224).size == (224, 224)
