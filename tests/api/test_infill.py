"""POST /infill: the prompt made from prefix, suffix and other files, and streaming by default."""

from __future__ import annotations

import pytest

from tests.fakes import BOS, FakeBackend, FakeVocab, letters, said_by

PRE, SUF, MID, REP, SEP = 1, 2, 3, 4, 5
FIM = {"pre": PRE, "suf": SUF, "mid": MID}


def said(tokens: list[int], n: int = 6) -> str:
    return bytes(said_by(letters, tokens, n)).decode()


@pytest.fixture
def fim_api(make_api):
    """`fim_api(*argv, **more fim tokens)` makes a server whose model can fill in the middle."""
    return lambda *argv, n_ctx=1024, **fim: make_api(
        FakeBackend(n_ctx=n_ctx), argv, vocab=FakeVocab({**FIM, **fim})
    ).start()


def infill(api, **body) -> dict:
    answer = api.post("/infill", {"n_predict": 6, "stream": False, **body})
    assert answer.status == 200, answer
    return answer.json()


@pytest.mark.covers("E10", "Q39")
def test_prefix_and_suffix_become_the_model_s_own_form(fim_api):
    result = infill(fim_api(), input_prefix="def f(", input_suffix="):\n", cache_prompt=False)
    assert result["content"] == said([BOS, PRE, *b"def f(", SUF, *b"):\n", MID])


@pytest.mark.covers("C54")
def test_the_suffix_first_where_the_model_wants_it(fim_api):
    result = infill(fim_api("--spm-infill"), input_prefix="ab", input_suffix="cd")
    assert result["content"] == said([BOS, SUF, *b"cd", PRE, *b"ab", MID])


def test_a_prompt_goes_behind_the_prefix(fim_api):
    result = infill(fim_api(), input_prefix="ab", input_suffix="cd", prompt="x")
    assert result["content"] == said([BOS, PRE, *b"abx", SUF, *b"cd", MID])


def test_special_tokens_in_the_code_are_only_text(fim_api):
    result = infill(fim_api(), input_prefix="a</s>", input_suffix="<s>")
    assert result["content"] == said([BOS, PRE, *b"a</s>", SUF, *b"<s>", MID])


@pytest.mark.covers("X8")
def test_it_streams_if_it_is_told_to_and_with_the_documents_of_2024_unless_it_is_told_not_to(fim_api):
    body = {"input_prefix": "ab", "input_suffix": "cd", "n_predict": 6}
    text = infill(fim_api(), **body)["content"]
    for api, fields in ((fim_api(), {"stream": True}), (fim_api("--compat", "2024"), {})):
        events = api.post("/infill", {**body, **fields}).events()
        assert "".join(event["content"] for event in events) == text and events[-1]["stop"] is True
    assert fim_api().post("/infill", body).json()["content"] == text


def test_nothing_around_the_gap_is_allowed(fim_api):
    assert infill(fim_api())["content"] == said([BOS, PRE, SUF, MID])


EXTRA = [{"filename": "a.py", "text": "one"}, {"text": "two"}]


def test_other_files_come_first_as_snippets(fim_api):
    result = infill(fim_api(), input_prefix="ab", input_suffix="cd", input_extra=EXTRA)
    snippet = b"\n\n--- snippet ---\n\n"
    assert result["content"] == said([BOS, *snippet, *b"one", *snippet, *b"two", PRE, *b"ab", SUF, *b"cd", MID])


def test_other_files_come_with_their_names_where_the_model_knows_repositories(fim_api):
    result = infill(fim_api(rep=REP, sep=SEP), input_prefix="ab", input_suffix="cd", input_extra=EXTRA)
    assert result["content"] == said(
        [
            BOS,
            REP,
            *b"myproject\n",
            SEP,
            *b"a.py\n",
            *b"one",
            SEP,
            *b"tmp\n",
            *b"two",
            SEP,
            *b"filename\n",
            PRE,
            *b"ab",
            SUF,
            *b"cd",
            MID,
        ]
    )


def test_long_code_is_cut_far_from_the_gap(fim_api):
    api = fim_api(n_ctx=128)
    result = infill(api, input_prefix="p" * 500 + "PREFIX", input_suffix="SUFFIX" + "s" * 500, return_tokens=True)
    assert result["tokens_predicted"] == 6
    tokens = api.backend.history(0)
    assert bytes(tokens[1:]).find(b"PREFIX" + bytes([SUF]) + b"SUFFIX") > 0
    assert result["tokens_evaluated"] + 6 <= 128


@pytest.mark.parametrize("missing", ["pre", "suf", "mid"])
def test_a_model_that_cannot_fill_in_the_middle_says_so(make_api, missing):
    fim = {name: token for name, token in FIM.items() if name != missing}
    api = make_api(FakeBackend(), vocab=FakeVocab(fim)).start()
    answer = api.post("/infill", {"input_prefix": "a"})
    assert answer.status == 501 and answer.error["type"] == "not_supported_error"
    assert missing in answer.error["message"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"input_prefix": 5}, "input_prefix"),
        ({"input_suffix": ["x"]}, "input_suffix"),
        ({"prompt": 5}, "prompt"),
        ({"input_extra": 5}, "input_extra"),
        ({"input_extra": [5]}, "input_extra"),
        ({"input_extra": [{"filename": "x"}]}, "input_extra"),
        ({"input_extra": [{"text": "x", "filename": 5}]}, "filename"),
        ({"input_prefix": "a", "top_k": "x"}, "top_k"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fim_api, body, word):
    answer = fim_api().post("/infill", body)
    assert answer.status == 400 and word in answer.error["message"]
