"""Published weights: fetched once, checked, resumed; offline, one line. All over loopback."""

import hashlib
import http.server
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from mirage_steps import weights as step
from mirage_steps.errors import UserError
from mirage_steps.files.command import run
from mirage_steps.networks import fetching

CONTENT = bytes(range(256)) * 20
SHA = hashlib.sha256(CONTENT).hexdigest()
DINO, KEY = "facebook/dinov2-base", "backbone.model"
MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "preprocessor_config.json": b"[]"}
EXTRA = {"README.md": b"#", "pytorch_model.bin": b"again", "model.fp16.safetensors": b"half"}
COMMIT = "c" * 40


@dataclass
class Server:
    """What the local server holds, what it is told to do, and what it was asked for."""

    url: str
    files: dict[str, bytes]  # path -> content
    # One for each GET to come: a status, or minus the bytes left out as the connection breaks.
    tricks: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and range of each GET
    delay: float = 0  # seconds before each answer

    def publish(self, name: str, files: dict[str, bytes], revision: str = "main") -> None:
        """Hold a repository as the Hugging Face hub does."""
        tree = [
            {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
            for path, content in files.items()
        ]
        siblings = [{"rfilename": file["path"], "size": file["size"]} for file in tree]
        info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
        self.files[f"/api/models/{name}/revision/{revision}"] = json.dumps(info).encode()
        self.files[f"/api/models/{name}/tree/{COMMIT}"] = json.dumps(tree).encode()
        for path, content in files.items():
            self.files[f"/{name}/resolve/{COMMIT}/{path}"] = content


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves files with ranges, and the tricks."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._send()

    def do_GET(self):
        state = self.server.state
        state.asked.append((self.path.partition("?")[0], self.headers["Range"]))
        threading.Event().wait(state.delay)
        trick = state.tricks.pop(0) if state.tricks else 0
        if trick > 0:
            self.send_error(trick)
        else:
            self._send(self.headers["Range"], trick)

    def _send(self, span=None, left_out=0):
        content = self.server.state.files.get(self.path.partition("?")[0])
        if content is None:
            self.send_error(404)
            return
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if start >= len(content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{_git_sha1(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start : left_out or None])


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
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def server(monkeypatch):
    """A server of one file, which the table names ``vit_b``; it is the hub, too."""
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state = Server(f"http://127.0.0.1:{listening.server_port}", {"/sam.pth": CONTENT})
    listening.state = state
    _table(monkeypatch, f"{state.url}/sam.pth")
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    template = f"{state.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    yield state
    listening.shutdown()
    listening.server_close()
    thread.join(5)


def _table(monkeypatch, url: str) -> None:
    file = replace(fetching.FILES["vit_b"], url=url, size=len(CONTENT), sha256=SHA)
    monkeypatch.setitem(fetching.FILES, "vit_b", file)


def _sam(folder: Path) -> Path:
    return fetching.resolve("vit_b", "masks.sam", folder)


def _refused(folder: Path, name: str = "vit_b", key: str = "masks.sam") -> str:
    """The one line with which fetching ends; nothing is complete."""
    with pytest.raises(UserError) as error:
        fetching.resolve(name, key, folder)
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"{key} {name}: ")
    assert not fetching.is_complete(name, folder)
    return line


def _names(folder: Path) -> set[str]:
    """Files below a folder but for the locks, which stay and are empty."""
    paths = {path for path in folder.rglob("*") if path.is_file()}
    assert all(path.stat().st_size == 0 for path in paths if path.suffix == ".lock")
    return {path.relative_to(folder).as_posix() for path in paths if path.suffix != ".lock"}


# Names


def test_the_table_places_every_published_file():
    names = ("vit_b", "vit_l", "vit_h", "inception", DINO)
    assert [str(fetching.place(name, Path("w"))) for name in names] == [
        "w/sam/sam_vit_b_01ec64.pth",
        "w/sam/sam_vit_l_0b3195.pth",
        "w/sam/sam_vit_h_4b8939.pth",
        "w/inception/inception-2015-12-05.pt",
        "w/facebook/dinov2-base",
    ]
    assert all(len(file.sha256) == 64 for file in fetching.FILES.values())
    assert all(len(revision) == 40 for revision in fetching.REVISIONS.values())


def test_a_name_is_of_the_table_or_of_the_hub_but_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vit_h", "inception", DINO, "a/b"):
        assert fetching.is_published(name, KEY), name
    for name in ("auto", "", "a/b/c", "./a", "../a", "/a/b", "a/", ".a/b", "a/.b", "~/a", "a b/c"):
        assert not fetching.is_published(name, KEY), name
    (tmp_path / "a/b").mkdir(parents=True)
    assert not fetching.is_published("a/b", KEY)
    assert fetching.resolve("a/b", KEY, tmp_path / "w") == Path("a/b")


@pytest.mark.parametrize(
    "key, name, choices",
    [
        ("masks.sam", "checkpoints/sam.pth", "none of vit_b, vit_l, vit_h"),
        ("embed.inception", "a/b", "none of auto"),
        ("backbone.model", "xyz", "no owner/name of the Hugging Face hub"),
    ],
)
def test_an_unknown_name_says_what_is_known(tmp_path, server, key, name, choices):
    line = _refused(tmp_path, name, key)
    assert line == f"{key} {name}: no such file or folder, and {choices}"
    assert _names(tmp_path) == set() and server.asked == []


# Single files


def test_a_file_is_fetched_whole_once_and_marked(tmp_path, server):
    path = _sam(tmp_path)
    assert path == tmp_path / "sam/sam.pth" and path.read_bytes() == CONTENT
    assert _sam(tmp_path) == path and server.asked == [("/sam.pth", None)]
    assert _names(tmp_path) == {"sam/sam.pth", "vit_b.json"}
    marker = json.loads((tmp_path / "vit_b.json").read_text())
    assert marker == {
        "url": f"{server.url}/sam.pth",
        "fetched": True,
        "bytes": {"sam.pth": len(CONTENT)},
        "sha256": {"sam.pth": SHA},
    }
    path.unlink()
    assert not fetching.is_complete("vit_b", tmp_path) and _sam(tmp_path).exists()


def test_a_broken_download_goes_on_where_it_broke(tmp_path, server):
    server.tricks = [-3120, -1620]
    assert _sam(tmp_path).read_bytes() == CONTENT
    assert [span for _, span in server.asked] == [None, "bytes=2000-", "bytes=3500-"]


def test_a_later_run_resumes_the_part_of_an_earlier_one(tmp_path, server):
    server.tricks = [-3120, 503]
    assert f"cannot fetch {server.url}/sam.pth" in _refused(tmp_path)
    assert _names(tmp_path) == {"sam/sam.pth.part"}
    server.asked.clear()
    assert _sam(tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/sam.pth", "bytes=2000-")]
    assert _names(tmp_path) == {"sam/sam.pth", "vit_b.json"}


def test_a_whole_part_is_taken_and_wrong_bytes_are_deleted(tmp_path, server):
    (tmp_path / "sam").mkdir()
    part = tmp_path / "sam/sam.pth.part"
    for wrong in (CONTENT + b"more", CONTENT[:1000] + bytes(2000)):
        part.write_bytes(wrong)
        line = _refused(tmp_path)
        assert f"cannot fetch {server.url}/sam.pth (its SHA-256 is " in line and SHA in line
        assert _names(tmp_path) == set()
    part.write_bytes(CONTENT)
    assert _sam(tmp_path).read_bytes() == CONTENT and not part.exists()


def test_offline_one_line_says_which_file_from_where_and_where_to_put_it(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/sam.pth"
    _table(monkeypatch, url)
    assert _refused(tmp_path) == (
        f"masks.sam vit_b: cannot fetch {url} ([Errno 111] Connection refused); download it "
        f"elsewhere and put it at {tmp_path}/sam/sam.pth, or set masks.sam to its path"
    )


def test_a_full_disk_is_refused_before_the_download(tmp_path, server, monkeypatch):
    file = replace(fetching.FILES["vit_b"], size=1e18)
    monkeypatch.setitem(fetching.FILES, "vit_b", file)
    with pytest.raises(UserError, match="sam.pth needs 1000000.0 TB"):
        _sam(tmp_path)
    assert server.asked == [] and _names(tmp_path) == set()


def test_a_file_put_by_hand_is_taken_without_a_request_unless_damaged(tmp_path, server):
    (tmp_path / "sam").mkdir()
    path = tmp_path / "sam/sam.pth"
    path.write_bytes(CONTENT[:-1])
    assert f"{path} is not that of {server.url}/sam.pth" in _refused(tmp_path)
    assert _names(tmp_path) == {"sam/sam.pth"}
    path.write_bytes(CONTENT)
    assert _sam(tmp_path) == path and server.asked == []
    assert json.loads((tmp_path / "vit_b.json").read_text())["fetched"] is False


def test_a_file_truncated_since_is_fetched_to_its_end(tmp_path, server, caplog):
    path = _sam(tmp_path)
    path.write_bytes(CONTENT[:2000])
    assert not fetching.is_complete("vit_b", tmp_path)
    server.asked.clear()
    assert _sam(tmp_path) == path and path.read_bytes() == CONTENT
    assert server.asked == [("/sam.pth", "bytes=2000-")] and "is damaged" in caplog.text
    assert fetching.is_complete("vit_b", tmp_path)


def test_a_marker_without_sizes_is_written_again_after_a_check(tmp_path, server):
    path, marker = _sam(tmp_path), tmp_path / "vit_b.json"
    new = marker.read_text()
    old = json.loads(new)
    del old["bytes"]
    server.asked.clear()
    for text in (json.dumps(old), json.dumps(old | {"bytes": 5})):
        marker.write_text(text)
        assert not fetching.is_complete("vit_b", tmp_path)
        assert _sam(tmp_path) == path and server.asked == [] and marker.read_text() == new
    marker.write_text("{")
    assert _sam(tmp_path) == path and json.loads(marker.read_text())["fetched"] is False


def test_two_at_once_fetch_once(tmp_path, server):
    server.delay, found = 0.3, []
    threads = [threading.Thread(target=lambda: found.append(_sam(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [tmp_path / "sam/sam.pth"] * 2 and found[0].read_bytes() == CONTENT
    assert len(server.asked) == 1


# Repositories of the hub


def test_a_repository_is_fetched_once_at_its_revision_and_marked(tmp_path, server):
    revision = fetching.REVISIONS[DINO]
    server.publish(DINO, MODEL | EXTRA, revision)
    folder = fetching.resolve(DINO, KEY, tmp_path)
    assert folder == tmp_path / DINO and _names(folder) == MODEL.keys()
    assert {name: (folder / name).read_bytes() for name in MODEL} == MODEL
    assert _names(tmp_path) == {f"{DINO}.json", *(f"{DINO}/{name}" for name in MODEL)}
    marker = json.loads((tmp_path / f"{DINO}.json").read_text())
    assert marker["url"] == f"{server.url}/{DINO}/tree/{COMMIT}"
    named = {f"dinov2-base/{name}": content for name, content in MODEL.items()}
    assert marker["bytes"] == {name: len(content) for name, content in named.items()}
    assert marker["sha256"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in named.items()
    }
    server.asked.clear()
    assert fetching.resolve(DINO, KEY, tmp_path) == folder and server.asked == []


def test_of_a_pipeline_only_one_copy_of_the_weights_is_fetched(tmp_path, server):
    wanted = {"model_index.json", "unet/config.json", "unet/model.safetensors"}
    ends = ("bin", "fp16.safetensors", "non_ema.safetensors")
    doubles = {"v1-5-pruned.safetensors", *(f"unet/model.{end}" for end in ends)}
    server.publish("a/sd", dict.fromkeys(wanted | doubles, b"x"))
    assert _names(fetching.resolve("a/sd", "source.model", tmp_path)) == wanted


def test_a_broken_repository_is_completed_by_a_later_run(tmp_path, server):
    server.publish("a/b", MODEL)
    weights = f"/a/b/resolve/{COMMIT}/model.safetensors"
    content = server.files.pop(weights)
    _refused(tmp_path, "a/b", KEY)
    assert not (tmp_path / "a/b").exists()
    server.files[weights] = content
    server.asked.clear()
    assert _names(fetching.resolve("a/b", KEY, tmp_path)) == MODEL.keys()
    assert [path for path, _ in server.asked if "resolve" in path] == [weights]


def test_damaged_files_of_a_repository_are_named_and_fetched_again(tmp_path, server):
    server.publish("a/b", MODEL)
    weights = f"/a/b/resolve/{COMMIT}/model.safetensors"
    server.files[weights] = b"WEIGHTS"
    line = _refused(tmp_path, "a/b", KEY)
    assert "(model.safetensors came damaged or not at all; try again)" in line
    assert not (tmp_path / "a/b").exists()
    assert not (tmp_path / "a/b.part/model.safetensors").exists()
    server.files[weights] = b"weights"
    server.asked.clear()
    folder = fetching.resolve("a/b", KEY, tmp_path)
    assert {name: (folder / name).read_bytes() for name in MODEL} == MODEL
    assert [path for path, _ in server.asked if "resolve" in path] == [weights]


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("content", [b"wei", None])
def test_a_repository_damaged_since_is_fetched_again(tmp_path, server, content, sizes):
    server.publish("a/b", MODEL)
    folder = fetching.resolve("a/b", KEY, tmp_path)
    marker = tmp_path / "a/b.json"
    new = marker.read_text()
    if not sizes:
        old = json.loads(new)
        del old["bytes"]
        marker.write_text(json.dumps(old))
    (folder / "model.safetensors").unlink()
    if content:
        (folder / "model.safetensors").write_bytes(content)
    assert not fetching.is_complete("a/b", tmp_path)
    assert fetching.resolve("a/b", KEY, tmp_path) == folder and marker.read_text() == new
    assert {name: (folder / name).read_bytes() for name in MODEL} == MODEL
    assert _names(tmp_path / "a") == {"b.json", *(f"b/{name}" for name in MODEL)}


def test_without_the_hub_one_line_says_what_to_put_where(tmp_path, server, monkeypatch):
    line = _refused(tmp_path, DINO, KEY)
    revision = fetching.REVISIONS[DINO]
    assert f"cannot fetch {server.url}/{DINO}/tree/{revision} (" in line and "404" in line
    assert line.endswith(f"put it at {tmp_path / DINO}, or set backbone.model to its path")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.asked.clear()
    assert "HF_HUB_OFFLINE" in _refused(tmp_path, DINO, KEY)
    assert "HF_HUB_OFFLINE" in _refused(tmp_path)
    assert server.asked == []


def test_a_folder_put_by_hand_is_taken_if_it_holds_a_model(tmp_path, server, caplog):
    caplog.set_level("INFO", logger="mirage_steps")
    folder = tmp_path / DINO
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache/tree.json").touch()
    line = _refused(tmp_path, DINO, KEY)
    assert f"{folder} is not that of" in line
    assert "(it lacks config.json or model_index.json)" in line
    (folder / "model.safetensors").write_bytes(b"weights")
    assert "(it lacks config.json or model_index.json)" in _refused(tmp_path, DINO, KEY)
    (folder / "model.safetensors").rename(tmp_path / "kept")
    (folder / "config.json").write_bytes(b"{}")
    assert "(it lacks *.safetensors)" in _refused(tmp_path, DINO, KEY)
    (tmp_path / "kept").rename(folder / "model.safetensors")
    assert fetching.resolve(DINO, KEY, tmp_path) == folder and server.asked == []
    assert "checking the local copy" in caplog.text
    marker = json.loads((tmp_path / f"{DINO}.json").read_text())
    assert marker["fetched"] is False
    assert marker["bytes"] == {"dinov2-base/config.json": 2, "dinov2-base/model.safetensors": 7}
    (folder / "model.safetensors").unlink()
    assert "(it lacks *.safetensors)" in _refused(tmp_path, DINO, KEY) and server.asked == []


# Steps


def _step(*, sam: str, out: Path, weights: Path) -> None:
    """A step with a network."""
    fetching.resolve(sam, "masks.sam", weights)


def test_the_step_fetches_and_others_name_the_file_in_their_provenance(
    tmp_path, server, monkeypatch
):
    words = ["step", "--out", str(tmp_path / "out"), "--weights", str(tmp_path)]
    fetching_words = [*words, "--network", "vit_b", "--setting", "masks.sam"]
    server.tricks = [404]
    monkeypatch.setattr(sys, "argv", fetching_words)
    with pytest.raises(SystemExit, match="^error: masks.sam vit_b: cannot fetch .*404[^\n]*$"):
        run(step.main)
    run(step.main)
    assert _names(tmp_path) == {"sam/sam.pth", "vit_b.json", "out/weights.run.json"}
    monkeypatch.setattr(sys, "argv", [*words, "--sam", "vit_b"])
    run(_step)
    (record,) = (tmp_path / "out").glob("*test_weights.run.json")
    network = json.loads(record.read_text())["networks"]["sam"]
    assert network == json.loads((tmp_path / "vit_b.json").read_text())
