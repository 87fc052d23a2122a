"""A script written only from the text of the two documents, run against the small real model.

Command lines, JSON bodies and programs are unchanged except for host, port and model. Answers are compared with the
documents. Clients that are files (`chat.mjs`, `chat.sh`, the wrapper) are in `test_seed_clients.py`, the OpenAI
examples for Python in `test_openai_python.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, ServerProcess, events, need, start_server, wait_until

SYSTEM_PROMPT = {
    "system_prompt": {
        "prompt": 'Transcript of a never ending dialog, where the User interacts with an Assistant.\nThe Assistant is helpful, kind, honest, good at writing, and never fails to answer the User\'s requests immediately and with precision.\nUser: Recommend a nice restaurant in the area.\nAssistant: I recommend the restaurant "The Golden Duck". It is a 5 star restaurant with a great view of the city. The food is delicious and the service is excellent. The prices are reasonable and the portions are generous. The restaurant is located at 123 Main Street, New York, NY 10001. The phone number is (212) 555-1234. The hours are Monday through Friday from 11:00 am to 10:00 pm. The restaurant is closed on Saturdays and Sundays.\nUser: Who is Richard Feynman?\nAssistant: Richard Feynman was an American physicist who is best known for his work in quantum mechanics and particle physics. He was awarded the Nobel Prize in Physics in 1965 for his contributions to the development of quantum electrodynamics. He was a popular lecturer and author, and he wrote several books, including "Surely You\'re Joking, Mr. Feynman!" and "What Do You Care What Other People Think?".\nUser:',  # noqa: E501
        "anti_prompt": "User:",
        "assistant_name": "Assistant:",
    }
}

COMPLETION = r"""curl --request POST \
    --url http://localhost:8080/completion \
    --header "Content-Type: application/json" \
    --data '{"prompt": "Building a website can be done in 10 simple steps:","n_predict": 128}'
"""

CHAT = r"""curl http://localhost:8080/v1/chat/completions \
-H "Content-Type: application/json" \
-H "Authorization: Bearer no-key" \
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
"""  # noqa: E501

INDEX_JS = """const prompt = `Building a website can be done in 10 simple steps:`;
async function Test() {
    let response = await fetch("http://127.0.0.1:8080/completion", {
        method: 'POST',
        body: JSON.stringify({
            prompt,
            n_predict: 512,
        })
    })
    console.log((await response.json()).content)
}
Test()
"""

SLOT = """dynatemp_exponent dynatemp_range frequency_penalty grammar id ignore_eos logit_bias min_p mirostat mirostat_eta
mirostat_tau model n_ctx n_keep n_predict n_probs next_token penalize_nl penalty_prompt_tokens presence_penalty prompt
repeat_last_n repeat_penalty samplers seed state stop stream task_id temperature tfs_z top_k top_p typical_p
use_penalty_prompt_tokens""".split()
NEXT_TOKEN = (
    "has_next_token n_remain num_tokens_predicted n_decoded stopped_eos stopped_limit stopped_word stopping_word"
).split()
RESULT = """content stop generation_settings model prompt stopped_eos stopped_limit stopped_word stopping_word timings
tokens_cached tokens_evaluated truncated""".split()
METRICS = """prompt_tokens_total tokens_predicted_total prompt_tokens_seconds predicted_tokens_seconds
kv_cache_usage_ratio kv_cache_tokens requests_processing requests_deferred""".split()


@pytest.fixture(scope="module")
def slots_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def server(libs_folder, smollm2, slots_folder) -> Iterator[ServerProcess]:
    """`./server -m ... -c 2048` with what the documents let one switch on, in the profile of their time.

    `-n` cuts the longest of their examples short, for slow machines; `--seed` leaves nothing to chance in those that
    draw at random.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(slots_folder)  # llama.log goes there
        with start_server(
            [
                "-m",
                smollm2,
                "-c",
                2048,
                "--compat",
                "2024",
                "--metrics",
                "--slot-save-path",
                slots_folder,
                "-np",
                2,
                "-cb",
                "-n",
                130,
                "--seed",
                1,
                "-t",
                1,
            ]
        ) as running:
            yield running


def shell(server: ServerProcess, line: str) -> dict:
    """What a curl line of the documents prints."""
    need(shutil.which("curl") and shutil.which("bash"), "curl or bash isn't installed")
    line = line.replace("http://localhost:8080", server.url).replace("curl ", "curl --silent --noproxy '*' ", 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, encoding="utf-8", timeout=PATIENCE, check=True)
    return json.loads(done.stdout)


def test_testing_with_curl(server):
    result = shell(server, COMPLETION)
    assert set(RESULT) <= set(result)
    assert len(result["content"]) > 20 and result["stop"] is True
    assert result["prompt"] == "Building a website can be done in 10 simple steps:"
    assert result["model"] == server.command[server.command.index("-m") + 1], "the path given to -m"
    assert result["stopped_limit"] or result["stopped_eos"]
    assert result["timings"]["predicted_per_second"] > 0
    assert result["tokens_evaluated"] > 5 and result["truncated"] is False
    settings = result["generation_settings"]
    assert "prompt" not in settings and settings["n_ctx"] == 1024 and settings["n_predict"] == 128


def test_the_node_js_test(server, tmp_path):
    need(shutil.which("node"), "node isn't installed")
    (tmp_path / "index.js").write_text(INDEX_JS.replace("http://127.0.0.1:8080", server.url), encoding="utf-8")
    done = subprocess.run(
        ["node", "index.js"], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=PATIENCE, check=True
    )
    assert len(done.stdout.strip()) > 20 and not done.stderr


def test_health(server):
    idle = {"status": "ok", "slots_idle": 2, "slots_processing": 0}
    wait_until(lambda: server.get("/health").json() == idle, "all slots to be idle")
    assert len(server.get("/health?include_slots").json()["slots"]) == 2
    assert server.get("/health?fail_on_no_slot").status_code == 200


def test_streaming(server):
    """Only `content` and `stop` are promised before the end; chat.sh feeds every line to jq."""
    body = {"prompt": "The capital of France is", "n_predict": 8, "temperature": 0}
    chunks = list(server.stream("/completion", body))
    assert all(isinstance(chunk["content"], str) for chunk in chunks)
    assert [chunk["stop"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert "Paris" in "".join(chunk["content"] for chunk in chunks)
    assert set(RESULT) <= set(chunks[-1])


def test_the_options_with_their_examples(server):
    word = server.post("/tokenize", {"content": " Paris"}).json()["tokens"]
    assert len(word) == 1
    ask = {"prompt": "The capital of France is", "n_predict": 6, "temperature": 0}
    assert " Paris" in server.post("/completion", ask).json()["content"]
    never = server.post("/completion", {**ask, "logit_bias": [[word[0], False]]}).json()
    assert " Paris" not in never["content"] and never["generation_settings"]["logit_bias"] == [[word[0], False]]
    for bias in ([[15043, 1.0]], [[15043, -1.0]], [["Hello, World!", -0.5]]):
        assert server.post("/completion", {**ask, "logit_bias": bias}).status_code == 200
    stopped = server.post("/completion", {**ask, "stop": [" Paris"]}).json()
    assert (stopped["stopped_word"], stopped["stopping_word"]) == (True, " Paris") and "Paris" not in stopped["content"]
    probs = server.post("/completion", {**ask, "n_probs": 3}).json()["completion_probabilities"]
    assert len(probs) == 6 and all(len(item["probs"]) == 3 for item in probs)
    assert all(set(prob) >= {"prob", "tok_str"} for item in probs for prob in item["probs"])
    everything = {
        "dynatemp_range": 0.2,
        "dynatemp_exponent": 1.5,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.1,
        "n_keep": -1,
        "tfs_z": 0.95,
        "typical_p": 0.9,
        "repeat_penalty": 1.2,
        "repeat_last_n": -1,
        "penalize_nl": False,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "penalty_prompt": "France",
        "mirostat": 2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
        "seed": 42,
        "ignore_eos": True,
        "min_keep": 2,
        "slot_id": 1,
        "cache_prompt": True,
        "temperature": 0.7,
        "samplers": ["top_k", "tfs_z", "typical_p", "top_p", "min_p", "temperature"],
    }
    first, second = (server.post("/completion", {**ask, **everything}).json() for _ in range(2))
    assert first["content"] == second["content"] and first["id_slot"] == first["slot_id"] == 1
    assert second["timings"]["cache_n"] > 0
    settings = first["generation_settings"]
    assert {
        name: settings[name] for name in everything if name in settings and name not in ("samplers", "slot_id")
    } == {name: value for name, value in everything.items() if name in settings and name not in ("samplers", "slot_id")}
    assert settings["use_penalty_prompt_tokens"] and settings["penalty_prompt_tokens"]


def test_grammar_and_schema(server):
    ask = {"prompt": "A list: ", "n_predict": 60, "seed": 1}
    result = server.post("/completion", {**ask, "grammar": 'root ::= "yes" | "no"'}).json()
    assert result["content"] in ("yes", "no")
    schema = {"items": {"type": "string"}, "minItems": 2, "maxItems": 3}
    result = server.post("/completion", {**ask, "n_predict": 200, "json_schema": {"type": "array", **schema}}).json()
    if result["stopped_eos"]:
        assert 2 <= len(json.loads(result["content"])) <= 3
    error = server.post("/completion", {**ask, "grammar": "root ::= ((("}).json()["error"]
    assert error["code"] == 400 and error["type"] == "invalid_request_error"
    assert error["message"].startswith("Failed to parse grammar")


def test_tokenize_and_detokenize(server):
    tokens = server.post("/tokenize", {"content": "Hello, wörld 😀"}).json()["tokens"]
    assert all(isinstance(token, int) for token in tokens)
    assert server.post("/detokenize", {"tokens": tokens}).json()["content"].strip() == "Hello, wörld 😀"


def test_props(server):
    props = server.get("/props").json()
    assert {"assistant_name", "user_name", "default_generation_settings", "total_slots"} <= set(props)
    assert props["total_slots"] == 2
    result = server.complete("x", 1)
    assert set(result["generation_settings"]) <= set(props["default_generation_settings"])


def test_slots(server):
    for slot in server.get("/slots").json():
        assert set(SLOT) <= set(slot)
        assert set(NEXT_TOKEN) <= set(slot["next_token"])


def test_metrics(server):
    text = server.get("/metrics").text
    for name in METRICS:
        assert f"\nllamacpp:{name} " in text, name


def test_the_chat_example(server):
    answer = shell(server, CHAT.replace('"model"', '"max_tokens": 40, "model"'))
    assert len(answer["choices"][0]["message"]["content"]) > 10
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_saving_restoring_and_erasing_a_slot(server):
    file = {"filename": "slot_save_file.bin"}
    server.complete("A long story about a slot.", 4, id_slot=0, cache_prompt=True)
    saved = server.post("/slots/0?action=save", file).json()
    assert set(saved) == {"id_slot", "filename", "n_saved", "n_written", "timings"} and "save_ms" in saved["timings"]
    restored = server.post("/slots/0?action=restore", file).json()
    assert set(restored) == {"id_slot", "filename", "n_restored", "n_read", "timings"}
    assert (restored["n_restored"], restored["n_read"]) == (saved["n_saved"], saved["n_written"])
    erased = server.post("/slots/0?action=erase").json()
    assert erased == {"id_slot": 0, "n_erased": saved["n_saved"]}


@pytest.mark.covers("B09")
def test_errors(libs_folder, smollm2):
    with start_server(["-m", smollm2, "--api-key", "secret", "--slots-endpoint-disable", "-c", 512, "-t", 1]) as server:
        assert server.post("/completion", {"prompt": "x"}).json() == {
            "error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}
        }
        key = {"Authorization": "Bearer secret"}
        for path, name in (("/metrics", "metrics"), ("/slots", "slots")):
            error = server.get(path, headers=key).json()["error"]
            assert (error["code"], error["type"]) == (501, "not_supported_error")
            assert error["message"].startswith(f"This server does not support {name} endpoint.")
        assert "slots" not in server.get("/health?include_slots").json()


@pytest.mark.covers("B01", "C31", "Q32")
def test_changing_the_system_prompt_at_run_time_and_at_the_start(libs_folder, smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "system.json"
    file.write_text(json.dumps(SYSTEM_PROMPT), encoding="utf-8")
    options = ["-m", smollm2, "-c", 2048, "-np", 2, "--compat", "2024", "-t", 1]
    question = {
        "prompt": " Who is Richard Feynman?\nAssistant:",
        "n_predict": 24,
        "temperature": 0,
        "repeat_penalty": 1.0,
        "stop": ["User:"],
    }
    answers = []
    for more, body in ((["-spf", file], question), ([], {**question, **SYSTEM_PROMPT})):
        with start_server([*options, *more]) as server:
            if more:  # it is set behind the loading: the last thing before the line that says ready
                server.wait_for_line("llama_srv is ready")
            answers.append(server.post("/completion", body).json())
            props = server.get("/props").json()
            assert (props["assistant_name"], props["user_name"]) == ("Assistant:", "User:")
            for id_slot in (0, 1):
                again = server.post("/completion", {**question, "id_slot": id_slot}).json()
                # no further: steps of another length round differently, and this model is quantised
                assert again["content"][:40] == answers[-1]["content"][:40]
                assert again["timings"]["prompt_n"] < 20, "the system prompt isn't computed again"
    assert answers[0]["content"][:40] == answers[1]["content"][:40]
    assert "physicist" in answers[0]["content"], "it knows what the prompt says"


def test_events_of_a_stream_are_lines_of_json(server):
    response = server.post("/completion", {"prompt": "x", "n_predict": 3, "stream": True}, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert list(events(response))[-1]["stop"] is True
