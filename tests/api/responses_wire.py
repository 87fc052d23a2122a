"""Helpers for tests of POST /v1/responses: read its streams and check the order and numbers of events."""

from __future__ import annotations

import json
from typing import Any

from tests.api.conftest import Answer

ENDS = {"completed": "response.completed", "failed": "response.failed"}  # of others `response.incomplete`
PARTS = {"output_text": "response.output_text", "reasoning_text": "response.reasoning_text"}
CALLS = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
}


def events(answer: Answer, first: int = 0) -> list[dict]:
    """The events of a stream, whose numbers go up from `first` one by one. Each has its type as its name."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("text/event-stream"), answer
    text = answer.body.decode()
    assert text.endswith("\n\n"), text
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block == ": ping":
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == "event: " + event["type"], block
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(first, first + len(found)))
    return found


def response_of(found: list[dict], is_background: bool = False) -> dict[str, Any]:
    """The response that the events of a whole stream tell of, each of which has to be the one that clients wait for."""
    n_first = 3 if is_background else 2
    names = ["created", "queued", "in_progress"] if is_background else ["created", "in_progress"]
    assert [event["type"] for event in found[:n_first]] == [f"response.{name}" for name in names]
    begun = found[0]["response"]
    assert begun["output"] == [] and begun["usage"] is begun["error"] is begun["completed_at"] is None
    assert begun["status"] == ("queued" if is_background else "in_progress")
    queue, items = found[n_first:-1], []
    while queue:
        items.append(_item(queue, len(items)))
    end = found[-1]
    response = end["response"]
    assert end["type"] == ENDS.get(response["status"], "response.incomplete")
    assert response["id"] == begun["id"] and response["output"] == items
    unchanged = set(begun) - {"status", "output", "usage", "completed_at", "incomplete_details", "error"}
    assert {name: response[name] for name in unchanged} == {name: begun[name] for name in unchanged}
    return response


def _item(queue: list[dict], index: int) -> dict[str, Any]:
    """The next item, from its announcement to its end."""
    added = queue.pop(0)
    assert added["type"] == "response.output_item.added" and added["output_index"] == index, added
    item = added["item"]
    assert item["status"] == "in_progress"
    place = {"item_id": item["id"], "output_index": index}
    if item["type"] in CALLS:
        events_name, field = CALLS[item["type"]]
        assert item[field] == ""
        whole = {field: _texts(queue, events_name, place, field)}
    else:
        whole = _part(queue, item, place)
    done = queue.pop(0)
    assert done["type"] == "response.output_item.done" and done["output_index"] == index, done
    assert done["item"]["status"] in ("completed", "incomplete")
    sealed = {"encrypted_content": done["item"].get("encrypted_content")} if "encrypted_content" in done["item"] else {}
    assert done["item"] == {**item, **whole, **sealed, "status": done["item"]["status"]}
    return done["item"]


def _part(queue: list[dict], item: dict, place: dict) -> dict[str, Any]:
    """The part of a message or of reasoning."""
    added = queue.pop(0)
    part = added["part"]
    assert part["text"] == ""
    if part["type"] == "summary_text":
        names, events_name, index, field = (
            "reasoning_summary_part",
            "response.reasoning_summary_text",
            "summary_index",
            "summary",
        )
    else:
        names, events_name, index, field = "content_part", PARTS[part["type"]], "content_index", "content"
    assert item[field] == []
    place = {**place, index: 0}
    assert added["type"] == f"response.{names}.added" and place.items() <= added.items(), added
    has_logprobs = part["type"] == "output_text"
    text = _texts(queue, events_name, place, "text", has_logprobs)
    done = queue.pop(0)
    assert done["type"] == f"response.{names}.done" and place.items() <= done.items(), done
    assert done["part"] == {**part, "text": text, **({"logprobs": done["part"]["logprobs"]} if has_logprobs else {})}
    return {field: [done["part"]]}


def _texts(queue: list[dict], name: str, place: dict, field: str, has_logprobs: bool = False) -> str:
    """What the deltas say, and the event behind them once more."""
    text = ""
    while queue[0]["type"] == name + ".delta":
        event = queue.pop(0)
        assert place.items() <= event.items() and event["delta"]
        assert ("logprobs" in event) == has_logprobs
        text += event["delta"]
    done = queue.pop(0)
    assert done["type"] == name + ".done" and place.items() <= done.items() and done[field] == text, done
    return text
