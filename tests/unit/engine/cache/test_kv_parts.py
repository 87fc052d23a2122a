"""States of sequences split into runs of tokens and joined again: every number stays with its token, in every layout."""

from __future__ import annotations

import random
import struct

import pytest

from server.engine.cache.kv_parts import KvParts, UnknownState, join_parts, read_section, streams_of, with_streams

MAGIC = struct.pack("<Ii", 0xAF143CD8, 3)


def key(pos: int, layer: int, kind: int, i: int) -> int:
    """The byte number `i` of what a layer keeps for a token."""
    return (31 * pos + 7 * layer + 13 * kind + i) % 251


def section(
    positions: list[int],
    n_streams: int = 1,
    stream: int = 0,
    n_layers: int = 2,
    k: int = 4,
    v: int = 6,
    is_turned: bool = False,
    has_extra: bool = False,
) -> bytes:
    """One cache of a state; `v` 0 for a model without values of their own."""
    if not positions:
        return struct.pack("<I", n_streams) + bytes(4 * n_streams)
    data = struct.pack("<I", n_streams) + bytes(4 * stream) + struct.pack("<I", len(positions))
    for pos in positions:
        data += struct.pack("<iI", pos, 1) + (struct.pack("<3i", -1, -1, pos) if has_extra else b"")
        data += struct.pack("<i", 3)
    data += struct.pack("<II", is_turned, n_layers)
    for layer in range(n_layers):
        data += struct.pack("<iQ", 1, k)
        data += bytes(key(pos, layer, 0, i) for pos in positions for i in range(k))
    for layer in range(n_layers if v else 0):
        if is_turned:
            data += struct.pack("<iII", 1, 2, v // 2)
            data += bytes(
                key(pos, layer, 1, 2 * row + i) for row in range(v // 2) for pos in positions for i in range(2)
            )
        else:
            data += struct.pack("<iQ", 1, v)
            data += bytes(key(pos, layer, 1, i) for pos in positions for i in range(v))
    return data + bytes(4 * (n_streams - 1 - stream))


def state(positions: list[int], **fields: object) -> memoryview:
    return memoryview(bytearray(MAGIC + section(positions, **fields)))


SHAPES = {
    "plain": {},
    "transposed": {"is_turned": True},
    "with more about each cell": {"has_extra": True},
    "without values": {"v": 0},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("place", [(1, 0), (4, 0), (4, 2), (4, 3)])
def test_parts_are_what_a_sequence_of_those_tokens_has(shape, place):
    n_streams, stream = place
    whole = KvParts(state(list(range(10)), n_streams=n_streams, stream=stream, **shape))
    for start, end in ((0, 10), (0, 1), (3, 7), (9, 10)):
        assert whole.cut_part(start, end) == state(list(range(start, end)), **shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("n_streams", [1, 2, 5])
def test_parts_are_joined_to_the_whole(shape, n_streams):
    whole = state(list(range(20)), **shape)
    parts = [KvParts(whole).cut_part(start, end) for start, end in ((0, 8), (8, 16), (16, 20))]
    assert join_parts(parts, n_streams) == state(list(range(20)), n_streams=n_streams, stream=n_streams - 1, **shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cells_in_any_order_are_cut_by_their_positions(shape):
    positions = list(range(12))
    random.Random(5).shuffle(positions)
    shuffled, wrapped = KvParts(state(positions, **shape)), KvParts(state([*range(7, 12), *range(7)], **shape))
    for parts in (shuffled, wrapped):
        assert parts.cut_part(0, 12) == state(list(range(12)), **shape)
        assert parts.cut_part(5, 9) == state(list(range(5, 9)), **shape)


def test_what_is_not_there_is_not_made_up():
    parts = KvParts(state([0, 1, 2, 5, 6]))
    assert parts.cut_part(0, 3) == state([0, 1, 2])
    for start, end in ((0, 7), (3, 5), (6, 8)):
        with pytest.raises(UnknownState):
            parts.cut_part(start, end)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("place", [(1, 0), (3, 1), (3, 2)])
@pytest.mark.parametrize("n_streams", [1, 2, 6])
def test_a_state_fits_into_another_number_of_streams(shape, place, n_streams):
    old = {"n_streams": place[0], "stream": place[1], **shape}
    new = {"n_streams": n_streams, "stream": n_streams - 1, **shape}
    positions = list(range(5))
    changed = with_streams(state(positions, **old), n_streams, False)
    assert changed == state(positions, **new) and streams_of(changed) == n_streams
    two_caches = memoryview(MAGIC + section(positions, **old) + section(positions[2:], **old))
    assert with_streams(two_caches, n_streams, False) == MAGIC + section(positions, **new) + section(
        positions[2:], **new
    )
    hybrid = memoryview(MAGIC + section(positions, **old) + b"\x01\x00\x00\x00recurrent")
    assert with_streams(hybrid, n_streams, True) == MAGIC + section(positions, **new) + b"\x01\x00\x00\x00recurrent"
    assert with_streams(with_streams(two_caches, n_streams, False), 1, False) == with_streams(two_caches, 1, False)


def test_an_empty_sequence_has_no_cells():
    assert read_section(state([], n_streams=3), 8).n_cells == 0
    assert with_streams(state([], n_streams=3), 1, False) == state([])


def test_two_caches_can_not_be_cut():
    with pytest.raises(UnknownState):
        KvParts(memoryview(MAGIC + section([0, 1]) + section([1])))


def test_parts_of_different_caches_are_not_joined():
    for other in ({"k": 8}, {"n_layers": 3}, {"is_turned": True}, {"has_extra": True}, {"v": 0}):
        with pytest.raises(UnknownState):
            join_parts([state([0, 1]), state([2], **other)], 2)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_damaged_states_are_refused_and_never_read_beyond_their_end(shape):
    whole = bytes(state(list(range(6)), n_streams=2, stream=0, **shape))
    rng = random.Random(1)
    for n in range(len(whole)):
        with pytest.raises(UnknownState):
            KvParts(memoryview(whole[:n]))
    for _ in range(2000):
        data = bytearray(whole)
        data[rng.randrange(8, len(data))] = rng.randrange(256)
        try:
            part = KvParts(memoryview(data)).cut_part(1, 4)
        except UnknownState:
            continue
        assert len(part) <= len(data)
