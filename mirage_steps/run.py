"""A finished run in Python: locates the object of any photo and renders it in all poses.

Pose estimator and diffusion model are the run's; nothing is fitted to the photo. Photos get the
same preprocessing as the training images, so a training image gets its crop and pose of the run.
Unreliable results carry a :class:`PhotoWarning`.
"""

import contextlib
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import scipy
import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from mirage_steps.errors import UserError, errors_at, rerun
from mirage_steps.files.atomic import identity
from mirage_steps.files.estimator import ESTIMATOR, load_estimator
from mirage_steps.files.generated_objects import GeneratedObjects
from mirage_steps.files.images import MAX_PIXELS
from mirage_steps.files.names import not_a
from mirage_steps.files.pack import run_folder
from mirage_steps.files.photo_views import CropViews, LocatedPhoto, PhotoViews
from mirage_steps.files.photos import Photo, open_photo
from mirage_steps.files.pose_names import NAMES, read_pose_names
from mirage_steps.files.project import PROJECT
from mirage_steps.files.records import home_of
from mirage_steps.method import inversion
from mirage_steps.method.boxes import Box, as_box, clipped, content_box, crop, letterbox
from mirage_steps.method.device import autocast, choose_device, memory_advice, one_thread
from mirage_steps.method.diffusion import (
    frame_noise,
    from_pixels,
    keyed_noise,
    sampling_timesteps,
    to_pixels,
)
from mirage_steps.method.evidence import in_pose
from mirage_steps.method.foreground import TokenBatch, separation
from mirage_steps.method.metrics import psnr
from mirage_steps.method.multiview import sample_all_poses
from mirage_steps.method.pose_estimator import Detection, Estimate, PoseEstimator
from mirage_steps.method.reliability import Clearness, PhotoWarning, far_warnings
from mirage_steps.method.unet import UNet, UNetConfig
from mirage_steps.networks.backbone import Backbone, load_backbone
from mirage_steps.networks.diffusion_model import load_model
from mirage_steps.references import References
from mirage_steps.settings import (
    Guidance,
    NovelViews,
    Sampling,
    Views,
    explain_argument,
    require_invertible,
)

if TYPE_CHECKING:
    from mirage_steps.files.meshes import PhotoMesh

# The embedded model: trained for hours on rendered cars.
SHOWCASE = PROJECT / "weights/showcase-cars"

MODEL = "training/model.safetensors"

_PSNR = 26.0  # dB
# Between mean colors in 0..255; two unrelated cars of the demo are 78 apart.
_COLOR_DRIFT = 80.0
# Of the views in other poses than the photo's, by the estimator of the run. Thresholds are between
# held-out cars and photos unlike the training data (docs/novel_views.md).
_TURNED = 0.2  # share in the requested or an adjacent pose, from that by chance (0) to all (1)
_SHOWN = 0.25  # of the poses, that they show; fewer speak for the same outline in all views
_FAR_VIEWS = 0.9  # share that is far from every pose
# Largest feature maps (pixels a side) that a single image is better sampled on one thread with.
_LITTLE = 32
_MAX_PSNR = 99.0  # dB; equal images have no finite ratio


# Some settings of a section by their keys.
Changes = Mapping[str, object]
_Section = TypeVar("_Section", bound=BaseModel)


@dataclass(frozen=True, repr=False)
class Run:
    """What a finished run stored."""

    folder: Path  # such as results/demo, or the file of a pack
    model: UNet  # the diffusion model, in evaluation mode
    backbone: Backbone  # the vision transformer that made the run's features
    estimator: PoseEstimator  # with all its parts
    identity: dict[str, object]  # what tells the model and the backbone apart
    names: tuple[str, ...]  # of the poses, `pose N` where the user gave none
    sampling: Sampling = Sampling()  # how the run samples, unless another setting is given

    def __repr__(self) -> str:
        return f"Run({self.folder}: {self.model.config.poses} poses, {self.backbone.name})"

    @classmethod
    def load(
        cls,
        folder: Path | str = SHOWCASE,
        *,
        backbone: Path | str | None = None,
        device: str = "auto",
    ) -> "Run":
        """Load a run.

        Args:
            folder: such as ``results/demo``, of a data set that was trained, or what the export
                step made of one, a folder or a file; by default the embedded model of rendered
                cars.
            backbone: folder of the vision transformer, where it has moved since the run.
            device: auto, cpu or cuda.

        Raises:
            UserError: something is missing, damaged, or of another run.
        """
        given = Path(folder).expanduser()
        folder = run_folder(given)
        if wrong := not_a("folder", folder):
            wrong = wrong.replace("no such folder", "no such file or folder")
            raise UserError(f"run {folder}: {wrong}; give one such as results/demo")
        if (home := home_of(folder)) != folder:
            raise UserError(
                f"run {folder}: is a variant of {home}, which has the model; give {home}, and the "
                "variant's settings as flags or arguments"
            )
        where = choose_device(device)
        model = load_model(folder / "training", where)
        path = folder / "poses" / ESTIMATOR
        estimator = load_estimator(path, "poses")
        poses, categories = model.config.poses, model.config.categories
        if (estimator.number_of_poses, len(estimator.poses)) != (poses, categories):
            raise UserError(
                f"{path}: has {estimator.number_of_poses} poses, the model was trained with "
                f"{poses}; run snakemake again"
            )
        network = load_backbone(given, estimator.backbone, backbone, where)
        used = {
            "model": {**identity(folder / MODEL), "path": str(given / MODEL)},
            "backbone": {"name": network.name, "sha256": network.sha256},
        }
        names = tuple(read_pose_names(folder / NAMES, poses))
        return cls(given, model, network, estimator, used, names, stored_sampling(folder))

    def locate(
        self, photo: Photo, box: Box | None = None, max_pixels: int = MAX_PIXELS
    ) -> LocatedPhoto:
        """Find the object in a photo, and its pose.

        Args:
            photo: a file, an image, an array or a tensor, as :func:`.open_photo` takes them.
            box: of the object in pixels of the upright photo, (x0, y0, x1, y1); found by PCA 1
                where none is given.
            max_pixels: larger photos are refused.

        Raises:
            UserError: it cannot be read, is too small or too large, or the box is not on it.
        """
        opened = open_photo(photo, max_pixels)
        image = opened.image
        found, box_by = self._detect(image, box)
        # As for the training images: the pose is that of the centered crop.
        square = crop(image, found.centered, self.backbone.resolution)
        content = content_box(*image.size, found.centered)
        estimate = self.estimator.estimate(self._tokens(square, content))
        scores, threshold = found.scores, self.estimator.foreground.threshold
        share = separation(scores[~np.isnan(scores)], threshold)
        return LocatedPhoto(
            photo=opened.name,
            path=opened.path,
            sha256=opened.sha256,
            size=image.size,
            box=found.box,
            box_by=box_by,
            window=found.window,
            crop=np.asarray(crop(image, found.window, self.model.config.image_size)),
            pose=int(estimate.poses[0]),
            category=int(estimate.categories[0]),
            distance=float(estimate.distances[0]),
            foreground_separation=share,
            warnings=tuple(self._warnings(found, box_by, estimate)),
        )

    def _tokens(self, square: Image.Image, content: Box = (0, 0, 1, 1)) -> TokenBatch:
        """Tokens of one square, of which ``content`` (in fractions) is image."""
        tokens = self.backbone.half_tokens(np.asarray(square)[None])
        return TokenBatch(slice(0, 1), *tokens, np.array([content], np.float32))

    def _detect(self, image: Image.Image, box: Box | None) -> tuple[Detection, str]:
        """The object in a photo, and who found it."""
        square = letterbox(image, self.backbone.resolution, self.backbone.fill)
        where = self._tokens(square, content_box(*image.size)), [image.size]
        given = None if box is None else on_photo(box, image.size)
        (found,) = self.estimator.locate(*where, [given])
        if found.box is not None:
            by = "photo" if self.estimator.whole else "foreground"
            return found, by if box is None else "user"
        whole = (0.0, 0.0, float(image.width), float(image.height))
        return self.estimator.locate(*where, [whole])[0], "whole photo"

    def _warnings(
        self, found: Detection, box_by: str, estimate: Estimate
    ) -> Iterator[PhotoWarning]:
        """Warnings about a photo's box and pose."""
        if box_by == "whole photo":
            reason = "no object was found, so the whole photo is used; give a box"
            yield PhotoWarning(reason, "foreground patches", 0, 1)
        if box_by == "foreground":
            yield from Clearness.of(found, self.estimator.foreground.threshold).warnings()
        side, least = found.window[2] - found.window[0], self.model.config.image_size / 2
        if side < least:
            reason = "the object is small, so its crop is blurred"
            yield PhotoWarning(reason, "side of the crop in pixels", side, least)
        if not estimate.shown.any():
            reason = "the crop shows no foreground, so the pose is meaningless"
            yield PhotoWarning(reason, "foreground patches of the crop", 0, 1)
        yield from far_warnings(float(estimate.distances[0]), self.estimator.far)

    def novel_views(
        self,
        photo: Photo,
        *,
        box: Box | None = None,
        poses: Sequence[int] | None = None,
        views: Views | Changes | None = None,
        guidance: Guidance | Changes | None = None,
        novel_views: NovelViews | Changes | None = None,
    ) -> PhotoViews:
        """Show a photo's object in all poses.

        The settings are the run's (:attr:`sampling`), except those that are given: in a dict, such
        as ``views={"steps": 20}``, or a whole section.

        Args:
            photo: as in :meth:`locate`.
            box: as in :meth:`locate`.
            poses: only these, in this order, by their numbers 0 to k - 1 in the photo's category.
                Warnings that compare the poses of the views are given for all poses only.
            views: sampler.
            guidance: hard-attention guidance.
            novel_views: inversion, the initial noise of the other poses, and the largest photo.

        Raises:
            UserError: as in :meth:`locate`, or there is no such pose or setting.
        """
        wanted = self._places(poses)
        views = _changed("views", self.sampling.views, views)
        guidance = _changed("guidance", self.sampling.guidance, guidance)
        novel_views = _changed("novel_views", self.sampling.novel_views, novel_views)
        started = time.perf_counter()
        located = self.locate(photo, box, novel_views.max_pixels)
        seconds = {"locate": round(time.perf_counter() - started, 3)}
        with memory_advice("views.batch_size", views.batch_size):
            made = crop_views(
                self.model, located.crop, located.pose, views, guidance, novel_views, wanted
            )
        settings = {**self.identity, **dict(views), **dict(guidance), **dict(novel_views)}
        seconds |= made.seconds
        fields = {**vars(located), **vars(made), "seconds": seconds, "settings": settings}
        return PhotoViews(**fields | self._judged(located, made, whole=wanted is None))

    def _judged(self, located: LocatedPhoto, made: CropViews, whole: bool) -> dict[str, object]:
        """What the run's estimator sees in a photo's views, ``whole`` if in all poses."""
        colors, poses, distances, masks = map(
            np.array, zip(*self._seen([located.crop, *made.views], whole), strict=True)
        )
        gaps = np.linalg.norm(colors[1:] - colors[0], axis=1).round(1).tolist()
        drift = tuple(None if np.isnan(gap) else gap for gap in gaps)
        warnings = [*located.warnings, *_view_warnings(made, drift)]
        if whole:
            own = made.poses.index(located.pose)
            asked, shown, distances = (  # the photo's own pose first, then those around the circle
                np.roll(one, -own) for one in (np.array(made.poses), poses[1:], distances[1:])
            )
            warnings += _pose_warnings(asked, shown[1:], distances[1:], self.estimator.far)
        known = whole or self.estimator.centers is None
        return {
            "warnings": tuple(warnings),
            "color_drift": drift,
            "view_poses": tuple(poses[1:].tolist()) if known else None,
            "masks": masks[1:],
            "names": tuple(self.names[pose] for pose in made.poses),
        }

    def _places(self, poses: Sequence[int] | None) -> list[int] | None:
        """Places of chosen poses in a category; None for all of them.

        Raises:
            UserError: there are no such poses, or one is given twice.
        """
        if poses is None:
            return None
        k = len(self.model.config.siblings(0))
        with contextlib.suppress(TypeError):
            found = [operator.index(pose) for pose in poses]
            if found and len(set(found)) == len(found) and set(found) <= set(range(k)):
                return found
        raise UserError(f"poses {poses}: give numbers of poses, 0 to {k - 1}, each once")

    def sample(
        self,
        objects: int = 4,
        *,
        poses: Sequence[int] | None = None,
        reference: int | None = None,
        seed: int = 0,
        views: Views | Changes | None = None,
        guidance: Guidance | Changes | None = None,
        progress: bool = False,
    ) -> GeneratedObjects:
        """Generate objects in all poses; settings as in :meth:`novel_views`.

        Noise is keyed by seed and object, so the first objects of a larger call are the same. The
        run's contact sheet has those of the seed ``run.sampling.views.seed + 1``.

        Args:
            objects: how many.
            poses: only these, in this order, by their numbers 0 to k - 1 in a category; the
                categories alternate.
            reference: pose of the view that all others attend to, by the same numbers; random for
                each object by default.
            seed: of noises and references.
            views: sampler, whose own seed is not used.
            guidance: cross-frame attention and guidance.
            progress: whether to show a bar on stderr.

        Raises:
            UserError: there is no such pose, number, seed or setting, or too little memory.
        """
        objects = _integer("objects", objects, 1, 2**32 - 1)
        seed = _integer("seed", seed, 0, 2**32 - 1)
        wanted, k = self._places(poses), len(self.model.config.siblings(0))
        columns = None if reference is None else [_integer("reference", reference, 0, k - 1)]
        if isinstance(views, Mapping) and "seed" in views:
            raise UserError(f"views.seed is not used here; give seed={views['seed']!r}")
        views = _changed("views", self.sampling.views, views)
        guidance = _changed("guidance", self.sampling.guidance, guidance)
        chooser = References(self.model, views, self.estimator, self.backbone)
        made = generated_objects(chooser, objects, seed, guidance, columns, wanted)
        made = list(tqdm(made, total=objects, unit="object", disable=not progress))
        numbers, images, shown, places = zip(*made, strict=True)
        pairs, config = zip(shown, places, strict=True), self.model.config
        names = () if config.categories > 1 else [self.names[pose] for pose in shown[0]]
        return GeneratedObjects(
            images=np.stack(images),
            poses=np.array(shown),
            references=tuple(config.siblings(own[0])[place] for own, place in pairs),
            numbers=numbers,
            settings={**self.identity, **dict(views), **dict(guidance), "seed": seed},
            names=tuple(names),
        )

    def mesh(self, views: PhotoViews | GeneratedObjects, number: int = 0) -> "PhotoMesh":
        """A textured mesh of a photo's or a generated object, by cameras of the run.

        The cameras are refined on the object's masks.

        Args:
            views: by this run.
            number: of the generated object, its row.

        Raises:
            UserError: the views are no result of a run, the run has no cameras, there is no such
                object, or the views' masks show too little.
        """
        if not isinstance(views, (PhotoViews, GeneratedObjects)):
            raise UserError(
                f"mesh of {type(views).__name__}: give what run.novel_views or run.sample returned"
            )
        # Slow to import, and no edit there makes views stale (files/step_code.py).
        from mirage_steps.files.cameras import CAMERAS, read_cameras
        from mirage_steps.files.meshes import PhotoMesh

        if isinstance(views, PhotoViews):
            name, poses, images, masks = views.photo, views.poses, views.views, views.masks
        else:
            number = _integer("number", number, 0, len(views.images) - 1)
            name, poses, images = f"object {number}", views.poses[number], views.images[number]
            masks = self.masks(images)
        path = run_folder(self.folder) / CAMERAS
        model = self.estimator
        if not (path.is_file() or (model.mask_background and model.centers is None)):
            raise UserError(
                f"{path}: not there, and cannot be made: a mesh needs poses found with pose_space."
                "mask_background true and pose_space.center false"
            )
        cameras = read_cameras(path, [int(pose) for pose in poses])
        with errors_at(f"{name}: "):
            return PhotoMesh.of(images, masks / 255, cameras)

    def masks(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Masks (n, S, S) uint8 of images (n, S, S, 3) uint8, 255 where there is an object.

        Raises:
            UserError: the images have another shape or type.
        """
        arrays = [np.asarray(image) for image in images]
        for image in arrays:
            if not image.size or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise UserError(
                    f"images: one is {image.shape} {image.dtype}; give "
                    "(n, height, width, 3) uint8, such as the views of a photo or objects.images[0]"
                )
        if len({image.shape for image in arrays}) != 1:
            raise UserError("images: there are none, or they have different sizes")
        return np.stack([mask for *_, mask in self._seen(arrays)])

    def _seen(
        self, images: Sequence[np.ndarray] | np.ndarray, all_poses: bool = False
    ) -> Iterator[tuple[np.ndarray, int, float, np.ndarray]]:
        """Mean color (3,) of the foreground of each image (S, S, 3), NaN where there is none.

        And its pose, with the distance to it, and a mask (S, S) uint8: the scores of the patches,
        interpolated and cut, where they are connected with the object.

        Args:
            images: of the same size.
            all_poses: whether all but the first show the same object in all poses.
        """
        size, grid, side = images[0].shape[1::-1], self.backbone.grid, self.backbone.resolution
        squares = (crop(Image.fromarray(one), (0.0, 0.0, *size), side) for one in images)
        batches, estimator = list(map(self._tokens, squares)), self.estimator
        if all_poses:
            estimator = estimator.recentered(batches[1:])
        for pixels, tokens in zip(images, batches, strict=True):
            found = estimator.estimate(tokens)
            shown = found.shown.reshape(grid, grid)
            patches = np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.NEAREST))
            color = pixels[patches].mean(0) if shown.any() else np.full(3, np.nan)
            scores = self.estimator.foreground.scores(tokens.tokens)[0]
            fine = Image.fromarray(scores).resize(size, Image.Resampling.BICUBIC)
            grown = scipy.ndimage.binary_dilation(shown)
            near = Image.fromarray(grown).resize(size, Image.Resampling.NEAREST)
            mask = (np.asarray(fine) > self.estimator.foreground.threshold) & np.asarray(near)
            yield color, int(found.poses[0]), float(found.distances[0]), np.uint8(255) * mask


def _integer(name: str, value: object, least: int, most: int) -> int:
    """An argument that is an integer in a range.

    Raises:
        UserError: it is none.
    """
    with contextlib.suppress(TypeError):
        found = operator.index(value)  # type: ignore[arg-type]
        if least <= found <= most and not isinstance(value, bool):
            return found
    raise UserError(f"{name} {value!r}: give an integer from {least} to {most}")


def _changed(name: str, own: _Section, given: _Section | Changes | None) -> _Section:
    """A section of the run's settings with those that the argument ``name`` gives."""
    if given is None:
        return own
    if isinstance(given, type(own)):
        return given
    if not isinstance(given, Mapping):
        keys = ", ".join(type(own).model_fields)
        raise UserError(f"{name} {given!r}: give a dict with some of the keys {keys}")
    try:
        return type(own).model_validate({**dict(own), **given})
    except ValidationError as error:
        raise UserError(explain_argument(name, error)) from None


def _view_warnings(made: CropViews, color_drift: Sequence[float | None]) -> Iterator[PhotoWarning]:
    """Warnings about the views of a photo."""
    psnr_db = made.reconstruction_psnr_db
    if psnr_db < _PSNR:
        reason = "poorly reconstructed: unlike the training images, or too few steps"
        yield PhotoWarning(reason, "PSNR in dB", psnr_db, _PSNR)
    drifts = zip(made.poses, color_drift, strict=True)
    other = {pose: drift for pose, drift in drifts if drift and drift > _COLOR_DRIFT}
    if other:
        poses = ", ".join(map(str, other))
        reason = f"the object has another color in {len(other)} views: pose {poses}"
        yield PhotoWarning(reason, "largest difference", max(other.values()), _COLOR_DRIFT)


def _pose_warnings(
    asked: np.ndarray, shown: np.ndarray, distances: np.ndarray, far: float
) -> Iterator[PhotoWarning]:
    """Warnings about the poses of the views, as found by the run's estimator.

    Args:
        asked: (k,) poses of the category, in circular order; the photo's own is first.
        shown: (k - 1,) poses seen in the views that were asked to have the others.
        distances: (k - 1,) to the centroids of these.
        far: beyond which hardly any training image is from its pose.
    """
    k = len(asked)
    near = in_pose(asked[1:], shown, k, within=1)
    share, chance, poses = float(near.mean()), min(1.0, 3 / k), len(np.unique(shown))
    limit = chance + _TURNED * (1 - chance)
    if share < limit:
        reason = "few views show the requested pose or an adjacent one"
        yield PhotoWarning(reason, "their share", share, limit)
    if poses <= _SHOWN * k:
        reason = f"the pose estimator sees few different poses in the views of all {k}"
        yield PhotoWarning(reason, "poses shown", poses, _SHOWN * k)
    share = float((distances > far).mean())
    if share > _FAR_VIEWS:
        reason = "the views are far from every pose; 99% of the training images are nearer to one"
        yield PhotoWarning(reason, "their share", share, _FAR_VIEWS)


def crop_views(
    model: UNet,
    pixels: np.ndarray,
    pose: int,
    views: Views,
    guidance: Guidance,
    novel_views: NovelViews,
    places: Sequence[int] | None = None,
) -> CropViews:
    """A crop in all poses of its category, by inversion (section 3.3).

    Args:
        model: the diffusion model.
        pixels: (S, S, 3) uint8, the crop.
        pose: of the crop.
        views, guidance, novel_views: as in :meth:`Run.novel_views`.
        places: in the category, of the poses to show; all by default.
    """
    siblings = model.config.siblings(pose)
    poses = tuple(siblings if places is None else [siblings[place] for place in places])
    require_invertible(views, novel_views)
    timesteps = sampling_timesteps(views)
    iterations = novel_views.inversion_iterations
    device = next(model.parameters()).device
    image, own = from_pixels(pixels[None]).to(device), torch.tensor([pose], device=device)
    started = time.perf_counter()
    little = model.config.image_size // model.config.stem <= _LITTLE
    with one_thread() if little else contextlib.nullcontext():
        trajectory = inversion.invert(model, image, own, timesteps, iterations, views.solver)
        back = inversion.reconstruct(model, trajectory, own, timesteps, views.solver)
        back = to_pixels(back)[0]
    inverted = time.perf_counter()
    # A single image gains nothing from lower precision, so only the views are sampled in it.
    with autocast(device, views.precision):
        made = inversion.novel_views(
            model,
            image,
            pose,
            trajectory,
            timesteps,
            cutoff=None if novel_views.phase_cutoff == "none" else novel_views.phase_cutoff,
            guidance=guidance,
            batch_size=views.batch_size,
            seed=views.seed,
            solver=views.solver,
            poses=poses,
        )
    made = to_pixels(made)
    sampled = time.perf_counter()
    return CropViews(
        poses=poses,
        views=made,
        reconstruction=back,
        reconstruction_psnr_db=min(psnr(pixels, back), _MAX_PSNR),
        inversion_evaluations=len(timesteps) * iterations,
        seconds={"invert": round(inverted - started, 3), "sample": round(sampled - inverted, 3)},
    )


def reference_pose(config: UNetConfig, number: int, seed: int) -> int:
    """Pose of the reference of a generated object; categories alternate."""
    k = config.poses // config.categories
    drawn = int(np.random.default_rng([seed, number, 1]).integers(k))
    return number % config.categories * k + drawn


def generated_object(
    model: UNet,
    number: int,
    seed: int,
    views: Views,
    guidance: Guidance,
    reference: int | None = None,
    places: Sequence[int] | None = None,
) -> tuple[np.ndarray, tuple[int, ...], int]:
    """A generated object in all poses of a category, and its reference.

    Noise and reference (:func:`reference_pose`) are keyed by the seed and the object's number, so
    other settings of the sampler show the same object.

    Args:
        model: the diffusion model.
        number: of the object.
        seed: of noise and reference.
        views: sampler, whose own seed is not used.
        guidance: cross-frame attention and guidance.
        reference: its place among the poses of the category; random by default.
        places: of the poses to show; all by default.

    Returns:
        (k, S, S, 3) uint8, the poses (k,), and the place of the reference in the category.
    """
    config, device = model.config, next(model.parameters()).device
    side, pose = config.image_size, reference_pose(config, number, seed)
    siblings = config.siblings(pose)
    poses = tuple(siblings if places is None else [siblings[place] for place in places])
    k, drawn = len(siblings), siblings.index(pose)
    chosen = drawn if reference is None else reference
    noise = keyed_noise(seed, [number], (3, side, side))
    if not views.shared_noise:
        others = frame_noise(seed, [number], k, (3, side, side))[0, 1:]
        noise = torch.cat([others[:chosen], noise, others[chosen:]])
    with autocast(device, views.precision), memory_advice("views.batch_size", views.batch_size):
        images = sample_all_poses(
            model,
            noise.to(device),
            siblings[chosen],
            sampling_timesteps(views),
            guidance,
            views.batch_size,
            solver=views.solver,
            poses=poses,
        )
    return to_pixels(images), poses, chosen


def generated_objects(
    chooser: References,
    count: int,
    seed: int,
    guidance: Guidance,
    columns: Sequence[int] | None = None,
    places: Sequence[int] | None = None,
) -> Iterator[tuple[int, np.ndarray, tuple[int, ...], int]]:
    """Numbers of generated objects, and what :func:`generated_object` gives of each.

    Args:
        chooser: has the model and the sampler, and leaves out bad references.
        count: number of objects.
        seed: of noises and references.
        guidance: cross-frame attention and guidance.
        columns: places of the references, in turn, of which none is left out; random by default.
        places: of the poses to show; all by default.
    """
    model, views, numbers = chooser.model, chooser.views, range(count)
    if columns is None:
        numbers = chooser.chosen(numbers, seed, lambda n: reference_pose(model.config, n, seed))
    for number in numbers:
        column = None if columns is None else columns[number % len(columns)]
        made = generated_object(model, number, seed, views, guidance, column, places)
        yield (number, *made)


def on_photo(box: Sequence[float], size: tuple[int, int]) -> Box:
    """The part of a given box that lies on the photo."""
    # Not numbers, not four, or None outside the photo.
    with contextlib.suppress(IndexError, TypeError, ValueError):
        x0, y0, x1, y1 = clipped(as_box(box), *size)
        if min(x1 - x0, y1 - y0) >= 1:
            return (x0, y0, x1, y1)
    raise UserError(
        f"box {box}: empty or outside the photo of {size[0]}x{size[1]} pixels; give x0 y0 x1 y1 "
        "in pixels from the top left, x0 < x1 and y0 < y1"
    )


def stored_sampling(folder: Path) -> Sampling:
    """The settings by which a run samples; the defaults where it stored none.

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = run_folder(folder) / "training/sampling.json"
    try:
        return Sampling.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Sampling()
    except ValidationError:
        raise UserError(f"{path}: damaged or of another version; {rerun('sampling')}") from None
