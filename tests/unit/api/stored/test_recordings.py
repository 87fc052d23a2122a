"""Recorded streams: readers at any place and time, and bounds."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from server.api.stored import recordings
from server.api.stored.recordings import ALONE_S, KEPT_S, Reader, Recording, Recordings
from server.errors import ApiError
from server.web.message import Request
from tests.support import PATIENCE, wait_until
from tests.unit.engine.driving import Clock

pytestmark = pytest.mark.covers("T21")
TYPE = {"Content-Type": "text/plain"}


class Chunks:
    """A source of given chunks; with `gate` each waits for its turn."""

    def __init__(self, *chunks: bytes, error: Exception | None = None, gate: threading.Semaphore | None = None) -> None:
        self._chunks, self._error, self._gate = chunks, error, gate
        self.is_finished = self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if self._gate is not None:
                assert self._gate.acquire(timeout=PATIENCE)
            if self.is_finished:
                break
            yield chunk
        if self._error is not None:
            raise self._error

    def finish(self) -> bool:
        self.is_finished = True
        return True

    def close(self) -> None:
        self.is_closed = True


def written(*chunks: bytes, clock: Clock | None = None, **how: object) -> Recording:
    recording = Recording(TYPE, clock or Clock())
    recording.begin(Chunks(*chunks, **how))
    recording.write()
    return recording


def test_readers_that_break_off_anywhere_get_every_byte_once():
    rng = random.Random(4)
    for _ in range(30):
        chunks = [rng.randbytes(rng.choice((1, 3, 100))) for _ in range(rng.randrange(1, 60))]
        recording = Recording(TYPE)
        recording.begin(Chunks(*chunks))
        got: list[bytes] = []

        def read(recording: Recording = recording, got: list[bytes] = got, rng: random.Random = rng) -> None:
            data = b""
            while True:
                with_reader = Reader(recording, Request("GET", "/"), len(data))
                for chunk in with_reader:
                    n = rng.randrange(1, len(chunk) + 1)  # what the connection took before it broke
                    data += chunk[:n]
                    if n < len(chunk):
                        break
                else:
                    got.append(data)
                    return
                with_reader.close()

        threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        recording.write()
        for thread in threads:
            thread.join(PATIENCE)
        assert got == [b"".join(chunks)] * 3


def test_a_reader_that_is_too_slow_is_cut_off_instead_of_missing_something(monkeypatch):
    monkeypatch.setattr(recordings, "MAX_BYTES", 100)
    recording = Recording(TYPE)
    recording.begin(Chunks(*[b"x" * 50] * 10))
    slow = Reader(recording, Request("GET", "/"))
    recording.write()
    with pytest.raises(ApiError) as caught:
        next(slow)
    assert caught.value.status == 499
    with pytest.raises(ApiError, match="offset lost"):
        recording.check(0)
    assert recording.n_bytes == 500 and len(b"".join(Reader(recording, Request("GET", "/"), 400))) == 100


def test_what_breaks_off_breaks_off_for_its_readers_and_what_never_began_says_why():
    cut = Reader(written(b"abc", error=ApiError(500, "no")), Request("GET", "/"))
    assert next(cut) == b"abc"
    with pytest.raises(ApiError) as caught:
        next(cut)
    assert caught.value.status == 499
    with pytest.raises(ApiError, match="no") as caught:
        next(Reader(written(error=ApiError(400, "no")), Request("GET", "/")))
    assert caught.value.status == 400
    with pytest.raises(ApiError) as caught:
        next(Reader(written(error=ValueError("a fault of ours")), Request("GET", "/")))
    assert caught.value.status == 500


def test_a_complete_stream_is_kept_for_a_while():
    clock = Clock()
    kept = Recordings(clock)
    stream = kept.begin(Request("POST", "/", key_id="k"), "c", lambda: Chunks(b"a", b"b"), TYPE)
    assert b"".join(stream.chunks) == b"ab"
    wait_until(lambda: kept.find("k", "c").is_done, "its end", PATIENCE)
    clock.now = KEPT_S
    assert kept.find("k", "c").n_bytes == 2
    clock.now += 1
    with pytest.raises(ApiError, match="expired") as caught:
        kept.find("k", "c")
    assert caught.value.status == 404 and kept.find_matching("k", ["c"]) == []


def test_a_stream_that_nobody_reads_ends_after_a_long_while():
    clock, gate = Clock(), threading.Semaphore(0)
    source = Chunks(b"a", b"b", b"c", b"d", gate=gate)
    kept = Recordings(clock)
    reader = kept.begin(Request("POST", "/"), "c", lambda: source, TYPE).chunks
    gate.release()
    assert next(reader) == b"a"
    clock.now = 2 * ALONE_S
    gate.release()
    assert next(reader) == b"b" and not source.is_finished, "somebody reads"
    reader.close()
    clock.now += ALONE_S + 1
    gate.release()
    wait_until(lambda: source.is_finished, "it to end", PATIENCE)
    gate.release()
    wait_until(lambda: source.is_closed, "it to be closed", PATIENCE)


def test_what_is_stopped_before_it_has_begun_ends_at_once():
    recording, source = Recording(TYPE), Chunks(b"a")
    recording.finish()
    recording.begin(source)
    assert source.is_finished


def test_a_source_that_can_not_be_made_leaves_nothing_behind():
    def fail() -> Chunks:
        raise ApiError(503, "no engine")

    kept = Recordings()
    with pytest.raises(ApiError, match="no engine"):
        kept.begin(Request("POST", "/"), "c", fail, TYPE)
    assert kept.find_matching("", ["c"]) == []


def test_one_key_can_not_take_all_places(monkeypatch):
    monkeypatch.setattr(recordings, "MAX_STREAMS", 3)
    monkeypatch.setattr(recordings, "MAX_OF_KEY", 2)
    gate, kept = threading.Semaphore(0), Recordings()
    sources = []

    def begin(key: str, id_: str) -> None:
        sources.append(Chunks(b"a", gate=gate))
        kept.begin(Request("POST", "/", key_id=key), id_, lambda: sources[-1], TYPE)

    begin("k", "1")
    begin("k", "2")
    for key in ("k", "l", "m"):
        if key == "l":
            begin(key, "3")
        else:
            with pytest.raises(ApiError) as caught:
                begin(key, "3")
            assert caught.value.status == 503
    for _ in sources:
        gate.release()
    wait_until(lambda: sum(source.is_closed for source in sources) == 3, "their ends", PATIENCE)
    begin("m", "4")
    gate.release()
    assert [kept.find_matching(key, list("1234")) != [] for key in "klm"] == [True, True, True]
