"""The configuration as the Snakefile reads it, for the tools."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.settings import Configuration, Dataset

# As the Snakefile has them.
CONFIGFILES = ("config/config.yaml", "config/paper.yaml")


def read_configuration(files: Sequence[Path]) -> Configuration:
    """The checked configuration of the current folder, with ``files`` merged over its own.

    Raises:
        UserError: a file is no configuration.
        OSError: a file cannot be read.
    """
    from snakemake.common.configfile import load_configfile
    from snakemake.exceptions import WorkflowError
    from snakemake.utils import update_config

    merged: dict = {}
    for file in (*map(Path, CONFIGFILES), *files):
        try:
            update_config(merged, load_configfile(str(file)))
        except WorkflowError as error:
            raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    return settings.load(merged)


def read_dataset(configuration: Configuration, name: str) -> Dataset:
    """Settings of a data set, those of the data set that it uses filled in.

    Raises:
        UserError: there is no such data set.
    """
    if name not in configuration.datasets:
        meant = difflib.get_close_matches(name, configuration.datasets, n=1)
        known = ", ".join(configuration.datasets)
        hint = f"did you mean {meant[0]!r}" if meant else f"known are {known}"
        raise UserError(
            f"NAME {name}: no such data set; {hint}; one of your own needs --configfile"
        )
    return configuration.dataset(name)
