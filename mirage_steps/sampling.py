"""The settings by which a run samples, stored beside its model.

Writes ``sampling.json``. The photo command and :class:`mirage_steps.Run` read it, so that photos
are shown with the run's settings, not with the defaults.
"""

from pathlib import Path

from mirage_steps import settings
from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import run


def main(
    *,
    out: Path,
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    novel_views: settings.NovelViews = settings.NovelViews(),
) -> None:
    """Store settings.

    Args:
        out: Folder of the model.
        views: Sampler.
        guidance: Hard-attention guidance.
        novel_views: Inversion, and the initial noise of the other poses.
    """
    stored = settings.Sampling(views=views, guidance=guidance, novel_views=novel_views)
    write_json(out / "sampling.json", stored.model_dump(mode="json"))


if __name__ == "__main__":
    run(main)
