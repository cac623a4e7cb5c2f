# The checked configuration, and how settings become flags.
import shlex

from snakemake.exceptions import WorkflowError

from mirage_steps.settings import NAME_PATTERN, load
from mirage_steps.support.code import code_hash
from mirage_steps.support.errors import UserError
from mirage_steps.support.step import flags

try:
    configuration = load(config)
except UserError as error:
    raise WorkflowError(str(error)) from None


pathvars:
    results=configuration.results,


wildcard_constraints:
    dataset=NAME_PATTERN,


def dataset_settings(wildcards):
    """Settings of the data set that a rule works on."""
    try:
        return configuration.datasets[wildcards.dataset]
    except KeyError:
        known = ", ".join(configuration.datasets)
        raise WorkflowError(
            f"no data set {wildcards.dataset!r} in the config; there is: {known}"
        ) from None


def section(*names):
    """Parameter function: flags of the named sections of the data set's settings."""

    def words(wildcards):
        settings = dataset_settings(wildcards)
        return shlex.join(sum((flags(getattr(settings, name)) for name in names), []))

    return words


def setting(name, key):
    """Parameter function: one value of a section of the data set's settings."""
    return lambda wildcards: getattr(getattr(dataset_settings(wildcards), name), key)
