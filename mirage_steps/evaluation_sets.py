"""Declares the image sets of the evaluation and the rows of its table (section 4).

Rules, steps, plan and status read it. To add a row, add a set here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EvaluationSet:
    """A set of images, and the row of the table that compares it with real images.

    Args:
        name: of the set and of its folder in ``results/NAME/sets``.
        source: ``real`` crops; images of the model, ``single`` or ``multi-view``; images of a
            ``baseline``; or ``masked``, the images of another set without background.
        reference: name of the real set that its row compares it with, None for no row.
        caption: what its row shows, in words.
        guided: whether hard-attention guidance is on (equation 7).
        trained: whether the model is the trained one or the one that training starts from.
        unmasked: name of the set whose background is removed.
        row: name of its row, the set's own by default.
    """

    name: str
    source: Literal["real", "single", "multi-view", "baseline", "masked"]
    reference: str | None = None
    caption: str = ""
    guided: bool = False
    trained: bool = True
    unmasked: str | None = None
    row: str = ""

    @property
    def generated(self) -> bool:
        """Whether the model makes its images."""
        return self.source in ("single", "multi-view")


EVALUATION_SETS = (
    EvaluationSet("real-a", "real"),
    EvaluationSet(
        "real-b", "real", "real-a", "other real images: no model can be expected below this",
        row="real-vs-real",
    ),
    EvaluationSet(
        "no-mv", "single", "real-a", "single images, without cross-frame attention"
    ),
    EvaluationSet(
        "mv-bg-no-hag", "multi-view", "real-a",
        "multi-view sets, without hard-attention guidance",
    ),
    EvaluationSet(
        "mv-bg-hag", "multi-view", "real-a",
        "multi-view sets, with hard-attention guidance", guided=True,
    ),
    EvaluationSet(
        "untrained", "single", "real-a", "the untrained network: the worst case", trained=False
    ),
    EvaluationSet("real-a-nobg", "masked", unmasked="real-a"),
    EvaluationSet(
        "real-b-nobg", "masked", "real-a-nobg",
        "other real images, both sides without background",
        unmasked="real-b", row="real-vs-real-nobg",
    ),
    EvaluationSet(
        "mv-nobg-no-hag", "masked", "real-a-nobg",
        "multi-view sets without guidance, both sides without background", unmasked="mv-bg-no-hag",
    ),
    EvaluationSet(
        "mv-nobg-hag", "masked", "real-a-nobg",
        "multi-view sets with guidance, both sides without background", unmasked="mv-bg-hag",
    ),
)  # fmt: skip


def evaluation_sets(
    baselines: Mapping[str, str], masked: bool = True, guided: bool = True
) -> dict[str, EvaluationSet]:
    """All sets of a data set by name, in the order of the table.

    Args:
        baselines: of each other method its name and the key ``background`` of its section.
        masked: whether there are sets without background; without them all backgrounds are kept.
        guided: whether there are guided sets, which without guidance equal the unguided ones.
    """
    sets: dict[str, EvaluationSet] = {}
    for one in EVALUATION_SETS:
        left_out = (one.source == "masked" and not masked) or (one.guided and not guided)
        if not left_out and (one.unmasked is None or one.unmasked in sets):
            sets[one.name] = one
    for name, background in baselines.items():
        caption = "another method's images"
        if background == "kept":
            sets[name] = EvaluationSet(name, "baseline", "real-a", caption)
            continue
        caption += ", both sides without background"
        if background == "removed":
            sets[name] = EvaluationSet(name, "baseline", "real-a-nobg", caption)
            continue
        sets[name] = EvaluationSet(name, "baseline")
        row = EvaluationSet(f"{name}-nobg", "masked", "real-a-nobg", caption, unmasked=name)
        sets[row.name] = row
    return sets


def table_rows(sets: Mapping[str, EvaluationSet]) -> dict[str, EvaluationSet]:
    """The sets that make a row, by the name of the row."""
    return {one.row or one.name: one for one in sets.values() if one.reference is not None}
