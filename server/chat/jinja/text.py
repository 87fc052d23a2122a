"""Converts values to text: as printed, in Python's notation, and as JSON.

Runs on the thread that renders the template. Python's own `str`, `repr` and `json` make the text. If the value has
marked strings, the same text is composed again from its parts, to find the spans of user input. A container can have
the same list as an item many times, so a few steps of a template can describe more text than fits into memory; `weigh`
counts first. Not taken: marking all of a container's text, which would mark the template's own strings in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from server.records import record

from .errors import TemplateLimitError
from .limits import Run
from .marked import Marked, build, concat, make_segments, make_unsafe, make_whole_spans, mark_if
from .values import Group, Loop, Namespace, Undefined

_NOTHING: dict[Any, Any] = {}
KEYS, VALUES, ITEMS = type(_NOTHING.keys()), type(_NOTHING.values()), type(_NOTHING.items())
VIEWS = {KEYS: "dict_keys", VALUES: "dict_values", ITEMS: "dict_items"}
SEQUENCES = frozenset((list, tuple, Group, KEYS, VALUES, ITEMS))
CONTAINERS = SEQUENCES | {dict, Namespace}
SCALARS = frozenset((int, float, bool, type(None), Undefined))

JSON_WORDS = {None: "null", True: "true", False: "false"}


@record
class Weight:
    """The size of a value: `nodes` values in `depth` levels, `length` characters; `marked` if a string is."""

    nodes: int = 0
    depth: int = 0
    length: int = 0
    marked: bool = False


def weigh(run: Run, value: Any) -> Weight:
    """Measure a value level by level. Raises `TemplateLimitError` as soon as it exceeds a limit."""
    weight = Weight()
    level = [value]
    while level:
        weight.depth += 1
        weight.nodes += len(level)
        run.count_items(len(level))
        if weight.depth > run.limits.depth:
            raise TemplateLimitError(f"a value is nested more than {run.limits.depth} deep")
        below: list[Any] = []
        for item in level:
            if weight.nodes + len(below) > run.limits.items:
                raise TemplateLimitError(f"a value has more than {run.limits.items} values in it")
            kind = type(item)
            if kind is str:
                weight.length += len(item)
            elif kind is Marked:
                weight.length += len(item)
                weight.marked = weight.marked or bool(item.spans)
            elif kind is dict:
                below += item.keys()
                below += item.values()
            elif kind in SEQUENCES:
                below += item
            elif kind is Namespace:
                below.append(item.values)
        level = below
    run.count_text(weight.length)
    return weight


def guard(run: Run, *values: Any) -> None:
    """Check the size of containers before Python compares, sorts or hashes them."""
    for value in values:
        if type(value) in CONTAINERS:
            weigh(run, value)


def to_text(run: Run, value: Any) -> str:
    """The text of a value as it is printed, concatenated or joined."""
    kind = type(value)
    if kind is str:
        return value
    if kind is Marked:
        return make_unsafe(value)
    if kind in SCALARS:
        return str(value)
    if kind in CONTAINERS:
        return format_notation(run, value)
    if isinstance(value, Iterator) and kind is not Loop:
        return f"<{kind.__name__} object>"
    return str(value)


def to_soft_text(run: Run, value: Any) -> str:
    """Like `to_text`, but strings aren't changed and keep their `safe` flag."""
    return value if isinstance(value, str) else to_text(run, value)


def format_notation(run: Run, value: Any) -> str:
    """`repr(value)`. Marked strings in it keep their marks."""
    weight = weigh(run, value)
    text = repr(value)
    if not weight.marked:
        return text
    spelled = concat(_spell(value))
    return spelled if spelled == text else Marked(text)


def _spell(value: Any) -> Iterator[str]:
    """The parts of `repr(value)`."""
    kind = type(value)
    if kind is Marked:
        yield Marked(repr(value)) if value.spans else repr(value)
    elif kind is dict:
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _spell(key)
            yield ": "
            yield from _spell(item)
        yield "}"
    elif kind is Namespace:
        yield "<Namespace "
        yield from _spell(value.values)
        yield ">"
    elif kind in VIEWS:
        yield f"{VIEWS[kind]}("
        yield from _spell(list(value))
        yield ")"
    elif kind in (list, tuple, Group):
        yield "[" if kind is list else "("
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _spell(item)
        yield "]" if kind is list else ",)" if len(value) == 1 else ")"
    else:
        yield repr(value)


@record(frozen=True)
class JsonStyle:
    """The options of `tojson`, as in `json.dumps`."""

    ensure_ascii: bool = False
    indent: int | str | None = None
    separators: tuple[str, str] | None = None
    sort_keys: bool = False


def to_json(run: Run, value: Any, style: JsonStyle) -> str:
    """`json.dumps(value, ...)`. Text from marked strings is marked."""
    weight = weigh(run, value)
    width = style.indent if isinstance(style.indent, int) else len(style.indent or "")
    run.count_text(weight.length + weight.nodes * weight.depth * max(width, 0))
    text = json.dumps(
        value,
        ensure_ascii=style.ensure_ascii,
        indent=style.indent,
        sort_keys=style.sort_keys,
        separators=style.separators,
        default=_refuse,
    )
    text = mark_if(text, style.indent, *(style.separators or ()))
    if not weight.marked or type(text) is Marked:
        return text
    spelled = concat(_JsonSpeller(style).spell_pieces(value, "\n"))
    return spelled if spelled == text else Marked(text)


def _refuse(value: Any) -> Any:
    raise TypeError(f"a value of type {type(value).__name__} can't be written as JSON")


class _JsonSpeller:
    """Writes the same JSON as `json.dumps`, in parts."""

    def __init__(self, style: JsonStyle) -> None:
        self.style = style
        default = (", ", ": ") if style.indent is None else (",", ": ")
        self.item_separator, self.key_separator = style.separators or default
        indent = style.indent
        self.indent = None if indent is None else " " * indent if isinstance(indent, int) else indent

    def spell_pieces(self, value: Any, newline: str) -> Iterator[str]:
        """The parts of one value. `newline` is a line end with the indentation of this value."""
        if isinstance(value, dict):
            pairs = sorted(value.items()) if self.style.sort_keys else value.items()
            yield from self._spell_block("{", "}", [(self._spell_key(key), item) for key, item in pairs], newline)
        elif isinstance(value, (list, tuple)):
            yield from self._spell_block("[", "]", [("", item) for item in value], newline)
        elif isinstance(value, str):
            yield self._spell_string(value)
        else:
            yield json.dumps(value)

    def _spell_block(self, left: str, right: str, members: list[tuple[str, Any]], newline: str) -> Iterator[str]:
        if not members:
            yield left + right
            return
        inner = newline + (self.indent or "")
        yield left
        for number, (key, item) in enumerate(members):
            if number:
                yield self.item_separator
            if self.indent is not None:
                yield inner
            yield key
            yield from self.spell_pieces(item, inner)
        if self.indent is not None:
            yield newline
        yield right

    def _spell_key(self, key: Any) -> str:
        if isinstance(key, str):
            spelled = self._spell_string(key)
        else:
            spelled = f'"{JSON_WORDS[key] if key is None or isinstance(key, bool) else json.dumps(key)}"'
        return concat([spelled, self.key_separator])

    def _spell_string(self, text: str) -> str:
        parts = [
            (json.dumps(piece, ensure_ascii=self.style.ensure_ascii)[1:-1], user)
            for piece, user in make_segments([text])
        ]
        return concat(['"', *(build(piece, make_whole_spans(piece)) if user else piece for piece, user in parts), '"'])
