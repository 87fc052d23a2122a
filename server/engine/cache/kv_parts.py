"""Cuts a sequence's state, as llama.cpp v0.5.0 writes it, into runs of tokens, and joins such runs.

Works on bytes only; engine thread. A state is

    magic u32, sequence i32, then for each cache of the model (one; two with sliding windows) a section:
    streams u32, then for each stream: cells u32, and if there are any
        for each cell: position i32, number of sequences u32 (always 1), 12 bytes more in some models, sequence i32
        transposed u32 (0 or 1), layers u32
        for each layer its keys:   type i32, bytes of a row u64, a row for each cell
        for each layer its values: the same; or transposed: type i32, bytes of a number u32, rows u32, and each row with
                                   a number for each cell (some models have no values of their own)

A sequence is in one KV stream; the other streams of its state are empty. Outside this module and the backend a state
has one stream, so that it fits any number of slots and both layouts of the cache.

Not taken: a scratch sequence for the run, as in a unified cache. In a split cache it would take a slot's memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from server.records import record

WORD = struct.Struct("<I")
COUNTS = struct.Struct("<II")  # streams and cells, or transposed and layers
KEYS = struct.Struct("<iQ")  # head of a layer's keys, or of values that aren't transposed
TURNED = struct.Struct("<iII")  # head of transposed values
N_HEAD = 8  # bytes of magic and sequence
META_WORDS = (3, 6)  # 32-bit numbers for each cell: in most models, in some models
MAX_LAYERS, MAX_TYPE = 4096, 256  # the most layers; all types have smaller numbers


class UnknownState(ValueError):
    """The bytes don't have the format described above."""


@record(frozen=True)
class Tensor:
    """The keys or values of a layer, from byte `at` on: `n_rows` rows (1 unless transposed) with `n_bytes` for each
    cell. `head` are the bytes before them, from `type` on."""

    head: bytes
    at: int
    n_rows: int
    n_bytes: int


@record(frozen=True)
class Section:
    """One cache's part of a state, from byte `start` to `end`. At byte `at` begin the positions and sequences of the
    `n_cells` cells: `words` 32-bit numbers for each. `counts` are the bytes of `transposed` and `layers`."""

    start: int
    at: int
    end: int
    n_streams: int
    n_cells: int
    words: int = 3
    counts: bytes = b""
    tensors: tuple[Tensor, ...] = ()


class KvParts:
    """A state of one cache; UnknownState for any other. `cut_part` may overwrite the bytes before the cells."""

    def __init__(self, state: memoryview) -> None:
        self._state = state
        self._head = bytes(state[:N_HEAD])
        self._section = section = read_section(state, N_HEAD)
        if section.end != len(state):
            raise UnknownState("more than one cache")
        meta = state[section.at : section.at + 4 * section.words * section.n_cells].cast("i")
        self._runs = _find_runs(meta[:: section.words].tolist())

    def cut_part(self, start: int, end: int) -> memoryview:
        """The tokens at positions [start, end) as a state of one stream. UnknownState if one is missing."""
        section, state = self._section, self._state
        runs = _cut(self._runs, start, end)
        if sum(i1 - i0 for i0, i1 in runs) != end - start:
            raise UnknownState("positions are missing")
        head = self._head + COUNTS.pack(1, end - start)
        if runs == [(0, section.n_cells)] and not state.readonly:
            at = section.at - len(head)  # the new head overwrites the old one, which is as long or longer
            state[at : section.at] = head
            return state[at : section.end - 4 * _count_behind(section)]
        pieces: list[bytes | memoryview] = [head]
        n_meta = 4 * section.words
        pieces += (state[section.at + n_meta * i0 : section.at + n_meta * i1] for i0, i1 in runs)
        pieces.append(section.counts)
        for tensor in section.tensors:
            pieces.append(tensor.head)
            stride, unit = tensor.n_bytes * section.n_cells, tensor.n_bytes
            for at in range(tensor.at, tensor.at + tensor.n_rows * stride, stride):
                pieces += (state[at + unit * i0 : at + unit * i1] for i0, i1 in runs)
        return memoryview(bytearray().join(pieces))


def join_parts(parts: Sequence[memoryview | bytearray], n_streams: int) -> bytearray:
    """Join the states of runs of tokens into one with `n_streams` streams. UnknownState if they don't fit together."""
    states = [memoryview(part) for part in parts]
    sections = [read_section(state, N_HEAD) for state in states]
    first = sections[0]
    shape = [(tensor.head, tensor.n_rows) for tensor in first.tensors]
    for state, section in zip(states, sections):
        is_alike = section.words == first.words and section.counts == first.counts and section.end == len(state)
        if not is_alike or [(tensor.head, tensor.n_rows) for tensor in section.tensors] != shape:
            raise UnknownState("parts of different caches")
    pieces: list[bytes | memoryview] = [
        states[0][:N_HEAD],
        WORD.pack(n_streams),
        bytes(4 * (n_streams - 1)),
        WORD.pack(sum(section.n_cells for section in sections)),
    ]
    pieces += (
        state[section.at : section.at + 4 * section.words * section.n_cells] for state, section in zip(states, sections)
    )
    pieces.append(first.counts)
    for i, (head, n_rows) in enumerate(shape):
        pieces.append(head)
        sizes = [section.tensors[i].n_bytes * section.n_cells for section in sections]
        places = [section.tensors[i].at for section in sections]
        for row in range(n_rows):
            pieces += (state[at + row * n : at + (row + 1) * n] for state, at, n in zip(states, places, sizes))
    return bytearray().join(pieces)


def with_streams(state: memoryview | bytearray, n_streams: int, has_tail: bool) -> memoryview:
    """The state, converted to `n_streams` streams. With `has_tail` other bytes follow the first section (the recurrent
    part of hybrid models). UnknownState if the state can't be read."""
    state = memoryview(state)
    pieces: list[bytes | memoryview] = [state[:N_HEAD]]
    at = N_HEAD
    while at < len(state):
        section = read_section(state, at)
        pieces += (
            WORD.pack(n_streams),
            bytes(4 * (n_streams - 1)),
            WORD.pack(section.n_cells),
            state[section.at : section.end - 4 * _count_behind(section)],
        )
        at = section.end
        if has_tail:
            pieces.append(state[at:])
            break
    return memoryview(bytearray().join(pieces))


def streams_of(state: memoryview | bytearray) -> int:
    """The number of streams in a state's first section; 0 if the bytes are too short."""
    return WORD.unpack_from(state, N_HEAD)[0] if len(state) >= N_HEAD + 4 else 0


def read_section(state: memoryview, start: int) -> Section:
    """Find the parts of the section that begins at byte `start`. UnknownState if it can't be read."""
    try:
        (n_streams,) = WORD.unpack_from(state, start)
        at = start + 4
        for i in range(n_streams):
            (n_cells,) = WORD.unpack_from(state, at)
            at += 4
            if n_cells:
                return _read_stream(state, start, at, n_streams, i, n_cells)
    except struct.error:
        raise UnknownState("it ends too early") from None
    return Section(start, at, at, n_streams, 0)


def _read_stream(state: memoryview, start: int, at: int, n_streams: int, i: int, n_cells: int) -> Section:
    for words in META_WORDS:
        tensors, end = _read_tensors(state, at + 4 * words * n_cells, n_cells)
        if tensors and _is_meta(state, at, n_cells, words):
            n_behind = 4 * (n_streams - 1 - i)
            if len(state) < end + n_behind or any(state[end : end + n_behind]):
                break
            counts = at + 4 * words * n_cells
            return Section(
                start, at, end + n_behind, n_streams, n_cells, words, bytes(state[counts : counts + 8]), tuple(tensors)
            )
    raise UnknownState("an unknown layout")


def _count_behind(section: Section) -> int:
    """How many empty streams follow the one with cells."""
    if not section.n_cells:
        return 0
    return section.n_streams - 1 - (section.at - section.start - 8) // 4


def _is_meta(state: memoryview, at: int, n_cells: int, words: int) -> bool:
    numbers = state[at : at + 4 * words * n_cells]
    return len(numbers) == 4 * words * n_cells and all(n == 1 for n in numbers.cast("i")[1::words].tolist())


def _read_tensors(state: memoryview, at: int, n_cells: int) -> tuple[list[Tensor], int]:
    """The keys and values of all layers, and where they end. No tensors if the bytes don't have this layout."""
    if at + 8 > len(state):
        return [], at
    is_turned, n_layers = COUNTS.unpack_from(state, at)
    at += 8
    if is_turned > 1 or not 0 < n_layers <= MAX_LAYERS:
        return [], at
    tensors: list[Tensor] = []
    for i in range(2 * n_layers):
        form = TURNED if is_turned and i >= n_layers else KEYS
        if at + form.size > len(state):
            break
        kind, n_bytes, *more = form.unpack_from(state, at)
        n_rows = more[0] if more else 1
        end = at + form.size + n_rows * n_bytes * n_cells
        if not (0 <= kind < MAX_TYPE and n_bytes and n_rows) or end > len(state):
            break
        tensors.append(Tensor(bytes(state[at : at + form.size]), at + form.size, n_rows, n_bytes))
        at = end
    if len(tensors) == 2 * n_layers:
        return tensors, at
    if len(tensors) < n_layers:
        return [], at
    del tensors[n_layers:]  # this model has no values of its own: they are part of its keys
    last = tensors[-1]
    return tensors, last.at + last.n_bytes * n_cells


def _find_runs(positions: list[int]) -> list[tuple[int, int, int]]:
    """The runs of cells with consecutive positions, as (first position, index of its cell, length), sorted."""
    n = len(positions)
    if positions == list(range(positions[0], positions[0] + n)) if n else True:
        return [(positions[0], 0, n)] if n else []
    runs, start = [], 0
    for i in range(1, n + 1):
        if i == n or positions[i] != positions[i - 1] + 1:
            runs.append((positions[start], start, i - start))
            start = i
    return sorted(runs)


def _cut(runs: list[tuple[int, int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The cells at positions [start, end) as ranges of indices, in the order of positions."""
    found = []
    for pos, index, length in runs:
        low, high = max(start, pos), min(end, pos + length)
        if low < high:
            found.append((index + low - pos, index + high - pos))
    return found
