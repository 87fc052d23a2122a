"""A tool loop on the small real model: its own text is in the cache when it comes back, whatever tokens it chose.

Needs the native libraries and SmolLM2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import ServerProcess, start_server

TEXT = {"type": "string", "maxLength": 40}
NOTE = {
    "type": "object",
    "properties": {"title": TEXT, "lines": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 3}},
    "required": ["title", "lines"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "write_note", "description": "Keep a note.", "parameters": NOTE}}]


@pytest.fixture(scope="module")
def server(libs_folder, smollm2) -> Iterator[ServerProcess]:
    with start_server(["-m", str(smollm2), "-c", "4096", "-t", "1"]) as running:
        yield running
        print(running.log)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_each_step_of_a_loop_evaluates_only_what_is_new(server, temperature):
    messages = [{"role": "user", "content": f"Write notes about the sea, please ({temperature})."}]
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    n_known = 0
    for step in range(4):
        body = {"messages": messages, **fields, "temperature": temperature, "seed": step, "max_tokens": 300}
        answer = server.post("/v1/chat/completions", body).json()
        (choice,), timings = answer["choices"], answer["timings"]
        assert choice["finish_reason"] == "tool_calls", answer
        assert timings["cache_n"] >= n_known, answer["cache"]
        if step:
            cache = answer["cache"]
            assert cache.pop("source") in ("slot", "ram"), "ram: where the next request came before its slot was free"
            assert cache == {"reason": None, "first_difference": None}
        n_known = timings["cache_n"] + timings["prompt_n"] + timings["predicted_n"] - 1  # all but the end of the text
        (call,) = choice["message"]["tool_calls"]
        json.loads(call["function"]["arguments"])
        messages += [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": f"kept as {step}"}]
