"""Pose control and consistency of views, with floor and ceiling.

FID measures neither. Generated objects and photos in all poses are judged
(:mod:`mirage_steps.judge`):

- *pose control*: share of views in the requested pose, or in that or an adjacent one;
- *consistency*: similarity of the views of an object, from 0 (unrelated objects) to 1 (real
  objects seen from all sides, if available); views in another pose count as unrelated;
- *copies*: how far generated views are from the nearest training crop, as small thumbnails, and
  how many are as near to it as copies of photos are;
- *truth*, for rendered data: views of a photo compared with renderings of the same object, next to
  two baselines, the photo itself and the mean image of the pose.

Intervals are 95 % bootstraps over objects. Writes ``evidence.json``, ``evidence.txt`` and
``evidence.png``, ``references.png``, ``copies.png``, and where the truth is known ``truth.png``.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files import plots, tiles
from mirage_steps.files.atomic import atomic, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5, slices
from mirage_steps.files.tables import read_labels
from mirage_steps.files.terminal import progress
from mirage_steps.files.text_table import aligned
from mirage_steps.judge import Judge, Seen, Turntables, Views, calibrated_judge
from mirage_steps.method.device import memory_advice
from mirage_steps.method.duplicates import MOST, SIDE, nearest_images
from mirage_steps.method.evidence import (
    Interval,
    in_pose,
    iou,
    masked_psnr,
    mean_interval,
    paired_difference,
    rank_correlation,
    share_interval,
)
from mirage_steps.run import Run, crop_views

_SHOWN = 4  # objects in truth.png, best and worst ones in references.png
_DROPPED = (0.0, 0.1, 0.25, 0.5)  # shares of references
_NEAREST = 12  # views in copies.png
_REAL = 200  # crops whose distance to other crops is the scale of copies
_CROPS = 1024  # of a batch


def main(
    *,
    run: Path,
    objects: Path,
    crops: Path,
    poses: Path,
    out: Path,
    turntables: Path | None = None,
    dataset: str = "",
    evidence: settings.Evidence = settings.Evidence(),
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    novel_views: settings.NovelViews = settings.NovelViews(),
    weights: Path = Path(settings.WEIGHTS),
    device: str = "auto",
) -> None:
    """Judge views of generated objects and of photos.

    Args:
        run: Folder of a finished run, such as results/demo.
        objects: The sheet's objects.h5.
        crops: crops.h5 of the data set; real images for the scale, and photos without --turntables.
        poses: poses.csv of these crops.
        out: Folder for evidence.json, evidence.txt and the pictures.
        turntables: turntables.h5 with objects from all sides, for ceiling and truth.
        dataset: Its name for the head of the table; the run's by default.
        evidence: How many objects, and the network that compares them.
        views: Sampler of the photos' views.
        guidance: Hard-attention guidance of the photos' views.
        novel_views: Inversion of the photos.
        weights: Folder of fetched networks.
        device: auto, cpu or cuda.
    """
    loaded = Run.load(run, device=device)
    generated = _read_objects(objects, loaded)
    judge, truth, real = calibrated_judge(loaded, evidence, crops, poses, turntables, weights)
    count = evidence.judged_objects
    photos, own = _some_crops(crops, poses, count) if truth is None else (truth.photos, truth.poses)
    novel = _novel_views(loaded, photos, own, views, guidance, novel_views)
    judged = {"generated": generated, "photos": novel}
    seen = {kind: judge.see_views(views.images) for kind, views in judged.items()}
    for kind, one in seen.items():
        if absent := int((one.poses < 0).sum()):
            log.warning("no object is found in %d of %d views, %s", absent, one.poses.size, kind)
    found: dict[str, object] = {
        "pose_control": _pose_control(judge, seen, judged, real),
        "pose_strength": _pose_strength(judge, seen, judged),
        "consistency": _consistency(judge, seen, judged),
        "copies": _copies(out / "copies.png", generated, crops),
    }
    found["references"], scores = _references(judge, seen["generated"], generated)
    _draw_references(out / "references.png", generated, scores)
    if truth is not None:
        found["truth"] = _truth(judge, novel, seen["photos"], truth)
        _draw_truth(out / "truth.png", novel, truth)
    about = {
        "generated_objects": len(generated.images),
        "photos": len(photos),
        "maps_centered": loaded.estimator.centers is not None,
        "photos_are": "training images" if truth is None else "objects that the model never saw",
        **judge.about,
    }
    write_json(out / "evidence.json", about | _plain(found))
    text = _as_text(dataset or run.name, about, found)
    with atomic(out / "evidence.txt") as temporary:
        temporary.write_text(text, encoding="utf-8")
    plots.evidence(out / "evidence.png", found, about)
    log.info("\n%s", text)


# --- what is judged ---------------------------------------------------------------------------


def _read_objects(path: Path, loaded: Run) -> Views:
    """Generated objects of a sheet."""
    with open_h5(path, "images", "pose", "reference") as file:
        made = Views(file["images"][:], file["pose"][:], file["reference"][:])
    config = loaded.model.config
    if made.images.shape[1:3] != (config.poses // config.categories, config.image_size):
        raise UserError(
            f"{path}: {made.images.shape[1]} poses of {made.images.shape[2]} pixels, the model of "
            f"{loaded.folder} has {config.poses // config.categories} of {config.image_size}; run "
            "snakemake with --forcerun sheet"
        )
    return made


def _some_crops(crops: Path, poses: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced crops (n, S, S, 3) of a data set and their poses (n,)."""
    labels = read_labels(poses, crops)
    chosen = np.unique(np.linspace(0, len(labels) - 1, count).astype(int))
    if len(chosen) < 2:
        raise UserError(f"{crops}: has {len(labels)} images; evidence needs two for an interval")
    with open_h5(crops, "images") as file:
        return np.stack([file["images"][int(row)] for row in chosen]), labels[chosen]


def _novel_views(
    loaded: Run,
    photos: np.ndarray,
    own: np.ndarray,
    views: settings.Views,
    guidance: settings.Guidance,
    novel_views: settings.NovelViews,
) -> Views:
    """Photos in all poses by the model."""
    images, poses, given = [], [], []
    for photo, pose in zip(progress(photos, desc="photos", unit="photo"), own, strict=True):
        with memory_advice("views.batch_size", views.batch_size):
            made = crop_views(loaded.model, photo, int(pose), views, guidance, novel_views)
        images.append(made.views)
        poses.append(made.poses)
        given.append(made.poses.index(int(pose)))
    return Views(np.stack(images), np.array(poses), np.array(given))


# --- measures ---------------------------------------------------------------------------------


def _pose_control(
    judge: Judge,
    seen: dict[str, Seen],
    judged: dict[str, Views],
    real: tuple[Seen, np.ndarray] | None,
) -> dict[str, object]:
    """Share of views in the requested pose (``exact``), or in that or adjacent ones (``near``)."""
    found: dict[str, object] = {}
    for within, name in enumerate(("exact", "near")):
        row: dict[str, object] = {"chance": min(1.0, (1 + 2 * within) / judge.k)}
        for kind, views in judged.items():
            shows = judge.shows(seen[kind], views.poses, within)
            row[kind] = share_interval(views.mean(shows))
        # At the model's size, against the pose of the run's table, found at full size.
        kept = in_pose(judge.labels, judge.real.poses, judge.k, within)
        row["training_crops"] = share_interval(kept.astype(float))
        if real is not None:
            row["real_objects"] = share_interval(judge.shows(*real, within).mean(1))
        found[name] = row
    return found


def _pose_strength(
    judge: Judge, seen: dict[str, Seen], judged: dict[str, Views]
) -> dict[str, Interval] | None:
    """How strongly views differ by pose; None where real images hardly do."""
    found = {kind: judge.strength(seen[kind], views) for kind, views in judged.items()}
    known = {kind: mean_interval(one) for kind, one in found.items() if one is not None}
    if len(known) < len(found):
        log.warning("real images hardly differ by pose: the strength of the pose is unknown")
    return known if len(known) == len(found) else None


def _consistency(
    judge: Judge, seen: dict[str, Seen], judged: dict[str, Views]
) -> dict[str, dict[str, object]]:
    """Consistency by kind of features; the plain similarity if no ceiling is known."""
    similar = {
        kind: judge.similarity(seen[kind], views.poses, views.given)
        for kind, views in judged.items()
    }
    found = {}
    for feature, scale in judge.scales.items():
        row: dict[str, object] = {kind: scale.position(similar[kind][feature]) for kind in judged}
        row["similarity"] = {kind: mean_interval(similar[kind][feature]) for kind in judged}
        row["ceiling_similarity"] = None if scale.ceiling is None else mean_interval(scale.ceiling)
        found[feature] = row
    return found


def _copies(path: Path, made: Views, crops: Path) -> dict[str, object]:
    """How far generated views and real crops are from the nearest (other) training crop.

    In gray levels between thumbnails. A model that has memorized its photos scores well in all
    other measures. Draws the generated views that are nearest to one, above it.
    """
    views = made.images.reshape(-1, *made.images.shape[2:])
    with open_h5(crops, "images") as file:
        images = file["images"]
        parts = list(slices(len(images), _CROPS))
        own = np.unique(np.linspace(0, len(images) - 1, _REAL).astype(int))
        real = np.stack([images[int(row)] for row in own])
        given = np.concatenate([_thumbnails(views), _thumbnails(real)])
        places = np.concatenate([np.full(len(views), -1), own])
        rows, apart = nearest_images(given, (_thumbnails(images[p]) for p in parts), places)
        first = np.argsort(apart[: len(views)], kind="stable")[:_NEAREST]
        pairs = np.stack([views[first], np.stack([images[int(row)] for row in rows[first]])])
    title = "generated views that are nearest to a training crop, above it, with the distance"
    words, labels = ("generated", "training"), [f"{value:.1f}" for value in apart[first]]
    tiles.save_image(path, tiles.contact_sheet(pairs, [None] * 2, labels, title, labels=words))
    parted = {
        "generated": apart[: len(views)].reshape(made.poses.shape),
        "real": apart[len(views) :, None],
    }
    return {
        "distance": {kind: mean_interval(one.mean(1)) for kind, one in parted.items()},
        "share": {kind: share_interval((one <= MOST).mean(1)) for kind, one in parted.items()},
        "limit": MOST,
    }


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Thumbnails of images (n, S, S, 3) uint8, (n, SIDE, SIDE, 3) uint8."""
    return np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE))) for one in images])


def _references(judge: Judge, seen: Seen, made: Views) -> tuple[dict[str, object], np.ndarray]:
    """Whether the scores of references predict the quality of their views (Figure 11).

    The rank correlation of the references' scores, (n,), which are also returned, with how good
    their views are; and these means without the worst share of references.
    """
    scores = judge.reference_scores(seen, made)
    quality = {"near": made.mean(judge.shows(seen, made.poses))}
    quality |= judge.similarity(seen, made.poses, made.given)
    order, curve = np.argsort(scores, kind="stable"), []
    for dropped in _DROPPED:
        kept = order[: max(2, round((1 - dropped) * len(order)))]
        means = {key: mean_interval(values[kept]) for key, values in quality.items()}
        curve.append({"dropped": dropped, "kept": len(kept), **means})
    correlations = {key: rank_correlation(scores, values) for key, values in quality.items()}
    return {"rank_correlation": correlations, "curve": curve}, scores


def _truth(
    judge: Judge, novel: Views, seen: Seen, truth: Turntables
) -> dict[str, dict[str, object]]:
    """Views of photos, and two baselines, compared with renderings of the same objects.

    ``psnr_db`` inside the true object; ``distance`` of the other network's tokens there; ``iou`` of
    the object's mask. Means over the views of an object other than its photo.
    """
    shape = truth.views.shape
    baselines = {
        "model": novel.images,
        "photo": np.broadcast_to(truth.photos[:, None], shape),
        "mean_image": np.broadcast_to(judge.means[novel.poses], shape),
    }
    true_tokens, grid = _tokens(judge, truth.views)
    on_object = np.stack([_coarse(mask, grid) for mask in truth.masks.reshape(-1, *shape[2:4])])
    found: dict[str, dict[str, object]] = {"psnr_db": {}, "distance": {}, "iou": {}}
    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in found}
    for name, views in baselines.items():
        masks = seen.masks if name == "model" else judge.see_views(views).masks
        apart = np.linalg.norm(_tokens(judge, views)[0] - true_tokens, axis=2)
        apart = (apart * on_object).sum(1) / np.maximum(on_object.sum(1), 1)
        every = np.ndindex(shape[:2])
        pairs = [(masked_psnr(views[i], truth.views[i], truth.masks[i]),
                  iou(masks[i], truth.masks[i])) for i in every]  # fmt: skip
        psnrs, ious = (np.reshape(part, shape[:2]) for part in zip(*pairs, strict=True))
        measures = {"psnr_db": psnrs, "distance": apart.reshape(shape[:2]), "iou": ious}
        for measure, table in measures.items():
            mean = novel.mean(table)
            values[measure][name] = mean
            found[measure][name] = mean_interval(mean)
    for measure, row in values.items():
        for name in ("photo", "mean_image"):
            found[measure][f"model_less_{name}"] = paired_difference(row["model"], row[name])
    return found


def _tokens(judge: Judge, views: np.ndarray) -> tuple[np.ndarray, int]:
    """The other network's tokens (n * k, T, dim) of views (n, k, S, S, 3), and its grid."""
    flat = views.reshape(-1, *views.shape[2:])
    parts = [
        judge.network.tokens(part)[0].cpu().numpy() for part in np.array_split(flat, len(views))
    ]
    return np.concatenate(parts), judge.network.grid


def _coarse(mask: np.ndarray, grid: int) -> np.ndarray:
    """Share of the object in each token's cell, (grid * grid,), of a bool mask (S, S)."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((grid, grid), Image.Resampling.BOX)).ravel() / 255


# --- results ----------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Figures as dictionaries."""
    if isinstance(value, Interval):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _draw_references(path: Path, made: Views, scores: np.ndarray) -> None:
    """Generated objects from the best to the worst reference by their scores."""
    order = np.argsort(scores, kind="stable")
    if len(order) > 2 * _SHOWN:
        order = np.concatenate([order[:_SHOWN], order[-_SHOWN:]])
    title = "generated objects with the best and the worst references (framed) by their scores"
    labels = [f"score {scores[number]:.2f}" for number in order]
    given = made.given[order].tolist()
    poses = range(made.images.shape[1])
    sheet = tiles.contact_sheet(made.images[order], given, poses, title, labels=labels)
    tiles.save_image(path, sheet)


def _draw_truth(path: Path, novel: Views, truth: Turntables) -> None:
    """Some photos in all poses, each above the true views."""
    count = min(_SHOWN, len(truth.views))
    rows = np.stack([novel.images[:count], truth.views[:count]], axis=1)
    rows = rows.reshape(2 * count, *rows.shape[2:])
    title = (
        "photos (framed) in all poses by the model; below each the same object rendered from there"
    )
    own = [int(column) for column in novel.given[:count].repeat(2)]
    tiles.save_image(path, tiles.contact_sheet(rows, own, range(rows.shape[1]), title))


_MEASURES = {
    "psnr_db": "PSNR in dB, larger is better",
    "distance": "distance of features, smaller is better",
    "iou": "IoU of the mask, larger is better",
}


def _as_text(name: str, about: dict[str, object], found: dict[str, Any]) -> str:
    """The figures as tables."""
    lines = [
        f"{name}: do views show the requested pose, and the same object?",
        f"{about['generated_objects']} generated objects; {about['photos']} photos "
        f"({about['photos_are']}); {about['real_images']} real images",
        f"poses and masks by the run's own estimator ({about['pose_estimator']}); "
        f"color: mean inside the mask; features of the object alone: {about['network']}"
        f"{', which found the poses itself' if about['network_found_poses'] else ''}",
        "in parentheses the 95 % interval over objects",
        "",
        *aligned(list(_rows(found)), "<<<<<"),
    ]
    copies = found["copies"]
    lines += [
        "",
        "distance to the nearest (other) training crop, in gray levels of thumbnails: generated "
        "{generated}, real crops {real}".format(**copies["distance"]),
        "share of copies (distance at most {:g}): generated {generated}, real crops {real}".format(
            copies["limit"], **copies["share"]
        ),
    ]
    correlations = found["references"]["rank_correlation"]
    lines += [
        "",
        "rank correlation of a reference's score (0 is best) with the quality of its views: "
        + "; ".join(f"{key} {value}" for key, value in correlations.items()),
    ]
    if "truth" in found:
        rows = [["views of photos against the truth", "model", "photo itself", "mean image",
                 "model minus photo", "model minus mean image"]]  # fmt: skip
        for measure, label in _MEASURES.items():
            row = found["truth"][measure]
            keys = ("model", "photo", "mean_image")
            differences = (row[f"model_less_{key}"] for key in keys[1:])
            rows.append([label, *(str(row[key]) for key in keys), *map(_told, differences)])
        lines += ["", *aligned(rows, "<<<<<<")]
    return "\n".join([*lines, ""])


def _rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Pose control and consistency, the head first."""
    yield ["", "generated", "photos", "chance", "real"]
    names = {"exact": "in the requested pose", "near": "in that or a neighbor"}
    for name, row in found["pose_control"].items():
        real = row.get("real_objects", row["training_crops"])
        yield [names[name], f"{row['generated']}", f"{row['photos']}", f"{row['chance']:.2f}",
               f"{real}"]  # fmt: skip
    row = found["pose_strength"] or dict.fromkeys(("generated", "photos"), "unknown")
    yield ["strength of the pose", f"{row['generated']}", f"{row['photos']}", "0", "1"]
    for feature, row in found["consistency"].items():
        top = row["ceiling_similarity"]
        label = f"consistency, {feature}"
        yield [label if top else f"{label} (no ceiling known)", f"{row['generated']}",
               f"{row['photos']}", "0", "1" if top else "unknown"]  # fmt: skip


def _told(one: Interval) -> str:
    """A difference, marked if its interval includes zero."""
    return f"{one}{'' if one.differs else ' n.s.'}"


if __name__ == "__main__":
    run(main)
