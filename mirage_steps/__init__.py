"""MIRAGE steps: multi-view image generation from unposed photos.

Top-level modules are the steps of the pipeline, each with a function ``main``:

- ``dataset``, ``features``, ``duplicates``, ``foreground``, ``crops``, ``categories``,
  ``pose_space``, ``poses``, ``pose_names``, ``pose_eval``, ``cameras``, ``screening``: from images
  to pose labels (paper, section 3.1);
- ``train``: the pose-conditioned diffusion model (section 3.2);
- ``real``, ``views``, ``baseline``, ``sheet``, ``contact_sheet``, ``comparison``: sets of real and
  generated images, and pictures of objects (section 3.3);
- ``masks``, ``embed``, ``fid``: background removal and distances to real images (section 4);
- ``turntables``, ``evidence``, ``ablation``: pose control and consistency of views (Figure 3);
- ``novel_views``, ``photo_sheet``, ``mesh``: novel views of photos (section 3.3, Figure 4), and
  meshes;
- ``sampling``, ``report``, ``export``: stored settings, the page of all results, a run for others;
- ``weights``, ``gather``: published networks, and joining of shards.

Below the steps: ``run`` (the class ``Run``, a finished run in Python), ``tools`` (status, compare,
plan and others), ``sources`` (images of each data set), ``networks`` (trained networks), ``files``
(file access), ``method`` (the mathematics), ``demo`` (renderer and stand-in networks),
``settings``, ``evaluation_sets`` and ``errors``.
"""

import sys
from typing import TYPE_CHECKING

from mirage_steps.files.process import prepare_command

if TYPE_CHECKING:
    from mirage_steps.errors import UserError
    from mirage_steps.run import Run

if sys.argv[:1] == ["-m"]:  # Python is about to run a module of this package
    prepare_command()

__version__ = "0.2.0"
__all__ = ["Run", "UserError"]


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that steps start without them."""
    if name == "Run":
        from mirage_steps.run import Run

        return Run
    if name == "UserError":
        from mirage_steps.errors import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
