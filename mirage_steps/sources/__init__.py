"""Where images come from: a module for each kind of source."""

from mirage_steps import settings


def check_source(source: settings.Settings) -> None:
    """Refuse a source whose input is not there, without reading any image.

    Raises:
        UserError: saying what is missing and where it belongs.
    """
    from mirage_steps.sources import compcars, epfl, folder

    checks = {
        settings.Folder: folder.check,
        settings.CompCars: compcars.check,
        settings.Epfl: epfl.check,
    }
    if type(source) in checks:
        checks[type(source)](source)
