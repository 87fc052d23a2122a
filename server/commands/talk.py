"""Asks a server for its models and for streamed chat answers, with the standard library's HTTP client. Main thread.

The server may be any with OpenAI's chat API. Its output is not trusted: `make_visible` removes control characters from
names, states and error messages, and in `run` from answers.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from server.errors import PassingError
from server.options.groups import Settings
from server.options.parser import OptionError
from server.records import record

CONNECT_S = 10.0  # seconds; longest wait for a connection
MOST = 64 << 20  # bytes of an answer, or of a line of a stream
TEXT, THOUGHT = "text", "thought"


def make_visible(text: str) -> str:
    """The text without control characters. Line breaks and tabs stay."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


@record(frozen=True)
class Running:
    """A model of a server. `state` is the value from /models; `size` is in bytes, 0 if unknown; `context` is in tokens,
    as text, "" if unknown."""

    name: str
    state: str
    size: int
    context: str


@record(frozen=True)
class Peer:
    """A server. `url` has no slash at its end. PassingError if the server fails or answers something unexpected."""

    url: str
    key: str = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> Peer:
        return cls((settings.url or f"http://127.0.0.1:{settings.port}").rstrip("/"), next(iter(settings.api_key), ""))

    def list_models(self) -> list[Running]:
        answer = self._fetch_json("GET", "/models", None)
        found = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise PassingError(f"{self.url} doesn't list models in llama-server's format")
        return [_read_running(model) for model in found if isinstance(model, dict)]

    def chat(self, body: dict[str, Any]) -> Generator[tuple[str, str]]:
        """Yield pieces of the answer as (`TEXT` or `THOUGHT`, piece). Closing the generator ends the connection."""
        connection, response = self._send("POST", "/v1/chat/completions", {**body, "stream": True})
        try:
            while line := response.readline(MOST):
                field, _, value = line.decode("utf-8", "replace").partition(":")
                if field != "data" or value.strip() == "[DONE]":
                    continue
                yield from _read_pieces(json.loads(value))
        except (OSError, HTTPException, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PassingError(f"{self.url}: the answer broke off: {error or type(error).__name__}") from None
        finally:
            connection.close()

    def _fetch_json(self, method: str, path: str, body: object) -> Any:
        connection, response = self._send(method, path, body)
        try:
            return json.loads(response.read(MOST))
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            raise PassingError(f"{self.url}{path}: {error}") from None
        finally:
            connection.close()

    def _send(self, method: str, path: str, body: object) -> tuple[HTTPConnection, HTTPResponse]:
        """Send a request and read the head of the answer, which must have the status 200."""
        parts = urlsplit(self.url)
        if not parts.hostname:
            raise OptionError(f"--url: '{self.url}' is not an address such as http://127.0.0.1:8080")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        try:
            connection = kind(parts.hostname, parts.port, timeout=CONNECT_S)
            connection.connect()
            connection.sock.settimeout(None)
            data = None if body is None else json.dumps(body)
            connection.request(method, parts.path + path, data, headers)
            response = connection.getresponse()
        except (OSError, HTTPException, ValueError) as error:
            raise PassingError(f"there is no server at {self.url} ({error or type(error).__name__})") from None
        if response.status != 200:
            message = _read_message(response.read(MOST)) or f"it answered {response.status} {response.reason}"
            connection.close()
            raise PassingError(make_visible(message))
        return connection, response


def _read_message(data: bytes) -> str:
    """The message in the body of an error; "" without one."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _read_pieces(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "error" in event:
        raise PassingError(make_visible(_read_message(json.dumps(event).encode()) or "the answer ended with an error"))
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        for kind, name in ((THOUGHT, "reasoning_content"), (TEXT, "content")):
            if isinstance(delta.get(name), str) and delta[name]:
                yield kind, delta[name]


def _read_running(model: dict[str, Any]) -> Running:
    status, meta, size = model.get("status"), model.get("meta"), model.get("size")
    meta = meta if isinstance(meta, dict) else {}
    size = size if isinstance(size, int) else meta.get("size")
    return Running(
        make_visible(str(model.get("id"))),
        make_visible(str(status.get("value") if isinstance(status, dict) else "loaded")),
        size if isinstance(size, int) else 0,
        make_visible(str(meta.get("n_ctx") or meta.get("n_ctx_train") or "")),
    )
