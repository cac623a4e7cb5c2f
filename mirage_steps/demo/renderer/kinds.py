"""The kinds of objects that the demo can show and that stand-in networks are trained for."""

from collections.abc import Callable
from dataclasses import dataclass

from mirage_steps.demo.renderer import cars, mugs
from mirage_steps.demo.renderer.rendering import Rendering


@dataclass(frozen=True)
class Kind:
    """A renderer and the families of shapes that it knows.

    Attributes:
        render: of seed, index, families and what else ``cars.render`` takes.
        parts: names of what ``Rendering.part`` counts, the background first.
        demo_families: of the demo's images.
        stand_in_families: of the images that the stand-in networks learn from.
        mirrored: whether the mirror image of one is one of the kind, too.
    """

    render: Callable[..., Rendering]
    parts: tuple[str, ...]
    demo_families: tuple[str, ...]
    stand_in_families: tuple[str, ...]
    mirrored: bool


KINDS = {
    "cars": Kind(cars.render, cars.PARTS, cars.DEMO_FAMILIES, cars.STAND_IN_FAMILIES, True),
    # Seen from its print, a mug has its handle at image-right.
    "mugs": Kind(mugs.render, mugs.PARTS, mugs.DEMO_FAMILIES, mugs.STAND_IN_FAMILIES, False),
}
