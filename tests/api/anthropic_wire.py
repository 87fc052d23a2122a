"""Helpers for tests of POST /v1/messages: read its streams and check the order of events that clients expect."""

from __future__ import annotations

import json
from typing import Any

from tests.api.conftest import Answer

USAGE = {"input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"}
FIELDS = {"text": "text", "thinking": "thinking", "tool_use": "input"}
DELTAS = {
    "text": {"text_delta": "text"},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
    "tool_use": {"input_json_delta": "partial_json"},
}


def events(answer: Answer) -> list[dict]:
    """The events of a stream but for pings. Each has its type as its name, and is framed as clients expect it."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("text/event-stream"), answer
    text = answer.body.decode()
    assert text.endswith("\n\n"), text
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == "event: " + event["type"], block
        found.append(event)
    return [event for event in found if event != {"type": "ping"}]


def message_of(found: list[dict]) -> dict[str, Any]:
    """The message that a client makes of the events of a whole answer."""
    assert [found[0]["type"], found[-2]["type"], found[-1]] == [
        "message_start",
        "message_delta",
        {"type": "message_stop"},
    ]
    message = found[0]["message"]
    assert message["content"] == [] and message["stop_reason"] is message["stop_sequence"] is None
    assert set(message["usage"]) == USAGE
    blocks, is_open, arguments = message["content"], False, ""
    for event in found[1:-2]:
        kind = event["type"]
        if kind == "content_block_start":
            assert not is_open and event["index"] == len(blocks)
            block, is_open, arguments = event["content_block"], True, ""
            assert not block[FIELDS[block["type"]]], "blocks begin empty"
            blocks.append(block)
            continue
        assert is_open and event["index"] == len(blocks) - 1, event
        if kind == "content_block_stop":
            is_open = False
            assert blocks[-1].get("signature") != "", "thinking ends with its signature"
            if blocks[-1]["type"] == "tool_use":
                try:
                    blocks[-1]["input"] = json.loads(arguments)
                except ValueError:  # cut off
                    blocks.pop()
            continue
        assert kind == "content_block_delta", event
        delta = event["delta"]
        name = DELTAS[blocks[-1]["type"]][delta["type"]]
        assert set(delta) == {"type", name} and delta[name]
        if name == "partial_json":
            arguments += delta[name]
        else:
            blocks[-1][name] += delta[name]
    assert not is_open
    end = found[-2]
    assert set(end["delta"]) == {"stop_reason", "stop_sequence"} and set(end["usage"]) >= USAGE
    return {**message, **end["delta"], "usage": end["usage"]}
