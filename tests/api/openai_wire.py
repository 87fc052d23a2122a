"""Helpers for tests of the OpenAI routes: read streams strictly, and compute the fake model's text."""

from __future__ import annotations

import json

from tests.api.conftest import Answer
from tests.fakes import BOS, letters, said_by

DONE = "[DONE]"


def events(answer: Answer) -> list[object]:
    """What a stream has sent: objects, `("error", object)` for error events, "[DONE]"; comments are left out.

    Each event must be framed as browsers and clients expect it.
    """
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("text/event-stream"), answer
    text = answer.body.decode()
    assert text.endswith("\n\n"), text
    return [one for block in text.removesuffix("\n\n").split("\n\n") for one in _event(block.split("\n"))]


def _event(lines: list[str]) -> list[object]:
    if lines == [": ping"]:
        return []
    name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else ""
    assert len(lines) == 1 and lines[0].startswith("data: "), lines
    data = lines[0].removeprefix("data: ")
    value = DONE if data == DONE else json.loads(data)
    return [(name, value) if name else value]


def chunks(answer: Answer) -> list[dict]:
    """The objects of a stream that must end well, with `[DONE]`."""
    found = events(answer)
    assert found[-1] == DONE and found.count(DONE) == 1
    assert all(isinstance(chunk, dict) for chunk in found[:-1]), found
    return found[:-1]


def choices(found: list[dict], index: int = 0) -> list[dict]:
    """The choices of one index in the order of their chunks."""
    return [choice for chunk in found for choice in chunk["choices"] if choice["index"] == index]


def contents(found: list[dict], index: int = 0) -> str:
    """The text of one choice of a chat's stream."""
    return "".join(choice["delta"].get("content") or "" for choice in choices(found, index))


def chatml(*pairs: tuple[str, str]) -> str:
    """The prompt that ChatML makes of (role, content) pairs."""
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in pairs) + "<|im_start|>assistant\n"


def said(prompt: str | list[int], n: int) -> str:
    """The text that the fake model gives to a prompt (a string gets BOS)."""
    return bytes(said_by(letters, [BOS, *prompt.encode()] if isinstance(prompt, str) else prompt, n)).decode()
