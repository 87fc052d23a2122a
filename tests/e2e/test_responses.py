"""OpenAI's own packages and /v1/responses of a real server: streams, tools, schemas, background mode, conversations.

One server's model recites, so its reasoning, tool call and answer are known in advance. The other server has the small
real model. Every event is checked against the package's own type, in the order that its stream helper requires.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from tests.e2e.test_anthropic import ANSWER, ARGUMENTS, CALL, TEMPLATE, THOUGHT
from tests.reciting_models import recite_answers
from tests.support import PATIENCE, ServerProcess, need, node_package, start_server, wait_until

openai = pytest.importorskip("openai", reason="the package openai is not installed: run build_scripts/test.py")
pydantic = pytest.importorskip("pydantic", reason="the package pydantic is not installed: run build_scripts/test.py")

QUESTION = "How is the weather in Bern?"
PATCH = '<tool_call>\n{"name": "patch", "arguments": {"input": "*** Begin\\n+ä"}}\n</tool_call>'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": PARAMETERS,
    "strict": False,
}
TOOLS = [WEATHER, {"type": "custom", "name": "patch", "description": "Changes a file."}]
PATCHING = {"extra_body": {"chat_template_kwargs": {"cue": 7}}}


@pytest.fixture(scope="module")
def reciter(libs_folder, tmp_path_factory) -> Iterator[ServerProcess]:
    """A server whose model thinks and calls, answers once there is a result, and calls another tool at the cue 7."""
    answers = {1: f"<think>\n{THOUGHT}\n</think>\n\nLet me see.\n{CALL}", 3: ANSWER, 7: PATCH}
    path = recite_answers(tmp_path_factory.mktemp("responses") / "reciter.gguf", answers, template=TEMPLATE)
    with start_server(["-m", path, "-c", 8192, "-np", 1, "-t", 1, "--temp", 0]) as running:
        yield running
        print(running.log)


@pytest.fixture(scope="module")
def server(libs_folder, smollm2, tmp_path_factory) -> Iterator[ServerProcess]:
    """A server with the small real model, which keeps responses in a folder."""
    folder = tmp_path_factory.mktemp("responses") / "kept"
    arguments = ["-m", smollm2, "-c", 4096, "-np", 2, "-t", 1, "-n", 256, "--temp", 0, "--store-dir", folder]
    with start_server([str(argument) for argument in arguments]) as running:
        yield running
        print(running.log)


def connected(running: ServerProcess) -> Any:
    return openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE)


@pytest.fixture
def client(reciter) -> Iterator[Any]:
    with connected(reciter) as one:
        yield one


@pytest.fixture
def real(server) -> Iterator[Any]:
    with connected(server) as one:
        yield one


def check_types(events: list[Any]) -> None:
    """Each event has all that the package's type for it says, down to the whole response in the last one."""
    from openai.types.responses import ResponseStreamEvent

    kinds = {
        get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
    }
    for number, event in enumerate(events):
        data = event.to_dict(mode="json")
        kinds[data["type"]].model_validate(data)
        assert data["sequence_number"] == number


def order(events: list[Any]) -> list[str]:
    """The types of the events, but for deltas that follow another one."""
    names = [event.type.removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if not (name.endswith("delta") and i and names[i - 1] == name)]


MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
           "output_item.done"]  # fmt: skip
THINKING = [name.replace("output_text", "reasoning_text") for name in MESSAGE]
SUMMARY = [
    name.replace("output_text", "reasoning_summary_text").replace("content_part", "reasoning_summary_part")
    for name in MESSAGE
]
CALLING = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]


@pytest.mark.covers("O18")
@pytest.mark.parametrize(("reasoning", "thinking"), [(None, THINKING), ({"summary": "auto"}, SUMMARY)])
def test_every_event_has_the_type_and_the_place_that_the_package_gives_it(client, reasoning, thinking):
    fields = {"model": "x", "input": QUESTION, "tools": TOOLS, **({"reasoning": reasoning} if reasoning else {})}
    with client.responses.create(**fields, stream=True) as stream:
        events = list(stream)
    check_types(events)
    assert order(events) == ["created", "in_progress", *thinking, *MESSAGE, *CALLING, "completed"]


def test_the_stream_helper_puts_the_response_together(client):
    with client.responses.stream(model="x", input=QUESTION, tools=TOOLS) as stream:
        events = list(stream)
        response = stream.get_final_response()
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output[0].content[0].text == THOUGHT and response.output_text == "Let me see."
    assert response.output[2].arguments == ARGUMENTS and response.output[2].name == "weather"
    snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert snapshots[-1] == ARGUMENTS and response.usage.output_tokens_details.reasoning_tokens > 3
    assert client.responses.retrieve(response.id).output_text == "Let me see."


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_loop_of_tools_comes_to_an_answer(client, is_stored):
    fields: dict[str, Any] = {"model": "x", "tools": TOOLS, "store": is_stored}
    first = client.responses.create(**fields, input=QUESTION, include=["reasoning.encrypted_content"])
    call = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    if is_stored:
        second = client.responses.create(**fields, input=[result], previous_response_id=first.id)
        items = list(client.responses.input_items.list(second.id, order="asc"))
        assert [item.type for item in items] == [
            "message",
            "reasoning",
            "message",
            "function_call",
            "function_call_output",
        ]
    else:
        talk = [{"role": "user", "content": QUESTION}, *first.output, result]
        second = client.responses.create(**fields, input=talk)
    assert second.output_text == ANSWER and second.status == "completed"
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 1, "but for the cue at its end"
    counted = client.responses.input_tokens.count(model="x", tools=TOOLS, input=QUESTION)
    assert counted.input_tokens == first.usage.input_tokens


def test_a_custom_tool_gets_its_text(client):
    with client.responses.create(model="x", input=QUESTION, tools=TOOLS, stream=True, **PATCHING) as stream:
        events = list(stream)
    check_types(events)
    calling = [name.replace("function_call_arguments", "custom_tool_call_input") for name in CALLING]
    assert order(events) == ["created", "in_progress", *calling, "completed"]
    [call] = events[-1].response.output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "patch", "*** Begin\n+ä")


def test_functions_of_pydantic_are_parsed(client):
    class weather(pydantic.BaseModel):  # noqa: N801
        """The weather of a city."""

        city: str

    tools = [openai.pydantic_function_tool(weather)]
    flat = [{"type": "function", **tool["function"]} for tool in tools]
    with client.responses.stream(model="x", input=QUESTION, tools=flat) as stream:
        response = stream.get_final_response()
    assert response.output[-1].parsed_arguments == json.loads(ARGUMENTS)


def test_a_schema_binds_what_the_package_parses(real):
    class City(pydantic.BaseModel):
        """An answer."""

        name: Literal["Paris"]
        population: Literal[3, 4]

    found = real.responses.parse(model="x", input="Give me the city Paris as JSON.", text_format=City)
    assert found.output_parsed in (City(name="Paris", population=3), City(name="Paris", population=4))
    with real.responses.stream(model="x", input="Paris?", text_format=City) as stream:
        assert stream.get_final_response().output_parsed.name == "Paris"


def test_a_regular_expression_binds_what_a_custom_tool_gets(real):
    form = {"type": "grammar", "syntax": "regex", "definition": '[0-9]{3}( "[a-c]+"|ü)'}
    tool = {"type": "custom", "name": "dial", "description": "Dials a number.", "format": form}
    for choice in ("required", {"type": "custom", "name": "dial"}):
        found = real.responses.create(model="x", input="Call somebody.", tools=[tool], tool_choice=choice)
        call = found.output[-1]
        assert call.type == "custom_tool_call" and re.fullmatch(form["definition"], call.input), call


def test_a_conversation_goes_on_either_way(real):
    first = real.responses.create(model="x", input="What is the capital of France? Answer in one sentence.")
    assert "Paris" in first.output_text and first.status == "completed"
    with real.responses.stream(model="x", input="What is the capital of France? Answer in one sentence.") as stream:
        assert (
            "".join(event.delta for event in stream if event.type == "response.output_text.delta") == first.output_text
        )
    talk = real.conversations.create(items=[{"role": "user", "content": "My name is Zoe."}], metadata={"a": "b"})
    for number in (1, 2):
        answer = real.responses.create(model="x", input="And?", max_output_tokens=5, conversation=talk.id)
        assert answer.incomplete_details.reason == "max_output_tokens"
        items = list(real.conversations.items.list(talk.id, order="asc"))
        assert [item.role for item in items] == ["user", *["user", "assistant"] * number]
    assert real.conversations.items.retrieve(items[0].id, conversation_id=talk.id).content[0].text == "My name is Zoe."
    assert real.conversations.delete(talk.id).deleted
    real.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        real.responses.retrieve(first.id)


def test_the_background_is_polled_streamed_and_cancelled(real):
    fields: dict[str, Any] = {"model": "x", "input": "Count from 1 to 9.", "background": True, "max_output_tokens": 20}
    begun = real.responses.create(**fields)
    assert begun.status in ("queued", "in_progress")
    wait_until(lambda: real.responses.retrieve(begun.id).status not in ("queued", "in_progress"), "the response to end")
    with real.responses.create(**fields, stream=True) as stream:
        half = [event for event, _ in zip(stream, range(8), strict=False)]
    rest = list(real.responses.retrieve(half[0].response.id, stream=True, starting_after=half[-1].sequence_number))
    check_types([*half, *rest])
    assert order([*half, *rest]) == ["created", "queued", "in_progress", *MESSAGE, "incomplete"]
    assert rest[-1].response.output_text == real.responses.retrieve(begun.id).output_text
    endless = real.responses.create(**{**fields, "max_output_tokens": 3000}, extra_body={"ignore_eos": True})
    assert real.responses.cancel(endless.id).status == "cancelled" == real.responses.retrieve(endless.id).status


def test_a_server_that_is_killed_gives_back_what_was_stored(libs_folder, smollm2, tmp_path):
    arguments = ["-m", smollm2, "-c", 2048, "-np", 1, "-t", 1, "--temp", 0, "--store-dir", tmp_path / "kept"]
    with start_server(arguments) as first, connected(first) as one:
        whole = one.responses.create(model="x", input="What is the capital of France?", max_output_tokens=8)
        fields: dict[str, Any] = {
            "model": "x",
            "input": "Count.",
            "background": True,
            "extra_body": {"ignore_eos": True},
        }
        begun = one.responses.create(**fields)
        wait_until(lambda: one.responses.retrieve(begun.id).status == "in_progress", "the engine to begin")
        first.process.kill()
        first.wait()
    with start_server(arguments) as again, connected(again) as one:
        assert one.responses.retrieve(whole.id) == whole
        lost = one.responses.retrieve(begun.id)
        assert lost.status == "failed" and "the server ended" in lost.error.message
        more = one.responses.create(
            model="x", previous_response_id=whole.id, input="And of Italy?", max_output_tokens=4
        )
        assert more.usage.input_tokens > whole.usage.total_tokens


@pytest.mark.parametrize(
    "fields",
    [{}, {"use_previous_response_id": True},
     {"store": False, "include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}}],
    ids=["plain", "previous", "nothing stored"],
)  # fmt: skip
def test_langchain_goes_on_in_each_way_it_knows(reciter, fields):
    package = pytest.importorskip("langchain_openai", reason="not installed: run build_scripts/test.py")
    one = package.ChatOpenAI(
        model="x", base_url=reciter.url + "/v1", api_key="none", max_retries=0, use_responses_api=True, **fields
    )
    model = one.bind_tools([WEATHER])
    first = model.invoke([("user", QUESTION)])
    [call] = first.tool_calls
    assert call["args"] == json.loads(ARGUMENTS)
    result = {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
    assert model.invoke([("user", QUESTION), first, result]).text == ANSWER
    assert "".join(chunk.text for chunk in model.stream([("user", QUESTION)])) == "Let me see."


def test_pydantic_ai_calls_a_tool_and_comes_to_an_answer(reciter):
    ai = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed: run build_scripts/test.py")
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=reciter.url + "/v1", api_key="none")
    agent = ai.Agent(OpenAIResponsesModel("x", provider=provider))
    asked = []

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "rain"

    assert agent.run_sync(QUESTION).output == ANSWER and asked == [json.loads(ARGUMENTS)["city"]]


def test_errors_are_the_packages_own(real):
    with pytest.raises(openai.BadRequestError, match=r"input\[0\].content\[0\].type: 'hologram'"):
        real.responses.create(model="x", input=[{"role": "user", "content": [{"type": "hologram"}]}])
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        real.responses.create(model="x", input="x " * 20_000)
    with pytest.raises(openai.NotFoundError):
        real.responses.create(model="x", input="x", previous_response_id="resp_gone")


def test_the_javascript_package_works_as_it_is(reciter):
    need(shutil.which("node"), "no Node.js on this machine")
    command = [
        shutil.which("node"),
        str(Path(__file__).with_name("responses_client.mjs")),
        str(node_package("openai") / "index.mjs"),
        reciter.url + "/v1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["first"]["output"][2]["arguments"] == ARGUMENTS == found["heard"]["arguments"]
    assert found["heard"]["text"] == "Let me see." == found["first"]["output_text"]
    assert found["second"] == {"text": ANSWER, "status": "completed"}
    assert found["background"] == {"begun": "queued", "ended": "completed", "text": "Let me see."}
    assert found["kinds"][:2] == ["response.created", "response.in_progress"]
    assert found["kinds"][-1] == "response.completed" == found["again"][-1] and found["again"] == found["kinds"][-3:]
    assert found["items"] == ["message", "reasoning", "message", "function_call", "function_call_output"]
    assert found["refused"] == {"name": "BadRequestError", "status": 400}
    assert found["gone"] == 404
