"""What the settings of a data set name is there and fits: before a run, and for its plan."""

import contextlib
from pathlib import Path

from mirage_steps.errors import UserError, errors_at, rerun
from mirage_steps.files.labels import read_azimuths, read_boxes, read_edits
from mirage_steps.files.names import not_a
from mirage_steps.files.photos import photos_folder
from mirage_steps.files.project import project_path
from mirage_steps.files.records import read_json
from mirage_steps.networks.fetching import PACKAGES, pretrained, require_known
from mirage_steps.settings import (
    Dataset,
    Folder,
    published_inception,
    require_poses,
    require_refinable,
)
from mirage_steps.sources import check_source
from mirage_steps.sources.folder import added_files

# Each raises UserError, naming the key.


def errors_of(name: str) -> contextlib.AbstractContextManager:
    """Name the data set in the errors of the checks within."""
    return errors_at(f"datasets.{name}.")


def check_dataset(dataset: Dataset, results: Path, images: bool = True) -> None:
    """Refuse what a run of all rules would refuse.

    Args:
        dataset: to be run.
        results: its folder.
        images: whether the source's must be there.
    """
    if images and not dataset.is_variant:
        check_images(dataset, results)
    for key, network in networks_of(dataset).items():
        require_known(network, key)
    check_resolution(dataset)
    require_refinable(dataset.views, dataset.novel_views)
    if dataset.photos is not None:
        photos_folder(dataset.photos)
    check_edits(dataset)
    if dataset.use is None:
        check_pretrained(dataset, results)
        check_labels(dataset)
        check_boxes(dataset)
        check_baselines(dataset, results)


def check_images(dataset: Dataset, results: Path) -> None:
    """Refuse a missing source, and one of too few images; none is read."""
    source, samples = dataset.source, dataset.fid.samples
    record = read_json(results / "dataset.run.json").get("settings")
    listed = record if isinstance(record, dict) else {}
    given = source.model_dump(mode="json")
    # Once listed, photos may be deleted: the last steps do not need them.
    if any(listed.get(key) != given.get(key) for key in ("path", "masks")):
        check_source(source)
    made = getattr(source, "images", None)
    if made is not None and dataset.use is None:
        require_samples(made, samples)


def require_samples(images: int, samples: int) -> None:
    """Refuse more samples than there can be real images for."""
    if images < 2 * samples:
        raise UserError(
            f"fid.samples {samples}: needs {2 * samples} real images, there are at most {images}; "
            f"set it to at most {images // 2}"
        )


def check_pretrained(dataset: Dataset, results: Path) -> None:
    """Refuse weights to start training from that are not there, or that the training replaces."""
    if (name := dataset.training.pretrained) == "none":
        return
    if Path(name).resolve() == (results / "training/model.safetensors").resolve():
        raise UserError(
            f"training.pretrained {name}: is what this training writes; copy it and its config.json"
        )
    pretrained(name)


def check_resolution(dataset: Dataset) -> None:
    """Refuse resolutions that are no multiples of a network's patches, where they are known."""
    one, other = dataset.backbone, dataset.evidence
    _check_multiple("backbone.resolution", one.resolution, one.model, max(one.levels))
    if dataset.is_evaluated:
        _check_multiple("evidence.judge_resolution", other.judge_resolution, other.judge, 32)


def _check_multiple(key: str, resolution: int, model: str, level: int) -> None:
    published = 14 if model.startswith("facebook/dinov2-") else None
    published = level if model in PACKAGES else published
    patch = read_json(project_path(model) / "config.json").get("patch_size", published)
    if isinstance(patch, int) and patch > 0 and resolution % patch:
        raise UserError(
            f"{key} {resolution}: not a multiple of the patch size {patch}; "
            f"use {max(round(resolution / patch), 1) * patch}"
        )


def check_labels(dataset: Dataset) -> None:
    """Refuse a table of true azimuths that cannot be used."""
    if dataset.labels is not None:
        try:
            with errors_at("labels "):
                read_azimuths(Path(dataset.labels))
        except OSError as error:
            raise UserError(f"labels {dataset.labels}: {error.strerror}") from None


def boxes_of(dataset: Dataset) -> str | None:
    """The table of boxes that the user gives, if any; other sources have their own boxes."""
    return dataset.source.boxes_table if isinstance(dataset.source, Folder) else None


def check_boxes(dataset: Dataset) -> None:
    """Refuse a table of boxes that cannot be used."""
    if boxes := boxes_of(dataset):
        with errors_at("source.boxes "):
            read_boxes(Path(boxes))


def check_edits(dataset: Dataset) -> None:
    """Refuse an unusable table of edits of the poses, and keys that name a pose that is gone."""
    if dataset.poses.edits == "none":
        return
    into, _ = read_edits(Path(dataset.poses.edits), dataset.poses.k, dataset.categories)
    try:
        require_poses(dataset, len(set(into[into >= 0])) // dataset.categories)
    except ValueError as error:
        raise UserError(f"{error}, after poses.edits") from None


def added_images(dataset: Dataset, results: Path) -> str:
    """What to tell of images that came into the folder since it was listed; empty for nothing."""
    settings = read_json(results / "dataset.run.json").get("settings")
    listed = settings.get("path") if isinstance(settings, dict) else None
    if not isinstance(dataset.source, Folder) or listed != str(dataset.source.path):
        return ""
    try:
        found = added_files(dataset.source, results / "manifest.csv")
    except (UserError, OSError):  # they may be gone once they are listed
        return ""
    if not found:
        return ""
    others = f" and {len(found) - 1} more" if found[1:] else ""
    return (
        f"source.path {dataset.source.path}: {found[0]}{others} came after the images were listed; "
        f"to use them, {rerun('dataset')}"
    )


def check_baselines(dataset: Dataset, results: Path) -> None:
    """Refuse a missing folder of a baseline whose set is not made yet."""
    for name, baseline in dataset.baselines.items():
        if (results / "sets" / name / "images.h5").is_file():
            continue
        if wrong := not_a("folder", baseline.path):
            raise UserError(
                f"baselines.{name}.path {baseline.path}: {wrong}; set it to the folder with the "
                "method's images"
            )


def networks_of(dataset: Dataset) -> dict[str, str]:
    """The networks of a data set, each a path or the name of published weights, by their key."""
    found = {"source.model": getattr(dataset.source, "model", None)}
    found["backbone.model"] = dataset.backbone.model
    if dataset.is_evaluated:
        found["evidence.judge"] = dataset.evidence.judge
        found["masks.sam"] = dataset.masks.sam
        found["embed.inception"] = published_inception(dataset.embed.inception)
    return {key: network for key, network in found.items() if network not in (None, "none")}
