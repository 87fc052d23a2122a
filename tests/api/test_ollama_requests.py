"""Requests that well-known programs send to Ollama, written anew, with the routes, fields and types of those programs.

Each gets the answer that it expects, and no field is ignored except a larger context. The programs themselves don't run
here; packages that many of them use are tested in `tests/e2e/test_ollama_clients.py`.
"""

from __future__ import annotations

import json

import pytest

from tests.api.conftest import Api
from tests.fakes import FakeBackend
from tests.fakes import answer as answers

TOOL = {
    "type": "function",
    "function": {
        "name": "turn_on",
        "description": "Turns something on.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}
SAYS = [{"role": "user", "content": "Is it late?"}]
TALK = [{"role": "system", "content": "You are kind."}, *SAYS, {"role": "assistant", "content": "No."}, *SAYS]
# the program and what it does, the method, the path, the body
REQUESTS = [
    ("Open WebUI: models", "GET", "/api/tags", None),
    ("Open WebUI: loaded models", "GET", "/api/ps", None),
    ("Open WebUI: version", "GET", "/api/version", None),
    (
        "Open WebUI: chat",
        *("POST", "/api/chat"),
        {"model": "fake:latest", "messages": TALK, "options": {"temperature": 0.7, "num_ctx": 2048}, "stream": True},
    ),
    (
        "Open WebUI: title",
        *("POST", "/api/chat"),
        {"model": "fake:latest", "messages": SAYS, "stream": False, "options": {"num_predict": 1000}},
    ),
    ("Open WebUI: vectors", *("POST", "/api/embed"), {"model": "fake:latest", "input": ["one", "two"]}),
    ("command line: is it there", "HEAD", "/", None),
    (
        "command line: model",
        "POST",
        "/api/show",
        {"name": "fake", "model": "", "system": "", "template": "", "verbose": False, "options": None},
    ),
    ("command line: load", "POST", "/api/generate", {"model": "fake", "prompt": "", "keep_alive": "5m"}),
    (
        "command line: chat",
        *("POST", "/api/chat"),
        {"model": "fake", "messages": SAYS, "format": "", "options": {}, "think": None},
    ),
    ("command line: stop", "POST", "/api/generate", {"model": "fake", "keep_alive": 0}),
    (
        "home automation: chat with tools",
        *("POST", "/api/chat"),
        {
            "model": "fake",
            "messages": [*TALK, {"role": "user", "content": "Light!"}],
            "tools": [TOOL],
            "stream": True,
            "keep_alive": "-1s",
            "options": {"num_ctx": 8192},
            "think": False,
        },
    ),
    (
        "editor: what is written next",
        *("POST", "/api/generate"),
        {
            "model": "fake",
            "prompt": "def f(",
            "raw": True,
            "stream": True,
            "keep_alive": 1800,
            "options": {"temperature": 0.01, "num_predict": 64, "num_ctx": 4096, "stop": ["\n\n", "<s>"], "top_k": 40},
        },
    ),
    (
        "editor: agent",
        *("POST", "/api/chat"),
        {
            "model": "fake",
            "messages": [
                *SAYS,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "turn_on", "arguments": {"name": "light"}}}],
                    "images": None,
                    "thinking": None,
                },
                {"role": "tool", "tool_name": "turn_on", "content": "done"},
            ],
            "tools": [TOOL],
            "stream": True,
            "keep_alive": -1,
            "options": {"num_ctx": 16384, "stop": [], "temperature": 1.0, "top_p": None},
        },
    ),
    (
        "notes: old vectors",
        *("POST", "/api/embeddings"),
        {"model": "fake", "prompt": "one", "keep_alive": "10m", "options": {}},
    ),
]


@pytest.fixture(scope="module")
def talker():
    one = Api(FakeBackend(answers("Yes, it is.", "assistant\n"), n_ctx=8192), ("-a", "fake")).start()
    yield one
    one.stop()
    one.wait_for_threads()


@pytest.mark.parametrize(("what", "method", "path", "body"), REQUESTS, ids=[row[0] for row in REQUESTS])
def test_a_program_gets_what_it_waits_for(talker, what, method, path, body):
    options = (body or {}).get("options") or {}
    if "raw" in (body or {}):
        body = {**body, "options": {**options, "num_predict": 8}}  # the fake model has no end there
    answer = talker.send(method, path, body)
    assert answer.status == 200, answer
    warned = answer.headers.get("x-warnings", "")
    assert ("num_ctx" in warned) == (options.get("num_ctx", 0) > 8192)
    assert ("unknown" in warned, "keep_alive" in warned) == (False, (body or {}).get("keep_alive") == 0)
    if method == "HEAD":
        return
    found = [json.loads(line) for line in answer.body.splitlines()]
    if path in ("/api/chat", "/api/generate"):
        assert found[-1]["done"] and found[-1]["model"] == body["model"]
        text = "".join(one["message"]["content"] if "message" in one else one["response"] for one in found)
        assert bool(text) == (found[-1]["done_reason"] not in ("load", "unload"))
        assert (len(found) > 1) == bool(text) == (found[-1]["done_reason"] in ("stop", "length")) or len(found) == 1
    elif path in ("/api/tags", "/api/ps"):
        assert [one["model"] for one in found[0]["models"]] == ["fake:latest"]
