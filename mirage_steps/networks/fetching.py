"""Published weights, downloaded once into a folder that projects may share.

Layout: ``sam/FILE`` and ``inception/FILE`` for single files, ``OWNER/NAME/`` for repositories of
the Hugging Face hub. A partial download is in ``.part``, where the next attempt resumes it. The
marker ``NAME.json`` records files and hashes; steps copy it into their provenance.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import require_disk, sha256_of, write_json
from mirage_steps.files.command import log

# Pinned revisions; of other repositories the branch main is fetched.
REVISIONS = {
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
}
# Config keys that may name a repository of the hub.
_HUB_KEYS = ("backbone.model", "source.model")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ALLOW = ("*.json", "*.safetensors", "*.txt", "*.model")
_IGNORE = ("*.non_ema.safetensors", "*fp16*")


@dataclass(frozen=True)
class File:
    """Weights that are published as one file."""

    setting: str  # config key and value that ask for it
    url: str
    size: float  # in bytes, rounded up
    sha256: str

    @property
    def path(self) -> str:
        """Its place in the shared folder, such as ``sam/sam_vit_b_01ec64.pth``."""
        folder = self.setting.split()[0].partition(".")[2]
        return f"{folder}/{self.url.rpartition('/')[2]}"


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
_METRICS = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
_SHA256 = {
    "vit_b": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "vit_l": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "vit_h": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    "inception": "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
}
FILES = {
    "vit_b": File("masks.sam vit_b", f"{_SAM}sam_vit_b_01ec64.pth", 0.38e9, _SHA256["vit_b"]),
    "vit_l": File("masks.sam vit_l", f"{_SAM}sam_vit_l_0b3195.pth", 1.25e9, _SHA256["vit_l"]),
    "vit_h": File("masks.sam vit_h", f"{_SAM}sam_vit_h_4b8939.pth", 2.57e9, _SHA256["vit_h"]),
    "inception": File(
        "embed.inception auto", f"{_METRICS}inception-2015-12-05.pt", 0.1e9, _SHA256["inception"]
    ),
}


def is_published(name: str, key: str) -> bool:
    """Whether a name is that of published weights: one of FILES, or ``owner/name`` of the hub.

    Names in FILES go before files of the same name; an existing path goes before the hub.

    Args:
        name: as in the configuration.
        key: config key that has this value, such as ``backbone.model``.
    """
    if name in FILES or key not in _HUB_KEYS or not _HUB_NAME.fullmatch(name):
        return name in FILES
    # A name that begins with an existing folder is a mistyped path.
    return not Path(name.partition("/")[0]).is_dir()


def place(name: str, weights: Path) -> Path:
    """Path of published weights in the shared folder: a file, or a repository's folder."""
    return weights / (FILES[name].path if name in FILES else name)


def is_complete(name: str, weights: Path) -> bool:
    """Whether published weights are in the shared folder, whole and checked."""
    return (weights / f"{name}.json").is_file() and place(name, weights).exists()


def unknown(name: str, key: str) -> str:
    """The error message for a setting that is neither a path nor published weights."""
    values = [file.setting.split()[1] for file in FILES.values() if file.setting.startswith(key)]
    choices = f"none of {', '.join(values)}" if values else "no owner/name of the Hugging Face hub"
    return f"{key} {name}: no such file or folder, and {choices}"


def resolve(name: str, key: str, weights: Path) -> Path:
    """Path of weights on this disk; published ones are fetched if they are missing.

    What was put in their place by hand is taken without a network: a single file after a check of
    its SHA-256, a repository's folder if it holds a model.

    Args:
        name: an existing file or folder, or a name for which `is_published` holds.
        key: config key that has this value, such as ``masks.sam``.
        weights: the shared folder.

    Raises:
        UserError: no such thing, it cannot be fetched, or what is in its place is something else.
    """
    if not is_published(name, key):
        if Path(name).exists():
            return Path(name)
        raise UserError(unknown(name, key))
    path = place(name, weights)
    if not is_complete(name, weights):
        from huggingface_hub.utils import WeakFileLock  # takes 0.2 seconds

        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f"{path}.lock"):
            if not is_complete(name, weights):  # no other process fetched them meanwhile
                write_json(weights / f"{name}.json", _obtain(name, key, path))
    return path


def _obtain(name: str, key: str, path: Path) -> dict[str, object]:
    """Fetch weights, or check those that were put there by hand; gives the marker's content."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HTTPError, XetDownloadError

    file, revision = FILES.get(name), REVISIONS.get(name, "main")
    setting = file.setting if file else f"{key} {name}"
    url = file.url if file else f"{ENDPOINT}/{name}/tree/{revision}"
    by_hand = path.exists()
    part = path if by_hand else path.with_name(f"{path.name}.part")
    try:
        if by_hand:
            log.warning("%s: %s was put there by hand", setting, path)
        elif file:
            _download_file(file, part)
        else:
            _download_repository(name, revision, part)
        files = [part] if part.is_file() else sorted(part.rglob("*.safetensors"))
        hashes = {Path(path.name, f.relative_to(part)).as_posix(): sha256_of(f) for f in files}
        if not hashes:
            raise ValueError("no *.safetensors in it")
        if file and (found := [*hashes.values()]) != [file.sha256]:
            if not by_hand:
                part.unlink()  # nothing to resume
            raise ValueError(f"its SHA-256 is {found[0]}, that of the published file {file.sha256}")
        if not by_hand:
            os.replace(part, path)
    except (OSError, RuntimeError, ValueError, HTTPError, XetDownloadError) as error:
        problem = f"{path} is not that of" if by_hand else "cannot fetch"
        reason = " ".join(str(error).split())[:300] or repr(error)
        raise UserError(
            f"{setting}: {problem} {url} ({reason}); download it elsewhere and put it at {path}, "
            f"or set {setting.split()[0]} to its path"
        ) from None
    return {"url": url, "fetched": not by_hand, "sha256": hashes}


def _download_file(file: File, part: Path) -> None:
    """Download the rest of a file into ``part``."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get  # retries and resumes by itself

    have = part.stat().st_size if part.exists() else 0
    require_disk(part.parent, file.size - have, file.path)
    try:
        with open(part, "ab") as out:
            # Offsets into a compressed answer would be of no use.
            http_get(file.url, out, resume_size=have, headers={"Accept-Encoding": "identity"})
    except HfHubHTTPError as error:
        if error.response.status_code != 416:  # nothing follows: the part is whole, or wrong
            raise


def _download_repository(name: str, revision: str, part: Path) -> None:
    """Download missing configuration, vocabulary and weights into ``part``."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    # Asked first, as without an answer snapshot_download takes whatever the folder holds.
    info = HfApi().repo_info(name, revision=revision, files_metadata=True, timeout=10)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = list(filter_repo_objects(sizes, allow_patterns=_ALLOW, ignore_patterns=_IGNORE))
    if "model_index.json" in files:  # a pipeline has its weights in folders, copies at the root
        files = [file for file in files if "/" in file or not file.endswith(".safetensors")]
    absent = [file for file in files if not (part / file).exists()]
    require_disk(part.parent, sum(sizes[file] for file in absent), name)
    snapshot_download(name, revision=info.sha, local_dir=part, allow_patterns=files)
    if not all((part / file).is_file() for file in files):
        raise OSError("files are missing")
    shutil.rmtree(part / ".cache", ignore_errors=True)
