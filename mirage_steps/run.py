"""A finished run as a tool: any photo cropped, posed, inverted and shown from all sides.

Both PCAs, the centroids and the model are those that the run stored; nothing is fitted to the
photo. A photo goes the way of the run's own images, so that one of them gets the crop and the pose
that it has in the run (where the run found its boxes itself). Where the result should not be
trusted, it says so: :class:`Doubt`.
"""

import contextlib
import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import identity, read_csv, write_json
from mirage_steps.files.images import UnreadableImage, read_rgb, upright_rgb
from mirage_steps.method.boxes import (
    Box,
    centred,
    clipped,
    content_box,
    crop,
    from_letterbox,
    letterbox,
    square_window,
    valid_patches,
    window_content,
)
from mirage_steps.method.categories import CategoryModel, mean_token
from mirage_steps.method.device import autocast, choose_device
from mirage_steps.method.diffusion import ddim_timesteps, from_pixels, to_pixels
from mirage_steps.method.foreground import (
    ForegroundModel,
    Region,
    find_objects,
    object_maps,
    separation,
)
from mirage_steps.method.inversion import invert, novel_views, reconstruct
from mirage_steps.method.metrics import psnr
from mirage_steps.method.pca import Pca
from mirage_steps.method.poses import PoseModel, fill_padding
from mirage_steps.method.unet import UNet
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.diffusion_model import load_model
from mirage_steps.networks.fetching import is_published
from mirage_steps.settings import Backbone as BackboneSettings
from mirage_steps.settings import Guidance, NovelViews, PoseSpace, Views

SMALLEST = 16  # pixels a side below which a photo shows nothing
# Beyond this share of the run's own images, by their distance to the nearest pose, a photo is far.
_FAR = 0.99
# Share of the variance of a photo's scores that lies between foreground and background. Photos of
# the demo's cars have 0.88 and more.
_SEPARATION = 0.7
# Share of the foreground in its largest part.
_LARGEST = 0.75
_PSNR = 26.0  # dB
_NEAREST = Image.Resampling.NEAREST
# Between mean colours in 0..255; two unrelated cars of the demo are 78 apart.
_COLOUR = 80.0


@dataclass(frozen=True)
class Turned:
    """Views, reconstruction and its quality, evaluations of the network, seconds."""

    views: np.ndarray
    restored: np.ndarray
    psnr_db: float
    evaluations: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Doubt:
    """A reason not to trust a turned photo.

    Args:
        reason: in words.
        measure: what was measured.
        value: of the measure.
        limit: that the value is beyond.
    """

    reason: str
    measure: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.reason} ({self.measure} {self.value:.3g}, limit {self.limit:.3g})"


@dataclass(frozen=True)
class Located:
    """Where a photo shows its object, and in which pose.

    Args:
        box: of the object in pixels of the upright photo.
        box_by: who found it: ``foreground``, ``user``, or ``whole photo`` where nobody did.
        window: of the crop in pixels.
        crop: (S, S, 3) uint8, what the model is shown.
        pose: nearest centroid.
        category: kind of object, 0 where there is one kind.
        distance: Euclidean, to the centroid.
        separation: share of the variance of the photo's scores between foreground and background,
            in [0, 1].
        doubts: about all this.
    """

    box: Box
    box_by: str
    window: Box
    crop: np.ndarray
    pose: int
    category: int
    distance: float
    separation: float
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True, repr=False)
class TurnedPhoto:
    """A photo in all poses.

    Args:
        name: of the photo.
        size: width and height of the upright photo in pixels.
        located: the object in it.
        poses: numbers of the poses, in circular order.
        turned: views and reconstruction.
        colour_drift: of each view, how far the mean colour of its foreground lies from that of the
            photo, Euclidean in 0..255; None where either shows no foreground.
        settings: that made them.
        seconds: of each part of the work.
    """

    name: str
    size: tuple[int, int]
    located: Located
    poses: tuple[int, ...]
    turned: Turned
    colour_drift: tuple[float | None, ...]
    settings: dict[str, object]
    seconds: dict[str, float]

    def __repr__(self) -> str:
        return f"TurnedPhoto({self._title()}; {len(self.doubts)} warnings)"

    @property
    def views(self) -> np.ndarray:
        """(k, S, S, 3) uint8 in circular order; in its own pose the photo's crop."""
        return self.turned.views

    @property
    def pose(self) -> int:
        """The photo's own pose."""
        return self.located.pose

    @property
    def psnr_db(self) -> float:
        """Peak signal-to-noise ratio of the reconstruction in dB, at most 99."""
        return self.turned.psnr_db

    @cached_property
    def doubts(self) -> tuple[Doubt, ...]:
        """Reasons not to trust the views; empty where there is none."""
        doubts = list(self.located.doubts)
        if self.psnr_db < _PSNR:
            reason = (
                "the model gives the photo back poorly: it is unlike what it learnt, or the steps "
                "are too few"
            )
            doubts.append(Doubt(reason, "reconstruction in dB", self.psnr_db, _PSNR))
        drifts = dict(zip(self.poses, self.colour_drift, strict=True))
        other = {pose: drift for pose, drift in drifts.items() if drift and drift > _COLOUR}
        if other:
            poses = ", ".join(map(str, other))
            reason = f"the object takes another colour in {len(other)} views: pose {poses}"
            doubts.append(Doubt(reason, "largest difference", max(other.values()), _COLOUR))
        return tuple(doubts)

    def record(self) -> dict[str, object]:
        """All but the pixels, for JSON."""
        located = self.located
        return {
            "photo": self.name,
            "size": list(self.size),
            "box": [round(edge, 3) for edge in located.box],
            "box_by": located.box_by,
            "window": [round(edge, 3) for edge in located.window],
            "pose": located.pose,
            "category": located.category,
            "poses": list(self.poses),
            "distance": located.distance,
            "foreground_separation": located.separation,
            "reconstruction_psnr_db": self.psnr_db,
            "inversion_evaluations": self.turned.evaluations,
            "colour_drift": [d if d is None else round(d, 1) for d in self.colour_drift],
            "warnings": [
                {"reason": doubt.reason, "measure": doubt.measure, "value": doubt.value,
                 "limit": doubt.limit}
                for doubt in self.doubts
            ],
            "settings": self.settings,
            "seconds": {key: round(value, 3) for key, value in self.seconds.items()},
        }  # fmt: skip

    def save(self, folder: Path | str, stem: str | None = None) -> Path:
        """Write all that is known of the photo.

        Args:
            folder: gets ``STEM.png``, the strip of views; ``STEM.gif``, which turns; ``STEM.json``;
                and ``STEM.views/`` with ``crop.png``, ``reconstruction.png`` and ``pose_NN.png``.
            stem: by default the photo's name without its suffix.

        Returns:
            The strip's path.

        Raises:
            UserError: files are in the way that this did not write.
        """
        stem = Path(self.name).stem if stem is None else stem
        folder = Path(folder)
        require_free(folder, stem)
        images = {"crop": self.located.crop, "reconstruction": self.turned.restored}
        images |= {f"pose_{p:02d}": v for p, v in zip(self.poses, self.views, strict=True)}
        path, separate = folder / f"{stem}.png", folder / f"{stem}.views"
        unfinished = folder / f".{stem}.views.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        # First of all: it marks the others as written here, also where this is cut short.
        write_json(folder / f"{stem}.json", self.record())
        try:
            for name, image in images.items():
                tiles.save_image(unfinished / f"{name}.png", image)
            tiles.turn(folder / f"{stem}.gif", self.views[None])
            tiles.save_image(path, np.asarray(self.strip()))
            shutil.rmtree(separate, ignore_errors=True)
            unfinished.rename(separate)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return path

    def strip(self) -> Image.Image:
        """All poses side by side, the photo's own framed, warnings below."""
        own = self.poses.index(self.pose)
        return tiles.strip(self.views, self.poses, own, self._title(), list(map(str, self.doubts)))

    def _title(self) -> str:
        return (
            f"{self.name}: own pose {self.pose} (red), distance {self.located.distance:.3f}; "
            f"reconstructed at {self.psnr_db:.1f} dB by {self.turned.evaluations} evaluations"
        )

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.strip()._repr_png_()


def require_free(folder: Path, stem: str) -> None:
    """Refuse a place where files lie that :meth:`TurnedPhoto.save` did not write.

    Raises:
        UserError: the name cannot be one, or files of somebody else have it.
    """
    if not stem or Path(stem).name != stem or stem.startswith("."):
        raise UserError(f"{stem!r} cannot be the name of outputs; give one by --name")
    about = folder / f"{stem}.json"
    names = (about, *(folder / f"{stem}{end}" for end in (".png", ".gif", ".views")))
    there = [path for path in names if path.exists()]
    if there and not _is_record(about):
        raise UserError(f"{there[0]}: is in the way and was not made here; give another --out")


def _is_record(path: Path) -> bool:
    """Whether a file is what :meth:`TurnedPhoto.save` writes."""
    try:
        return "inversion_evaluations" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


@dataclass(frozen=True, repr=False)
class Run:
    """What a finished run stored.

    Args:
        folder: of the run, such as ``results/demo``.
        model: the diffusion model, in evaluation mode.
        backbone: the vision transformer that made the run's features.
        foreground: PCA 1.
        margin: share of a crop left free on each side of the object.
        pose_space: what the maps hold.
        pcas: PCA 2 of each category.
        poses: centroids of each category.
        kinds: assigns a category and names its feature; None where there is one kind.
        far: distance to the nearest centroid beyond which hardly any of the run's images is.
        identity: what tells the model and the backbone apart.
    """

    folder: Path
    model: UNet
    backbone: Backbone
    foreground: ForegroundModel
    margin: float
    pose_space: PoseSpace
    pcas: list[Pca]
    poses: list[PoseModel]
    kinds: tuple[CategoryModel, str] | None
    far: float
    identity: dict[str, object]

    def __repr__(self) -> str:
        return f"Run({self.folder}: {self.model.config.poses} poses, {self.backbone.name})"

    @classmethod
    def load(
        cls, folder: Path | str, *, backbone: Path | str | None = None, device: str = "auto"
    ) -> "Run":
        """Load a run.

        Args:
            folder: such as ``results/demo``, of a data set that was trained.
            backbone: folder of the vision transformer, where it has moved since the run.
            device: auto, cpu or cuda.

        Raises:
            UserError: something is missing, damaged, or of another run.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise UserError(f"run {folder}: no such folder; give one such as results/demo")
        where = choose_device(device)
        for name in ("config.json", "model.safetensors"):
            with _reading(folder / "training" / name):
                pass
        model = load_model(folder / "training", where)
        with _reading(folder / "foreground/foreground.run.json") as path:
            margin = float(_content(path)["settings"]["margin"])
        with _reading(folder / "pose_space/pose_space.run.json") as path:
            space = _content(path)["settings"]
            pose_space = PoseSpace(**{key: space[key] for key in PoseSpace.model_fields})
        with _reading(folder / "foreground/pca1.npz") as path:
            pca1 = ForegroundModel.load(path)
        with _reading(folder / "pose_space/pca2.npz") as path, np.load(path) as arrays:
            pcas = Pca.unstack(arrays)
        with _reading(folder / "poses/poses.npz") as path:
            poses = PoseModel.load_all(path)
        with _reading(folder / "poses/poses.csv") as path:
            distances = [float(row["distance"]) for row in read_csv(path)]
            far = float(np.quantile(distances, _FAR))
            if not np.isfinite(far):
                raise ValueError("distances that are no numbers")
        network, recorded = _backbone(folder, backbone, where)
        run = cls(
            folder,
            model,
            network,
            pca1,
            margin,
            pose_space,
            pcas,
            poses,
            _kinds(folder) if len(poses) > 1 else None,
            far,
            {
                "model": identity(folder / "training/model.safetensors"),
                "backbone": {"name": network.name, "files": recorded},
            },
        )
        run._require_one_run()
        return run

    def _require_one_run(self) -> None:
        """Refuse files that do not belong together, as where only some were made anew."""
        counts = (sum(len(model.centroids) for model in self.poses), len(self.poses))
        config = self.model.config
        if counts != (config.poses, config.categories):
            raise UserError(
                f"{self.folder}: its model knows {config.poses} poses, poses/poses.npz has "
                f"{counts[0]}; finish the run: snakemake ... {self.folder}/overview.txt"
            )
        dims = {self.backbone.dim, len(self.foreground.pca.mean), *(len(p.mean) for p in self.pcas)}
        grids = {self.backbone.grid**2, *(len(model.means) for model in self.poses)}
        kinds = {len(self.pcas), len(self.poses)}
        if self.kinds is not None:
            kinds.add(len(self.kinds[0].weights))
        if len(dims) > 1 or len(grids) > 1 or len(kinds) > 1:
            raise UserError(
                f"{self.folder}: its PCAs, poses and {self.backbone.name} do not fit together; "
                f"finish the run: snakemake ... {self.folder}/overview.txt"
            )

    def locate(
        self, photo: Path | str | Image.Image | np.ndarray, box: Box | None = None
    ) -> Located:
        """Find the object in a photo, and its pose.

        Args:
            photo: a file, an RGB image, or (H, W, 3) uint8.
            box: of the object in pixels of the upright photo, (x0, y0, x1, y1); found by PCA 1
                where none is given.

        Raises:
            UserError: it cannot be read, is too small, or the box is not on it.
        """
        return self._locate(_opened(photo)[1], box)

    def _locate(self, image: Image.Image, box: Box | None) -> Located:
        width, height = image.size
        fill = tuple(round(255 * value) for value in self.backbone.mean)
        tokens, _ = self._tokens(letterbox(image, self.backbone.resolution, fill))
        valid = valid_patches(
            np.array([content_box(width, height)], np.float32), self.backbone.grid
        )
        scores = self.foreground.scores(tokens)
        threshold = self.foreground.threshold
        region = find_objects(scores, threshold, valid)[0]
        share = separation(scores[valid], threshold)
        doubts: list[Doubt] = []
        if box is not None:
            found, box_by = _on_photo(box, width, height), "user"
        elif region is not None:
            found, box_by = from_letterbox(region.box, width, height), "foreground"
            doubts = _foreground_doubts(region, scores[valid] > threshold, share)
        else:
            found, box_by = (0.0, 0.0, float(width), float(height)), "whole photo"
            reason = "no object was found, so the whole photo is taken; give a box"
            doubts = [Doubt(reason, "foreground patches", 0, 1)]
        window = _in_table(square_window(found, width, height, self.margin))
        found = _in_table(found)
        side = self.model.config.image_size
        if window[2] - window[0] < side / 2:
            reason = "the object is small, so its crop is blurred"
            width_of_crop = window[2] - window[0]
            doubts.append(Doubt(reason, "side of the crop in pixels", width_of_crop, side / 2))
        # As for the run's own images: what is posed is centred, what is turned stays on the photo.
        middle = centred(window, found)
        tokens, cls_token = self._tokens(crop(image, middle, self.backbone.resolution))
        content = np.array([window_content(middle, width, height)], np.float32)
        category, pose, distance, pose_doubts = self._pose(tokens, cls_token, content)
        return Located(
            found,
            box_by,
            window,
            np.asarray(crop(image, window, side)),
            pose,
            category,
            distance,
            share,
            (*doubts, *pose_doubts),
        )

    def _pose(
        self, tokens: np.ndarray, cls_token: np.ndarray, content: np.ndarray
    ) -> tuple[int, int, float, list[Doubt]]:
        """Category, pose and distance of a crop, and what is doubtful about them."""
        inside = valid_patches(content, self.backbone.grid)
        shown = (self.foreground.scores(tokens) > self.foreground.threshold) & inside
        shown, inside = (mask.reshape(1, -1) for mask in (shown, inside))
        doubts, category = [], 0
        if not shown.any():
            reason = "the crop shows no foreground, so the pose means nothing"
            doubts.append(Doubt(reason, "foreground patches of the crop", 0, 1))
        if self.kinds is not None:
            model, token = self.kinds
            feature = cls_token if token == "cls" else mean_token(tokens, shown)
            category = int(model.assign(feature)[0][0])
        space = self.pose_space
        values = self.pcas[category].project(tokens)
        maps = object_maps(values, shown, space.mask_background, space.normalize)
        poses = self.poses[category]
        fill_padding(maps, inside, poses.means)
        nearest, distances = poses.assign(maps)
        distance = float(distances[0])
        if distance > self.far:
            reason = f"far from every pose; of the run's own images {_FAR:.0%} are nearer to one"
            doubts.append(Doubt(reason, "distance", distance, self.far))
        pose = int(nearest[0]) + category * len(poses.centroids)
        return category, pose, distance, doubts

    def _tokens(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (1, T, dim) and CLS token (1, dim), rounded as those of the run's images."""
        found = self.backbone.tokens(np.asarray(image)[None])
        patches, summary = (part.half().float().cpu().numpy() for part in found)
        return patches, summary

    def _colours(self, images: np.ndarray) -> np.ndarray:
        """Mean colour of the foreground, (n, S, S, 3) uint8 to (n, 3); NaN where there is none."""
        grid = self.backbone.grid
        colours = np.full((len(images), 3), np.nan)
        for image, colour in zip(images, colours, strict=True):
            whole = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
            tokens, _ = self._tokens(crop(Image.fromarray(image), whole, self.backbone.resolution))
            shown = self.foreground.scores(tokens)[0] > self.foreground.threshold
            mask = Image.fromarray(shown.reshape(grid, grid)).resize(image.shape[1::-1], _NEAREST)
            if shown.any():
                colour[:] = image[np.asarray(mask)].mean(0)
        return colours

    def turn(
        self,
        photo: Path | str | Image.Image | np.ndarray,
        *,
        box: Box | None = None,
        views: Views = Views(),
        guidance: Guidance = Guidance(),
        novel_views: NovelViews = NovelViews(),
    ) -> TurnedPhoto:
        """Show a photo's object in all poses.

        Args:
            photo: a file, an RGB image, or (H, W, 3) uint8.
            box: as in :meth:`locate`.
            views: sampler.
            guidance: hard-attention guidance.
            novel_views: inversion, and what the other poses start from.

        Raises:
            UserError: as in :meth:`locate`.
        """
        started = time.perf_counter()
        name, image = _opened(photo)
        located = self._locate(image, box)
        seconds = {"locate": time.perf_counter() - started}
        turned = turn_crop(self.model, located.crop, located.pose, views, guidance, novel_views)
        colours = self._colours(np.stack([located.crop, *turned.views]))
        drift = np.linalg.norm(colours[1:] - colours[0], axis=1)
        used = {**views.model_dump(), **guidance.model_dump(), **novel_views.model_dump()}
        return TurnedPhoto(
            name,
            image.size,
            located,
            tuple(self.model.config.siblings(located.pose)),
            turned,
            tuple(None if np.isnan(value) else float(value) for value in drift),
            {**self.identity, **used},
            {**seconds, **turned.seconds},
        )


def turn_crop(
    model: UNet,
    crop: np.ndarray,
    pose: int,
    views: Views,
    guidance: Guidance,
    settings: NovelViews,
) -> Turned:
    """Views of a crop by the sections of a configuration.

    Args:
        model: the diffusion model.
        crop: (S, S, 3) uint8.
        pose: of the crop.
        views: sampler.
        guidance: hard-attention guidance.
        settings: inversion, and what the other poses start from.
    """
    device = next(model.parameters()).device
    timesteps, own = ddim_timesteps(views.steps), torch.tensor([pose], device=device)
    image, iterations = from_pixels(crop[None]).to(device), settings.inversion_iterations
    clock = [time.perf_counter()]
    trajectory = invert(model, image, own, timesteps, iterations)
    clock.append(time.perf_counter())
    restored = to_pixels(reconstruct(model, trajectory, own, timesteps))[0]
    clock.append(time.perf_counter())
    with autocast(device, views.precision):
        made = novel_views(
            model, image, pose, trajectory, timesteps, stride=settings.stride,
            cutoff=None if settings.phase_cutoff == "none" else settings.phase_cutoff,
            gamma=guidance.gamma, batch_size=views.batch_size, seed=views.seed,
        )  # fmt: skip
    pixels = to_pixels(made)
    clock.append(time.perf_counter())
    seconds = dict(zip(("invert", "restore", "turn"), np.diff(clock).tolist(), strict=True))
    quality = min(psnr(crop, restored), 99.0)
    return Turned(pixels, restored, quality, len(timesteps) * iterations, seconds)


def _opened(photo: Path | str | Image.Image | np.ndarray) -> tuple[str, Image.Image]:
    """Name and upright RGB image of a photo.

    Raises:
        UserError: it cannot be read, or is too small.
    """
    name, where = "photo", "the photo"
    try:
        if isinstance(photo, (str, Path)):
            where = Path(photo).expanduser()
            name = where.name
            if where.is_dir():
                raise UserError(f"{where}: is a folder; give the photos in it")
            if not where.exists():
                raise UserError(f"{where}: no such file")
            image = read_rgb(where)
        elif isinstance(photo, Image.Image):
            image = upright_rgb(photo)
        else:
            pixels = np.asarray(photo)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                raise UserError(
                    f"the photo: an array of {pixels.dtype} and shape {pixels.shape}; give "
                    "(H, W, 3) uint8"
                )
            image = Image.fromarray(pixels)
    except (UnreadableImage, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: cannot be turned: {reason}") from None
    if min(image.size) < SMALLEST:
        raise UserError(
            f"{where}: cannot be turned: {image.width}x{image.height} pixels are too few; "
            f"{SMALLEST}x{SMALLEST} is the least"
        )
    return name, image


def _in_table(box: Box) -> Box:
    """A box with the decimals that the run's tables keep."""
    return tuple(round(edge, 3) for edge in box)


def _on_photo(box: Box, width: int, height: int) -> Box:
    """The part of a given box that lies on the photo."""
    try:
        x0, y0, x1, y1 = map(float, box)
    except (TypeError, ValueError):
        raise UserError(f"box {box}: not four numbers; give x0 y0 x1 y1 in pixels") from None
    usable = np.isfinite((x0, y0, x1, y1)).all()
    found = clipped((x0, y0, x1, y1), width, height) if usable else None
    if found is None or min(found[2] - found[0], found[3] - found[1]) < 1:
        raise UserError(
            f"box {x0:g} {y0:g} {x1:g} {y1:g}: no part of the photo of {width}x{height} pixels; "
            "give x0 y0 x1 y1 in pixels from the top left"
        )
    return found


def _foreground_doubts(region: Region, foreground: np.ndarray, share: float) -> list[Doubt]:
    """What is doubtful about an object that PCA 1 found.

    Args:
        region: the largest part of the foreground.
        foreground: bool (valid patches,).
        share: the separation.
    """
    doubts = []
    if share < _SEPARATION:
        reason = "the foreground is undecided: scores do not fall into object and surroundings"
        if foreground.all():
            reason = "the foreground is undecided: all of the photo counts as object"
        doubts.append(Doubt(reason, "separation", share, _SEPARATION))
    largest = min(region.mask.sum() / max(foreground.sum(), 1), 1.0)
    if largest < _LARGEST:
        reason = "the foreground is in several parts, of which the largest is taken; give a box"
        doubts.append(Doubt(reason, "its share", float(largest), _LARGEST))
    return doubts


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Turn what a missing or damaged file raises into one line."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; finish the run first, or give the run that has the model"
        )
    try:
        yield path
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        reason = repr(error).splitlines()[0]
        raise UserError(f"{path}: damaged ({reason}); delete it and run snakemake again") from None


def _content(path: Path) -> dict:
    """Content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _kinds(folder: Path) -> tuple[CategoryModel, str]:
    """What assigns a category, and the feature that it looks at."""
    with _reading(folder / "categories/categories.npz") as path:
        model = CategoryModel.load(path)
    with _reading(folder / "categories/categories.json") as path:
        return model, _content(path)["token"]


def _backbone(
    folder: Path, given: Path | str | None, device: torch.device
) -> tuple[Backbone, object]:
    """The vision transformer of a run, the same as far as its files tell, and what these are.

    Raises:
        UserError: it is not there, or is another one.
    """
    with _reading(folder / "features/features.run.json") as path:
        features = _content(path)
        used, resolution = features["settings"]["model"], features["settings"]["resolution"]
        weights = Path(features["inputs"]["weights"]["path"])
        recorded = features["networks"].get("model")
    name = str(used if given is None else given)
    found = _below(folder, Path(name).expanduser())
    if found is None:
        if given is not None or not is_published(name, "backbone.model"):
            raise UserError(
                f"backbone.model {name}: not here, nor beside {folder}; give its folder by "
                "--backbone"
            )
        weights = _below(folder, weights) or weights
    else:
        _require_same(found, recorded)
        name = str(found)
    settings = BackboneSettings(model=name, resolution=resolution)
    return Backbone.load(settings, device, weights), recorded


def _below(folder: Path, path: Path) -> Path | None:
    """A path that was relative to the folder in which Snakemake ran: here, or above the run."""
    above = (Path.cwd(), *folder.resolve().parents)
    return next((base / path for base in above if (base / path).exists()), None)


def _require_same(folder: Path, recorded: object) -> None:
    """Refuse other weights than the run's."""
    if not isinstance(recorded, list):
        return  # fetched then, local now; a revision says nothing of a file
    keys = ("sha256", "bytes")
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else [folder]
    there = [{key: identity(file).get(key) for key in keys} for file in files]
    if there != [{key: one.get(key) for key in keys} for one in recorded]:
        raise UserError(
            f"backbone.model {folder}: not the weights that the run's features were made with; "
            "give those by --backbone"
        )
