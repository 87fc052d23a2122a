"""Speculative decoding with the real libraries: the same tokens as without, with every kind of draft and in any batch.

The tiny models are F32, so rows of one batch don't change each other's logits and greedy texts are exactly comparable.
Drafts are always used here (`min_gain` 0); whether they would pay depends on the machine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.llama.backend import open_backend
from server.engine.llama.draft import make_drafter_config
from server.engine.seam.config import EngineConfig, SpecConfig
from server.engine.seam.task import WORD, SamplingParams, Trigger
from server.errors import StartError
from server.grammar.json_schema.convert import convert
from tests.native.engines import GREEDY, PROMPTS, STEM, Engine, in_both_layouts
from tests.tiny_models import tiny_llama

OFF = SpecConfig()
LOOKUP = SpecConfig(lookup=True, ngram=2, min_gain=0.0)
SAMPLED = SamplingParams(seed=7, temperature=1.2, top_k=20)
LOOP = "night and day and night and day and night and "


def by_model(path: Path, **fields) -> SpecConfig:
    return SpecConfig(model=str(path), n_max=5, min_gain=0.0, n_threads=1, n_threads_batch=1, **fields)


@pytest.fixture(scope="module")
def other_spm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vocabulary, other weights: a draft model that is mostly wrong."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "other.gguf", seed=99)


@pytest.fixture(params=["lookup", "the model itself", "another model", "both"])
def drafting(request, engine, tiny_spm_model, other_spm_model) -> Engine:
    """An engine with drafts of each kind."""
    spec = {
        "lookup": LOOKUP,
        "the model itself": by_model(tiny_spm_model),
        "another model": by_model(other_spm_model),
        "both": replace(by_model(tiny_spm_model), lookup=True, ngram=2),
    }[request.param]
    return engine(tiny_spm_model, n_slots=4, n_ctx=2048, spec=spec)


@pytest.fixture
def plain(engine, tiny_spm_model) -> Engine:
    return engine(tiny_spm_model, n_slots=4, n_ctx=2048)


# ---- the same tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_are_those_of_plain_decoding(drafting, plain, sampling):
    n_drafted = 0
    for prompt in (*PROMPTS, LOOP):
        said, expected = drafting.say(prompt, 60, sampling), plain.say(prompt, 60, sampling)
        assert (said.tokens, said.text, said.final.stop) == (expected.tokens, expected.text, expected.final.stop)
        n_drafted += said.final.timings.draft_n
    assert n_drafted > 0


def test_eight_at_once_on_four_slots_get_what_each_gets_alone(drafting, plain):
    alone = [plain.say(prompt, 40, cache_prompt=False).tokens for prompt in PROMPTS]
    for _ in range(2):  # the second time from the cache
        tasks = [drafting.task(prompt, 40) for prompt in PROMPTS]
        assert [said.tokens for said in drafting.say_all(tasks)] == alone


def test_a_model_that_drafts_for_itself_is_always_right(engine, tiny_spm_model):
    one = engine(tiny_spm_model, spec=by_model(tiny_spm_model))
    said = one.say(STEM, 80)
    timings = said.final.timings
    assert timings.draft_n == timings.draft_n_accepted > 30
    assert "".join(said.pieces) == said.text


def test_a_repeated_text_is_drafted_from_itself(engine, recite_model):
    """The model of the memorised text begins anew after its end of text, which is ignored here."""
    one = engine(recite_model, spec=LOOKUP)
    sampling = SamplingParams(temperature=0.0, logit_bias=tuple((token, -1e9) for token in one.client.info.eog_tokens))
    said = one.say("count: one", 60, sampling)
    off = one.say("count: one", 60, sampling, draft_n_max=0)
    assert said.tokens == off.tokens
    assert off.final.timings.draft_n == -1


@pytest.mark.parametrize("spec", ["lookup", "model"])
def test_a_full_context_shifts_at_the_same_place(engine, tiny_spm_model, spec):
    config = {"n_ctx": 128, "shift_context": True}
    chosen = LOOKUP if spec == "lookup" else by_model(tiny_spm_model)
    one, other = engine(tiny_spm_model, spec=chosen, **config), engine(tiny_spm_model, **config)
    fields = {"n_keep": 4, "n_discard": 110}
    said, expected = one.say(STEM, 300, **fields), other.say(STEM, 300, **fields)
    assert said.tokens == expected.tokens and said.final.truncated and said.final.timings.draft_n > 0


@pytest.mark.covers("G01")
@in_both_layouts
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_guesses_from_earlier_answers_change_no_token_alone_or_in_company(engine, tiny_spm_model, sampling):
    config = {"n_slots": 4, "n_ctx": 2048}
    one, other = engine(tiny_spm_model, spec=replace(LOOKUP, answers=True), **config), engine(tiny_spm_model, **config)
    expected = [other.say(prompt, 40, sampling).tokens for prompt in PROMPTS]
    for _ in range(2):
        said = [one.say(prompt, 40, sampling, owner="ann") for prompt in PROMPTS]
        assert [answer.tokens for answer in said] == expected
    timings = said[-1].final.timings
    assert timings.draft_n_accepted > 20, "the second time the answer is known"
    for owner in ("ann", "bob"):
        tasks = [one.task(prompt, 40, sampling, owner=owner) for prompt in PROMPTS]
        assert [answer.tokens for answer in one.say_all(tasks)] == expected


# ---- what else a sampler does ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0, repeat_penalty=1.3, presence_penalty=0.2),
        SamplingParams(seed=3, temperature=0.9, dry_multiplier=0.8),
        SamplingParams(seed=3, mirostat=2),
        SamplingParams(seed=3, temperature=1.0, xtc_probability=0.5),
        SamplingParams(temperature=0.0, grammar='root ::= ("a" | "b" | " ")+'),
        SamplingParams(seed=3, temperature=1.0, logit_bias=((300, 2.0),)),
    ],
    ids=["penalties", "dry", "mirostat", "xtc", "grammar", "bias"],
)
def test_every_kind_of_sampling_draws_the_same(engine, tiny_spm_model, sampling):
    one, other = engine(tiny_spm_model, spec=by_model(tiny_spm_model, lookup=True, ngram=1)), engine(tiny_spm_model)
    said, expected = one.say(LOOP, 60, sampling), other.say(LOOP, 60, sampling)
    assert said.tokens == expected.tokens and said.final.timings.draft_n > 0


def test_probabilities_are_those_of_each_token(engine, tiny_spm_model):
    sampling = SamplingParams(temperature=0.0, n_probs=3)
    one, other = engine(tiny_spm_model, spec=by_model(tiny_spm_model)), engine(tiny_spm_model)
    said, expected = one.say(STEM, 30, sampling), other.say(STEM, 30, sampling)
    assert [probs.token for probs in said.probs] == said.tokens == expected.tokens
    for mine, theirs in zip(said.probs, expected.probs):
        assert [token for token, _ in mine.top_logprobs] == [token for token, _ in theirs.top_logprobs]
        assert [p for _, p in mine.top_logprobs] == pytest.approx([p for _, p in theirs.top_logprobs], abs=1e-4)


def test_a_stop_word_in_the_middle_of_a_draft(engine, tiny_spm_model):
    one, other = engine(tiny_spm_model, spec=by_model(tiny_spm_model)), engine(tiny_spm_model)
    text = other.say(STEM, 60).text
    for start in range(5, 40, 3):
        stop = (text[start : start + 4],)
        said, expected = one.say(STEM, 60, stop=stop), other.say(STEM, 60, stop=stop)
        assert (said.text, said.final.stop, said.tokens) == (expected.text, expected.final.stop, expected.tokens)
        assert said.final.n_cached == expected.final.n_cached


def test_drafts_go_on_under_an_adapter(engine, tiny_spm_model, tiny_lora):
    config = {"lora": ((str(tiny_lora), 1.0),)}
    one, other = engine(tiny_spm_model, spec=by_model(tiny_spm_model), **config), engine(tiny_spm_model, **config)
    assert one.say(STEM, 40).tokens == other.say(STEM, 40).tokens


# ---- the draft model ---------------------------------------------------------------------------------------------


def refusal(libs: Path, model: Path, draft: Path) -> str:
    with pytest.raises(StartError) as info:
        open_backend(EngineConfig(str(model), str(libs), n_ctx=256, spec=by_model(draft)), lambda _: True)
    assert "can't draft for" in str(info.value) and "\n" not in str(info.value)
    return str(info.value)


def test_a_draft_model_with_another_vocabulary_is_refused_in_one_line(
    libs_folder, tmp_path, tiny_spm_model, tiny_bpe_model
):
    assert "kind of vocabulary" in refusal(libs_folder, tiny_spm_model, tiny_bpe_model)
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(tiny_spm_model.read_bytes().replace(b"\xe2\x96\x81moon", b"\xe2\x96\x81m00n"))
    message = refusal(libs_folder, tiny_spm_model, renamed)
    assert "m00n" in message and "moon" in message


@pytest.mark.parametrize("is_larger", [False, True])
def test_vocabularies_that_differ_in_their_last_tokens_go_together(
    engine, tiny_spm_model, tiny_spm_fim_model, is_larger
):
    models = (tiny_spm_model, tiny_spm_fim_model) if is_larger else (tiny_spm_fim_model, tiny_spm_model)
    one, other = engine(models[0], spec=by_model(models[1])), engine(models[0])
    last = other.client.info.n_vocab - 1
    for prompt in (other.tokens(STEM), (*other.tokens(STEM), last, *other.tokens("the moon"))):
        assert one.say(prompt, 40).tokens == other.say(prompt, 40).tokens


def test_a_draft_model_is_only_as_sure_as_asked(engine, tiny_spm_model):
    one = engine(tiny_spm_model, spec=by_model(tiny_spm_model))
    some, none = one.say(STEM, 40), one.say(STEM, 40, draft_p_min=1.0)
    assert some.tokens == none.tokens
    assert some.final.timings.draft_n > none.final.timings.draft_n


@pytest.mark.parametrize("config", [{"exact": True}, {"n_group": 2, "group_width": 64}], ids=["exact", "self-extend"])
def test_where_nothing_is_drafted_the_draft_model_is_not_loaded(engine, tiny_spm_model, config, caplog):
    one = engine(tiny_spm_model, spec=by_model(tiny_spm_model), **config)
    assert one.backend.drafter is None and "isn't loaded" in caplog.text
    assert one.say(STEM, 20).final.timings.draft_n == -1


def test_the_draft_model_has_nothing_of_the_large_ones_extras(tiny_spm_model):
    config = EngineConfig(
        "large",
        "libs",
        model_offset=99,
        model_size=9,
        mmproj="eye",
        lora=(("x", 1.0),),
        exact=True,
        embeddings=True,
        n_slots=3,
        spec=by_model(tiny_spm_model),
    )
    small = make_drafter_config(config, 512, True)
    assert (small.model, small.n_ctx, small.n_slots) == (str(tiny_spm_model), 512, 3)
    assert (
        small.model_offset,
        small.model_size,
        small.mmproj,
        small.lora,
        small.exact,
        small.embeddings,
        small.spec.model,
    ) == (0, 0, "", (), False, False, "")


# ---- text that a grammar gives -----------------------------------------------------------------------------------

TOWN = {
    "type": "object",
    "properties": {
        "the little girl": {"enum": ["red", "green", "blue"]},
        "größe": {"type": "string", "maxLength": 12},
        "once upon a time": {"const": "the moon and the star"},
        "new house": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    },
    "required": ["the little girl", "größe", "once upon a time", "new house"],
    "additionalProperties": False,
}
GIVEN = convert({"type": "array", "items": TOWN, "minItems": 2, "maxItems": 3}).grammar


@pytest.mark.parametrize("vocabulary", ["tiny_spm_model", "tiny_bpe_model"])
@pytest.mark.parametrize("begun", ["bound at once", "behind a trigger"])
def test_text_that_a_grammar_gives_is_drafted_and_changes_nothing(engine, request, vocabulary, begun):
    model = request.getfixturevalue(vocabulary)
    one, other = engine(model, spec=LOOKUP, n_ctx=2048), engine(model, n_ctx=2048)
    lazy = {} if begun == "bound at once" else {"grammar_lazy": True, "grammar_triggers": (Trigger(WORD, "["),)}
    if lazy:
        lazy["logit_bias"] = tuple((token, 20.0) for token in one.tokens("[")[-1:])
    n_drafted = n_right = 0
    for seed in range(6):
        sampling = SamplingParams(
            seed=seed, temperature=(0.0, 0.8, 1.5)[seed % 3], top_k=40, min_p=0.0, grammar=GIVEN, **lazy
        )
        said, expected = one.say(PROMPTS[seed % 4], 160, sampling), other.say(PROMPTS[seed % 4], 160, sampling)
        assert (said.tokens, said.text, said.final.stop) == (expected.tokens, expected.text, expected.final.stop)
        n_drafted += said.final.timings.draft_n
        n_right += said.final.timings.draft_n_accepted
    assert n_drafted > 100 and n_right > 20


def test_given_text_is_spelled_as_the_tokenizer_does_behind_other_text(engine, tiny_spm_model, tiny_bpe_model):
    for model in (tiny_spm_model, tiny_bpe_model):
        one = engine(model)
        grammars = one.backend._samplers.grammars
        for text in ('"the little girl": ', " moon", ", 😀 café", '"', "\n  x"):
            tokens = grammars.spell(text)
            assert b"".join(map(grammars.piece, tokens)) == text.encode()
            behind = one.client.vocab.tokenize(f"the\n{text}", False, False, must_fit=False)
            assert tokens == behind[-len(tokens) :]
