"""Time and memory of listing a folder of which a tenth is hostile.

``python benchmarks/listing.py --files 10000`` writes photos and, in every tenth place, what is none
or hardly one (damaged files of every format, bombs, odd names, links, pipes), lists them by the
dataset step, checks that each is in the manifest or has its reason, and prints one line of JSON.
"""

import io
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro
from PIL import Image

from mirage_steps.files.atomic import read_csv
from mirage_steps.files.names import decoded

_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "ICO", "TGA", "PCX")


def main(*, files: int = 10_000, seed: int = 0) -> None:
    """Measure the listing.

    Args:
        files: In the folder.
        seed: Of damage and names.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "photos"), Path(folder, "out")
        photo = _saved(_noise(rng, 640, 480), "JPEG")
        for number in range(files):
            place = root / f"{number // 500:03d}"
            place.mkdir(parents=True, exist_ok=True)
            if number % 10:
                (place / f"{number:06d}.jpg").write_bytes(photo)
            else:
                _hostile(rng, place, number)
        command = [sys.executable, "-m", "mirage_steps.dataset", "--out", str(out), "folder"]
        done = subprocess.run([*command, "--path", str(root)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        listed = [row["image"] for row in read_csv(out / "manifest.csv")]
        rejected = [row["image"] for row in read_csv(out / "rejected.csv")]
        there = {str(path) for path in root.glob("*/*")}
        if {decoded(name) for name in listed + rejected} != there:
            sys.exit("a file is in neither table")
        record = json.loads((out / "dataset.run.json").read_text())
    found = {"files": files, "listed": len(listed), "rejected": len(rejected)}
    print(json.dumps({**found, **{key: record[key] for key in ("seconds", "peak_memory_mb")}}))


def _hostile(rng: random.Random, place: Path, number: int) -> None:
    """One entry of a folder that a listing must survive."""
    kind = rng.randrange(8)
    if kind < 4:
        content = bytearray(_saved(_noise(rng, 64, 48), rng.choice(_FORMATS)))
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(min(len(content), rng.choice((100, 10**6))))] = rng.randrange(256)
        (place / f"{number}.jpg").write_bytes(content[: rng.choice((None, len(content) // 2))])
    elif kind == 4:
        image = Image.new("1", (rng.choice((9_000, 30_000)), 12_000))
        (place / f"{number}.png").write_bytes(_saved(image, "PNG"))
    elif kind == 5:
        name = rng.choice((f"{number}\n\r\x1b[2J.png", f"{number}$(x)`y`.png", f"{number}%0A.png"))
        (place / name).write_bytes(_saved(_noise(rng, 64, 48), "PNG"))
    elif kind == 6:
        (place / f"{number}.lnk").symlink_to(rng.choice((place, place / "gone", place.parent)))
    else:
        os.mkfifo(place / f"{number}.fifo")


def _noise(rng: random.Random, width: int, height: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), rng.randbytes(width * height * 3))


def _saved(image: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


if __name__ == "__main__":
    tyro.cli(main)
