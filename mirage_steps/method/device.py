"""Device and precision of the networks."""

import contextlib

import torch

from mirage_steps.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no CUDA device here; use auto or cpu")
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Arithmetic for a network: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 if native)."""
    if precision == "auto":
        precision = "bfloat16" if _has_bfloat16(device) else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
