# The checked configuration, and how settings become flags.
import re
import shlex

from snakemake.exceptions import WorkflowError

from mirage_steps.settings import load
from mirage_steps.support.code import code_hash
from mirage_steps.support.errors import UserError
from mirage_steps.support.step import flags

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
    """Parameter function: flags of the named sections of the data set's settings."""

    def words(wildcards):
        settings = dataset_settings(wildcards)
        return shlex.join(sum((flags(getattr(settings, name)) for name in names), []))

    return words


def setting(name, key):
    """Parameter function: one value of a section of the data set's settings."""
    return lambda wildcards: getattr(getattr(dataset_settings(wildcards), name), key)


def source_words(wildcards):
    source = dataset_settings(wildcards).source
    words = flags(source)
    kind = words.index("--kind")
    return shlex.join([source.kind, *words[:kind], *words[kind + 2 :]])


def labels_input(wildcards):
    labels = dataset_settings(wildcards).labels
    return [] if labels is None else str(labels)


def guidance_words(wildcards):
    """Only what is guided depends on the guidance: an edit of gamma leaves the others alone."""
    return section("guidance")(wildcards) if wildcards.kind == "mv-bg-hag" else ""


def features_of_rows(wildcards):
    names = {name for pair in ROWS.values() for name in pair}
    return {name: f"<results>/{wildcards.dataset}/sets/{name}/features.h5" for name in names}


def row_words(wildcards, input):
    return shlex.join(
        word
        for row, (scored, real) in ROWS.items()
        for word in ("--row", row, input[scored], input[real])
    )
