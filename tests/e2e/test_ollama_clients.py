"""The packages `ollama` for Python and JavaScript, and `langchain-ollama`, against a real server with SmolLM2. Greedy
where texts are compared.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.support import PATIENCE, ServerProcess, need, node_package, start_server, wait_until

N_SLOTS = 2
NAME = "small"
ASK = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
GREEDY = {"temperature": 0, "num_predict": 24}
DOG = {
    "title": "named",
    "description": "A name",
    "type": "object",
    "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 99}},
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(libs_folder, smollm2) -> Iterator[ServerProcess]:
    """One server for all tests of this file; its log is shown when one fails."""
    arguments = ["-m", smollm2, "-a", NAME, "-c", 4096, "-np", N_SLOTS, "-t", 1, "-n", 256]
    with start_server([str(argument) for argument in arguments]) as running:
        yield running
        print(running.log)


@pytest.fixture(scope="module")
def ollama():
    return pytest.importorskip("ollama", reason="the package ollama is not installed: run build_scripts/test.py")


@pytest.fixture
def client(ollama, server):
    with ollama.Client(server.url, timeout=PATIENCE) as one:
        yield one


@pytest.mark.covers("L17")
def test_chats_say_the_same_whole_and_streamed(client):
    whole = client.chat(NAME, ASK, options=GREEDY)
    assert "Paris" in whole.message.content and whole.done and whole.done_reason in ("stop", "length")
    assert whole.total_duration >= whole.eval_duration > 0 and whole.eval_count > 3
    parts = list(client.chat(NAME, ASK, stream=True, options=GREEDY))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count and parts[-1].done


def test_prompts_go_on_with_their_context(client):
    first = client.generate(NAME, "Say hello.", options=GREEDY)
    assert "".join(part.response for part in client.generate(NAME, "Say hello.", stream=True, options=GREEDY)) == (
        first.response
    )
    second = client.generate(NAME, "And again.", context=first.context, options=GREEDY)
    assert list(second.context)[: len(first.context)] == list(first.context)
    assert client.generate(NAME, "1, 2, 3, 4, 5,", raw=True, options=GREEDY).response.startswith(" 6")
    assert client.generate(NAME, "", keep_alive=0).done_reason == "unload"


def test_forms_and_log_probabilities(client):
    answer = client.chat(NAME, [{"role": "user", "content": "Invent a dog."}], format=DOG, options={"temperature": 0})
    assert set(json.loads(answer.message.content)) == {"name", "age"}
    free = client.generate(NAME, "Invent a dog, as JSON.", format="json", options={"num_predict": 200})
    assert free.done_reason == "length" or isinstance(json.loads(free.response), dict)
    judged = client.chat(NAME, ASK, logprobs=True, top_logprobs=2, options=GREEDY)
    assert "".join(one.token for one in judged.logprobs) == judged.message.content
    assert all(len(one.top_logprobs) == 2 for one in judged.logprobs)


def test_tools_and_thinking_are_taken(client):
    def weather(city: str) -> str:
        """The weather.

        Args:
          city: Where
        """
        return city

    answer = client.chat(NAME, ASK, tools=[weather], think=False, options={**GREEDY, "num_predict": 64})
    for call in answer.message.tool_calls or ():
        assert call.function.name == "weather" and isinstance(call.function.arguments["city"], str)
    calls = [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}]
    turns = [
        *ASK,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_name": "weather", "content": "rain"},
    ]
    assert client.chat(NAME, turns, tools=[weather], options=GREEDY).message.role == "assistant"
    assert client.chat(NAME, ASK, think="low", stream=False, options=GREEDY).message.content


def test_models_are_listed_and_shown(client):
    assert [one.model for one in client.list().models] == [f"{NAME}:latest"]
    [running] = client.ps().models
    assert running.context_length == 4096 // N_SLOTS and running.size > 10**6
    shown = client.show(NAME)
    assert shown.modelinfo["general.architecture"] == "llama" and "completion" in shown.capabilities
    assert shown.details.quantization_level == "Q4_1" and "message" in shown.template


def test_vectors(client):
    found = client.embed(NAME, ["one", "two"])
    assert len(found.embeddings) == 2 and all(abs(sum(x * x for x in v) - 1) < 1e-4 for v in found.embeddings)
    assert len(client.embeddings(NAME, "one").embedding) == len(found.embeddings[0])


def test_errors_have_their_text_and_status(ollama, client):
    with pytest.raises(ollama.ResponseError, match="options.top_p") as caught:
        client.chat(NAME, ASK, options={"top_p": 5})
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="options.top_p"):
        list(client.chat(NAME, ASK, stream=True, options={"top_p": 5}))
    with pytest.raises(ollama.ResponseError, match="--manage-models") as caught:
        client.pull("other")
    assert caught.value.status_code == 501


def test_leaving_a_stream_frees_the_slot(server, client):
    for _ in range(2 * N_SLOTS):
        stream = client.generate(NAME, "Count from 1 to 500.", stream=True, options={"ignore_eos": True})
        assert len(list(islice(stream, 4))) == 4
        stream.close()

    def is_idle() -> bool:
        return server.get("/health").json()["slots_idle"] == N_SLOTS

    wait_until(is_idle, "all slots to be idle")


def test_many_at_once(ollama, server):
    async def ask() -> list[str]:
        client = ollama.AsyncClient(server.url, timeout=PATIENCE)
        answers = await asyncio.gather(*(client.chat(NAME, ASK, options=GREEDY) for _ in range(4)))
        return [answer.message.content for answer in answers]

    assert all("Paris" in text for text in asyncio.run(ask()))


def test_the_package_for_javascript(server):
    need(shutil.which("node"), "no Node.js on this machine")
    package = node_package("ollama") / "dist" / "index.mjs"
    script = Path(__file__).with_name("ollama_client.mjs")
    command = [shutil.which("node"), str(script), str(package), server.url]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "Paris" in found["whole"] and found["streamed"] == found["whole"] and found["isDone"]
    assert found["names"] == [f"{NAME}:latest"] and "completion" in found["capabilities"]
    assert len(set(found["lengths"])) == 1 and found["bound"] == {"n": 7}
    assert found["n"] == 3 and found["reason"] == "AbortError"
    assert found["refusal"]["status"] == 400 and "options.top_p" in found["refusal"]["message"]


# ---- langchain-ollama --------------------------------------------------------------------------------------------


@pytest.fixture
def langchain(server, monkeypatch):
    module = pytest.importorskip(
        "langchain_ollama", reason="langchain-ollama is not installed: run build_scripts/test.py"
    )
    for variable in ("LANGCHAIN_TRACING_V2", "LANGSMITH_TRACING", "OLLAMA_HOST", "OLLAMA_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    return module


def test_langchain_finds_its_model_and_chats(server, langchain):
    chat = langchain.ChatOllama(
        model=NAME, base_url=server.url, temperature=0, num_predict=24, validate_model_on_init=True
    )
    plain = chat.invoke([("human", ASK[0]["content"])])
    assert "Paris" in plain.content and plain.response_metadata["done_reason"] in ("stop", "length")
    chunks = list(chat.stream([("human", ASK[0]["content"])]))
    assert "".join(chunk.content for chunk in chunks) == plain.content
    assert [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata] == [
        plain.usage_metadata["output_tokens"]
    ]


def test_langchain_structured_output_and_vectors(server, langchain):
    chat = langchain.ChatOllama(model=NAME, base_url=server.url, temperature=0, num_predict=100)
    answer = chat.with_structured_output(DOG, method="json_schema").invoke("Invent a dog.")
    assert set(answer) == {"name", "age"} and isinstance(answer["age"], int)
    vectors = langchain.OllamaEmbeddings(model=NAME, base_url=server.url).embed_documents(["one", "two"])
    assert len(vectors) == 2 and vectors[0] != vectors[1]
    assert langchain.OllamaLLM(model=NAME, base_url=server.url, temperature=0, num_predict=8).invoke("Say hello.")
