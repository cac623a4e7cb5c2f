"""Speed-up of the batched sampler over the literal equations.

    python benchmarks/views.py [--preset small] [--objects 4] [--views 3] [--steps 3] [--device cpu]
        [--precision float32]

The literal version, the reference of the tests, runs every view separately, soft and hard pass from
the first layer to the last, and stores the reference's keys and values. Both get the same noise and
weights. Prints the ratio of their times and the largest difference of the images. A second ratio
compares group normalization under autocast with ours.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_multiview import literal_views

from mirage_steps.method.device import autocast
from mirage_steps.method.diffusion import ddim_timesteps
from mirage_steps.method.multiview import sample_views
from mirage_steps.method.unet import GroupNorm, UNet, preset
from mirage_steps.settings import Guidance


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=["small", "paper"], default="small")
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--gamma", type=float, default=1.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def main() -> None:
    words = _arguments()
    torch.manual_seed(0)
    torch.set_default_device(words.device)
    model = UNet(preset(words.preset, 64, 1 + words.views, 0.0)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():  # zero at the start, which would hide differences
            parameter.copy_(torch.randn_like(parameter) * 0.02)
    timesteps = ddim_timesteps(words.steps)
    noise = torch.randn(words.objects, 3, 64, 64)
    poses = torch.arange(1 + words.views).repeat(words.objects, 1)

    guidance = Guidance(gamma=words.gamma)

    def fast():
        return sample_views(model, noise, poses, timesteps, guidance)

    def literal():
        with torch.inference_mode():
            rows = [
                literal_views(model, one[None], poses[0].tolist(), timesteps, guidance)
                for one in noise
            ]
        return torch.stack(rows)

    def native():
        ours, GroupNorm.forward = GroupNorm.forward, nn.GroupNorm.forward
        try:
            return fast()
        finally:
            GroupNorm.forward = ours

    times = {}
    for name, function in (("literal", literal), ("native norm", native), ("batched", fast)):
        with autocast(torch.device(words.device), words.precision):
            function()  # warm up
            if words.device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            images = function()
            if words.device != "cpu":
                torch.cuda.synchronize()
        times[name] = time.perf_counter() - start, images
        print(f"{name}: {times[name][0]:.2f} s")
    difference = (times["literal"][1] - times["batched"][1]).abs().max().item()
    ratio = times["literal"][0] / times["batched"][0]
    print(f"literal to batched: {ratio:.2f}, largest difference {difference:.1e}")
    ratio = times["native norm"][0] / times["batched"][0]
    print(f"native group normalization to ours: {ratio:.2f}")


if __name__ == "__main__":
    main()
