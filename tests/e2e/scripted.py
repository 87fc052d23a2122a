"""A scripted server for browser tests: it serves the real page, and answers that a test defines word by word.

Runs in the test process, with a thread for each connection. Answers that would need a model (a tool call, reasoning, an
answer that breaks off) are lists here. Requests of the page are kept for the test. Imports pytest and the standard
library. Way not taken: scripting the fake backend. Its answers pass the chat template and the parsers, so a test of the
page could fail because of those.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support import PATIENCE, ROOT

TYPES = {".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml", ".webmanifest": "application/manifest+json"}
CLOSE = object()
"""In an answer: the connection breaks here."""
PROPS = {
    "default_generation_settings": {"n_ctx": 4096, "temperature": 0.8, "top_k": 40},
    "model_alias": "scripted",
    "model_path": "/models/scripted.gguf",
    "modalities": {"vision": False, "audio": False},
    "endpoint_slots": False,
    "endpoint_metrics": False,
    "endpoint_slot_actions": False,
    "build_info": "b1",
}


def text(*pieces: str) -> list[dict[str, Any]]:
    """Chunks with pieces of text."""
    return [delta(content=piece) for piece in pieces]


def likely(*pieces: str) -> list[dict[str, Any]]:
    """Chunks of a chat's answer, one for each token, with its probability and an alternative."""
    chunks = text(*pieces)
    for piece, chunk in zip(pieces, chunks):
        top = [{"token": piece, "logprob": -0.5}, {"token": " other", "logprob": -2.0}]
        chunk["choices"][0]["logprobs"] = {"content": [{"token": piece, "logprob": -0.5, "top_logprobs": top}]}
    return chunks


def thought(*pieces: str) -> list[dict[str, Any]]:
    """Chunks with pieces of reasoning."""
    return [delta(reasoning_content=piece) for piece in pieces]


def call(index: int, name: str, *arguments: str) -> list[dict[str, Any]]:
    """Chunks with one call: its head, then pieces of its arguments."""
    head = {"index": index, "id": f"call-{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    parts = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
    return [delta(tool_calls=[part]) for part in [head, *parts]]


def tokens(*pieces: str) -> list[dict[str, Any]]:
    """Chunks of /completion, one for each token, with its probability and an alternative."""
    return [
        {
            "content": piece,
            "stop": False,
            "completion_probabilities": [
                {"token": piece, "prob": 0.6, "top_probs": [{"token": piece, "prob": 0.6}, {"token": "x", "prob": 0.2}]}
            ],
        }
        for piece in pieces
    ]


def last() -> dict[str, Any]:
    """The last chunk of /completion."""
    return {"content": "", "stop": True, "timings": timings(3, 100.0)}


def delta(**fields: Any) -> dict[str, Any]:
    """One chunk in OpenAI's shape."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def end(reason: str = "stop", n: int = 0, ms: float = 100.0) -> dict[str, Any]:
    """The last chunk; with `n` tokens in `ms` milliseconds as its timings."""
    last: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    if n:
        last["timings"] = timings(n, ms)
    return last


def timings(n: int, ms: float) -> dict[str, Any]:
    """What is measured so far."""
    return {
        "predicted_n": n,
        "predicted_ms": ms,
        "predicted_per_second": 1000 * n / ms,
        "prompt_n": 5,
        "prompt_ms": 5.0,
        "cache_n": 0,
    }


class Scripted:
    """The server; a context manager. `answers` are lists of chunks, one list for each request for text; an Event in a
    list is waited for, CLOSE breaks the connection, and a tuple (status, body) instead of a list refuses."""

    def __init__(self, **props: Any) -> None:
        self.props = {**PROPS, **props}
        self.answers: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []  # of these requests
        nothing_lost = {"sums": {}, "hints": [], "requests": []}
        # path -> what a GET or POST of it gets, where it is something else
        self.replies: dict[str, Any] = {"/debug/cache": nothing_lost}
        self.told: list[tuple[str, Any]] = []  # path and body of each POST that `replies` answers
        self.stream_ids: list[str | None] = []  # what each of these requests called its stream
        self.streams: dict[str, list[Any]] = {}  # the streams that can be taken up again, from their beginnings
        self.ended: list[str] = []  # those that nobody wants the rest of
        self.key = ""
        outer = self

        class Handler(_Handler):
            server_script = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="scripted", daemon=True).start()

    def will_answer(self, *answers: Any) -> None:
        """Queue answers."""
        self.answers.extend(answers)

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A scripted server."""
    with Scripted() as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    server_script: Scripted

    def do_GET(self) -> None:
        script, path = self.server_script, self.path.split("?")[0]
        if path == "/v1/stream":
            self._stream(script.streams[self.path.split("conv_id=")[1]])
        elif path in script.replies:
            self._reply(script.replies[path])
        elif path == "/health":
            self._json(200, {"status": "ok", "slots_idle": 1, "slots_processing": 0})
        elif path in ("/props", "/v1/models", "/lora-adapters", "/slots"):
            if self._has_key():
                models = {"data": [{"id": script.props["model_alias"], "meta": None}]}
                self._json(200, {"/props": script.props, "/v1/models": models}.get(path, []))
        else:
            self._file("index.html" if path == "/" else path[1:])

    def do_POST(self) -> None:
        script = self.server_script
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null")
        if not self._has_key():
            return
        if self.path == "/v1/streams/lookup":
            ids = body["conversation_ids"]
            self._json(200, [{"conversation_id": id_} for id_ in ids if id_ in script.streams])
            return
        if self.path in script.replies:
            script.told.append((self.path, body))
            self._reply(script.replies[self.path])
            return
        script.requests.append(body)
        script.paths.append(self.path)
        script.stream_ids.append(self.headers["X-Conversation-Id"])
        answer = script.answers.pop(0) if script.answers else [*text("ok"), end()]
        if isinstance(answer, tuple):
            self._json(*answer)
        else:
            self._stream(answer)

    def do_DELETE(self) -> None:
        self.server_script.ended.append(self.path.split("conv_id=")[1])
        self._send(204, "text/plain", b"")

    def _has_key(self) -> bool:
        key = self.server_script.key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._json(401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}})
        return False

    def _stream(self, chunks: Iterable[Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for chunk in chunks:
                if chunk is CLOSE:
                    return
                if isinstance(chunk, threading.Event):
                    assert chunk.wait(PATIENCE)
                    continue
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass  # the page has stopped the answer

    def _file(self, name: str) -> None:
        file = ROOT / "public" / name
        if "/" in name or not file.is_file():
            self._json(404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}})
            return
        body = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", TYPES.get(file.suffix, "text/javascript") + "; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reply(self, reply: Any) -> None:
        if isinstance(reply, tuple):
            self._json(*reply)
        elif isinstance(reply, str):
            self._send(200, "text/plain", reply.encode())
        else:
            self._json(200, reply)

    def _json(self, status: int, body: Any) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: tests read what they need from `requests`."""
