"""The keys of the configuration, from mirage_steps/settings.py: as a JSON schema and as a page."""

import json
from collections.abc import Iterator
from pathlib import Path

from mirage_steps.settings import Configuration, in_yaml

ROOT = Path(__file__).parents[1]
SCHEMA, PAGE = ROOT / "config/schema.json", ROOT / "docs/configuration.md"

_HEAD = """# Configuration

All keys with defaults, allowed values and descriptions; *paper* marks values stated by the paper or
by DDIM's configuration. Generated from [`mirage_steps/settings.py`](../mirage_steps/settings.py) by
`python docs/graphs.py`. [config/README.md](../config/README.md) explains where configurations are
searched and how they are merged.

A configuration is `datasets: {NAME: {SECTION: {KEY: VALUE}}}`; a data set needs `source` or
`use`. Unknown keys are errors. Editors complete and explain the keys if the first line of the
file is

```
# yaml-language-server: $schema=PATH/config/schema.json
```
"""


def schema() -> dict:
    """The JSON schema (draft 7) of a file of the configuration, which may be merged over others."""
    found = _plain(Configuration.model_json_schema())
    # A file of one's own has what differs from the project's.
    found.pop("required")
    return {"$schema": "http://json-schema.org/draft-07/schema#", **found}


def _plain(value: object) -> object:
    """A part of pydantic's schema without titles, defaults of whole sections, and its own words."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    dropped = {"discriminator", *(["default"] if "$ref" in value else [])}
    # A dictionary of these names is a key of the configuration.
    dropped |= {key for key in ("title", "paper") if not isinstance(value.get(key), dict)}
    return {key: _plain(one) for key, one in value.items() if key not in dropped}


def page() -> str:
    """The page of all keys: of the file, of a data set, of its sections and kinds of sources."""
    definitions = Configuration.model_json_schema()["$defs"]
    whole = Configuration.model_json_schema() | {"description": "Keys at the top level."}
    parts = [_HEAD, _section("Top level", whole), _section("A data set", definitions["Dataset"])]
    for key, one in definitions["Dataset"]["properties"].items():
        for name in _references(one):
            about = definitions[name]
            kind = about["properties"].get("kind", {}).get("default")
            title = f"`{key}`" if kind is None else f"`{key}`, kind `{kind}`"
            parts.append(_section(title, about))
    return "\n".join(parts)


def _references(value: object) -> Iterator[str]:
    """Names of the sections that a key's schema refers to, each once."""
    found = [one.split('"')[0] for one in json.dumps(value).split("#/$defs/")[1:]]
    yield from dict.fromkeys(found)


def _section(title: str, about: dict) -> str:
    """A heading, what the section is, and a table of its keys."""
    rows = ["| key | default | values | description |", "|---|---|---|---|"]
    for key, one in about["properties"].items():
        if "$ref" in one or key == "kind" and "const" in one:
            continue
        needed = key in about.get("required", ())
        default = "required" if needed else _default(one.get("default"))
        meaning = one.get("description", "See below.").replace("(paper: ", "(*paper:* ")
        rows.append(f"| `{key}` | {default} | {_values(one)} | {meaning} |".replace("  ", " "))
    text = " ".join(about["description"].split())
    return "\n".join([f"## {title}\n", f"{text}\n", *(rows if rows[2:] else []), ""])


def _default(value: object) -> str:
    if value in (None, [], {}):
        return ""
    if isinstance(value, list):
        return f"`[{', '.join(map(in_yaml, value))}]`"
    return f"`{in_yaml(value)}`"


def _values(one: dict) -> str:
    """Values that a key takes, in words."""
    if choices := one.get("anyOf"):
        words = [_values(choice) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(filter(None, words)))
    if "oneOf" in one or "$ref" in one:
        return "a section"
    if "enum" in one or "const" in one:
        return ", ".join(f"`{in_yaml(value)}`" for value in one.get("enum", [one.get("const")]))
    if one["type"] == "array":
        return f"list of ({_values(one['items'])})"
    if one["type"] == "object":
        return "sections by name" if "patternProperties" in one else "numbers by name"
    bounds = {
        "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}",
        "exclusiveMaximum": "< {}", "multipleOf": "multiple of {}",
    }  # fmt: skip
    words = {"string": "path" if one.get("format") == "path" else "text", "boolean": "true, false"}
    word = words.get(one["type"], one["type"])
    limits = ", ".join(text.format(one[key]) for key, text in bounds.items() if key in one)
    return f"{word} {limits}".rstrip()


def contents() -> dict[Path, str]:
    """Text of both files."""
    return {SCHEMA: json.dumps(schema(), indent=1) + "\n", PAGE: page()}
