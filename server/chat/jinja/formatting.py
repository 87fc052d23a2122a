"""Format strings: `"..." % values`, the `format` filter, and `"...".format(...)`.

Runs on the thread that renders the template. Python's own `%` and `format` make the text. This module looks up the
fields in the tables of `attributes`, so `"{0.__class__}"` is undefined, and checks widths before memory is used. Not
taken: calling `str.format` with filtered fields, a known leak of sandboxes.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import TemplateLimitError
from .limits import Run
from .marked import Marked, build, concat, cut_part, escape, is_safe, spans_of
from .text import CONTAINERS, format_notation, to_text, weigh

PERCENT = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?[#0\- +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+)?)?"
    r"[hlL]?(?P<kind>.)",
    re.S,
)
MAX_WIDTH = 100_000  # characters; the largest width and precision of a field
NUMBERS = re.compile(r"\d+")
Access = tuple[Callable[[Run, Any, str], Any], Callable[[Run, Any, Any], Any]]

FIELD = re.compile(r"(?:\.(?P<attribute>[^.\[]+)|\[(?P<item>[^\]]+)\])")


def format_percent(run: Run, template: str, values: Any) -> str:
    """`template % values`."""
    if isinstance(values, Mapping):
        given: Sequence[Any] = list(values.values())
    else:
        given = values if isinstance(values, tuple) else (values,)
    marked = isinstance(template, Marked) and bool(template.spans)
    for value in given:
        if type(value) in CONTAINERS:
            marked = weigh(run, value).marked or marked
        else:
            marked = marked or bool(spans_of(value) if isinstance(value, str) else ())
    _bound_percent(template, given)
    if is_safe(template):
        values = _escape(run, values)
    text = str.__mod__(template, values)
    run.count_text(len(text))
    if not marked:
        return build(text, (), is_safe(template))
    pieces = concat(_format_percent_pieces(template, values))
    return build(text, spans_of(pieces) if pieces == text else ((0, len(text)),), is_safe(template))


def _bound_percent(template: str, values: Sequence[Any]) -> None:
    """Refuse too large widths and precisions, written as a number or as `*`."""
    for match in PERCENT.finditer(template):
        if match["kind"] == "(":
            raise ValueError("the name of a format field has parentheses in it")
        for number in (match["width"], match["precision"]):
            if number == "*":
                _bound(max((abs(value) for value in values if isinstance(value, int)), default=0))
            elif number:
                _bound(_number(number))


def _number(digits: str) -> int:
    return int(digits[:12])


def _bound(width: int) -> None:
    if width > MAX_WIDTH:
        raise TemplateLimitError(f"a format field is wider than {MAX_WIDTH} characters")


def _escape(run: Run, values: Any) -> Any:
    """The values with HTML's special characters escaped, for a template string that is `safe`."""
    if isinstance(values, dict):
        return {key: _escape(run, value) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_escape(run, value) for value in values)
    return values if isinstance(values, (int, float)) else escape(to_text(run, values))


def _format_percent_pieces(template: str, values: Any) -> list[str]:
    """The result in parts, with their marks. If a `%` takes more or less than one value, the parts differ from the
    result; the caller then marks the whole result."""
    pieces, start = [], 0
    left = list(values) if isinstance(values, tuple) else [values]
    for match in PERCENT.finditer(template):
        pieces.append(cut_part(template, start, match.start()))
        start = match.end()
        if match["kind"] == "%":
            pieces.append("%")
            continue
        value = values[match["key"]] if match["key"] is not None else left.pop(0) if left else ""
        if match.group() == "%s" and isinstance(value, Marked):
            pieces.append(value)
        else:
            spec = match.group().replace(f"({match['key']})", "", 1)
            piece = str.__mod__(spec, (value,)) if "*" not in spec else ""
            pieces.append(piece if isinstance(value, (int, float)) else Marked(piece))
    return [*pieces, cut_part(template, start, len(template))]


def format_text(run: Run, template: str, args: Sequence[Any], kwargs: Mapping[str, Any], access: Access) -> str:
    """`template.format(*args, **kwargs)`. `access` has the functions that look up attributes and items."""
    formatted = _Formatter(run, args, kwargs, access, is_safe(template)).format(template, 2)
    run.count_text(len(formatted))
    user = spans_of(template) and formatted
    return build(formatted, ((0, len(formatted)),) if user else spans_of(formatted), is_safe(template))


class _Formatter:
    """The state of one call of `format`: the arguments, and the automatic numbering of fields."""

    def __init__(self, run: Run, args: Sequence[Any], kwargs: Mapping[str, Any], access: Access, safe: bool) -> None:
        self.run = run
        self.args = args
        self.kwargs = kwargs
        self.get_attribute, self.get_item = access
        self.safe = safe
        self.auto: int | None = None  # next automatic number; None before any number, -1 after an explicit one

    def format(self, template: str, depth: int) -> str:
        """Fill in the fields. Format specifications may have fields of their own, `depth` levels deep."""
        if depth < 0:
            raise ValueError("Max string recursion exceeded")
        pieces: list[str] = []
        for literal, name, spec, conversion in string.Formatter().parse(str.__str__(template)):
            pieces.append(literal)
            if name is not None:
                value = self._convert(self._get_field(name), conversion)
                pieces.append(self._format(value, self.format(spec or "", depth - 1)))
        return concat(pieces)

    def _get_field(self, name: str) -> Any:
        first = re.match(r"[^.\[]*", name).group()
        value = self._get_argument(first)
        position = len(first)
        while position < len(name):
            match = FIELD.match(name, position)
            if not match:
                raise ValueError("Empty attribute in format string")
            attribute, item = match["attribute"], match["item"]
            if attribute is not None:
                value = self.get_attribute(self.run, value, attribute)
            else:
                value = self.get_item(self.run, value, _number(item) if item.isdecimal() else item)
            position = match.end()
        return value

    def _get_argument(self, name: str) -> Any:
        if name and not name.isdecimal():
            return self.kwargs[name]
        if (self.auto == -1 and not name) or (name and self.auto is not None and self.auto >= 0):
            raise ValueError("cannot switch between manual field specification and automatic field numbering")
        if name:
            self.auto = -1
            return self.args[_number(name)]
        self.auto = (self.auto or 0) + 1
        return self.args[self.auto - 1]

    def _convert(self, value: Any, conversion: str | None) -> Any:
        if conversion in (None, "s"):
            return value if conversion is None else to_text(self.run, value)
        if conversion in ("r", "a"):
            text = format_notation(self.run, value)
            return text if conversion == "r" else _mark_as(escape_to_ascii(text), text)
        raise ValueError(f"Unknown conversion specifier {conversion}")

    def _format(self, value: Any, spec: str) -> str:
        for number in NUMBERS.findall(spec):
            _bound(_number(number))
        if isinstance(value, (str, int, float)):
            text = format(str.__str__(value) if isinstance(value, str) else value, str.__str__(spec))
            if isinstance(value, str) and not spec:
                text = value
            elif isinstance(value, str):
                text = _mark_as(text, value)
            text = _mark_as(text, spec) if spans_of(spec) else text
        elif spec:
            raise TypeError(f"unsupported format string passed to {type(value).__name__}")
        else:
            text = to_text(self.run, value)
        return escape(text) if self.safe else text


def escape_to_ascii(text: str) -> str:
    """Text in Python's notation with all non-ASCII characters escaped, as `ascii` does."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _mark_as(text: str, source: str) -> str:
    return Marked(text) if spans_of(source) else text
