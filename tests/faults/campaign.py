"""A campaign of random faults against the miniature pipeline and the photo command.

    python tests/faults/campaign.py --steps 950 --graphs 50 --seed 0 --workers 2

Fault number n follows from the seed and n alone, so a campaign that was stopped resumes, and one
fault can be repeated: ``--only 17``. After each the step must have ended with one line, or with the
result that it has without the fault, to the byte. Writes ``report.json`` and ``report.md``; exit
code 1 if any outcome is forbidden.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kinds  # noqa: E402
from sandbox import ROOT, Fork, Sandbox, make_golden, preload, read_commands, remove  # noqa: E402


def main() -> None:
    """Run the faults that have no outcome yet, in several processes, and report."""
    asked = parse()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_golden(folder / "golden")
    if asked.worker is not None:
        work(asked, folder)
        return
    if asked.only:
        asked.workers = 1
    words = [sys.executable, __file__, *sys.argv[1:]]
    workers = [
        subprocess.Popen([*words, "--worker", str(n), "--workers", str(asked.workers)])
        for n in range(asked.workers)
    ]
    if any(worker.wait() for worker in workers):
        sys.exit("a worker of the campaign failed")
    sys.exit(report(asked, folder))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=950, help="faults of single steps")
    parser.add_argument("--graphs", type=int, default=50, help="faults of whole runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no fault after these")
    parser.add_argument("--folder", type=Path, default=ROOT / "results/faults")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of faults, run again")
    parser.add_argument("--kind", help="only faults of this kind")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(asked: argparse.Namespace, folder: Path) -> None:
    """Run one worker's share of the faults."""
    began = time.monotonic()
    commands = read_commands(folder / "golden")
    preload(commands)
    done = outcomes(asked, folder)
    log = folder / f"seed-{asked.seed}-{asked.worker}.jsonl"
    for number in range(asked.worker, asked.steps + asked.graphs, asked.workers):
        wanted = number in asked.only if asked.only else number not in done
        kind, rng = draw(asked, number)
        if not wanted or (asked.kind and kind.__name__ != asked.kind):
            continue
        if time.monotonic() - began > 60 * asked.minutes:
            break
        box = Sandbox(folder / "golden", folder / f"box-{asked.worker}")
        started = time.monotonic()
        try:
            what, outcome = kind(rng, box, commands)
        except Exception as error:  # a defect of the campaign counts as none of the project's
            what, outcome = "?", f"BROKEN {type(error).__name__}: {error}"
        took = round(time.monotonic() - started, 1)
        record = {"n": number, "kind": kind.__name__, "what": what, "outcome": outcome, "s": took}
        with open(log, "a") as file:
            print(json.dumps(record), file=file)
        if asked.only or not outcome.islower():
            print(json.dumps(record), flush=True)
    remove(folder / f"box-{asked.worker}")


def draw(asked: argparse.Namespace, number: int) -> tuple:
    """Kind and generator of a fault."""
    rng = random.Random(f"{asked.seed} {number}")
    if number >= asked.steps:
        return kinds.whole_graph, rng
    return rng.choices(list(kinds.KINDS), kinds.KINDS.values())[0], rng


def outcomes(asked: argparse.Namespace, folder: Path) -> dict[int, dict]:
    """Records of a seed by number; the last of each counts."""
    found = {}
    for log in sorted(folder.glob(f"seed-{asked.seed}-*.jsonl")):
        for line in log.read_text().splitlines():
            record = json.loads(line)
            found[record["n"]] = record
    return found


def report(asked: argparse.Namespace, folder: Path) -> int:
    """Write the table by kind; 1 where an outcome is forbidden."""
    found = sorted(outcomes(asked, folder).values(), key=lambda record: record["n"])
    bad = [one for one in found if not one["outcome"].islower()]
    columns = ("same", "refused", "handled")
    counts = Counter((one["kind"], one["outcome"].split()[0]) for one in found)
    lines = [
        f"{len(found)} faults, seed {asked.seed}, {len(bad)} forbidden outcomes", "",
        "| kind | faults | same | refused | handled | forbidden |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for kind in (*[one.__name__ for one in kinds.KINDS], "whole_graph"):
        all_of = sum(one["kind"] == kind for one in found)
        cells = [counts[kind, column] for column in columns]
        lines.append(
            f"| {kind} | {all_of} | {' | '.join(map(str, [*cells, all_of - sum(cells)]))} |"
        )
    lines += ["", *(f"- {one['n']} {one['kind']}: {one['what']}: {one['outcome']}" for one in bad)]
    text = "\n".join(lines).rstrip() + "\n"
    (folder / "report.md").write_text(text)
    (folder / "report.json").write_text(json.dumps(found, indent=1))
    print(text)
    return int(bool(bad))


if __name__ == "__main__":
    try:
        main()
    except Fork as fork:
        fork.run()
