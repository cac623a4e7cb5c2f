"""Published weights, fetched once into one folder that projects may share.

Layout: ``sam/FILE`` and ``inception/FILE`` for single files, ``OWNER/NAME/`` for repositories of
the Hugging Face hub. A download lies in ``.part``, where the next attempt resumes it, until it is
whole. The marker ``NAME.json`` says what is there; steps copy it into their provenance.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import require_disk, write_json
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
_PIPELINE = "model_index.json"  # of diffusers
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

    def check(self, path: Path) -> None:
        """Raise ValueError if a file is not the published one."""
        if (found := _sha256(path)) != self.sha256:
            raise ValueError(f"its SHA-256 is {found}, that of the published file {self.sha256}")

    def download(self, part: Path) -> None:
        """Append to ``part`` what it lacks of the file."""
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get  # retries and resumes by itself

        have = part.stat().st_size if part.exists() else 0
        require_disk(part.parent, self.size - have, self.path)
        try:
            with open(part, "ab") as out:
                # Offsets into a compressed answer would be of no use.
                http_get(self.url, out, resume_size=have, headers={"Accept-Encoding": "identity"})
        except HfHubHTTPError as error:
            if error.response.status_code != 416:  # nothing follows: the part is whole, or wrong
                raise


@dataclass(frozen=True)
class Repository:
    """Weights that are published as a repository of the Hugging Face hub."""

    setting: str  # config key and value that ask for it
    path: str  # owner/name, also its place in the shared folder
    revision: str

    @property
    def url(self) -> str:
        """The page of the revision that is fetched."""
        from huggingface_hub.constants import ENDPOINT

        return f"{ENDPOINT}/{self.path}/tree/{self.revision}"

    def check(self, path: Path) -> None:
        """Raise ValueError if a folder has no weights."""
        if not any(path.rglob("*.safetensors")):
            raise ValueError("no *.safetensors in it")

    def download(self, part: Path) -> None:
        """Fetch into ``part`` what it lacks of configuration, vocabulary and weights."""
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.utils import filter_repo_objects

        # Asked first, as without an answer snapshot_download takes whatever the folder holds.
        info = HfApi().repo_info(self.path, revision=self.revision, files_metadata=True, timeout=10)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        files = list(filter_repo_objects(sizes, allow_patterns=_ALLOW, ignore_patterns=_IGNORE))
        if _PIPELINE in files:  # its weights are in folders; those at the root are copies
            files = [name for name in files if "/" in name or not name.endswith(".safetensors")]
        absent = [name for name in files if not (part / name).exists()]
        require_disk(part.parent, sum(sizes[name] for name in absent), self.path)
        snapshot_download(self.path, revision=info.sha, local_dir=part, allow_patterns=files)
        if not all((part / name).is_file() for name in files):
            raise OSError("files are missing")
        shutil.rmtree(part / ".cache", ignore_errors=True)


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
    """Whether a name means published weights: one of FILES, or ``owner/name`` of the hub.

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
                write_json(weights / f"{name}.json", _complete(name, key, path))
    return path


def _complete(name: str, key: str, path: Path) -> dict[str, object]:
    """Content of the marker, once weights are fetched, or checked if put there by hand."""
    from huggingface_hub.errors import HTTPError, XetDownloadError

    item = FILES.get(name) or Repository(f"{key} {name}", name, REVISIONS.get(name, "main"))
    by_hand = path.exists()
    part = path.with_name(f"{path.name}.part")
    try:
        if by_hand:
            item.check(path)
            log.warning("%s: %s was put there by hand and is taken", item.setting, path)
        else:
            item.download(part)
            item.check(part)
            os.replace(part, path)
    except (OSError, RuntimeError, ValueError, HTTPError, XetDownloadError) as error:
        if isinstance(error, ValueError) and part.is_file():
            part.unlink()  # nothing to resume
        problem = f"{path} is not that of" if by_hand else "cannot fetch"
        reason = " ".join(str(error).split())[:300] or repr(error)
        raise UserError(
            f"{item.setting}: {problem} {item.url} ({reason}); download it elsewhere and put it at "
            f"{path}, or set {item.setting.split()[0]} to its path"
        ) from None
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    checksums = {file.relative_to(path.parent).as_posix(): _sha256(file) for file in files}
    return {"url": item.url, "fetched": not by_hand, "sha256": checksums}


def _sha256(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
