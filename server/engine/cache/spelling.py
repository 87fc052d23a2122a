"""Replaces a prompt's tokens by the cached tokens of the same text, whose cells can then be reused.

A model may write any tokens that make up a text (a grammar or a high temperature leads to rare ones), but a tokenizer
cuts the text in one way. So a conversation's next prompt can differ from the cached tokens although no letter has
changed, and everything behind the difference would be evaluated again.

Pure functions on token lists, engine thread. Control tokens match only themselves, so text from users can't become one.
Not taken: remembering answers by their text in the web process. The cache has their tokens anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.engine.slots.slot import count_common_prefix

MAX_STRETCH = 256
"""Bytes within which two token lists for the same text must reach a common border."""

Letters = Callable[[int], bytes]  # the bytes of a text token; b"" for other tokens


def respell(prompt: list[int], cached: Sequence[int], letters: Letters) -> list[int]:
    """The prompt with the tokens of `cached`, as far as both are the same text."""
    i = j = count_common_prefix(cached, prompt)
    spelled = prompt[:j]
    while (lengths := _find_same_text(cached, i, prompt, j, letters)) is not None:
        start, i, j = i, i + lengths[0], j + lengths[1]
        while i < len(cached) and j < len(prompt) and cached[i] == prompt[j]:
            i, j = i + 1, j + 1
        spelled += cached[start:i]
    return spelled + prompt[j:]


def _find_same_text(
    cached: Sequence[int], i: int, prompt: Sequence[int], j: int, letters: Letters
) -> tuple[int, int] | None:
    """How many tokens of each list, from `i` and `j` on, spell the shortest common text; None if there is none within
    MAX_STRETCH."""
    a = b = b""
    start_i, start_j = i, j
    while not a or a != b:
        if len(a) <= len(b):
            part = letters(cached[i]) if i < len(cached) else b""
            i, a = i + 1, a + part
        else:
            part = letters(prompt[j]) if j < len(prompt) else b""
            j, b = j + 1, b + part
        n = min(len(a), len(b))
        if not part or a[:n] != b[:n] or n > MAX_STRETCH:
            return None
    return i - start_i, j - start_j
