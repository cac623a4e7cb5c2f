# The checked configuration, and how settings become flags.
import re
import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError

from mirage_steps.settings import load
from mirage_steps.support.code import code_hash
from mirage_steps.support.errors import UserError
from mirage_steps.support.step import flags

# Every step's messages go to the terminal and to its log. A scheduler's signal reaches all processes
# of a job at once; the `tee` of every rule ignores it, because the step still has a checkpoint to save
# and to report.

try:
    configuration = load(config)
except UserError as error:
    raise WorkflowError(str(error)) from None


pathvars:
    results=configuration.results,


# The sets of images that are made.
GENERATED = ("no-mv", "untrained", "mv-bg-no-hag", "mv-bg-hag")
MASKED = {"real-a-nobg": "real-a", "real-b-nobg": "real-b", "mv-nobg-hag": "mv-bg-hag"}
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


wildcard_constraints:
    dataset="|".join(map(re.escape, configuration.datasets)),


def dataset_settings(wildcards):
    """Settings of the data set that a rule works on."""
    return configuration.datasets[wildcards.dataset]


def section(*names):
    """Parameter function: flags of the named sections, but for the keys that change no result.

    Those are given as resources, by :func:`setting`, of which a change makes nothing stale.
    """

    def words(wildcards):
        sections = [getattr(dataset_settings(wildcards), name) for name in names]
        return shlex.join(word for part in sections for word in flags(part, part.untracked))

    return words


def setting(name, key):
    """Parameter function: one value of a section of the data set's settings."""
    return lambda wildcards: getattr(getattr(dataset_settings(wildcards), name), key)


def weights(name, key):
    """Input function: the files of a network that the config names by a path.

    What is fetched, or not there, is no input: the step says so itself.
    """

    def files(wildcards):
        path = Path(str(setting(name, key)(wildcards)))
        found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        return [str(file) for file in found if file.is_file()]

    return files


def source_words(wildcards):
    source = dataset_settings(wildcards).source
    words = flags(source)
    kind = words.index("--kind")
    return shlex.join([source.kind, *words[:kind], *words[kind + 2 :]])


def labels_input(wildcards):
    labels = dataset_settings(wildcards).labels
    return [] if labels is None else str(labels)


def gamma(wildcards):
    """Only what is guided depends on gamma: an edit of it leaves the other sets alone."""
    return setting("guidance", "gamma")(wildcards) if wildcards.kind == "mv-bg-hag" else 1.0


def features_of_rows(wildcards):
    names = {name for pair in ROWS.values() for name in pair}
    return {name: f"<results>/{wildcards.dataset}/sets/{name}/features.h5" for name in names}


def row_words(wildcards, input):
    return shlex.join(
        word
        for row, (scored, real) in ROWS.items()
        for word in ("--row", row, input[scored], input[real])
    )
