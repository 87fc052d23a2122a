"""Sends random requests that require a tool call to a server, and checks the answers.

`test_required_calls` runs some of them. By hand it can run thousands, against any server with OpenAI's API:

    python -m tests.e2e.required_calls --url http://127.0.0.1:8080 --count 1000
    python -m tests.e2e.required_calls --model m.gguf --templates FOLDER --count 10000

It uses several threads, each with one request at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import requests

from tests.random_calls import Fault, body_of, judge
from tests.support import NO_PROXY, events, start_server

PATIENCE = 600.0  # seconds for one answer


def put_together(chunks: Iterator[dict[str, Any] | str]) -> dict[str, Any]:
    """The choice that a stream adds up to; raises Fault where its pieces don't follow the protocol."""
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    reason, is_done = None, False
    for chunk in chunks:
        is_done = chunk == "[DONE]"
        if isinstance(chunk, str):
            continue
        if "error" in chunk:
            raise Fault("error", chunk)
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] = (message["content"] or "") + (delta.get("content") or "") or None
            add_calls(message["tool_calls"], delta.get("tool_calls") or [])
            reason = choice["finish_reason"] or reason
    if not is_done:
        raise Fault("stream", "it ended without [DONE]")
    return {"message": message, "finish_reason": reason}


def add_calls(calls: list[dict[str, Any]], deltas: Sequence[dict[str, Any]]) -> None:
    for delta in deltas:
        function = delta.get("function") or {}
        if delta["index"] == len(calls):
            if not delta.get("id") or not function.get("name") or delta.get("type") != "function":
                raise Fault("stream", f"a call begins without its head: {delta}")
            calls.append(
                {"id": delta["id"], "type": "function", "function": {"name": function["name"], "arguments": ""}}
            )
        elif delta["index"] != len(calls) - 1 or delta.get("id") or function.get("name"):
            raise Fault("stream", f"not a part of call {len(calls) - 1}: {delta}")
        calls[-1]["function"]["arguments"] += function.get("arguments") or ""


def ask(url: str, body: dict[str, Any]) -> str:
    """Send a request and judge its answer: "call" or "length"; raises Fault."""
    try:
        options: dict[str, Any] = {"timeout": PATIENCE, "proxies": NO_PROXY, "stream": body["stream"]}
        with requests.post(url + "/v1/chat/completions", json=body, **options) as answer:
            if answer.status_code != 200:
                raise Fault(f"status {answer.status_code}", answer.text[:2000])
            return judge(body, put_together(events(answer)) if body["stream"] else answer.json()["choices"][0])
    except requests.RequestException as error:
        raise Fault("connection", error) from None


# ------------------------------------------------------------------------------------------------ running


@dataclass
class Tally:
    """What came of many requests; `faults` are (seed, fault)."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, Fault]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, outcome: str, seed: str, fault: Fault | None = None) -> None:
        with self._lock:
            self.counts[outcome] += 1
            if fault:
                self.faults.append((seed, fault))

    def __str__(self) -> str:
        return ", ".join(f"{name} {n}" for name, n in self.counts.most_common())


def run(
    url: str,
    seeds: Sequence[str],
    tally: Tally,
    *,
    n_threads: int = 4,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body,
    is_stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Ask `url` for each seed; `change` may alter each request."""

    def one(seed: str) -> None:
        if is_stopping():
            return
        try:
            tally.add(ask(url, change(body_of(seed))), seed)
        except Fault as fault:
            tally.add(fault.kind, seed, fault)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(one, seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="a server that runs; otherwise --model is served, once for each template")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--templates", type=Path, help="a folder of *.jinja; otherwise the model's own")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="the number of the first request")
    parser.add_argument("--arguments", default="", help="more options for the server")
    parser.add_argument("--merge", default="{}", help="JSON fields for each request")
    options = parser.parse_args()
    extra, total = json.loads(options.merge), Tally()
    paths = sorted(options.templates.glob("*.jinja")) if options.templates else [None]
    for i, path in enumerate(paths):
        name, tally = path.stem if path else "own", Tally()
        numbers = islice(range(options.first, options.first + options.count), i, None, len(paths))
        seeds = [f"{number}" for number in numbers]
        change: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: {**body, **extra}  # noqa: E731
        if options.url:
            run(options.url, seeds, tally, n_threads=options.threads, change=change)
        else:
            arguments = ["-m", options.model, "-np", options.threads, *options.arguments.split()]
            with start_server([*arguments, *(["--chat-template-file", path] if path else [])]) as server:
                run(server.url, seeds, tally, n_threads=options.threads, change=change)
        print(f"{name}: {tally}", flush=True)
        for seed, fault in tally.faults:
            print(f"  seed {seed}: {str(fault)[:1500]}", flush=True)
        total.counts += tally.counts
        total.faults += tally.faults
    print(f"all: {total}")
    sys.exit(1 if total.faults else 0)


if __name__ == "__main__":
    main()
