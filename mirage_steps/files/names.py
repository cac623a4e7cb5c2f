"""Names of files: how tables and messages spell them, and what a photo's outputs are called."""

import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

# Control characters, line and paragraph separators, bytes that are no UTF-8; and a percent sign
# that would be decoded.
_ESCAPED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]|%(?=[0-9A-Fa-f]{2})")
# Output names reach shells and patterns of file names: Snakemake's, SLURM's and its plugin's.
_SAFE = "_.-+@() "
_MOST_BYTES = 150  # of an output name, so that all names derived from it have at most 255
_CUT_BYTES = 100
# `x.run.json` is the record of x; a folder must not be called like the file of another photo.
_TAKEN = re.compile(r"^\.|\.(?=(run|views|mesh|texture)$)")
_TAKEN_FOLDERS = re.compile(
    r"^\.|\.(?=(run|views|mesh|texture|png|gif|html|json|log|tsv|glb|obj|mtl)$)"
)
# Of the files of a photo's mesh. The first marks the others as ours.
MESH_ENDS = (".mesh.png", ".glb", ".obj", ".mtl", ".texture.png")


def encoded(path: Path | str) -> str:
    """A path as printable text of one line, from which :func:`decoded` gives it back.

    Control characters, line separators and bytes that are no UTF-8 are written as ``%XX`` a byte; a
    usual path stays as it is.
    """
    return _ESCAPED.sub(lambda found: _hex(found[0], "%"), str(path))


def decoded(name: str) -> str:
    """The path that :func:`encoded` spells so."""
    raw = name.encode("utf-8", "surrogateescape")
    raw = re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), raw)
    return raw.decode("utf-8", "surrogateescape")


def file_of(name: Path | str) -> Path:
    """The file that a user names: as it is called, or as tables and messages spell it."""
    path = os.path.expanduser(name)
    spelled = decoded(path)
    return Path(path if os.path.exists(path) or not os.path.exists(spelled) else spelled)


def not_a(kind: Literal["file", "folder"], path: Path | str) -> str:
    """Why a path is no file or no folder that can be read, for messages; empty if it is one.

    Never waits, as opening a FIFO or reading a device may.
    """
    path = os.path.expanduser(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link to nothing" if os.path.islink(path) else f"no such {kind}"
    except OSError as error:  # such as a loop of links, a name too long, a folder that is closed
        return os.strerror(error.errno)
    except ValueError as error:  # a zero byte
        return str(error)
    if stat.S_ISDIR(mode):
        return "is a folder" if kind == "file" else ""
    if not stat.S_ISREG(mode):
        return "is not a regular file" if kind == "file" else "is not a folder"
    return "is a file" if kind == "folder" else ""


def output_names(photos: Sequence[Path]) -> list[str]:
    """Names of the photos' outputs, in which no shell or pattern finds anything.

    Letters, digits, spaces and ``_ . - + @ ( )`` stay, anything else is ``=XX`` a byte. A photo is
    called by its name without suffix, by that with suffix if others would be called the same, and
    with a hash if that does not help or if the name is long.

    Args:
        photos: paths relative to one folder; equal ones get equal names.
    """
    levels = [0] * len(photos)
    while True:
        found = [_output_name(*pair) for pair in zip(photos, levels, strict=True)]
        counts = Counter(map(str.casefold, found))
        twice = [i for i, name in enumerate(found) if counts[name.casefold()] > 1 and levels[i] < 2]
        if not twice:
            return found
        for i in twice:
            levels[i] += 1


def name_of_outputs(given: str) -> str:
    """A name that a user gives, spelled as :func:`output_names` does, whose names stay so."""
    return _safe(given, _TAKEN, _SAFE + "=/")


def _output_name(photo: Path, level: int) -> str:
    """Name of the outputs: 0 without suffix, 1 with suffix, 2 with suffix and hash."""
    last = _safe(photo.name if level else photo.stem, _TAKEN)
    name = "/".join([*(_safe(part, _TAKEN_FOLDERS) for part in photo.parts[:-1]), last])
    if long := len(name.encode()) > _MOST_BYTES:
        name = last.encode()[:_CUT_BYTES].decode(errors="ignore")
    if long or level == 2:
        name += f"={hashlib.sha256(os.fsencode(photo)).hexdigest()[:8]}"
    return name


def _safe(part: str, taken: re.Pattern, safe: str = _SAFE) -> str:
    """One part of an output name."""
    part = "".join(
        one if one.isalnum() or one in safe or unicodedata.combining(one) else _hex(one, "=")
        for one in unicodedata.normalize("NFC", part)
    )
    return re.sub("^ | $", "=20", taken.sub("=2E", part))


def _hex(text: str, sign: str) -> str:
    return "".join(f"{sign}{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))
