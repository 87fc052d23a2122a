"""Each sampler compared with a computation in plain Python, on the same logits, token by token.

The tiny model's vocabulary has about a hundred tokens, so the engine can report the probability of every token after
sampling settings (`n_probs`). The reference is `simulate`: rows of (token, logit) from a separate context, and the
samplers as their authors and the documents define them. Needs the native libraries; one engine for the whole file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest

from server.api.request import sampling
from server.engine.seam.task import SamplingParams
from server.engine.slots.sampling import VocabFacts, make_chain
from tests.native.engines import Engine, Reference

N_CTX = 256
PROMPT = "the cat saw the dog and the cat ran home\nthe cat saw the bird\n"
Rows = list[tuple[int, float]]  # (token, logit), the highest logit first
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
NONE: dict[str, object] = {**OFF, "temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def pair(libs_folder, tiny_spm_model) -> Iterator[tuple[Engine, Reference]]:
    """An engine, and a reference for the same model."""
    with ExitStack() as stack:
        one = Engine(libs_folder, tiny_spm_model, n_ctx=N_CTX)
        stack.callback(one.close)
        yield one, Reference(libs_folder, tiny_spm_model, stack)


# ---- the samplers in plain Python --------------------------------------------------------------------------------


def ranked(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: -row[1])


def softmax(rows: Rows) -> list[float]:
    highest = max(logit for _, logit in rows)
    weights = [math.exp(logit - highest) for _, logit in rows]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy(probs: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probs if p > 0)


def top_k(rows: Rows, p: SamplingParams) -> Rows:
    return rows[: max(p.top_k, p.min_keep)] if p.top_k > 0 else rows


def top_p(rows: Rows, p: SamplingParams) -> Rows:
    total = 0.0
    for i, prob in enumerate(softmax(rows)):
        total += prob
        if total >= p.top_p and i + 1 >= p.min_keep:
            return rows[: i + 1]
    return rows


def min_p(rows: Rows, p: SamplingParams) -> Rows:
    probs = softmax(rows)
    n = sum(prob >= p.min_p * probs[0] for prob in probs)
    return rows[: max(n, p.min_keep)]


def typical_p(rows: Rows, p: SamplingParams) -> Rows:
    if p.typical_p >= 1:
        return rows
    probs = softmax(rows)
    mean = entropy(probs)
    order = sorted(range(len(rows)), key=lambda i: abs(-math.log(probs[i]) - mean))
    total, kept = 0.0, []
    for i in order:
        kept.append(rows[i])
        total += probs[i]
        if total > p.typical_p and len(kept) >= p.min_keep:
            break
    return ranked(kept)


def tfs_z(rows: Rows, p: SamplingParams) -> Rows:
    if p.tfs_z >= 1 or len(rows) <= 2:
        return rows
    probs = softmax(rows)
    slope = [a - b for a, b in zip(probs, probs[1:])]
    bend = [abs(a - b) for a, b in zip(slope, slope[1:])]
    total = 0.0
    for i, one in enumerate(bend):
        total += one / math.fsum(bend)
        if total > p.tfs_z and i >= max(p.min_keep, 1):
            return rows[:i]
    return rows


def temperature(rows: Rows, p: SamplingParams) -> Rows:
    heat = p.temperature
    if p.dynatemp_range > 0 and len(rows) > 1:
        low, high = max(heat - p.dynatemp_range, 0.0), heat + p.dynatemp_range
        share = entropy(softmax(rows)) / math.log(len(rows))
        heat = low + (high - low) * share**p.dynatemp_exponent
    return [(token, logit / heat) for token, logit in rows]


def xtc(rows: Rows, p: SamplingParams) -> Rows:
    """For `xtc_probability` 1: of the tokens above the threshold only the least likely one stays."""
    n = sum(prob >= p.xtc_threshold for prob in softmax(rows))
    if not p.xtc_probability or p.xtc_threshold > 0.5 or n < 2 or len(rows) - n + 1 < p.min_keep:
        return rows
    return rows[n - 1 :]


def top_n_sigma(rows: Rows, p: SamplingParams) -> Rows:
    if p.top_n_sigma <= 0:
        return rows
    logits = [logit for _, logit in rows]
    mean = math.fsum(logits) / len(logits)
    sigma = math.sqrt(math.fsum((logit - mean) ** 2 for logit in logits) / len(logits))
    return [row for row in rows if row[1] >= logits[0] - p.top_n_sigma * sigma]


TRUNCATIONS: dict[str, Callable[[Rows, SamplingParams], Rows]] = {
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "tfs_z": tfs_z,
    "xtc": xtc,
    "temperature": temperature,
    "top_n_sigma": top_n_sigma,
}


def penalties(rows: Rows, p: SamplingParams, history: list[int], newline: int) -> Rows:
    n = N_CTX if p.repeat_last_n < 0 else p.repeat_last_n
    window = history[-n:] if n else []
    changed = []
    for token, logit in rows:
        count = window.count(token)
        if count and (p.penalize_nl or token != newline):
            logit = logit / p.repeat_penalty if logit > 0 else logit * p.repeat_penalty
            logit -= count * p.frequency_penalty + p.presence_penalty
        changed.append((token, logit))
    return ranked(changed)


def dry(rows: Rows, p: SamplingParams, history: list[int], breakers: set[int]) -> Rows:
    """Every token that would lengthen a repetition loses more, the longer the repetition already is."""
    n_last = N_CTX if p.dry_penalty_last_n < 0 else p.dry_penalty_last_n
    window = history[-n_last:] if n_last else []
    since_breaker = next((i for i, token in enumerate(reversed(window)) if token in breakers), len(window))
    longest: dict[int, int] = {}
    for end in range(len(window) - 1):
        n = 0
        while n <= end and n < since_breaker and window[end - n] == window[-1 - n]:
            n += 1
        if n >= p.dry_allowed_length:
            follower = window[end + 1]
            longest[follower] = max(longest.get(follower, 0), n)
    return ranked(
        [
            (
                token,
                logit - p.dry_multiplier * p.dry_base ** (longest[token] - p.dry_allowed_length)
                if token in longest and token not in breakers
                else logit,
            )
            for token, logit in rows
        ]
    )


def simulate(p: SamplingParams, rows: Rows, history: list[int], newline: int, breakers: set[int]) -> dict[int, float]:
    """The probability of every token that is left."""
    bias = dict(p.logit_bias)
    rows = ranked([(token, logit + bias.get(token, 0.0)) for token, logit in rows if bias.get(token) != -math.inf])
    for name in p.samplers:
        if name == "penalties":
            rows = penalties(rows, p, history, newline)
        elif name == "dry":
            rows = dry(rows, p, history, breakers)
        else:
            rows = TRUNCATIONS[name](rows, p)
    return {token: prob for (token, _), prob in zip(rows, softmax(rows))}


# ---- engine and reference side by side ---------------------------------------------------------------------------


def assert_same(got: dict[int, float], expected: dict[int, float]) -> None:
    for token in {*got, *expected}:
        assert got.get(token, 0.0) == pytest.approx(expected.get(token, 0.0), abs=2e-4, rel=2e-3), token
    clearly = {token for token, prob in expected.items() if prob > 1e-6}
    assert {token for token, prob in got.items() if prob > 1e-6} == clearly


def compare(
    pair: tuple[Engine, Reference],
    n: int = 5,
    prompt: str | Sequence[int] = PROMPT,
    biased: Sequence[tuple[int, float]] = (),
    **settings: object,
) -> list[dict[int, float]]:
    """Let the engine draw `n` tokens with these settings and check all probabilities of each; those of the engine."""
    one, other = pair
    vocab = one.client.vocab
    newline = vocab.tokenize("\n", False, False)[-1]
    breakers = {
        token
        for token in range(vocab.n_tokens)
        if any(text.encode() in vocab.piece(token) for text in SamplingParams().dry_sequence_breakers)
    }
    params = SamplingParams(**{**NONE, "n_probs": vocab.n_tokens, "logit_bias": tuple(biased), **settings})
    said = one.say(prompt, n, params, cache_prompt=False)
    evaluated = list(one.tokens(prompt))
    history = list(evaluated if params.penalty_prompt is None else params.penalty_prompt)
    seen = []
    assert len(said.probs) == n
    for probs in said.probs:
        rows = list(enumerate(other.logits(evaluated)))
        got = {token: prob for token, prob in probs.top if prob > 0}
        assert_same(got, simulate(params, rows, history, newline, breakers))
        assert probs.prob == pytest.approx(got[probs.token], abs=1e-6)
        seen.append(got)
        evaluated.append(probs.token)
        history.append(probs.token)
    return seen


def only(*names: str, **settings: object) -> dict[str, object]:
    return {"samplers": names, **settings}


CUTS = {
    "top_k 1": only("top_k", top_k=1),
    "top_k 7": only("top_k", top_k=7),
    "top_k off": only("top_k", top_k=0),
    "top_k all": only("top_k", top_k=100_000),
    "top_p": only("top_p", top_p=0.6),
    "top_p 0": only("top_p", top_p=0.0),
    "top_p off": only("top_p", top_p=1.0),
    "min_p": only("min_p", min_p=0.2),
    "min_p 1": only("min_p", min_p=1.0),
    "min_p off": only("min_p", min_p=0.0),
    "typical": only("typical_p", typical_p=0.5),
    "typical off": only("typical_p", typical_p=1.0),
    "tfs": only("tfs_z", tfs_z=0.9),
    "tfs much": only("tfs_z", tfs_z=0.4),
    "tfs off": only("tfs_z", tfs_z=1.0),
    "hot": only("temperature", temperature=2.5),
    "cold": only("temperature", temperature=0.3),
    "temperature 1": only("temperature", temperature=1.0),
    "dynamic": only("temperature", temperature=1.2, dynatemp_range=0.7),
    "dynamic, exponent": only("temperature", temperature=1.2, dynatemp_range=0.7, dynatemp_exponent=2.5),
    "dynamic below 0": only("temperature", temperature=0.5, dynatemp_range=3.0),
    "xtc": only("xtc", xtc_probability=1.0, xtc_threshold=0.05),
    "xtc above a half": only("xtc", xtc_probability=1.0, xtc_threshold=0.6),
    "top_n_sigma": only("top_n_sigma", top_n_sigma=1.0),
    "top_n_sigma off": only("top_n_sigma", top_n_sigma=-1.0),
    "none": only(),
}


@pytest.mark.covers("Q02", "Q03", "Q04", "Q05", "Q06", "Q07", "Q12", "Q13")
@pytest.mark.parametrize("settings", CUTS.values(), ids=CUTS)
def test_a_sampler_leaves_what_its_definition_leaves(pair, settings):
    compare(pair, **settings)


def test_samplers_that_are_off_by_their_value_are_off_though_named(pair):
    everything = ("penalties", "dry", "top_n_sigma", "top_k", "typical_p", "tfs_z", "top_p", "min_p", "xtc")
    assert compare(pair, samplers=everything) == compare(pair, samplers=())


KEEPS = {
    "top_k": only("top_k", top_k=2, min_keep=6),
    "top_p": only("top_p", top_p=0.1, min_keep=6),
    "min_p": only("min_p", min_p=0.9, min_keep=6),
    "typical": only("typical_p", typical_p=0.1, min_keep=6),
    "tfs": only("tfs_z", tfs_z=0.1, min_keep=6),
    "xtc, few": only("top_k", "xtc", top_k=8, xtc_probability=1.0, xtc_threshold=0.03, min_keep=8),
}


@pytest.mark.covers("Q34")
@pytest.mark.parametrize("settings", KEEPS.values(), ids=KEEPS)
def test_min_keep_leaves_so_many(pair, settings):
    assert all(len(one) >= 6 for one in compare(pair, **settings))
    fewer = compare(pair, **{**settings, "min_keep": 0})
    assert any(len(one) < 6 for one in fewer)


PENALTIES = {
    "repeat": {"repeat_penalty": 1.7},
    "repeat below 1": {"repeat_penalty": 0.6},
    "presence": {"presence_penalty": 1.5},
    "presence below 0": {"presence_penalty": -1.5},
    "frequency": {"frequency_penalty": 0.8},
    "all three": {"repeat_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "the last 3": {"repeat_penalty": 1.7, "frequency_penalty": 0.5, "repeat_last_n": 3},
    "nothing": {"repeat_penalty": 1.7, "repeat_last_n": 0},
    "the whole context": {"repeat_penalty": 1.7, "frequency_penalty": 0.1, "repeat_last_n": -1},
    "more than there is": {"repeat_penalty": 1.7, "repeat_last_n": 2**31 - 1},
}


@pytest.mark.covers("Q14", "Q15", "Q17", "Q18")
@pytest.mark.parametrize("settings", PENALTIES.values(), ids=PENALTIES)
def test_penalties_change_the_logits_of_what_occurred(pair, settings):
    seen = compare(pair, 8, samplers=("penalties",), **settings)
    plain = compare(pair, 1, samplers=())
    assert (seen[0] == plain[0]) == (settings.get("repeat_last_n") == 0)


def test_no_request_makes_c_reserve_memory_for_more_than_the_context():
    far = 2**31 - 1
    stages = make_chain(
        SamplingParams(repeat_penalty=1.1, repeat_last_n=far, dry_multiplier=1.0, dry_penalty_last_n=far),
        VocabFacts((), (), 512),
    )
    reach = {
        stage.name: stage.args[0 if stage.name == "penalties" else 3]
        for stage in stages
        if stage.name in ("penalties", "dry")
    }
    assert reach == {"penalties": 512, "dry": 512}


def test_penalties_reach_as_far_back_as_they_are_told(pair):
    """The prompt is longer than the 64 tokens of the default."""
    prompt = "brave " + "the cat ran home " * 30
    for last_n in (64, 5, -1):
        compare(pair, 3, prompt, samplers=("penalties",), presence_penalty=2.0, repeat_last_n=last_n)


@pytest.mark.covers("Q16")
def test_line_breaks_are_left_alone_when_asked_for(pair):
    newline = pair[0].client.vocab.tokenize("\n", False, False)[-1]
    settings = {
        "samplers": ("penalties",),
        "biased": [(newline, 12.0)],
        "repeat_penalty": 1.5,
        "presence_penalty": 1.0,
        "frequency_penalty": 0.2,
    }
    spared = compare(pair, 6, penalize_nl=False, **settings)
    punished = compare(pair, 6, penalize_nl=True, **settings)
    assert spared[0][newline] > 2 * punished[0][newline] > 0
    for order in (("top_k", "penalties"), ("penalties", "top_k", "penalties"), ("temperature", "penalties", "top_p")):
        compare(
            pair, 4, penalize_nl=False, **{**settings, "samplers": order, "top_k": 30, "top_p": 0.9, "temperature": 1.4}
        )


@pytest.mark.covers("Q19")
def test_another_text_can_stand_for_the_prompt_in_penalties(pair):
    vocab = pair[0].client.vocab
    settings = {"samplers": ("penalties",), "repeat_penalty": 1.6, "presence_penalty": 1.0}
    for value in ("moon river moon", vocab.tokenize("the cat", False, False), "", []):
        compare(pair, 6, penalty_prompt=sampling.read_penalty_prompt(value, vocab), **settings)
    assert sampling.read_penalty_prompt(None, vocab) is None


DRY = {
    "default": {"dry_multiplier": 0.8},
    "strong": {"dry_multiplier": 2.0, "dry_base": 1.3, "dry_allowed_length": 1},
    "long repetitions only": {"dry_multiplier": 2.0, "dry_allowed_length": 4},
    "near ones only": {"dry_multiplier": 1.0, "dry_allowed_length": 1, "dry_penalty_last_n": 8},
    "switched off by its reach": {"dry_multiplier": 1.0, "dry_penalty_last_n": 0},
    "more than there is": {"dry_multiplier": 1.0, "dry_penalty_last_n": 2**31 - 1},
}


@pytest.mark.parametrize(
    "prompt",
    [
        "the cat saw the dog and ran home. the cat saw the dog and",
        "old tree: the cat saw: the cat saw",
        "the the the the the",
        'red fox " big red fox " big red fox',
    ],
)
@pytest.mark.parametrize("settings", DRY.values(), ids=DRY)
def test_dry_punishes_what_would_go_on_with_a_repetition(pair, settings, prompt):
    compare(pair, 3, prompt, samplers=("dry",), **settings)


ORDERS = [
    ("top_k", "tfs_z", "typical_p", "top_p", "min_p", "temperature"),
    ("temperature", "min_p", "top_p", "typical_p", "tfs_z", "top_k"),
    ("temperature", "temperature", "top_p", "temperature"),
    ("top_p", "top_p", "top_p"),
    ("min_p", "temperature", "min_p"),
    ("top_k", "xtc", "temperature", "penalties", "min_p"),
    ("penalties", "penalties", "dry", "top_n_sigma", "top_p"),
    ("tfs_z", "temperature", "tfs_z"),
    ("top_p", "dry", "top_k", "penalties", "typical_p"),
]


@pytest.mark.covers("Q33")
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_samplers_work_in_any_order_and_as_often_as_named(pair, order):
    settings = {
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.05,
        "typical_p": 0.9,
        "tfs_z": 0.97,
        "temperature": 1.4,
        "xtc_probability": 1.0,
        "xtc_threshold": 0.15,
        "repeat_penalty": 1.3,
        "dry_multiplier": 0.5,
        "top_n_sigma": 2.0,
    }
    compare(pair, 6, samplers=order, **settings)


def test_order_matters_and_so_does_repetition(pair):
    first, second, third = (
        compare(pair, 1, samplers=order, top_p=0.7, temperature=3.0)[0]
        for order in (("top_p", "temperature"), ("temperature", "top_p"), ("temperature", "top_p", "top_p"))
    )
    assert len(first) < len(third) < len(second)


# ---- Mirostat ----------------------------------------------------------------------------------------------------


def mirostat_1(rows: Rows, mu: float, n_vocab: int) -> Rows:
    probs = softmax(rows)
    times = [math.log((i + 2) / (i + 1)) for i in range(min(99, len(rows) - 1))]
    drops = [math.log(probs[i] / probs[i + 1]) for i in range(len(times))]
    s = math.fsum(t * b for t, b in zip(times, drops)) / math.fsum(t * t for t in times)
    k = ((s - 1) * 2**mu / (1 - n_vocab ** (1 - s))) ** (1 / s)
    return rows[: max(int(k), 1)]


def mirostat_2(rows: Rows, mu: float, n_vocab: int) -> Rows:
    kept = [row for row, prob in zip(rows, softmax(rows)) if -math.log2(prob) <= mu]
    return kept or rows[:1]


@pytest.mark.covers("Q20", "Q21", "Q22")
@pytest.mark.parametrize(("kind", "cut"), [(1, mirostat_1), (2, mirostat_2)])
@pytest.mark.parametrize(("tau", "eta"), [(5.0, 0.1), (2.0, 0.5), (1.0, 0.1)])
def test_mirostat_steers_towards_its_surprise(pair, kind, cut, tau, eta):
    one, other = pair
    n_vocab = one.client.info.n_vocab
    params = SamplingParams(
        seed=4,
        mirostat=kind,
        mirostat_tau=tau,
        mirostat_eta=eta,
        temperature=1.3,
        repeat_penalty=1.2,
        top_k=1,
        top_p=0.1,
        n_probs=n_vocab,
    )  # cuts that Mirostat ignores
    said = one.say(PROMPT, 12, params, cache_prompt=False)
    history, mu, sizes = list(one.tokens(PROMPT)), 2 * tau, set()
    for probs in said.probs:
        rows = penalties(list(enumerate(other.logits(history))), params, history, -1)
        kept = cut(ranked(temperature(rows, params)), mu, n_vocab)
        expected = {token: prob for (token, _), prob in zip(kept, softmax(kept))}
        assert_same({token: prob for token, prob in probs.top if prob > 0}, expected)
        mu -= eta * (-math.log2(expected[probs.token]) - tau)
        history.append(probs.token)
        sizes.add(len(kept))
    assert len(sizes) > 1, "mu moves, so the cut does"


# ---- bias, the end of the text, probabilities --------------------------------------------------------------------


@pytest.mark.covers("Q27")
def test_each_form_of_bias_has_its_effect(pair):
    vocab = pair[0].client.vocab
    plain = compare(pair, 1, samplers=())[0]
    cat, dog = sorted(plain, key=lambda token: -plain[token])[:2]
    texts = [vocab.piece(token).decode().strip() for token in (cat, dog)]
    forms = {
        "ids": [[cat, -3.0], [dog, 1.5]],
        "never": [[cat, False]],
        "text": [[" ".join(texts), -0.5]],
        "object": {str(cat): -2, texts[1]: -100},
        "object with a ban": {texts[0]: False},
    }
    for name, value in forms.items():
        changed = compare(pair, 4, samplers=(), biased=sampling.read_logit_bias(value, vocab))[0]
        assert changed.get(cat, 0.0) < plain[cat] - 0.02, name
        assert (cat in changed) == (name not in ("never", "object with a ban")), name
    both = compare(pair, 1, samplers=(), biased=sampling.read_logit_bias(forms["text"], vocab))[0]
    assert both[dog] / both[cat] == pytest.approx(plain[dog] / plain[cat], rel=1e-3), "every token of the text"


@pytest.mark.covers("Q26")
def test_ignoring_the_end_leaves_it_no_probability(libs_folder, recite_model):
    one = Engine(libs_folder, recite_model, n_ctx=64)
    try:
        prompt = "".join(("count: one two three four five six seven eight nine ten", " héllo", " 世界", " 😀", " end"))
        end = one.client.vocab.tokenize("<|im_end|>", False, True)[0]
        settings = {**NONE, "n_probs": one.client.info.n_vocab, "samplers": ()}
        for ignore_eos in (False, True):
            probs = one.say(prompt, 1, SamplingParams(**settings, ignore_eos=ignore_eos)).probs[0]
            assert (dict(probs.top)[end] > 0.001) != ignore_eos
            assert dict(probs.top_logprobs)[end] > -10, "the model's own opinion is reported as it is"
    finally:
        one.close()


@pytest.mark.covers("Q28")
def test_below_zero_the_best_token_is_taken_and_the_probabilities_are_the_plain_ones(pair):
    one, other = pair
    settings = {"temperature": -1.0, "top_k": 2, "top_p": 0.1, "min_p": 0.5, "n_probs": 8, "seed": 3}
    said = one.say(PROMPT, 6, SamplingParams(**settings), cache_prompt=False)
    history = list(one.tokens(PROMPT))
    for probs in said.probs:
        rows = ranked(list(enumerate(other.logits(history))))
        expected = [(token, prob) for (token, _), prob in zip(rows, softmax(rows))][:8]
        assert [token for token, _ in probs.top] == [token for token, _ in expected]
        assert [prob for _, prob in probs.top] == pytest.approx([prob for _, prob in expected], abs=1e-4)
        assert probs.token == rows[0][0]
        history.append(probs.token)
    assert said.tokens == one.say(PROMPT, 6, SamplingParams(temperature=0.0)).tokens


def test_probabilities_are_those_after_the_settings(pair):
    """The three likeliest of a chain that leaves two: the third is there, with nothing."""
    said = pair[0].say(PROMPT, 4, SamplingParams(**{**NONE, "top_k": 2, "temperature": 3.0, "n_probs": 3}))
    for probs in said.probs:
        values = [prob for _, prob in probs.top]
        assert len(values) == 3 and math.fsum(values) == pytest.approx(1, abs=1e-5) and values[2] == 0.0
        assert values == sorted(values, reverse=True)


EXTREMES = {
    "cold": {"temperature": 1e-38},
    "colder": {"temperature": 1e-300},
    "cold Mirostat": {"temperature": 1e-38, "mirostat": 2},
    "hot": {"temperature": 100.0},
    "a bias": {"logit_bias": ((300, 3e38),)},
    "a huge bias": {"logit_bias": ((300, 1e300), (301, 1e300))},
    "a bias and heat": {"logit_bias": ((300, 3e38),), "samplers": ("temperature",), "temperature": 0.1},
    "a huge negative bias": {
        "logit_bias": tuple((token, -1e300) for token in range(700)),
        "samplers": ("temperature",),
    },
    "a tiny penalty": {"repeat_penalty": 1e-6},
    "a huge penalty": {"repeat_penalty": 1e6, "presence_penalty": 1e6},
    "mirostat": {"mirostat": 1, "mirostat_tau": 1e6, "mirostat_eta": 1e6},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 1e6, "mirostat_eta": 1e6},
    "mirostat nothing": {"mirostat": 1, "mirostat_tau": 0.0, "mirostat_eta": 0.0},
    "dry": {"dry_multiplier": 1e6, "dry_base": 1e6, "dry_allowed_length": 0},
    "dry nothing": {"dry_multiplier": 1.0, "dry_base": 0.0},
    "dynamic": {"dynatemp_range": 100.0, "dynatemp_exponent": 100.0},
    "xtc everything": {"xtc_probability": 1.0, "xtc_threshold": 0.0},
    "sigma 0": {"top_n_sigma": 0.0},
    "typical 0": {"typical_p": 0.0},
    "tfs 0": {"tfs_z": 0.0, "samplers": ("tfs_z",)},
    "everything kept": {"min_keep": 2**31 - 1, "top_k": 1, "typical_p": 0.1},
}


@pytest.mark.parametrize("settings", EXTREMES.values(), ids=EXTREMES)
def test_the_ends_of_the_allowed_ranges_harm_nobody(pair, settings):
    """Every token is one of the vocabulary, and the next request is well."""
    one = pair[0]
    for n_probs in (0, 4):
        said = one.say(PROMPT, 3, SamplingParams(**{"seed": 1, **settings, "n_probs": n_probs}))
        assert all(0 <= token < one.client.info.n_vocab for token in said.tokens)
        for probs in said.probs:
            assert all(math.isfinite(value) for value in (probs.prob, probs.logprob, *dict(probs.top).values()))
    greedy = one.say(PROMPT, 3, SamplingParams(temperature=0.0))
    assert greedy.tokens == pair[1].greedy(one.tokens(PROMPT), 3)


def test_a_copy_with_other_settings_is_another_request(pair):
    """Two requests at once have chains of their own."""
    one = pair[0]
    hot = SamplingParams(seed=2, temperature=3.0, top_k=0)
    alone = one.say(PROMPT, 10, hot).tokens
    tasks = [one.task(PROMPT, 10, params) for params in (hot, replace(hot, temperature=0.0), replace(hot, seed=9))]
    assert one.say_all(tasks)[0].tokens == alone
