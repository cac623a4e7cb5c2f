"""What the steps of a data set will write and compute, from its settings and number of images.

Sizes of artifacts follow from the shapes that the steps write; memory and operations are measured
on networks without weights (:mod:`mirage_steps.tools.unloaded`). All are upper bounds in the
number of images, since unreadable files and images without an object drop out. Not counted:
pictures, tables, logs, the index that HDF5 keeps (a few percent), text encoder and decoder of
Stable Diffusion, the photos that are turned, and what a process needs beside its tensors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mirage_steps import settings
from mirage_steps.networks.fetching import is_published, place
from mirage_steps.networks.inception import INCEPTION_DIM
from mirage_steps.settings import GENERATED, MASKED, REAL, Configuration, Dataset
from mirage_steps.tools import unloaded
from mirage_steps.views import NOVEL_VIEWS

_KMEANS_ROUNDS = 300  # scikit-learn's limit of a start
_MOMENTS_BATCH = 64  # images at once, of the foreground and pose_space steps


@dataclass(frozen=True)
class Artifact:
    """A file that is written, some of a folder, or all.

    Args:
        path: of the file or folder; its last part may be a pattern.
        size: in bytes.
        note: for the reader.
        temporary: whether it goes again before the end.
        until: where this is there, the artifact is not made any more.
    """

    path: Path
    size: float
    note: str = ""
    temporary: bool = False
    until: Path | None = None

    @property
    def present(self) -> int:
        """Bytes that are there."""
        whole = self.path.is_dir()
        found = self.path.rglob("*") if whole else self.path.parent.glob(self.path.name)
        return sum(path.stat().st_size for path in found if path.is_file())

    @property
    def missing(self) -> float:
        """Bytes that are still to be written."""
        if self.until is not None and self.until.exists():
            return 0
        return max(0, self.size - self.present)


@dataclass(frozen=True)
class Stage:
    """Work of one step.

    Args:
        name: of the step.
        runs: what, how often.
        flops: floating-point operations in all, None where they are not known.
        memory: bytes of its tensors, None where it is not known.
    """

    name: str
    runs: str
    flops: float | None
    memory: float | None


def artifacts(
    dataset: Dataset,
    count: int,
    tokens: unloaded.Tokens,
    generator: unloaded.Generator | None,
    folder: Path,
    shards: int = 1,
) -> list[Artifact]:
    """What the steps write into the data set's folder, in their order.

    With several shards the parts lie beside the whole until that is there.
    """
    pixels = dataset.training.image_size**2
    tokens_size = count * (tokens.patches + 1) * tokens.dim * 2
    maps, tokens_file = folder / "pose_space/maps.h5", folder / "features/tokens.h5"
    copies = 1 if shards == 1 else 2
    made = [
        *_made_images(dataset.source, count, folder),
        Artifact(tokens_file, tokens_size),
        Artifact(folder / "crops/crops.h5", count * pixels * 3),
        Artifact(
            folder / "crop_features/tokens*.h5", copies * tokens_size, "until maps.h5", True, maps
        ),
        # Three float32 and one bool a patch.
        Artifact(maps, count * tokens.patches * 13),
    ]
    if shards > 1:
        pattern = tokens_file.with_name("tokens.*-of-*.h5")
        made.append(Artifact(pattern, tokens_size, "parts", True, tokens_file))
    if generator is None:
        return made
    model, checkpoints = folder / "training/model.safetensors", folder / "training/checkpoints"
    checkpoint = generator.checkpoint
    kept = min(2, -(-dataset.training.iterations // dataset.training.checkpoint_every))
    feature = tokens.dim + (INCEPTION_DIM if dataset.embed.inception != "none" else 0)
    samples = dataset.fid.samples
    made += [
        Artifact(checkpoints / "step-*.pt", kept * checkpoint, "the newest two", until=model),
        Artifact(checkpoints / "its replacement", checkpoint, "while written", True, model),
        Artifact(model, generator.weights),
    ]
    plain, masked = sets(dataset)
    for name in (*plain, *masked):
        size, note = (4, "images, masks, features") if name in masked else (3, "images, features")
        size = samples * (pixels * size + feature * 4)
        made.append(Artifact(folder / "sets" / name / "*.h5", size, note))
    return made


def published(
    configuration: Configuration, dataset: Dataset, tokens: unloaded.Tokens
) -> list[Artifact]:
    """Published networks that the steps fetch, where they are not here yet."""
    folder = Path(configuration.weights)
    sizes: dict[str, float] = {}
    if is_published(dataset.backbone.model, "backbone.model"):
        sizes[dataset.backbone.model] = 4 * tokens.cost.parameters
    if not dataset.use and dataset.masks.sam in unloaded.SAM_BYTES:
        sizes[dataset.masks.sam] = unloaded.SAM_BYTES[dataset.masks.sam]
    if not dataset.use and dataset.embed.inception == "auto":
        sizes["inception"] = unloaded.INCEPTION_BYTES
    if getattr(dataset.source, "model", None) == unloaded.SD_1_5:
        sizes[unloaded.SD_1_5] = unloaded.SD_BYTES
    made = []
    for name, size in sizes.items():
        path = place(name, folder)
        made.append(Artifact(path, size, until=path))
    return made


def needed(made: Sequence[Artifact]) -> float:
    """Bytes still to be written; of what is temporary only one is there at a time."""
    passing = max((one.missing for one in made if one.temporary), default=0)
    return passing + sum(one.missing for one in made if not one.temporary)


def sets(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Names of the sets of images, and of those whose background is removed."""
    removed = [name for name, one in dataset.baselines.items() if one.background == "remove"]
    plain = [*REAL, *GENERATED, *dataset.baselines]
    return plain, [*MASKED, *(f"{name}-nobg" for name in removed)]


def stages(
    dataset: Dataset,
    count: int,
    tokens: unloaded.Tokens,
    generator: unloaded.Generator | None,
) -> list[Stage]:
    """What the steps compute, in their order."""
    vit, dim, k = tokens.cost, tokens.dim, dataset.poses.k
    network = f"{Path(dataset.backbone.model).name} ({vit.parameters / 1e6:.1f} M)"
    moments = 2 * count * tokens.patches * dim**2
    # A batch as float16, as float32 twice and as float64 twice; four scatter matrices.
    held = _MOMENTS_BATCH * tokens.patches * dim * 26 + 4 * dim**2 * 8
    distances = 2 * count * tokens.patches * 3 * k
    maps = count * tokens.patches * 13
    features = f"{count} images, {network}"
    made = [Stage("features", features, count * vit.flops, vit.memory)]
    if isinstance(dataset.source, settings.StableDiffusion):
        made.insert(0, _making(dataset.source, count))
    crops = Stage("crop_features", features, count * vit.flops, vit.memory)
    if generator is None:
        turning = Stage("turn", f"{dataset.sheet.objects} photos, all poses", None, None)
        return [*made, crops, Stage("poses", "nearest poses", distances, maps), turning]
    rounds = dataset.poses.starts * _KMEANS_ROUNDS
    what = f"K-Means, at most {dataset.poses.starts} x {_KMEANS_ROUNDS} rounds"
    return [
        *made,
        Stage("foreground", "PCA 1, moments of all tokens", moments, held),
        crops,
        Stage("pose_space", "PCA 2, moments of at most all tokens", moments, held),
        Stage("poses", what, rounds * distances, maps),
        *_generation(dataset, generator),
        *_evaluation(dataset, tokens),
    ]


def _making(source: settings.StableDiffusion, count: int) -> Stage:
    """Images of Stable Diffusion that are still to be made, or at most all."""
    cost = unloaded.stable_diffusion(source)
    runs = f"{count} images, {source.model}"
    if cost is None:
        return Stage("dataset", runs, None, None)
    runs = f"{count} images, {source.steps} steps, {Path(source.model).name}'s U-Net"
    return Stage("dataset", runs, count * cost.flops, cost.memory)


def _generation(dataset: Dataset, generator: unloaded.Generator) -> Iterator[Stage]:
    """Training, generated sets, contact sheet."""
    training, views, samples = dataset.training, dataset.views, dataset.fid.samples
    gamma = dataset.guidance.gamma
    cost, iterations = generator.step(), training.iterations
    unet = f"U-Net {training.preset} ({cost.parameters / 1e6:.1f} M)"
    runs = f"{iterations} steps of {training.batch_size} images, {unet}"
    yield Stage("train", runs, iterations * cost.flops, cost.memory)
    single, objects = generator.single(views.batch_size), -(-samples // NOVEL_VIEWS)
    plain = generator.multi(NOVEL_VIEWS, views.batch_size, 1.0)
    guided = generator.multi(NOVEL_VIEWS, views.batch_size, gamma)
    costs = {"mv-bg-no-hag": (objects, plain), "mv-bg-hag": (objects, guided)}
    for name in GENERATED:
        units, cost = costs.get(name, (samples, single))
        what = f"{units} objects x {1 + NOVEL_VIEWS} views" if name in costs else f"{units} images"
        runs = f"{what}, {views.steps} DDIM steps"
        yield Stage(f"views {name}", runs, units * views.steps * cost.flops, cost.memory)
    cost = generator.contact_sheet(dataset.sheet, views, gamma)
    runs = f"{dataset.sheet.objects} objects, all poses, {views.steps} DDIM steps"
    yield Stage("sheet", runs, cost.flops, cost.memory)


def _evaluation(dataset: Dataset, tokens: unloaded.Tokens) -> Iterator[Stage]:
    """Masks and features of the sets."""
    samples, vit = dataset.fid.samples, tokens.cost
    sam = unloaded.sam(dataset.masks)
    plain, masked = sets(dataset)
    runs = f"{len(masked)} x {samples} images, {Path(dataset.masks.sam).name} and the backbone"
    flops = len(masked) * samples * (sam.flops + vit.flops)
    weights = 4 * vit.parameters  # stay where SAM runs
    yield Stage("masks", runs, flops, max(sam.memory + weights, vit.memory + 4 * sam.parameters))
    # Of a baseline only the set that makes a row is embedded.
    count = len(plain) + len(masked) - sum(f"{name}-nobg" in masked for name in dataset.baselines)
    runs, flops, memory = f"{count} x {samples} images, the backbone", vit.flops, vit.memory
    if dataset.embed.inception != "none":
        inception = unloaded.inception(dataset.backbone.batch_size)
        runs, flops = f"{runs} and Inception", flops + inception.flops
        memory = max(memory + 4 * inception.parameters, inception.memory + weights)
    yield Stage("embed", runs, count * samples * flops, memory)


def _made_images(source: settings.Source, count: int, folder: Path) -> list[Artifact]:
    """Files that the dataset step makes; PNG's compression was measured on examples."""
    if isinstance(source, settings.StableDiffusion):
        return [Artifact(folder / "images", count * source.saved_size**2 * 1.6, "PNG")]
    if not isinstance(source, settings.Procedural):
        return []
    scale = source.size / 96
    return [
        Artifact(folder / "images", count * 5840 * scale**1.4, "PNG, roughly"),
        Artifact(folder / "true_masks", count * 430 * scale, "PNG, roughly"),
    ]
