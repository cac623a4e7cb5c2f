"""Commands from functions: flags, log, one-line errors, provenance."""

import contextlib
import inspect
import io
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, cast

import tyro
from pydantic import BaseModel, ValidationError

# Private, but tyro has no other way to one line; its version is pinned.
from tyro._errors import InstantiationFailure, InvalidChoice, ParseErrorEvent, on_parse_error

from mirage_steps import __version__
from mirage_steps.errors import Incomplete, UserError, first_line, printable
from mirage_steps.files.atomic import require_writable
from mirage_steps.files.names import not_a
from mirage_steps.files.process import end_imports
from mirage_steps.files.provenance import changed_since, write_provenance
from mirage_steps.files.terminal import end_bars, start_log
from mirage_steps.files.terminal import log as log
from mirage_steps.settings import explain_flags

# From the words of a command line: defaults of arguments that depend on other arguments.
Defaults = Callable[[Sequence[str]], Mapping[str, Any]]


def run(main: Callable[..., Sequence[str] | None], defaults: Defaults | None = None) -> None:
    """Run ``main`` as a step: a command whose flags are its keyword arguments.

    ``main`` names its output folder ``out``; what was done goes to ``out/STEP.run.json``, or to
    ``out/NAME.run.json`` of every name that ``main`` returns, where several calls share ``out``.
    Errors of the user and of the disk end with one line and exit code 1; anything else is a defect
    and keeps its traceback.

    Args:
        main: its arguments are the flags.
        defaults: of some of them, in place of those that ``main`` has.
    """
    start_log()
    # Exit through the `finally` blocks, so that a scheduler's SIGTERM leaves no temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name = _module_name(main)

    def recorded(**given: Any) -> None:
        _require_folder(Path(given["out"]))
        for key, value in given.items():
            _require_usable(f"--{key.replace('_', '-')}", value)
            # A table may have been edited on purpose; other files have checksums.
            if isinstance(value, Path) and value.suffix == ".csv" and changed_since(value):
                log.warning("%s: was changed since its step wrote it", value)
        started = time.time()
        try:
            records = main(**given) or [name.rpartition(".")[2]]
        except Incomplete as error:
            write_provenance(name, error.done, given, started)
            raise
        write_provenance(name, records, given, started)

    recorded.__signature__ = inspect.signature(main)  # type: ignore[attr-defined]
    recorded.__annotations__ = dict(main.__annotations__)
    recorded.__doc__ = main.__doc__
    try:
        run_tool(recorded, name, defaults)
    finally:
        # Before the exit handlers of the libraries, in which a signal would print a traceback.
        _ignore_signals()


def _ignore_signals() -> None:
    """When all is written or given up, there is nothing left that a signal could end in order."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def run_tool(
    main: Callable[..., None], name: str | None = None, defaults: Defaults | None = None
) -> None:
    """Run ``main`` as a command that writes no record.

    Args:
        main: its arguments are the flags.
        name: full name of its module, by default the one in which it is defined.
        defaults: as in :func:`run`.
    """
    # Names of files that are no UTF-8 must not end a command. What is printed waits for the last
    # flush, whose errors name stdout.
    cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace", write_through=False)
    with one_line_errors(), on_parse_error(_refuse_value):
        end_imports()
        if sys.argv[1:] == ["--version"]:
            print(f"mirage-steps {__version__}")
            return
        _require_values(sys.argv[1:])
        if defaults is not None:
            _set_defaults(main, defaults(sys.argv[1:]))
        prog = f"python -m {name or _module_name(main)}"
        tyro.cli(main, prog=prog, config=(tyro.conf.OmitArgPrefixes,))


def _set_defaults(main: Callable[..., None], values: Mapping[str, Any]) -> None:
    """Give arguments of ``main`` other defaults, and the types of these."""
    signature = inspect.signature(main)
    parameters = [
        one.replace(default=values.get(one.name, one.default))
        for one in signature.parameters.values()
    ]
    main.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    main.__annotations__ |= {key: type(value) for key, value in values.items()}


def _refuse_value(event: ParseErrorEvent) -> None:
    """One line for a wrong value of a flag; other errors of the command line are tyro's."""
    if isinstance(event, InvalidChoice):
        name, choices = event.argument.lowered.name_or_flags[0], ", ".join(event.choices)
        raise UserError(f"{name} {event.value}: give one of {choices}")
    if isinstance(event, InstantiationFailure):
        cause = sys.exception().__context__
        if isinstance(cause, ValidationError):
            raise UserError(explain_flags(cause))
        lowered = event.argument and event.argument.lowered
        name = (*lowered.name_or_flags, lowered.metavar)[0] if lowered else "command line"
        raise UserError(f"{name}: {event.message.splitlines()[0]}")


def _require_values(words: Sequence[str]) -> None:
    """Refuse empty values of flags: an empty path would mean the current folder."""
    for before, word in pairwise(["", *words]):
        if found := re.fullmatch(r"(--[\w-]+)=", word or f"{before}="):
            raise UserError(f"{found[1]}: its value is empty; give one, or leave the flag out")


def _module_name(main: Callable) -> str:
    module = sys.modules[main.__module__]
    return module.__spec__.name if module.__spec__ else Path(module.__file__).stem


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one line and exit code 1 on an error of the user's or the disk's."""
    try:
        try:
            yield
        finally:
            _flush_stdout()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of stdout has gone, such as `head`; the interpreter's last flush must not tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        from mirage_steps.method.device import out_of_memory  # torch takes a second to import

        if not out_of_memory(error):
            raise
        _fail(f"out of memory ({first_line(error)}); use a machine or device with more")
    except KeyboardInterrupt:
        end_bars()
        sys.exit(130)


def _flush_stdout() -> None:
    """Write what was printed; an error, such as of a full disk, names stdout."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def _fail(message: str) -> NoReturn:
    end_bars()
    sys.exit(f"error: {printable(message)}")


def _require_usable(flag: str, value: Any) -> None:
    """Refuse a number that is not finite or huge, and a path at which reading might never end."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag} {value}: must be finite")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{flag} {value}: is too large")
    if isinstance(value, Path) and not_a("file", value) == "is not a regular file":
        raise UserError(f"{flag} {value}: is not a regular file")


def _require_folder(out: Path) -> None:
    """Refuse an output folder that cannot be written, before any work."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if wrong := not_a("folder", there):
        raise UserError(f"--out {out}: {there} {wrong}; give a folder")
    require_writable(there, out)


def flags(settings: BaseModel, exclude: Collection[str] = ()) -> list[str]:
    """The command-line words that give a step these settings, every key spelled out.

    Written out in full so that Snakemake's comparison of parameters sees every change, also one
    of a default.

    Args:
        settings: a section.
        exclude: keys to leave out.
    """
    return [word for key, value in settings if key not in exclude for word in flag(key, value)]


def flag(key: str, value: object) -> list[str]:
    """The words of one argument: a tuple as one flag, a list as the flag again and again."""
    name = f"--{key.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [name if value else f"--no-{name.removeprefix('--')}"]
    if isinstance(value, tuple):
        return [name, *map(str, value)]
    if isinstance(value, list):
        return [word for one in value for word in flag(key, one)]
    # Joined, so that a value that begins with a dash is not read as a flag.
    return [f"{name}={value}"] if str(value).startswith("-") else [name, str(value)]
