"""Published weights, fetched once into one shared folder: checked, resumed, whole or absent.

Layout of the shared folder: ``sam/FILE`` and ``inception/FILE`` for single files, ``OWNER/NAME/``
for repositories of the Hugging Face hub. A marker, written last, says that an item is complete.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import huggingface_hub
import requests
import tenacity
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from tqdm import tqdm

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import require_disk, write_json
from mirage_steps.files.command import log


@dataclass(frozen=True)
class File:
    """Weights that are published as one file.

    Args:
        setting: config key and value that ask for it.
        folder: its place in the shared folder.
        url: where it is published.
        sha256: of its content.
    """

    setting: str
    folder: str
    url: str
    sha256: str

    @property
    def name(self) -> str:
        """What the file is called."""
        return self.url.rpartition("/")[2]


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
FILES = {
    # URLs and sums as segment-anything's README has them.
    "vit_b": File(
        "masks.sam vit_b",
        "sam",
        _SAM + "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": File(
        "masks.sam vit_l",
        "sam",
        _SAM + "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": File(
        "masks.sam vit_h",
        "sam",
        _SAM + "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    # The Inception of FID, as clean-fid runs it.
    "inception": File(
        "embed.inception auto",
        "inception",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
}
# Revisions that are taken of repositories on the hub; of any other, its branch main.
REVISIONS = {
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
}

_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HUB_MARKER = "fetched.json"
_PIPELINE = "model_index.json"
_ALLOW = ("*.json", "*.safetensors", "*.txt", "*.model")
_IGNORE = ("*.fp16.safetensors", "*.non_ema.safetensors", "*fp16*")
_HUB_ERRORS = (
    errors.HTTPError,
    errors.HFValidationError,
    errors.XetDownloadError,
    OSError,
    RuntimeError,  # of hf_xet, the hub's transfer library
)
# What the hub's errors mean, where their own text is long; the first that fits counts.
_HUB_REASONS = (
    (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set"),
    (errors.GatedRepoError, "access must be asked for on its page, then `hf auth login`"),
    (errors.RevisionNotFoundError, "no such revision"),
    (errors.RepositoryNotFoundError, "no such repository, or not without `hf auth login`"),
)

_CHUNK = 2**20
_TIMEOUT = (10, 60)  # seconds to connect, and between two reads
_ATTEMPTS = 5
_WAIT = tenacity.wait_exponential(multiplier=1, max=30)


# Config keys that may name a repository of the hub; of the others it would be a mistyped path.
_HUB_SETTINGS = ("backbone.model", "source.model")


def is_published(name: str, hub: bool = True) -> bool:
    """Whether a name stands for published weights: of the table, or ``owner/name`` of the hub.

    Names of the table go before files of the same name; an existing path goes before the hub.

    Args:
        name: as in the configuration.
        hub: whether repositories of the hub are meant, too.
    """
    # What begins with a folder of this place is a mistyped path.
    meant = hub and _HUB_NAME.fullmatch(name) and not Path(name.partition("/")[0]).is_dir()
    return name in FILES or bool(meant)


def item_marker(name: str, weights: Path) -> Path:
    """The file that is written last and says that an item is complete.

    Args:
        name: for which `is_published` holds.
        weights: the shared folder.
    """
    target = _target(name, weights)
    return target.with_name(target.name + ".json") if name in FILES else target / _HUB_MARKER


def local(name: str, setting: str, weights: Path) -> Path:
    """Where weights are on this disk; published ones are fetched if they are not there.

    Args:
        name: an existing file or folder, or a name for which `is_published` holds.
        setting: config key and value that ask for it, such as ``masks.sam vit_h``.
        weights: the shared folder.

    Raises:
        UserError: no such thing, or it is not there and cannot be fetched.
    """
    hub = setting.split()[0] in _HUB_SETTINGS
    if not is_published(name, hub) and Path(name).exists():
        return Path(name)
    if is_published(name, hub) and _is_complete(name, weights):
        return _target(name, weights)
    return fetch(name, setting, weights)


def fetch(name: str, setting: str, weights: Path) -> Path:
    """Make published weights complete on this disk.

    What lies in its place already is checked and taken, without a network: a single file by its
    SHA-256, a hub folder by the presence of its files only, which its marker says.

    Args:
        name: for which `is_published` holds.
        setting: config key and value that ask for it, such as ``masks.sam vit_h``.
        weights: the shared folder.

    Returns:
        The file, or the folder of a hub repository.

    Raises:
        UserError: no such name, it cannot be fetched, or what is there is damaged.
    """
    if not is_published(name, setting.split()[0] in _HUB_SETTINGS):
        raise UserError(unknown(setting))
    target = _target(name, weights)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        if not _is_complete(name, weights):
            (_complete_file if name in FILES else _complete_folder)(name, setting, weights)
    return target


def unknown(setting: str) -> str:
    """The line for a setting that names neither anything here nor anything published.

    Args:
        setting: config key and value.
    """
    return f"{setting}: no such file or folder, and {_choices(setting)}"


def _choices(setting: str) -> str:
    """What else a setting could be, for the line that says it is nothing."""
    known = (file.setting.split() for file in FILES.values())
    values = [value for key, value in known if key == setting.split()[0]]
    return f"none of {', '.join(values)}" if values else "no owner/name of the Hugging Face hub"


def _target(name: str, weights: Path) -> Path:
    """Where an item is in the shared folder: its file, or the folder of its repository."""
    if name in FILES:
        return weights / FILES[name].folder / FILES[name].name
    return weights / name


def _is_complete(name: str, weights: Path) -> bool:
    """Whether the marker is there and every file has the size that it says."""
    marker = item_marker(name, weights)
    if not marker.is_file():
        return False
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
        files = {entry["name"]: entry["bytes"] for entry in content["files"]}
    except (ValueError, LookupError, TypeError):
        return False
    paths = {marker.parent / file: size for file, size in files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of an item: two processes must not write one ``.part``."""
    lock = filelock.FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("%s: waiting for another process that fetches it", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _described(folder: Path, names: Iterable[str]) -> list[dict[str, object]]:
    """Name, bytes and SHA-256 of files, as the marker lists them."""
    return [
        {"name": name, "bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in sorted(names)
    ]


# --- single files -----------------------------------------------------------------------------


def _complete_file(name: str, setting: str, weights: Path) -> None:
    """Check the file that is there, or fetch it; then write its marker."""
    file, target = FILES[name], _target(name, weights)
    if not target.exists():
        _fetch_file(file, setting, target)
    elif (found := _sha256(target)) != file.sha256:
        raise UserError(
            f"{setting}: {target} is damaged or another file (its SHA-256 is {found}, that of "
            f"{file.url} is {file.sha256}); put the right one there, or delete it to fetch it"
        )
    content = {"name": target.name, "bytes": target.stat().st_size, "sha256": file.sha256}
    write_json(item_marker(name, weights), {"url": file.url, "verified": True, "files": [content]})


def _fetch_file(file: File, setting: str, target: Path) -> None:
    """Download a file beside its place, check it, and put it there.

    Raises:
        UserError: it cannot be fetched, or what came is not it.
    """
    part = target.with_name(target.name + ".part")
    advice = (
        f"download it elsewhere and put it at {target}, or set {setting.split()[0]} to its path"
    )
    try:
        _retrying()(_download, file.url, part)
    except requests.RequestException as error:
        raise UserError(
            f"{setting}: cannot fetch {file.url} ({_reason(error)}); {advice}"
        ) from None
    if (found := _sha256(part)) != file.sha256:
        part.unlink()
        raise UserError(
            f"{setting}: what came from {file.url} is not the published file and was deleted (its "
            f"SHA-256 is {found}, not {file.sha256}); try again, or {advice}"
        )
    os.replace(part, target)


def _download(url: str, part: Path) -> None:
    """Bring a file to its end, from where an earlier attempt broke off.

    Args:
        url: of the file.
        part: the beginning that is there already, or where it comes.

    Raises:
        requests.RequestException: of the network or of the server.
        UserError: the disk has too little room.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable and have:
            # Nothing comes after the part: it is whole, or longer than the file and thus wrong.
            if answer.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                _download(url, part)
            return
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0
        _receive(answer, part, have)


def _receive(answer: requests.Response, part: Path, have: int) -> None:
    """Write what a server sends behind the first ``have`` bytes of a file."""
    length = answer.headers.get("Content-Length", "")
    total = have + int(length) if length.isdecimal() else None
    name = part.name.removesuffix(".part")
    if total:
        require_disk(part.parent, total - have, name)
    with (
        open(part, "ab" if have else "wb") as out,
        tqdm(
            desc=name, total=total, initial=have, unit="B", unit_scale=True, mininterval=1.0
        ) as progress,
    ):
        for chunk in answer.iter_content(_CHUNK):
            out.write(chunk)
            progress.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())


# --- the network ------------------------------------------------------------------------------


def _retrying() -> tenacity.Retrying:
    """Calls a function again, after growing waits, while its failure may pass by itself."""
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=_WAIT,
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=lambda state: log.warning(
            "%s; attempt %d of %d follows",
            _reason(state.outcome.exception()),
            state.attempt_number + 1,
            _ATTEMPTS,
        ),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    """Whether a failure is of the network or of a busy server, not an answer like 404."""
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code == 429 or response.status_code >= 500
    network = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
        errors.HTTPError,
    )
    return isinstance(error, network)


def _reason(error: BaseException) -> str:
    """What went wrong, short enough for one line: the server's answer, or the first cause."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    for kind, meaning in _HUB_REASONS:
        if isinstance(error, kind) or isinstance(root, kind):
            return meaning
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    text = getattr(root, "strerror", None) or str(root).strip() or repr(root)
    return text.splitlines()[0][:200]


# --- repositories of the hub ------------------------------------------------------------------


def _complete_folder(name: str, setting: str, weights: Path) -> None:
    """Take the folder that is there, or fetch it; its marker comes with it."""
    folder = _target(name, weights)
    # Snakemake makes the folder of an output before the job runs.
    if not folder.is_dir() or not any(folder.iterdir()):
        _fetch_folder(name, setting, folder)
        return
    files = _model_files(folder)
    if not ({"config.json", _PIPELINE} & set(files) and _has_weights(files)):
        raise UserError(
            f"{setting}: {folder} lacks config.json or {_PIPELINE}, or *.safetensors; put the "
            "missing files there, or delete it to fetch it whole"
        )
    log.warning(
        "%s: %s is taken as it is, not compared with the published files of revision %s",
        setting, folder, REVISIONS.get(name, "main"),
    )  # fmt: skip
    # Of which revision they are only the hub could say.
    _mark(folder, name, None, False, files)


def _mark(
    folder: Path, name: str, revision: str | None, verified: bool, files: Iterable[str]
) -> None:
    """Write the marker of a repository's folder."""
    write_json(
        folder / _HUB_MARKER,
        {
            "repo": name,
            "revision": revision,
            "verified": verified,
            "files": _described(folder, files),
        },
    )


def _model_files(folder: Path) -> list[str]:
    """Files of a model in a folder, by their path below it; hidden ones and the marker are not."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    seen = (
        path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)
    )
    return [
        name for name in filter_repo_objects(seen, allow_patterns=_ALLOW) if name != _HUB_MARKER
    ]


def _has_weights(files: Iterable[str]) -> bool:
    """Whether weights are among files."""
    return any(name.endswith(".safetensors") for name in files)


def _fetch_folder(name: str, setting: str, folder: Path) -> None:
    """Download a repository beside its place, check it, and put it there with its marker.

    Raises:
        UserError: it cannot be fetched, or what came is not it.
    """
    url = f"{huggingface_hub.constants.ENDPOINT}/{name}"
    part = folder.with_name(folder.name + ".part")
    try:
        # Beside its place, since half a folder would look like one put there by hand.
        _retrying()(_download_folder, name, setting, part)
    except _HUB_ERRORS as error:
        raise UserError(
            f"{setting}: cannot fetch {url}, revision {REVISIONS.get(name, 'main')} "
            f"({_reason(error)}); download it elsewhere and put "
            "config.json and model.safetensors (of a pipeline: model_index.json and its folders) "
            f"into {folder}, or set {setting.split()[0]} to its folder"
        ) from None
    os.replace(part, folder)


def _download_folder(name: str, setting: str, part: Path) -> None:
    """Bring a repository's folder to its end, check it and mark it.

    Raises:
        UserError: the repository has no weights of use, or files of it came damaged.
    """
    api = huggingface_hub.HfApi()
    # Asked first because snapshot_download takes whatever a folder holds if it gets no answer.
    info = api.model_info(
        name, revision=REVISIONS.get(name, "main"), files_metadata=True, timeout=_TIMEOUT[0]
    )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = _wanted(sizes)
    if not _has_weights(wanted):
        raise UserError(
            f"{setting}: {name} on the hub has no *.safetensors; convert it elsewhere and set "
            f"{setting.split()[0]} to its folder"
        )
    absent = [file for file in wanted if not (part / file).exists()]
    require_disk(part.parent, sum(sizes[file] for file in absent), name)
    huggingface_hub.snapshot_download(
        name, revision=info.sha, local_dir=part, allow_patterns=wanted
    )
    _verify(api, name, setting, info.sha, part, wanted)
    shutil.rmtree(part / ".cache", ignore_errors=True)
    _mark(part, name, info.sha, True, wanted)


def _wanted(files: Iterable[str]) -> list[str]:
    """Which files of a repository are fetched.

    Pipelines of diffusers keep their weights in folders; at their root are the same once more.
    """
    files = list(files)
    chosen = filter_repo_objects(files, allow_patterns=_ALLOW, ignore_patterns=_IGNORE)
    if _PIPELINE in files:
        return [name for name in chosen if "/" in name or not _has_weights([name])]
    return list(chosen)


def _verify(
    api: huggingface_hub.HfApi,
    name: str,
    setting: str,
    revision: str,
    part: Path,
    wanted: Iterable[str],
) -> None:
    """Compare a folder with the hub's checksums; damaged files are deleted.

    Raises:
        UserError: files are missing or damaged.
    """
    found = api.verify_repo_checksums(name, revision=revision, local_dir=part)
    damaged = [mismatch["path"] for mismatch in found.mismatches]
    for file in damaged:
        (part / file).unlink()
    if bad := [file for file in wanted if not (part / file).is_file()]:
        raise UserError(
            f"{setting}: {', '.join(bad)} of {name} came damaged or not at all from the hub; try "
            "again"
        )
