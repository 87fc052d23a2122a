"""Cuts the texts of a request into sentences, and finds their tokens in the prompt.

Pure functions; connection threads call them. A text that the template has changed has no spans.
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
    """A part of a request's text, and its place in the prompt."""

    text: str
    start: int
    """The offset of its first character in the text of the request."""
    end: int
    """The offset after its last character."""
    message: int | None
    """The index of its message; None if the request has a prompt instead."""
    first: int
    """Its first token in the prompt."""
    last: int
    """The token after the last that ends within it; at most the prompt's last."""


def texts_of(body: Mapping[str, Any]) -> list[tuple[int | None, str]]:
    """The texts of a request in their order, with the indexes of their messages."""
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


def find_sentences(text: str) -> Iterable[tuple[int, int]]:
    """Start and end of each sentence or line of a text, without the white space around it."""
    at = 0
    for end, behind in (*((found.start(), found.end()) for found in BOUNDARY.finditer(text)), (len(text), len(text))):
        stripped = text[at:end].strip()
        if stripped:
            start = text.index(stripped, at)
            yield start, start + len(stripped)
        at = behind


def find_wanted_places(text: str, wanted: Sequence[str]) -> Iterable[tuple[int, int]]:
    """Start and end of the first occurrence of each wanted text, if there is one."""
    for one in wanted:
        at = text.find(one)
        if at >= 0:
            yield at, at + len(one)


def find_spans(
    texts: Sequence[tuple[int | None, str]], pieces: Sequence[bytes], wanted: Sequence[str] | None = None
) -> list[Span]:
    """The spans in a prompt: sentences of the texts, or `wanted` parts. `pieces` are its tokens' bytes."""
    prompt, ends = b"".join(pieces), list(accumulate(map(len, pieces)))
    spans, at = [], 0
    for message, text in texts:
        stripped = text.strip()
        place = prompt.find(stripped.encode("utf-8", "surrogatepass"), at) if stripped else -1
        if place < 0:
            continue
        offset = text.index(stripped)
        places = find_sentences(text) if wanted is None else find_wanted_places(text, wanted)
        for start, end in places:
            n_before = len(text[offset : max(start, offset)].encode("utf-8", "surrogatepass"))
            begin = place + n_before
            stop = begin + len(text[start:end].encode("utf-8", "surrogatepass"))
            first, last = bisect_right(ends, begin), min(bisect_right(ends, stop), len(pieces) - 1)
            if first < last:
                spans.append(Span(text[start:end], start, end, message, first, last))
        at = place + len(stripped.encode("utf-8", "surrogatepass"))
    return spans
