"""Processes of a distributed training, started by torchrun: one per GPU."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mirage_steps.errors import UserError, first_line
from mirage_steps.method.device import choose_device


def launched() -> bool:
    """Whether this process is one of those that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(count: int, device: str) -> int:
    """Run this process's command in several processes; gives the exit code, but exits on a signal.

    Args:
        count: of processes.
        device: as in :meth:`Processes.joined`.

    Raises:
        UserError: there are more processes than cards, or one was killed.
    """
    # Slow imports that a single process does without.
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    cards = torch.cuda.device_count()
    if choose_device(device).type == "cuda" and count > cards:
        raise UserError(
            f"training.processes {count}: each needs a CUDA device of its own, this machine has "
            f"{cards}; set it to {cards}"
        )
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # the processes tell their errors
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name] if spec else sys.argv[:1]
    words = ["--standalone", f"--nproc-per-node={count}", *program, *sys.argv[1:]]
    try:
        run(parse_args(words))
    except SignalException as error:
        # After a signal torchrun leaves the thread of its rendezvous running. If the interpreter
        # ends while that thread is inside the store, C++ aborts the process (exit code -6).
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # its reader may be gone
                stream.flush()
        os._exit(128 + error.sigval)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, code in codes.items():
            if code < 0:
                name = signal.Signals(-code).name
                raise UserError(f"process {rank} of the training: killed by {name}") from None
        # Those that torchrun ends, or a signal, have codes above 128: the others tell more.
        return min(codes.values())
    return 0


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
            UserError: the processes lost each other.
        """
        where = choose_device(device)
        if not launched():
            yield cls(where)
            return
        if where.type == "cuda":
            where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(where)
        # Sums of tensors on the CPU must not wait for the card.
        dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo")
        rank = dist.get_rank()
        try:
            yield cls(where, rank, dist.get_world_size())
        except RuntimeError as error:
            if "gloo" not in str(error) and "NCCL" not in str(error):
                raise
            if "closed by peer" in str(error):
                raise SystemExit(1) from None  # it says why, or `launch` does if it was killed
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
