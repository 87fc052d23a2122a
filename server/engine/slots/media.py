"""Images and sound in prompts: how they are prepared, and what stands for them among the tokens.

A task comes with files and a prompt in which a negative id -1, -2, ... stands for the first, second, ... of them; so
does a request for vectors. The backend decodes the files (`media_desk`); then the task goes into the queue like any
other, its prompt written out: each chunk of an image as placeholders, ids below zero made of its content's hash, one
for each position in the cache. So everything that compares tokens (reuse and sharing of prefixes, saved slots) works
for images without knowing of them: same content, same ids. Two things are different. A chunk's cells come all together,
from `media_steps`; and what is reused ends at a chunk's border.

Engine thread. Not taken: encoding on the media thread too. On a CPU it would fight with the decoding threads for the
cores, and the text of others would stall anyway.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Protocol

from server.engine.seam.task import Embed, Task
from server.records import field, record, replace


class Closable(Protocol):
    """Something native to be freed."""

    def close(self) -> None:
        """Free it."""


@record(frozen=True, eq=False)
class Chunk:
    """A stretch of embeddings: `ids` are its placeholders, one per position; `n_tokens` cells of the cache.

    With `is_causal` False all of it is evaluated in one batch. `native` is the backend's handle.
    """

    ids: tuple[int, ...]
    n_tokens: int
    is_causal: bool = True
    native: int = 0


@record(frozen=True, eq=False)
class Prepared:
    """What a file becomes in a prompt: lists of ordinary tokens and chunks, in order; `owner` frees the chunks."""

    parts: tuple[list[int] | Chunk, ...]
    owner: Closable

    @property
    def n_tokens(self) -> int:
        """Cells of the cache that it takes."""
        return sum(part.n_tokens if isinstance(part, Chunk) else len(part) for part in self.parts)

    @property
    def n_positions(self) -> int:
        """Ids of the prompt that it takes."""
        return sum(len(part.ids) if isinstance(part, Chunk) else len(part) for part in self.parts)


@record
class Layout:
    """Where in a prompt chunks begin, and what frees them. `files`: where each file begins, and how many positions it
    takes."""

    chunks: dict[int, Chunk] = field(default_factory=dict)
    owners: list[Closable] = field(default_factory=list)
    files: list[tuple[int, int]] = field(default_factory=list)

    def n_extra(self, at: int = 0) -> int:
        """Cells beyond one per position that the chunks from `at` on take (M-RoPE); below zero if fewer."""
        return sum(chunk.n_tokens - len(chunk.ids) for start, chunk in self.chunks.items() if start >= at)

    def shifted(self, n: int) -> Layout:
        """The same behind `n` more tokens."""
        files = [(start + n, length) for start, length in self.files]
        return Layout({start + n: chunk for start, chunk in self.chunks.items()}, self.owners, files)

    def as_sent(self, at: int) -> int:
        """Which token of the prompt as it was sent, with one for each file, became the position `at`."""
        return at - sum(min(at - start, length - 1) for start, length in self.files if start <= at)

    def next_start(self, at: int, end: int) -> int:
        """Where the first chunk from `at` on begins; `end` if there is none."""
        return min((start for start in self.chunks if start >= at), default=end)

    def reusable(self, n_prompt: int) -> int:
        """How much of the prompt a cache can spare us: all but what has to be evaluated for its last logits."""
        last = max(self.chunks, default=-1)
        is_at_end = last >= 0 and last + len(self.chunks[last].ids) == n_prompt
        return last if is_at_end else max(n_prompt - 1, 0)


def placeholders(key: bytes, n: int) -> tuple[int, ...]:
    """`n` negative ids of 32 bits that only this key gives: no two contents share one by accident or by design."""
    import hashlib  # here, because most models take no media

    digest = hashlib.shake_256(key).digest(4 * n)
    return tuple(-1 - (number >> 1) for number in struct.unpack(f"<{n}I", digest))


def write_out(task: Task | Embed, files: tuple[Prepared, ...]) -> tuple[Task | Embed, Layout]:
    """The task with its prompt as the cache will hold it, and where the chunks are; in a request for vectors that is
    the place in all of its inputs, one behind the other."""
    layout = Layout(owners=[file.owner for file in files])
    if isinstance(task, Task):
        return replace(task, prompt=_written(task.prompt, files, layout, 0), media=()), layout
    inputs: list[tuple[int, ...]] = []
    start = 0
    for tokens in task.inputs:
        inputs.append(_written(tokens, files, layout, start))
        start += len(inputs[-1])
    return replace(task, inputs=tuple(inputs), media=()), layout


def _written(prompt: Iterable[int], files: tuple[Prepared, ...], layout: Layout, start: int) -> tuple[int, ...]:
    """One prompt, which begins at `start`; its chunks go into the layout."""
    tokens: list[int] = []
    for token in prompt:
        if token >= 0:
            tokens.append(token)
            continue
        layout.files.append((start + len(tokens), files[-1 - token].n_positions))
        for part in files[-1 - token].parts:
            if isinstance(part, Chunk):
                layout.chunks[start + len(tokens)] = part
                tokens += part.ids
            else:
                tokens += part
    return tuple(tokens)
