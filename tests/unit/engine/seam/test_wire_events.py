"""Events in columns: all events are read back as written, and no other message is read as columns."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.seam.task import Failure, Final, Frame, Piece, Timings, TokenProbs
from server.engine.seam.wire import COLUMNS, Codec, FrameReader, WireError, decode_events, encode_events

CODEC = Codec()
TIMINGS = Timings(0, 1, 1.0, 2, 2.0)
PROBS = (TokenProbs(1, 0.5, -0.7, ((1, 0.5),), ((1, -0.7),)),)

plain = st.builds(
    Piece, st.integers(0, 2**40), st.lists(st.integers(0, 300_000), max_size=4).map(tuple), st.text(max_size=8)
)
events = st.one_of(
    plain,
    plain,
    plain,
    st.builds(Piece, st.integers(0, 9), st.just((1,)), st.text(max_size=3), st.just(PROBS)),
    st.builds(Piece, st.integers(0, 9), st.just((1,)), st.text(max_size=3), st.just(()), st.just(TIMINGS)),
    st.builds(
        Final,
        st.integers(0, 9),
        st.just(0),
        st.text(max_size=3),
        st.just("eos"),
        st.just(""),
        st.just(1),
        st.just(2),
        st.just(3),
        st.booleans(),
        st.just(TIMINGS),
    ),
    st.builds(Failure, st.integers(0, 9), st.just(500), st.text(max_size=3)),
)


@given(st.lists(events, max_size=12).map(tuple))
def test_all_events_come_back_in_order(some):
    frame = Frame(some)
    (message,) = FrameReader(CODEC).feed(CODEC.encode(frame))
    assert message == frame and type(message.events) is tuple
    assert all(type(piece.tokens) is tuple for piece in message.events if type(piece) is Piece)


def test_neighbouring_pieces_share_columns_and_others_part_them():
    end = Failure(3, 500, "x")
    some = [Piece(1, (5,), "a"), Piece(2, (6, 7), "b"), end, Piece(1, (8,), "c")]
    rows = encode_events(some, lambda event: ["row", event])
    assert rows == [[COLUMNS, [1, 2], [(5,), (6, 7)], ["a", "b"]], ["row", end], [COLUMNS, [1], [(8,)], ["c"]]]


@pytest.mark.parametrize(
    "row",
    [
        [COLUMNS],
        [COLUMNS, [1], [[2]]],
        [COLUMNS, [1], [[2]], ["a"], []],
        [COLUMNS, [1, 2], [[2]], ["a"]],
        [COLUMNS, [1], [[2]], []],
        [COLUMNS, [1.5], [[2]], ["a"]],
        [COLUMNS, ["1"], [[2]], ["a"]],
        [COLUMNS, [True], [[2]], ["a"]],
        [COLUMNS, [1], [2], ["a"]],
        [COLUMNS, [1], [["2"]], ["a"]],
        [COLUMNS, [1], [[2]], [None]],
        [COLUMNS, 1, [[2]], ["a"]],
        [COLUMNS, [1], {"0": [2]}, ["a"]],
        [COLUMNS, [1], [[2]], "a"],
        [COLUMNS, [1], [[[2]]], ["a"]],
    ],
)
def test_what_are_no_columns_is_refused(row):
    with pytest.raises(ValueError, match="invalid columns"):
        decode_events([row], lambda row: row)
    data = json.dumps([CODEC._numbers[Frame], [row], None]).encode()
    with pytest.raises(WireError):
        CODEC.decode(data, b"")


@pytest.mark.parametrize("rows", [None, 3, "ab", {"a": 1}])
def test_events_are_a_sequence(rows):
    with pytest.raises(ValueError, match="sequence"):
        decode_events(rows, lambda row: row)
