"""Device and precision of the networks."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator

import torch

from mirage_steps.errors import UserError, first_line

_CRAWL = 1.5  # times as slow as with fewer threads
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED")


def choose_device(name: str) -> torch.device:
    """The device called ``name``: cpu, cuda, cuda:N, or auto, CUDA where there is one.

    Raises:
        UserError: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = re.fullmatch("cpu|cuda(:([0-9]{1,3}))?", name)
    if found is None:
        raise UserError(f"--device {name}: not supported; use auto, cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no CUDA device here; use auto or cpu")
    if int(found[2] or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"--device {name}: the last CUDA device here is cuda:{count - 1}")
    return torch.device(name)


def choose_threads(
    work: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> int:
    """Let torch use fewer threads of the CPU where all make ``work`` crawl; gives their number.

    The threads wait for each other in every layer, so beside another busy process all of them can
    take ten times as long as one. Results depend on the number by rounding, so a small gain is
    none.

    Args:
        work: runs twice with each number of threads.
        clock: in seconds.
    """
    most, seconds = torch.get_num_threads(), {}
    for count in {1, max(1, most - 1), most} if most > 1 else ():
        torch.set_num_threads(count)
        work()  # chooses kernels and allocates
        start = clock()
        work()
        seconds[count] = clock() - start
    best = min(seconds, key=seconds.__getitem__, default=most)
    chosen = best if best != most and seconds[most] > _CRAWL * seconds[best] else most
    torch.set_num_threads(chosen)
    return chosen


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one CPU thread in the block: for small tensors several spend more time waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory does not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


@contextlib.contextmanager
def memory_advice(key: str, value: object, remedy: str | None = None) -> Iterator[None]:
    """Name the setting that helps where the block runs out of memory.

    Args:
        key: of the configuration, such as ``views.batch_size``.
        value: of the setting.
        remedy: what to do; by default as for a batch size.

    Raises:
        UserError: the memory of the device or of the machine does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        smaller = "use a device with more memory" if value == 1 else "lower it"
        problem = f"{key} {value}: out of memory ({first_line(error, 100)})"
        raise UserError(f"{problem}; {remedy or smaller}") from None


@contextlib.contextmanager
def compile_advice(key: str) -> Iterator[None]:
    """Name the setting where torch cannot compile the network in the block.

    Args:
        key: of the configuration.

    Raises:
        UserError: torch.compile failed.
    """
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        cause = error.inner_exception
        cause = getattr(cause, "inner_exception", cause)
        if out_of_memory(cause) or isinstance(cause, OSError):
            raise cause from None
        lines = str(getattr(cause, "output", cause)).splitlines()  # of the C++ compiler, if it ran
        told = next((line for line in lines if "error:" in line), first_line(cause, 200))
        raise UserError(
            f"{key} true: torch.compile failed ({told}); set it to false, or install a C++ "
            "compiler and Python's headers"
        ) from None


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Arithmetic for a network: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 if native)."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; where it does not, that is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
