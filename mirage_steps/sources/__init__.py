"""Sources of images: one module for each ``source.kind``, of the same name.

Each module has ``list_images(source, out, progress)``, which lists or generates the images in the
data set's folder ``out``; ``progress`` wraps an iterable of known length, such as ``tqdm``. Where
the source has a ``path``, the module also has ``check(source)``, which returns the folder.
"""

from importlib import import_module
from types import ModuleType

from mirage_steps import settings
from mirage_steps.files.manifest import Entry

Listing = tuple[list[Entry], list[tuple[str, str]]]
"""Usable images, and (name, reason) of every rejected one."""


def module_of(source: settings.Source) -> ModuleType:
    """The module of a source; imported on demand, since it may need large packages."""
    return import_module(f"{__name__}.{source.kind.replace('-', '_')}")


def check_source(source: settings.Source) -> None:
    """Refuse a source whose input is not there, without reading any image.

    Raises:
        UserError: saying what is missing and where it belongs.
    """
    if hasattr(source, "path"):
        module_of(source).check(source)
