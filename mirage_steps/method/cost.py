"""What a computation costs, found from shapes alone.

Both functions run a computation whose tensors are on torch's meta device, which has shapes but no
values: nothing is loaded or computed, whatever the size of the network.

What they do not see: memory that kernels use inside (workspaces of convolutions and of attention),
what the allocator rounds up or loses to fragmentation, the temporaries of what is no tensor
operation, and what a compiler would fuse. On the CPU the process itself comes on top, on CUDA the
context.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of a call.

    A multiplication and an addition count as two. A backward pass inside the call is counted too.
    What works value by value, such as a normalisation, is left out: it costs time, but no
    operations to speak of.

    Args:
        function: runs the computation.
    """
    with FlopCounterMode(display=False) as counter, _FusedAttention():
        function()
    return counter.get_total_flops()


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes of tensors that a call has alive at once, beside those that it was given.

    Tensors that were there before, such as weights, do not count; gradients and activations that
    are kept for a backward pass do, if the call makes them.

    Args:
        function: runs the computation.
    """
    with _LiveStorages() as live, _FusedAttention():
        function()
    return live.peak


class _FusedAttention(TorchFunctionMode):
    """Takes attention on the meta device as the fused kernel that CUDA and the CPU have.

    The meta device itself would write out all logits, (queries, keys), which no fused kernel does.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, key, value, *options = args
            if query.is_meta and not options and kwargs.get("attn_mask") is None:
                return _fused_attention(query, key, value, kwargs.get("dropout_p", 0.0))
        return func(*args, **kwargs)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, dropout, False, False)[0]


class _LiveStorages(TorchDispatchMode):
    """Follows the storages that operations make, from their birth to their end.

    Views share a storage, and an operation in place returns its input's, so storages count and not
    tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._follow(tensor, counts=False)  # was there before, if it is not known yet
        # In inference mode composite operations arrive whole; their parts are what allocates.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._follow(tensor, counts=True)
        self.peak = max(self.peak, self.live)
        return result

    def _follow(self, tensor: Tensor, counts: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes() if counts else 0
        self.live += self._sizes[storage._cdata]
        weakref.finalize(storage, self._forget, storage._cdata).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]
