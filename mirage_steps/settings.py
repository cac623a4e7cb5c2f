"""All settings of a data set, with their defaults and descriptions.

A configuration is ``datasets: {name: {section: {key: value}}}``; the classes below are the
sections. Steps take sections as command-line flags, so a key has the same name in the
configuration, the rules, on the command line and in the code. If the paper states a value,
:func:`stated` declares it with the default; they differ if measurements favor another value.
Other defaults are our choice, because the paper is silent.
"""

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import tyro
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mirage_steps.errors import CONTROL, UserError
from mirage_steps.evaluation_sets import EvaluationSet, evaluation_sets, table_rows

# Least number of poses of a category: every reference gets three other poses.
LEAST_POSES = 4
# Folder into which published networks are downloaded.
WEIGHTS = "weights/published"
# Sections of a data set with `use` that are merged over those of the other data set: they change
# neither features nor poses nor the model.
_MERGED = ("views", "guidance", "novel_views", "sheet", "evidence", "ablation")
# Integers that YAML reads as text.
_EXPONENT = re.compile(r"[0-9.]+[eE]\+?[0-9]{1,2}")
# Characters that Snakemake or the shells of a cluster submission interpret.
_MISREAD = re.compile(r'[{}<>$`"\\]')


def _path(text: str) -> str:
    """A path or name that rules take as a file: normalized, with the home folder expanded."""
    if _MISREAD.search(text):
        raise ValueError(
            'must not hold any of { } < > $ ` " \\, which Snakemake or a shell misreads'
        )
    if not text:
        raise ValueError("is empty")
    return os.path.normpath(os.path.expanduser(text))


FileName = Annotated[str, AfterValidator(_path)]
# The largest that NumPy's and scikit-learn's generators take.
Seed = Annotated[int, Field(ge=0, lt=2**32)]

# Short enough for a folder's name.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"


def stated(default: Any, paper: Any, description: str, **bounds: Any) -> Any:
    """A field for which the paper, or DDIM's configuration that it refers to, states a value.

    Args:
        default: this project's value.
        paper: the paper's value.
        description: of the field; the paper's value is appended.
        bounds: keyword arguments of pydantic's ``Field``.
    """
    text = f"{description.removesuffix('.')} (paper: {in_yaml(paper)})."
    return Field(default, description=text, json_schema_extra={"paper": paper}, **bounds)


def in_yaml(value: object) -> str:
    """A setting's value in YAML's spelling."""
    return str(value).lower() if isinstance(value, bool) else f"{value}"


class Settings(BaseModel):
    """A frozen section of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Keys that do not change the results: an edit makes no output stale.
    untracked: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: object) -> object:
        """Values read by YAML, converted to what was meant: YAML reads 1e6 as text."""
        if not isinstance(values, dict):
            return values
        meant = {}
        for key, value in values.items():
            field = cls.model_fields.get(key)
            kinds = (field.annotation, *get_args(field.annotation)) if field else ()
            wrong = ""
            if isinstance(value, bool) and field and bool not in kinds:
                wrong = "is true or false to YAML, like yes, no, on and off; put text in quotes"
            elif isinstance(value, float) and not math.isfinite(value):
                wrong = "must be finite"
            elif isinstance(value, int | float) and abs(value) >= 2**63:
                wrong = "is too large" if value > 0 else "is too small"
            elif value == "" and Path in kinds:
                wrong = "is empty"
            elif isinstance(value, str) and CONTROL.search(value):
                wrong = "must not hold control characters"
            elif isinstance(value, str) and int in kinds and _EXPONENT.fullmatch(value):
                value = float(value)
            if wrong:
                found = {"key": str(key), "wrong": wrong, "given": _short(value)}
                raise PydanticCustomError("as_read", "{wrong}", found)
            meant[key] = value
        return meant


_MAX_PIXELS = Field(
    100_000_000, ge=1, description="Images with more pixels are rejected before decoding."
)


class Folder(Settings):
    """Images of a folder, searched recursively."""

    kind: Annotated[Literal["folder"], tyro.conf.Suppress] = "folder"
    path: Path = Field(description="Folder with the images.")
    boxes: FileName | None = Field(
        None,
        description="CSV file with image, x0, y0, x1, y1: bounding boxes of the objects in pixels "
        "of the upright images; missing boxes are found by PCA 1. image: the photos are already "
        "cropped to the object.",
    )
    masks: Path | None = Field(
        None,
        description="Folder of object masks, with the same relative paths as the photos (except "
        "the extension) and the size or aspect ratio of the photo. Pixels that are neither black "
        "nor transparent are the object. A mask gives the box and, in pose discovery, the patches "
        "of the object; photos without a mask use PCA 1. Rows without background still use SAM.",
    )
    max_pixels: int = _MAX_PIXELS

    @model_validator(mode="after")
    def _boxes_are_given_once(self) -> "Folder":
        if self.boxes is not None and self.masks is not None:
            raise ValueError("masks already give the boxes; remove boxes or masks")
        return self

    @property
    def boxes_table(self) -> str | None:
        """The file of boxes, where one is given."""
        return None if self.boxes == "image" else self.boxes


class CompCars(Settings):
    """CompCars (Yang et al. 2015), the web-nature photos of whole cars."""

    kind: Annotated[Literal["compcars"], tyro.conf.Suppress] = "compcars"
    path: Path = Field(description="Folder of CompCars that holds image/ and label/.")
    boxes: bool = stated(
        False, False, "Crop by the data set's boxes instead of those found by PCA 1."
    )
    max_pixels: int = _MAX_PIXELS


class Epfl(Settings):
    """EPFL multi-view cars (Ozuysal et al. 2009): sequences of cars on a turntable."""

    kind: Annotated[Literal["epfl"], tyro.conf.Suppress] = "epfl"
    path: Path = Field(description="Folder of the data set that holds tripod-seq.txt.")
    boxes: bool = Field(
        False, description="Crop by the data set's boxes instead of those found by PCA 1."
    )
    max_pixels: int = _MAX_PIXELS


class StableDiffusion(Settings):
    """Images generated by Stable Diffusion from the paper's prompts (section 4.1)."""

    untracked = ("batch_size",)

    kind: Annotated[Literal["stable-diffusion"], tyro.conf.Suppress] = "stable-diffusion"
    category: str = Field(
        description='Object category in the prompt, such as "single massive armchair" (paper).'
    )
    images: int = stated(100_000, 100_000, "Number of images to generate.", ge=1)
    model: FileName = Field(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        description="Local folder or hub name of a diffusers pipeline.",
    )
    steps: int = Field(50, ge=1, description="Denoising steps per image.")
    guidance_scale: float = Field(7.5, ge=1, description="Classifier-free guidance; 1 is off.")
    size: int = Field(
        512, ge=16, le=8192, multiple_of=8, description="Side of a generated image in pixels."
    )
    saved_size: int = Field(256, ge=16, le=8192, description="Side of the stored image in pixels.")
    batch_size: int = Field(8, ge=1, description="Images generated at once.")
    seed: Seed = Field(0, description="Seed of the images' noise.")


class Procedural(Settings):
    """Ray-cast objects with known azimuth and mask: the embedded data set."""

    kind: Annotated[Literal["procedural"], tyro.conf.Suppress] = "procedural"
    objects: Literal["cars", "chairs", "mugs", "cars-and-chairs"] = Field(
        "cars", description="What to render; cars-and-chairs alternates."
    )
    images: int = Field(2000, ge=1, description="Number of images to render.")
    size: int = Field(96, ge=16, le=1024, description="Side of an image in pixels.")
    placement: float = Field(
        1.0, ge=0, le=1, description="Variation of scale and position: 0 none, 1 large."
    )
    seed: Seed = Field(0, description="Seed of shapes, colors, poses and scenes.")


Source = Annotated[
    Folder | CompCars | Epfl | StableDiffusion | Procedural, Field(discriminator="kind")
]


class Backbone(Settings):
    """The backbone, whose patch tokens are the features."""

    untracked = ("batch_size",)

    model: FileName = Field(
        "facebook/dinov2-base",
        description="Local folder or hub name of a vision transformer of transformers, or "
        "efficientnet-lite0, which is installed with this package.",
    )
    levels: tuple[Literal[16, 32], ...] = Field(
        (16, 32),
        min_length=1,
        description="For efficientnet-lite0: strides in pixels whose features are concatenated.",
    )
    resolution: int = Field(
        224,
        ge=16,
        le=8192,
        description="Side in pixels of the square input; a multiple of the patch size.",
    )
    token_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="Arithmetic of the network; auto: bfloat16 where the hardware has it.",
    )
    batch_size: int = Field(32, ge=1, description="Images per batch of the backbone.")


class Foreground(Settings):
    """Foreground by PCA 1, the PCA of all patch tokens, and the crop around the object."""

    rule: Literal["first-component", "border-contrast"] = stated(
        "border-contrast",
        "first-component",
        "Which component of PCA 1 separates the object: the first, or the one of the first three "
        "that differs most between the image border and the center.",
    )
    component: Literal["auto", 1, 2, 3, -1, -2, -3] = Field(
        "auto",
        description="Number of the component that shows the object in foreground.png; with a minus "
        "sign, its negative side. auto: chosen by the rule.",
    )
    threshold: Literal["zero", "otsu"] = stated(
        "otsu", "zero", "Threshold of the component: zero or Otsu's."
    )
    fallback_sign: Literal[-1, 1] = Field(
        1, description="Sign of the component if the border cannot determine it."
    )
    margin: float = Field(
        0.06, ge=0, lt=0.5, description="Margin on each side of the object, as a share of the crop."
    )


class Screening(Settings):
    """Near-duplicate images."""

    duplicates: Literal["list", "drop"] = stated(
        "list", "list", "list: only list near-duplicates; drop: use only the first of each group."
    )


class PoseSpace(Settings):
    """The maps that K-Means compares (section 3.1)."""

    mask_background: bool = stated(
        True, False, "Set patches outside the object to zero; false: project them, too."
    )
    normalize: bool = stated(True, False, "Scale each map to Euclidean length 1.")
    components: int = stated(3, 3, "Components of PCA 2.", ge=1, le=256)
    center: bool = stated(
        False,
        False,
        "Subtract the mean of all maps at each patch, before normalizing; removes what all images "
        "have in common there.",
    )


class Poses(Settings):
    """Clusters in pose space."""

    untracked = ("edits",)  # as a path; what it merges and drops is tracked

    method: Literal["kmeans", "spectral"] = stated(
        "kmeans",
        "kmeans",
        "K-Means, or spectral clustering, which separates front from rear better on real photos.",
    )
    k: int = Field(
        25, ge=2, le=10_000, description="Number of poses (paper: CompCars 25, armchairs 10)."
    )
    starts: int = Field(10, ge=1, description="Starts of K-Means; the best is kept.")
    seed: Seed = Field(0, description="Seed of the K-Means starts and of the choice of images.")
    fitted_images: int = Field(
        20_000,
        ge=2,
        description="Maximum number of images that clusters are fitted on, drawn at random; limits "
        "memory. All images get a pose (paper: fitted on all).",
    )
    edits: FileName = stated(
        "none",
        "none",
        "CSV file with pose, action, value; pose numbers are those before any edit. "
        "Actions: merge (value: pose to merge into), drop, or name (value: name for pictures). "
        "none: no edits.",
    )


_Places = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    BeforeValidator(
        lambda given: (given,) if isinstance(given, int) else given,
        json_schema_input_type=list[NonNegativeInt] | NonNegativeInt,
    ),
]


class Cameras(Settings):
    """Poses that determine what the data cannot; at most one per category."""

    front: _Places = Field(
        (), description="Numbers of poses that show the object from the front (poses/poses.png)."
    )
    left: _Places = Field(
        (),
        description="Numbers of poses whose front is at image-left, which determine the direction "
        "of rotation; each needs a front.",
    )


class Training(Settings):
    """The diffusion model and its training (paper, section 3.2 and appendix A).

    The paper states Adam, its learning rate and the iterations, and refers to DDIM for the rest.
    """

    untracked = (
        "log_every", "checkpoint_every", "sample_every", "scored_objects", "processes",
        "accumulation", "compile",
    )  # fmt: skip

    preset: Literal["paper", "small"] = stated(
        "paper", "paper", "The paper's U-Net, or a small one that can be trained on two CPU cores."
    )
    image_size: int = stated(64, 64, "Side of the images in pixels.", ge=16, le=8192, multiple_of=8)
    iterations: int = Field(
        1_000_000, ge=1, description="Optimizer steps (paper: CompCars 1e6, armchairs 5e5)."
    )
    hours: Annotated[float, Field(gt=0)] | Literal["none"] = Field(
        "none",
        description="Instead of iterations: training time, converted to a number of steps at the "
        "speed measured at the start, which is kept in checkpoints/budget.json.",
    )
    pretrained: FileName = stated(
        "none",
        "none",
        "Initial weights: model.safetensors of a run with the same preset and image "
        "size; with another number of poses, their embeddings start at random. none: random.",
    )
    batch_size: int = stated(128, 128, "Images per step.", ge=1)
    optimizer: Literal["adam", "muon"] = stated(
        "adam",
        "adam",
        "Adam, or Muon for the hidden layers and Adam for the rest, which is better for few steps.",
    )
    learning_rate: float = stated(2e-4, 2e-4, "Peak learning rate.", gt=0)
    schedule: Literal["constant", "cosine"] = stated(
        "constant", "constant", "Learning rate schedule: constant, or cosine decay to zero."
    )
    warmup: int = stated(0, 0, "Steps of linear learning rate warmup.", ge=0)
    ema: float = stated(0.9999, 0.9999, "Decay of the EMA weights.", ge=0, lt=1)
    dropout: float = stated(0.1, 0.1, "Dropout in residual blocks.", ge=0, lt=1)
    clip: float = stated(1.0, 1.0, "Gradient clipping: maximum norm.", gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = stated(
        "auto", "float32", "Arithmetic of the network; auto: bfloat16 where the hardware has it."
    )
    log_every: int = Field(
        100, ge=1, description="Steps between lines of metrics.jsonl, each with their mean loss."
    )
    checkpoint_every: int = Field(5000, ge=1, description="Steps between checkpoints.")
    sample_every: int = Field(
        5000, ge=1, description="Steps between sample grids and scores of views."
    )
    scored_objects: int = Field(
        6, ge=0, description="Objects whose views are scored during training; 0: none."
    )
    processes: int = Field(
        1, ge=1, description="Training processes, one per GPU, which divide the batch."
    )
    accumulation: int = Field(
        1, ge=1, description="Gradient accumulation: micro-batches per process and step."
    )
    compile: bool = Field(
        False,
        description="Compile the network by torch.compile, which needs a C++ compiler and takes "
        "minutes at each start; the result is the same up to rounding.",
    )
    seed: Seed = Field(0, description="Seed of weights, noise, timesteps and data order.")

    @model_validator(mode="after")
    def _levels_fit(self) -> "Training":
        if self.preset == "small" and self.image_size % 16:
            raise ValueError("image_size must be a multiple of 16 for the preset small")
        return self


class Views(Settings):
    """Sampling with cross-frame attention and hard-attention guidance (section 3.3)."""

    untracked = ("batch_size",)

    solver: Literal["ddim", "dpm-solver++"] = stated(
        "ddim",
        "ddim",
        "DDIM, or DPM-Solver++(2M), which reaches the same accuracy in about a fifth of the steps.",
    )
    steps: int = stated(
        50, 50, "Steps of the solver, each with one network evaluation.", ge=1, le=1000
    )
    last_timestep: int = stated(
        0,
        0,
        "Timestep of the last evaluation, whose predicted image is the result; dpm-solver++ ends "
        "at 5 at the latest. The preset small leaves grain below about 100.",
        ge=0,
        le=900,
    )
    batch_size: int = Field(
        64, ge=1, description="Images per batch, views and references together."
    )
    precision: Literal["auto", "float32", "bfloat16"] = stated(
        "auto", "float32", "Arithmetic of the network; auto: bfloat16 where the hardware has it."
    )
    shared_noise: bool = stated(
        True, True, "All views of an object start from the same noise; false: each from its own."
    )
    reject: float = stated(
        0.0,
        0.0,
        "Share of generated references to discard, those with the worst scores, in multi-view sets "
        "and on sheets.",
        ge=0,
        le=0.9,
    )
    seed: Seed = Field(0, description="Seed of noises, references and poses.")


class Guidance(Settings):
    """Cross-frame attention (equation 6) and hard-attention guidance (equation 7)."""

    gamma: float = stated(1.5, 1.5, "Weight of the soft pass in equation 7; 1 is off.", ge=0)
    attention: Literal["none", "decoder", "all"] = stated(
        "decoder",
        "decoder",
        "Where views read the reference's keys and values (equation 6). none: nowhere, which turns "
        "guidance off; decoder: in the middle and the decoder; all: in the encoder, too.",
    )
    reference: Literal["unguided", "guided"] = Field(
        "unguided",
        description="Whether the hard pass reads keys and values of the unguided reference, or of "
        "one that is guided like the views (the paper can be read both ways).",
    )

    @property
    def hard(self) -> bool:
        """Whether there is a hard pass."""
        return self.gamma != 1 and self.attention != "none"


class NovelViews(Settings):
    """Novel views of a photo, by inversion (section 3.3)."""

    untracked = ("max_pixels",)

    inversion_iterations: int = stated(
        1,
        1,
        "Network evaluations per step of the inversion: 1 is plain inversion by views.solver, more "
        "refine that of ddim by fixed-point iteration.",
        ge=1,
    )
    phase_cutoff: NonNegativeInt | Literal["none"] = stated(
        6,
        "none",
        "The other poses start from the photo's noise, with phases randomized above this frequency "
        "in cycles per image, which removes the photo's outlines; none: unchanged noise.",
    )
    max_pixels: int = _MAX_PIXELS


def require_refinable(views: Views, novel_views: NovelViews) -> None:
    """The sampler's inversion has as many iterations as asked for.

    Raises:
        UserError: it has only one.
    """
    iterations = novel_views.inversion_iterations
    if iterations > 1 and views.solver != "ddim":
        raise UserError(
            f"novel_views.inversion_iterations {iterations}: only DDIM inversion is refined; set "
            f"views.solver to ddim in place of {views.solver}"
        )


def require_invertible(views: Views, novel_views: NovelViews) -> None:
    """Photos can be inverted with these settings, and the inversion judged.

    Raises:
        UserError: there is one timestep only, which says nothing about the model, or as in
            :func:`require_refinable`.
    """
    if views.steps < 2:
        raise UserError(
            f"views.steps {views.steps}: too few to judge the reconstruction of a photo; use at "
            "least 2, better 50 with ddim and 10 with dpm-solver++"
        )
    require_refinable(views, novel_views)


class Sampling(Settings):
    """Sections for novel views of photos; a run stores them with its model."""

    views: Views = Views()
    guidance: Guidance = Guidance()
    novel_views: NovelViews = NovelViews()


# Azimuths in degrees, for data sets whose azimuth 0 is the front, as in EPFL.
VIEWPOINTS = {"front": 0, "half-front": 45, "side": 90, "half-back": 135, "rear": 180}
REFERENCE = re.compile(rf"\d{{1,5}}|\d{{1,3}}(?:\.\d+)?deg|{'|'.join(VIEWPOINTS)}")


def _references(given: object) -> object:
    """References as text: YAML reads the number of a pose as an integer."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    for one in map(str, several):
        if not REFERENCE.fullmatch(one):
            raise ValueError(
                f"{one} is none of: the number of a pose, an azimuth as 120deg, "
                f"{', '.join(VIEWPOINTS)}"
            )
    return tuple(dict.fromkeys(map(str, several)))


class Sheet(Settings):
    """The contact sheet: objects in rows, all poses in columns."""

    objects: int = Field(8, ge=1, description="Objects on the sheet.")
    references: Annotated[
        tuple[str, ...],
        BeforeValidator(_references, json_schema_input_type=list[str | int] | str | int),
    ] = Field(
        (),
        description="Additional sheets of the same objects, each with the same reference pose for "
        "all objects: the number of a pose or, if true azimuths are known, the pose nearest to one "
        "(120deg, front, half-front, side, half-back, rear). On the first sheet, references are "
        "random.",
    )


class Masks(Settings):
    """Background removal by segment-anything."""

    untracked = ("sam_batch_size",)

    sam: FileName = Field(
        "vit_h",
        description="vit_b, vit_l or vit_h (downloaded once), a checkpoint, or the folder of a "
        "stand-in; none: omit the rows without background.",
    )
    sam_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of SAM; auto: bfloat16 where the hardware has it."
    )
    sam_batch_size: int = Field(8, ge=1, description="Images per batch of SAM.")


class Fid(Settings):
    """The metrics table."""

    samples: int = Field(
        10_000, ge=2, description="Images per row; needs twice as many real images."
    )
    seed: Seed = Field(0, description="Seed of the choice of real images.")


class Evidence(Settings):
    """Evaluation of views: pose control, consistency, comparison with ground truth."""

    judged_objects: int = Field(
        24, ge=2, description="Number of generated objects, and of photos, to evaluate."
    )
    real_images: int = Field(
        24, ge=2, description="Real images per pose, which define the scale of consistency."
    )
    judge: FileName = Field(
        "efficientnet-lite0",
        description="Network for feature consistency, as in backbone.model; preferably not the "
        "one that found the poses.",
    )
    judge_resolution: int = Field(
        128, ge=16, le=8192, description="Side of the judge's square input in pixels."
    )


class Ablation(Settings):
    """Figure 3: the data set's settings, with one factor changed at a time."""

    ablated_objects: int = Field(8, ge=2, description="Objects, the same in every row.")
    gammas: tuple[NonNegativeFloat, ...] = Field(
        (1.0, 1.25, 1.5, 2.0, 3.0, 5.0), description="Values of guidance.gamma."
    )


class Embed(Settings):
    """Networks whose features FID and the other metrics compare."""

    inception: FileName = Field(
        "auto",
        description="Inception for the FID column: auto (downloaded once), the path of its "
        "TorchScript file, or none.",
    )
    token: Literal["cls", "mean-patch"] = Field(
        "cls",
        description="Feature for the backbone's columns: the CLS token (for efficientnet-lite0, "
        "its pooled features), or the mean patch token.",
    )


def published_inception(inception: str) -> str:
    """Name of Inception among the published networks, or its path."""
    return "inception" if inception == "auto" else inception


class Baseline(Settings):
    """Images of another method, scored as a row of the table."""

    path: Path = Field(description="Folder with the images.")
    background: Literal["kept", "removed", "remove"] = Field(
        "kept",
        description="kept: compare with the real images as they are; removed: the background is "
        "already white, compare with the real images without background; remove: remove it with "
        "SAM first.",
    )
    views: int | None = Field(
        None,
        ge=2,
        description="Views per object, if file names give object and view; then a picture shows "
        "some objects above ours.",
    )
    max_pixels: int = _MAX_PIXELS


_Number = Annotated[float, Strict()]  # not YAML's true and false


class Paper(Settings):
    """The paper's values for a data set, shown next to the measured ones."""

    k: int | None = Field(None, description="Number of poses; empty if the paper is silent.")
    iterations: int = Field(description="Training steps.")
    kind: str = Field(description="source.kind of the paper's data set.")
    category: str | None = Field(None, description="Category in the prompts of Stable Diffusion.")
    fid: dict[str, _Number] = Field(description="FID of rows of the table.")
    fid_of_others: dict[str, _Number] = Field(
        {}, description="FID of other methods, without background, by name of the baseline."
    )
    source: str = Field(description="Where in the paper, such as Table 1.")


class Dataset(Settings):
    """One data set: a section for each stage."""

    use: str | None = Field(
        None,
        description="Another data set, whose pose estimator and model are used; nothing is "
        "trained. With a source: novel views of the source's images. Without a source: a variant "
        "of that data set with other sampling settings.",
    )
    source: Source | None = Field(None, validate_default=True)
    categories: int = stated(
        1,
        1,
        "Object categories in the data set: clusters of CLS tokens, each with poses.k poses of its "
        "own (the paper's future work).",
        ge=1,
        le=10_000,
    )
    labels: FileName | None = Field(
        None, description="CSV file with the columns image and azimuth_deg, for evaluation only."
    )
    photos: Path | None = Field(
        None, description="Folder of photos for novel views (results/NAME/novel_views/PHOTO.png)."
    )
    backbone: Backbone = Backbone()
    screening: Screening = Screening()
    foreground: Foreground = Foreground()
    pose_space: PoseSpace = PoseSpace()
    poses: Poses = Poses()
    cameras: Cameras = Cameras()
    training: Training = Training()
    views: Views = Views()
    guidance: Guidance = Guidance()
    novel_views: NovelViews = NovelViews()
    sheet: Sheet = Sheet()
    masks: Masks = Masks()
    embed: Embed = Embed()
    fid: Fid = Fid()
    evidence: Evidence = Evidence()
    ablation: Ablation = Ablation()
    baselines: dict[Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")], Baseline] = Field(
        {}, description="Images of other methods, each a row of the table."
    )
    paper: Paper | None = Field(None, description="The paper's values, for comparison.")

    @field_validator("source")
    @classmethod
    def _images_come_from_somewhere(cls, source: Source | None, info: ValidationInfo) -> object:
        if source is None and info.data.get("use") is None:
            raise PydanticCustomError("missing", "is required")
        return source

    @model_validator(mode="after")
    def _views_have_other_poses(self) -> "Dataset":
        if self.poses.k < LEAST_POSES:
            raise ValueError(
                f"poses.k must be at least {LEAST_POSES}: every reference gets three other poses"
            )
        return self

    @model_validator(mode="after")
    def _another_s_model_is_used_whole(self) -> "Dataset":
        allowed = ("use", "source", "photos", *_MERGED, *(() if self.is_variant else ("labels",)))
        own = self.model_fields_set.difference(allowed)
        if self.use is not None and own:
            raise ValueError(
                f"{', '.join(sorted(own))}: is taken from {self.use} (use: {self.use}); remove it"
            )
        return self

    @model_validator(mode="after")
    def _baselines_have_names_of_their_own(self) -> "Dataset":
        for name in self.baselines:
            sets = evaluation_sets({})
            if name in sets or name in table_rows(sets) or name.endswith("-nobg"):
                raise ValueError(f"baselines.{name}: is a row of the table already; rename it")
            if self.masks.sam == "none" and self.baselines[name].background != "kept":
                raise ValueError(
                    f"baselines.{name}.background {self.baselines[name].background}: needs real "
                    "images without background; set masks.sam to a network that removes it"
                )
        return self

    @property
    def is_variant(self) -> bool:
        """Whether images, poses and model are those of the data set that it uses."""
        return self.use is not None and self.source is None

    @property
    def renders(self) -> bool:
        """Whether its source can render an object from all sides, one kind of object."""
        kinds = getattr(self.source, "objects", None)
        return self.categories == 1 and kinds in ("cars", "chairs", "mugs")

    @property
    def is_evaluated(self) -> bool:
        """Whether it has a table; not where another's model shows its photos."""
        return self.use is None or self.is_variant

    @property
    def sets(self) -> dict[str, EvaluationSet]:
        """The evaluation sets by name, those of the baselines among them."""
        baselines = {name: one.background for name, one in self.baselines.items()}
        return evaluation_sets(baselines, self.masks.sam != "none", self.guidance.hard)

    @property
    def compared(self) -> list[str]:
        """The baselines whose objects are shown above ours."""
        return [name for name, one in self.baselines.items() if one.views]

    def guidance_of(self, one: EvaluationSet) -> Guidance:
        """Guidance of a generated set; an unguided one stays valid when gamma changes."""
        return self.guidance if one.guided else self.guidance.model_copy(update={"gamma": 1.0})

    def views_of(self, one: EvaluationSet) -> Views:
        """Sampler of a generated set; single images share no noise and have no references."""
        single = {"reject": 0.0, "shared_noise": True}
        return self.views if one.source == "multi-view" else self.views.model_copy(update=single)

    def sampling(self, one: EvaluationSet) -> list[dict[str, object]]:
        """Settings that change the images of a generated set; of any other, none."""
        one = self.sets[one.unmasked] if one.unmasked else one
        if not one.generated:
            return []
        sections: list[Settings] = [self.views_of(one)]
        if one.source == "multi-view":
            sections.append(self.guidance_of(one))
        return [section.model_dump(exclude=set(section.untracked)) for section in sections]


class Configuration(Settings):
    """The whole configuration."""

    results: FileName = Field("results", description="Folder of all outputs.")
    weights: FileName = Field(
        WEIGHTS,
        description="Folder into which published networks are downloaded once; may be shared.",
    )
    shards: int = Field(
        1,
        ge=1,
        le=1000,
        description="Number of jobs into which features, generated images and masks are split; "
        "the results are the same. Set it before the first run: a change makes outputs stale.",
    )
    targets: tuple[str, ...] | None = Field(
        None, description="Data sets that `snakemake` makes without a target; default: all."
    )
    datasets: dict[Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")], Dataset]

    def dataset(self, name: str) -> Dataset:
        """Settings of a data set; with ``use``, those of the other data set filled in.

        A variant's source stays None.
        """
        dataset = self.datasets[name]
        if dataset.use is None:
            return dataset
        used = self.datasets[dataset.use]
        own: dict[str, Any] = {"source": dataset.source, "use": dataset.use}
        if not dataset.is_variant:
            own |= {"photos": dataset.photos, "labels": dataset.labels}
        elif "photos" in dataset.model_fields_set:
            own["photos"] = dataset.photos
        for key in dataset.model_fields_set.intersection(_MERGED):
            section = getattr(dataset, key)
            given = {one: getattr(section, one) for one in section.model_fields_set}
            own[key] = getattr(used, key).model_copy(update=given)
        return used.model_copy(update=own)

    def home(self, name: str) -> str:
        """The data set that has the images, poses and model: of a variant, the used one."""
        dataset = self.datasets[name]
        return dataset.use if dataset.is_variant else name

    def makers(self, name: str) -> dict[str, str]:
        """For each evaluation set the data set that makes it.

        A variant makes what its settings change and takes the rest from the used one.
        """
        dataset, home = self.dataset(name), self.home(name)
        used = self.dataset(home)
        return {
            key: home if key in used.sets and dataset.sampling(one) == used.sampling(one) else name
            for key, one in dataset.sets.items()
        }

    def own_sets(self, name: str) -> tuple[str, ...]:
        """The evaluation sets that a data set makes itself."""
        return tuple(key for key, maker in self.makers(name).items() if maker == name)

    @model_validator(mode="after")
    def _names_exist(self) -> "Configuration":
        for name in self.targets or ():
            if name not in self.datasets:
                raise ValueError(f"targets: {name} is not a data set")
        for name, dataset in self.datasets.items():
            if dataset.use is None:
                continue
            if dataset.use not in self.datasets or dataset.use == name:
                raise ValueError(f"datasets.{name}.use: {dataset.use} is not another data set")
            if self.datasets[dataset.use].use is not None:
                raise ValueError(
                    f"datasets.{name}.use: {dataset.use} has no model of its own; use "
                    f"{self.datasets[dataset.use].use}"
                )
        return self

    @model_validator(mode="after")
    def _references_are_poses(self) -> "Configuration":
        for name in self.datasets:
            dataset = self.dataset(name)
            require_poses(dataset, dataset.poses.k, f"datasets.{name}.")
        return self


def require_poses(dataset: Dataset, k: int, where: str = "") -> None:
    """Refuse settings that name a pose which is not there.

    Args:
        dataset: with references and cameras.
        k: number of poses of each category.
        where: start of the keys in the error.

    Raises:
        ValueError: with the first of them.
    """
    for one in dataset.sheet.references:
        require_pose(f"{where}sheet.references", one, k)
    for key, poses in dataset.cameras:
        for one in poses:
            require_pose(f"{where}cameras.{key}", str(one), k * dataset.categories)


def require_pose(key: str, reference: str, k: int) -> None:
    """Refuse a reference that is the number of a pose which is not there.

    Raises:
        ValueError: it is not below ``k``.
    """
    if reference.isdigit() and int(reference) >= k:
        raise ValueError(f"{key} {reference}: there are {k} poses, 0 to {k - 1}")


def deviations(section: type[Settings] | Settings, name: str) -> list[str]:
    """Keys of a section whose value, or default, differs from the paper's.

    Args:
        section: an instance, or a class for its defaults.
        name: of the section in the configuration, empty for the data set itself.
    """
    cls = section if isinstance(section, type) else type(section)
    found = []
    for key, field in cls.model_fields.items():
        extra = field.json_schema_extra
        paper = extra.get("paper") if isinstance(extra, dict) else None
        value = field.default if section is cls else getattr(section, key)
        if paper is not None and value != paper:
            path = f"{name}.{key}".removeprefix(".")
            found.append(f"{path} {in_yaml(value)} (paper: {in_yaml(paper)})")
    return found


def sections() -> dict[str, type[Settings]]:
    """The sections of a data set that steps take as flags, by their key."""
    found = {key: field.annotation for key, field in Dataset.model_fields.items()}
    return {
        key: cls
        for key, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, Settings)
    }


_ALL = 200_000  # poses.fitted_images, more than any data set of the paper has


def differences(dataset: Dataset) -> list[str]:
    """Settings of a data set that differ from what the paper states."""
    found = deviations(dataset, "") + deviations(dataset.source, "source")
    found += [line for name in sections() for line in deviations(getattr(dataset, name), name)]
    if dataset.paper is None:
        return found
    training, iterations = dataset.training, dataset.paper.iterations
    timed = training.hours != "none" and iterations is not None
    if timed:
        found.append(f"training.hours {training.hours} (paper: {iterations} iterations)")
    values = {
        "source.kind": (dataset.source.kind, dataset.paper.kind),
        "source.category": (getattr(dataset.source, "category", None), dataset.paper.category),
        "poses.k": (dataset.poses.k, dataset.paper.k),
        "training.iterations": (training.iterations, None if timed else iterations),
    }
    found += [
        f"{path} {value} (paper: {paper})"
        for path, (value, paper) in values.items()
        if paper is not None and value != paper
    ]
    if dataset.backbone.model == "efficientnet-lite0":
        found.append("backbone.model efficientnet-lite0 (paper: DINOv2)")
    if dataset.poses.fitted_images < _ALL:
        found.append(f"poses.fitted_images {dataset.poses.fitted_images} (paper: all)")
    return found


def load(config: Mapping) -> Configuration:
    """Validate a configuration read from YAML.

    Raises:
        UserError: names every wrong key with its path, and the key that was probably meant.
    """
    try:
        return Configuration.model_validate(config)
    except ValidationError as error:
        datasets = config.get("datasets") if isinstance(config, Mapping) else None
        names = list(map(str, datasets)) if isinstance(datasets, Mapping) else []
        problems = [_explain(one, names) for one in _problems(error)]
        if len(problems) > _MOST_PROBLEMS:
            problems[_MOST_PROBLEMS:] = [f"and {len(problems) - _MOST_PROBLEMS} more"]
        raise UserError("; ".join(problems)) from None


_MOST_PROBLEMS = 10  # told at once

# Keys of former versions, and what became of them.
_FORMER = {
    "pose_space.background": "is now called mask_background (zero: true, kept: false)",
    "pose_space.length": "is now called normalize (one: true, kept: false)",
    "training.record_every": "is now called log_every",
    "novel_views.kept_frequencies": "is now called phase_cutoff (all: none)",
    "novel_views.inversion_steps": "is gone: photos are inverted by the sampler of views.steps",
    "ablation.ablation_steps": "is gone: the ablation samples with views.steps",
    "novel_views.stride": "is gone: with views.solver dpm-solver++ fewer views.steps suffice",
}

_KINDS = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(Source)[0])}


def _problems(error: ValidationError) -> Iterator[dict]:
    """Pydantic's descriptions of what is wrong; one where a number may also be ``none``."""
    found = error.errors()
    pairs = {one["loc"][:-1] for one in found if one["loc"][-1:] == ("literal['none']",)}
    for one in found:
        place, expected = one["loc"][:-1], one["msg"].partition(",")[0]
        if one["type"] == "extra_forbidden" or place not in pairs:
            yield dict(one)
        elif one["type"] != "literal_error":
            yield {**one, "loc": place, "msg": f"{expected}, or none"}


def _explain(problem: Mapping, names: list[str]) -> str:
    """A validation error as one line: the key's path, the value and a hint.

    Args:
        problem: as pydantic describes it.
        names: of all data sets.
    """
    path, given = [str(part) for part in problem["loc"]], problem["input"]
    kind = None
    if path[2:3] == ["source"] and path[3:4] and path[3] in _KINDS:
        kind = path.pop(3)  # the tag of the union, not a key of the user's
    where = "config: " + (".".join(path) or "top level")
    if problem["type"] == "as_read":  # of a key of this section
        key, shown = problem["ctx"]["key"], problem["ctx"]["given"]
        return f"config: {'.'.join([*path, key])}: {problem['msg']} (got {shown})"
    if problem["type"] == "extra_forbidden":
        if former := _FORMER.get(".".join(path[-2:])):
            return f"{where} {former}"
        known = _known_keys(path[:-1], kind)
        meant = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {meant[0]!r}?" if meant else f"known here: {', '.join(known)}"
        return f"{where} is not a key; {hint}"
    if problem["type"] == "missing":
        others = [name for name in names if name not in path]
        meant = difflib.get_close_matches(path[1], others, n=1) if path[2:] == ["source"] else []
        return f"{where} is required" + (f"; did you mean {meant[0]!r}?" if meant else "")
    if problem["type"] == "path_type":
        return f"{where}: must be the text of a path (got {_short(given)}; put it in quotes)"
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        wrong = "is required" if problem["type"] == "union_tag_not_found" else "is unknown"
        return f"{where}.kind {wrong}: {', '.join(_KINDS)}"
    if problem["loc"][-1:] == ("[key]",):
        place = where.rpartition(".")[0]
        if not isinstance(given, str):
            return f'{place}: is no text; put it in quotes, as "{_short(given)}"'
        return f"{place}: names are ASCII letters, digits, and _ . - after the first; at most 100"
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{where}: {message[0].lower()}{message[1:]}"
    if given is None:
        return f"{message} (it is empty: give a value or remove the key)"
    if isinstance(given, dict | BaseModel):
        return message
    quotes = "; put it in quotes" if problem["type"] == "string_type" else ""
    return f"{message} (got {_short(given)}{quotes})"


def explain_argument(name: str, error: ValidationError) -> str:
    """What is wrong in a section that was given to a function, as one line.

    Args:
        name: of the section and the argument.
        error: of the section.
    """
    place = ("datasets", "", name)  # where the configuration has such a section
    lines = (_explain({**one, "loc": (*place, *one["loc"])}, []) for one in _problems(error))
    return "; ".join(line.removeprefix("config: datasets..") for line in lines)


def explain_flags(error: ValidationError) -> str:
    """What is wrong in a section that was given as flags, as one line."""
    return "; ".join(map(_explain_flag, _problems(error)))


def _explain_flag(problem: Mapping) -> str:
    found = problem.get("ctx", {})
    key, shown = found.get("key", ".".join(map(str, problem["loc"]))), found.get("given", "")
    message = problem["msg"].removeprefix("Value error, ")
    if not key:  # of several together
        return message
    flag = f"--{key.replace('_', '-')} {shown or problem['input']}"
    return f"{flag}: {message[0].lower()}{message[1:]}"


def _short(value: object) -> str:
    """A value for an error message, its start where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _known_keys(path: list[str], kind: str | None) -> list[str]:
    """Keys that are allowed at ``path`` in the configuration."""
    if path[2:3] == ["source"]:
        return list(_KINDS[kind].model_fields)
    model, keys = Configuration, iter(path)
    for key in keys:
        annotation = model.model_fields[key].annotation
        if get_origin(annotation) is dict:
            next(keys, None)  # the name of a data set or baseline, which may be that of a key
        # The section of dict[name, section] and of section | None.
        inner = [part for part in get_args(annotation) if isinstance(part, type)]
        sections = [part for part in inner if issubclass(part, BaseModel)]
        model = sections[-1] if sections else annotation
    return list(model.model_fields)
