"""Cameras of views whose silhouettes one object explains.

The object is a small volume of densities, equal to its mirror image. Its silhouettes are
differentiable in volume and cameras, and all are fitted together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mirage_steps.method.cameras import Camera
from mirage_steps.method.visual_hull import LEAST_VIEWS

_MAPS = 0.2  # standard deviation of features beside silhouettes in [0, 1]
PERSPECTIVE = 0.3
"""Of photos whose distance is unknown: 3.3 lengths of the object."""

# How far the camera of one object's view is from that of its pose: standard deviations of a normal
# prior, the elevation's in radians. Without a prior, meshes of generated views, which differ in
# shape, are no better than by the poses' own cameras (docs/mesh.md).
_OBJECT_PRIOR = {"elevation": 0.09, "log_scale": 0.05, "offset": 0.02}
_PRIOR_WEIGHT = (
    1e-3  # weight of a squared deviation beside the mean squared difference of silhouettes
)

_TURN = 30  # degrees between starts
_CANDIDATES = 3  # starts that are fitted on: a wrong plane of symmetry may look best at first
_SMALL = 14  # voxels of a side, to compare starts
_HALF = 0.6  # of the volume's cube, in units of the object's largest visible extent


@dataclass(frozen=True)
class Fit:
    """Cameras, and the ``loss``: mean squared differences, summed over silhouette and features."""

    cameras: tuple[Camera, ...]
    loss: float


def start(masks: np.ndarray, azimuths_deg: Sequence[float], elevation_deg: float = 12.0) -> list:
    """Cameras to start from: all see the object equally high, and it in the middle.

    Args:
        masks: (k, S, S) in [0, 1], none empty.
        azimuths_deg: (k,).
    """
    boxes = np.array([_box(mask > 0.5) for mask in masks])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    extent = (np.maximum(width, height) / height).max()  # in heights of the object
    middles = 0.5 * (boxes[:, :2] + boxes[:, 2:]) - 0.5
    return [
        Camera(float(azimuth), elevation_deg, float(high * extent), tuple(middle.tolist()))
        for azimuth, high, middle in zip(azimuths_deg, height, middles, strict=True)
    ]


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a mask in sides of its frame."""
    y, x = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    side = len(mask)
    return x[0] / side, y[0] / side, (x[-1] + 1) / side, (y[-1] + 1) / side


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    masks: np.ndarray,
    cameras: Sequence[Camera],
    *,
    azimuth: bool = True,
    elevation: bool = True,
    perspective: bool = True,
    maps: np.ndarray | None = None,
    prior: Mapping[str, float] | None = None,
    steps: int = 150,
    size: int = 24,
) -> Fit:
    """Fit cameras to silhouettes, from cameras near them.

    Args:
        masks: (k, S, S) in [0, 1].
        cameras: to start from; azimuth 0 is in the object's plane of symmetry.
        azimuth: whether it is fitted, too.
        elevation: whether it is fitted, too; it is the same for all views.
        perspective: whether it is fitted, too; it is the same for all views.
        maps: (k, S, S, c) features of the surface, zero off the object; the surface has the same
            from all sides.
        prior: standard deviations of ``log_scale``, ``offset`` (in sides of the frame),
            ``azimuth`` and ``elevation`` (in radians) from those of the given cameras; those of the
            others are unbounded. It does not count in the loss.
        steps: of Adam.
        size: side of the silhouettes in pixels, and of the volume in voxels.
    """
    target, values = _target(masks, maps, size), _values(cameras)
    rates = {"log_scale": 0.03, "offset": 0.01}
    rates |= {"azimuth": 0.04} if azimuth else {}
    rates |= {"elevation": 0.015} if elevation else {}
    rates |= {"perspective": 0.03} if perspective else {}
    logits = torch.full((1, size, size, size), -3.0, requires_grad=True)
    features = torch.zeros((target.shape[1] - 1, size, size, size), requires_grad=True)
    groups: list[dict[str, Any]] = [
        {"params": [logits], "lr": 0.3},
        {"params": [features], "lr": 0.1},
    ]
    groups += [{"params": [values[name].requires_grad_()], "lr": r} for name, r in rates.items()]
    given = {name: value.detach().clone() for name, value in values.items()}
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=steps, pct_start=0.15
    )
    # The opposite direction of rotation has cameras that look up.
    low, high = (0, 1) if values["elevation"] >= 0 else (-1, 0)
    for step in range(steps):
        shape = 0.5 * (logits + logits.flip(2))
        made = _rendered(torch.cat([torch.sigmoid(shape), features]), values)
        loss = (made - target).square().mean((0, 2, 3)).sum()
        moved = [
            ((values[name] - given[name]) / deviation).square().mean()
            for name, deviation in (prior or {}).items()
        ]
        optimizer.zero_grad()
        (loss + _PRIOR_WEIGHT * sum(moved)).backward()
        if 3 * step < steps:
            # There is no shape yet that could tell them.
            values["azimuth"].grad = None
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            values["perspective"].clamp_(0, 0.8)
            values["elevation"].clamp_(low, high)
    return Fit(_cameras(values), loss.item())


def _target(masks: np.ndarray, maps: np.ndarray | None, size: int) -> torch.Tensor:
    """Silhouettes and scaled features (k, 1 + c, size, size)."""
    target = masks[..., None]
    if maps is not None:
        target = np.concatenate([target, _MAPS * maps / maps.std()], -1)
    target = torch.from_numpy(np.moveaxis(target, -1, 1).astype(np.float32))
    return functional.interpolate(target, (size, size), mode="bilinear", antialias=True)


def _values(cameras: Sequence[Camera]) -> dict[str, torch.Tensor]:
    """What is fitted of cameras; elevation and perspective are the same for all."""
    values = {
        "azimuth": np.radians([one.azimuth_deg for one in cameras]),
        "elevation": np.radians(np.mean([one.elevation_deg for one in cameras])),
        "log_scale": np.log([one.scale for one in cameras]),
        "offset": [one.offset for one in cameras],
        "perspective": np.mean([one.perspective for one in cameras]),
    }
    return {name: torch.tensor(np.asarray(value, np.float32)) for name, value in values.items()}


def _cameras(values: dict[str, torch.Tensor]) -> tuple[Camera, ...]:
    plain = {name: value.detach().double().numpy() for name, value in values.items()}
    rows = zip(plain["azimuth"], np.exp(plain["log_scale"]), plain["offset"], strict=True)
    elevation = float(np.degrees(plain["elevation"]))
    perspective = float(plain["perspective"])
    return tuple(
        Camera(float(np.degrees(a)), elevation, float(s), tuple(o.tolist()), perspective)
        for a, s, o in rows
    )


def _rendered(volume: torch.Tensor, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Views (k, 1 + c, P, P) of a volume (1 + c, P, P, P) by x, y and z.

    Its channels are density in [0, 1] and features; those of the views are the silhouette and
    features times opacity. Cameras are as :class:`.Camera` defines them.
    """
    size = volume.shape[-1]
    a, e = values["azimuth"], values["elevation"].expand(len(values["azimuth"]))
    zero = torch.zeros_like(a)
    right = torch.stack([-a.sin(), a.cos(), zero], -1)
    forward = -torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    up = torch.linalg.cross(right, forward)
    steps = (torch.arange(size) + 0.5) / size - 0.5
    scale = values["log_scale"].exp()[:, None]
    x = (steps - values["offset"][:, :1]) / scale  # (k, P)
    y = (values["offset"][:, 1:] - steps) / scale
    plane = x[:, None, :, None] * right[:, None, None] + y[:, :, None, None] * up[:, None, None]
    depth = torch.linspace(-_HALF, _HALF, size)[:, None, None, None] * 1.2
    nearer = 1 + values["perspective"] * depth
    points = plane[:, None] * nearer + depth * forward[:, None, None, None]  # (k, D, P, P, 3)
    # The last axis of a volume comes first in a place of grid_sample.
    place = points.flip(-1).reshape(1, -1, size, size, 3) / _HALF
    sampled = functional.grid_sample(volume[None], place, align_corners=False)[0]
    sampled = sampled.reshape(len(volume), len(a), size, size, size)
    density, features = sampled[0].clamp(max=0.999), sampled[1:]
    through = torch.log1p(-density).cumsum(1).exp()  # what is left of a ray behind each depth
    opaque = 1 - through[:, -1:]
    if not len(features):
        return opaque
    before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
    shown = (features * (before * density)).sum(2).transpose(0, 1)
    return torch.cat([opaque, shown], 1)


def find(masks: np.ndarray, maps: np.ndarray) -> tuple[Fit, dict[int, float]]:
    """Cameras of poses in circular order, from what their images show in the mean.

    Gaps between neighbors start in proportion to the distance of their maps, with an exponent
    between that of independent noise, 2, and that of a smooth curve, 1. Both senses and a circle of
    starts are tried on a small volume, the best are fitted on. The distance is assumed
    (``PERSPECTIVE``): mean silhouettes do not tell it.

    Args:
        masks: (k, S, S) in [0, 1], mean masks.
        maps: (k, S, S, c) mean maps in pose space, zero off the object.

    Returns:
        The fit; its azimuths increase with the pose by `sense` 1, and decrease by -1. And the
        least loss of the starts of each sense.
    """
    flat = maps.reshape(len(maps), -1)
    gaps = np.linalg.norm(np.roll(flat, -1, 0) - flat, axis=1) ** 1.25
    around = np.cumsum([0, *gaps[:-1]]) / gaps.sum() * 360
    tried = {}
    for sense in (1, -1):
        # Front and rear cannot be told apart, so half the circle is enough.
        for turn in range(0, 180, _TURN):
            cameras = _at(start(masks, turn + sense * around))
            tried[sense, turn] = fit(
                masks, cameras, azimuth=False, perspective=False, maps=maps, steps=40, size=_SMALL
            )

    def fitted_on(one: Fit, steps: int, size: int) -> Fit:
        return fit(masks, one.cameras, maps=maps, steps=steps, size=size, perspective=False)

    near = sorted(tried.values(), key=attrgetter("loss"))[:_CANDIDATES]
    best = min((fitted_on(one, 80, _SMALL) for one in near), key=attrgetter("loss"))
    best = fitted_on(best, 100, 18)
    losses = {
        sense: min(one.loss for (s, _), one in tried.items() if s == sense) for sense in (1, -1)
    }
    return best, losses


def refit(masks: np.ndarray, maps: np.ndarray, cameras: Sequence[Camera]) -> Fit:
    """Cameras fitted on from those that :func:`find` found, to other images of the same poses."""
    return fit(masks, cameras, maps=maps, steps=60, size=_SMALL, perspective=False)


def refined(masks: np.ndarray, cameras: Sequence[Camera]) -> list[Camera]:
    """Cameras of one object's views, near those of their poses, which all objects share.

    Images of a pose differ in elevation, and objects in size and shape, so their crops differ in
    scale and offset. Azimuths and perspective are kept.

    Args:
        masks: (k, S, S) in [0, 1] of the object's views; the cameras of empty ones are kept, and
            all of them where too few show the object.
        cameras: (k,) of the views' poses, of one elevation and perspective; azimuth 0 is in the
            object's plane of symmetry.
    """
    shown = [index for index, mask in enumerate(masks) if (mask > 0.5).any()]
    if len(shown) < LEAST_VIEWS:
        return list(cameras)
    given = [cameras[index] for index in shown]
    own = fit(masks[shown], given, azimuth=False, perspective=False, prior=_OBJECT_PRIOR, steps=100)
    found = dict(zip(shown, own.cameras, strict=True))
    return [found.get(index, camera) for index, camera in enumerate(cameras)]


def reversed_depth(cameras: Sequence[Camera]) -> list[Camera]:
    """Cameras that turn the other way and look up instead of down, or down instead of up.

    From afar the silhouettes that they see of the object's mirror image are the same.
    """
    return [
        replace(one, azimuth_deg=-one.azimuth_deg, elevation_deg=-one.elevation_deg)
        for one in cameras
    ]


def _at(cameras: Sequence[Camera]) -> list[Camera]:
    """Cameras at the assumed distance."""
    return [replace(one, perspective=PERSPECTIVE) for one in cameras]
