"""The `openai` Python package against a real server with the small real model.

Needs the native libraries, SmolLM2 and the package. One server for the file; greedy where texts are compared.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice

import pytest

from tests.support import PATIENCE, ServerProcess, need, start_server, wait_until

openai = pytest.importorskip("openai", reason="the package openai is not installed: run build_scripts/test.py")
pydantic = pytest.importorskip("pydantic", reason="the package pydantic is not installed: run build_scripts/test.py")

N_SLOTS = 2
N_PREDICT = 256  # the server's limit: nobody waits for a model that doesn't come to an end
CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
COUNT = [{"role": "user", "content": "Count from 1 to 500, one number per line, without any other text."}]
ENDLESS = {"ignore_eos": True}
GREEDY = {"model": "gpt-3.5-turbo", "temperature": 0}


@pytest.fixture(scope="module")
def server(libs_folder, smollm2) -> Iterator[ServerProcess]:
    """One server for all tests of this file; its log is shown when one fails."""
    arguments = ["-m", smollm2, "-c", 4096, "-np", N_SLOTS, "-t", 1, "-n", N_PREDICT]
    with start_server([str(argument) for argument in arguments]) as running:
        yield running
        print(running.log)


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    """A client that doesn't try again: every failure shows."""
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="sk-no-key-required", max_retries=0, timeout=PATIENCE
    ) as one:
        yield one


def assert_idle(server: ServerProcess) -> None:
    """All slots become idle, though the generation would still take long."""

    def is_idle() -> bool:
        return server.get("/health").json() == {"status": "ok", "slots_idle": N_SLOTS, "slots_processing": 0}

    wait_until(is_idle, "all slots to be idle")


# ---- the documents' examples -------------------------------------------------------------------------------------

SNIPPET = """\
import openai
client = openai.OpenAI(
    base_url="http://localhost:8080/v1", # "http://<Your api-server IP>:port"
    api_key = "sk-no-key-required"
)
completion = client.chat.completions.create(
model="gpt-3.5-turbo",
messages=[
    {"role": "system", "content": "You are ChatGPT, an AI assistant. Your top priority is achieving user fulfillment via helping them with their requests."},
    {"role": "user", "content": "Write a limerick about python exceptions"}
]
)
print(completion.choices[0].message)
"""
CURL = """\
curl http://localhost:8080/v1/chat/completions \\
-H "Content-Type: application/json" \\
-H "Authorization: Bearer no-key" \\
-d '{
"model": "gpt-3.5-turbo",
"messages": [
{
    "role": "system",
    "content": "You are ChatGPT, an AI assistant. Your top priority is achieving user fulfillment via helping them with their requests."
},
{
    "role": "user",
    "content": "Write a limerick about python exceptions"
}
]
}'
"""


def with_port(example: str, server: ServerProcess) -> str:
    """A documents' example with nothing changed but the port (and localhost, which may mean ::1)."""
    changed = example.replace("http://localhost:8080", server.url)
    assert changed != example
    return changed


@pytest.mark.covers("B11")
def test_the_documents_python_example(server):
    done = subprocess.run(
        [sys.executable, "-c", with_port(SNIPPET, server)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ChatCompletionMessage(content=") and "role='assistant'" in done.stdout


@pytest.mark.covers("B11")
@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: the example is for a POSIX shell")
def test_the_documents_curl_example(server):
    need(shutil.which("curl"), "no curl on this machine")
    command = with_port(CURL, server).replace("curl ", "curl -sS --noproxy '*' ", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0 and '"object":"chat.completion"' in done.stdout, done


# ---- chats -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("E07", "Q35", "Q36")
def test_a_plain_answer_and_a_stream_are_the_same_text(client):
    plain = client.chat.completions.create(messages=CAPITAL, max_tokens=24, **GREEDY)
    choice = plain.choices[0]
    assert "Paris" in choice.message.content and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length") and plain.model == "gpt-3.5-turbo"
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens > 0
    stream = client.chat.completions.create(
        messages=CAPITAL, max_tokens=24, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content is None
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == choice.message.content
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_stream_helper_gathers_the_same_answer(client):
    with client.chat.completions.stream(messages=CAPITAL, max_tokens=24, **GREEDY) as stream:
        kinds = [event.type for event in stream]
        gathered = stream.get_final_completion()
    plain = client.chat.completions.create(messages=CAPITAL, max_tokens=24, **GREEDY)
    assert gathered.choices[0].message.content == plain.choices[0].message.content
    assert "content.delta" in kinds and kinds[-1] in ("content.done", "chunk")


@pytest.mark.covers("Q42")
def test_the_usual_fields(client):
    fields = {
        "max_completion_tokens": 8,
        "seed": 5,
        "logprobs": True,
        "top_logprobs": 3,
        "user": "me",
        "logit_bias": {"5": -100},
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "top_p": 0.9,
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    }
    first, alone, again = (
        client.chat.completions.create(
            model="x", messages=CAPITAL, temperature=1.5, n=n, extra_body={"cache_prompt": False}, **fields
        )
        for n in (2, 1, 1)
    )
    assert [choice.index for choice in first.choices] == [0, 1]
    # one by one: in company the steps of a quantised model round differently
    assert alone.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].message.content != first.choices[1].message.content
    for choice in first.choices:
        assert (
            bytes(b for one in choice.logprobs.content for b in one.bytes).decode("utf-8", "replace")
            == choice.message.content
        )
        assert all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in choice.logprobs.content)
    assert 2 <= first.usage.completion_tokens <= 16


def test_stop_words(client):
    for stop in ("Paris", ["no such word", "Paris"]):
        plain = client.chat.completions.create(messages=CAPITAL, stop=stop, max_tokens=24, **GREEDY)
        assert "Paris" not in plain.choices[0].message.content and plain.choices[0].finish_reason == "stop"


def test_native_fields_as_extras(client):
    plain = client.chat.completions.create(
        messages=CAPITAL, max_tokens=24, **GREEDY, extra_body={"grammar": 'root ::= "Berlin" | "Rome"', "top_k": 40}
    )
    assert plain.choices[0].message.content in ("Berlin", "Rome")
    assert plain.choices[0].finish_reason == "stop" and plain.model_extra["timings"]["predicted_n"] > 0


class City(pydantic.BaseModel):
    """What a structured answer must be."""

    name: str = pydantic.Field(max_length=20)
    country: str = pydantic.Field(max_length=20)
    population: int = pydantic.Field(ge=0, le=10**9)


@pytest.mark.covers("Q41")
def test_a_structured_answer_is_parsed_into_its_class(client):
    messages = [{"role": "user", "content": "Give me the city Paris as JSON."}]
    parsed = client.chat.completions.parse(messages=messages, response_format=City, max_tokens=200, **GREEDY)
    assert isinstance(parsed.choices[0].message.parsed, City)
    with client.chat.completions.stream(messages=messages, response_format=City, max_tokens=200, **GREEDY) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


def test_any_json_object(client):
    plain = client.chat.completions.create(
        messages=[{"role": "user", "content": "A tiny JSON object, please."}],
        response_format={"type": "json_object"},
        max_tokens=60,
        **GREEDY,
    )
    text = plain.choices[0].message.content
    if plain.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    assert text.lstrip().startswith("{")


def test_errors_are_the_packages_own(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="x", messages=[])
    assert caught.value.status_code == 400 and "messages" in caught.value.message
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.create(model="x", messages=CAPITAL, response_format={"type": "xml"}, stream=True)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list()


def test_the_models_list(client):
    models = client.models.list().data
    assert len(models) == 1 and models[0].object == "model" and models[0].id.endswith(".gguf")


# ---- text completions --------------------------------------------------------------------------------------------


def test_text_completions(client):
    fields = {"model": "x", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    plain = client.completions.create(**fields)
    assert "Paris" in plain.choices[0].text and plain.object == "text_completion"
    chunks = list(client.completions.create(stream=True, **fields))
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text
    assert client.completions.create(echo=True, **fields).choices[0].text == fields["prompt"] + plain.choices[0].text
    logprobs = client.completions.create(logprobs=2, **fields).choices[0].logprobs
    assert "".join(logprobs.tokens) == plain.choices[0].text and len(logprobs.top_logprobs[0]) == 2
    assert [
        plain.choices[0].text[at:][: len(token)] for at, token in zip(logprobs.text_offset, logprobs.tokens)
    ] == logprobs.tokens
    several = client.completions.create(**{**fields, "prompt": ["1 2 3 4 5 6", "A, B, C, D,"]})
    assert [choice.index for choice in several.choices] == [0, 1]
    assert "7" in several.choices[0].text and "E" in several.choices[1].text


# ---- leaving early -----------------------------------------------------------------------------------------------


def test_closing_a_stream_frees_the_slot(server, client):
    for _ in range(2 * N_SLOTS):
        with client.chat.completions.create(model="x", messages=COUNT, stream=True, extra_body=ENDLESS) as stream:
            assert len(list(islice(stream, 3))) == 3
    assert_idle(server)


def test_a_client_that_loses_patience_frees_the_slot(server, client):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="x", messages=COUNT, extra_body=ENDLESS)
    assert_idle(server)


def test_the_asynchronous_client_streams_and_cancels(server):
    async def talk() -> tuple[list[str], bool]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:

            async def text() -> str:
                stream = await client.chat.completions.create(messages=CAPITAL, max_tokens=12, stream=True, **GREEDY)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            texts = await asyncio.gather(*(text() for _ in range(2 * N_SLOTS)))
            task = asyncio.create_task(client.chat.completions.create(model="x", messages=COUNT, extra_body=ENDLESS))
            await asyncio.to_thread(wait_until, lambda: server.get("/health").json()["slots_processing"], "the slot")
            task.cancel()
            await asyncio.wait([task])
            return texts, task.cancelled()

    texts, is_cancelled = asyncio.run(talk())
    assert is_cancelled and len(set(texts)) == 1 and "Paris" in texts[0]
    assert_idle(server)
