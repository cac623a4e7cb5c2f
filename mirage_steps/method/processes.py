"""Processes of a distributed training, started by torchrun: one per GPU."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mirage_steps.errors import UserError, first_line
from mirage_steps.method.device import choose_device


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0  # from 0
    count: int = 1  # of all processes

    @classmethod
    @contextlib.contextmanager
    def joined(cls, device: str) -> Iterator["Processes"]:
        """Join the others that torchrun started; alone without it.

        Args:
            device: auto, cpu or cuda; with CUDA each process of a machine takes a card of its own.

        Raises:
            UserError: there are more processes than cards, or another process has ended.
        """
        where = choose_device(device)
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            yield cls(where)
            return
        if where.type == "cuda":
            local, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if (count := int(os.environ["LOCAL_WORLD_SIZE"])) > cards:
                if local:
                    raise SystemExit(1)  # the first process says it for all
                raise UserError(
                    f"training.processes {count}: each needs a CUDA device of its own, this "
                    f"machine has {cards}; set it to {cards}"
                )
            where = torch.device("cuda", local)
            torch.cuda.set_device(where)
        # Sums of tensors on the CPU must not wait for the card.
        dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo")
        rank = dist.get_rank()
        try:
            yield cls(where, rank, dist.get_world_size())
        except RuntimeError as error:
            if "gloo" not in str(error) and "NCCL" not in str(error):
                raise
            raise UserError(f"process {rank}: another has ended ({first_line(error)})") from None
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        found = torch.tensor(value)
        if self.count > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def total(self, values: Tensor) -> Tensor:
        """Sum over all processes, of tensors on the CPU."""
        if self.count > 1:
            dist.all_reduce(values)
        return values
