"""Resumable streams: their bytes are kept for a while, so that a client can continue after its connection broke.

If a request for a stream has the header `X-Conversation-Id`, a thread `stream` writes the answer into a `Recording`,
and the connection only reads from it. A broken connection doesn't end the answer, and GET /v1/stream continues at any
kept byte. Routes, header and fields are llama-server's. Of each conversation of a key, only the latest stream is kept.

Number and size of streams are bounded; a long stream loses its beginning.

Way not taken: event ids and `Last-Event-ID`. Not every dialect sends server-sent events, and a connection may break
inside an event. A client always knows how many bytes it has received.
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

MAX_STREAMS, MAX_OF_KEY = 32, 16  # kept streams, of all keys and of one
MAX_BYTES = 4 << 20  # bytes kept of a stream; a quarter more may come before its beginning is cut off
KEPT_S = 300.0  # how long a finished stream is kept
ALONE_S = 3600.0  # how long a stream goes on without a reader
READ_BYTES = 1 << 16  # most bytes that a reader takes at a time
MAX_IDS = 1000  # conversations in one lookup
ID = re.compile(r"[ -~]{1,512}")
OFFSET = re.compile(r"[0-9]{1,15}")

log = get_logger("api")


class Source(Protocol):
    """The answer that a recording is made of."""

    def __iter__(self) -> Iterator[bytes]:
        """The chunks."""

    def finish(self) -> bool:
        """End the answer with the text so far. Any thread may call this."""

    def close(self) -> None:
        """Give the answer up."""


class Recording:
    """The bytes of one stream, and its answer's headers. One thread writes; readers begin at any kept byte."""

    def __init__(self, headers: dict[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self.headers = headers
        self.started_at, self.completed_at = int(time.time()), 0
        self.t_completed = clock()
        self._clock = clock
        self._changed = threading.Condition()  # its lock protects the fields below
        self._data = bytearray()
        self._n_lost = 0  # bytes before the start of `_data`
        self._n_readers = 0
        self._t_left = clock()
        self._source: Source | None = None
        self._is_finished = False
        self._error: ApiError | None = None

    @property
    def is_done(self) -> bool:
        return self.completed_at > 0

    @property
    def n_bytes(self) -> int:
        """Bytes written so far, including those no longer kept."""
        return self._n_lost + len(self._data)

    def begin(self, source: Source) -> None:
        with self._changed:
            self._source, is_finished = source, self._is_finished
        if is_finished:
            source.finish()

    def finish(self) -> None:
        with self._changed:
            self._is_finished, source = True, self._source
        if source is not None:
            source.finish()

    def write(self) -> None:
        """Write the whole stream. The main function of the thread `stream`."""
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
            log.exception("a resumable stream failed")
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
        """ApiError 400 if the stream can't be read from this byte on."""
        with self._changed:
            if offset > self.n_bytes:
                raise ApiError(400, f"from: the stream has {self.n_bytes} bytes so far")
            if offset < self._n_lost:
                raise ApiError(400, f"Stream offset lost, please restart: it starts at byte {self._n_lost} now")

    def read(self, offset: int, is_open: Callable[[], bool]) -> bytes:
        """Wait for the next bytes from `offset` on; b"" at the end. Raises the stream's ApiError if the stream failed
        before its first byte. ApiError 499 if it failed later, if bytes are lost, or if the reader has left."""
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
        with self._changed:
            self._changed.notify_all()

    def count_reader(self, n: int) -> None:
        """Add `n` (1 or -1) to the number of readers."""
        with self._changed:
            self._n_readers += n
            self._t_left = self._clock()


class Reader:
    """The chunks of a recording for one connection. With `is_late` the answer's head is sent before the first byte
    exists."""

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
        self._stack.close()

    def _leave(self) -> None:
        self._is_open = False
        self._recording.wake()


class Recordings:
    """All recordings by key and conversation, the oldest first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # protects _kept
        self._kept: dict[tuple[str, str], Recording] = {}

    def begin(self, request: Request, id_: str, make: Callable[[], Source], headers: dict[str, str]) -> EventStream:
        """Start a recorded stream, and end an earlier one of the conversation. Raises the errors of `make`. An error
        before the first byte is raised when the answer is read."""
        key = request.key_id, id_
        recording = Recording({"Content-Type": headers["Content-Type"], "X-Conversation-Id": id_}, self._clock)
        self._add(key, recording)
        share = memory.get_current()
        own = share and share.make_another()
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
        """The stream of a conversation. ApiError 404 if this key has none."""
        with self._lock:
            self._expire()
            recording = self._kept.get((key_id, id_))
        if recording is None:
            raise ApiError(404, "Stream not found or expired")
        return recording

    def find_matching(self, key_id: str, ids: list[str]) -> list[tuple[str, Recording]]:
        """The streams of these conversations, also of those named `ID::...` by a client that uses several models."""
        starts = tuple(id_ + "::" for id_ in ids)
        with self._lock:
            self._expire()
            return [
                (name, recording)
                for (owner, name), recording in self._kept.items()
                if owner == key_id and (name in ids or name.startswith(starts))
            ]

    def stop(self, key_id: str, id_: str) -> None:
        """End a stream with its text so far, and forget it."""
        with self._lock:
            recording = self._kept.pop((key_id, id_), None)
        if recording is not None:
            recording.finish()

    def _write(self, key: tuple[str, str], recording: Recording, share: memory.Share | None) -> None:
        memory.use(share)
        recording.write()
        if share is not None:
            share.close()
        if not recording.n_bytes:  # it failed at once, and its only reader has received the error
            self._forget(key, recording)

    def _forget(self, key: tuple[str, str], recording: Recording) -> None:
        with self._lock:
            if self._kept.get(key) is recording:
                del self._kept[key]

    def _add(self, key: tuple[str, str], recording: Recording) -> None:
        """Add a recording. ApiError 503 if too many are being written already."""
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
                            f"{len(names)} resumable streams are being written already; try again later",
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


def read_conversation_id(request: Request) -> str:
    """The conversation whose stream is to be kept; "" for none. ApiError 400 for an invalid id."""
    id_ = request.headers.get("x-conversation-id", "")
    return _check_id("X-Conversation-Id", id_) if id_ else ""


def _check_id(name: str, id_: str) -> str:
    if not ID.fullmatch(id_):
        raise ApiError(400, f"{name}: 1 to 512 printable ASCII characters are required")
    return id_


class StreamHandlers:
    """Handlers of GET and DELETE /v1/stream and POST /v1/streams/lookup. To a client, streams of another key don't
    exist."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings

    def read(self, request: Request) -> EventStream:
        """The stream from the byte `from` on."""
        recording = self._recordings.find(request.key_id, self._read_id(request))
        text = request.query.get("from", "0")
        if not OFFSET.fullmatch(text):
            raise ApiError(400, "from: the number of bytes received so far is required")
        recording.check(int(text))
        return EventStream(Reader(recording, request, int(text), is_late=True), dict(recording.headers))

    def stop(self, request: Request) -> Response:
        """End and forget a stream. A missing stream is no error."""
        self._recordings.stop(request.key_id, self._read_id(request))
        return Response(204)

    def look_up(self, request: Request) -> Response:
        body: Any = request.read_json_object()
        ids = body.get("conversation_ids")
        if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
            raise ApiError(400, "conversation_ids: a list of strings is required")
        if len(ids) > MAX_IDS:
            raise ApiError(400, f"conversation_ids: at most {MAX_IDS} are allowed")
        found = self._recordings.find_matching(request.key_id, [id_ for id_ in ids if id_])
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
    def _read_id(request: Request) -> str:
        return _check_id("conv_id", request.query.get("conv_id", ""))
