"""How far data sets are: what is done, running, interrupted, stale or missing, and the figures.

``python -m mirage_steps.tools.status [NAME ...]`` asks Snakemake what is up to date, its marks
of unfinished outputs (``.snakemake/incomplete``, ``.snakemake/locks``), and reads what the steps
wrote: ``*.run.json``, ``metrics.jsonl`` and the lock of a training, ``metrics.json``,
``pose_eval.json``. It keeps no records of its own, works while the pipeline runs, and never fails
on a damaged file.
"""

import ast
import dataclasses
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import tyro

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.command import one_line_errors
from mirage_steps.files.configuration import read_configuration
from mirage_steps.files.lock import STALE

# Rules in the order of the pipeline.
STAGES = (
    "weights", "dataset", "features", "gather_features", "foreground", "crops", "crop_features",
    "gather_crop_features", "categories", "pose_space", "poses", "pose_eval", "train", "real",
    "views", "gather_views", "sheet", "turn", "novel_views", "baseline", "masks", "embed", "fid",
    "overview",
)  # fmt: skip
STATES = ("done", "running", "interrupted", "failed", "stale", "missing", "unchecked")
_RECENT = 20  # records of which a training's rate is taken
# Modules of rules that have not their rule's name.
_MODULES = {"crop_features": "features"}
_OTHER_REASONS = ("set of input files changed", "rule implementation changed")
# What the column `status` of Snakemake's summary means to a user.
_REASONS = {
    "params changed": "settings or code changed",
    "updated input files": "inputs are newer",
    "set of input files changed": "other inputs",
    "rule implementation changed": "the rule changed",
}


@dataclass
class Job:
    """One job of Snakemake's: a step on one set of files.

    Args:
        rule: its rule.
        part: what tells jobs of a rule apart, such as the name of a set.
        outputs: its files, relative to the project.
        state: one of :data:`STATES`.
        reason: why it is not done, empty where there is nothing to say.
        command: what did it last.
        started: when it began, in unix seconds, if it is marked as unfinished.
        finished: when it ended, in unix seconds.
        seconds: how long it took.
    """

    rule: str
    part: str
    outputs: list[str]
    state: str
    reason: str = ""
    command: str = ""
    started: float | None = None
    finished: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Training:
    """How far a training is.

    Args:
        step: last recorded step.
        iterations: steps in all, as configured.
        loss: of the last record.
        rate: recent steps a second, None where the records have no times.
        left: seconds to the end at this rate.
        beat: seconds since the trainer last touched its lock, None without a lock.
    """

    step: int
    iterations: int
    loss: float | None
    rate: float | None
    left: float | None
    beat: float | None

    @property
    def alive(self) -> bool:
        """Whether a trainer touches its lock."""
        return self.beat is not None and self.beat <= STALE


@dataclass
class DatasetStatus:
    """What is known of one data set.

    Args:
        name: of the data set, or ``weights`` for what all share.
        jobs: in the order of the pipeline; empty where nothing was begun.
        training: where there are records of one.
        table: content of ``metrics.json``.
        poses: scores of ``pose_eval.json``.
        problem: why Snakemake cannot say what is up to date.
        at_work: whether a Snakemake of this machine holds its outputs.
    """

    name: str
    jobs: list[Job] = field(default_factory=list)
    training: Training | None = None
    table: dict = field(default_factory=dict)
    poses: dict = field(default_factory=dict)
    problem: str = ""
    at_work: bool = False

    @property
    def state(self) -> str:
        """The state in one word: of its jobs the one that matters most."""
        found = {job.state for job in self.jobs}
        if self.at_work and found - {"done"}:
            return "running"
        if not found or found == {"missing"}:
            return "not started"
        order = ("running", "failed", "interrupted", "unchecked", "stale", "missing")
        return next((state for state in order if state in found), "done")


def main(
    name: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    configfile: tuple[Path, ...] = (),
    json: bool = False,
) -> None:
    """Print what is done, running, stale and missing, with the last figures; write nothing.

    Args:
        name: Data sets, all by default.
        configfile: Files merged over the project's own, as by snakemake --configfile.
        json: Print it as JSON.
    """
    configuration = read_configuration(configfile)
    for unknown in set(name) - set(configuration.datasets):
        raise UserError(
            f"{unknown} is no data set; known are {', '.join(configuration.datasets)}; one of your "
            "own needs --configfile"
        )
    # Of a data set that another one needs the state matters too.
    used = [configuration.datasets[one].use for one in name]
    names = list(dict.fromkeys([*filter(None, used), *name])) or list(configuration.datasets)
    targets = {
        one: f"{configuration.results}/{one}/"
        + ("turned/contact_sheet.png" if configuration.datasets[one].use else "overview.txt")
        for one in names
    }
    iterations = {one: configuration.datasets[one].training.iterations for one in names}
    found = look(Path(configuration.results), targets, iterations, configfile)
    if json:
        print(as_json(found))
    else:
        print(as_text(found, targets, configfile))


def look(
    results: Path,
    targets: dict[str, str],
    iterations: dict[str, int],
    configfiles: Sequence[Path] = (),
) -> list[DatasetStatus]:
    """The status of data sets of the project in the current folder.

    Args:
        results: folder of all outputs.
        targets: the last file of every data set, by name.
        iterations: configured steps of training of every data set, by name.
        configfiles: as for Snakemake.
    """
    # Before Snakemake is asked, which would be found as a process itself.
    marks = Marks(Path(".snakemake"))
    # Whatever was never begun needs no question, and its source may not be there yet.
    begun = {name: target for name, target in targets.items() if (results / name).is_dir()}
    jobs, problems = ask(begun, results, configfiles)
    found = []
    for name in ("weights", *targets):
        own = sorted(
            (job for path, job in jobs if path == results / name), key=lambda job: _place(job.rule)
        )
        status = DatasetStatus(name, own, problem=problems.get(name, ""))
        if status.problem:
            status.jobs = _unchecked(results / name)
        for job in status.jobs:
            _add_records(job, results / name)
            marks.apply(job)
            status.at_work |= marks.process and not marks.locked.keys().isdisjoint(job.outputs)
        if name in targets:
            _add_figures(status, results / name, iterations[name])
        # Networks that are there are no news.
        if name in targets or status.state != "done" and own:
            found.append(status)
    return found


# What Snakemake says


def ask(
    targets: dict[str, str], results: Path, configfiles: Sequence[Path]
) -> tuple[list[tuple[Path, Job]], dict[str, str]]:
    """Every job of the targets with the folder in ``results`` it writes to, and what went wrong.

    Returns:
        jobs; and by data set the error for which Snakemake could not look at it.
    """
    if not targets:
        return [], {}
    done = _snakemake("--detailed-summary", targets.values(), configfiles)
    if done.returncode and len(targets) > 1:
        # One that cannot be planned hides the others.
        jobs, problems = {}, {}
        for name, target in targets.items():
            some, problem = ask({name: target}, results, configfiles)
            jobs.update({job.outputs[0]: (folder, job) for folder, job in some})
            problems |= problem
        return list(jobs.values()), problems
    if done.returncode:
        return [], {name: _problem(done.stdout + done.stderr) for name in targets}
    jobs = list(_jobs(done.stdout, results))
    # Of several reasons the summary tells the first, so settings may have changed as well.
    changed = [job for _, job in jobs if job.reason in ("params changed", *_OTHER_REASONS)]
    plan = ""
    if changed:
        words = ("--dry-run", "--printshellcmds", "--cores", "1")
        plan = _snakemake(words, targets.values(), configfiles).stdout
    for _, job in jobs:
        changes = _changes(job, plan) if job in changed else ""
        general = _REASONS.get(job.reason, job.reason)
        if job.reason == "params changed":
            job.reason = changes or general
        else:
            job.reason = "; ".join(filter(None, (general, changes)))
    return jobs, {}


def _snakemake(
    action: str | Sequence[str], targets: Sequence[str], configfiles: Sequence[Path]
) -> subprocess.CompletedProcess:
    """Run Snakemake beside one that may be running."""
    words = [action] if isinstance(action, str) else [*action]
    if configfiles:
        words += ["--configfile", *map(str, configfiles)]
    command = [sys.executable, "-m", "snakemake", *words, "--nolock", "--", *targets]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )


def _jobs(summary: str, results: Path) -> Iterator[tuple[Path, Job]]:
    """Jobs of a detailed summary, which has a line a file.

    Its columns are the file, its date, rule, logs, inputs, the last command, status and plan.
    """
    rows = [line.split("\t") for line in summary.splitlines()]
    rows = [row for row in rows if len(row) == 8 and Path(row[0]).is_relative_to(results)]
    files: list[list[str]] = []
    for row in rows:
        files.append(row)
        # The record is the last output of every rule that has one.
        if row[0].endswith(".run.json") or row[2] == "overview":
            yield _job(files, results)
            files = []


def _job(files: Sequence[Sequence[str]], results: Path) -> tuple[Path, Job]:
    """One job of the lines of its files."""
    path = Path(files[-1][0]).relative_to(results)
    rule, statuses = files[0][2], {row[6] for row in files}
    part = path.parts[1:-1][-1:] or path.parts[:1]
    if rule == "novel_views":
        part = ("/".join(path.parts[2:]).removesuffix(".run.json"),)
    folder = results / path.parts[0]
    name = part[0]
    outputs = [row[0] for row in files]
    if rule == "weights":
        name = "/".join(path.parts[1:-1])
    if all(row[7] == "no update" for row in files):
        return folder, Job(rule, name, outputs, "done")
    if "missing" in statuses:
        return folder, Job(rule, name, outputs, "missing")
    command = next((row[5] for row in files if row[5] != "-"), "")
    reasons = sorted(statuses - {"ok", "removed temp file"})
    reason = ", ".join(reasons) or "its inputs will be made anew"
    return folder, Job(rule, name, outputs, "stale", reason, command)


def _changes(job: Job, plan: str) -> str:
    """What changed in a job's settings, from what a dry run with commands prints.

    Its blocks name no outputs, but the command has the folder of the record. Of jobs whose inputs
    change as well Snakemake tells only that, so commands are compared.
    """
    module = f"mirage_steps.{_MODULES.get(job.rule, job.rule)} "
    out = f"--out {shlex.quote(str(Path(job.outputs[-1]).parent))} "
    name = f"--name={shlex.quote(job.part)} " if job.rule == "novel_views" else ""
    for block in re.split(r"^Job \d+: ", plan, flags=re.MULTILINE):
        command = re.search(r"^ *Shell command: (.*)$", block, re.MULTILINE)
        if not command or not all(word in f"{command[1]} " for word in (module, out, name)):
            continue
        old, new = (repr(text.partition(" 2>&1")[0]) for text in (job.command, command[1]))
        lines = [words_changed(old, new, _untracked())] if job.command else []
        told = re.search(r"Params have changed.*? before: (.*?) now: (.*?) ?(?:;.*)?$", block, re.M)
        changes = words_changed(told[1], told[2]) if told else ""
        if not told and job.reason == "params changed":
            changes = "code changed"
        # The code's hash is a parameter that no command shows.
        if not any(lines) or (told and "code changed" in changes):
            lines.append("code changed" if any(lines) else changes)
        return "; ".join(filter(None, lines))
    return ""


def _untracked() -> set[str]:
    """Settings that change no result, for which nothing is done again."""
    sections = vars(settings).values()
    return {key for section in sections for key in getattr(section, "untracked", ())}


def words_changed(before: str, now: str, without: Collection[str] = ()) -> str:
    """Difference of parameters as Snakemake prints them, such as ``k 12 -> 14; code changed``.

    Args:
        before: literals of Python, with commas between.
        now: likewise.
        without: settings to leave out.
    """
    old, new = _flags(before), _flags(now)
    if old is None or new is None:
        return ""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        if key in without:
            continue
        gone = [value for value in old.get(key, ()) if value not in new.get(key, ())]
        come = [value for value in new.get(key, ()) if value not in old.get(key, ())]
        if gone or come:
            told = f"{key} {', '.join(gone) or 'absent'} -> {', '.join(come) or 'absent'}"
            lines.append("code changed" if key == "code" else told.strip())
    return "; ".join(lines)


def _flags(text: str) -> dict[str, list[str]] | None:
    """Values of every flag; what is no flag goes under ``code`` or an empty key.

    None where the text is not what it was when this was written.
    """
    try:
        values = [] if "<nothing" in text else ast.literal_eval(f"[{text}]")
        items = [shlex.split(str(value)) for value in values]
    except (ValueError, SyntaxError):
        return None
    found: dict[str, list[str]] = {}
    for words in items:
        groups: list[tuple[str, list[str]]] = []
        for word in words:
            if re.fullmatch(r"([0-9a-f]{16})+", word):
                groups.append(("code", [word]))
            elif word.startswith("--no-"):
                groups.append((word.removeprefix("--no-").replace("-", "_"), ["no"]))
            elif word.startswith("--"):
                key, _, value = word.removeprefix("--").partition("=")
                groups.append((key.replace("-", "_"), [value] if value else []))
            elif groups:
                groups[-1][1].append(word)
            else:
                groups.append(("", [word]))
        for key, parts in groups:
            # A switch that is on stands without a value.
            found.setdefault(key, []).append(" ".join(parts) or "yes")
    return found


def _problem(output: str) -> str:
    """The line of Snakemake's output that tells what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    other = [line for line in lines if "rror" in line or "xception" in line]
    return (told or other or lines or ["Snakemake failed without a word"])[-1]


def _unchecked(folder: Path) -> list[Job]:
    """Jobs by their records alone, where Snakemake cannot be asked."""
    found = []
    for pattern in ("*.run.json", "*/*.run.json", "sets/*/*.run.json"):
        for path in sorted(folder.glob(pattern)):
            record = read_json(path)
            rule = str(record.get("step", "")).rpartition(".")[2]
            rule = "crop_features" if path.parent.name == "crop_features" else rule
            found.append(Job(rule, path.parent.name, [str(path)], "unchecked"))
    return sorted(found, key=lambda job: _place(job.rule))


def _place(rule: str) -> int:
    return STAGES.index(rule) if rule in STAGES else len(STAGES)


# What is being written


class Marks:
    """Snakemake's marks of outputs that are being written, or were when it died.

    Args:
        folder: ``.snakemake``.
    """

    def __init__(self, folder: Path):
        self.incomplete = dict(_marked(folder / "incomplete"))
        # An output that is locked belongs to a run that goes on, or one that was killed.
        self.locked: dict[str, float] = {}
        for path in sorted((folder / "locks").glob("*.output.lock")):
            try:
                self.locked |= dict.fromkeys(path.read_text().splitlines(), path.stat().st_mtime)
            except (OSError, UnicodeDecodeError):
                continue
        self.process = bool(self.locked) and _snakemake_runs_here()

    def apply(self, job: Job) -> None:
        """Set the state of a job that is marked."""
        times = [self.incomplete[path] for path in job.outputs if path in self.incomplete]
        if not times or job.state == "done":
            return
        job.started = max(times)
        # Marks of an earlier run stay until their job's turn comes; one second for coarse clocks.
        locks = [self.locked[path] for path in job.outputs if path in self.locked]
        if locks and job.started >= max(locks) - 1:
            job.state, job.reason = "running", f"since {_clock(job.started)}"
            if not self.process:
                job.reason += "; no Snakemake is seen here: on another machine, or killed"
        else:
            job.state, job.reason = "interrupted", f"started {_clock(job.started)}"


def _marked(folder: Path) -> Iterator[tuple[str, float]]:
    """Outputs that are marked as incomplete, with the time at which their jobs began.

    A mark's path is the output's in base64, long ones in parts of which all but the last begin
    with ``@`` (snakemake/persistence/file.py).
    """
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                parts = path.relative_to(folder).parts
                text = "".join(part.removeprefix("@") for part in parts)
                yield urlsafe_b64decode(text).decode(), path.stat().st_mtime
        except (OSError, ValueError):
            continue


def _snakemake_runs_here() -> bool:
    """Whether a process of this machine is a Snakemake in the current folder."""
    here = Path.cwd()
    for process in psutil.process_iter():
        try:
            words = process.cmdline()[:3]
            named = any(Path(word).name == "snakemake" for word in words)
            if named and Path(process.cwd()) == here:
                return True
        except (psutil.Error, OSError):
            continue
    return False


# What the steps wrote


def read_json(path: Path) -> dict:
    """An object of a JSON file, empty where it is missing, damaged or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_records(folder: Path) -> list[dict]:
    """Records of a training's ``metrics.jsonl``, without lines that are damaged."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    records = []
    for line in lines.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _add_records(job: Job, folder: Path) -> None:
    """When a job ended and how long it took; for a missing one the error of its log."""
    last = Path(job.outputs[-1])
    record = read_json(last) if last.name.endswith(".run.json") else {}
    seconds = _number(record.get("seconds"))
    try:
        started = datetime.strptime(str(record.get("started")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        started = None
    if started is not None and seconds is not None:
        job.finished, job.seconds = started + seconds, seconds
    elif job.state in ("done", "stale") and last.is_file():
        job.finished = last.stat().st_mtime
    if job.state == "missing":
        logs = (f"{job.rule}.log", f"{job.rule}-{job.part}.log", f"{job.rule}/{job.part}.log")
        errors = [line for log in logs for line in _last_line(folder / "logs" / log)]
        if errors and errors[0].startswith("error: "):
            job.state, job.reason = "failed", errors[0]


def _last_line(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").split("\n")[-2:-1]
    except OSError:
        return []


def _add_figures(status: DatasetStatus, folder: Path, iterations: int) -> None:
    """The last figures, and what is known of a training."""
    status.table = read_json(folder / "metrics.json")
    status.poses = read_json(folder / "poses/pose_eval.json")
    status.training = read_training(folder / "training/checkpoints", iterations)
    job = next((job for job in status.jobs if job.rule == "train"), None)
    if job is None or status.training is None or job.state == "done":
        return
    told = status.training
    if told.alive:
        job.state, job.reason = "running", ""
    elif told.beat is not None and job.state == "running":
        # A lock that is older than the job was left by an earlier one; the new one is starting up.
        if job.started is None or time.time() - told.beat >= job.started:
            job.state = "interrupted"
            job.reason = f"its last sign of life was {_duration(told.beat)} ago"
    elif job.state == "missing" and 0 < told.step < told.iterations:
        job.state = "interrupted"
    if job.state == "interrupted" and not job.reason:
        job.reason = "goes on from its last checkpoint"


def read_training(folder: Path, iterations: int) -> Training | None:
    """How far a training is, None where nothing is there.

    Args:
        folder: of its checkpoints.
        iterations: steps in all.
    """
    records = read_records(folder)
    try:
        beat = max(0.0, time.time() - (folder / "lock.json").stat().st_mtime)
    except OSError:
        beat = None
    if not records and beat is None:
        return None
    last = records[-1] if records else {"step": 0}
    rate = recent_rate(records)
    left = None if not rate else max(0, iterations - last["step"]) / rate
    return Training(last["step"], iterations, _number(last.get("loss")), rate, left, beat)


def recent_rate(records: Sequence[dict]) -> float | None:
    """Steps a second over the last records, None where they have no times.

    Pauses of more than ten times the usual, as between two runs, do not count.
    """
    timed = [record for record in records[-_RECENT:] if _number(record.get("time")) is not None]
    pairs = [
        (other["step"] - one["step"], other["time"] - one["time"])
        for one, other in zip(timed, timed[1:], strict=False)
    ]
    pairs = [(steps, seconds) for steps, seconds in pairs if steps > 0 and seconds > 0]
    if not pairs:
        return None
    usual = statistics.median(seconds / steps for steps, seconds in pairs)
    kept = [(steps, seconds) for steps, seconds in pairs if seconds / steps <= 10 * usual]
    return sum(steps for steps, _ in kept) / sum(seconds for _, seconds in kept)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


# What is printed


def as_json(found: Sequence[DatasetStatus]) -> str:
    """Everything, as indented JSON."""
    content = []
    for status in found:
        about = {"name": status.name, "state": status.state, **dataclasses.asdict(status)}
        if status.training:
            about["training"] |= {"alive": status.training.alive}
        content.append(about)
    return json.dumps({"datasets": content}, indent=2, ensure_ascii=False)


def as_text(
    found: Sequence[DatasetStatus], targets: dict[str, str], configfiles: Sequence[Path] = ()
) -> str:
    """A line a stage, the figures below, and last what to run."""
    lines: list[str] = []
    for status in found:
        lines += [*_about(status), ""]
    open_ = [one.name for one in found if one.name in targets and one.state != "done"]
    running = any(status.state == "running" for status in found)
    # Of several the ones that were begun: others may lack their photos.
    begun = [one.name for one in found if one.name in open_ and one.state != "not started"]
    words = ["--configfile", *map(str, configfiles)] if configfiles else []
    wanted = [targets[name] for name in begun or open_]
    command = f"snakemake --cores N {shlex.join([*words, '--', *wanted])}"
    if any(one.at_work or (one.training and one.training.alive) for one in found if running):
        lines.append("next: wait, it is at work")
    elif running:
        lines.append(f"next: wait; if it was killed, snakemake --unlock, then {command}")
    elif wanted:
        lines.append(f"next: {command}")
    else:
        lines.append("next: nothing to do")
    return "\n".join(lines)


def _about(status: DatasetStatus) -> list[str]:
    """Lines of one data set."""
    done = sum(job.state == "done" for job in status.jobs)
    count = f", {done} of {len(status.jobs)} jobs done" if status.jobs else ""
    lines = [f"{status.name}: {status.state}{count}"]
    if status.problem:
        lines.append(f"  Snakemake cannot check it: {status.problem.removeprefix('error: ')}")
    for rule in dict.fromkeys(job.rule for job in status.jobs):
        jobs = [job for job in status.jobs if job.rule == rule]
        lines += [f"  {rule:13} {line}" for line in _stage(jobs)]
        if rule == "train" and status.training:
            lines.append(f"  {'':13} {_progress(status.training, jobs[0].state)}")
    return lines + _figures(status)


def _stage(jobs: Sequence[Job]) -> list[str]:
    """A line for the jobs of a rule, or one for each state and reason."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.state, job.reason), []).append(job)
    lines = []
    for (state, reason), some in groups.items():
        cells = [state]
        if len(jobs) > 1:
            cells[0] += f" {len(some)} of {len(jobs)}" if len(groups) > 1 else f" {len(some)}"
        ends = [job.finished for job in some if job.finished is not None]
        seconds = [job.seconds for job in some if job.seconds is not None]
        if state in ("done", "stale", "unchecked") and ends:
            cells[0] = f"{cells[0]:14} {_clock(max(ends))}"
            cells[0] += f" {_duration(sum(seconds)):>9}" if seconds else ""
        parts = ", ".join(sorted(job.part for job in some))
        told = f"({parts})" if len(groups) > 1 or some[0].rule == "weights" else ""
        lines.append("  ".join(filter(None, [*cells, reason, told])))
    return lines


def _progress(training: Training, state: str) -> str:
    """A training in one line."""
    share = training.step / training.iterations
    cells = [f"step {training.step} of {training.iterations} ({share:.0%})"]
    if training.loss is not None:
        cells.append(f"loss {training.loss:.4f}")
    if state in ("running", "interrupted") and training.rate:
        cells.append(f"{training.rate:.3g} steps/s")
        cells.append(f"{_duration(training.left)} left")
    return ", ".join(cells)


def _figures(status: DatasetStatus) -> list[str]:
    """The last figures of a data set."""
    lines = []
    error = _number(status.poses.get("median_error_deg"))
    if error is not None:
        share = _number(status.poses.get("share_within_30_deg"))
        within = "" if share is None else f", {share:.1%} within 30"
        images = f"{status.poses.get('images', '?')} images"
        lines.append(f"  poses: median error {error:.1f} degrees{within}, {images}")
    rows = status.table.get("rows")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if not rows:
        return lines
    features = f"{status.table.get('backbone', '?')} {status.table.get('token', '?')}"
    old = [job for job in status.jobs if job.rule == "fid" and job.state != "done"]
    note = f" (the table is {old[0].state})" if old else ""
    lines.append(f"  distances to real images{note}, FD and KID of {features}:")
    for row in rows:
        cells = [f"    {row.get('row', '?')!s:18} n = {row.get('n', '?')}"]
        for key, title, digits in (("fd_backbone", "FD", 3), ("kid_backbone", "KID", 6)):
            if (value := _number(row.get(key))) is not None:
                cells.append(f"{title} {value:.{digits}f}")
        if (value := _number(row.get("fid"))) is not None:
            cells.append(f"FID {value:.3f}")
        lines.append("  ".join(cells))
    return lines


def _clock(moment: float) -> str:
    """A time of day, with its date where that is not today's."""
    try:
        when = datetime.fromtimestamp(moment)
    except (ValueError, OverflowError, OSError):
        return "?"
    today = when.date() == datetime.now().date()
    return f"{when:%H:%M}" if today else f"{when:%Y-%m-%d %H:%M}"


def _duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds))) if seconds < 1e9 else "?"


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(
            main, prog="python -m mirage_steps.tools.status", config=(tyro.conf.OmitArgPrefixes,)
        )
