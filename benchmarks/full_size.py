"""Time and memory of the paper's configuration with networks of the real sizes, end to end.

    python benchmarks/full_size.py --out /tmp/full_size

Makes a data set in CompCars' layout out of procedural cars, and files of the real shapes with
random weights: DINOv2-base, SAM ViT-B, and Inception v3 as TorchScript. Then Snakemake makes
``results/compcars/fid.txt`` with the paper's U-Net, but few images and hardly any training. The
images are meaningless; time and memory are measured. Prints a table; a second run remakes only what
is stale.
"""

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torchvision
import tyro
import yaml
from PIL import Image
from segment_anything import sam_model_registry
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from mirage_steps.demo.renderer.cars import DEMO_FAMILIES, render
from mirage_steps.sources.compcars import VIEWPOINTS

ROOT = Path(__file__).parents[1]


def main(
    out: Path,
    images: int = 300,
    samples: int = 12,
    steps: int = 10,
    iterations: int = 6,
    batch_size: int = 16,
    cores: int = len(os.sched_getaffinity(0)),
    targets: Annotated[tuple[str, ...], tyro.conf.arg(name="target")] = ("compcars/fid.txt",),
) -> None:
    """Run the paper's configuration in full size but short.

    Args:
        out: Folder for data, weights and results.
        images: Photos in the data set.
        samples: Images of each row of the table.
        steps: DDIM steps (paper: 50).
        iterations: Training steps (paper: 1e6).
        batch_size: Images of a training step (DDIM: 128).
        cores: For Snakemake.
        targets: What to make, below results.
    """
    out = out.absolute()
    save_compcars(out / "data/compcars", images, 224)
    save_weights(out / "weights")
    compcars = {
        "source": {"path": str(out / "data/compcars")},
        "backbone": {"model": str(out / "weights/random-dinov2-base"), "batch_size": 8},
        "training": {"iterations": iterations, "batch_size": batch_size, "log_every": 1},
        "views": {"steps": steps, "batch_size": 16},
        "sheet": {"objects": 1},
        "masks": {"sam": str(out / "weights/random_sam_vit_b.pth"), "sam_batch_size": 2},
        "embed": {"inception": str(out / "weights/random-inception.pt")},
        "fid": {"samples": samples},
    }
    config = out / "full_size.yaml"
    config.write_text(
        yaml.safe_dump({"results": str(out / "results"), "datasets": {"compcars": compcars}})
    )
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--configfile", config]
    goals = [str(out / "results" / target) for target in targets]
    subprocess.run([*map(str, command), "--", *goals], cwd=ROOT, check=True)
    print("\n".join(table(out / "results/compcars")))


def save_compcars(root: Path, images: int, size: int) -> None:
    """Procedural cars in CompCars' layout, with viewpoints and boxes as labels.

    Args:
        root: folder that gets image/ and label/.
        images: how many.
        size: of their sides in pixels.
    """
    missing = [index for index in range(images) if not label_path(root, index).exists()]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_save_car, root, size), missing, chunksize=8))


def label_path(root: Path, index: int) -> Path:
    """Where a photo's label is: make, model and year are made up."""
    return root / "label" / str(1 + index % 3) / str(index % 7) / "2014" / f"{index:06d}.txt"


def viewpoint(azimuth_deg: float) -> int:
    """CompCars' code of an azimuth, in sectors of 45 degrees."""
    names = ("front", "front-side", "side", "rear-side", "rear", "rear-side", "side", "front-side")
    codes = {name: code for code, name in VIEWPOINTS.items()}
    return codes[names[round(azimuth_deg / 45) % 8]]


def _save_car(root: Path, size: int, index: int) -> None:
    made = render(5, index, DEMO_FAMILIES, size)
    label = label_path(root, index)
    photo = root / "image" / label.relative_to(root / "label").with_suffix(".jpg")
    for path in (label, photo):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(made.image).save(photo, quality=90)
    rows, columns = np.nonzero(made.mask > 0.5)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    label.write_text(f"{viewpoint(made.azimuth_deg)}\n1\n{' '.join(map(str, box))}\n")


class _Inception(nn.Module):
    """Inception v3 up to its last pooling, with the interface of clean-fid's file."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torchvision.models.inception_v3(
            weights=None, init_weights=False, transform_input=False
        )
        self.layers.fc = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(nn.functional.interpolate(x, (299, 299)))


def save_weights(folder: Path) -> None:
    """Random weights in the shapes and formats of the published files."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    dinov2, sam = folder / "random-dinov2-base", folder / "random_sam_vit_b.pth"
    inception = folder / "random-inception.pt"
    if not (dinov2 / "model.safetensors").exists():
        Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(dinov2)
    if not sam.exists():
        torch.save(sam_model_registry["vit_b"]().state_dict(), sam)
    if not inception.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(_Inception().eval(), torch.zeros(1, 3, 299, 299))
            traced.save(str(inception))


def table(folder: Path) -> list[str]:
    """Time and peak memory of every step, from the records that the steps leave."""
    records = [(path, json.loads(path.read_text())) for path in folder.rglob("*.run.json")]
    records.sort(key=lambda pair: pair[1]["started"])
    lines = ["| step | seconds | peak memory (MB) |", "|---|---|---|"]
    for path, record in records:
        where = path.parent.relative_to(folder)
        name = record["step"].rpartition(".")[2]
        label = name if where.name in ("", name) else f"{name}, {where}"
        lines.append(f"| {label} | {record['seconds']:.0f} | {record['peak_memory_mb']} |")
    return lines


if __name__ == "__main__":
    tyro.cli(main)
