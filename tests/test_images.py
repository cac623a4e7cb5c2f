"""Reading photos of every kind, and refusing what is none."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from mirage_steps.files.images import UnreadableImage, read_rgb, upright_size

SIZE = (24, 16)


def _photo(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _read(image: Image.Image, path, **options) -> np.ndarray:
    """What comes back of an image that was saved."""
    image.save(path, **options)
    read = read_rgb(path)
    assert read.mode == "RGB"
    return np.asarray(read)


def _gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values)[..., None], 3, 2)


# Modes


def test_rgb_is_read_as_it_is(tmp_path):
    photo = _photo()
    np.testing.assert_array_equal(_read(photo, tmp_path / "a.png"), np.asarray(photo))


def test_gray_and_one_bit_become_three_equal_channels(tmp_path):
    gray = _photo().convert("L")
    np.testing.assert_array_equal(_read(gray, tmp_path / "l.png"), _gray(gray))
    bits = Image.fromarray(np.asarray(gray) > 100)
    assert bits.mode == "1"
    expected = _gray(255 * (np.asarray(gray) > 100))
    np.testing.assert_array_equal(_read(bits, tmp_path / "1.png"), expected)


def test_palettes_are_looked_up(tmp_path):
    palette = _photo().quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(_read(palette, tmp_path / "p.png"), expected)


@pytest.mark.parametrize("bytes_per_entry", [False, True])
def test_transparent_palette_entries_become_white(tmp_path, bytes_per_entry):
    palette = _photo().quantize(16)
    clear = int(np.asarray(palette)[0, 0])
    given = bytes(0 if entry == clear else 255 for entry in range(16))
    found = _read(palette, tmp_path / "p.png", transparency=given if bytes_per_entry else clear)
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == clear] = 255
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = _photo().convert(mode)
    alpha = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0]), dtype=np.uint8)
    alpha[0] = 0
    alpha[1] = 255
    image.putalpha(Image.fromarray(alpha))
    share = alpha[..., None] / 255
    colors = np.asarray(image.convert("RGB"))
    found = _read(image, tmp_path / "a.png")
    np.testing.assert_allclose(found, colors * share + 255 * (1 - share), atol=1.01)
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1], colors[1])


def test_a_transparent_color_of_an_rgb_png_becomes_white(tmp_path):
    photo = Image.new("RGB", SIZE, (10, 20, 30))
    photo.putpixel((3, 2), (1, 2, 3))
    found = _read(photo, tmp_path / "t.png", transparency=(1, 2, 3))
    assert (found[2, 3] == 255).all() and (found[0, 0] == (10, 20, 30)).all()


def test_cmyk_is_converted(tmp_path):
    image = Image.new("CMYK", SIZE, (0, 255, 255, 0))
    found = _read(image, tmp_path / "c.jpg", quality=95)
    assert (found[..., 0] > 200).all() and (found[..., 1:] < 60).all()


def test_16_bit_gray_is_scaled_by_its_type_and_not_clipped(tmp_path):
    values = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(np.uint16)
    found = _read(Image.fromarray(values), tmp_path / "16.png")
    np.testing.assert_array_equal(found, _gray(np.round(values / 257)))
    # A night shot stays dark.
    dark = _read(Image.fromarray((values // 300).astype(np.uint16)), tmp_path / "dark.png")
    assert dark.max() <= 1


@pytest.mark.parametrize("top", [1, 255, 65535])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_values_are_scaled_by_the_range_that_holds_them(tmp_path, dtype, top):
    values = np.linspace(0, top, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(dtype)
    found = _read(Image.fromarray(values), tmp_path / "v.tiff")
    np.testing.assert_allclose(found, _gray(values.astype(float) / top * 255), atol=0.51)


def test_values_beyond_every_range_are_stretched(tmp_path):
    values = np.linspace(-3, 9, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(np.float32)
    found = _read(Image.fromarray(values), tmp_path / "v.tiff")
    assert found.min() == 0 and found.max() == 255
    assert (np.diff(found[..., 0].ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("value", [-5, 0, 3, 70_000, -(2**31)])
def test_a_constant_image_of_any_value_is_read(tmp_path, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = _read(Image.fromarray(np.full((16, 16), value, np.int32)), tmp_path / "v.tiff")
    assert len(np.unique(found)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, value):
    values = np.zeros((16, 16), np.float32)
    values[1, 1] = value
    Image.fromarray(values).save(tmp_path / "v.tiff")
    with pytest.raises(UnreadableImage, match="not a number"):
        read_rgb(tmp_path / "v.tiff")


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", SIZE, color) for color in ("red", "lime", "blue")]
    path = tmp_path / "a.gif"
    found = _read(frames[0], path, save_all=True, append_images=frames[1:])
    assert Image.open(path).n_frames == 3
    assert (found == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path, orientation):
    upright = np.asarray(_photo())
    # How a camera stores a scene under each orientation; 6 is a quarter turn.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "o.png"
    found = _read(Image.fromarray(np.ascontiguousarray(stored)), path, exif=exif)
    np.testing.assert_array_equal(found, upright)


# Refusals


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png(100_000, 100_000, b"\0" * 10_000))

    def decoded(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(UnreadableImage, match="100000x100000 has more than max_pixels"):
        read_rgb(path)


def test_max_pixels_is_the_most_that_is_allowed(tmp_path):
    _photo().save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png", max_pixels=SIZE[0] * SIZE[1]).size == SIZE
    with pytest.raises(UnreadableImage, match="24x16 has more than max_pixels = 383"):
        read_rgb(tmp_path / "a.png", max_pixels=383)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("empty.jpg", b"", "empty file"),
        ("note.jpg", b"Dear photo,\n", "not an image"),
        ("page.png", b"<html>404</html>", "not an image"),
        ("none.png", _png(0, 5, b""), "."),
        ("short.png", _png(40, 40, b"\0" * 9), "truncated"),
        ("empty.gif", b"GIF89a" + struct.pack("<HH", 0, 0) + bytes(3) + b";", "."),
        ("none.ppm", b"P6\n0 0\n255\n", "."),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as error:
        read_rgb(tmp_path / name)
    assert "\n" not in str(error.value)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("IMG_1.HEIC", HEIC, "HEIC.*convert it to JPEG"),
        ("renamed.jpg", HEIC, "HEIC"),
        ("a.heif", HEIC.replace(b"heic", b"mif1"), "HEIC"),
        ("a.jxl", b"\xff\x0a" + bytes(50), "JPEG XL.*convert it"),
        ("a.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        ("a.cr3", b"\0\0\0\x18ftypcrx " + bytes(50), "raw file"),
        ("a.raf", b"FUJIFILMCCD-RAW 0201", "raw file"),
        ("a.rw2", b"IIU\0" + bytes(50), "raw file"),
        ("a.arw", b"any bytes of a raw file", "raw file.*convert it to JPEG or TIFF"),
        ("a.mp4", b"\0\0\0\x18ftypisom" + bytes(50), "not an image: a video"),
        ("a.psd", b"8BPS\0\x01" + bytes(50), "not an image: a Photoshop document"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image: a drawing"),
        ("a.svg", b"<?xml version='1.0'?>\n<!-- x --><svg/>", "not an image: a drawing"),
        ("a.pdf", b"%PDF-1.7\n", "not an image: a document"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image: a doc"),
    ],
)
def test_files_of_known_kinds_are_told_what_they_are(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    for read in (read_rgb, upright_size):
        with pytest.raises(UnreadableImage, match=reason):
            read(tmp_path / name)


def test_previews_in_raw_files_are_no_photos(tmp_path):
    photo = _photo().resize((160, 120))
    for name, tags in (
        ("reduced.tif", {254: 1}),
        ("old reduced.tif", {255: 2}),
        ("dng.tif", {50706: b"\1\4\0\0"}),
        ("plain.NEF", {}),
        ("canon.CR2", {}),
    ):
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in tags.items():
            info[tag] = value
        photo.save(tmp_path / name, "TIFF", tiffinfo=info)
        with pytest.raises(UnreadableImage, match="a camera's raw file, of which only a preview"):
            read_rgb(tmp_path / name)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[254] = 2  # a page of several
    pages = [photo.resize((40, 30))]
    photo.save(tmp_path / "pages.tif", save_all=True, append_images=pages, tiffinfo=info)
    assert read_rgb(tmp_path / "pages.tif").size == (160, 120)
    photo.save(tmp_path / "a jpeg.nef", "JPEG")
    assert read_rgb(tmp_path / "a jpeg.nef").size == (160, 120)


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (4000, 3)])
def test_images_that_show_nothing_are_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    for read in (read_rgb, upright_size):
        with pytest.raises(UnreadableImage, match=f"{size[0]}x{size[1]} pixels are too few"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("size", [2_000_000, 50_000_000])
def test_large_texts_and_profiles_of_a_png_do_no_harm(tmp_path, size):
    photo, compressed, xmp, many = _photo(), *(PngImagePlugin.PngInfo() for _ in range(3))
    compressed.add_text("comment", "x" * size, zip=True)
    xmp.add_itxt("XML:com.adobe.xmp", "x" * size, zip=True)
    for number in range(80 if size < 10**7 else 0):
        many.add_text(f"{number}", "x" * 1_000_000, zip=True)
    options = ({"pnginfo": info} for info in (compressed, xmp, many))
    for number, option in enumerate((*options, {"icc_profile": bytes(size)})):
        path = tmp_path / f"{number}.png"
        np.testing.assert_array_equal(_read(photo, path, **option), np.asarray(photo))
        # Behind the pixels, too.
        content = path.read_bytes()
        pixels = content.index(b"IDAT") - 4
        parts = content[:33], content[pixels:-12], content[33:pixels], content[-12:]
        path.write_bytes(b"".join(parts))
        np.testing.assert_array_equal(np.asarray(read_rgb(path)), np.asarray(photo))


def test_what_a_small_header_hides_is_not_decoded(tmp_path):
    big = io.BytesIO()
    Image.new("1", (30_000, 20_000)).save(big, "PNG")
    entry = struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 24, len(big.getvalue()), 22)
    (tmp_path / "a.ico").write_bytes(b"\0\0\1\0\1\0" + entry + big.getvalue())
    with pytest.raises(UnreadableImage, match="not an image: an icon"):
        read_rgb(tmp_path / "a.ico")
    # A gray image of 24x16 in one compressed tile.
    tile = zlib.compress(bytes(10**6))
    tags = {256: 24, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000}
    tags |= {324: 8 + 2 + 12 * 10 + 4, 325: len(tile)}
    rows = (struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(rows) + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + tile)
    with pytest.raises(UnreadableImage, match="tiles have 30000x30000"):
        read_rgb(tmp_path / "a.tif")


def test_a_jpeg_of_too_many_scans_is_not_decoded(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    (tmp_path / "a.jpg").write_bytes(whole)
    assert upright_size(tmp_path / "a.jpg") == (6000, 6000)
    tables = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xc4"]
    scan = whole[tables[-2] : tables[-1]]
    (tmp_path / "a.jpg").write_bytes(whole[: tables[-1]] + 2000 * scan + whole[tables[-1] :])
    with pytest.raises(UnreadableImage, match="a JPEG of 2[0-9]{3} scans"):
        upright_size(tmp_path / "a.jpg")


def test_errors_of_the_system_stay_what_they_are(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", "a.png")

    (tmp_path / "a.png").write_bytes(b"a")
    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(UnreadableImage, match="^cannot be read: Permission denied$"):
        read_rgb(tmp_path / "a.png")


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(UnreadableImage):
            read_rgb(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_a_cut_file_is_refused(tmp_path, suffix):
    whole, cut = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    _photo().resize((64, 64)).save(whole)
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(UnreadableImage):
        read_rgb(cut)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tiff", "webp"])
def test_damage_gives_an_image_or_the_one_error(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    _photo().resize((40, 30)).save(path, **({} if suffix == "gif" else {"exif": exif}))
    whole = path.read_bytes()
    rng = random.Random(suffix)
    outcomes = set()
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            # Headers are where damage is worst.
            reach = len(content) if rng.random() < 0.5 else min(120, len(content))
            content[rng.randrange(reach)] = rng.randrange(256)
        path.write_bytes(content)
        try:
            image = read_rgb(path, max_pixels=100_000)
            outcomes.add("image")
            assert image.mode == "RGB" and min(image.size) > 0
        except UnreadableImage as error:
            outcomes.add("refused")
            assert str(error) and "\n" not in str(error)
    assert "refused" in outcomes
