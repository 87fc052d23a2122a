"""`attribute` and POST /v1/attribute over HTTP with the fake engine: spans, bounds, refusals, streams."""

from __future__ import annotations

import json

import pytest

from server.evidence import attribution
from tests.fake_media import seeing
from tests.fakes import FakeBackend
from tests.media_files import data_url, picture

PROMPT = "The key is red. The door is blue. Nobody knows. What?"
SENTENCES = ["The key is red.", "The door is blue.", "Nobody knows.", "What?"]


@pytest.fixture
def two(make_api):
    return make_api(FakeBackend(n_ctx=8192, n_slots=2)).start()


def attributed(api, **fields: object) -> dict:
    answer = api.post("/v1/attribute", {"prompt": PROMPT, "answer": " It is", **fields})
    assert answer.status == 200, answer
    return answer.json()["attribution"]


@pytest.mark.covers("P06")
@pytest.mark.parametrize("method", ["fast", "exact"])
def test_every_sentence_of_the_prompt_has_its_nats(two, method):
    found = attributed(two, method=method)
    assert [span["text"] for span in found["spans"]] in (SENTENCES, SENTENCES[:3])  # the last token is no span's
    assert all(PROMPT[span["start"] : span["end"]] == span["text"] for span in found["spans"])
    assert all(span["message"] is None and isinstance(span["nats"], float) for span in found["spans"])
    assert found["method"] == method and {"answer_logprob", "without_spans_logprob"} <= found.keys()


def test_texts_of_a_chat_have_the_numbers_of_their_messages(two):
    messages = [{"role": "system", "content": "Be brief. Be kind."}, {"role": "user", "content": "Hello there. Who?"}]
    answer = two.post("/v1/attribute", {"messages": messages, "answer": "me"}).json()["attribution"]
    assert [(span["message"], span["text"]) for span in answer["spans"]] == [
        (0, "Be brief."),
        (0, "Be kind."),
        (1, "Hello there."),
        (1, "Who?"),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_brings_its_attribution_along(two, stream):
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "attribute": True, "stream": stream}
    answer = two.post("/v1/chat/completions", body)
    if stream:
        blocks = [block[6:] for block in answer.body.decode().split("\n\n") if '"attribution"' in block]
        [choice] = [json.loads(block)["choices"][0] for block in blocks]
    else:
        [choice] = answer.json()["choices"]
    assert [span["text"] for span in choice["attribution"]["spans"]] == SENTENCES
    native = two.complete(PROMPT, 3, attribute=["key is red", "nowhere"])
    assert [span["text"] for span in native["attribution"]["spans"]] == ["key is red"]
    assert "attribution" not in two.complete(PROMPT, 3)
    two.settle()
    assert two.is_idle()


def test_a_part_of_the_answer_can_be_asked_about(two):
    whole, first, second = (attributed(two, part=part)["answer_logprob"] for part in ("", "It", "is"))
    assert whole <= first <= 0 and whole <= second <= 0


@pytest.mark.parametrize("method", ["fast", "exact"])
def test_each_sentence_of_the_answer_has_nats_of_its_own_that_add_up(two, method):
    found = attributed(two, answer="It is. So they say.", method=method)
    assert [part["text"] for part in found["parts"]] == ["It is.", "So they say."]
    for i, span in enumerate(found["spans"]):
        assert sum(part["nats"][i] for part in found["parts"]) == pytest.approx(span["nats"], abs=1e-3)
    [part] = attributed(two, answer="It is. So they say.", part="they", method=method)["parts"]
    assert part["text"] == "they"


@pytest.mark.covers("P07")
def test_the_answer_is_judged_without_any_of_the_spans_too(two):
    """By what is left of the prompt, however the spans are taken away."""
    texts = ["The key is red. The door is blue. ", "Nobody knows. "]
    found = attributed(two, spans=texts)
    alone = attributed(two, prompt=PROMPT.replace("".join(texts), ""), spans=[])
    assert found["without_spans_logprob"] == pytest.approx(alone["answer_logprob"], abs=1e-3)
    assert alone["spans"] == alone["pairs"] == []


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"answer": ""}, "answer"),
        ({"prompt": None}, "prompt"),
        ({"method": "guess"}, "method"),
        ({"spans": [5]}, "spans"),
        ({"spans": [""]}, "spans"),
        ({"spans": "x"}, "spans"),
        ({"spans": ["x"] * 101}, "at most 100"),
        ({"part": "elsewhere"}, "doesn't contain this part"),
        ({"prompt": "One. " * 150}, "too many"),
        ({"messages": "x"}, "messages"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_computed(two, fields, says):
    n = len(two.backend.batches)
    answer = two.post("/v1/attribute", {"prompt": PROMPT, "answer": " It is", **fields})
    assert answer.status == 400 and says in answer.error["message"]
    assert len(two.backend.batches) - n <= 0 or says == "doesn't contain this part"


@pytest.mark.parametrize("value", ["yes", 5, {"colour": 1}, {"spans": 3}, {"method": "guess"}])
def test_a_wrong_field_is_refused_with_400(two, value):
    assert "attribute" in two.refuse(attribute=value)["message"]


@pytest.mark.covers("P08")
@pytest.mark.parametrize(
    "n_slots, method, limit", [(2, "fast", 32), (2, "exact", len(PROMPT) + 1), (1, "fast", len(PROMPT) + 1)]
)
def test_rows_are_bounded_by_what_each_way_has_to_compute(make_api, monkeypatch, n_slots, method, limit):
    api = make_api(FakeBackend(n_ctx=8192, n_slots=n_slots)).start()
    n_rows = (2 * 4 + 6) * (limit + len(" It is")) + 8 * (len(PROMPT) + 1 + len(" It is"))
    monkeypatch.setattr(attribution, "MOST_ROWS", n_rows)
    assert attributed(api, method=method)["spans"]
    monkeypatch.setattr(attribution, "MOST_ROWS", n_rows - 1)
    n = len(api.backend.batches)
    answer = api.post("/v1/attribute", {"prompt": PROMPT, "answer": " It is", "method": method})
    assert answer.status == 400 and "too many" in answer.error["message"] and len(api.backend.batches) == n


def test_prompts_with_files_are_refused(make_api):
    api = make_api(seeing()).start()
    content = [{"type": "image_url", "image_url": {"url": data_url(picture(1))}}, {"type": "text", "text": "What?"}]
    answer = api.post("/v1/attribute", {"messages": [{"role": "user", "content": content}], "answer": "x"})
    assert answer.status == 400 and "images" in answer.error["message"]


def test_a_memory_that_cannot_be_cut_is_501_for_fast_and_exact_is_taken_instead(make_api):
    api = make_api(FakeBackend(n_ctx=4096, n_slots=2, can_shift=False)).start()
    answer = api.post("/v1/attribute", {"prompt": PROMPT, "answer": " It is", "method": "fast"})
    assert answer.status == 501 and "exact" in answer.error["message"]
    for found in (attributed(api), attributed(api, method="exact")):
        assert found["spans"] and found["method"] == "exact"
