"""The whole engine with the real libraries and the tiny models: the right text for every request, in any batch.

The reference is a context of its own that evaluates one sequence at a time, from the start for every token, and softmax
in plain Python. Needs the native libraries; runs in the test process, without HTTP.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from server.engine.llama import backend as native
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import SamplingParams, Task
from server.engine.slots.backend import DECODE_ABORTED, DECODE_OK
from server.engine.slots.planner import Span
from server.errors import ApiError, StartError
from tests.native.engines import PROMPTS, STEM, Engine, in_both_layouts
from tests.support import PATIENCE, wait_until
from tests.tiny_models import RECITE_WORDS

# ---- the same text in any company --------------------------------------------------------------------------------


def test_the_text_of_one_request_is_the_reference_s(engine, reference, tiny_model):
    one, other = engine(tiny_model), reference(tiny_model)
    for prompt in PROMPTS[:3]:
        assert one.say(prompt, 20).tokens == other.greedy(one.tokens(prompt), 20)


@in_both_layouts
@pytest.mark.parametrize("cache_prompt", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("n_batch", [2048, 24], ids=["large batch", "small batch"])
def test_eight_at_once_on_four_slots_get_what_each_gets_alone(engine, tiny_model, cache_prompt, n_batch):
    one = engine(tiny_model, n_slots=4, n_batch=n_batch)
    alone = [one.say(prompt, 40, cache_prompt=False).text for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    for _ in range(2):
        tasks = [one.task(prompt, 40, cache_prompt=cache_prompt) for prompt in PROMPTS]
        assert [said.text for said in one.say_all(tasks)] == alone
    snapshot = one.client.snapshot
    assert snapshot.n_processing == 0 and (snapshot.n_reused_tokens > 0) is cache_prompt


def test_a_streamed_text_is_the_plain_text(engine, tiny_model):
    one = engine(tiny_model)
    for prompt in PROMPTS[:4]:
        assert one.ask(one.task(prompt, 30), stream=True).text == one.ask(one.task(prompt, 30)).text


@in_both_layouts
def test_slots_that_shift_do_not_disturb_each_other(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=2, n_ctx=256, n_ctx_slot=128, shift_context=True)
    assert one.client.info.n_ctx_slot == 128
    # only 4 + 14 tokens are left: less than what the model looks back, so the seam is seen
    asks = [(STEM + name, {"n_predict": 300, "n_keep": 4, "n_discard": 110}) for name in ("the moon", "the star")]

    def task(i: int, **fields) -> Task:
        prompt, shape = asks[i]
        return replace(one.task(prompt), **shape, **fields)

    alone = [one.ask(task(i, cache_prompt=False)) for i in range(2)]
    assert all(said.final.truncated and said.final.n_predicted == 300 for said in alone)
    for _ in range(2):
        assert [said.text for said in one.say_all([task(0), task(1)])] == [said.text for said in alone]


def test_after_a_shift_the_text_goes_on_as_if_the_dropped_part_had_never_been(engine, reference, tiny_spm_model):
    one, other = engine(tiny_spm_model, n_ctx=256, shift_context=True), reference(tiny_spm_model)
    assert one.client.info.n_ctx_slot == 256
    history = list(one.tokens(STEM))
    said = one.say(STEM, 500, n_keep=8, n_discard=235).tokens
    n_shifts = 0
    for i, token in enumerate(said):
        if len(history) < 60:  # a shift leaves 8 + 13 tokens: the model looks back across the seam
            logits = other.logits(history)
            assert logits.index(max(logits)) == token, f"token {i}"
        if len(history) == 256:
            n_shifts += 1
            del history[8 : 8 + 235]
        history.append(token)
    assert n_shifts == 2


@in_both_layouts
def test_a_shift_leaves_cells_alone_that_a_neighbour_shares(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=2, n_ctx=256, n_ctx_slot=128, shift_context=True)
    prompt = STEM + "the moon " * 20
    alone = one.say(prompt + "the star", 25, cache_prompt=False).text
    first = one.say(prompt, 5, id_slot=0)
    assert one.say(prompt + "the star", 25, id_slot=1).final.timings.cache_n > 40, "shared"
    # goes on and shifts by a little: most of what it renumbers is shared with slot 1
    said = one.say(prompt + first.text, 100, id_slot=0, n_discard=10)
    assert said.final.truncated and said.final.timings.cache_n > 40
    again = one.say(prompt + "the star", 25, id_slot=1)
    assert again.text == alone and again.final.timings.cache_n > 40


def test_the_same_prompt_again_evaluates_one_token_and_says_the_same(engine, tiny_model):
    one = engine(tiny_model)
    first, second = (one.say(STEM, 30) for _ in range(2))
    assert second.text == first.text
    assert second.final.timings.prompt_n == 1 and second.final.timings.cache_n == len(one.tokens(STEM)) - 1


@in_both_layouts
def test_the_cache_of_a_neighbour_is_shared(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=2)
    alone = one.say(STEM + "the star", 30, cache_prompt=False).text
    one.say(STEM + "the moon", 4, id_slot=0)
    said = one.say(STEM + "the star", 30, id_slot=1)
    assert said.text == alone and said.final.timings.cache_n > 20


# ---- ends --------------------------------------------------------------------------------------------------------

RECITED = "".join(RECITE_WORDS[1:])


def test_a_text_ends_where_the_model_ends_it(engine, recite_model):
    said = engine(recite_model).say("count: one", -1)
    assert (said.text, said.final.stop) == (RECITED, "eos")
    assert said.text.endswith(" ten héllo 世界 😀 end")


def test_with_ignore_eos_the_text_goes_on(engine, recite_model):
    one = engine(recite_model)
    said = one.say("count: one", 40, SamplingParams(temperature=0, ignore_eos=True))
    assert said.final.stop == "limit" and said.final.n_predicted == 40
    assert not set(said.tokens) & one.backend.eog_tokens


@pytest.mark.covers("Q11")
@pytest.mark.parametrize(
    ("stops", "word"),
    [
        (("three",), "three"),
        (("ree fo",), "ree fo"),
        (("o three four fi",), "o three four fi"),
        ((" t",), " t"),
        (("世",), "世"),
        (("界 😀",), "界 😀"),
        (("never", " ten"), " ten"),
        (("four five", "three four"), "three four"),
        (("end",), "end"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_stop_words_end_the_text_wherever_tokens_are_cut(engine, recite_model, stops, word, stream):
    one = engine(recite_model)
    said = one.ask(one.task("count: one", -1, stop=stops), stream)
    assert (said.text, said.final.stop) == (RECITED[: RECITED.index(word)], "word")
    assert said.final.stopping_word == word
    shown = ""
    for piece in said.pieces:
        shown += piece
        assert RECITED[: RECITED.index(word)].startswith(shown), "a part of the stop word was shown"


def test_the_context_ends_the_text_where_it_is_full(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=4, n_ctx=256)
    n_prompt = len(one.tokens(PROMPTS[3]))
    said = one.say(PROMPTS[3], -1)
    assert (said.final.stop, said.final.truncated, said.final.n_cached) == ("limit", True, 64)
    assert said.final.n_predicted == 64 - n_prompt + 1
    with pytest.raises(ApiError, match="64") as caught:
        one.say("a " * 200)
    assert caught.value.extra["n_ctx"] == 64


# ---- characters --------------------------------------------------------------------------------------------------


def literal(text: str) -> SamplingParams:
    """Settings under which only `text` can be said."""
    return SamplingParams(temperature=0, grammar=f'root ::= "{text}"')


@pytest.mark.parametrize("text", ["žluťoučký kůň", "日本語", "👩‍👩‍👧 🇨🇿", "a€b"])
def test_characters_of_several_tokens_are_never_cut(engine, tiny_model, text):
    one = engine(tiny_model)
    said = one.ask(one.task("say", -1, literal(text)), stream=True)
    assert (said.text, said.final.stop) == (text, "eos")
    assert len(said.tokens) > len(text), "some characters take several tokens"
    assert not any("\ufffd" in piece for piece in said.pieces) and "" in said.pieces


def test_the_limit_does_not_cut_a_character(engine, tiny_spm_model):
    one = engine(tiny_spm_model)
    for n in range(1, 12):
        said = one.say("say", n, literal("日本語"))
        assert "日本語".startswith(said.text) and n <= said.final.n_predicted + 1 <= n + 4


# ---- probabilities -----------------------------------------------------------------------------------------------


def log_softmax(logits: Sequence[float]) -> list[float]:
    highest = max(logits)
    total = math.log(math.fsum(math.exp(logit - highest) for logit in logits))
    return [logit - highest - total for logit in logits]


def test_logprobs_are_those_of_an_independent_softmax(engine, reference, tiny_model):
    one, other = engine(tiny_model), reference(tiny_model)
    n_probs = 6
    said = one.say(PROMPTS[1], 10, SamplingParams(temperature=0, n_probs=n_probs))
    history = list(one.tokens(PROMPTS[1]))
    for token, probs in zip(said.tokens, said.probs, strict=True):
        expected = log_softmax(other.logits(history))
        ranking = sorted(range(len(expected)), key=lambda id_: -expected[id_])[:n_probs]
        assert probs.token == token == ranking[0]
        assert probs.logprob == pytest.approx(expected[token], abs=1e-4)
        assert probs.prob == pytest.approx(math.exp(expected[token]), abs=1e-4)
        assert [id_ for id_, _ in probs.top_logprobs] == ranking
        assert [value for _, value in probs.top_logprobs] == pytest.approx([expected[id_] for id_ in ranking], abs=1e-4)
        assert [value for _, value in probs.top] == pytest.approx(
            [math.exp(expected[id_]) for id_ in ranking], abs=1e-4
        ), "greedy: the plain softmax"
        history.append(token)


def test_probabilities_after_sampling_are_those_of_the_settings(engine, reference, tiny_spm_model):
    one, other = engine(tiny_spm_model), reference(tiny_spm_model)
    params = SamplingParams(seed=3, temperature=2.0, top_k=4, top_p=1.0, min_p=0.0, n_probs=6)
    said = one.say(PROMPTS[0], 12, params)
    history = list(one.tokens(PROMPTS[0]))
    for token, probs in zip(said.tokens, said.probs, strict=True):
        logits = other.logits(history)
        ranking = sorted(range(len(logits)), key=lambda id_: -logits[id_])
        kept = [math.exp(value) for value in log_softmax([logits[id_] / 2.0 for id_ in ranking[:4]])]
        expected = dict(zip(ranking[:4], kept))
        assert [id_ for id_, _ in probs.top[:4]] == ranking[:4]
        assert [p for _, p in probs.top] == pytest.approx([*kept, 0.0, 0.0], abs=1e-4)
        assert token in expected and probs.prob == pytest.approx(expected[token], abs=1e-4)
        history.append(token)
    assert len({probs.top[0][0] == probs.token for probs in said.probs}) == 2, "it drew others than the likeliest too"


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_all_probabilities_together_are_one_and_sorted(engine, tiny_spm_model, temperature):
    one = engine(tiny_spm_model)
    params = SamplingParams(
        seed=1, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, n_probs=one.client.info.n_vocab
    )
    for probs in one.say("the cat", 3, params).probs:
        for values in ([p for _, p in probs.top], [math.exp(logprob) for _, logprob in probs.top_logprobs]):
            assert math.fsum(values) == pytest.approx(1.0, abs=1e-3)
            assert values == sorted(values, reverse=True)
        assert len({id_ for id_, _ in probs.top}) == one.client.info.n_vocab


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.5, "top_k": 20},
        {"temperature": 0.0, "repeat_penalty": 1e6},
        {"temperature": 0.0, "grammar": "root ::= [a-z ]*", "frequency_penalty": 100.0},
        {"mirostat": 2},
    ],
    ids=str,
)
def test_asking_for_probabilities_does_not_change_the_draws(engine, tiny_spm_model, settings):
    one = engine(tiny_spm_model)
    plain = SamplingParams(seed=11, **settings)
    assert one.say("the cat", 30, plain).tokens == one.say("the cat", 30, replace(plain, n_probs=3)).tokens


# ---- sampling ----------------------------------------------------------------------------------------------------


def test_a_seed_repeats_its_draws_and_another_makes_others(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=2)
    texts = [one.say("the cat", 30, SamplingParams(seed=seed, temperature=3.0)).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    tasks = [one.task("the cat", 30, SamplingParams(seed=seed, temperature=3.0)) for seed in (1, 2)]
    assert [said.text for said in one.say_all(tasks)] == texts[1:]


def test_a_banned_token_is_never_said(engine, tiny_spm_model):
    one = engine(tiny_spm_model)
    said = one.say(STEM, 60)
    banned = max(set(said.tokens), key=said.tokens.count)
    params = SamplingParams(temperature=0, logit_bias=((banned, -math.inf),))
    assert banned not in one.say(STEM, 60, params).tokens


def test_a_favoured_token_is_always_said(engine, recite_model):
    one = engine(recite_model)
    token = one.client.vocab.tokenize("x", False, False)[0]
    assert one.say("count: one", 5, SamplingParams(temperature=0, logit_bias=((token, 1000.0),))).text == "xxxxx"


EVERYTHING = ("penalties", "dry", "top_n_sigma", "top_k", "typical_p", "tfs_z", "top_p", "min_p", "xtc", "temperature")
KINDS = {
    "every stage": {
        "samplers": EVERYTHING,
        "repeat_penalty": 1.2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "dry_multiplier": 0.5,
        "top_n_sigma": 3.0,
        "typical_p": 0.95,
        "tfs_z": 0.95,
        "xtc_probability": 0.3,
    },
    "every stage twice": {"samplers": EVERYTHING * 2, "repeat_penalty": 1.2, "dry_multiplier": 0.5, "tfs_z": 0.9},
    "no stage": {"samplers": ()},
    "newlines not penalised": {"repeat_penalty": 1.5, "penalize_nl": False},
    "mirostat": {"mirostat": 1},
    "mirostat 2": {"mirostat": 2},
    "dynamic temperature": {"dynatemp_range": 0.5, "dynatemp_exponent": 1.5},
    "adaptive": {"samplers": ("top_k", "adaptive_p"), "adaptive_target": 0.3},
    "infill": {"samplers": ("infill", "temperature")},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_every_kind_of_sampler_draws_and_repeats_itself(engine, tiny_spm_model, settings):
    one = engine(tiny_spm_model)
    params = SamplingParams(**{"seed": 7, "temperature": 1.2, **settings})
    first, second = (one.say(STEM, 20, params, n_keep=0) for _ in range(2))
    assert first.text == second.text and first.final.n_predicted > 0


def test_a_penalty_keeps_repetitions_away(engine, tiny_spm_model):
    one = engine(tiny_spm_model)
    params = SamplingParams(temperature=0, repeat_penalty=1e6, repeat_last_n=64)
    said = one.say("the cat", 40, params).tokens
    assert len(set(said)) == len(said) == 40


# ---- grammars ----------------------------------------------------------------------------------------------------


@pytest.mark.covers("Q23")
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ("root ::= [0-9]{3,5}", r"[0-9]{3,5}"),
        ('root ::= "yes" | "no"', r"yes|no"),
        ('root ::= ("a" | "b" root "c")', r"(b*)a(c*)"),
        ('root ::= word (" " word)*\nword ::= [a-z]{2,4}', r"[a-z]{2,4}( [a-z]{2,4})*"),
        ('root ::= "é" [à-ü]+ "!"', r"é[à-ü]+!"),
    ],
)
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 2.0, "seed": 5, "n_probs": 2}], ids=str)
def test_a_grammar_is_followed(engine, tiny_model, grammar, pattern, params):
    one = engine(tiny_model)
    said = one.say("say", 60, SamplingParams(grammar=grammar, **params))
    if said.final.stop == "eos":
        assert re.fullmatch(pattern, said.text), said.text
    else:
        assert re.match(pattern.rstrip("!"), said.text) or len(said.tokens) == 60
    assert said.text


def test_a_grammar_that_is_wrong_is_refused_and_harms_nobody(engine, tiny_spm_model):
    one = engine(tiny_spm_model)
    for grammar in ("root ::= undefined", "no root here", 'start ::= "a"', "root ::= [a-"):
        with pytest.raises(ApiError, match="grammar") as caught:
            one.say("say", 5, SamplingParams(grammar=grammar))
        assert caught.value.status == 400
    assert one.say("the cat", 10).final.n_predicted == 10


def test_each_of_several_tasks_follows_its_own_grammar(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=4)
    texts = ["the moon", "12345", "naïve", "x"]
    tasks = [one.task("say", -1, literal(text)) for text in texts] + [one.task(STEM, 30)]
    alone = one.say(STEM, 30, cache_prompt=False).text
    assert [said.text for said in one.say_all(tasks)] == [*texts, alone]


# ---- interruption ------------------------------------------------------------------------------------------------


def test_a_running_decode_can_be_aborted_and_leaves_nothing(libs_folder, tiny_spm_model, caplog):
    caplog.set_level(logging.INFO, "llama_srv.llama")
    config = EngineConfig(str(tiny_spm_model), str(libs_folder), n_ctx=2048, n_ubatch=1, n_threads=1)
    backend = native.open_backend(config, lambda progress: True)
    tokens = [300 + i % 50 for i in range(1500)]
    is_over = threading.Event()

    def abort() -> None:
        while not is_over.wait(0.0005):
            backend.abort()

    aborting = threading.Thread(target=abort)
    aborting.start()
    code = backend.decode([Span(0, 0, 0, tokens, True)])
    is_over.set()
    aborting.join(PATIENCE)
    assert code == DECODE_ABORTED
    assert caplog.messages == [], "what was wanted is no error"
    assert backend.seq_rm(0, 0, -1)
    assert backend.decode([Span(0, 0, 0, tokens[:20], True)]) == DECODE_OK, "an old abort spoils no later decode"
    backend.close()


def test_a_cancelled_prompt_frees_its_slot_and_the_next_text_is_right(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_ctx=2048, n_ubatch=1)
    alone = one.say(STEM, 20, cache_prompt=False).text
    for _ in range(3):
        results = one.client.submit(one.task("the cat " * 900, 50, cache_prompt=False), stream=True)
        wait_until(lambda: one.client.snapshot.n_processing == 1, "the task to start", every=0.001)
        results.cancel()
        wait_until(lambda: one.client.snapshot.n_processing == 0, "the slot to be idle", every=0.001)
        assert one.client.snapshot.kv_used == 0
    assert one.say(STEM, 20).text == alone


@in_both_layouts
def test_many_tasks_that_are_cancelled_leave_the_others_right(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=4)
    alone = [one.say(prompt, 60, cache_prompt=False).text for prompt in PROMPTS]
    dropped = [one.client.submit(one.task(STEM * 3, -1), stream=True) for _ in range(12)]
    tasks = [one.task(prompt, 60) for prompt in PROMPTS]

    def drop() -> None:
        for results in dropped:
            results.cancel()

    dropping = threading.Thread(target=drop)
    dropping.start()
    assert [said.text for said in one.say_all(tasks)] == alone
    dropping.join(PATIENCE)
    wait_until(lambda: one.client.snapshot.n_processing == 0, "all slots to be idle")


# ---- loading -----------------------------------------------------------------------------------------------------


def test_what_is_known_of_a_loaded_model(engine, tiny_spm_model):
    info = engine(tiny_spm_model, n_slots=2, n_ctx=512).client.info
    assert (info.n_ctx, info.n_ctx_slot, info.n_slots, info.n_ctx_train) == (512, 256, 2, 2048)
    assert info.n_embd == 64 and info.n_vocab > 300 and info.n_params > 0 and info.size > 0
    assert info.meta["general.architecture"] == "llama" and "chat_template" in " ".join(info.meta)


def test_without_a_context_size_it_is_the_model_s(engine, tiny_spm_model):
    assert engine(tiny_spm_model, n_ctx=0).client.info.n_ctx == 2048
    assert engine(tiny_spm_model, n_ctx=None).client.info.n_ctx == 2048


def test_a_context_too_small_for_the_slots_is_refused(libs_folder, tiny_spm_model):
    config = EngineConfig(str(tiny_spm_model), str(libs_folder), n_slots=8, n_ctx=128)
    with pytest.raises(StartError, match="slots"):
        native.open_backend(config, lambda progress: True)


@pytest.mark.parametrize("part", [0.0005, 0.02, 0.5, 0.999])
def test_a_truncated_model_is_refused_in_one_line(libs_folder, tiny_spm_model, tmp_path, part):
    data = tiny_spm_model.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * part)])
    config = EngineConfig(str(path), str(libs_folder), n_ctx=256)
    with pytest.raises(StartError) as caught:
        native.open_backend(config, lambda progress: True)
    assert "\n" not in str(caught.value) and "cut.gguf" in str(caught.value)


def test_loading_can_be_interrupted(libs_folder, tiny_spm_model):
    config = EngineConfig(str(tiny_spm_model), str(libs_folder), n_ctx=256)
    with pytest.raises(StartError):
        native.open_backend(config, lambda progress: False)


def test_progress_begins_when_the_vocabulary_is_read_and_before_the_weights_are(libs_folder, tiny_spm_model):
    """The web process opens the vocabulary then: what brings a process down has done so to the engine by then."""
    seen: list[tuple[float, bool]] = []
    lines: list[str] = []
    log = logging.getLogger("llama_srv.llama")
    handler = logging.Handler(5)
    handler.emit = lambda record: lines.append(record.getMessage())
    level = log.level
    log.addHandler(handler)
    log.setLevel(5)
    try:
        native.open_backend(
            EngineConfig(str(tiny_spm_model), str(libs_folder), n_ctx=256),
            lambda progress: not seen.append((progress, any("load_tensors" in line for line in lines))),
        ).close()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert seen[0] == (0.0, False) and seen[-1] == (1.0, True)


def test_special_tokens_are_shown_on_request(libs_folder, recite_model):
    for special, end in ((False, " end"), (True, " end<|im_end|>")):
        one = Engine(libs_folder, recite_model, n_ctx=64, special=special)
        try:
            assert one.say("count: one").text.endswith(end)
        finally:
            one.close()


# ---- threads -----------------------------------------------------------------------------------------------------


def test_cores_that_are_left_to_others_change_no_token(engine, tiny_model):
    one = engine(tiny_model, n_threads=2)
    alone = one.say(PROMPTS[0], 30, cache_prompt=False).tokens
    one.backend.leave_cores(1)
    assert one.backend._llama.llama_n_threads(one.backend._context) == 1
    assert one.say(PROMPTS[0], 30, cache_prompt=False).tokens == alone
    one.backend.leave_cores(5)
    assert one.backend._llama.llama_n_threads(one.backend._context) == 1, "one is left at least"
    one.backend.leave_cores(0)
    assert one.backend._llama.llama_n_threads(one.backend._context) == 2
