"""Agent loops of ten steps with two tools, run by the tool runners of real clients against a real server.

One run uses a model that recites: tool calls in free text, then an answer, all known in advance. The other uses a model
that writes at random and must make a call in each step: which one is chance, but the call and valid arguments are not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.babbling_model import babble
from tests.e2e.required_calls import put_together
from tests.random_calls import judge
from tests.reciting_models import recite_answers
from tests.support import PATIENCE, ServerProcess, need, node_package, start_server

N_STEPS = 10
QUESTION = "Add and note ten things."
ANSWER = "All ten are done, 谢谢 😀."
TOOLS_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\nThese functions can be called:\n' }}
{%- for tool in tools %}{{ tool.function | tojson + '\n' }}{% endfor %}
{{- 'Write <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call> to call one.<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\n' }}
{%- if message.role == 'tool' %}{{ '<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- else %}{{ message.content or '' }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
EXPECTED: list[list[Any]] = [
    ["add", {"a": step, "b": 100 + step}] if step % 2 else ["note", {"text": f'step {step}: "é"\n\\ 世界 {{}}'}]
    for step in range(N_STEPS)
]


def written(call: list[Any]) -> str:
    """As the model writes it."""
    return f'<tool_call>\n{{"name": "{call[0]}", "arguments": {json.dumps(call[1], ensure_ascii=False)}}}\n</tool_call>'


@pytest.fixture(scope="module")
def reciter(libs_folder, tmp_path_factory) -> Iterator[ServerProcess]:
    """A server whose model says the calls of `EXPECTED` one after another, and then `ANSWER`: a step adds two messages."""
    answers = {1 + 2 * step: written(call) for step, call in enumerate(EXPECTED)} | {1 + 2 * N_STEPS: ANSWER}
    path = recite_answers(tmp_path_factory.mktemp("agents") / "agent.gguf", answers, template=TOOLS_TEMPLATE)
    with start_server(["-m", path, "-c", 8192, "-np", 1, "-t", 1]) as running:
        yield running
        print(running.log)


@pytest.fixture(scope="module")
def babbler(libs_folder, tmp_path_factory) -> Iterator[ServerProcess]:
    path = babble(tmp_path_factory.mktemp("agents") / "babble.gguf", template=TOOLS_TEMPLATE)
    with start_server(["-m", path, "-c", 16_384, "-np", 1, "-t", 1]) as running:
        yield running
        print(running.log)


REQUIRED = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 1.5, "seed": 7, "max_tokens": 400}


def fits(call: list[Any]) -> bool:
    name, arguments = call
    if name == "add":
        return set(arguments) == {"a", "b"} and all(type(n) is int and 0 <= n <= 999 for n in arguments.values())
    return name == "note" and set(arguments) == {"text"} and len(arguments["text"]) <= 40


def check_all(calls: list[list[Any]], ids: list[str]) -> None:
    """Ten steps, all of which fit."""
    assert len(calls) == N_STEPS and all(map(fits, calls)), calls
    assert len(ids) == len(set(ids)) == N_STEPS and all(ids)


# ---- JavaScript --------------------------------------------------------------------------------------------------


def run_script(server: ServerProcess, scenario: str, fields: dict[str, Any], n_steps: int) -> dict[str, Any]:
    """What `agents.mjs` printed."""
    need(shutil.which("node"), "no Node.js on this machine")
    packages = node_package("ai").parent
    script = Path(__file__).with_name("agents.mjs")
    command = ["node", script, packages, server.url + "/v1", scenario, json.dumps(fields), n_steps]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SCRIPTS = ("openai", "openai streamed", "ai", "ai streamed")


@pytest.mark.parametrize("scenario", SCRIPTS)
def test_a_javascript_runner_goes_ten_steps_to_an_answer(reciter, scenario):
    found = run_script(reciter, scenario, {"temperature": 0}, 20)
    assert found["calls"] == EXPECTED and found["text"] == ANSWER
    check_all(found["calls"], found["ids"])


@pytest.mark.parametrize("scenario", SCRIPTS)
def test_a_javascript_runner_gets_a_call_at_each_of_ten_steps(babbler, scenario):
    found = run_script(babbler, scenario, REQUIRED, N_STEPS)
    assert not found["text"]
    check_all(found["calls"], found["ids"])


# ---- Python ------------------------------------------------------------------------------------------------------


class Tools:
    """The two functions; `calls` are those that were made."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        self.calls.append(["add", {"a": a, "b": b}])
        return a + b

    def note(self, text: str) -> str:
        """Note a text."""
        self.calls.append(["note", {"text": text}])
        return f"noted: {text}"

    def run(self, name: str, arguments: dict[str, Any]) -> str:
        return str(getattr(self, name)(**arguments))


SCHEMAS: dict[str, dict[str, Any]] = {
    "add": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 999} for name in "ab"},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "note": {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 40}},
        "required": ["text"],
        "additionalProperties": False,
    },
}
FUNCTIONS = [
    {"type": "function", "function": {"name": name, "description": f"To {name}.", "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
RECORDED = json.loads(Path(__file__).with_name("instructor_requests.json").read_text("utf-8"))
Outcome = tuple[list[list[Any]], list[str], "str | None"]


def openai_loop(url: str, fields: dict[str, Any], n_steps: int, *, is_streamed: bool) -> Outcome:
    """The loop of OpenAI's own guide, with the package's typed answers."""
    openai = pytest.importorskip("openai", reason="the package openai is not installed: run build_scripts/test.py")
    tools, ids = Tools(), []
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        for _ in range(n_steps):
            request = {"model": "local", "messages": messages, "tools": FUNCTIONS, **fields}
            if is_streamed:
                with client.chat.completions.stream(**request) as stream:
                    done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
                    message = stream.get_final_completion().choices[0].message
                assert [event.name for event in done] == [call.function.name for call in message.tool_calls or []]
            else:
                message = client.chat.completions.parse(**request).choices[0].message
            messages.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
            if not message.tool_calls:
                return tools.calls, ids, message.content
            for call in message.tool_calls:
                ids.append(call.id)
                result = tools.run(call.function.name, json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return tools.calls, ids, None


def langchain_loop(url: str, fields: dict[str, Any], n_steps: int, *, is_streamed: bool) -> Outcome:
    """`bind_tools`, and LangChain's own messages and tools."""
    module = pytest.importorskip(
        "langchain_openai", reason="langchain-openai is not installed: run build_scripts/test.py"
    )
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import StructuredTool

    tools, ids = Tools(), []
    by_name = {name: StructuredTool.from_function(getattr(tools, name)) for name in SCHEMAS}
    chat = module.ChatOpenAI(
        model="local", base_url=url, api_key="none", max_retries=0, timeout=PATIENCE, **sampling(fields)
    )
    chosen = {key: fields[key] for key in ("tool_choice", "parallel_tool_calls") if key in fields}
    bound = chat.bind_tools(FUNCTIONS, **chosen)
    messages: list[Any] = [HumanMessage(QUESTION)]
    for _ in range(n_steps):
        message = sum_up(bound.stream(messages)) if is_streamed else bound.invoke(messages)
        messages.append(message)
        if not message.tool_calls:
            return tools.calls, ids, message.content
        assert not message.invalid_tool_calls
        for call in message.tool_calls:
            ids.append(call["id"])
            messages.append(by_name[call["name"]].invoke(call))
    return tools.calls, ids, None


def sampling(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key in ("temperature", "seed", "max_tokens")}


def sum_up(chunks: Iterator[Any]) -> Any:
    """The message that LangChain's chunks add up to."""
    total = next(chunks)
    for chunk in chunks:
        total += chunk
    return total


def pydantic_loop(url: str, fields: dict[str, Any], n_steps: int, *, is_streamed: bool) -> Outcome:
    """An agent of pydantic-ai, which runs the loop itself."""
    pydantic_ai = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed: run build_scripts/test.py")
    from pydantic_ai.exceptions import UsageLimitExceeded
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.usage import UsageLimits

    tools, ids = Tools(), []
    model = OpenAIChatModel("local", provider=OpenAIProvider(base_url=url, api_key="none"))
    made = [
        pydantic_ai.Tool.from_schema(getattr(tools, name), name, f"To {name}.", schema)
        for name, schema in SCHEMAS.items()
    ]
    settings = {**sampling(fields), "parallel_tool_calls": False}
    if "tool_choice" in fields:
        settings["extra_body"] = {"tool_choice": fields["tool_choice"]}
    agent = pydantic_ai.Agent(model, tools=made, model_settings=settings)
    with pydantic_ai.capture_run_messages() as messages:
        try:
            limits = UsageLimits(request_limit=n_steps)
            if is_streamed:
                text = agent.run_stream_sync(QUESTION, usage_limits=limits).get_output()
            else:
                text = agent.run_sync(QUESTION, usage_limits=limits).output
        except UsageLimitExceeded:
            text = None
    for message in messages:
        ids += [part.tool_call_id for part in message.parts if part.part_kind == "tool-call"]
    return tools.calls, ids, text


LOOPS: dict[str, Callable[..., Outcome]] = {
    "openai": openai_loop,
    "langchain": langchain_loop,
    "pydantic-ai": pydantic_loop,
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_python_client_goes_ten_steps_to_an_answer(reciter, name, is_streamed):
    calls, ids, text = LOOPS[name](reciter.url + "/v1", {"temperature": 0}, 20, is_streamed=is_streamed)
    assert calls == EXPECTED and text == ANSWER
    check_all(calls, ids)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_python_client_gets_a_call_at_each_of_ten_steps(babbler, name, is_streamed):
    calls, ids, text = LOOPS[name](babbler.url + "/v1", REQUIRED, N_STEPS, is_streamed=is_streamed)
    assert not text
    check_all(calls, ids)


# ---- recorded ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", RECORDED, ids=lambda sent: sent["what"])
def test_what_instructor_sends_gets_what_it_waits_for(babbler, sent):
    """Its requests as recorded: the package wants older packages beside it than other clients do."""
    body = {**sent["body"], "max_tokens": 200, "temperature": 0.7, "seed": 1}
    if body.get("stream"):
        choice = put_together(babbler.stream("/v1/chat/completions", body))
    else:
        choice = babbler.post("/v1/chat/completions", body, headers=sent["headers"]).json()["choices"][0]
    if "response_format" in body:
        assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"]), dict)
    elif body["tool_choice"] == "auto":
        assert choice["finish_reason"] in ("stop", "length", "tool_calls")
    else:
        assert judge(body, choice) == "call"
