"""Speed beside what one would otherwise run: one table of ratios, for this machine.

    python benchmarks/bench.py [--only pca masks] [--pairs 5] [--out results/bench]

Ours and the other run in turn in one process, in pairs, on the same work, so that other load on the
machine meets both; the ratio of each pair is taken, and the median with the least and the largest
is printed. Where both do not do the same operations (U-Nets), the ratio is of operations per
second, counted by torch. A second table has how our time grows with the work. Networks have the
published sizes and random weights: time does not depend on their values. A peer that is not
installed is left out and named.
"""

import functools
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
import tyro
from matplotlib.figure import Figure
from segment_anything import SamPredictor, sam_model_registry
from sklearn.cluster import KMeans
from sklearn.decomposition import IncrementalPCA
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from full_size import save_weights
from test_inversion import _literal_move, _literal_noise, _moves
from test_multiview import literal_views

from mirage_steps import settings
from mirage_steps.files.atomic import write_json
from mirage_steps.files.h5 import by_image, create_h5, open_h5, slices
from mirage_steps.files.text_table import aligned
from mirage_steps.masks import segment
from mirage_steps.method import diffusion
from mirage_steps.method.device import has_bfloat16
from mirage_steps.method.foreground import Region
from mirage_steps.method.inversion import invert
from mirage_steps.method.multiview import sample_views
from mirage_steps.method.pca import Moments, Pca
from mirage_steps.method.poses import PoseModel
from mirage_steps.method.processes import Processes
from mirage_steps.method.training import Trainer
from mirage_steps.method.unet import UNet, preset
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.sam import fuse_attention

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16") if has_bfloat16(CPU) else ("float32",)
Work = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Our function and another on the same work.

    Args:
        name: of the work.
        peer: what the other is.
        ours, other: the functions.
        operations: of ours in those of the other.
        most: pairs at most, for work that takes long.
    """

    name: str
    peer: str
    ours: Work
    other: Work
    operations: float = 1.0
    most: int = 99


def main(*, only: tuple[str, ...] = (), pairs: int = 5, out: Path = Path("results/bench")) -> None:
    """Print the tables and write bench.json and bench.png.

    Args:
        only: Some of training, tokens, pca, kmeans, views, photo, masks, reading; no growth then.
        pairs: Of runs of each comparison.
        out: Folder of the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    found = []
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{machine}; ratios above 1: ours is faster", flush=True)
    if len(PRECISIONS) == 1:
        print("this CPU has no bfloat16, left out")
    with tempfile.TemporaryDirectory() as folder:
        for make in (training, tokens, pca, kmeans, views, photo, masks, reading):
            if not only or make.__name__ in only:
                for one in make(Path(folder)):
                    found.append(compare(one, min(pairs, one.most)))
                    print(*row(found[-1]), sep="; ", flush=True)
    head = ("work", "beside", "ours, s", "other, s", "ratio (least to largest)")
    print("\n" + "\n".join(aligned([head, *map(row, found)], "<<>>>")))
    grown = [] if only else list(growth())
    if grown:
        head = ("work", "x 1, s", "x 4, s", "x 16, s", "exponent")
        print("\n" + "\n".join(aligned([head, *grown], "<>>>>")))
    write_json(out / "bench.json", {"machine": machine, "comparisons": found, "growth": grown})
    picture(out / "bench.png", found)


def compare(one: Comparison, pairs: int) -> dict:
    """Seconds of both, medians over the pairs, and the ratio of each pair."""
    one.ours(), one.other()  # the first runs choose kernels and allocate
    spent = [(seconds(one.ours), seconds(one.other)) for _ in range(pairs)]
    ratios = [one.operations * other / ours for ours, other in spent]
    ours, other = np.median(spent, axis=0)
    return {
        "name": one.name,
        "peer": one.peer,
        "seconds": float(ours),
        "other_seconds": float(other),
        "ratios": ratios,
    }


def seconds(work: Work) -> float:
    """Time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(found: dict) -> tuple[str, ...]:
    """A line of the table."""
    ratios = found["ratios"]
    spread = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return (
        found["name"],
        found["peer"],
        f"{found['seconds']:.3g}",
        f"{found['other_seconds']:.3g}",
        spread,
    )


def picture(path: Path, found: list[dict]) -> None:
    """Ratios as points on a logarithmic axis, their ranges as lines."""
    figure = Figure((8, 0.4 * len(found) + 1), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(reversed(found)):
        ratios = one["ratios"]
        axes.plot([min(ratios), max(ratios)], [place, place], color="0.6", linewidth=3)
        axes.plot(np.median(ratios), place, "o", color="C0")
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(found)), [f"{o['name']}\n{o['peer']}" for o in reversed(found)])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("times as fast as the other")
    figure.savefig(path, dpi=110)


def training(_: Path) -> Iterator[Comparison]:
    """A step of the preset ``paper`` against other U-Nets at 64 pixels, per operation."""
    images, poses = torch.rand(8, 3, 64, 64) * 2 - 1, torch.arange(8) % 5
    for precision in PRECISIONS:
        ours = settings.Training(preset="paper", precision=precision, batch_size=8, dropout=0.0)
        trainer = Trainer(preset("paper", 64, 5, 0.0), ours, Processes(CPU))
        own = functools.partial(trainer.step, images, poses)
        one = operations(functools.partial(trainer.step, images[:1], poses[:1]))
        for name, network in _peers():
            if network is None:
                print(f"training: {name} is not installed, left out")
                continue
            step = _other_step(network, images, precision)
            share = one / operations(_other_step(network, images[:1], precision))
            yield Comparison(
                f"training step, {precision}",
                f"{name}, per operation",
                own,
                step,
                share,
                3,
            )


def _peers() -> Iterator[tuple[str, torch.nn.Module | None]]:
    """U-Nets of other packages, of about the paper's size."""
    from diffusers import UNet2DModel

    yield (
        "diffusers UNet2DModel",
        UNet2DModel(
            sample_size=64,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        ),
    )
    try:
        from denoising_diffusion_pytorch import Unet
    except ImportError:
        yield "denoising-diffusion-pytorch", None
    else:
        yield "denoising-diffusion-pytorch", Unet(dim=128, dim_mults=(1, 2, 2, 2))


def _other_step(network: torch.nn.Module, images: torch.Tensor, precision: str) -> Work:
    """A training step as their examples have it: Adam, mean squared error, clipped gradients."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    dtype = getattr(torch, precision)

    def step() -> None:
        times, noise = torch.randint(0, 1000, (len(images),)), torch.randn_like(images)
        with torch.autocast("cpu", dtype, enabled=precision != "float32"):
            output = network(images + noise, times)
            output = getattr(output, "sample", output)
        loss = (output.float() - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def operations(work: Work) -> float:
    """Floating point operations of a call, as torch counts them.

    Attention as plain products, since torch does not count its fused kernels for the CPU.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def tokens(folder: Path) -> Iterator[Comparison]:
    """DINOv2-base against the model of ``transformers``."""
    save_weights(folder)
    chosen = settings.Backbone(model=str(folder / "random-dinov2-base"), resolution=224)
    model = transformers.AutoModel.from_pretrained(folder / "random-dinov2-base").eval()
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)

    def other() -> None:
        with torch.inference_mode():
            model(pixels)

    for precision in PRECISIONS:
        network = Backbone.load(chosen.model_copy(update={"token_precision": precision}), CPU)
        ours = functools.partial(network.half_tokens, images)
        name = f"tokens of 8 images, DINOv2-base, {precision}"
        yield Comparison(name, "transformers, float32", ours, other)


def pca(_: Path) -> Iterator[Comparison]:
    """Streamed moments against scikit-learn's incremental PCA, 3 components."""
    batches = [one.astype(np.float16) for one in _gaussian(16 * 1024, 768).reshape(16, 1024, 768)]

    def ours() -> None:
        moments = Moments()
        for batch in batches:
            moments.add(batch)
        Pca.fit(moments, 3)

    def other() -> None:
        model = IncrementalPCA(3)
        for batch in batches:
            model.partial_fit(batch)

    yield Comparison("PCA of 16 384 tokens", "scikit-learn IncrementalPCA", ours, other)


def kmeans(_: Path) -> Iterator[Comparison]:
    """Clusters, their circular order and padding, against K-Means alone."""
    maps = _gaussian(4000, 256 * 3).reshape(4000, 256, 3)
    valid = np.ones((4000, 256), bool)
    other = lambda: KMeans(12, n_init=3, random_state=0).fit(maps.reshape(4000, -1))  # noqa: E731
    ours = lambda: PoseModel.fit(maps, valid, 12, 3, 0)  # noqa: E731
    yield Comparison("poses of 4000 maps", "scikit-learn KMeans", ours, other)


def _gaussian(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


def _network(poses: int) -> UNet:
    """The small preset, with values where training starts from zero."""
    model = UNet(preset("small", 64, poses, 0.0)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.02)
    return model


def views(_: Path) -> Iterator[Comparison]:
    """Guided multi-view sampling against the equations, one view and pass at a time."""
    model, timesteps = _network(4), diffusion.ddim_timesteps(3)
    noise, poses = torch.randn(4, 3, 64, 64), torch.arange(4).repeat(4, 1)
    guidance = settings.Guidance()

    def literal() -> None:
        with torch.inference_mode():
            for one in noise:
                literal_views(model, one[None], poses[0].tolist(), timesteps, guidance)

    ours = lambda: sample_views(model, noise, poses, timesteps, guidance)  # noqa: E731
    yield Comparison("4 views of 4 objects, guided", "the literal loop", ours, literal)


def photo(_: Path) -> Iterator[Comparison]:
    """Inversion of photos against the literal loop."""
    model, timesteps = _network(4), diffusion.ddim_timesteps(10)
    images, poses = torch.rand(4, 3, 64, 64) * 2 - 1, torch.arange(4)
    alphas = diffusion.cumulative_alphas().tolist()

    def literal() -> None:
        with torch.inference_mode():
            for image, pose in zip(images, poses.tolist(), strict=True):
                for t, before in reversed(_moves(timesteps)):
                    noise = _literal_noise(model, image, t, pose)
                    lower = alphas[before] if before >= 0 else 1.0
                    image = _literal_move(image, noise, lower, alphas[t])

    ours = lambda: invert(model, images, poses, timesteps)  # noqa: E731
    yield Comparison("inversion of 4 photos", "the literal loop", ours, literal)


def masks(_: Path) -> Iterator[Comparison]:
    """SAM ViT-B, an image of 64 pixels with box and points, against its own predictor."""
    sam, own = (sam_model_registry["vit_b"]().eval().requires_grad_(False) for _ in range(2))
    fuse_attention(sam)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    inside = np.zeros((16, 16), bool)
    inside[4:12, 4:12] = True
    region = Region(box=(0.25, 0.25, 0.75, 0.75), mask=inside)
    predictor = SamPredictor(own)

    def other() -> None:
        predictor.set_image(images[0])
        predictor.predict(box=np.array([16, 16, 48, 48]), multimask_output=False)

    for precision in PRECISIONS:
        chosen = settings.Masks(sam_precision=precision)
        ours = functools.partial(segment, sam, images, [region], chosen)
        name = f"mask of an image, SAM ViT-B, {precision}"
        yield Comparison(name, "its own predictor, float32", ours, other, most=1)


def reading(folder: Path) -> Iterator[Comparison]:
    """Tokens from HDF5 in batches against a plain file of the same bytes (both in the cache)."""
    count, shape = 400, (256, 768)
    with create_h5(folder / "tokens.h5") as file:
        by_image(file, "patch_tokens", count, shape, np.float16)
        file["patch_tokens"][:] = 1
    (folder / "plain").write_bytes(np.ones((count, *shape), np.float16).tobytes())

    def ours() -> None:
        with open_h5(folder / "tokens.h5") as file:
            for rows in slices(count, 64):
                file["patch_tokens"][rows]

    def other() -> None:
        plain = np.memmap(folder / "plain", np.float16, "r", shape=(count, *shape))
        for rows in slices(count, 64):
            np.array(plain[rows])

    yield Comparison("reading 400 images' tokens", "a plain file", ours, other)


def growth() -> Iterator[tuple[str, ...]]:
    """Time at 1, 4 and 16 times the work, and the exponent of the last step."""
    tokens = _gaussian(16 * 1024, 768)
    maps = _gaussian(16_000, 256 * 3).reshape(16_000, 256, 3)
    model, timesteps = _network(16), diffusion.ddim_timesteps(2)

    def moments(factor: int) -> Work:
        return lambda: Moments().add(tokens[: 1024 * factor])

    def poses(factor: int) -> Work:
        valid = np.ones((1000 * factor, 256), bool)
        return lambda: PoseModel.fit(maps[: 1000 * factor].copy(), valid, 12, 1, 0)

    def clusters(factor: int) -> Work:
        return lambda: PoseModel.fit(
            maps[:4000].copy(), np.ones((4000, 256), bool), 3 * factor, 1, 0
        )

    def frames(factor: int) -> Work:
        asked = torch.arange(factor)[None]
        noise = torch.randn(1, 3, 64, 64)
        return lambda: sample_views(model, noise, asked, timesteps, settings.Guidance())

    works = {"PCA, tokens": moments, "poses, images": poses, "poses, K": clusters, "views": frames}
    for name, make in works.items():
        spent = []
        for factor in (1, 4, 16):
            work = make(factor)
            work()
            spent.append(float(np.median([seconds(work) for _ in range(3)])))
        exponent = np.log(spent[2] / spent[1]) / np.log(4)
        yield (name, *(f"{one:.3g}" for one in spent), f"{exponent:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
