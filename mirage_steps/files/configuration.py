"""The configuration as the Snakefile reads it, for commands beside it."""

from collections.abc import Sequence
from pathlib import Path

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.settings import Configuration

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
