"""Recorded requests of clients that are too large to install for each run (see `golden_server.py`): each flow
completes, in the form and order that its API requires.

`golden` has a file for each client with its version and its requests in order, each with the call that made it. Fields
without effect are listed there (`in_vain`), so that no other field is ignored unnoticed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api import anthropic_wire
from tests.api.conftest import Answer, Api
from tests.api.golden_server import CITY, HELLO, RESULT, make_server
from tests.api.openai_wire import DONE, chunks
from tests.e2e.required_calls import put_together

GOLDEN = [json.loads(path.read_text("utf-8")) for path in sorted(Path(__file__).with_name("golden").glob("*.json"))]
ROWS = [(f"{one['client']} {one['version']}: {sent['what']}", sent) for one in GOLDEN for sent in one["requests"]]
REASONS = {"stop": "stop", "tool_calls": "call", "end_turn": "stop", "tool_use": "call"}
Said = tuple[str, list[tuple[str, dict]]]


@pytest.fixture(scope="module")
def server() -> Iterator[Api]:
    one = make_server()
    yield one
    one.stop()
    one.wait_for_threads()


@pytest.mark.covers("N01")
@pytest.mark.parametrize("sent", [sent for _, sent in ROWS], ids=[name for name, _ in ROWS])
def test_a_recorded_flow_gets_what_its_client_waits_for(server, sent):
    answer = server.send(sent["method"], sent["path"], sent["body"], sent["headers"])
    assert answer.status == 200, answer
    CHECKS[sent["path"].partition("?")[0]](answer, sent["body"])
    warned = answer.headers.get("x-warnings", "") + "".join(warnings_within(answer))
    assert bool(warned) == bool(sent.get("in_vain")) and all(name in warned for name in sent.get("in_vain", ())), warned


def warnings_within(answer: Answer) -> Iterator[str]:
    """Of an answer that has them in its JSON."""
    for line in answer.body.decode().split("\n"):
        if line.startswith(("data: {", "{")):
            yield from json.loads(line.removeprefix("data: ")).get("warnings", ())


def expected(body: dict) -> Said:
    """What the model says to a conversation: it is made to fit the request."""
    last = body["messages"][-1]
    text = json.dumps(last["content"])
    if last["role"] == "tool" or '"tool_result"' in text:
        return RESULT, []
    if body.get("tools"):
        tool = body["tools"][0]
        return "", [(tool.get("function", tool)["name"], CITY)]
    return json.dumps(CITY) if "city" in text else HELLO, []


def check_openai_chat(answer: Answer, body: dict) -> None:
    if body.get("stream"):
        found = chunks(answer)
        choice = put_together(iter([*found, DONE]))
        wants_usage = (body.get("stream_options") or {}).get("include_usage", False)
        assert [chunk["choices"] == [] for chunk in found] == [False] * (len(found) - wants_usage) + [
            True
        ] * wants_usage
        assert found[0]["choices"][0]["delta"]["role"] == "assistant"
        usage = found[-1]["usage"] if wants_usage else None
    else:
        [choice] = answer.json()["choices"]
        usage = answer.json()["usage"]
    message = choice["message"]
    calls = message.get("tool_calls") or []
    said = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    assert (message["content"] or "", said) == expected(body)
    assert REASONS[choice["finish_reason"]] == ("call" if said else "stop") and all(call["id"] for call in calls)
    assert usage is None or usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 0


def check_openai_text(answer: Answer, body: dict) -> None:
    if body.get("stream"):
        text = "".join(choice["text"] for chunk in chunks(answer) for choice in chunk["choices"])
    else:
        text = answer.json()["choices"][0]["text"]
    assert len(text) == body["max_tokens"]


def check_anthropic(answer: Answer, body: dict) -> None:
    message = anthropic_wire.message_of(anthropic_wire.events(answer)) if body.get("stream") else answer.json()
    text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
    calls = [block for block in message["content"] if block["type"] == "tool_use"]
    assert (text, [(call["name"], call["input"]) for call in calls]) == expected(body)
    assert REASONS[message["stop_reason"]] == ("call" if calls else "stop") and all(call["id"] for call in calls)
    assert message["role"] == "assistant" and message["type"] == "message" and message["model"] == body["model"]
    assert message["usage"]["output_tokens"] > 0


def check_ollama_chat(answer: Answer, body: dict) -> None:
    found = [json.loads(line) for line in answer.body.splitlines()]
    assert [one["done"] for one in found] == [False] * (len(found) - 1) + [True]
    assert (len(found) > 1) == body.get("stream", True)
    text = "".join(one["message"]["content"] for one in found)
    calls = [call["function"] for one in found for call in one["message"].get("tool_calls", ())]
    assert (text, [(call["name"], call["arguments"]) for call in calls]) == expected(body)
    assert found[-1]["done_reason"] == "stop" and found[-1]["eval_count"] > 0


def check_ollama_text(answer: Answer, body: dict) -> None:
    found = [json.loads(line) for line in answer.body.splitlines()]
    assert (len(found) > 1) == body.get("stream", True) and found[-1]["done"]
    assert "".join(one["response"] for one in found) == HELLO


def check_vectors(answer: Answer, body: dict) -> None:
    rows = answer.json()["data"]
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    assert [row["index"] for row in rows] == list(range(len(texts)))
    for row in rows:
        is_base64 = body.get("encoding_format") == "base64"
        vector = base64.b64decode(row["embedding"]) if is_base64 else row["embedding"]
        assert len(vector) == (16 if is_base64 else 4)


def check_ollama_vectors(answer: Answer, body: dict) -> None:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    assert [len(vector) for vector in answer.json()["embeddings"]] == [4] * len(texts)


def check_show(answer: Answer, body: dict) -> None:
    found = answer.json()
    assert "tools" in found["capabilities"] and found["model_info"]["general.architecture"]


def check_count(answer: Answer, body: dict) -> None:
    assert answer.json()["input_tokens"] > 0


CHECKS = {
    "/v1/chat/completions": check_openai_chat,
    "/v1/completions": check_openai_text,
    "/v1/embeddings": check_vectors,
    "/v1/messages": check_anthropic,
    "/v1/messages/count_tokens": check_count,
    "/api/chat": check_ollama_chat,
    "/api/generate": check_ollama_text,
    "/api/embed": check_ollama_vectors,
    "/api/show": check_show,
}
