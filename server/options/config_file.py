"""Reads a config file, INI or JSON, into (key, texts, place) triples. `parser` interprets the keys.

In an INI file a comment begins with `#` or `;` at the beginning of a line or behind a blank, but not inside double
quotes. Sections have no meaning, except in a file of presets, which has one for each model (`read_sections`). JSON
values become the texts that the command line would have. An `OptionError` names the file, and where in it the fault is.

Not taken: `configparser`. It doesn't tell a setting's line, treats `%` and `:` as syntax, and converts keys to lower
case (`-C`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from server.options.row import OptionError

Setting = tuple[str, tuple[str, ...], str]
"""A key as written, its value as texts (several for a JSON list, else one), and its place in the file."""
Section = tuple[str, str, list[Setting]]
"""A section's name, the place where it begins, and its settings."""

MAX_BYTES = 1 << 20  # of a config file
CONTENT = re.compile(r'(?:"(?:[^"\\]|\\.)*"|"[^"]*"|(?!(?:^|\s)[#;]).)*')
"""A line without its comment. A text in quotes may contain escaped quotes (JSON) or end with a backslash (a path)."""


def read(path: str, names: Collection[str]) -> list[Setting]:
    """All settings of the file in order.

    `names` are the keys, without leading dashes, whose values may be JSON objects. Other objects are sections.
    """
    text = _read_text(path)
    place = Path(path).name
    if text.lstrip().startswith("{"):
        return list(_parse_json(text, place, names))
    return [setting for _, _, settings in _parse_sections(text, place) for setting in settings]


def read_sections(path: str) -> list[Section]:
    """The sections of an INI file, in order. Settings before the first section are in a section with the name ""."""
    return _parse_sections(_read_text(path), Path(path).name)


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise OptionError(f"the config file {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: this is not UTF-8 text, byte {error.start} is wrong") from None
    if len(data) > MAX_BYTES:
        raise OptionError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so it is no config file")
    return text


def _parse_sections(text: str, place: str) -> list[Section]:
    found: list[Section] = [("", place, [])]
    for number, line in enumerate(text.splitlines(), 1):
        line = next(CONTENT.finditer(line.strip()))[0].rstrip()
        if not line:
            continue
        where = f"{place} line {number}"
        if line[0] == "[":
            if line[-1] != "]":
                raise OptionError(f"{where}: the section {line} has no ] at its end")
            found.append((line[1:-1].strip(), where, []))
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not key:
            raise OptionError(f"{where}: '{line}' has no name before the =")
        if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1]:
            value = value[1:-1]
        found[-1][2].append((key, (value if equals else "on",), where))
    return found


class _Object(list):
    """A JSON object as its pairs: in order, with repeated keys."""


def _parse_json(text: str, place: str, names: Collection[str]) -> Iterator[Setting]:
    try:
        yield from _walk(json.loads(text, object_pairs_hook=_Object), place, "", names)
    except json.JSONDecodeError as error:
        raise OptionError(f"{place} line {error.lineno}: this is not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise OptionError(f"{place}: this is not JSON: {error}") from None


def _walk(content: _Object, place: str, section: str, names: Collection[str]) -> Iterator[Setting]:
    for key, value in content:
        if isinstance(value, _Object) and key.lstrip("-").replace("_", "-") not in names:
            yield from _walk(value, place, f"{section}{key}.", names)
        elif value is not None:
            texts = tuple(map(_format_text, value)) if type(value) is list else (_format_text(value),)
            yield key, texts, f"{place} at {section}{key}"


def _format_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "on" if value else "off"
    return json.dumps(_make_plain(value))


def _make_plain(value: object) -> object:
    if isinstance(value, _Object):
        return {key: _make_plain(item) for key, item in value}
    return [_make_plain(item) for item in value] if isinstance(value, list) else value
