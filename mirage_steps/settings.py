"""Every setting of a data set, its default and its meaning: the one place for all three.

A configuration is ``datasets: {name: {section: {key: value}}}``; the classes below are the
sections. Each step takes one or two of them as its command-line flags, so a key has one name in
the config, in the rule, on the command line and in the code. Defaults marked "paper" are the
paper's; all others are this project's choice, since the paper is silent on them.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mirage_steps.support.errors import UserError

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


class Settings(BaseModel):
    """A frozen section of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Keys that change how the work is done but not what comes out: no reason to do it again.
    untracked: ClassVar[tuple[str, ...]] = ()


class Folder(Settings):
    """Images of a folder, searched recursively."""

    kind: Annotated[Literal["folder"], tyro.conf.Suppress] = "folder"
    path: Path = Field(description="Folder with the images.")
    max_pixels: int = Field(
        100_000_000, ge=1, description="Images with more pixels are rejected before decoding."
    )


class Procedural(Settings):
    """Ray-cast cars with known azimuth and mask: the embedded data set."""

    kind: Annotated[Literal["procedural"], tyro.conf.Suppress] = "procedural"
    images: int = Field(2000, ge=1, description="How many images to render.")
    size: int = Field(96, ge=16, le=1024, description="Side of an image in pixels.")
    placement: float = Field(
        1.0, ge=0, le=1, description="How much scale and position vary: 0 not at all, 1 much."
    )
    seed: int = Field(0, ge=0, description="Seed of shapes, paints, poses and scenes.")


Source = Annotated[Folder | Procedural, Field(discriminator="kind")]


class Backbone(Settings):
    """The vision transformer whose patch tokens are the features."""

    untracked = ("batch_size",)

    model: str = Field(
        "facebook/dinov2-base", description="Local folder or hub name of a transformers model."
    )
    resolution: int = Field(
        224, ge=16, description="Side in pixels of the square input; a multiple of the patch size."
    )
    batch_size: int = Field(32, ge=1, description="Images the backbone sees at once.")


class Foreground(Settings):
    """How the first PCA separates the object from its surroundings, and how it is cropped."""

    rule: Literal["first-component", "border-contrast"] = Field(
        "border-contrast",
        description="Which component separates: the first (paper), or the one of the first three "
        "on which the image border differs most from the inside.",
    )
    threshold: Literal["zero", "otsu"] = Field(
        "otsu",
        description="Where the component is cut: at zero (paper) or at Otsu's threshold.",
    )
    fallback_sign: Literal[-1, 1] = Field(
        1, description="Sign of the component where the border cannot decide it."
    )
    margin: float = Field(
        0.06, ge=0, lt=0.5, description="Share of the crop left free on each side of the object."
    )


class Poses(Settings):
    """K-Means in pose space."""

    k: int = Field(25, ge=2, description="Number of poses (paper: CompCars 25, armchairs 10).")
    starts: int = Field(10, ge=1, description="K-Means runs, of which the best is kept.")
    seed: int = Field(0, ge=0, description="Seed of the K-Means starts.")


class Training(Settings):
    """The diffusion model and its training (paper, section 3.2 and appendix A)."""

    untracked = ("record_every", "checkpoint_every", "sample_every")

    preset: Literal["paper", "small"] = Field(
        "paper", description="The paper's U-Net, or a small one that learns on two cores."
    )
    image_size: int = Field(
        64, ge=16, multiple_of=8, description="Side of the images in pixels (paper: 64)."
    )
    iterations: int = Field(1_000_000, ge=1, description="Optimiser steps (paper: 1e6 for cars).")
    batch_size: int = Field(128, ge=1, description="Images a step (DDIM: 128).")
    optimizer: Literal["adam", "muon"] = Field(
        "adam",
        description="Adam (DDIM), or Muon for the hidden layers and Adam for the rest, which "
        "learns more in few steps.",
    )
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate (DDIM: 2e-4).")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="Learning rate over the run: constant (DDIM) or cosine to zero."
    )
    warmup: int = Field(0, ge=0, description="Steps over which the learning rate rises linearly.")
    ema: float = Field(
        0.9999, ge=0, lt=1, description="Decay of the averaged weights (DDIM: 0.9999)."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout in residual blocks (DDIM: 0.1).")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient (DDIM: 1.0).")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of the network; auto: bfloat16 where the hardware has it."
    )
    record_every: int = Field(
        100, ge=1, description="Steps whose mean loss makes one line of metrics.jsonl."
    )
    checkpoint_every: int = Field(5000, ge=1, description="Steps between checkpoints.")
    sample_every: int = Field(5000, ge=1, description="Steps between sample grids.")
    seed: int = Field(0, ge=0, description="Seed of weights, noise, steps and data order.")

    @model_validator(mode="after")
    def _levels_fit(self) -> "Training":
        if self.preset == "small" and self.image_size % 16:
            raise ValueError("image_size must be a multiple of 16 for the preset small")
        return self


class Views(Settings):
    """Sampling: DDIM with cross-frame attention and hard-attention guidance (section 3.3)."""

    untracked = ("batch_size",)

    steps: int = Field(50, ge=1, le=1000, description="DDIM steps (paper: 50).")
    batch_size: int = Field(
        64, ge=1, description="Images denoised at once, views and reference together."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of the network; auto: bfloat16 where the hardware has it."
    )
    seed: int = Field(0, ge=0, description="Seed of noises, references and poses.")


class Guidance(Settings):
    """Hard-attention guidance (equation 7)."""

    gamma: float = Field(
        1.5, ge=0, description="Weight of the soft pass in equation 7 (paper: 1.5); 1 is off."
    )


class Sheet(Settings):
    """The contact sheet: objects in rows, all poses in columns."""

    objects: int = Field(8, ge=1, description="Objects on the sheet.")


class Masks(Settings):
    """Background removal by segment-anything."""

    untracked = ("sam_batch_size",)

    sam: str = Field(
        "vit_h",
        description="vit_b, vit_l or vit_h (fetched once), a checkpoint, or a stand-in folder.",
    )
    sam_batch_size: int = Field(8, ge=1, description="Images SAM sees at once.")


class Fid(Settings):
    """The table of distances."""

    samples: int = Field(
        10_000, ge=2, description="Images of every row; twice as many real ones are needed."
    )
    seed: int = Field(0, ge=0, description="Seed of the choice of real images.")


class Embed(Settings):
    """Networks whose features the distances compare."""

    inception: str = Field(
        "auto",
        description="Inception for the FID column: auto (clean-fid fetches it), a path to its "
        "TorchScript file, or none.",
    )
    token: Literal["cls", "mean-patch"] = Field(
        "cls", description="Which feature of the backbone its columns compare."
    )


class Dataset(Settings):
    """One data set: a section for each stage."""

    source: Source
    labels: Path | None = Field(
        None, description="CSV file with image and azimuth_deg; for evaluation only."
    )
    backbone: Backbone = Backbone()
    foreground: Foreground = Foreground()
    poses: Poses = Poses()
    training: Training = Training()
    views: Views = Views()
    guidance: Guidance = Guidance()
    sheet: Sheet = Sheet()
    masks: Masks = Masks()
    embed: Embed = Embed()
    fid: Fid = Fid()

    @model_validator(mode="after")
    def _views_have_other_poses(self) -> "Dataset":
        if self.poses.k < 4:
            raise ValueError("poses.k must be at least 4: every reference gets three other poses")
        return self


class Configuration(Settings):
    """The whole configuration."""

    results: str = Field("results", description="Folder of all outputs.")
    datasets: dict[Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")], Dataset]


def load(config: Mapping) -> Configuration:
    """Check a configuration as YAML gave it.

    Raises:
        UserError: naming every wrong key with its path, and the key that was probably meant.
    """
    try:
        return Configuration.model_validate(config)
    except ValidationError as error:
        raise UserError("; ".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Mapping) -> str:
    """One problem of pydantic's as a line with the key's path, the value and a hint."""
    # A tagged union puts its tag into the path; it is no key of the user's.
    path = [str(part) for part in problem["loc"]]
    if len(path) > 3 and path[2] == "source" and path[3] in ("folder", "procedural"):
        kind = path.pop(3)
    else:
        kind = None
    where = "config: " + (".".join(path) or "top level")
    if problem["type"] == "extra_forbidden":
        known = _known_keys(path[:-1], kind)
        meant = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {meant[0]!r}?" if meant else f"known here: {', '.join(known)}"
        return f"{where} is not a key; {hint}"
    if problem["type"] == "missing":
        return f"{where} is required"
    if problem["type"] == "union_tag_not_found":
        return f"{where}.kind is required: folder or procedural"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict | BaseModel) else f" (got {problem['input']!r})"
    return f"{where}: {message[0].lower()}{message[1:]}{given}"


def _known_keys(path: list[str], kind: str | None) -> list[str]:
    """Keys that are allowed at ``path`` in the configuration."""
    if not path:
        return list(Configuration.model_fields)
    if len(path) == 2:
        return list(Dataset.model_fields)
    if path[2] == "source":
        return list((Folder if kind == "folder" else Procedural).model_fields)
    return list(Dataset.model_fields[path[2]].annotation.model_fields)
