"""A server process with a real model: the right text over HTTP for every client, and a clean end.

The tiny models' greedy text must not depend on other requests, streaming or the cache; the small real model must know a
few facts. Needs the native libraries.
"""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import requests

from server.api.request.schema import COMPLETION_FIELDS, SAMPLING_FIELDS
from server.engine.seam.task import SAMPLER_NAMES
from tests.gguf_edit import scalar, take_apart
from tests.support import PATIENCE, ServerProcess, wait_until
from tests.tiny_models import RECITE_WORDS

STEM = "Once upon a time the little girl and the big dog went into the old house near the river , and then "
PROMPTS = (
    STEM + "the moon",
    STEM + "the star sang",
    "a",
    "the cat",
    STEM + "she said : naïve café , 😀 !",
    "night and day " * 12,
    STEM,
    "the quiet fox slept under the tree",
)


def together(asks: list) -> list:
    """What the calls return, all made at the same time."""
    with ThreadPoolExecutor(len(asks)) as pool:
        return [future.result(PATIENCE) for future in [pool.submit(ask) for ask in asks]]


def streamed(server: ServerProcess, prompt: str, n_predict: int, **fields: object) -> str:
    """The text of a greedy stream, which must come to its end."""
    body = {"prompt": prompt, "n_predict": n_predict, "temperature": 0, **fields}
    events = list(server.stream("/completion", body))
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    return "".join(event["content"] for event in events)


# ---- the text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny_spm_model", "tiny_bpe_model"])
def test_eight_requests_at_once_on_four_slots_get_what_each_gets_alone(serve, request, model):
    server = serve("-m", request.getfixturevalue(model), "-np", 4, "-t", 1)
    alone = [server.complete(prompt, 40, cache_prompt=False)["content"] for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    for cache_prompt in (False, True, True):
        plain = together([lambda p=p: server.complete(p, 40, cache_prompt=cache_prompt)["content"] for p in PROMPTS])
        assert plain == alone
        stream = together([lambda p=p: streamed(server, p, 40, cache_prompt=cache_prompt) for p in PROMPTS])
        assert stream == alone


def test_a_known_text_word_for_word(serve, recite_model):
    server = serve("-m", recite_model, "-t", 1)
    text = "".join(RECITE_WORDS[1:])
    result = server.complete("count: one", -1)
    assert (result["content"], result["stopped_eos"]) == (text, True)
    assert streamed(server, "count: one", -1) == text
    stopped = server.complete("count: one", -1, stop=["ree fo"])
    assert (stopped["content"], stopped["stopping_word"]) == (text[: text.index("ree fo")], "ree fo")
    tokens = server.post("/tokenize", {"content": text}).json()["tokens"]
    assert len(tokens) == len(RECITE_WORDS) - 1
    assert server.post("/detokenize", {"tokens": tokens}).json()["content"] == text


def test_context_shift_over_http(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-c", 256, "-np", 2, "--context-shift", "-t", 1)
    fields = {"n_keep": 4, "n_discard": 110, "cache_prompt": False}
    alone = [server.complete(prompt, 250, **fields) for prompt in PROMPTS[:2]]
    assert all(result["truncated"] and result["tokens_predicted"] == 250 for result in alone)
    both = together([lambda p=p: server.complete(p, 250, **fields)["content"] for p in PROMPTS[:2]])
    assert both == [result["content"] for result in alone]


# ---- requests that could bring a process down --------------------------------------------------------------------


def assert_alive_and_right(server: ServerProcess, text: str) -> None:
    assert server.process.poll() is None, server.log
    assert server.complete("count: one", 3)["content"] == text


LEAVES_NOTHING = {
    "a finished grammar whose end is banned": {"ignore_eos": True},
    "the only letter is banned": {"logit_bias": [["a", False]]},
    "both, and probabilities": {"logit_bias": [["a", False]], "ignore_eos": True, "n_probs": 2},
}


@pytest.mark.parametrize("fields", LEAVES_NOTHING.values(), ids=LEAVES_NOTHING)
def test_a_request_that_leaves_no_token_to_choose_harms_nobody(serve, recite_model, fields):
    server = serve("-m", recite_model, "-t", 1)
    text = server.complete("count: one", 3)["content"]
    for temperature in (0, 1.5):
        body = {"prompt": "x", "n_predict": 5, "grammar": 'root ::= "a"', "temperature": temperature, **fields}
        response = server.post("/completion", body)
        assert response.status_code in (200, 400), response.text
        if response.status_code == 200:
            assert response.json()["content"] in ("", "a")
        assert_alive_and_right(server, text)


def extremes() -> list[dict[str, object]]:
    """A request for each limit of each field, and some that are odd in other ways."""
    bodies: list[dict[str, object]] = []
    for field in (*SAMPLING_FIELDS, *COMPLETION_FIELDS):
        if field.kind in (int, float) and field.name not in ("n_cmpl", "id_slot"):
            bodies += [{field.name: value} for value in (field.low, field.high) if math.isfinite(value)]
    on = {"repeat_penalty": 1.5, "dry_multiplier": 1.0, "xtc_probability": 1.0, "top_n_sigma": 0.0, "typical_p": 0.0}
    bodies += [{**on, **body} for body in bodies[:]]
    bodies += [{"samplers": [name]} for name in SAMPLER_NAMES]
    bodies += [
        {"samplers": list(SAMPLER_NAMES) * 3},
        {"samplers": ["infill", "adaptive_p"], "adaptive_target": 0.5},
        {"dry_multiplier": 1, "dry_sequence_breakers": ["", "\u0000", "é" * 500]},
        {"dry_multiplier": 1, "dry_sequence_breakers": []},
        {"stop": ["", "\u0000"]},
        {"logit_bias": [[i, False] for i in range(250)]},
        {"logit_bias": [[5, 1e38], [6, -1e38]] * 100},
        {"prompt": [0]},
        {"prompt": [1, 1, 2, 2]},
        {"prompt": "\u0000<|im_end|>\ud7ff\uffff"},
        {"prompt": "x" * 20000},
        {"mirostat": 1, "grammar": "root ::= [a-z]*"},
        {"grammar": "root ::= " + "(" * 150 + '"a"' + ")" * 150},
    ]
    return bodies


@pytest.mark.parametrize("options", [(), ("--context-shift",), ("--grp-attn-n", 2, "--grp-attn-w", 64)], ids=str)
def test_no_value_that_is_allowed_brings_the_server_down(serve, recite_model, options):
    server = serve("-m", recite_model, "-c", 512, "-np", 2, "-t", 1, *options)
    text = server.complete("count: one", 3)["content"]
    for body in extremes():
        for temperature in (0, 1):
            body = {"prompt": "count: one", "n_predict": 4, "temperature": temperature, "seed": 1, **body}
            response = server.post("/completion", body)
            assert response.status_code in (200, 400), (body, response.text)
            response.json()
    assert_alive_and_right(server, text)


# ---- the real model ----------------------------------------------------------------------------------------------

FACTS = {
    "The capital of France is": "Paris",
    "The capital of England is": "London",
    "The capital of Japan is": "Tokyo",
    "The opposite of hot is": "cold",
    "Romeo and Juliet was written by William": "Shakespeare",
    "To be or not to": "be",
    "1 2 3 4 5 6": "7 8",
    "A, B, C, D,": "E, F",
}


def test_the_small_real_model_knows_a_few_things_alone_and_in_company(serve, smollm2):
    server = serve("-m", smollm2, "-c", 4096, "-np", 8, "-t", 1)  # threads that wait spin: leave room for others
    for prompt, word in FACTS.items():
        plain = server.complete(prompt, 6, cache_prompt=False)
        assert word in plain["content"], plain["content"]
        assert streamed(server, prompt, 6, cache_prompt=False) == plain["content"]
    texts = together([lambda p=p: streamed(server, p, 6, cache_prompt=False) for p in FACTS])
    for text, word in zip(texts, FACTS.values()):
        assert word in text
    timings = plain["timings"]
    assert timings["predicted_per_second"] > 0 and timings["prompt_per_second"] > 0
    assert server.get("/health").json() == {"status": "ok", "slots_idle": 8, "slots_processing": 0}


# ---- start -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("C05", "C10", "C24", "C29")
def test_port_zero_picks_a_port_and_reports_it(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-c", 512, "-np", 2)
    server.wait_for_line(r"ready: http://127\.0\.0\.1:\d+")
    props = server.get("/props").json()
    assert props["total_slots"] == 2 and props["default_generation_settings"]["n_ctx"] == 256
    assert props["model_path"] == str(tiny_spm_model)
    second = serve("-m", tiny_spm_model)
    assert second.url != server.url


def test_options_from_the_environment(serve, tiny_spm_model):
    server = serve(environment={"LLAMA_ARG_MODEL": str(tiny_spm_model), "LLAMA_ARG_N_PARALLEL": "3"})
    assert server.get("/props").json()["total_slots"] == 3


def test_what_the_models_file_advises_counts_where_nobody_says_otherwise(serve, tiny_spm_model, tmp_path):
    parts = take_apart(tiny_spm_model)
    advice = {"temp": 0.25, "top_p": 0.75, "min_p": 7.0}
    for key, value in advice.items():
        parts.set(f"general.sampling.{key}", scalar("f32", value))
    model = parts.write(tmp_path / "advising.gguf")
    server = serve("-m", model, "--top-p", 0.5)
    shown = server.get("/props").json()["default_generation_settings"]
    assert (shown["temperature"], shown["top_p"], shown["min_p"]) == (0.25, 0.5, 0.05)
    assert shown["sources"] == {"temperature": "model", "top_p": "option"}
    assert server.complete("a", 1, temperature=None)["generation_settings"]["temperature"] == 0.25
    assert server.complete("a", 1, temperature=1.5)["generation_settings"]["temperature"] == 1.5
    assert "defaults of requests from the model's file: temperature 0.25\n" in server.log
    assert server.log.count("recommends settings that can't be used: general.sampling.min_p") == 1
    old = serve("-m", model, "--compat", "2024").get("/props").json()["default_generation_settings"]
    assert old["temperature"] == 0.8 and old["sources"] == {"repeat_penalty": "option", "cache_prompt": "option"}


def test_the_page_is_there(serve, tiny_spm_model):
    page = serve("-m", tiny_spm_model).get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]


# ---- the end -----------------------------------------------------------------------------------------------------

SIGNALS = [ServerProcess.terminate, ServerProcess.interrupt]


def assert_clean_end(server: ServerProcess, code: int = 0) -> None:
    assert server.wait() == code, server.log
    assert "Traceback" not in server.log and "error" not in server.log.lower(), server.log


@pytest.mark.parametrize("signal", SIGNALS, ids=["terminate", "interrupt"])
def test_a_signal_lets_the_running_stream_finish(serve, tiny_spm_model, signal):
    server = serve("-m", tiny_spm_model, "-t", 1, "--drain", PATIENCE)
    alone = server.complete("the cat", 600, cache_prompt=False)["content"]
    body = {"prompt": "the cat", "n_predict": 600, "temperature": 0, "cache_prompt": False}
    stream = server.stream("/completion", body)
    events = list(islice(stream, 3))
    signal(server)
    events += stream
    assert events[-1]["stop"] is True and events[-1]["tokens_predicted"] == 600
    assert "".join(event["content"] for event in events) == alone
    assert_clean_end(server)


@pytest.mark.parametrize("signal", SIGNALS, ids=["terminate", "interrupt"])
def test_a_signal_ends_an_idle_server(serve, tiny_spm_model, signal):
    server = serve("-m", tiny_spm_model, "--drain", 86400)
    assert server.get("/health").status_code == 200  # and its connection is kept open
    signal(server)
    assert_clean_end(server)


def test_at_the_end_of_the_time_running_streams_end_with_what_they_have(serve, tiny_spm_model):
    """On one slot: a stream that runs, and a stream and a plain request that wait."""
    server = serve("-m", tiny_spm_model, "-c", 256, "-np", 1, "--context-shift", "-t", 1, "--metrics", "--drain", 0.1)
    body = {"prompt": "the cat", "n_predict": -1, "stream": True}
    running = server.stream("/completion", body)
    events = [next(running)]

    def wait(stream: bool) -> requests.Response:
        return server.post("/completion", {**body, "stream": stream})

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wait, stream) for stream in (True, False)]
        wait_until(lambda: "llamacpp:requests_deferred 2" in server.get("/metrics").text, "both to wait")
        server.terminate()
        events += running
        assert events[-1]["stop"] is True and events[-1]["stopped_limit"] is True
        assert len("".join(event["content"] for event in events)) > 0
        for answer in waiting:
            assert answer.result(PATIENCE).status_code == 503
            assert answer.result().json()["error"]["message"] == "the server is shutting down"
    assert_clean_end(server)


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there the second Ctrl-Break is the system's")
@pytest.mark.parametrize("signal", SIGNALS, ids=["terminate", "interrupt"])
def test_a_second_signal_ends_at_once(serve, tiny_spm_model, signal):
    server = serve("-m", tiny_spm_model, "-c", 256, "--context-shift", "-t", 1, "--drain", 86400)
    stream = server.stream("/completion", {"prompt": "the cat", "n_predict": -1})
    next(stream)
    signal(server)
    server.wait_for_line("stopping")
    next(stream)
    signal(server)
    assert server.wait() == 130
    stream.close()


def test_while_it_stops_no_new_connection_is_taken(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-c", 256, "--context-shift", "-t", 1, "--drain", PATIENCE)
    stream = server.stream("/completion", {"prompt": "the cat", "n_predict": -1})
    next(stream)
    server.terminate()

    def is_refused() -> bool:
        try:
            requests.get(server.url + "/health", timeout=PATIENCE)
        except requests.ConnectionError:
            return True
        return False

    wait_until(is_refused, "new connections to be refused")
    next(stream)
    stream.close()
    assert_clean_end(server)


def test_a_signal_while_the_model_loads_ends_the_server(serve, smollm2):
    server = serve("-m", smollm2, ready=False)
    server.terminate()
    assert_clean_end(server)


def test_clients_that_vanish_leave_a_real_server_well(serve, tiny_spm_model):
    server = serve("-m", tiny_spm_model, "-c", 1024, "-np", 4, "--context-shift", "-t", 1)
    alone = server.complete("the cat", 30, cache_prompt=False)["content"]
    for n_read in (0, 1, 5):
        streams = [
            server.stream("/completion", {"prompt": STEM + str(i), "n_predict": -1, "cache_prompt": False})
            for i in range(8)
        ]
        for stream in streams[:4]:
            list(islice(stream, n_read + 1))
        for stream in streams:
            stream.close()

    def is_idle() -> bool:
        return server.get("/health").json() == {"status": "ok", "slots_idle": 4, "slots_processing": 0}

    wait_until(is_idle, "all slots to be idle")
    assert server.complete("the cat", 30)["content"] == alone
