"""Streams that a client can take up again after its connection broke: their bytes are kept for a while.

A request for a stream that brings `X-Conversation-Id` is written into a `Recording` by a thread of its own, `stream`,
and its connection is the first to read that. So a connection that breaks changes nothing for the text, and GET
/v1/stream goes on at any byte. Routes, header and fields are llama-server's. A conversation has one stream, the latest,
and belongs to the key that began it.

Bounded in number, in bytes (of a long stream the beginning is forgotten), in age once a stream is complete, and in how
long one is written that nobody reads.

Not taken: event ids and `Last-Event-ID`. Not every dialect writes server-sent events, a connection may break within
one, and what a client has got of an answer is a number of bytes.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

from server import memory
from server.api.request.fields import LOOKUP
from server.errors import ApiError
from server.log import get_logger, inherit
from server.web.message import CLIENT_CLOSED, EventStream, Request, Response

MAX_STREAMS, MAX_OF_KEY = 32, 16
MAX_BYTES = 4 << 20  # of a stream; a quarter more until its beginning is cut off
KEPT_S = 300.0  # after the end
ALONE_S = 3600.0  # a stream that nobody reads is written so long
READ_BYTES = 1 << 16
MAX_IDS = 1000
ID = re.compile(r"[ -~]{1,512}")
OFFSET = re.compile(r"[0-9]{1,15}")

log = get_logger("api")


class Source(Protocol):
    """What a stream is made of: its chunks, a way to let it end where it is, and one to give it up."""

    def __iter__(self) -> Iterator[bytes]:
        """The chunks."""

    def finish(self) -> bool:
        """From any thread: let the answer end with what there is."""

    def close(self) -> None:
        """Nothing more is wanted."""


class Recording:
    """The bytes of one stream, whose answer has these `headers`. One thread writes, any number read, each from where it
    likes."""

    def __init__(self, headers: dict[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self.headers = headers
        self.started_at, self.completed_at = int(time.time()), 0
        self.t_completed = clock()
        self._clock = clock
        self._changed = threading.Condition()  # its lock protects the rest
        self._data = bytearray()
        self._n_lost = 0  # bytes before those of `_data`
        self._n_readers = 0
        self._t_left = clock()
        self._source: Source | None = None
        self._is_finished = False
        self._error: ApiError | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing more comes."""
        return self.completed_at > 0

    @property
    def n_bytes(self) -> int:
        """What has been written since the beginning."""
        return self._n_lost + len(self._data)

    def begin(self, source: Source) -> None:
        """What the stream is made of is there."""
        with self._changed:
            self._source, is_finished = source, self._is_finished
        if is_finished:
            source.finish()

    def finish(self) -> None:
        """From any thread: let it end with what there is."""
        with self._changed:
            self._is_finished, source = True, self._source
        if source is not None:
            source.finish()

    def write(self) -> None:
        """The thread `stream`: all of it, to its end."""
        source: Source = self._source  # type: ignore[assignment]
        try:
            for chunk in source:
                self._append(chunk)
                if not self._n_readers and self._clock() - self._t_left > ALONE_S:
                    source.finish()
            self._end(None)
        except ApiError as error:
            self._end(error)
        except Exception:
            log.exception("a stream that can be taken up again failed")
            self._end(ApiError(500, "this stream failed; see the server's log"))
        finally:
            source.close()

    def _append(self, chunk: bytes) -> None:
        with self._changed:
            self._data += chunk
            if len(self._data) > MAX_BYTES + MAX_BYTES // 4:
                n = len(self._data) - MAX_BYTES
                self._n_lost += n
                del self._data[:n]
            self._changed.notify_all()

    def _end(self, error: ApiError | None) -> None:
        with self._changed:
            self._error, self._source = error, None
            self.t_completed = self._clock()
            self.completed_at = int(time.time())
            self._changed.notify_all()

    # ---- readers ------------------------------------------------------------------------------------------------

    def check(self, offset: int) -> None:
        """ApiError 400 if there is nothing to read from this byte on."""
        with self._changed:
            if offset > self.n_bytes:
                raise ApiError(400, f"from: the stream has {self.n_bytes} bytes so far")
            if offset < self._n_lost:
                raise ApiError(400, f"Stream offset lost, please restart: it is kept from byte {self._n_lost} on")

    def read(self, offset: int, is_open: Callable[[], bool]) -> bytes:
        """The next bytes from `offset` on, as soon as there are some; none at the end. ApiError if the stream failed
        before its first byte; one with status 499 if the rest can't be had, or isn't wanted any more (`is_open`)."""
        with self._changed:
            while is_open() and offset == self.n_bytes and not self.is_done:
                self._changed.wait()
            if not is_open() or offset < self._n_lost:
                raise ApiError(CLIENT_CLOSED, "the reader has left, or reads too slowly")
            start = offset - self._n_lost
            data = bytes(self._data[start : start + READ_BYTES])
            if not data and self._error is not None:
                raise self._error if not self.n_bytes else ApiError(CLIENT_CLOSED, "the stream broke off")
            return data

    def wake(self) -> None:
        """Have all readers look whether they are still open."""
        with self._changed:
            self._changed.notify_all()

    def count_reader(self, n: int) -> None:
        """One reader more, or less."""
        with self._changed:
            self._n_readers += n
            self._t_left = self._clock()


class Reader:
    """The chunks of a recording for one connection. With `is_late` the answer's head goes out before there are any."""

    def __init__(self, recording: Recording, request: Request, offset: int = 0, is_late: bool = False) -> None:
        self._recording, self._offset, self._is_late = recording, offset, is_late
        self._is_open = True
        self._stack = ExitStack()
        recording.count_reader(1)
        self._stack.callback(recording.count_reader, -1)
        self._stack.enter_context(request.on_disconnect(self._leave, lambda: None))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._is_late:
            self._is_late = False
            return b""
        data = self._recording.read(self._offset, lambda: self._is_open)
        if not data:
            raise StopIteration
        self._offset += len(data)
        return data

    def close(self) -> None:
        """The connection has ended, or its client has left."""
        self._stack.close()

    def _leave(self) -> None:
        self._is_open = False
        self._recording.wake()


class Recordings:
    """All of them, by key and conversation, in the order in which they began."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # protects _kept
        self._kept: dict[tuple[str, str], Recording] = {}

    def begin(self, request: Request, id_: str, make: Callable[[], Source], headers: dict[str, str]) -> EventStream:
        """A stream that is kept. The conversation's latest one ends where it is. What `make` raises is the answer, and
        so is an error before the first byte."""
        key = request.key_id, id_
        recording = Recording({"Content-Type": headers["Content-Type"], "X-Conversation-Id": id_}, self._clock)
        self._add(key, recording)
        share = memory.current()
        own = share and share.another()
        memory.use(own)
        try:
            recording.begin(make())
        except BaseException:
            self._forget(key, recording)
            raise
        finally:
            memory.use(share)
        reader = Reader(recording, request)
        threading.Thread(target=inherit(self._write), args=(key, recording, own), name="stream", daemon=True).start()
        return EventStream(reader, {**headers, **recording.headers})

    def find(self, key_id: str, id_: str) -> Recording:
        """The stream of a conversation; ApiError 404 if there is none that this key began."""
        with self._lock:
            self._expire()
            recording = self._kept.get((key_id, id_))
        if recording is None:
            raise ApiError(404, "Stream not found or expired")
        return recording

    def matching(self, key_id: str, ids: list[str]) -> list[tuple[str, Recording]]:
        """Those of these conversations, also under the names `ID::...` that they have with several models."""
        starts = tuple(id_ + "::" for id_ in ids)
        with self._lock:
            self._expire()
            return [
                (name, recording)
                for (owner, name), recording in self._kept.items()
                if owner == key_id and (name in ids or name.startswith(starts))
            ]

    def stop(self, key_id: str, id_: str) -> None:
        """Forget a stream, and let it end with what there is."""
        with self._lock:
            recording = self._kept.pop((key_id, id_), None)
        if recording is not None:
            recording.finish()

    def _write(self, key: tuple[str, str], recording: Recording, share: memory.Share | None) -> None:
        memory.use(share)
        recording.write()
        if share is not None:
            share.close()
        if not recording.n_bytes:  # its only reader has been told why
            self._forget(key, recording)

    def _forget(self, key: tuple[str, str], recording: Recording) -> None:
        with self._lock:
            if self._kept.get(key) is recording:
                del self._kept[key]

    def _add(self, key: tuple[str, str], recording: Recording) -> None:
        """ApiError 503 if there is no room: all that there may be are being written."""
        with self._lock:
            self._expire()
            before = self._kept.pop(key, None)
            own = [name for name in self._kept if name[0] == key[0]]
            for most, names in ((MAX_OF_KEY, own), (MAX_STREAMS, list(self._kept))):
                if len(names) >= most:
                    done = next((name for name in names if self._kept[name].is_done), None)
                    if done is None:
                        raise ApiError(
                            503,
                            f"{len(names)} streams that can be taken up again are being written; try later",
                            headers={"Retry-After": "5"},
                            reason="queue_full",
                        )
                    del self._kept[done]
            self._kept[key] = recording
        if before is not None:
            before.finish()

    def _expire(self) -> None:
        now = self._clock()
        for key in [key for key, one in self._kept.items() if one.is_done and now - one.t_completed > KEPT_S]:
            del self._kept[key]


def conversation_id(request: Request) -> str:
    """What the client calls the conversation whose stream is to be kept, "" if none is. ApiError 400 for what can't be
    one."""
    id_ = request.headers.get("x-conversation-id", "")
    return _checked("X-Conversation-Id", id_) if id_ else ""


def _checked(name: str, id_: str) -> str:
    if not ID.fullmatch(id_):
        raise ApiError(400, f"{name}: give 1 to 512 printable ASCII characters")
    return id_


class StreamHandlers:
    """GET and DELETE /v1/stream, POST /v1/streams/lookup. Another key's streams are as unknown as those that are
    gone."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings

    def read(self, request: Request) -> EventStream:
        """What is there from the byte `from` on, and what comes."""
        recording = self._recordings.find(request.key_id, self._id(request))
        text = request.query.get("from", "0")
        if not OFFSET.fullmatch(text):
            raise ApiError(400, "from: give the number of bytes that you have")
        recording.check(int(text))
        return EventStream(Reader(recording, request, int(text), is_late=True), dict(recording.headers))

    def stop(self, request: Request) -> Response:
        """The text ends where it is, and its stream is forgotten; no error if there is none."""
        self._recordings.stop(request.key_id, self._id(request))
        return Response(204)

    def lookup(self, request: Request) -> Response:
        """Which of these conversations have a stream."""
        body: Any = request.json_object()
        ids = body.get("conversation_ids")
        if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
            raise ApiError(400, "conversation_ids: give a list of strings")
        if len(ids) > MAX_IDS:
            raise ApiError(400, f"conversation_ids: more than {MAX_IDS}")
        found = self._recordings.matching(request.key_id, [id_ for id_ in ids if id_])
        return LOOKUP.reply(
            [
                {
                    "conversation_id": name,
                    "is_done": one.is_done,
                    "total_bytes": one.n_bytes,
                    "started_at": one.started_at,
                    "completed_at": one.completed_at,
                }
                for name, one in found
            ],
            body,
        )

    @staticmethod
    def _id(request: Request) -> str:
        return _checked("conv_id", request.query.get("conv_id", ""))
