"""What commands ask a server: its models, and answers of a chat as they are written. HTTP of the standard library.

Main thread. The server may be any that speaks OpenAI's chat; nothing that it says is trusted with the terminal.
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

CONNECT_S = 10.0
MOST = 64 << 20
TEXT, THOUGHT = "text", "thought"


def visible(text: str) -> str:
    """A text without what could steer the terminal: control characters but line breaks and tabs."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


@record(frozen=True)
class Running:
    """A model of a server. `state` is as /models has it, `context` in tokens, as a text."""

    name: str
    state: str
    size: int
    context: str


@record(frozen=True)
class Peer:
    """A server. `url` has no slash at its end. PassingError whenever it doesn't do what it is asked."""

    url: str
    key: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Peer:
        """The one that the options name."""
        return cls((settings.url or f"http://127.0.0.1:{settings.port}").rstrip("/"), next(iter(settings.api_key), ""))

    def models(self) -> list[Running]:
        """Its models, in its order."""
        answer = self._json("GET", "/models", None)
        found = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise PassingError(f"{self.url} doesn't list models as llama.cpp's servers do")
        return [_running(model) for model in found if isinstance(model, dict)]

    def chat(self, body: dict[str, Any]) -> Generator[tuple[str, str]]:
        """(`TEXT` or `THOUGHT`, a piece of it) as the model writes; ends the connection when it is left."""
        connection, response = self._send("POST", "/v1/chat/completions", {**body, "stream": True})
        try:
            while line := response.readline(MOST):
                field, _, value = line.decode("utf-8", "replace").partition(":")
                if field != "data" or value.strip() == "[DONE]":
                    continue
                yield from _pieces(json.loads(value))
        except (OSError, HTTPException, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PassingError(f"{self.url} broke the answer off: {error or type(error).__name__}") from None
        finally:
            connection.close()

    def _json(self, method: str, path: str, body: object) -> Any:
        connection, response = self._send(method, path, body)
        try:
            return json.loads(response.read(MOST))
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            raise PassingError(f"{self.url}{path}: {error}") from None
        finally:
            connection.close()

    def _send(self, method: str, path: str, body: object) -> tuple[HTTPConnection, HTTPResponse]:
        """The beginning of an answer that is a success."""
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
            raise PassingError(f"no server answers at {self.url} ({error or type(error).__name__})") from None
        if response.status != 200:
            message = _message(response.read(MOST)) or f"it answers {response.status} {response.reason}"
            connection.close()
            raise PassingError(visible(message))
        return connection, response


def _message(data: bytes) -> str:
    """What an error's body says."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _pieces(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "error" in event:
        raise PassingError(visible(_message(json.dumps(event).encode()) or "the answer ended with an error"))
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        for kind, name in ((THOUGHT, "reasoning_content"), (TEXT, "content")):
            if isinstance(delta.get(name), str) and delta[name]:
                yield kind, delta[name]


def _running(model: dict[str, Any]) -> Running:
    status, meta, size = model.get("status"), model.get("meta"), model.get("size")
    meta = meta if isinstance(meta, dict) else {}
    size = size if isinstance(size, int) else meta.get("size")
    return Running(
        visible(str(model.get("id"))),
        visible(str(status.get("value") if isinstance(status, dict) else "loaded")),
        size if isinstance(size, int) else 0,
        str(meta.get("n_ctx") or meta.get("n_ctx_train") or ""),
    )
