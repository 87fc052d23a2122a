"""The client of a measured server: sends completions over HTTP and notes when their events arrive.

Runs in the measuring process, with a thread for each completion. Imports the standard library only. The client shares
the machine with the server, so while answers arrive it only counts events and notes times; JSON is parsed at the end.
Works with any server that has llama-server's routes.

Way not taken: an event loop. Threads with http.client cost a few microseconds more per event, the same for every
server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import NamedTuple

READ_BYTES = 1 << 16
PATIENCE_S = 1800.0  # time limit of a socket operation
EVENT_END = b"\n\n"

clock = time.perf_counter


class BenchError(Exception):
    """A server or a metric can't be measured. The text is one line."""


class Ask(NamedTuple):
    """A completion of `n_predict` tokens. `fields` are additional request fields."""

    prompt: str
    n_predict: int
    fields: dict
    stream: bool = True


class Answer(NamedTuple):
    """The result of a completion. Times are in seconds since the common start of all requests. `arrivals` are the times
    of a stream's events, except for the last one, which has no token. `n_evaluated` of the `n_prompt` prompt tokens
    were computed, the others cached."""

    arrivals: tuple
    ended: float
    n_prompt: int
    n_evaluated: int
    n_predicted: int
    text: str


class HttpPeer:
    """A running server. Its failures raise BenchError."""

    def __init__(self, name: str, host: str, port: int, key: str = "") -> None:
        self.name = name
        self._host, self._port = host, port
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def generate(self, asks: list) -> list:
        """Run all of `asks` at once. Each has its own connection, opened before the clock starts."""
        started = [0.0]
        answers: list = [None] * len(asks)
        troubles: list = []
        gate = threading.Barrier(len(asks), action=lambda: started.__setitem__(0, clock()))

        def run(i: int) -> None:
            try:
                connection = self._open()
                try:
                    gate.wait()
                    answers[i] = self._complete(connection, asks[i], started[0])
                finally:
                    connection.close()
            except threading.BrokenBarrierError:
                pass  # another request failed before the start, and reports that itself
            except (OSError, HTTPException, ValueError, KeyError, BenchError) as error:
                troubles.append(error)
                gate.abort()

        threads = [threading.Thread(target=run, args=(i,), name=f"ask-{i}", daemon=True) for i in range(len(asks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if troubles:
            raise self._make_failure("/completion", troubles[0])
        return answers

    def read_along(self, ask: Ask) -> BackgroundReader:
        """Start a stream that a thread reads while other requests run."""
        return BackgroundReader(self, ask)

    def tokenize(self, text: str, n_times: int = 1) -> tuple:
        """(tokens, seconds) of `n_times` requests, one after the other on one connection."""
        connection = self._open()
        body = json.dumps({"content": text}).encode()
        try:
            begun = clock()
            for _ in range(n_times):
                answer = self._check_response(self._post(connection, "/tokenize", body), "/tokenize").read()
            seconds = clock() - begun
            return json.loads(answer)["tokens"], seconds
        except (OSError, HTTPException, ValueError, KeyError) as error:
            raise self._make_failure("/tokenize", error) from None
        finally:
            connection.close()

    def tokenize_at_once(self, text: str, n_times: int, n_connections: int) -> float:
        """Seconds until each of `n_connections` has had the answers to `n_times` requests."""
        with ThreadPoolExecutor(n_connections) as pool:
            begun = clock()
            list(pool.map(lambda _: self.tokenize(text, n_times), range(n_connections)))
            return clock() - begun

    def embed(self, texts: list) -> float:
        """Seconds for one request with the embeddings of all `texts`."""
        connection = self._open()
        try:
            begun = clock()
            answer = self._check_response(
                self._post(connection, "/v1/embeddings", json.dumps({"input": texts}).encode()), "/v1/embeddings"
            ).read()
            seconds = clock() - begun
            if len(json.loads(answer)["data"]) != len(texts):
                raise BenchError(f"{self.name}: /v1/embeddings didn't answer all texts")
            return seconds
        except (OSError, HTTPException, ValueError, KeyError) as error:
            raise self._make_failure("/v1/embeddings", error) from None
        finally:
            connection.close()

    def list_models(self) -> list:
        connection = self._open()
        try:
            connection.request("GET", "/v1/models", headers=self._headers)
            answer = self._check_response(connection.getresponse(), "/v1/models").read()
            return [model["id"] for model in json.loads(answer)["data"]]
        except (OSError, HTTPException, ValueError, KeyError) as error:
            raise self._make_failure("/v1/models", error) from None
        finally:
            connection.close()

    def get_health(self) -> int:
        """The status of GET /health; 0 if nothing listens."""
        connection = HTTPConnection(self._host, self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except (OSError, HTTPException):
            return 0
        finally:
            connection.close()

    def open_stream(self, ask: Ask) -> tuple:
        """(connection, response) of a stream whose head has arrived."""
        connection = self._open()
        try:
            return connection, self._check_response(
                self._post(connection, "/completion", _make_body(ask)), "/completion"
            )
        except BaseException:
            connection.close()
            raise

    def _open(self) -> HTTPConnection:
        connection = HTTPConnection(self._host, self._port, timeout=PATIENCE_S)
        connection.connect()
        return connection

    def _complete(self, connection: HTTPConnection, ask: Ask, started: float) -> Answer:
        response = self._check_response(self._post(connection, "/completion", _make_body(ask)), "/completion")
        if not ask.stream:
            final = json.loads(response.read())
            return _answer(final, final["content"], (), clock() - started)
        arrivals, raw = read_events(response)
        ended = clock() - started
        events = parse_events(raw)
        final = next((event for event in events if event.get("stop")), None)
        if final is None or "error" in final:
            raise BenchError(f"a stream ended with {events[-1:] or 'nothing'}")
        text = "".join(event["content"] for event in events)
        # the last event has no token, only the summary
        return _answer(final, text, tuple(at - started for at in arrivals[: len(events) - 1]), ended)

    def _post(self, connection: HTTPConnection, path: str, body: bytes) -> HTTPResponse:
        connection.request("POST", path, body, self._headers)
        return connection.getresponse()

    def _check_response(self, response: HTTPResponse, path: str) -> HTTPResponse:
        if response.status != 200:
            said = response.read(300).decode("utf-8", "replace")
            raise BenchError(f"{self.name}: {path} answered {response.status}: {said}")
        return response

    def _make_failure(self, path: str, error: Exception) -> BenchError:
        if isinstance(error, BenchError):
            return error
        return BenchError(f"{self.name}: {path} failed: {type(error).__name__}: {error}")


class BackgroundReader:
    """A stream read by its own thread. `arrivals` grows by the time of each event."""

    def __init__(self, peer: HttpPeer, ask: Ask) -> None:
        self.arrivals: list = []
        self._stop = threading.Event()
        self._connection, self._response = peer.open_stream(ask)
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def wait_for(self, n_events: int, patience_s: float = 600.0) -> None:
        """Wait until this many events have arrived, or the stream has ended. BenchError after `patience_s`."""
        deadline = clock() + patience_s
        while len(self.arrivals) < n_events and self._thread.is_alive():
            if clock() > deadline:
                raise BenchError(f"a stream had only {len(self.arrivals)} events in {patience_s:.0f} s")
            time.sleep(0.002)

    def finish(self) -> list:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._connection.close()
        return self.arrivals

    def _run(self) -> None:
        try:
            read_events(self._response, self.arrivals, self._stop.is_set)
        except (OSError, HTTPException):
            pass  # the arrivals so far are the result


def read_events(
    response: HTTPResponse, arrivals: list | None = None, is_enough: Callable[[], bool] = lambda: False
) -> tuple:
    """(a time for each complete event, all bytes) of an event stream, read until it ends or `is_enough`."""
    arrivals = [] if arrivals is None else arrivals
    parts: list = []
    held = b""
    while not is_enough():
        data = response.read1(READ_BYTES)
        if not data:
            break
        now = clock()
        parts.append(data)
        n_events = (held + data).count(EVENT_END)
        arrivals.extend([now] * n_events)
        # an event's two line ends may arrive separately, and must not be counted twice
        held = b"\n" if data.endswith(b"\n") and not (held + data).endswith(EVENT_END) else b""
    return arrivals, b"".join(parts)


def parse_events(raw: bytes) -> list:
    lines = (line[6:] for line in raw.split(b"\n") if line.startswith(b"data: "))
    return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]


def _make_body(ask: Ask) -> bytes:
    return json.dumps(
        {
            "prompt": ask.prompt,
            "n_predict": ask.n_predict,
            "stream": ask.stream,
            "cache_prompt": True,
            "ignore_eos": True,
            "sse_ping_interval": -1,  # comments would be counted as events
            **ask.fields,
        }
    ).encode()


def _answer(final: dict, text: str, arrivals: tuple, ended: float) -> Answer:
    n_prompt = final["tokens_evaluated"]
    n_evaluated = final.get("timings", {}).get("prompt_n", n_prompt)
    return Answer(arrivals, ended, n_prompt, n_evaluated, final["tokens_predicted"], text)
