"""Export a run's model to a small folder that is used like the run.

Writes ``training/model.safetensors`` in half precision with its ``config.json`` and
``sampling.json``, ``poses/pose_estimator.safetensors`` and ``names.json``, ``cameras/cameras.json``
if the run has it for its present poses, and ``README.md``, a card with the training and the
evidence. With ``--pack`` also one file of them.
"""

from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import atomic, read_csv, write_json
from mirage_steps.files.cameras import CAMERAS, read_cameras
from mirage_steps.files.command import log, run
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.names import not_a
from mirage_steps.files.pack import require_pack, write_pack
from mirage_steps.files.pose_names import NAMES, read_pose_names
from mirage_steps.files.records import read_json, read_metrics, read_text
from mirage_steps.method.diffusion import sampling_timesteps
from mirage_steps.networks.diffusion_model import load_model, save_model
from mirage_steps.run import stored_sampling


def main(*, trained: Path, out: Path, pack: Path | None = None) -> None:
    """Export the model of a finished run.

    Args:
        trained: Folder of the run, such as results/demo.
        out: Folder for what is exported; give it as --run to other commands.
        pack: Also write all of it into this one file, such as demo.zip, for --run likewise.
    """
    if wrong := not_a("folder", trained):
        raise UserError(f"--trained {trained}: {wrong}; give a finished run such as results/demo")
    if out.resolve() == trained.resolve():
        raise UserError(f"--out {out}: is the run itself; give a new folder")
    if (out / "README.md").exists() and not (out / "export.run.json").exists():
        raise UserError(f"--out {out}: has a README.md that no export wrote; give a new folder")
    if pack is not None:
        require_pack(pack)
    estimator = load_estimator(trained / "poses" / ESTIMATOR, "poses")
    model = load_model(trained / "training", torch.device("cpu"))
    about = read_json(trained / "training/config.json")
    del about["unet"]
    save_model(out / "training", model.half(), about)
    sampling = stored_sampling(trained).model_dump(mode="json")
    write_json(out / "training/sampling.json", sampling)
    save_estimator(out / "poses" / ESTIMATOR, estimator)
    names = read_pose_names(trained / NAMES, estimator.number_of_poses)
    write_json(out / NAMES, {"names": names})
    if cameras := _cameras(trained, model.config.poses):
        write_json(out / CAMERAS, cameras)
    else:
        (out / CAMERAS).unlink(missing_ok=True)  # of an earlier export
    card = _card(trained, about, estimator.backbone["model"], cameras)
    with atomic(out / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    if pack is not None:
        write_pack(out, pack)


def _cameras(trained: Path, poses: int) -> dict:
    """Cameras of the run, empty where it has none, or none that fit its poses."""
    if not (trained / CAMERAS).exists():
        return {}
    try:
        read_cameras(trained / CAMERAS, range(poses))
    except UserError as error:
        log.warning("cameras are not exported: %s", error)
        return {}
    return read_json(trained / CAMERAS)


def _card(trained: Path, about: dict, backbone: str, cameras: dict) -> str:
    """README of the folder: what the model was trained on, for how long, and how good it is."""
    record = read_json(trained / "training/train.run.json")
    training = record.get("settings", {})
    images = len(read_csv(trained / "poses/poses.csv"))
    evidence = read_text(trained / "evidence/evidence.txt").strip() or "not measured"
    preset, size, batch = (training.get(key, "?") for key in ("preset", "image_size", "batch_size"))
    sampling = stored_sampling(trained)
    views, guidance = sampling.views, sampling.guidance
    last = sampling_timesteps(views)[-1]  # of DPM-Solver++ not the configured 0
    guided = f"guidance with gamma {guidance.gamma:g}" if guidance.hard else "no guidance"
    return f"""# Diffusion model of the run {trained.name}

Pose-conditioned U-Net (preset {preset}, {about["parameters"] / 1e6:.1f} M parameters,
{size} pixels), the EMA weights in half precision, with the pose estimator of the run.

- Trained for {about["iterations"]} steps of {batch} images on {images} crops,
  {_hours(trained)} hours on {record.get("device", "?")}.
- Samples in {views.steps} steps of `{views.solver}` to timestep {last}, {guided}
  (`training/sampling.json`).
- Poses are found with the backbone `{backbone}`, which is not in this folder.
{_about_cameras(cameras)}
To show a photo from all sides, here or where this folder was copied to:

    python -m mirage_steps.novel_views photo.png --run FOLDER --out DIR

Evidence of the run, before the weights were rounded:

```
{evidence}
```
"""


def _about_cameras(cameras: dict) -> str:
    """A line of the card on the cameras of the poses, empty without cameras."""
    if not cameras:
        return ""
    text = "- Cameras of the poses, for meshes (`--mesh`), are in `cameras/cameras.json`"
    errors = [one["median_error_deg"] for one in cameras["categories"] if "median_error_deg" in one]
    if errors:
        text += f";\n  median error of their azimuths {max(errors):.1f} degrees, after alignment"
        text += "\n  by the best offset and direction of rotation"
    return f"{text}.\n"


def _hours(trained: Path) -> str:
    """Time that the training took; interruptions do not count."""
    records = read_metrics(trained / "training/checkpoints")
    times = [one["time"] for one in records if "near" not in one]  # no scores
    gaps = [after - before for before, after in pairwise(times)]
    return f"{median(gaps) * len(times) / 3600:.1f}" if gaps else "?"


if __name__ == "__main__":
    run(main)
