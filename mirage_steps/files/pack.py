"""A run's export in one file: a zip of stored members, read safely whoever made it.

Only known names are read, so that none leads out of the folder; nothing is compressed, so that a
small file cannot fill a disk; and no member is a pickle.
"""

import atexit
import functools
import os
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path

from mirage_steps.errors import UserError, first_line
from mirage_steps.files.atomic import atomic
from mirage_steps.files.cameras import CAMERAS
from mirage_steps.files.estimator import ESTIMATOR
from mirage_steps.files.names import encoded
from mirage_steps.files.pose_names import NAMES

_NEEDED = {"training/config.json", "training/model.safetensors", f"poses/{ESTIMATOR}"}
MEMBERS = {*_NEEDED, "training/sampling.json", str(NAMES), str(CAMERAS), "README.md"}
_MOST_TEXT = 16 * 2**20  # bytes of a member that is no tensors
# What zipfile raises on damaged files.
_DAMAGED = (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error)


def require_pack(path: Path) -> None:
    """Refuse a path at which a pack would overwrite anything but a pack.

    Raises:
        UserError: it exists and is none.
    """
    if path.exists() and not zipfile.is_zipfile(path):
        raise UserError(f"--pack {encoded(path)}: exists and is no pack; give another file")


def write_pack(folder: Path, path: Path) -> None:
    """Pack what the export step wrote into a folder.

    Raises:
        OSError: of the disk.
    """
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", strict_timestamps=False) as out:
        for name in sorted(MEMBERS):
            if (folder / name).is_file():
                out.write(folder / name, name)


def run_folder(run: Path) -> Path:
    """The folder of a run; of a pack that of its files, which lasts as long as this process.

    Raises:
        UserError: a file is no pack, or is damaged.
    """
    run = run.expanduser()
    if not run.is_file():
        return run
    found = run.stat()
    return _unpacked(run.absolute(), found.st_size, found.st_mtime_ns)


@functools.cache
def _unpacked(pack: Path, size: int, mtime_ns: int) -> Path:
    """The folder of a pack's files."""
    base = Path(tempfile.mkdtemp(prefix="mirage-steps-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    folder = base / pack.name  # for messages
    try:
        with zipfile.ZipFile(pack) as archive:
            members = [one for one in archive.infolist() if one.filename in MEMBERS]
            if reason := _unfit(members, size):
                raise UserError(f"run {encoded(pack)}: {reason}; make one by export --pack")
            for one in members:
                target = folder / one.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(one) as source, open(target, "xb") as copy:
                    shutil.copyfileobj(source, copy)
                os.utime(target, ns=(mtime_ns, mtime_ns))  # large files are known by it
    except _DAMAGED as error:
        raise UserError(
            f"run {encoded(pack)}: not a pack, or damaged ({first_line(error)}); give a folder "
            "such as results/demo, or what export --pack wrote"
        ) from None
    return folder


def _unfit(members: list[zipfile.ZipInfo], size: int) -> str:
    """Why members of a file of ``size`` bytes are not those of a pack; empty if they are."""
    names = [one.filename for one in members]
    if lacking := _NEEDED - set(names):
        return f"not a pack, it has no {min(lacking)}"
    if len(set(names)) < len(names):
        return "has a file twice"
    if any(one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1 for one in members):
        return "is compressed or encrypted"
    texts = [one.file_size for one in members if not one.filename.endswith(".safetensors")]
    if sum(one.file_size for one in members) > size or max(texts) > _MOST_TEXT:
        return "its files are too large"
    return ""
