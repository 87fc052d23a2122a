"""Strings that record which of their characters come from a user.

Pure values, any thread. A template's own text may have special tokens such as `<|im_end|>`; the same characters from a
user must stay plain text. So users' text enters the template as `Marked` strings, operations keep the marks, and the
tokenizer learns which segments of the prompt are user input.

An operation that copies characters copies their marks. One that makes new characters from marked ones, or replaces
marked ones, marks the new ones. If following each character isn't worth the code, the whole result is marked: a mark
too many may cost a special token, a mark too few would let a user forge one.

`Marked` also has `safe`, the flag of the `safe` and `escape` filters. A safe string escapes text that is added to it,
as jinja2's `Markup` does. Not taken: a class not derived from `str`, which would need a conversion for each comparison,
dictionary lookup and test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, SupportsIndex, TypeGuard

Spans = tuple[tuple[int, int], ...]

ESCAPES = {ord("&"): "&amp;", ord(">"): "&gt;", ord("<"): "&lt;", ord("'"): "&#39;", ord('"'): "&#34;"}


def _make_same_places_method(name: str) -> Callable[..., str]:
    """A method that keeps the marks if the length stays the same, and otherwise marks its whole result."""
    plain = getattr(str, name)

    def call_method(self: Marked) -> str:
        text = plain(self)
        spans = self.spans if len(text) == len(self) else make_whole_spans(text)
        return build(text, spans if self.spans else (), self.safe)

    return call_method


def _make_all_marked_method(name: str) -> Callable[..., str]:
    """A method that marks its whole result if any of its strings has a mark."""
    plain = getattr(str, name)

    def call_method(self: Marked, *args: Any, **options: Any) -> str:
        text = plain(self, *args, **options)
        user = self.spans or any(spans_of(argument) for argument in args if isinstance(argument, str))
        return build(text, make_whole_spans(text) if user else (), self.safe)

    return call_method


class Marked(str):
    """Text that is user input in its `spans`: sorted, disjoint pairs (start, end); by default all of it."""

    __slots__ = ("spans", "safe")

    spans: Spans
    safe: bool

    def __new__(cls, text: str = "", spans: Spans | None = None, safe: bool = False) -> Marked:
        self = str.__new__(cls, text)
        if spans is None:
            spans = ((0, len(self)),) if self else ()
        self.spans = spans
        self.safe = safe
        return self

    def __str__(self) -> str:
        return build(str.__str__(self), self.spans) if self.safe else self

    def __repr__(self) -> str:
        return f"Markup({str.__repr__(self)})" if self.safe else str.__repr__(self)

    def __iter__(self) -> Iterator[str]:
        return (cut_part(self, index, index + 1) for index in range(len(self)))

    def __getitem__(self, key: Any) -> str:
        text = str.__getitem__(self, key)
        positions = range(len(self))[key]
        if isinstance(positions, int):
            spans = cut(self.spans, positions, positions + 1)
        elif positions.step == 1:
            spans = cut(self.spans, positions.start, positions.stop)
        else:
            spans = _pick(self.spans, positions)
        return build(text, spans, self.safe)

    def __add__(self, other: Any) -> str:
        if not isinstance(other, str):
            return NotImplemented
        if is_safe(other) and not self.safe:
            return other.__radd__(self)
        return self._concat_like([self, escape(other) if self.safe else other])

    def __radd__(self, other: Any) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return self._concat_like([escape(other) if self.safe else other, self])

    def __mul__(self, count: SupportsIndex) -> str:
        if not isinstance(count, int):
            return NotImplemented
        text = str.__mul__(self, count)
        if text and self.spans == ((0, len(self)),):
            return build(text, ((0, len(text)),), self.safe)
        return self._concat_like([self] * count) if self.spans else build(text, (), self.safe)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return Marked(str.__mod__(self, values), None, self.safe)

    def __rmod__(self, template: str) -> str:
        return Marked(str.__mod__(template, str.__str__(self)))

    def _concat_like(self, parts: list[str]) -> str:
        joined = concat(parts)
        return build(joined, spans_of(joined), self.safe)

    upper = _make_same_places_method("upper")
    lower = _make_same_places_method("lower")
    title = _make_same_places_method("title")
    capitalize = _make_same_places_method("capitalize")
    swapcase = _make_same_places_method("swapcase")
    casefold = _make_same_places_method("casefold")
    center = _make_all_marked_method("center")
    ljust = _make_all_marked_method("ljust")
    rjust = _make_all_marked_method("rjust")
    zfill = _make_all_marked_method("zfill")
    expandtabs = _make_all_marked_method("expandtabs")
    translate = _make_all_marked_method("translate")

    # strip and similar methods keep one part

    def strip(self, chars: str | None = None) -> str:
        kept = str.strip(self, chars)
        start = len(self) - len(str.lstrip(self, chars)) if kept else 0
        return cut_part(self, start, start + len(kept), self.safe)

    def lstrip(self, chars: str | None = None) -> str:
        return cut_part(self, len(self) - len(str.lstrip(self, chars)), len(self), self.safe)

    def rstrip(self, chars: str | None = None) -> str:
        return cut_part(self, 0, len(str.rstrip(self, chars)), self.safe)

    def removeprefix(self, prefix: str, /) -> str:
        return cut_part(self, len(self) - len(str.removeprefix(self, prefix)), len(self), self.safe)

    def removesuffix(self, suffix: str, /) -> str:
        return cut_part(self, 0, len(str.removesuffix(self, suffix)), self.safe)

    # split and similar methods return parts in order

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._find_all(str.split(self, sep, maxsplit), len(sep) if sep else None)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._find_all(str.rsplit(self, sep, maxsplit), len(sep) if sep else None)

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines, start = [], 0
        for line, whole_line in zip(str.splitlines(self, keepends), str.splitlines(self, True)):
            lines.append(cut_part(self, start, start + len(line), self.safe))
            start += len(whole_line)
        return lines

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._find_all(list(str.partition(self, sep)), 0)
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._find_all(list(str.rpartition(self, sep)), 0)
        return before, found, after

    def _find_all(self, texts: list[str], gap: int | None) -> list[str]:
        found, start = [], 0
        for text in texts:
            if gap is None:  # split at white space: each text starts at its next occurrence
                start = str.find(self, text, start)
            found.append(cut_part(self, start, start + len(text), self.safe))
            start += len(text) + (gap or 0)
        return found

    # methods that insert text

    def join(self, items: Iterable[str], /) -> str:
        items = list(items)
        str.join(self, items)  # raises on anything but strings
        parts: list[str] = []
        for item in items:
            parts += [self, escape(item) if self.safe else item]
        return self._concat_like(parts[1:])

    def replace(self, old: str, new: str, count: Any = -1, /) -> str:
        if self.safe:
            new = escape(new)
        parts, start = [], 0
        for place in _find_places(self, old, count):
            hit = cut(self.spans, place, place + len(old)) or (not old and _is_inside(self.spans, place))
            parts += [cut_part(self, start, place), Marked(new) if hit else new]
            start = place + len(old)
        return self._concat_like([*parts, cut_part(self, start, len(self))])


def build(text: str, spans: Spans, safe: bool = False) -> str:
    """`text` with these marks; a plain `str` if there are no marks and it isn't safe."""
    return Marked(text, spans, safe) if spans or safe else str.__str__(text)


def make_whole_spans(text: str) -> Spans:
    return ((0, len(text)),) if text else ()


def spans_of(text: str) -> Spans:
    return text.spans if type(text) is Marked else ()


def is_safe(value: Any) -> TypeGuard[Marked]:
    """Whether the value is a safe string."""
    return type(value) is Marked and value.safe


def cut(spans: Spans, start: int, stop: int) -> Spans:
    """The spans of `text[start:stop]`, for 0 <= start <= stop."""
    if len(spans) == 1 and spans[0][0] <= start and stop <= spans[0][1]:
        return ((0, stop - start),) if start < stop else ()
    return tuple(
        (max(first, start) - start, min(last, stop) - start)
        for first, last in spans
        if first < stop and start < last and start < stop
    )


def cut_part(text: str, start: int, stop: int, safe: bool = False) -> str:
    """`text[start:stop]` of any string, 0 <= start <= stop, with its marks."""
    return build(str.__getitem__(text, slice(start, stop)), cut(spans_of(text), start, stop), safe)


def concat(parts: Iterable[str]) -> str:
    """`"".join(parts)` that keeps marks and drops `safe`."""
    parts = list(parts)
    text = "".join(parts)
    if Marked not in set(map(type, parts)):
        return text
    spans: list[tuple[int, int]] = []
    start = 0
    for piece in parts:
        if type(piece) is Marked:
            for first, last in piece.spans:
                if spans and spans[-1][1] == start + first:
                    spans[-1] = (spans[-1][0], start + last)
                else:
                    spans.append((start + first, start + last))
        start += len(piece)
    return build(text, tuple(spans))


def make_segments(parts: Iterable[str]) -> list[tuple[str, bool]]:
    """The parts in order as (text, whether it is user input). Adjacent parts of one kind are joined; none is empty."""
    joined = concat(parts)
    text = str.__str__(joined)
    cuts, position = [], 0
    for start, stop in spans_of(joined):
        cuts += [(text[position:start], False), (text[start:stop], True)]
        position = stop
    return [piece for piece in [*cuts, (text[position:], False)] if piece[0]]


def escape(value: str) -> str:
    """`value` with HTML's special characters escaped, as a safe string. Safe strings aren't changed."""
    if is_safe(value):
        return value
    text = str.translate(value, ESCAPES)
    if not spans_of(value):
        return build(text, (), True)
    parts = [(str.translate(piece, ESCAPES), user) for piece, user in make_segments([value])]
    return build(text, spans_of(concat(Marked(piece) if user else piece for piece, user in parts)), True)


def make_unsafe(text: str) -> str:
    return build(text, text.spans) if is_safe(text) else text


def mark_if(text: str, *sources: Any) -> str:
    """`text`, marked completely if any of its source strings has a mark."""
    return Marked(text) if any(type(source) is Marked and source.spans for source in sources) else text


def mark(value: Any, plain: Collection[str] = ()) -> Any:
    """Copy JSON-like data and mark all strings in it, even keys, as user input.

    `Marked` strings and those in `plain` aren't changed.
    """
    if isinstance(value, str):
        return value if value in plain or type(value) is Marked else Marked(value)
    if isinstance(value, dict):
        return {mark(key, plain): mark(item, plain) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mark(item, plain) for item in value]
    return value


def _pick(spans: Spans, positions: range) -> Spans:
    """The spans after picking single characters, as a slice with a step does."""
    picked: list[tuple[int, int]] = []
    for place, position in enumerate(positions):
        if _is_inside(spans, position):
            if picked and picked[-1][1] == place:
                picked[-1] = (picked[-1][0], place + 1)
            else:
                picked.append((place, place + 1))
    return tuple(picked)


def _is_inside(spans: Spans, position: int) -> bool:
    return any(first <= position < last for first, last in spans)


def _find_places(text: str, old: str, count: int) -> Iterator[int]:
    """The offsets at which `text.replace(old, ..., count)` replaces."""
    start = 0
    while count:
        place = str.find(text, old, start)
        if place < 0:
            return
        yield place
        start = place + (len(old) or 1)
        count -= 1
