"""How names are spelled in tables and outputs: reversible, of one line, harmless, distinct."""

import os
import random
import re
from pathlib import Path

import pytest

from mirage_steps.files.names import decoded, encoded, file_of, not_a, output_names

PLAIN = ["a.png", "/photos/Tür 椅子 (1).v2.png", "it's 100%.png", "a\xa0b\u202fc\u3000d.png", "%2x"]
PIECES = ["a", ".", "%", "%0A", "2", "5", "\n", "\r", "\x1b", "\x85", "\u2028", "\udcff", "é", "椅"]


def test_usual_names_stay_as_they_are():
    assert [encoded(name) for name in PLAIN] == PLAIN == [decoded(name) for name in PLAIN]


def test_every_name_is_one_printable_line_and_comes_back():
    rng = random.Random(0)
    names = {"".join(rng.choices(PIECES, k=rng.randint(1, 8))) for _ in range(3000)}
    # What a file system gives, where bytes that happen to be UTF-8 are characters.
    names = {os.fsdecode(os.fsencode(name)) for name in names}
    texts = {name: encoded(name) for name in names}
    assert len(set(texts.values())) == len(names)
    for name, text in texts.items():
        assert decoded(text) == name
        assert text.splitlines() == [text] and text.encode()


def test_files_are_found_as_they_are_called_and_as_tables_spell_them(tmp_path):
    odd, both = tmp_path / "line\nbreak.png", tmp_path / "50%20off.png"
    odd.touch()
    both.touch()
    (tmp_path / "50 off.png").touch()
    assert file_of(odd) == file_of(encoded(odd)) == odd
    assert file_of(both) == file_of(encoded(both)) == both
    assert file_of(tmp_path / ("x" * 5000)) == tmp_path / ("x" * 5000)
    assert file_of("~nobody-of-this-name.png") == Path("~nobody-of-this-name.png")


HOSTILE = [
    "$(touch x)", "`touch x`", 'a"b', "a'b", "a\\b", "a;b&c|d", "{name}", "<results>", "*?[a]",
    "a,b", "a\nb", "a\rb", "\x1b[31m", "\udcff", "!x", "#x", "=x", "~x", "-x", " x ", "%j", "x:y",
    "\u202ea", "👨\u200d👩.v2", "x" * 251, "椅" * 80,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_outputs_have_names_that_no_shell_and_no_pattern_reads(name):
    (made,) = output_names([Path("sub") / f"{name}.png"])
    assert re.fullmatch(r"[\w.+@()= /-]+", made) and made == made.strip()
    assert len(f".{made}.json.partial.0123456789".encode()) <= 200
    assert output_names([Path(f"{made}.png")]) != [made] or "=" not in made


def test_names_of_outputs_are_distinct_and_usual_ones_stay():
    photos = [Path(name) for name in ("a.jpg", "a.png", "b.v2.jpg", "x.run.jpg", "Tür 1/ä b.jpg")]
    assert output_names(photos) == ["a.jpg", "a.png", "b.v2", "x=2Erun", "Tür 1/ä b"]
    three = output_names([Path("b.jpg"), Path("b.png"), Path("b.jpg.png")])
    assert three[1:] == ["b.png", "b.jpg.png"] and re.fullmatch("b.jpg=[0-9a-f]{8}", three[0])
    # Files and folders of other photos' outputs, equal letters of another case or form.
    groups = [
        [
            "a.jpg",
            "a.png/b.jpg",
            "a.views/pose_00.png",
            "a.json/x.png",
            "a.run/x.png",
            "a.html/x.png",
        ],
        ["Photo.jpg", "photo.jpg"],
        ["gr\xfcn.jpg", "gru\u0308n.jpg"],
        ["x" * 240 + "1.jpg", "x" * 240 + "2.jpg", "d/" + "x" * 240 + "1.jpg"],
        ["a=2Eb.jpg", "a.b.jpg", "a\nb.jpg", "a=0Ab.jpg", ".a.jpg", "=2Ea.jpg"],
    ]
    for group in groups:
        names = output_names([Path(name) for name in group])
        assert len({name.casefold() for name in names}) == len(group)
        taken = {
            f"{name}{end}"
            for name in names
            for end in (".png", ".json", ".views", ".html", ".run.json")
        }
        folders = {str(folder) for name in names for folder in Path(name).parents}
        assert len(taken) == 5 * len(names) and not taken & folders


def test_what_is_no_file_and_no_folder_is_called_what_it_is(tmp_path):
    file = tmp_path / "file"
    file.touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    for path, no_file, no_folder in (
        (file, "", "is a file"),
        (tmp_path, "is a folder", ""),
        (tmp_path / "absent", "no such file", "no such folder"),
        (tmp_path / "fifo", "is not a regular file", "is not a folder"),
        (Path("/dev/null"), "is not a regular file", "is not a folder"),
        (tmp_path / "gone", "is a link to nothing", "is a link to nothing"),
        (tmp_path / "loop", *2 * ["Too many levels of symbolic links"]),
        (file / "below", *2 * ["Not a directory"]),
        (tmp_path / ("x" * 300), *2 * ["File name too long"]),
        ("a\0b", *2 * ["embedded null byte"]),
    ):
        assert (not_a("file", path), not_a("folder", path)) == (no_file, no_folder)
