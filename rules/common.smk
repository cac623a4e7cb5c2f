# The validated configuration, and what the rules share: how a step's command is derived.
import contextlib
import functools
import inspect
import os

import re
import shlex
import sys
from pathlib import Path

from snakemake.logging import logger

from mirage_steps.errors import UserError
from mirage_steps.evaluation_sets import table_rows
from mirage_steps.files.command import flag, flags
from mirage_steps.files.atomic import sha256_of
from mirage_steps.files.file_cache import CACHE, FileCache
from mirage_steps.files.labels import read_edits
from mirage_steps.files.names import encoded, output_names
from mirage_steps.files.photos import photos_of
from mirage_steps.files.project import PROJECT, project_path
from mirage_steps.files.provenance import NETWORK_KEYS, files_of_network
from mirage_steps.files.step_code import code_hash, signature, version
from mirage_steps.networks.fetching import PACKAGES, is_complete, is_local, require_known
from mirage_steps.settings import (
    REFERENCE,
    Settings,
    differences,
    load,
    published_inception,
    sections,
)
from mirage_steps.sources.checks import (
    added_images,
    boxes_of,
    check_baselines,
    check_boxes,
    check_edits,
    check_images,
    check_labels,
    check_pretrained,
    check_resolution,
    errors_of,
    networks_of,
)


def refuse(message):
    """Exit with a one-line error; Snakemake would add a traceback to an exception."""
    sys.exit(f"error: {message}")


try:
    configuration = load(config)
except UserError as error:
    refuse(error)


pathvars:
    results=configuration.results,


# Shell command of every step. A scheduler's signal reaches all processes of a job; `tee` ignores it,
# because the step still saves a checkpoint and logs it.
RUN = "{params.command} 2>&1 | (trap '' INT TERM; exec tee {log:q})"
# Steps and the processes they start import the package of these rules, a checkout's or the installed
# one, and nothing that lies in the current folder, such as a numpy.py.
PYTHON = (
    f"PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    " PYTHONSAFEPATH=1 python -m"
)
# Data sets whose photos another's model shows; all others have evaluation sets.
USING = [name for name, one in configuration.datasets.items() if not one.is_evaluated]
SETS = {
    name: one
    for key in configuration.datasets
    for name, one in configuration.dataset(key).sets.items()
}
# Hashes of networks and verdicts on photos, which need not be made at every start.
NAMED = 100  # files that a command names: the words of a command must not be longer than 128 KiB
FILES = FileCache(Path(configuration.results, CACHE))
# Photos that were asked for and cannot be shown, with the reason.
UNUSABLE = {}
# Features, generated images and masks may be sharded: each job writes its own file.
SHARD = "" if configuration.shards == 1 else ".{shard}"
SHARDS = [f"{n}-of-{configuration.shards}" for n in range(1, configuration.shards + 1)]


def names(*sources):
    """Pattern of the names of all evaluation sets from these sources."""
    found = [re.escape(name) for name, one in SETS.items() if one.source in sources]
    return "|".join(found) or "(?!)"


wildcard_constraints:
    dataset="|".join(map(re.escape, configuration.datasets)),
    set=names("real", "single", "multi-view", "baseline", "masked"),
    shard="|".join(SHARDS),
    reference=REFERENCE.pattern,


def dataset(wildcards):
    """Settings of the data set that a rule works on."""
    return configuration.dataset(wildcards.dataset)


def setting(path):
    """Function of the wildcards: one setting, such as ``fid.samples``."""
    return lambda wildcards: functools.reduce(getattr, path.split("."), dataset(wildcards))


def sheet(wildcards):
    """Settings of a sheet, with its one reference or none."""
    chosen = wildcards.get("reference")
    return dataset(wildcards).sheet.model_copy(update={"references": (chosen,) if chosen else ()})


def evaluation_set(wildcards):
    """Declaration of the set that a rule makes."""
    return dataset(wildcards).sets[wildcards.set]


# --- a step's command -------------------------------------------------------------------------


def step(name, /, code=None, **arguments):
    """Params that run a step; `command` follows from the signature of `main` in its module.

    Each argument of `main` gets its value from the first of these that has one: `arguments` (values
    or functions of the wildcards), the data set's settings for a section, the rule's input of the
    same name. `out` is the folder of the record, `weights` that of the published networks.

    The command derives from inputs and outputs, so Snakemake does not compare it. What makes results
    stale is in `settings`, without the keys that change no result, in `networks`, the content of
    local ones, and in `code`, by default a hash of the step's code.
    """
    known = signature(name)
    classes = {f"settings.{cls.__name__}": key for key, cls in sections().items()}

    def given(key, annotation, wildcards, context):
        if key in arguments:
            return call(arguments[key], wildcards, **context)
        if annotation in classes:
            return getattr(dataset(wildcards), classes[annotation])
        return None

    def command(wildcards, input, output, resources, threads):
        context = {"input": input, "output": output, "resources": resources, "threads": threads}
        words = [f"mirage_steps.{name}"]
        words += [given(key, None, wildcards, context) or input[key] for key in known.positional]
        # A source is a subcommand, which comes after all flags.
        for key, annotation in sorted(known.flags.items(), key=lambda flag: flag[1] == "Source"):
            value = given(key, annotation, wildcards, context)
            if key == "out":
                value = str(Path(output.run).parent)
            elif key == "weights":
                value = configuration.weights
            elif value is None and (files := input.get(key)):
                value = files if isinstance(files, str) else tuple(files)
            words += spelled(key, value)
        return f"{PYTHON} {shlex.join(words)}"

    def tracked(wildcards):
        words = []
        for key, annotation in known.flags.items():
            if not derives(arguments.get(key)):
                words += spelled(key, given(key, annotation, wildcards, {}), tracked=True)
        return shlex.join(words)

    def networks(wildcards):
        taken = [one for one in known.flags.items() if one[1] in classes or one[1] == "Source"]
        sections = [given(key, annotation, wildcards, {}) for key, annotation in taken]
        values = [getattr(one, key, "none") for one in sections for key in NETWORK_KEYS]
        return [content(file) for value in values for file in local_files(value)]

    hashed = code or code_hash(name)
    return {
        "command": command,
        "settings": tracked,
        "networks": networks,
        "code": lambda wildcards: f"code of {name}: {call(hashed, wildcards)}",
    }


def call(value, wildcards, **context):
    """A value, or what a function makes of the wildcards and those it asks for of the rest."""
    if not callable(value):
        return value
    asked = inspect.signature(value).parameters
    return value(wildcards, **{key: context[key] for key in asked if key in context})


def derives(value):
    """Whether an argument follows from inputs, outputs or resources."""
    return callable(value) and len(inspect.signature(value).parameters) > 1


def spelled(key, value, tracked=False):
    """Command-line words of an argument: all keys of a section, the kind of a source first."""
    if not isinstance(value, Settings):
        return flag(key, value)
    kind = [value.kind] if hasattr(value, "kind") else []
    return [*kind, *flags(value, {"kind", *(value.untracked if tracked else ())})]


# --- inputs -----------------------------------------------------------------------------------


def require(wildcards, check, *arguments):
    """Input files, none: end with one line, before anything starts, where a check refuses."""
    try:
        with errors_of(wildcards.dataset):
            check(*arguments)
    except UserError as error:
        refuse(error)
    return []


def results(wildcards):
    """Folder of a data set's outputs."""
    return Path(configuration.results, wildcards.dataset)


def source_there(wildcards):
    """Input function: refuse a missing source."""
    refuse_variant(wildcards)
    tell_added(wildcards.dataset)
    return require(wildcards, check_images, dataset(wildcards), results(wildcards))


@functools.cache
def tell_added(name):
    """Warn of images that came into a folder after it was listed."""
    if workflow.is_main_process:
        told = added_images(configuration.dataset(name), Path(configuration.results, name))
        if told:
            logger.warning(f"datasets.{name}.{told}")


def baselines_there(wildcards):
    """Input function: refuse a missing baseline."""
    return require(wildcards, check_baselines, dataset(wildcards), results(wildcards))


def labels(wildcards):
    """Input function: the table of true azimuths, if any, which is refused if it cannot be used."""
    return require(wildcards, check_labels, dataset(wildcards)) or dataset(wildcards).labels or []


def given_boxes(wildcards):
    """Input function: the table of the user's boxes, if any, which is refused if it is damaged."""
    return require(wildcards, check_boxes, dataset(wildcards)) or boxes_of(dataset(wildcards)) or []


def edits_there(wildcards):
    """Input function: refuse a table of edits of the poses that cannot be used.

    The table is no input of what its names do not change; ``edited`` is a param.
    """
    return require(wildcards, check_edits, dataset(wildcards))


def given_edits(wildcards):
    """Input function: the table of edits of the poses, if any, refused if it cannot be used."""
    edits = dataset(wildcards).poses.edits
    if edits == "none" or dataset(wildcards).use is not None:  # whose poses are edited already
        return []
    return edits_there(wildcards) or edits


def edited(wildcards):
    """The poses that are merged or dropped, and what becomes of them."""
    table, chosen = given_edits(wildcards), dataset(wildcards)
    into = read_edits(Path(table), chosen.poses.k, chosen.categories)[0] if table else []
    return str({pose: int(other) for pose, other in enumerate(into) if pose != other})


def pose_names(wildcards):
    """Input function: the names of the poses of a data set; a variant has those of the used one."""
    return edits_there(wildcards) or shared("poses/names.json")(wildcards)


def stored_names(wildcards):
    """Input function: the names of the poses of the data set whose model this one uses, if any."""
    used = dataset(wildcards).use
    return [] if used is None else [f"<results>/{used}/poses/names.json"]


def dropped(wildcards):
    """Input function: the table of near-duplicates, where these are left out."""
    drop = dataset(wildcards).screening.duplicates == "drop"
    return [f"<results>/{wildcards.dataset}/screening/duplicates.csv"] if drop else []


def stored_estimator(stage):
    """Input function: what this stage fitted on the data set whose model this one uses, if any."""

    def path(wildcards):
        used = dataset(wildcards).use
        return [] if used is None else [f"<results>/{used}/{stage}/pose_estimator.safetensors"]

    return path


def model(file):
    """Input function: a file of the run that has the data set's model, its own or another's."""
    return lambda wildcards: f"<results>/{dataset(wildcards).use or wildcards.dataset}/{file}"


def own(file):
    """Input function: a file of a data set that trains its own model."""

    def path(wildcards):
        refuse_variant(wildcards)
        if used := dataset(wildcards).use:
            refuse(
                f"{wildcards.dataset} uses the model of {used} and trains none; its target is "
                f"{configuration.results}/{wildcards.dataset}/photo_sheet/contact_sheet.png"
            )
        return f"<results>/{wildcards.dataset}/{file}"

    return path


def refuse_variant(wildcards):
    """End where a file is asked of a variant that only the data set it uses has."""
    name, folder = wildcards.dataset, configuration.results
    if dataset(wildcards).is_variant:
        home = configuration.home(name)
        refuse(
            f"{name} is a variant of {home}, whose images, poses and model it shares; ask for these "
            f"in {folder}/{home}, and for the variant by {folder}/{name}/overview.txt"
        )


def shared(file):
    """Input function: a file that a variant takes from the data set that it uses."""
    return lambda wildcards: f"<results>/{configuration.home(wildcards.dataset)}/{file}"


def of_set(wildcards, name, file):
    """A file of an evaluation set, where it is made."""
    return f"<results>/{configuration.makers(wildcards.dataset)[name]}/sets/{name}/{file}"


def unmasked(wildcards):
    """Input function: the images of a set before its background is removed."""
    return f"<results>/{wildcards.dataset}/sets/{evaluation_set(wildcards).unmasked}/images.h5"


def final(name):
    """The final target of a data set."""
    last = "photo_sheet/contact_sheet.png" if name in USING else "overview.txt"
    return f"<results>/{name}/{last}"


def estimator(wildcards):
    """Input function: the pose estimator before its pose space is fitted."""
    folder = "categories" if dataset(wildcards).categories > 1 else "foreground"
    return f"<results>/{wildcards.dataset}/{folder}/pose_estimator.safetensors"


def categories_table(wildcards):
    """Input function: the category of each image, where there are several."""
    several = dataset(wildcards).categories > 1
    return [f"<results>/{wildcards.dataset}/categories/categories.csv"] if several else []


def sharded(path, kept=False):
    """The output of a single job, or its shard, which is deleted once gathered."""
    stem, _, suffix = path.rpartition(".")
    return path if kept and not SHARD else temp(f"{stem}{SHARD}.{suffix}")


def record(path):
    """The record of a job or of a shard; records of shards are kept."""
    return f"{path}{SHARD}.run.json"


def shards_of(stem, suffix):
    """Input: all shards of a file."""
    return [f"{stem}.{shard}{suffix}" for shard in SHARDS]


def shard(wildcards):
    """The shard of a job, such as 2-of-7."""
    return wildcards.get("shard", "1-of-1")


def local_files(network):
    """Files of a network that is given by a path; none of one that is fetched."""
    path = project_path(network)
    return [str(file) for file in files_of_network(path) if os.path.isfile(file)]


@functools.cache
def content(file):
    """The hash of a file, computed once as long as the file does not change."""
    try:
        found = FILES.get(Path(file), "sha256", sha256_of)
    except OSError as error:
        refuse(f"{file}: {error.strerror}")
    remember_files()
    return found


def remember_files():
    """Keep what was computed of files; a folder that cannot be written is told by the first job."""
    if workflow.is_main_process:
        with contextlib.suppress(OSError):
            FILES.save()


def network(path):
    """Input function: the files of a network, given by a path or fetched by the rule `weights`."""

    def files(wildcards):
        part, _, key = path.partition(".")
        value = str(getattr(getattr(dataset(wildcards), part), key, "none"))
        if path == "backbone.model":
            require(wildcards, check_resolution, dataset(wildcards))
        elif path == "training.pretrained":
            require(wildcards, check_pretrained, dataset(wildcards), results(wildcards))
        if is_local(value):
            # Times change with a copy or a clone; the content is among the params.
            return [ancient(file) for file in local_files(value)]
        item = published_inception(value)
        if item == "none":
            return []
        require(wildcards, require_known, item, path)
        if item in PACKAGES:
            return []
        # A repeated download is identical: outputs stay valid.
        return [ancient(f"<results>/weights/{item}/weights.run.json")]

    return files


def network_setting(wildcards):
    """The config key that names a network, for error messages."""
    for one in configuration.datasets.values():
        for key, value in networks_of(one).items():
            if value == wildcards.network:
                return key
    return "embed.inception"


def network_state(wildcards):
    """Whether a downloaded network was deleted."""
    weights = Path(configuration.weights)
    fetched = Path(configuration.results, "weights", wildcards.network, "weights.run.json").exists()
    return "gone" if fetched and not is_complete(wildcards.network, weights) else "there"


def source_code(wildcards):
    """Hash of the code that lists or makes a data set's images, imported by the name of its kind."""
    kind = dataset(wildcards).source.kind.replace("-", "_")
    return code_hash("dataset") + code_hash(f"sources.{kind}")


@functools.cache
def photos(name):
    """Photos of a data set by the names of their outputs, and (photo, reason) of what is left out."""
    folder = configuration.dataset(name).photos
    if folder is None:
        return {}, []
    limit = configuration.dataset(name).novel_views.max_pixels
    try:
        found, unusable, passed_over = photos_of(folder, limit, FILES)
    except UserError as error:
        refuse(f"datasets.{name}.{error}")
    remember_files()
    if workflow.is_main_process:
        if (root := project_path(folder)) != folder:
            logger.info(f"datasets.{name}.photos: {folder} is the project's own, {root}")
        UNUSABLE.update(dict(unusable))
        for photo, reason in unusable[:5]:
            logger.warning(f"datasets.{name}.photos: {photo} is left out: {reason}")
        if count := len(unusable):
            logger.warning(f"datasets.{name}.photos: {count} unusable files, all in overview.txt")
        if count := len(passed_over):
            logger.info(f"datasets.{name}.photos: {count} hidden files, thumbnails or own results")
    return found, unusable


def photo(wildcards):
    """The photo of a name."""
    found, _ = photos(wildcards.dataset)
    key = f"datasets.{wildcards.dataset}.photos"
    if not found:
        refuse(f"{key}: holds no photos; set it to a folder with photos")
    if wildcards.name not in found:
        spelled = output_names([Path(f"{wildcards.name}.")])[0]
        known = spelled if spelled in found else ", ".join(list(found)[:5])
        refuse(f"{key}: has no photo {encoded(wildcards.name)}; it has {known}")
    return found[wildcards.name]


def photo_there(wildcards):
    """Input function: refuse a missing photo before anything starts.

    Photos are no input, since Snakemake misreads or cannot log some of their names.
    """
    photo(wildcards)
    return []


def photo_path(wildcards):
    """The path of a photo as an argument."""
    path = encoded(photo(wildcards))
    return f"./{path}" if path.startswith("-") else path


def photo_strips(wildcards):
    """Input function: the strips of all photos of a data set."""
    folder = f"<results>/{wildcards.dataset}/novel_views"
    return [f"{folder}/{name}.png" for name in photos(wildcards.dataset)[0]]


def photos_left_out(wildcards):
    """The photos that cannot be shown, each with its reason; of many the first, with their number."""
    unusable = photos(wildcards.dataset)[1]
    lines = [f"{photo}: {reason}" for photo, reason in unusable[:NAMED]]
    return [*lines, f"and {more} more"] if (more := len(unusable) - NAMED) > 0 else lines


def strips_listed(wildcards, input):
    """The strips of photos as the overview lists them: where there are many, their folder."""
    count = len(input.photos)
    folder = f"{configuration.results}/{wildcards.dataset}/novel_views"
    return input.photos if count <= NAMED else [f"{folder}/ ({count} photos)"]


def own_sampling(wildcards):
    """Input function: the stored settings of sampling; a variant has no photos' run of its own."""
    if configuration.home(wildcards.dataset) != wildcards.dataset:
        return []
    return f"<results>/{wildcards.dataset}/training/sampling.json"


def scoring_estimator(wildcards):
    """Input function: what scores references, where bad ones are left out."""
    if not dataset(wildcards).views.reject:
        return []
    return shared("poses/pose_estimator.safetensors")(wildcards)


def turntables(wildcards):
    """Input function: objects from all sides, where the source renders one kind of them."""
    home = configuration.home(wildcards.dataset)
    renders = configuration.dataset(home).renders
    return [f"<results>/{home}/turntables/turntables.h5"] if renders else []


def compared_sets(wildcards):
    """Input function: the sets of the baselines whose objects are shown above ours."""
    names = dataset(wildcards).compared
    if not names:
        refuse(
            f"datasets.{wildcards.dataset}.baselines: none has objects to compare with ours; set "
            "views of one (docs/baselines.md)"
        )
    return [of_set(wildcards, name, "images.h5") for name in names]


def pictures(wildcards):
    """Input function: the pictures that the overview lists."""
    made = dataset(wildcards).sets
    guidance = "hag" if "mv-bg-hag" in made else "no-hag"
    views, masked = f"mv-bg-{guidance}", f"mv-nobg-{guidance}"
    home, folder = (
        f"<results>/{one}" for one in (configuration.home(wildcards.dataset), wildcards.dataset)
    )
    return [
        f"{home}/foreground/foreground.png",
        f"{home}/poses/poses.png",
        f"{home}/poses/pose_eval.png",
        f"{home}/training/loss.png",
        of_set(wildcards, "no-mv", "images.png"),
        of_set(wildcards, views, "images.png"),
        *([of_set(wildcards, masked, "masks.png")] if masked in made else []),
        f"{folder}/sheet/contact_sheet.png",
        f"{folder}/sheet/turntable.gif",
        *(f"{folder}/sheet/reference-{one}.png" for one in dataset(wildcards).sheet.references),
        *([f"{folder}/comparison.png"] if dataset(wildcards).compared else []),
        f"{folder}/evidence/evidence.png",
        f"{folder}/evidence/references.png",
        f"{folder}/evidence/copies.png",
        f"{folder}/ablation/ablation.png",
    ]


def reported(wildcards):
    """Input function: what a report shows; what is made on request it takes where it is there."""
    if wildcards.dataset in USING:
        return final(wildcards.dataset)
    folder = f"<results>/{wildcards.dataset}"
    texts = ("fid.txt", "evidence/evidence.txt", "ablation/ablation.txt")
    screening = shared("screening/screening.txt")(wildcards)
    shown = [*pictures(wildcards), *photo_strips(wildcards), pose_names(wildcards), screening]
    return [*(f"{folder}/{text}" for text in texts), *shown]


def shown(path, category):
    """An output that `snakemake --report` shows, too; caption.rst has a text for its step.

    The text is found by `code` of the params: a workflow with this one as a module renames rules.
    """
    return report(path, category=category, subcategory="{dataset}", caption="caption.rst")


def there(*patterns):
    """Function of the wildcards: files that are made on request and taken as they are, by content.

    They are no input: their rules may no longer be able to make them.
    """
    return lambda wildcards: [
        f"{path}: {content(str(path))}"
        for pattern in patterns
        for path in sorted(results(wildcards).glob(pattern))
    ]


# --- the table --------------------------------------------------------------------------------


def features_of_rows(wildcards):
    """Input function: features of every set that a row compares."""
    rows = table_rows(dataset(wildcards).sets).values()
    compared = {name for one in rows for name in (one.name, one.reference)}
    # Snakemake reserves some names, such as `count`.
    return {f"set_{name}": of_set(wildcards, name, "features.h5") for name in compared}


def rows(wildcards, input):
    """Name, both files of features and caption of every row."""
    return [
        (row, input[f"set_{one.name}"], input[f"set_{one.reference}"], one.caption)
        for row, one in table_rows(dataset(wildcards).sets).items()
    ]


def declared_rows(wildcards):
    """The rows as declared; an edit of one makes the table stale, which its files alone do not."""
    declared = table_rows(dataset(wildcards).sets).items()
    return [f"{row}: {one.name}, {one.reference}, {one.caption}" for row, one in declared]


def published_fid(wildcards):
    """The paper's figures by row."""
    chosen = dataset(wildcards)
    if chosen.paper is None:
        return []
    found = dict(chosen.paper.fid)
    for name, value in chosen.paper.fid_of_others.items():
        baseline = chosen.baselines.get(name)
        background = "removed" if baseline is None else baseline.background
        # The paper's figure is without background, so it has no place in a row with background.
        row = {"removed": name, "remove": f"{name}-nobg", "kept": f"{name} without background"}
        found[row[background]] = value
    return list(found.items())


def deviations(wildcards):
    """Settings that differ from the paper's, if its figures are in the table."""
    home = configuration.home(wildcards.dataset)
    chosen = dataset(wildcards).model_copy(update={"source": configuration.dataset(home).source})
    return [] if chosen.paper is None else differences(chosen)
