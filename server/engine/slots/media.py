"""Images and sound in prompts: prepared files, and the placeholders for them among a prompt's tokens.

In the prompt of a task or `Embed`, the ids -1, -2, ... stand for its first, second, ... file. The backend decodes the
files (`media_desk`) and cuts them into chunks. Then the prompt is written out: a chunk becomes negative placeholder
ids, one for each position in the cache. They are made from the hash of the file's content, so reuse, sharing and saved
slots compare tokens without knowing of images. Two things differ from text: a chunk's cells come all at once, from
`media_steps`, and reuse ends at a chunk's border.

Engine thread; the media thread makes chunks. Not taken: encoding on the media thread too. On a CPU it would compete
with the compute threads for the cores.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Protocol

from server.engine.seam.task import Embed, Task
from server.records import field, record, replace


class Closable(Protocol):
    """A native object that must be freed."""

    def close(self) -> None:
        """Free the object."""


@record(frozen=True, eq=False)
class Chunk:
    """Consecutive embeddings, computed together. Unless `is_causal` is set, all must be evaluated in one batch."""

    ids: tuple[int, ...]  # placeholders, one per position
    n_tokens: int  # cells of the cache
    is_causal: bool = True
    native: int = 0  # the backend's handle


@record(frozen=True, eq=False)
class Prepared:
    """What a file becomes in a prompt: lists of ordinary tokens, and chunks, in order. `owner` frees the chunks."""

    parts: tuple[list[int] | Chunk, ...]
    owner: Closable

    @property
    def n_tokens(self) -> int:
        """Cells of the cache that the file takes."""
        return sum(part.n_tokens if isinstance(part, Chunk) else len(part) for part in self.parts)

    @property
    def n_positions(self) -> int:
        """Ids of the prompt that the file takes."""
        return sum(len(part.ids) if isinstance(part, Chunk) else len(part) for part in self.parts)


@record
class Layout:
    """Where the chunks and files of a prompt are."""

    chunks: dict[int, Chunk] = field(default_factory=dict)  # by the position where they begin
    owners: list[Closable] = field(default_factory=list)  # what frees the chunks
    files: list[tuple[int, int]] = field(default_factory=list)  # (first position, number of positions)

    def count_extra(self, at: int = 0) -> int:
        """Cells minus positions of the chunks from `at` on (M-RoPE); negative if they take fewer cells."""
        return sum(chunk.n_tokens - len(chunk.ids) for start, chunk in self.chunks.items() if start >= at)

    def make_shifted(self, n: int) -> Layout:
        """The layout with `n` more tokens before it."""
        files = [(start + n, length) for start, length in self.files]
        return Layout({start + n: chunk for start, chunk in self.chunks.items()}, self.owners, files)

    def as_sent(self, at: int) -> int:
        """The index of the position `at` in the prompt as it was sent, which had one id for each file."""
        return at - sum(min(at - start, length - 1) for start, length in self.files if start <= at)

    def find_next_start(self, at: int, end: int) -> int:
        """Where the first chunk at or after `at` begins; `end` if there is none."""
        return min((start for start in self.chunks if start >= at), default=end)

    def count_reusable(self, n_prompt: int) -> int:
        """How many of the prompt's tokens may come from a cache: all but those evaluated for the last logits."""
        last = max(self.chunks, default=-1)
        is_at_end = last >= 0 and last + len(self.chunks[last].ids) == n_prompt
        return last if is_at_end else max(n_prompt - 1, 0)


def make_placeholders(key: bytes, n: int) -> tuple[int, ...]:
    """`n` negative 32-bit ids from a cryptographic hash of `key`."""
    import hashlib  # here, because most models take no media

    digest = hashlib.shake_256(key).digest(4 * n)
    return tuple(-1 - (number >> 1) for number in struct.unpack(f"<{n}I", digest))


def write_out(task: Task | Embed, files: tuple[Prepared, ...]) -> tuple[Task | Embed, Layout]:
    """The task with its prompt as the cache will hold it, and the layout of its chunks. For embeddings, positions in
    the layout count through all inputs."""
    layout = Layout(owners=[file.owner for file in files])
    if isinstance(task, Task):
        return replace(task, prompt=_write_out(task.prompt, files, layout, 0), media=()), layout
    inputs: list[tuple[int, ...]] = []
    start = 0
    for tokens in task.inputs:
        inputs.append(_write_out(tokens, files, layout, start))
        start += len(inputs[-1])
    return replace(task, inputs=tuple(inputs), media=()), layout


def _write_out(prompt: Iterable[int], files: tuple[Prepared, ...], layout: Layout, start: int) -> tuple[int, ...]:
    """Write out one prompt, whose first position is `start`, and add its chunks to the layout."""
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
