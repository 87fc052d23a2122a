"""Which part of a prompt is which: the texts of a request cut into sentences, each with its place among the tokens.

Pure functions; connection thread. A template may write texts in its own way: one that isn't found in the prompt as it
came has no spans. Offsets are characters within the text that a span is from.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from server.records import record

BOUNDARY = re.compile(r"(?<=[.!?…。！？])\s+|\n+")


@record(frozen=True)
class Span:
    """`text` at characters [start, end) of a text of `message` (None: of the prompt), as tokens [first, last) of the
    prompt."""

    text: str
    start: int
    end: int
    message: int | None
    first: int
    last: int


def texts_of(body: Mapping[str, Any]) -> list[tuple[int | None, str]]:
    """The texts of a request in their order, with the numbers of their messages."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        prompt = body.get("prompt")
        return [(None, prompt)] if isinstance(prompt, str) else []
    found: list[tuple[int | None, str]] = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [content]
        texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
        found += [(i, text) for text in texts if isinstance(text, str)]
    return found


def sentences(text: str) -> Iterable[tuple[int, int]]:
    """Where the sentences and lines of a text are, without the white space around them."""
    at = 0
    for end, behind in (*((found.start(), found.end()) for found in BOUNDARY.finditer(text)), (len(text), len(text))):
        stripped = text[at:end].strip()
        if stripped:
            start = text.index(stripped, at)
            yield start, start + len(stripped)
        at = behind


def wanted_places(text: str, wanted: Sequence[str]) -> Iterable[tuple[int, int]]:
    """Where the wanted texts are, each at its first place."""
    for one in wanted:
        at = text.find(one)
        if at >= 0:
            yield at, at + len(one)


def find_spans(
    texts: Sequence[tuple[int | None, str]], pieces: Sequence[bytes], wanted: Sequence[str] | None = None
) -> list[Span]:
    """The spans of the texts in a prompt whose tokens are `pieces`: its sentences, or the `wanted` texts."""
    prompt, ends = b"".join(pieces), list(accumulate(map(len, pieces)))
    spans, at = [], 0
    for message, text in texts:
        stripped = text.strip()
        place = prompt.find(stripped.encode("utf-8", "surrogatepass"), at) if stripped else -1
        if place < 0:
            continue
        offset = text.index(stripped)
        places = sentences(text) if wanted is None else wanted_places(text, wanted)
        for start, end in places:
            n_before = len(text[offset : max(start, offset)].encode("utf-8", "surrogatepass"))
            begin = place + n_before
            stop = begin + len(text[start:end].encode("utf-8", "surrogatepass"))
            first, last = bisect_right(ends, begin), min(bisect_right(ends, stop), len(pieces) - 1)
            if first < last:
                spans.append(Span(text[start:end], start, end, message, first, last))
        at = place + len(stripped.encode("utf-8", "surrogatepass"))
    return spans
