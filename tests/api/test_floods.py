"""Small requests that multiply, and large ones that can't fit: refused before any work, counted, and without effect on
other clients. `tests/e2e/test_floods.py` tests the same bounds with the real library.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.api.conftest import PATIENCE
from tests.api.test_metrics import refused as refusals
from tests.fake_embeddings import FakeEmbeddings
from tests.fakes import FakeBackend, FakeVocab
from tests.support import wait_until

MIB = 1 << 20


class Counting(FakeVocab):
    """How much text it was given."""

    def __init__(self, fim=None) -> None:
        super().__init__(fim)
        self.n_characters = 0

    def tokenize(self, text, add_special, parse_special, **bounds):
        self.n_characters += len(text)
        return super().tokenize(text, add_special, parse_special, **bounds)


@pytest.fixture
def flooded(make_api, monkeypatch):
    """`flooded(*argv, ...)`: a server with metrics, its vocabulary, and the tasks that it submits."""

    def make(*argv, n_ctx=1024, n_slots=2, fim=None, cuts=False, max_text=MIB, **engine):
        vocab = Counting(fim)
        api = make_api(FakeBackend(n_ctx=n_ctx, n_slots=n_slots), ("--metrics", *argv), vocab=vocab, **engine)
        api.client._text_bounds = max_text, cuts
        api.start()
        api.tasks, submit = [], api.client.submit
        monkeypatch.setattr(
            api.client, "submit", lambda *tasks, stream: (api.tasks.extend(tasks), submit(*tasks, stream=stream))[1]
        )
        return api, vocab

    return make


# ---- products of fields ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
@pytest.mark.parametrize("prompt", [["x"] * 1000, [["x", 5]] * 1000, [{"prompt_string": "x"}] * 1000])
def test_prompts_times_answers_are_checked_against_the_queue_before_anything_is_made(flooded, path, prompt):
    api, vocab = flooded()
    answer = api.post(path, {"prompt": prompt, "n": 128, "n_cmpl": 128})
    assert answer.status == 400 and "1000 prompts with 128 answers" in answer.error["message"], answer
    assert vocab.n_characters == 0 and api.tasks == []
    assert refusals(api) == {"too_many": 1}


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions", "/infill"])
def test_answers_are_bounded_by_the_queue_on_every_route(flooded, path):
    api, _ = flooded("--max-queue", "3", fim={"pre": 1, "suf": 2, "mid": 3}, max_queue=3)
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": False, "n_predict": 1}
    assert api.post(path, {**body, "n": 5}).status == 200
    answer = api.post(path, {**body, "n": 6})
    assert answer.status == 400 and "at once, 5" in answer.error["message"]
    assert len(api.tasks) == 5 and refusals(api) == {"too_many": 1}


@pytest.mark.parametrize(
    "field",
    [
        {"stop": ["y" * 6000] * 100},
        {"logit_bias": [[5, 1]] * 250},
        {"penalty_prompt": [5] * 900},
        {"grammar": 'root ::= "' + "a" * 6000 + '"'},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_each_answer_repeats_is_bounded_in_all_of_them(flooded, monkeypatch, field):
    from server.api.request import text_request

    api, _ = flooded()
    body = {"prompt": "x", "n_predict": 1, **field}
    monkeypatch.setattr(text_request, "MAX_REPEATED", 1000)
    assert api.post("/completion", body).status == 200, "it is one answer that may have them"
    answer = api.post("/completion", {**body, "n_cmpl": 2})
    assert answer.status == 400 and "too much for 2 answers" in answer.error["message"], answer
    assert refusals(api) == {"too_many": 1}


def test_each_answer_repeats_its_own_prompt_and_not_those_of_all(flooded):
    api, _ = flooded()
    answers = api.post("/completion", {"prompt": ["a", [98, "b"], "c"], "n_predict": 1, "n_cmpl": 2}).json()
    assert [answer["prompt"] for answer in answers] == ["a", "a", [98, "b"], [98, "b"], "c", "c"]
    assert api.post("/completion", {"prompt": ["a", [98]], "n_predict": 1}).json()[1]["prompt"] == [98]


def test_tasks_of_one_request_share_what_they_have_in_common(flooded):
    api, _ = flooded()
    body = {"prompt": ["x" * 100, "y"], "n_cmpl": 3, "n_predict": 1, "stop": ["z"], "logit_bias": [[5, 1]]}
    assert api.post("/completion", body).status == 200
    first = api.tasks[0]
    assert all(task.stop is first.stop and task.sampling.logit_bias is first.sampling.logit_bias for task in api.tasks)
    assert api.tasks[1].prompt is first.prompt


def test_vectors_of_one_request_are_bounded(make_api):
    backend = FakeBackend(n_ctx=256)
    backend.embeddings = FakeEmbeddings(backend, pooling="none")
    backend.info = replace(backend.info, pooling="none", n_embd=200_000)
    api = make_api(backend, ("--metrics",)).start()
    answer = api.post("/embeddings", {"input": ["x" * 60] * 4})
    assert answer.status == 400 and "vectors of 200,000 numbers are too many" in answer.error["message"]
    assert backend.embeddings.batches == [] and refusals(api) == {"too_many": 1}


def test_a_long_list_of_vectors_comes_whole(make_api):
    backend = FakeBackend(n_ctx=256)
    api = make_api(backend, ()).start()
    texts = [f"text {i}" for i in range(300)]
    rows = api.post("/v1/embeddings", {"input": texts}).json()["data"]
    assert [row["index"] for row in rows] == list(range(300))
    native = api.post("/embeddings", {"input": texts}).json()
    assert [one["embedding"] for one in rows] == [one["embedding"][0] for one in native]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_probabilities_grow_beyond_the_bound_ends_alone(flooded, stream):
    api, _ = flooded(shift_context=True)
    budget = api.server._server.budget
    bystander = api.begin({"prompt": "endless", "stream": True})
    try:
        api.wait_for(n_processing=1)
        budget.n_max = 20 * MIB
        body = {"prompt": "x", "n_predict": 200, "n_probs": 250, "stream": stream}
        answer = api.post("/completion", body)
        if stream:
            assert answer.status == 200 and answer.events()[-1]["stop"] is True, "what has been sent is held no more"
        else:
            assert answer.status == 503 and "grown too large" in answer.error["message"]
            assert refusals(api) == {"memory": 1}
        api.wait_for(n_processing=1)
    finally:
        bystander.close()
    wait_until(lambda: budget.n_used == 0, "all to be given back", PATIENCE)


# ---- long texts ------------------------------------------------------------------------------------------------------

LONG = "a" * 4200  # 1050 tokens at least, of the 1024 that there is room for


def chat(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}]}


ROUTES = [
    ("/completion", {"prompt": LONG}),
    ("/completion", {"prompt": [5, LONG]}),
    ("/completion", {"prompt": ["x", LONG]}),
    ("/completion", {"prompt": "x", "system_prompt": {"prompt": LONG}}),
    ("/completion", {"prompt": "x", "penalty_prompt": LONG}),
    ("/completion", {"prompt": "x", "logit_bias": [[LONG, 1]]}),
    ("/v1/completions", {"prompt": LONG}),
    ("/v1/chat/completions", chat(LONG)),
    ("/v1/chat/completions/input_tokens", chat(LONG)),
    ("/embedding", {"content": LONG}),
    ("/v1/embeddings", {"input": ["x", LONG]}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_what_cannot_fit_is_refused_by_its_bytes(flooded, path, body):
    api, vocab = flooded()
    answer = api.post(path, body)
    assert answer.status == 400 and answer.error["type"] == "exceed_context_size_error", answer
    assert answer.error["n_ctx"] == 1024 and answer.error["n_prompt_tokens"] >= 1050
    assert vocab.n_characters < len(LONG) and api.tasks == []
    assert refusals(api) == {"context": 1}


OTHERS = [("/tokenize", {"content": LONG}), ("/apply-template", chat(LONG))]
UNCUT = [(path, body) for path, body in [*ROUTES, *OTHERS] if body.get("prompt", "x") == "x"]  # by whatever profile


@pytest.mark.parametrize(
    ("path", "body", "cuts"), [(*one, False) for one in (*ROUTES, *OTHERS)] + [(*one, True) for one in UNCUT]
)
def test_no_route_tokenizes_more_than_the_server_allows(flooded, path, body, cuts):
    api, vocab = flooded("--ctx-size", "0", n_ctx=1 << 20, cuts=cuts, max_text=4000)
    answer = api.post(path, body)
    assert answer.status == 400 and "--max-text" in answer.error["message"], answer
    assert vocab.n_characters < len(LONG) and refusals(api) == {"too_large": 1}


def test_tokenize_has_a_limit_of_its_own_and_no_other(flooded):
    api, _ = flooded(max_text=300_000)
    tokens = api.post("/tokenize", {"content": "ab" * 150_000}).json()["tokens"]
    assert tokens == [97, 98] * 150_000
    assert api.post("/tokenize", {"content": "ab" * 150_000 + "c"}).status == 400


def test_pieces_of_a_long_text_come_whole(flooded):
    api, _ = flooded()
    text = "".join(map(chr, range(0x20, 0x24))) * 3000 + "é"
    pieces = api.post("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == list(text.encode())
    assert pieces[-1] == {"id": 0xA9, "piece": [0xA9]} and pieces[1] == {"id": 0x21, "piece": "!"}


def test_detokenize_gives_no_more_text_than_tokenize_takes(flooded):
    api, _ = flooded(max_text=1000)
    assert api.post("/detokenize", {"tokens": [97] * 1000}).json()["content"] == "a" * 1000
    assert api.post("/detokenize", {"tokens": [97] * 1001}).status == 400
    assert refusals(api) == {"too_large": 1}


def test_a_prompt_that_the_profile_cuts_keeps_its_beginning_and_its_end(flooded):
    api, vocab = flooded("--ctx-size", "0", n_ctx=64, n_slots=1, cuts=True, max_text=4000, shift_context=True)
    answer = api.complete("b" * 5000 + "c" * 20_000 + "d" * 5000, 2, n_keep=5)
    assert answer["truncated"] is True and vocab.n_characters == 4000
    assert set(api.tasks[0].prompt[1:2001]) == {98} and set(api.tasks[0].prompt[2001:]) == {100}


def test_long_code_around_a_gap_is_cut_before_it_is_tokenized(flooded):
    api, vocab = flooded(n_ctx=256, n_slots=1, fim={"pre": 1, "suf": 2, "mid": 3}, max_text=8000)
    extra = [{"text": "x" * 5000}] * 1000
    body = {"input_prefix": "p" * 50_000 + "END", "input_suffix": "BEGIN" + "s" * 50_000, "input_extra": extra}
    answer = api.post("/infill", {**body, "n_predict": 8, "stream": False})
    assert answer.status == 200 and vocab.n_characters < 6000
    prompt = bytes(token for token in api.tasks[0].prompt if token < 256)
    assert prompt.endswith(b"s\x03") and b"END\x02BEGIN" in prompt and len(prompt) > 200


def test_other_files_fill_the_room_that_is_left_from_the_end(flooded):
    api, _ = flooded(n_ctx=256, n_slots=1, fim={"pre": 1, "suf": 2, "mid": 3, "rep": 4, "sep": 5})
    extra = [{"filename": f"{i}.py", "text": f"<{i}>" * 10} for i in range(100)]
    body = {"input_prefix": "p", "input_suffix": "s", "input_extra": extra, "n_predict": 8, "stream": False}
    assert api.post("/infill", body).status == 200
    prompt = bytes(token for token in api.tasks[0].prompt if token < 256)
    assert prompt.endswith(b"99.py\n" + b"<99>" * 10 + b"\x05filename\n\x01p\x02s\x03")
    assert 256 - 16 - 8 - 4 <= len(prompt) <= 256 - 16 - 8 + 4


def test_all_requests_together_hold_no_more_than_the_bound(flooded):
    api, _ = flooded("--max-body", "1")
    budget = api.server._server.budget
    budget.n_max = 100_000
    body = json.dumps({"content": "é" * 20_000}, ensure_ascii=False).encode()
    answer = api.post("/tokenize", body)
    assert answer.status == 503 and answer.headers["retry-after"] and refusals(api) == {"memory": 1}
    assert api.post("/tokenize", {"content": "a" * 500}).status == 200
    wait_until(lambda: budget.n_used == 0, "all to be given back", PATIENCE)


def test_a_waiting_task_is_shown_by_what_fits(flooded):
    """`/slots` can show the latest tasks; what was cut off of their prompts isn't kept for that."""
    api, _ = flooded("--slots", n_ctx=64, n_slots=1, cuts=True, shift_context=True)
    api.complete("a" * 5000, 1)
    api.settle()
    assert len(api.client.get_task(0).prompt) <= 64 and len(api.tasks[0].prompt) > 5000
