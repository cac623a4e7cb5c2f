"""``report.html``, all results of a data set on one page that needs no other file and no network.

Of a run that is not finished, each part that is not there says which command makes it.
"""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.command import log
from mirage_steps.files.command import run as run_step
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.names import not_a
from mirage_steps.files.page import ABOUT_PHOTOS, MOST, Page
from mirage_steps.files.pose_names import NAMES, read_pose_names
from mirage_steps.files.records import home_of, read_json, read_run, read_text
from mirage_steps.networks.names import STAND_IN

_GENERATED = 8  # objects
_PHOTOS = 24
_ROWS = 30  # of rejected images, of images with warnings, and of warnings
_RECORDS = 200  # of steps
# What a variant takes from the run that it uses.
_SHARED = ("foreground", "poses", "training", "screening", "rejected.csv")
# Parts of the first line; those with unknown values are left out.
_LEAD = (
    "{images} images", "{k} poses", "{iterations} training steps in {trained_in} on {device}",
    "mirage_steps {version}", "code {commit}",
)  # fmt: skip
# Title, introduction, texts, and pictures with what they show and a caption. Not every run has
# those with a question mark. What the steps stored fills in the braces.
_SECTIONS = (
    ("Distances to real images",
     "Frechet and kernel distances between features of generated and of real images; smaller is "
     "better; no model can be expected below other real images. One run, without intervals.",
     ("fid.txt",), ()),
    ("Evidence",
     "Do views show the requested pose, and the same object? With 95 % intervals.",
     ("evidence/evidence.txt",), (
         ("evidence/evidence.png", "Chart of pose accuracy and consistency with intervals",
          "{generated_objects} generated objects, {photos} photos, {real_images} real images; "
          "poses by {pose_estimator}, features by {network}."),
         ("evidence/truth.png?", "Views of photos above renderings of the same objects",
          "Some of {photos} photos, above the renderer's own pictures of the same objects."),
         ("evidence/references.png", "Generated objects sorted by the score of their reference",
          "The best and the worst references of {generated_objects} generated objects."),
         ("evidence/copies.png", "Generated views and the nearest training crops",
          "Views of {generated_objects} generated objects, compared as small thumbnails."))),
    ("Ablation", "Noise, attention and guidance are changed one at a time.",
     ("ablation/ablation.txt",), (
         ("ablation/ablation.png", "The same objects in all poses under each change",
          "One of {ablated} objects; features of the table by {ablation_network}."),)),
    ("Generated images", "By the diffusion model, without any photo.", (), (
        ("sheet/contact_sheet.png", "Generated objects in rows, poses in columns",
         "U-Net {preset}, {image_size} pixels. A row shares one initial noise; red: the reference, "
         "whose keys and values others read."),
        ("comparison.png?", "Objects of other methods above ours", "Other methods, above ours."),
        ("photo_sheet/contact_sheet.png?", "Photos in rows, in all poses",
         "Photos of this data set, by the model of another."),
        ("sets/no-mv/images.png", "Generated single images", "Single images: the row no-mv."),
        ("sets/mv-bg-no-hag/images.png", "Generated views",
         "Views without guidance: the row mv-bg-no-hag."),
        ("sets/mv-bg-hag/images.png?", "Generated views", "Guided views: the row mv-bg-hag."),
        ("sets/mv-nobg-no-hag/masks.png?", "Generated views, their masks, and the views on white",
         "Masks of views without guidance, by {sam}."),
        ("sets/mv-nobg-hag/masks.png?", "Generated views, their masks, and the views on white",
         "Masks of guided views, by {sam}."))),
    ("Foreground",
     "One principal component of the patch tokens separates the object; box and crop follow.", (),
     (("foreground/foreground.png", "Images with the object's box, and the scores of patches",
       "Backbone {backbone}; {images} images, {images_without_object} without an object."),)),
    ("Poses", "Clusters of the crops' maps of principal components, in circular order.", (), (
        ("poses/poses.png", "Mean map and nearest crops of every pose",
         "{k} poses of {posed} crops; backbone {backbone}."),
        ("poses/pose_eval.png", "Poses against the true directions, if any are known",
         "Truth, which nothing else reads, is known for {known} images."))),
    ("Training", "", (), (
        ("training/loss.png", "Loss by training step, and scores of samples if there are any",
         "{iterations} steps of {batch_size} images; U-Net {preset}, optimizer {optimizer}."),)),
)  # fmt: skip


def main(
    *,
    run: Path,
    left_out: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    out: Path,
) -> None:
    """Write the report of a data set's results, finished or not.

    Args:
        run: Folder of the results, such as results/demo.
        left_out: A photo that cannot be used, with the reason.
        out: Folder for report.html; what is too large for it is linked from there.
    """
    if wrong := not_a("folder", run):
        raise UserError(f"--run {run}: {wrong}; give a folder of results, such as results/demo")
    found, folders = read_run(run), (run, home_of(run))
    found.pop("report.run.json", None)
    facts = _facts(folders, found)
    lead = [part for one in _LEAD if "?" not in (part := one.format_map(facts))]
    page = Page(out / "report.html", f"{run.resolve().name}: report", ", ".join(lead))
    _warnings(page, folders, found, facts)
    names = _names(folders)
    _objects(page, folders, names)
    page.most = MOST // 2
    _photos(page, run, names)
    page.most = MOST
    rows = {one["row"] for one in read_json(run / "metrics.json").get("rows", [])}
    for title, about, texts, pictures in _SECTIONS:
        page.section(title, about)
        for text in texts:
            if path := _path(page, folders, text):
                page.text(read_text(path))
        for file, alt, caption in pictures:
            parts = Path(file).parts
            if rows and parts[0] == "sets" and parts[1] not in rows:
                continue  # the home's, of guidance that this variant has turned off
            if path := _path(page, folders, file):
                page.picture(path, alt, caption.format_map(facts))
    _images(page, folders, facts, left_out)
    _provenance(page, {path: one for path, one in found.items() if one and "settings" in one})
    log.info("%s", page.write())


def _path(page: Page, folders: Sequence[Path], file: str) -> Path | None:
    """A file of the run or of that whose model it uses; if it is missing, the page says so.

    A question mark behind its name marks one that not every run has.
    """
    run, home = folders
    name = file.removesuffix("?")
    if there := next((one / name for one in folders if (one / name).is_file()), None):
        return there
    if name == file and not (run / "photo_sheet").is_dir():  # such a data set trains nothing
        path = (home if name.split("/")[0] in _SHARED else run) / name
        page.add("missing", name=name, command=f"snakemake --cores 2 -- {shlex.quote(str(path))}")
    return None


def _facts(folders: Sequence[Path], found: dict[str, dict]) -> defaultdict[str, object]:
    """What the steps stored, for captions; a question mark for what is not there."""

    def stored(file: str) -> dict:
        return next((one for folder in folders if (one := read_json(folder / file))), {})

    evidence, ablation = stored("evidence/evidence.json"), stored("ablation/ablation.json")
    train, features = (
        found.get(f"{one}.run.json", {}) for one in ("training/train", "features/features")
    )
    known, poses = found.get("poses/pose_eval.json", {}), stored("poses/poses.json")
    facts: dict[str, object] = {**stored("foreground/foreground.json"), **evidence}
    facts |= train.get("settings", {}) | {"device": train.get("device")}
    counts = poses.get("images", [])
    facts |= {"k": len(counts) or None, "posed": sum(counts) or None}
    facts |= {
        "known": known.get("images"),
        "ablated": ablation.get("objects"),
        "ablation_network": ablation.get("network"),
    }
    facts["sam"] = stored("sets/mv-nobg-no-hag/masks.json").get("sam")
    facts["backbone"] = Path(features.get("settings", {}).get("model", "?")).name
    facts["trained_in"] = _time(train["seconds"]) if "seconds" in train else None
    for key in ("version", "commit"):
        values = {str(one[key]) for one in found.values() if one.get(key)}
        facts[key] = " and ".join(sorted(values)) or None
    short = {key: f"{one:.3g}" if isinstance(one, float) else one for key, one in facts.items()}
    return defaultdict(lambda: "?", {key: one for key, one in short.items() if one is not None})


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _warnings(page: Page, folders: Sequence[Path], found: dict[str, dict], facts: dict) -> None:
    """Warnings and errors of all steps, and which networks are stand-ins."""
    page.section("Warnings")
    lines: dict[str, str] = {}
    logs = (sorted((folder / "logs").rglob("*.log")) for folder in dict.fromkeys(folders))
    for path in chain.from_iterable(logs):
        for line in re.findall("^(?:warning|error): (.*)$", read_text(path), re.MULTILINE):
            lines.setdefault(line, f"{path.stem}: {line}")
    told = list(lines.values())[:_ROWS]
    told += [f"{path}: damaged, left out" for path, one in found.items() if not one]
    if names := sorted({str(one) for one in facts.values() if str(one).startswith(STAND_IN)}):
        told.append(
            f"{', '.join(names)}: embedded in place of published networks, small and trained on "
            "rendered objects. Compare figures by them with each other, never with published ones."
        )
    for text in told:
        page.add("warning", text=text)
    if not lines:
        page.add("note", text="No step logged a warning or an error.")


def _names(folders: Sequence[Path]) -> dict[int, str]:
    """What the poses are called, by their numbers."""
    folder = next((one for one in folders if (one / NAMES).is_file()), folders[0])
    counts = read_json(folder / "poses/poses.json").get("images", [])
    return dict(enumerate(read_pose_names(folder / NAMES, len(counts))))


def _objects(page: Page, folders: Sequence[Path], names: Mapping[int, str]) -> None:
    """Turntables of generated objects."""
    page.section(
        "Turntables of generated objects",
        "Drag a picture, or use its slider and the arrow keys. There is no 3D model behind it: "
        "each frame is an image by the diffusion model, of the pose that is named.",
    )
    if not (path := _path(page, folders, "sheet/objects.h5")):
        return
    keys = ("images", "pose", "reference")
    try:
        with open_h5(path, *keys) as file:
            parts = [file[key][:_GENERATED] for key in keys]
    except UserError as error:
        return page.add("warning", text=str(error))
    for number, (views, poses, own) in enumerate(zip(*parts, strict=True), 1):
        labels = [names.get(pose, f"pose {pose}") for pose in poses.tolist()]
        labels[own] += ", the reference"
        alt = f"generated object {number} in {len(views)} poses"
        page.turntable(views, labels, int(own), alt, f"object {number}")


def _photos(page: Page, run: Path, names: Mapping[int, str]) -> None:
    """Novel views of photos, and meshes that were made of them."""
    page.section("Photos in all poses", ABOUT_PHOTOS)
    folder = run / "novel_views"
    records = [one for one in sorted(folder.rglob("*.json")) if "poses" in read_json(one)]
    for record in records[:_PHOTOS]:
        name = str(record.relative_to(folder)).removesuffix(".json")
        meshes = (one / f"{name}.glb" for one in (run / "meshes", folder))
        page.photo(record, next(filter(Path.is_file, meshes), None), names)
    strips = [one.with_suffix(".png") for one in records[_PHOTOS:]]
    if links := [page.link(strip) for strip in strips[:_RECORDS] if strip.is_file()]:
        page.add("links", text="More:", links=links)


def _images(page: Page, folders: Sequence[Path], facts: dict, left_out: Sequence[str]) -> None:
    """Rejected images and those with warnings."""
    page.section("Rejected images, and images to look at", "Images with warnings are used.")
    for file in ("rejected.csv", "screening/warnings.csv"):
        if not (path := _path(page, folders, file)):
            continue
        try:
            rows = read_csv(path)
        except UserError as error:
            page.add("warning", text=str(error))
            continue
        text = f"{len(rows)} rows, of {facts['images']} images in all:"
        page.add("links", text=text, links=[page.link(path)])
        if rows:
            page.table(list(rows[0]), [list(row.values()) for row in rows[:_ROWS]])
    if left_out:
        page.table(["photos that cannot be used"], [[one] for one in left_out[:_ROWS]])
    if path := _path(page, folders, "screening/screening.png"):
        page.picture(path, "Images with their warnings", "Those with the worst warnings.")


def _provenance(page: Page, records: dict[str, dict]) -> None:
    """Steps with times and code; settings, files and networks of each; packages."""
    page.section("What was run")
    shown = sorted(records.items(), key=lambda one: str(one[1].get("started")))[:_RECORDS]
    shown = [(path.removesuffix(".run.json"), one) for path, one in shown]
    rows = [
        (path, str(one.get("started"))[:16].replace("T", " "), _time(one.get("seconds", 0)),
         *(one.get(key) for key in ("peak_memory_mb", "commit", "device")))
        for path, one in shown
    ]  # fmt: skip
    page.table(("record", "started", "time", "memory in MB", "code", "device"), rows)
    titles = {
        "settings": "Settings",
        "networks": "Networks",
        "inputs": "Inputs",
        "outputs": "Outputs",
    }
    for key, title in titles.items():
        text = json.dumps({path: one[key] for path, one in shown if one.get(key)}, indent=1)
        page.add("details", title=f"{title} of each step", text=text)
    packages: dict[str, set] = defaultdict(set)
    for one in records.values():
        for package, version in one.get("packages", {}).items():
            packages[package].add(str(version))
    page.table(("package", "version"), [(key, " and ".join(packages[key])) for key in packages])


if __name__ == "__main__":
    run_step(main)
