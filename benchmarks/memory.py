"""Peak memory of every step at N and at 4 N images.

    python benchmarks/memory.py [--images 500] [--folder DIR]

Runs the pipeline twice on procedural images with the embedded stand-ins and compares the peaks that
each step wrote into its run.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def peaks(images: int, folder: Path) -> dict[str, int]:
    """Peak memory in MB of every step of a run with this many images, by step and folder."""
    config = yaml.safe_load((ROOT / "tests" / "mini.yaml").read_text())
    dataset = config["datasets"]["mini"]
    dataset["source"]["images"] = images
    dataset["fid"]["samples"] = images // 4
    dataset["views"] = {"steps": 1, "batch_size": 16}
    config["results"] = str(folder / str(images))
    path = folder / f"{images}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all"]
    subprocess.run(
        [*command, "--configfile", str(path), "--", f"{config['results']}/mini/fid.txt"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    found = {}
    results = Path(config["results"]) / "mini"
    for record in sorted(results.rglob("*.run.json")):
        name = f"{record.name.removesuffix('.run.json')} ({record.parent.relative_to(results)})"
        found[name] = json.loads(record.read_text())["peak_memory_mb"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--folder", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = words.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        small = peaks(words.images, folder)
        large = peaks(4 * words.images, folder)
    print(f"{'step':40} {words.images:>6} {4 * words.images:>6}  ratio   (MB)")
    for name, before in small.items():
        print(f"{name:40} {before:6} {large[name]:6}  {large[name] / before:.2f}")


if __name__ == "__main__":
    main()
