"""MIRAGE steps: multi-view image generation from unposed photos, one module a step.

The folder reads in the order of the pipeline:

- ``dataset``, ``features``, ``foreground``, ``crops``, ``pose_space``, ``poses``: from images to
  pose labels (paper, section 3.1);
- ``train``: the pose-conditioned diffusion model (section 3.2);
- ``real``, ``views``, ``sheet``: sets of real and of generated images, the latter with cross-frame
  attention (section 3.3);
- ``masks``, ``embed``, ``fid``: backgrounds removed, distances to the real images (section 4);
- ``novel_views``: any photo from all sides, with what a run stored (section 3.3, Figure 4).

``core`` holds the mathematics (no files, no command line), ``support`` what every step shares,
``sources`` where images come from, ``stand_ins`` the renderer and the small embedded networks.
``runs`` is a finished run as a tool in Python: ``from mirage_steps import Run``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirage_steps.errors import UserError
    from mirage_steps.run import Run

__version__ = "0.1.0"
__all__ = ["Run", "UserError"]


def __getattr__(name: str) -> object:
    """What the package offers in Python, imported when it is asked for: steps need not wait."""
    if name == "Run":
        from mirage_steps.run import Run

        return Run
    if name == "UserError":
        from mirage_steps.errors import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
