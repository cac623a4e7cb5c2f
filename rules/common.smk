# The checked configuration, and how settings become flags.
import functools
import json
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from mirage_steps.settings import GENERATED, differences, load
from mirage_steps.files.code_hash import code_hash
from mirage_steps.sources import check_source
from mirage_steps.errors import UserError
from mirage_steps.files.photos import photos_of
from mirage_steps.networks.fetching import is_complete, is_published, unknown
from mirage_steps.files.command import flag, flags

# Every step's messages go to the terminal and to its log. A scheduler's signal reaches all processes
# of a job at once; the `tee` of every rule ignores it, because the step still has a checkpoint to save
# and to report.

try:
    configuration = load(config)
except UserError as error:
    raise WorkflowError(str(error)) from None


pathvars:
    results=configuration.results,


# Each step whose work is divided writes one of these files in every job.
PART = "" if configuration.shards == 1 else ".{shard}"
SHARDS = [f"{n}-of-{configuration.shards}" for n in range(1, configuration.shards + 1)]


def shard(wildcards):
    """Which of the jobs that divide a step's work."""
    return wildcards.get("shard", "1-of-1")


def part(path):
    """An output that is a part of a file, which goes when the whole is there."""
    stem, _, suffix = path.rpartition(".")
    return path if not PART else temp(f"{stem}{PART}.{suffix}")


def part_record(path):
    """A job's record; kept with the whole's, as it is small."""
    return f"{path}{PART}.run.json"


def parts(stem, suffix):
    """Input: what all jobs made of a file."""
    return [f"{stem}.{shard}{suffix}" for shard in SHARDS]


# Row of the table: the set that is scored, and the real set it is compared with.
ROWS = {
    "real-vs-real": ("real-b", "real-a"),
    "no-mv": ("no-mv", "real-a"),
    "mv-bg-no-hag": ("mv-bg-no-hag", "real-a"),
    "mv-bg-hag": ("mv-bg-hag", "real-a"),
    "untrained": ("untrained", "real-a"),
    "real-vs-real-nobg": ("real-b-nobg", "real-a-nobg"),
    "mv-nobg-hag": ("mv-nobg-hag", "real-a-nobg"),
}
# Real set that a baseline is compared with, by its key `background`.
COMPARED_WITH = {"kept": "real-a", "removed": "real-a-nobg", "remove": "real-a-nobg"}
BASELINES = {name for dataset in configuration.datasets.values() for name in dataset.baselines}
# Data sets with poses and a model of their own, and those whose photos are turned by another's.
TRAINED = [name for name, dataset in configuration.datasets.items() if dataset.use is None]
TURNED = [name for name, dataset in configuration.datasets.items() if dataset.use is not None]


wildcard_constraints:
    dataset="|".join(map(re.escape, configuration.datasets)),
    shard="|".join(SHARDS),


def refuse(message):
    """End with one line; Snakemake would lay a traceback around an exception."""
    sys.exit(f"error: {message}")


def final(name):
    """The last file of a data set, for which all others are made."""
    last = "overview.txt" if name in TRAINED else "turned/contact_sheet.png"
    return f"<results>/{name}/{last}"


def dataset_settings(wildcards):
    """Settings of the data set that a rule works on."""
    return configuration.datasets[wildcards.dataset]


def model_settings(wildcards):
    """Settings of the data set whose poses and model a rule works with."""
    return configuration.datasets[dataset_settings(wildcards).use or wildcards.dataset]


def section(*names):
    """Parameter function: flags of the named sections, but for the keys that change no result.

    Those are given as resources, by :func:`setting`, of which a change makes nothing stale.
    """

    def words(wildcards):
        sections = [getattr(model_settings(wildcards), name) for name in names]
        return shlex.join(word for part in sections for word in flags(part, part.untracked))

    return words


def setting(name, key):
    """Parameter function: one value of a section of the data set's settings."""
    return lambda wildcards: getattr(getattr(model_settings(wildcards), name), key)


def weights(name, key):
    """Input function: the files of a network, given by a path or fetched by the rule `weights`."""

    def files(wildcards):
        part = dataset_settings(wildcards).source if name == "source" else None
        value = str(getattr(part, key, "none") if part else setting(name, key)(wildcards))
        path = Path(value)
        if path.exists():
            found = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
            return [str(file) for file in found if file.is_file()]
        item = "inception" if value == "auto" else value
        if item == "none":
            return []
        if not is_published(item, f"{name}.{key}"):
            refuse(f"datasets.{wildcards.dataset}.{unknown(item, f'{name}.{key}')}")
        # Fetched again, it is the same: no reason to work again.
        return [ancient(f"<results>/weights/{item}/weights.run.json")]

    return files


def network_state(wildcards):
    """Whether a network that was fetched is gone again."""
    weights = Path(configuration.weights)
    fetched = Path(configuration.results, "weights", wildcards.network, "weights.run.json").exists()
    return "gone" if fetched and not is_complete(wildcards.network, weights) else "there"


def asked_by(wildcards):
    """The config key that names a network."""
    for dataset in configuration.datasets.values():
        named = {
            "source.model": getattr(dataset.source, "model", None),
            "backbone.model": dataset.backbone.model,
            "masks.sam": dataset.masks.sam,
        }
        for key, value in named.items():
            if value == wildcards.network:
                return key
    return "embed.inception"


def stored(file):
    """Input function: what another data set found, for the photos that are turned with it."""

    def path(wildcards):
        used = dataset_settings(wildcards).use
        return [] if used is None else [f"<results>/{used}/{file}"]

    return path


def stored_words(wildcards, input):
    return shlex.join(["--stored", *input.stored]) if input.stored else ""


def categories_input(wildcards):
    """Input function: which kind of object each image shows, where there are several."""
    several = model_settings(wildcards).categories > 1
    return [f"<results>/{wildcards.dataset}/categories/categories.csv"] if several else []


def categories_words(wildcards, input):
    return shlex.join(["--categories", *input.categories]) if input.categories else ""


@functools.cache
def photos(dataset):
    """Photos to turn of a data set, by the names of their outputs."""
    folder = configuration.datasets[dataset].photos
    if folder is None:
        return {}
    try:
        found, rejected = photos_of(Path(folder))
    except UserError as error:
        refuse(f"datasets.{dataset}.{error}")
    for name, reason in rejected:
        logger.warning(f"datasets.{dataset}.photos: {name} is left out: {reason}")
    return found


def photo(wildcards):
    """Input function: the photo of a name."""
    found = photos(wildcards.dataset)
    key = f"datasets.{wildcards.dataset}.photos"
    if not found:
        refuse(f"{key}: holds no photos; set it to the folder with the photos to turn")
    if wildcards.name not in found:
        known = ", ".join(list(found)[:5])
        refuse(f"{key}: has no photo {wildcards.name}; it has {known}")
    return str(found[wildcards.name])


def turned_photos(wildcards):
    """Input function: the strips of all photos of a data set."""
    return [
        f"<results>/{wildcards.dataset}/novel_views/{name}.png"
        for name in photos(wildcards.dataset)
    ]


def used_run(wildcards):
    """Folder of the run that turns the photos of a data set."""
    used = dataset_settings(wildcards).use or wildcards.dataset
    return f"{configuration.results}/{used}"


# What the module `runs` loads.
STORED = (
    "training/model.safetensors",
    "training/config.json",
    "features/features.run.json",
    "foreground/pca1.npz",
    "foreground/foreground.run.json",
    "pose_space/pca2.npz",
    "pose_space/pose_space.run.json",
    "poses/poses.npz",
    "poses/poses.csv",
)


def stored_run(wildcards):
    """Input function: the files of a run that turn a photo."""
    several = model_settings(wildcards).categories > 1
    kinds = ("categories/categories.npz", "categories/categories.json") if several else ()
    used = dataset_settings(wildcards).use or wildcards.dataset
    return [f"<results>/{used}/{file}" for file in (*STORED, *kinds)]


def own_model(file):
    """Input function: a file of a data set that trains a model of its own."""

    def path(wildcards):
        used = dataset_settings(wildcards).use
        if used is not None:
            refuse(
                f"{wildcards.dataset} uses the model of {used} and trains none; its target is "
                f"{configuration.results}/{wildcards.dataset}/turned/contact_sheet.png"
            )
        return f"<results>/{wildcards.dataset}/{file}"

    return path


def rows(dataset):
    """Rows of a data set's table: the fixed ones, then its baselines."""
    found = dict(ROWS)
    for name, baseline in configuration.datasets[dataset].baselines.items():
        row = f"{name}-nobg" if baseline.background == "remove" else name
        found[row] = (row, COMPARED_WITH[baseline.background])
    return found


def unmasked(wildcards):
    """Input function: the set whose background is removed."""
    name = {"mv-nobg-hag": "mv-bg-hag"}.get(
        wildcards.masked, wildcards.masked.removesuffix("-nobg")
    )
    return f"<results>/{wildcards.dataset}/sets/{name}/images.h5"


def source_words(wildcards):
    source = dataset_settings(wildcards).source
    words = flags(source, source.untracked)
    kind = words.index("--kind")
    return shlex.join([source.kind, *words[:kind], *words[kind + 2 :]])


def source_batch(wildcards):
    """Flags of a source that change no result."""
    source = dataset_settings(wildcards).source
    return shlex.join(word for key in source.untracked for word in flag(key, getattr(source, key)))


def source_code(wildcards):
    """Hash of the code that lists or makes a data set's images; other sources do not count."""
    kind = dataset_settings(wildcards).source.kind.replace("-", "_")
    others = {f"sources.{path.stem}" for path in Path("mirage_steps/sources").glob("*.py")}
    return code_hash("dataset", without=others) + code_hash(f"sources.{kind}")


def source_there(wildcards):
    """Input function: refuses a source that is not there, before anything starts."""
    source = dataset_settings(wildcards).source
    record = Path(configuration.results, wildcards.dataset, "dataset.run.json")
    try:
        # Photos may have gone since they were listed; the later steps do without them.
        listed = json.loads(record.read_text())["settings"].get("path") if record.exists() else None
        if listed is None or listed != str(getattr(source, "path", None)):
            check_source(source)
    except UserError as error:
        refuse(f"datasets.{wildcards.dataset}.{error}")
    return []


def labels_input(wildcards):
    labels = dataset_settings(wildcards).labels
    return [] if labels is None else str(labels)


def gamma(wildcards):
    """Only what is guided depends on gamma: an edit of it leaves the other sets alone."""
    return setting("guidance", "gamma")(wildcards) if wildcards.kind == "mv-bg-hag" else 1.0


def baseline_there(wildcards):
    """Input function: refuses a baseline that is not there, before anything starts."""
    made = Path(configuration.results, wildcards.dataset, "sets", wildcards.baseline, "images.h5")
    path = dataset_settings(wildcards).baselines[wildcards.baseline].path
    if not made.exists() and not path.expanduser().is_dir():
        refuse(
            f"datasets.{wildcards.dataset}.baselines.{wildcards.baseline}.path {path}: no such "
            "folder; set it to the folder with the method's images"
        )
    return []


def baseline_words(wildcards):
    baseline = dataset_settings(wildcards).baselines[wildcards.baseline]
    return shlex.join(flags(baseline))


def features_of_rows(wildcards):
    names = {name for pair in rows(wildcards.dataset).values() for name in pair}
    # Some names, such as `count`, Snakemake has for itself.
    return {
        f"set_{name}": f"<results>/{wildcards.dataset}/sets/{name}/features.h5" for name in names
    }


def row_words(wildcards, input):
    return shlex.join(
        word
        for row, (scored, real) in rows(wildcards.dataset).items()
        for word in ("--row", row, input[f"set_{scored}"], input[f"set_{real}"])
    )


def paper_words(wildcards):
    """Flags for the column of the paper's own figures."""
    dataset = dataset_settings(wildcards)
    if dataset.paper is None:
        return ""
    words = ["--paper-source", dataset.paper.source]
    figures = dict(dataset.paper.fid)
    for name, value in dataset.paper.fid_of_others.items():
        baseline = dataset.baselines.get(name)
        background = "removed" if baseline is None else baseline.background
        # The paper's figure is without background: it belongs to no row with one.
        row = {"removed": name, "remove": f"{name}-nobg", "kept": f"{name} without background"}
        figures[row[background]] = value
    for row, value in figures.items():
        words += ["--paper", row, str(value)]
    for difference in differences(dataset):
        words += ["--differs", difference]
    return shlex.join(words)


def launcher(wildcards):
    """What starts the training: torchrun where several processes share it."""
    processes = model_settings(wildcards).training.processes
    if processes == 1:
        return "python"
    return f"torchrun --standalone --nproc-per-node={processes}"
