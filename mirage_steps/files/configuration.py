"""Reads and checks the files of the configuration, for the Snakefile, profiles and tools."""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from mirage_steps import settings
from mirage_steps.errors import UserError, first_line, printable
from mirage_steps.files.names import not_a
from mirage_steps.files.project import project_path
from mirage_steps.settings import Configuration, Dataset

# Of the project, in the order in which they are merged.
CONFIGFILES = ("config/config.yaml", "config/paper.yaml")

_MOST_BYTES = 2**18  # what PyYAML reads in seconds
_MOST_VALUES = 50_000  # with all aliases written out
# Numbers to the base 60, 8 and 2 in YAML 1.1, which mean others or are text in YAML 1.2.
_ODD_NUMBER = re.compile(r"[-+]?(.*:.*|0[0-9b_]+)")
_TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def read_configuration(files: Sequence[Path]) -> Configuration:
    """The checked configuration, ``files`` merged over the project's own.

    Raises:
        UserError: a file is no configuration.
        OSError: a file cannot be read.
    """
    from snakemake.utils import update_config

    merged: dict = {}
    for file in configfiles(files):
        update_config(merged, read_configfile(file))
    return settings.load(merged)


def configfiles(given: Sequence[Path]) -> list[Path]:
    """The files to merge in order: the current folder's or the project's own, then those given."""
    return [*map(project_path, CONFIGFILES), *given]


def check_command_line() -> None:
    """End with one line if a file that Snakemake's ``--configfile`` names is no configuration.

    Snakemake reads these before the Snakefile, and answers many errors with a traceback.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", default=[], type=Path)
    check_configfiles(parser.parse_known_args()[0].configfile)


def check_configfiles(files: Sequence[Path]) -> None:
    """End with one line if a file is no configuration."""
    try:
        for file in files:
            read_configfile(file)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(printable(f"error: {error.filename}: {error.strerror}"))


def read_configfile(path: Path) -> dict:
    """The mapping in a YAML or JSON file, without duplicate keys.

    Raises:
        UserError: the file is missing, no regular file or no configuration.
        OSError: it cannot be read.
    """
    if wrong := not_a("file", path):
        hint = "--configfile takes every word up to the next flag, so put -- before targets"
        raise UserError(f"{path}: {wrong}; {hint}")
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"has more than {_MOST_BYTES // 1024} kB, too many to be settings")
        found = _parsed(content.decode())
        if not isinstance(found, dict):
            raise ValueError("has no keys at its top level; config/photos.yaml is a template")
        if "__use_yte__" in found:
            raise ValueError("__use_yte__: templates, which run code, are not supported; remove it")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        reason = f"line {line}: byte {content[error.start]:#x} is not UTF-8; save it as UTF-8"
        raise UserError(f"{path}: {reason}") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = line + " ".join(filter(None, (error.context, error.problem)))
        hint = "; indent with spaces, not tabs" if "'\\t'" in reason else ""
        raise UserError(f"{path}: {reason}{hint}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {first_line(error)}") from None
    return found


def _parsed(text: str) -> object:
    """The content of a text that is JSON or YAML."""
    try:
        # As Snakemake: first as JSON, which YAML does not contain whole.
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError:
        pass  # YAML's error tells the line
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(loader, node, "", {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object whose keys are unique."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice; the first would be lost")
    return dict(pairs)


def _count(
    loader: yaml.SafeLoader, node: yaml.Node, path: str, counts: dict[int, int | None]
) -> int:
    """Number of values in a node with aliases written out, each of which takes time to check.

    Args:
        loader: of the document.
        node: of the document.
        path: its keys, joined by dots.
        counts: of nodes that were counted, by identity; None while one is counted.

    Raises:
        ValueError: a key is no text or given twice, a value is none, or there is no end of them.
    """
    where = f"line {node.start_mark.line + 1}" + (f": {path}" if path else "")
    if id(node) in counts:
        if counts[id(node)] is None:
            raise ValueError(f"{where}: contains itself")
        return counts[id(node)]
    counts[id(node)], children = None, []
    if isinstance(node, yaml.SequenceNode):
        children = [(path, part) for part in node.value]
    elif isinstance(node, yaml.MappingNode):
        children = list(_keys(node, path))
    else:
        try:
            value = loader.construct_object(node)
        except Exception:  # PyYAML raises many types, such as for the date 2024-99-99
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise ValueError(f"{where}: {node.value[:80]!r} is no {kind}") from None
        if isinstance(value, int | float) and _ODD_NUMBER.fullmatch(node.value):
            hint = f"write {value} if that is meant, or put text in quotes"
            raise ValueError(f"{where}: {node.value[:80]} is {value} to YAML; {hint}")
    total = 1 + sum(_count(loader, child, below, counts) for below, child in children)
    if total > _MOST_VALUES:
        raise ValueError(f"{where}: more than {_MOST_VALUES} values, with aliases written out")
    counts[id(node)] = total
    return total


def _keys(node: yaml.MappingNode, path: str) -> Iterator[tuple[str, yaml.Node]]:
    """Paths and nodes of the values of a mapping whose keys are unique texts."""
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {line}: a key of {path or 'it'} is no text; give a text")
        below = f"{path}.{key.value}".removeprefix(".")
        if key.tag not in _TEXT_TAGS:
            raise ValueError(f'line {line}: {below}: is no text; put it in quotes: "{key.value}"')
        if key.value in lines:
            raise ValueError(
                f"line {line}: {below} was given in line {lines[key.value]} already, which would "
                "be lost; join them"
            )
        lines[key.value] = line
        yield below, value


def read_dataset(configuration: Configuration, name: str) -> Dataset:
    """Settings of a data set, those of the data set that it uses filled in.

    Raises:
        UserError: there is no such data set.
    """
    if name not in configuration.datasets:
        meant = difflib.get_close_matches(name, configuration.datasets, n=1)
        known = ", ".join(configuration.datasets)
        hint = f"did you mean {meant[0]!r}" if meant else f"known are {known}"
        raise UserError(
            f"NAME {name}: no such data set; {hint}; one of your own needs --configfile"
        )
    return configuration.dataset(name)
