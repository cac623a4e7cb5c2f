"""Published weights: fetched once, checked, resumed; offline, one line. All over loopback."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import requests
import tenacity
from huggingface_hub import errors

from mirage_steps import weights as step
from mirage_steps.errors import UserError
from mirage_steps.files.command import run
from mirage_steps.networks import fetching as published

CONTENT = bytes(range(256)) * 20
SHA = hashlib.sha256(CONTENT).hexdigest()
SETTING = "masks.sam vit_b"


@dataclass
class Server:
    """What the local server holds, what it is told to do, and what it was asked for.

    Args:
        files: path -> content.
        tricks: one for each request to come: a status, ``ignore`` (the range), or how many bytes
            to send before the connection breaks, as a negative number.
        asked: path and range of each GET.
        answers: path -> JSON, of an interface such as the hub's.
        delay: seconds before each answer.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    tricks: list[int | str] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    answers: dict[str, object] = field(default_factory=dict)
    delay: float = 0
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves files with ranges, and the tricks."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):  # noqa: N802
        self._send(self.server.state.files.get(self.path))

    def do_GET(self):  # noqa: N802
        state, span = self.server.state, self.headers["Range"]
        path = self.path.partition("?")[0]
        state.asked.append((path, span))
        time.sleep(state.delay)
        trick = state.tricks.pop(0) if state.tricks else None
        if isinstance(trick, int) and trick > 0:
            self.send_error(trick)
        elif path in state.answers:
            self._send(json.dumps(state.answers[path]).encode())
        else:
            self._send(state.files.get(path), span if trick != "ignore" else None, trick)

    def _send(self, content, span=None, trick=None):
        if content is None:
            self.send_error(404)
            return
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{_git_sha1(content)}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:][: -trick if isinstance(trick, int) else None])


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    """No proxy, no waits, and no address but 127.0.0.1."""
    connect = socket.socket.connect

    def guarded(self, address):
        assert self.family == socket.AF_UNIX or address[0] == "127.0.0.1", address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(published, "_WAIT", tenacity.wait_none())


@pytest.fixture
def server(monkeypatch):
    """A server of one file, which the table names ``vit_b``."""
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state = Server({"/sam.pth": CONTENT}, url=f"http://127.0.0.1:{listening.server_port}")
    listening.state = state
    _table(monkeypatch, f"{state.url}/sam.pth")
    yield state
    listening.shutdown()
    listening.server_close()
    thread.join(5)


def _table(monkeypatch, url: str) -> None:
    monkeypatch.setattr(published, "_CHUNK", 1000)
    files = {"vit_b": published.File(SETTING, "sam", url, SHA)}
    monkeypatch.setattr(published, "FILES", files)


def _refused(folder: Path, name: str = "vit_b", setting: str = SETTING) -> str:
    """The one line with which fetching ends; no marker is left, nor the file."""
    with pytest.raises(UserError) as error:
        published.fetch(name, setting, folder)
    line = str(error.value)
    assert "\n" not in line and line.startswith(setting)
    assert not published.item_marker(name, folder).exists()
    return line


def _names(folder: Path) -> set[str]:
    """Files below a folder but for the locks, which stay and are empty."""
    paths = {path for path in folder.rglob("*") if path.is_file()}
    assert all(path.stat().st_size == 0 for path in paths if path.suffix == ".lock")
    return {path.relative_to(folder).as_posix() for path in paths if path.suffix != ".lock"}


# Names


def test_the_table_places_every_published_file():
    folder = Path("w")
    places = {name: published.item_marker(name, folder) for name in published.FILES}
    assert places == {
        "vit_b": folder / "sam/sam_vit_b_01ec64.pth.json",
        "vit_l": folder / "sam/sam_vit_l_0b3195.pth.json",
        "vit_h": folder / "sam/sam_vit_h_4b8939.pth.json",
        "inception": folder / "inception/inception-2015-12-05.pt.json",
    }
    assert all(len(file.sha256) == 64 for file in published.FILES.values())
    assert all(len(revision) == 40 for revision in published.REVISIONS.values())
    marker = published.item_marker("facebook/dinov2-base", folder)
    assert marker == folder / "facebook/dinov2-base/fetched.json"


def test_a_name_is_of_the_table_or_of_the_hub_but_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vit_h", "inception", "facebook/dinov2-base", "a/b"):
        assert published.is_published(name), name
    for name in ("auto", "", "a/b/c", "./a", "../a", "/a/b", "a/", ".a/b", "a/.b", "~/a", "a b/c"):
        assert not published.is_published(name), name
    (tmp_path / "a/b").mkdir(parents=True)
    assert not published.is_published("a/b")


@pytest.mark.parametrize(
    "setting, said",
    [
        ("masks.sam xyz", "masks.sam xyz: no such file or folder, and none of vit_b, vit_l, vit_h"),
        ("embed.inception xyz", "embed.inception xyz: no such file or folder, and none of auto"),
        ("backbone.model xyz", "backbone.model xyz: no such file or folder, and no owner/name of"),
    ],
)
def test_an_unknown_name_says_what_is_known(tmp_path, setting, said):
    with pytest.raises(UserError, match=said):
        published.local("xyz", setting, tmp_path)
    assert _names(tmp_path) == set()


def test_an_existing_path_is_itself(tmp_path):
    assert published.local(str(tmp_path), "backbone.model x", tmp_path / "w") == tmp_path
    assert not (tmp_path / "w").exists()


# Single files


def test_a_file_is_fetched_whole_once_and_marked(tmp_path, server):
    path = published.fetch("vit_b", SETTING, tmp_path)
    assert path == tmp_path / "sam/sam.pth" and path.read_bytes() == CONTENT
    assert published.fetch("vit_b", SETTING, tmp_path) == path
    assert published.local("vit_b", SETTING, tmp_path) == path
    assert server.asked == [("/sam.pth", None)]
    assert _names(tmp_path) == {"sam/sam.pth", "sam/sam.pth.json"}
    assert json.loads(published.item_marker("vit_b", tmp_path).read_text()) == {
        "url": f"{server.url}/sam.pth",
        "verified": True,
        "files": [{"name": "sam.pth", "bytes": len(CONTENT), "sha256": SHA}],
    }


def test_what_is_marked_is_not_read_again_but_must_have_its_size(tmp_path, server, monkeypatch):
    path = published.local("vit_b", SETTING, tmp_path)
    monkeypatch.setattr(published, "_sha256", lambda _: pytest.fail("read"))
    assert published.local("vit_b", SETTING, tmp_path) == path
    monkeypatch.undo()
    _table(monkeypatch, f"{server.url}/sam.pth")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="damaged or another file"):
        published.local("vit_b", SETTING, tmp_path)
    path.unlink()
    assert published.local("vit_b", SETTING, tmp_path).read_bytes() == CONTENT


def test_a_broken_download_goes_on_where_it_broke(tmp_path, server):
    server.tricks = [-3000, -1500]
    assert published.fetch("vit_b", SETTING, tmp_path).read_bytes() == CONTENT
    spans = [span for _, span in server.asked]
    assert spans[0] is None and len(spans) == 3
    second, third = (int(span.removeprefix("bytes=").removesuffix("-")) for span in spans[1:])
    assert 2000 <= second <= 3000 and second + 500 <= third <= 4500


def test_a_later_run_goes_on_with_the_part_of_an_earlier_one(tmp_path, server, monkeypatch):
    monkeypatch.setattr(published, "_ATTEMPTS", 1)
    server.tricks = [-3000]
    assert f"cannot fetch {server.url}/sam.pth" in _refused(tmp_path)
    assert _names(tmp_path) == {"sam/sam.pth.part"}
    size = (tmp_path / "sam/sam.pth.part").stat().st_size
    assert 2000 <= size <= 3000
    assert published.fetch("vit_b", SETTING, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/sam.pth", None), ("/sam.pth", f"bytes={size}-")]
    assert _names(tmp_path) == {"sam/sam.pth", "sam/sam.pth.json"}


def test_a_server_without_ranges_starts_anew(tmp_path, server):
    server.tricks = [-3000, "ignore"]
    assert published.fetch("vit_b", SETTING, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 2 and server.asked[1][1]


@pytest.mark.parametrize("part, requests_made", [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_a_part_at_its_end_is_taken_and_one_beyond_it_dropped(
    tmp_path, server, part, requests_made
):
    (tmp_path / "sam").mkdir()
    (tmp_path / "sam/sam.pth.part").write_bytes(part)
    assert published.fetch("vit_b", SETTING, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == requests_made


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_server_is_asked_again(tmp_path, server, caplog, status):
    server.tricks = [status, status]
    assert published.fetch("vit_b", SETTING, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 3
    assert f"HTTP {status}; attempt 2 of 5 follows" in caplog.text


def test_a_server_that_stays_busy_is_given_up(tmp_path, server):
    server.tricks = [503] * 9
    assert "(HTTP 503)" in _refused(tmp_path)
    assert len(server.asked) == 5 and _names(tmp_path) == set()


@pytest.mark.parametrize("status", [404, 403])
def test_a_refusal_is_final(tmp_path, server, status):
    server.tricks = [status]
    assert f"(HTTP {status})" in _refused(tmp_path)
    assert len(server.asked) == 1 and _names(tmp_path) == set()


def test_wrong_bytes_are_deleted(tmp_path, server):
    server.files["/sam.pth"] = b"<html>log in to this network</html>"
    line = _refused(tmp_path)
    assert "is not the published file and was deleted" in line and SHA in line
    assert _names(tmp_path) == set()


def test_offline_one_line_says_which_file_from_where_and_where_to_put_it(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/sam.pth"
    _table(monkeypatch, url)
    assert _refused(tmp_path) == (
        f"masks.sam vit_b: cannot fetch {url} (Connection refused); download it elsewhere and put "
        f"it at {tmp_path}/sam/sam.pth, or set masks.sam to its path"
    )
    assert _names(tmp_path) == set()


def test_a_full_disk_is_refused_before_the_download(tmp_path, server, monkeypatch):
    def full(folder, size, what):
        raise UserError(f"{SETTING}: {size} for {what}")

    monkeypatch.setattr(published, "require_disk", full)
    assert _refused(tmp_path) == f"{SETTING}: {len(CONTENT)} for sam.pth"
    assert _names(tmp_path) == set()


def test_a_file_put_by_hand_is_taken_without_a_request(tmp_path, server):
    (tmp_path / "sam").mkdir()
    (tmp_path / "sam/sam.pth").write_bytes(CONTENT)
    path = published.local("vit_b", SETTING, tmp_path)
    assert path.read_bytes() == CONTENT and server.asked == []
    assert json.loads(published.item_marker("vit_b", tmp_path).read_text())["verified"] is True


def test_a_damaged_file_put_by_hand_is_refused_and_kept(tmp_path, server):
    (tmp_path / "sam").mkdir()
    (tmp_path / "sam/sam.pth").write_bytes(CONTENT[:-1])
    assert f"{tmp_path}/sam/sam.pth is damaged or another file" in _refused(tmp_path)
    assert _names(tmp_path) == {"sam/sam.pth"} and server.asked == []


def test_two_at_once_fetch_once(tmp_path, server, caplog):
    caplog.set_level("INFO")
    server.delay = 0.3
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(published.fetch("vit_b", SETTING, tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [tmp_path / "sam/sam.pth"] * 2 and found[0].read_bytes() == CONTENT
    assert len(server.asked) == 1
    assert "waiting for another process" in caplog.text


# The hub

MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "preprocessor_config.json": b"[]"}
EXTRA = {"README.md": b"#", "pytorch_model.bin": b"again", "model.fp16.safetensors": b"half"}


class Hub:
    """The hub as huggingface_hub shows it.

    Args:
        files: of its one repository.
        error: raised by whatever is asked first.
        damaged: files that come with other bytes.
    """

    def __init__(self, files=MODEL | EXTRA, error=None, damaged=()):
        self.files, self.error, self.damaged, self.calls = files, error, set(damaged), []

    def model_info(self, name, revision, files_metadata, timeout):
        self.calls.append((name, revision))
        if self.error:
            raise self.error
        files = [SimpleNamespace(rfilename=n, size=len(c)) for n, c in self.files.items()]
        return SimpleNamespace(sha="c" * 40, siblings=files)

    def snapshot_download(self, name, revision, local_dir, allow_patterns):
        for file in sorted(allow_patterns):
            path = local_dir / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"broken" if file in self.damaged else self.files[file])
        (local_dir / ".cache/huggingface").mkdir(parents=True, exist_ok=True)
        (local_dir / ".cache/huggingface/tree.json").touch()

    def verify_repo_checksums(self, name, revision, local_dir):
        wrong = [
            {"path": file}
            for file, content in self.files.items()
            if (local_dir / file).exists() and (local_dir / file).read_bytes() != content
        ]
        return SimpleNamespace(mismatches=wrong)


def _hub(monkeypatch, **what) -> Hub:
    hub = Hub(**what)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


DINO, MODEL_KEY = "facebook/dinov2-base", "backbone.model facebook/dinov2-base"


def test_a_repository_is_fetched_once_at_its_revision_and_marked(tmp_path, monkeypatch):
    hub = _hub(monkeypatch)
    folder = published.local(DINO, MODEL_KEY, tmp_path)
    assert folder == tmp_path / DINO == published.local(DINO, MODEL_KEY, tmp_path)
    assert hub.calls == [(DINO, "f9e44c814b77203eaa57a6bdbbd535f21ede1415")]
    assert _names(folder) == {*MODEL, "fetched.json"}
    marker = json.loads((folder / "fetched.json").read_text())
    assert (marker["repo"], marker["revision"], marker["verified"]) == (DINO, "c" * 40, True)
    assert marker["files"][1] == {
        "name": "model.safetensors",
        "bytes": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"] == [
        "dinov2-base"
    ]


def test_other_repositories_are_taken_at_main(tmp_path, monkeypatch):
    hub = _hub(monkeypatch)
    (tmp_path / "a/b").mkdir(parents=True)  # as Snakemake makes it
    assert published.fetch("a/b", "backbone.model a/b", tmp_path) == tmp_path / "a/b"
    assert hub.calls == [("a/b", "main")]


def test_of_a_pipeline_only_one_copy_of_the_weights_is_fetched(tmp_path, monkeypatch):
    wanted = {
        "model_index.json",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    doubles = {
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    }
    _hub(monkeypatch, files=dict.fromkeys(wanted | doubles, b"x"))
    folder = published.fetch("a/sd", "source.model a/sd", tmp_path)
    assert _names(folder) == wanted | {"fetched.json"}


def test_a_repository_without_safetensors_is_refused(tmp_path, monkeypatch):
    _hub(monkeypatch, files={"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    assert "has no *.safetensors" in _refused(tmp_path, "a/b", "backbone.model a/b")


def test_damaged_files_of_a_repository_are_named_and_fetched_again(tmp_path, monkeypatch):
    hub = _hub(monkeypatch, damaged=["model.safetensors"])
    line = _refused(tmp_path, DINO, MODEL_KEY)
    assert "model.safetensors of facebook/dinov2-base came damaged" in line
    assert _names(tmp_path / "facebook/dinov2-base.part") >= {"config.json"}
    assert not (tmp_path / DINO).exists()
    hub.damaged.clear()
    assert (published.fetch(DINO, MODEL_KEY, tmp_path) / "model.safetensors").exists()


def _answer(status: int) -> SimpleNamespace:
    return SimpleNamespace(headers={}, request=None, status_code=status)


def _offline() -> Exception:
    error = errors.LocalEntryNotFoundError("Cannot find a snapshot.\nSee the documentation.")
    error.__cause__ = errors.OfflineModeIsEnabled("Cannot reach the hub")
    return error


@pytest.mark.parametrize(
    "error, reason, calls",
    [
        (_offline(), "HF_HUB_OFFLINE is set", 1),
        (errors.OfflineModeIsEnabled("Cannot reach\nthe hub"), "HF_HUB_OFFLINE is set", 1),
        (errors.LocalEntryNotFoundError("Got: trouble\nand more"), "Got: trouble", 1),
        (ConnectionError(111, "Connection refused"), "Connection refused", 1),
        (requests.ConnectionError("no route"), "no route", 5),
        (errors.HTTPError("no name"), "no name", 5),
        (errors.HfHubHTTPError("Bad\nday", response=_answer(502)), "HTTP 502", 5),
        (errors.HfHubHTTPError("No\nway", response=_answer(403)), "HTTP 403", 1),
        (errors.RepositoryNotFoundError("a\nb", response=_answer(401)), "no such repository", 1),
        (errors.GatedRepoError("a\nb", response=_answer(403)), "access must be asked for", 1),
        (errors.RevisionNotFoundError("a\nb", response=_answer(404)), "no such revision", 1),
        (errors.HFValidationError("bad name"), "bad name", 1),
        (errors.XetDownloadError("cut off"), "cut off", 1),
    ],
)
def test_without_the_hub_one_line_says_what_to_put_where(
    tmp_path, monkeypatch, error, reason, calls
):
    hub = _hub(monkeypatch, error=error)
    line = _refused(tmp_path, DINO, MODEL_KEY)
    revision = published.REVISIONS[DINO]
    assert f"cannot fetch https://huggingface.co/{DINO}, revision {revision} ({reason}" in line
    assert "put config.json and model.safetensors" in line and f"into {tmp_path / DINO}" in line
    assert line.endswith("or set backbone.model to its folder")
    assert len(hub.calls) == calls and _names(tmp_path) == set()


def test_the_hubs_own_offline_mode_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set)" in _refused(tmp_path, DINO, MODEL_KEY)


def test_a_folder_put_by_hand_is_taken_and_called_unverified(tmp_path, monkeypatch):
    hub = _hub(monkeypatch, error=AssertionError())
    folder = tmp_path / DINO
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".cache/huggingface/tree.json").touch()
    for name, content in (MODEL | EXTRA).items():
        (folder / name).write_bytes(content)
    assert published.local(DINO, MODEL_KEY, tmp_path) == folder and hub.calls == []
    marker = json.loads((folder / "fetched.json").read_text())
    assert marker["verified"] is False and marker["revision"] is None
    named = {file["name"] for file in marker["files"]}
    assert named == {*MODEL, "model.fp16.safetensors"}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_half_a_folder_put_by_hand_is_refused_and_kept(tmp_path, monkeypatch, missing):
    hub = _hub(monkeypatch)
    (tmp_path / DINO).mkdir(parents=True)
    for name in MODEL.keys() - {missing}:
        (tmp_path / DINO / name).write_bytes(MODEL[name])
    assert f"{tmp_path / DINO} lacks" in _refused(tmp_path, DINO, MODEL_KEY)
    assert _names(tmp_path / DINO) == MODEL.keys() - {missing} and hub.calls == []


def test_the_hub_is_asked_only_where_a_repository_can_be_meant(tmp_path, monkeypatch):
    hub = _hub(monkeypatch)
    for setting in ("masks.sam", "embed.inception"):
        with pytest.raises(UserError, match=f"{setting} checkpoints/sam.pth: no such file"):
            published.local("checkpoints/sam.pth", f"{setting} checkpoints/sam.pth", tmp_path)
    assert hub.calls == [] and not published.is_published("checkpoints/sam.pth", hub=False)


# The step


def test_the_step_fetches_marks_and_keeps_its_provenance(tmp_path, server, monkeypatch):
    words = ["--network", "vit_b", "--setting", "masks.sam", "--out", str(tmp_path / "runs")]
    words += ["--weights", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["weights", *words])
    run(step.main)
    assert _names(tmp_path) == {"sam/sam.pth", "sam/sam.pth.json", "runs/weights.run.json"}
    server.files.clear()
    monkeypatch.setattr(sys, "argv", ["weights", *words[:-1], str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="^error: masks.sam vit_b: cannot fetch .*HTTP 404[^\n]*$"):
        run(step.main)


def test_the_step_with_the_real_client_of_the_hub(tmp_path, server):
    """The calls that fakes stand for above, against a hub of three answers."""
    commit, tree = "c" * 40, []
    for name, content in (MODEL | EXTRA).items():
        server.files[f"/a/b/resolve/{commit}/{name}"] = content
        tree.append({"type": "file", "path": name, "size": len(content), "oid": _git_sha1(content)})
    files = [
        {"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]} for file in tree
    ]
    info = {"id": "a/b", "modelId": "a/b", "sha": commit, "siblings": files}
    server.answers["/api/models/a/b/revision/main"] = info
    server.answers[f"/api/models/a/b/tree/{commit}"] = tree
    hub = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-m", "mirage_steps.weights", "--network", "a/b"]
        + ["--setting", "backbone.model", "--out", str(tmp_path / "runs")]
        + ["--weights", str(tmp_path)],
        env=os.environ | hub | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert _names(tmp_path / "a/b") == {*MODEL, "fetched.json"}
    assert json.loads((tmp_path / "a/b/fetched.json").read_text())["verified"] is True
    assert {path: (tmp_path / "a/b" / path).read_bytes() for path in MODEL} == MODEL
