"""Optimisers of the diffusion model."""

import torch
from torch import Tensor, nn

from mirage_steps.method.unet import UNet


class KernelMuon(torch.optim.Muon):
    """Muon (Jordan 2024) for kernels of convolutions as well as for matrices.

    Muon makes the rows of every update orthonormal. A kernel (out, in, h, w) is taken as the matrix
    (out, in * h * w) of the linear map that the convolution applies at every place. Steps are
    scaled to Adam's usual size, so that one learning rate serves both.

    Args:
        parameters: of two or four dimensions, whose ``grad`` each step reads.
        rate: learning rate.
    """

    def __init__(self, parameters: list[nn.Parameter], rate: float):
        self.kernels = parameters
        self._matrices = [nn.Parameter(as_matrix(kernel.detach())) for kernel in parameters]
        for kernel, matrix in zip(self.kernels, self._matrices, strict=True):
            if kernel.data_ptr() != matrix.data_ptr():
                raise ValueError("a kernel is neither contiguous nor channels_last")
        super().__init__(self._matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by the gradients they hold."""
        for kernel, matrix in zip(self.kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else as_matrix(kernel.grad, like=kernel)
        super().step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the kernels and of the matrices that share their memory."""
        for parameter in (*self.kernels, *self._matrices):
            parameter.grad = None


def as_matrix(kernel: Tensor, like: Tensor | None = None) -> Tensor:
    """A kernel (out, in, h, w) as (out, in * h * w), in the order of its memory.

    The columns' order does not matter to Muon, and only in the memory's order both share memory.

    Args:
        kernel: of two or four dimensions.
        like: where the order is to be that of another kernel's memory.
    """
    if kernel.ndim == 2:
        return kernel
    like = kernel if like is None else like
    if like.is_contiguous(memory_format=torch.channels_last):
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.reshape(len(kernel), -1)


def optimizers(model: UNet, name: str, rate: float) -> list[torch.optim.Optimizer]:
    """What ``training.optimizer`` stands for, each parameter in exactly one of them.

    Args:
        model: to be trained.
        name: ``adam`` (DDIM), or ``muon``: for the matrices and kernels of the hidden layers, and
            Adam for what comes first or last, the embeddings, and all vectors.
        rate: learning rate of all.
    """
    if name == "adam":
        return [torch.optim.Adam(model.parameters(), lr=rate, fused=True)]
    layers = (model.down, model.middle_in, model.middle_attention, model.middle_out, model.up)
    hidden = [p for layer in layers for p in layer.parameters() if p.ndim > 1]
    chosen = {id(parameter) for parameter in hidden}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [KernelMuon(hidden, rate), torch.optim.Adam(others, lr=rate, fused=True)]
