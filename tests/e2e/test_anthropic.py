"""Anthropic's own packages against a real server: streams, tools, reasoning, schemas, counting, errors.

The model recites, so its reasoning, tool call and answer are known in advance. Events are read as the package's types,
in the order that its stream helper requires.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.reciting_models import recite_answers
from tests.support import PATIENCE, ServerProcess, need, node_package, start_server

THOUGHT = "They ask for Bern."
ARGUMENTS = '{"city": "Bern, \\"BE\\" 😀"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
ANSWER = "It rains. 谢谢"
QUESTION = {"role": "user", "content": "How is the weather in Bern?"}
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "cache_control": {"type": "ephemeral"},
}
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\nThese functions can be called:\n' }}
{%- for tool in tools %}{{ tool.function | tojson + '\n' }}{% endfor %}
{{- 'Write <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call> to call one.<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def reciter(libs_folder, tmp_path_factory) -> Iterator[ServerProcess]:
    """A server whose model thinks and calls, and answers once there is a result."""
    answers = {1: f"<think>\n{THOUGHT}\n</think>\n\nLet me see.\n{CALL}", 3: ANSWER}
    path = recite_answers(tmp_path_factory.mktemp("anthropic") / "reciter.gguf", answers, template=TEMPLATE)
    with start_server(["-m", path, "-c", 8192, "-np", 1, "-t", 1]) as running:
        yield running
        print(running.log)


@pytest.fixture
def client(reciter) -> Iterator[Any]:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: run build_scripts/test.py")
    with anthropic.Anthropic(base_url=reciter.url, api_key="none", max_retries=0, timeout=PATIENCE) as one:
        yield one


def request(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {
        "model": "local",
        "max_tokens": 300,
        "extra_body": {"temperature": 0},
        "messages": [QUESTION, *messages],
        "tools": [TOOL],
    } | fields


def total(message: Any) -> int:
    """Tokens of its prompt."""
    return message.usage.input_tokens + message.usage.cache_read_input_tokens


def kinds(message: Any) -> list[str]:
    return [block.type for block in message.content]


@pytest.mark.covers("A14")
def test_the_stream_helper_takes_each_event_in_its_order(client):
    from anthropic import types

    with client.messages.stream(**request()) as stream:
        events = list(stream)
        message = stream.get_final_message()
    names = {
        types.RawMessageStartEvent: "start",
        types.RawContentBlockStartEvent: "block",
        types.RawContentBlockStopEvent: "stop",
        types.RawMessageDeltaEvent: "delta",
        types.RawMessageStopEvent: "end",
    }
    raw = [next((name for kind, name in names.items() if isinstance(event, kind)), event.type) for event in events]
    order = [name for i, name in enumerate(raw) if name not in ("content_block_delta", *raw[max(i - 2, 0) : i])]
    assert order == ["start", "block", "thinking", "signature", "stop", "block", "text", "stop", "block", "input_json",
                     "stop", "delta", "end"]  # fmt: skip
    assert kinds(message) == ["thinking", "text", "tool_use"] and message.stop_reason == "tool_use"
    assert message.content[0].thinking == THOUGHT and message.content[0].signature
    assert message.content[1].text == "Let me see."
    assert message.content[2].input == json.loads(ARGUMENTS) and message.content[2].name == "weather"
    heard = "".join(event.partial_json for event in events if event.type == "input_json")
    assert heard == ARGUMENTS and message.usage.output_tokens > 10


@pytest.mark.parametrize("is_beta", [False, True], ids=["plain", "beta"])
def test_a_loop_of_tools_comes_to_an_answer(client, is_beta):
    messages = client.beta.messages if is_beta else client.messages
    fields = {"betas": ["context-management-2025-06-27"], "context_management": {"edits": []}} if is_beta else {}
    first = messages.create(**request(**fields))
    call = first.content[-1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    turn = ({"role": "assistant", "content": first.content}, {"role": "user", "content": [result]})
    second = messages.create(**request(*turn, **fields))
    assert kinds(second) == ["text"] and second.content[0].text == ANSWER and second.stop_reason == "end_turn"
    assert second.usage.cache_read_input_tokens >= total(first) - 1, "but for the cue at its end"
    counted = messages.count_tokens(model="local", messages=[QUESTION, *turn], tools=[TOOL])
    assert counted.input_tokens == total(second)
    assert second._request_id


def test_the_tool_runner_goes_to_an_answer(client):
    from anthropic import beta_tool

    asked = []

    @beta_tool
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: Its name.
        """
        asked.append(city)
        return "rain"

    runner = client.beta.messages.tool_runner(**request(tools=[weather]))
    assert runner.until_done().content[-1].text == ANSWER
    assert asked == [json.loads(ARGUMENTS)["city"]]


def test_thinking_can_be_hidden_and_bounded(client):
    hidden = client.messages.create(**request(thinking={"type": "adaptive", "display": "omitted"}))
    assert hidden.content[0].thinking == "" and hidden.content[0].signature
    bounded = client.messages.create(**request(thinking={"type": "enabled", "budget_tokens": 1024}))
    assert bounded.content[0].thinking == THOUGHT
    assert bounded.usage.output_tokens_details.thinking_tokens > 3


def test_a_schema_binds_what_the_package_parses(client):
    pydantic = pytest.importorskip("pydantic")

    class Weather(pydantic.BaseModel):
        """An answer."""

        city: Literal["Bern"]
        days: Literal[3]

    found = client.messages.parse(**request(tools=[], thinking={"type": "disabled"}), output_format=Weather)
    assert found.parsed_output == Weather(city="Bern", days=3)


def test_errors_are_the_packages_own(client):
    import anthropic

    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{**request(), "messages": [{"role": "user", "content": [{"type": "hologram"}]}]})
    assert caught.value.type == "invalid_request_error" and "messages[0].content[0]" in str(caught.value)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(**{**request(), "messages": [{"role": "user", "content": "x " * 20_000}]})


def test_the_javascript_package_works_as_it_is(reciter):
    need(shutil.which("node"), "no Node.js on this machine")
    packages = node_package("@anthropic-ai/sdk").parent.parent
    script = Path(__file__).with_name("anthropic_client.mjs")
    done = subprocess.run(
        ["node", str(script), str(packages), reciter.url],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heard"] == {
        "text": "Let me see.",
        "thinking": THOUGHT,
        "signature": "unsigned",
        "inputJson": json.dumps(json.loads(ARGUMENTS), ensure_ascii=False),
    }
    assert found["first"]["content"][2]["input"] == json.loads(ARGUMENTS)
    assert [found["first"]["stop_reason"], found["second"]["stop_reason"]] == ["tool_use", "end_turn"]
    assert found["second"]["content"] == [{"type": "text", "text": ANSWER}] == found["beta"]["content"]
    usage = found["second"]["usage"]
    assert found["counted"]["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert found["refused"] == {"name": "BadRequestError", "status": 400, "type": "invalid_request_error"}
    assert found["id"] and found["kinds"][0] == "message_start" and found["kinds"][-1] == "message_stop"
