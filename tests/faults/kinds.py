"""The kinds of faults: each draws one from a generator, lets it happen, and says what came of it.

Every function takes the random generator, a :class:`Sandbox` and the steps of the miniature, and
returns what was done and the outcome: ``same`` (as without the fault, to the byte), ``refused``
(one line and exit code 1), ``handled`` (bad files listed, the rest done), or ``FORBIDDEN ...``.
"""

import io
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from sandbox import CORES, ROOT, RUN, SECONDS, Command, Sandbox, last_line, misbehavior, run_process

Fault = tuple[str, str]
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "JPEG2000")
_LETTERS = (
    "a", "Z", "7", " ", "  ", "\n", "\r", "\t", "'", '"', "`", "$", "$(touch PWNED)", "{x}", "<y>",
    "%", "%41", "=", "&", ";", "|", "*", "?", "[z]", "\\", "!", "#", "~", "-", "--out", ",", ".",
    "\u202f", "\u00a0", "\u3000", "\u2028", "\u200d", "é", "e\u0301", "ß", "漢", "👩\u200d🚗",
    "\x01", "\x7f", "\udcff", "\udc80",
)  # fmt: skip


def some_command(rng: random.Random, commands: list[Command], *names: str) -> Command:
    """Any step, or one of these."""
    return rng.choice([one for one in commands if not names or one.name in names])


# --- processes ----------------------------------------------------------------------------------


def kill(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """A signal at any moment; the step run again must end as if nothing had been."""
    command = some_command(rng, commands)
    if fresh := rng.random() < 0.7:
        box.clear(command)
    number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    started = box.start(command)
    delay = rng.uniform(0, 2.5 if command.name == "train" else 0.8)
    time.sleep(delay)
    send(started[0], number)
    result = box.wait(started)
    what = f"{number.name} after {delay:.2f} s of {command.name}, {'new' if fresh else 'again'}"
    # The signal itself ends a step that has not begun.
    if result.code != -number and (wrong := misbehavior(result)):
        return what, wrong
    wrong = box.whole(command) or ("" if fresh else box.lost(command))
    return what, wrong or box.judge(command, box.run(command), refusable=False)


def send(process: int, number: int) -> None:
    """Send a signal to all processes of a step, if it still runs."""
    try:
        os.killpg(process, number)
    except ProcessLookupError:
        pass


def two_at_once(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """The same step twice at the same time."""
    command = some_command(rng, commands)
    box.clear(command)
    first = box.start(command)
    time.sleep(rng.uniform(0, 0.4))
    second = box.start(command)
    results = box.wait(first), box.wait(second)
    outcomes = [box.judge(command, one, refusable=command.name == "train") for one in results]
    if all(outcome == "refused" for outcome in outcomes):
        outcomes = ["FORBIDDEN both refused"]
    wrong = [outcome for outcome in outcomes if outcome.startswith("FORBIDDEN")]
    return f"two of {command.name}", wrong[0] if wrong else "same"


def stop(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """A process that sleeps, for a training longer than its lock is held for alive."""
    command = some_command(rng, commands, "train", "views", "features", "novel_views", "masks")
    box.clear(command)

    def impatient() -> None:
        import mirage_steps.files.lock as lock

        lock.Lock.__init__.__defaults__ = (0.1, 1.0)  # the beat and its limit, for 10 and 60 s

    first = box.start(command, patch=impatient)
    time.sleep(rng.uniform(0.05, 1.0))
    send(first[0], signal.SIGSTOP)
    other = command.name == "train" and rng.random() < 0.7
    second = box.start(command, patch=impatient) if other else None
    time.sleep(rng.uniform(0.5, 2.5))
    send(first[0], signal.SIGCONT)
    outcomes = [box.judge(command, box.wait(first), refusable=other)]
    outcomes += [box.judge(command, box.wait(second))] if second else []
    wrong = [outcome for outcome in outcomes if outcome.startswith("FORBIDDEN")]
    if not wrong and "same" not in outcomes:
        wrong = [box.judge(command, box.run(command), refusable=False)]
    return f"{command.name} stopped{', another started' if other else ''}", (wrong or ["same"])[0]


def clock(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """A clock that jumps, and files from the future."""
    command = some_command(rng, commands)
    box.clear(command)
    jumps, real = [rng.uniform(-1e8, 1e8) for _ in range(50)], time.time
    for path in command.inputs:
        if path.exists() and path.is_file():
            os.utime(box.own(path), times=(real() + jumps[0], real() + jumps[0]))

    def jumping() -> None:
        time.time = lambda: real() + jumps[int(real() * 20) % len(jumps)]

    result = box.run(command, patch=jumping)
    return f"jumping clock in {command.name}", box.judge(command, result, refusable=False)


# --- the disk -----------------------------------------------------------------------------------


def full_disk(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """Writes fail beyond a size; with room the step run again must end as if nothing had been."""
    command = some_command(rng, commands)
    largest = max([(box.golden / path).stat().st_size for path in box.outputs(command)] + [1])
    if fresh := rng.random() < 0.7:
        box.clear(command)
    # A semaphore of Python's takes 32 bytes, on another disk.
    limit = int(10 ** rng.uniform(2, max(2.1, np.log10(1.2 * largest))))
    result = box.run(command, limits={resource.RLIMIT_FSIZE: limit})
    what = f"{command.name} may write {limit} of {largest} bytes"
    outcome = box.judge(command, result)
    if outcome == "refused" and str(command.out) not in last_error(result.text):
        outcome = f"FORBIDDEN without path: {last_error(result.text)}"
    if not fresh and (lost := box.lost(command)):
        return what, lost
    if outcome.startswith("FORBIDDEN"):
        return what, outcome
    again = box.judge(command, box.run(command), refusable=False)
    return what, outcome if again == "same" else again


def last_error(text: str) -> str:
    """The last line that begins with error."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    return errors[-1] if errors else last_line(text)


# --- damaged files ------------------------------------------------------------------------------


def damage(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """One file that a step reads is damaged at any byte."""
    command = some_command(rng, commands)
    found = [p for p in command.inputs if (box.folder / p).is_file()]
    if command.name not in ("dataset", "features", "crops") and rng.random() < 0.15:
        found = []
    if not found:
        return damaged_network(rng, box, commands)
    path = rng.choice(found)
    box.clear(command)
    how = spoil(rng, box.own(path))
    result = box.run(command)
    return f"{path} {how}, read by {command.name}", judge_damage(box, command, result)


def damaged_network(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """One file of an embedded network is damaged."""
    command = some_command(rng, commands, "features", "masks", "embed", "novel_views")
    name = "stand-in-sam-cars" if command.name == "masks" else "stand-in-dinov2-cars"
    folder = box.folder / "weights"
    folder.unlink()
    for path in (ROOT / "weights").rglob("*"):
        if path.is_file():
            place = folder / path.relative_to(ROOT / "weights")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    read = ["config.json", "model.safetensors", "preprocessor_config.json"]
    path = folder / name / rng.choice(read[1:2] if command.name == "masks" else read)
    box.clear(command)
    how = spoil(rng, path, flips=False)  # other values are another network
    result = box.run(command)
    return f"{path.name} {how}, read by {command.name}", judge_damage(box, command, result)


def judge_damage(box: Sandbox, command: Command, result) -> str:
    """As :meth:`Sandbox.judge`; a table that was changed counts as edited where that was said."""
    outcome = box.judge(command, result)
    if outcome.startswith("FORBIDDEN wrong result") and "changed since" in result.text:
        return "handled"
    return outcome


def spoil(rng: random.Random, path: Path, flips: bool = True) -> str:
    """Damage a file; says how."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content)) if content else 0
    kinds = ["cut", "garbage", "empty", "longer"]
    how = rng.choice(kinds + ["zeroed", *["flipped"] * 3] * flips)
    if how == "cut":
        content = content[:place]
    elif how == "zeroed":
        end = min(len(content), place + rng.choice([1, 16, 512, 4096]))
        content[place:end] = bytes(end - place)
    elif how == "garbage":
        content = bytearray(rng.randbytes(min(len(content), 100_000)))
    elif how == "empty":
        content = bytearray()
    elif how == "longer":
        content += rng.randbytes(rng.choice([1, 100, 5000]))
    elif content:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"{how} at {place}"


# --- what users bring ---------------------------------------------------------------------------


def hostile_images(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """Mutated images among good ones: listed with a reason or used, and then usable."""
    folder = box.folder / "photos in"
    folder.mkdir()
    for number in range(3):
        (folder / f"good{number}.png").write_bytes(picture(rng, "PNG"))
    kinds = []
    for number in range(4):
        kind = rng.choice(_FORMATS)
        content = mutated(rng, picture(rng, kind))
        suffix = rng.choice([kind.lower(), "jpg", "png", "JPG", "nef", "heic", "txt"])
        (folder / f"bad{number}.{suffix}").write_bytes(content)
        kinds.append(kind)
    what = f"mutated {', '.join(kinds)}"
    listing = Command("mirage_steps.dataset", ("--out", "listed", "folder", "--path", str(folder)))
    result = box.run(listing)
    if wrong := misbehavior(result) or ("" if result.code == 0 else last_line(result.text)):
        return what, wrong if wrong.startswith("FORBIDDEN") else f"FORBIDDEN {wrong}"
    listed = table(box.folder / "listed/manifest.csv")
    rejected = table(box.folder / "listed/rejected.csv")
    if len(listed) + len(rejected) != 7:
        return what, f"FORBIDDEN {len(listed)} listed and {len(rejected)} rejected of 7"
    if any("Traceback" in reason or not reason for _, reason in rejected):
        return what, "FORBIDDEN reason"
    return what, then_features(box, "listed")


def then_features(box: Sandbox, listed: str) -> str:
    """Whether the next step can read what was listed."""
    weights = str(ROOT / "weights/stand-in-dinov2-cars")
    words = ("--manifest", f"{listed}/manifest.csv", "--out", "read", "--model", weights)
    result = box.run(Command("mirage_steps.features", (*words, "--resolution", "64")))
    if wrong := misbehavior(result):
        return wrong
    return "handled" if result.code == 0 else f"FORBIDDEN features: {last_line(result.text)}"


def hostile_photos(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """A mutated photo among good ones for novel views."""
    photos = []
    for number in range(2):
        kind = rng.choice(_FORMATS)
        photos.append(box.folder / f"photo{number}.{kind.lower()}")
        content = picture(rng, kind)
        photos[-1].write_bytes(content if number == 0 else mutated(rng, content))
    words = (*map(str, photos), "--run", str(RUN), "--out", "shown", "--steps", "2")
    result = box.run(Command("mirage_steps.novel_views", words))
    what = f"photos {photos[0].suffix} and mutated {photos[1].suffix}"
    if wrong := misbehavior(result):
        return what, wrong
    made = {path.stem for path in (box.folder / "shown").glob("*.png")}
    return what, "handled" if "photo0" in made else f"FORBIDDEN none made: {last_line(result.text)}"


def hostile_names(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """Names of any letters a file system takes: every one must go all the way."""
    folder = box.folder / "named"
    folder.mkdir()
    names = set()
    while len(names) < 4:
        name = "".join(rng.choice(_LETTERS) for _ in range(rng.choice([1, 3, 8, 40])))
        name = f"x{name}".replace("/", "")[: rng.choice([20, 120])] + rng.choice([".png", ".PNG"])
        if len(os.fsencode(name)) <= 255:
            names.add(name)
    for name in names:
        (folder / name).write_bytes(picture(rng, "PNG"))
    what = f"names {sorted(map(ascii, names))}"
    listing = Command("mirage_steps.dataset", ("--out", "listed", "folder", "--path", str(folder)))
    result = box.run(listing)
    if wrong := misbehavior(result):
        return what, wrong
    if len(table(box.folder / "listed/manifest.csv")) != len(names):
        return what, f"FORBIDDEN not all listed: {table(box.folder / 'listed/rejected.csv')}"
    if (outcome := then_features(box, "listed")).startswith("FORBIDDEN"):
        return what, outcome
    photo = str(folder / rng.choice(sorted(names)))
    words = (photo, "--run", str(RUN), "--out", "shown", "--steps", "2")
    result = box.run(Command("mirage_steps.novel_views", words))
    if wrong := misbehavior(result):
        return what, wrong
    made = list((box.folder / "shown").glob("*.png"))
    return what, "handled" if made else f"FORBIDDEN photo: {last_line(result.text)}"


def hostile_labels(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """A mutated table of true azimuths."""
    command = some_command(rng, commands, "pose_eval")
    images = [row[0] for row in table(box.folder / RUN / "manifest.csv")]
    rows = [f"{name},{rng.uniform(-400, 800):.1f}" for name in images]
    content = "\n".join(["image,azimuth_deg", *rows, ""]).encode(rng.choice(["utf-8", "utf-16"]))
    (box.folder / "labels.csv").write_bytes(mutated(rng, content))
    words = (*command.arguments, "--labels", "labels.csv", "--out", "scored")
    result = box.run(Command(command.module, words))
    return "mutated labels", misbehavior(result) or ("handled" if result.code == 0 else "refused")


def hostile_configuration(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """A mutated configuration, read by the tools."""
    path = box.folder / "hostile.yaml"
    path.write_bytes(configuration(rng))
    result = run_process(
        [sys.executable, "-m", "mirage_steps.tools.status", "--configfile", "hostile.yaml"],
        box.folder,
    )
    what = f"configuration {path.read_bytes()[:200]!r}"
    return what, misbehavior(result) or ("handled" if result.code == 0 else "refused")


def configuration(rng: random.Random) -> bytes:
    """A valid configuration with some mutations, of its values or of its bytes."""
    content = (ROOT / "tests/mini.yaml").read_bytes()
    if rng.random() < 0.4:
        return mutated(rng, content)
    values: list = [None, True, -1, 0, 2**40, 1e300, "", "x", "1e6", [], {}, [1], {"a": 1}, "no"]
    data = yaml.safe_load(content)
    for _ in range(rng.choice([1, 2, 5])):
        node = data
        while True:
            key = rng.choice(list(node))
            if isinstance(node[key], dict) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            break
        if (how := rng.random()) < 0.5:
            node[key] = rng.choice(values)
        elif how < 0.75:
            node[rng.choice([f"{key}s", 7, "", "poses", None, "é"])] = node.pop(key)
        else:
            del node[key]
        if not isinstance(data, dict) or not data:
            break
    return yaml.safe_dump(data).encode()


def picture(rng: random.Random, kind: str) -> bytes:
    """A small image in a format of Pillow's."""
    side = rng.choice([17, 40, 96])
    pixels = np.frombuffer(rng.randbytes(side * side * 3), np.uint8).reshape(side, side, 3)
    image = Image.fromarray(pixels // 4 + 90)
    image.paste((200, 30, 40), (side // 4, side // 4, side // 2 + 2, side // 2 + 2))
    if kind not in ("JPEG", "PPM", "BMP") and rng.random() < 0.3:
        image = image.convert(rng.choice(["L", "P"] if kind != "JPEG2000" else ["L"]))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Content after one to five mutations of its bytes."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(data) + 1)
        how = rng.randrange(6)
        if how == 0 and data:
            data[place % len(data)] = rng.randrange(256)
        elif how == 1:
            data = data[:place]
        elif how == 2:
            data[place:place] = rng.randbytes(rng.choice([1, 4, 300]))
        elif how == 3:
            del data[place : place + rng.choice([1, 4, 300])]
        elif how == 4:
            size = rng.choice([2, 4])
            data[place : place + size] = rng.choice([b"\xff", b"\x00", b"\x7f"]) * size
        else:  # near the start, where the sizes are
            place = rng.randrange(min(len(data), 40) + 1)
            data[place : place + 4] = rng.randbytes(4)
    return bytes(data)


def table(path: Path) -> list[tuple[str, str]]:
    """First and second cell of every row of a CSV file."""
    import csv

    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as lines:
        return [tuple(row[:2]) for row in csv.reader(lines)][1:]


# --- the whole graph ----------------------------------------------------------------------------


def whole_graph(rng: random.Random, box: Sandbox, commands: list[Command]) -> Fault:
    """Snakemake killed, or its files damaged, while stages run; run again it ends the same."""
    # Nothing of a finished run reads the stored settings of sampling, which are for photos later.
    left_out = ("dataset", "novel_views", "sampling")
    start = rng.choice([one for one in commands if one.name not in left_out])
    gone: set[Path] = {RUN / "overview.txt"}  # Snakemake remakes only what a missing file needs
    for command in commands:  # in order, so that what follows from a file comes after it
        if command == start or gone & set(command.inputs):
            gone.update(box.outputs(command), [command.record])
    for path in gone:
        (box.folder / path).unlink(missing_ok=True)
    # As the finished project was made, with the temporary files.
    words = [sys.executable, "-m", "snakemake", *CORES, "--notemp", "--configfile", "mini.yaml"]
    target = ["--", str(RUN / "overview.txt")]
    number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    delay = rng.uniform(2, 20)
    killed = run_killed([*words, *target], box.folder, delay, number)
    what = f"{number.name} after {delay:.0f} s of snakemake, from {start.name}"
    # While Python still imports, an interrupt has no handler of ours.
    if "Traceback" in killed and not last_line(killed).startswith("KeyboardInterrupt"):
        return what, f"FORBIDDEN traceback: {last_line(killed)}"
    run_process([*words, "--unlock", *target], box.folder)
    result = run_process([*words, *target], box.folder, 40 * SECONDS)
    if result.code or "Traceback" in result.text:
        return what, f"FORBIDDEN exit code {result.code}: {result.text[-400:]}"
    made = [p for c in commands for p in box.outputs(c) if p in gone or (box.folder / p).exists()]
    # The report shows when each step ran and how long it took.
    report = box.folder / RUN / "report.html"
    if not report.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        return what, f"FORBIDDEN half-written: {report}"
    changed = [path for path in made if path.name != report.name and not box.is_golden(path)]
    return what, f"FORBIDDEN wrong result: {changed[0]}" if changed else "same"


def run_killed(words: list[str], folder: Path, delay: float, number: int) -> str:
    """What a command printed until it got a signal, and all that it started with it."""
    import subprocess

    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "killed.txt", "wb") as out:
        process = subprocess.Popen(
            words, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True
        )
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            send(process.pid, number)
            process.wait(10 * SECONDS)  # for the jobs that it had started
        finally:
            send(process.pid, signal.SIGKILL)  # or the folder cannot be deleted
    return (folder / "killed.txt").read_text(errors="replace")


# Share of each kind among the faults of single steps.
KINDS: dict[Callable[..., Fault], int] = {
    kill: 15, full_disk: 15, damage: 22, damaged_network: 4, two_at_once: 6, stop: 4, clock: 6,
    hostile_images: 9, hostile_photos: 6, hostile_names: 6, hostile_labels: 3,
    hostile_configuration: 4,
}  # fmt: skip
