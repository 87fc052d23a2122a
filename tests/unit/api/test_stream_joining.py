"""Which events of a stream are sent together: those that came meanwhile, and the last one with the tail. No engine, no
socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.api.generation import MAX_JOINED, Stream
from server.chat.output.events import End, Text
from server.chat.output.parser import go_on
from server.engine.seam.task import Final, Piece, Timings
from server.errors import ApiError
from server.metrics import Refusals


class Events:
    """Results whose events come in bursts; a burst is there as a whole."""

    def __init__(self, *bursts: list[object]) -> None:
        self._bursts = bursts
        self.has_more = False

    def iterate_events(self, silence_s: float | None) -> Iterator[object]:
        for burst in self._bursts:
            for i, event in enumerate(burst):
                self.has_more = i + 1 < len(burst)
                if isinstance(event, ApiError):
                    raise event
                yield event


class Run:
    """A generation with one answer."""

    ping_s = None
    refusals = Refusals()

    def __init__(self, results: Events) -> None:
        self._results = results

    @contextmanager
    def run(self, answer_id: str) -> Iterator[Events]:
        yield self._results

    def feed(self, message: object) -> tuple[int, tuple]:
        return 0, go_on(message)


class Reply:
    id = ""
    ping = b"ping."

    def encode_event(self, index: int, event: object) -> bytes:
        return b"end." if isinstance(event, End) else event.text.encode() if isinstance(event, Text) else b""

    def end(self) -> bytes:
        return b"tail"

    def encode_error(self, error: ApiError) -> bytes:
        return b"error"


FINAL = Final(0, 0, "", "eos", "", 1, 1, 1, False, Timings(0, 0, 0.0, 0, 0.0))


def piece(text: str) -> Piece:
    return Piece(0, (1,), text)


def sent(*bursts: list[object]) -> list[bytes]:
    return list(Stream(Run(Events(*bursts)), Reply()))


def test_events_that_come_one_by_one_go_one_by_one():
    assert sent([piece("a")], [piece("b")], [FINAL]) == [b"a", b"b", b"end.tail"]


def test_what_has_come_meanwhile_goes_together():
    assert sent([piece("a")], [piece("b"), piece("c"), piece("d")], [piece("e"), FINAL]) == [b"a", b"bcd", b"eend.tail"]


def test_a_chunk_has_an_upper_bound():
    chunks = sent([piece("x")] * (2 * MAX_JOINED + 1), [FINAL])
    assert [len(chunk) for chunk in chunks[:-1]] == [MAX_JOINED, MAX_JOINED, 1]


def test_silence_is_filled_at_once():
    assert sent([None], [piece("a")], [FINAL]) == [b"ping.", b"a", b"end.tail"]


def test_an_event_without_text_sends_nothing_by_itself():
    assert sent([piece("")], [piece("a")], [FINAL]) == [b"a", b"end.tail"]


def test_an_error_before_anything_is_raised_and_later_an_event_behind_what_came():
    error = ApiError(500, "made up")
    with pytest.raises(ApiError):
        sent([error])
    assert sent([piece("a")], [piece("b"), error]) == [b"a", b"berror"]
    assert sent([piece("a"), error]) == [b"aerror"]
