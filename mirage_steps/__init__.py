"""MIRAGE steps: multi-view image generation from unposed photos, one module a step.

The folder reads in the order of the pipeline:

- ``dataset``, ``features``, ``foreground``, ``crops``, ``pose_space``, ``poses``: from images to
  pose labels (paper, section 3.1);
- ``train``: the pose-conditioned diffusion model (section 3.2);
- ``real``, ``views``, ``sheet``: sets of real and of generated images, the latter with cross-frame
  attention (section 3.3);
- ``masks``, ``embed``, ``fid``: backgrounds removed, distances to the real images (section 4).

``core`` holds the mathematics (no files, no command line), ``support`` what every step shares,
``sources`` where images come from, ``stand_ins`` the renderer and the small embedded networks.
"""

__version__ = "0.1.0"
