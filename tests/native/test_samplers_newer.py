"""Samplers with a state or random numbers of their own (XTC below 1, adaptive-p, infill) compared with plain Python.

As in `test_samplers`, the engine reports the probability of every token of a tiny vocabulary, and the expected ones are
computed from the logits of a separate context. Needs the native libraries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.engine.seam.task import SamplingParams
from tests.native.engines import Engine, Reference
from tests.native.test_samplers import NONE, PROMPT, Rows, assert_same, ranked, softmax, xtc

N_CTX = 512


@pytest.fixture(scope="module")
def pair(libs_folder, tiny_spm_model) -> Iterator[tuple[Engine, Reference]]:
    """An engine, and a reference for the same model."""
    with ExitStack() as stack:
        one = Engine(libs_folder, tiny_spm_model, n_ctx=N_CTX)
        stack.callback(one.close)
        yield one, Reference(libs_folder, tiny_spm_model, stack)


def drawn(
    pair: tuple[Engine, Reference], n: int, prompt: str = PROMPT, **settings: object
) -> Iterator[tuple[Rows, dict[int, float], int]]:
    """For each of `n` drawn tokens: the plain rows, best first, the engine's probabilities, and the token."""
    one, other = pair
    params = SamplingParams(**{**NONE, "n_probs": one.client.info.n_vocab, **settings})
    history = list(one.tokens(prompt))
    bias = dict(params.logit_bias)
    for probs in one.say(prompt, n, params, cache_prompt=False).probs:
        rows = [(token, logit + bias.get(token, 0.0)) for token, logit in enumerate(other.logits(history))]
        yield ranked(rows), {token: prob for token, prob in probs.top if prob > 0}, probs.token
        history.append(probs.token)


def plain(rows: Rows) -> dict[int, float]:
    return {token: prob for (token, _), prob in zip(rows, softmax(rows))}


def test_xtc_cuts_about_as_often_as_its_probability_says(pair):
    share, n = 0.3, 120
    params = SamplingParams(xtc_probability=share, xtc_threshold=0.01)
    n_cut = n_able = 0
    for rows, got, _ in drawn(pair, n, samplers=("xtc",), xtc_probability=share, xtc_threshold=0.01):
        cut = xtc(rows, params)
        if len(cut) == len(rows):
            assert_same(got, plain(rows))
            continue
        n_able += 1
        is_cut = len(got) < len(rows)
        n_cut += is_cut
        assert_same(got, plain(cut if is_cut else rows))
    assert n_able > n / 2
    assert abs(n_cut / n_able - share) < 4 * math.sqrt(share * (1 - share) / n_able)


@pytest.mark.parametrize(("target", "decay"), [(0.5, 0.9), (0.1, 0.5), (0.0, 0.0), (1.0, 0.99), (0.3, 1.0)])
def test_adaptive_p_favours_tokens_whose_probability_makes_the_mean_reach_the_target(pair, target, decay):
    """A peak at twice the target less the moving average, quadratic near it, linear far away (PR 17927)."""
    kept = min(decay, 0.99)
    total, weight = target / (1 - kept), 1 / (1 - kept)
    wanted = set()
    for rows, got, token in drawn(
        pair, 15, samplers=("top_k", "adaptive_p"), top_k=40, adaptive_target=target, adaptive_decay=decay
    ):
        before = plain(rows[:40])
        aim = min(max(2 * target - total / weight, 0.0), 1.0)
        far = {one: abs(prob - aim) / 0.3 for one, prob in before.items()}
        assert_same(got, plain([(one, 5 - 10 * d * d / (1 + d)) for one, d in far.items()]))
        total, weight = before[token] + kept * total, 1 + kept * weight
        wanted.add(round(aim, 3))
    assert len(wanted) > 1 or target in (0.0, 1.0)


def infill(rows: Rows, pieces: list[bytes], ends: set[int]) -> Rows:
    """Code that fills a gap should end soon, and a token that begins another counts with it."""
    probs = dict(zip([token for token, _ in rows], softmax(rows)))
    p_end = math.fsum(probs[token] for token in probs if token in ends)
    if 3 * p_end * len(rows) > 1 - p_end:
        return [row for row in rows if row[0] in ends]
    gone: set[int] = set()
    for first in probs:
        for second in probs:
            if first in gone:
                break
            if second == first or second in gone or not pieces[first] or not pieces[second].startswith(pieces[first]):
                continue
            winner, loser = (second, first) if probs[second] > probs[first] else (first, second)
            probs[winner] += probs[loser]
            probs[loser] = 0.0
            gone.add(loser)
    left = {token: prob for token, prob in probs.items() if prob >= 0.2 or token in ends}
    n_text = sum(token not in ends for token in left)
    if not n_text:
        return [(min(ends), 1.0)]
    total = math.fsum(left.values())
    left = {token for token, prob in left.items() if prob / total >= 1 / (n_text + 1) or token in ends}
    return [row for row in rows if row[0] in left]


def test_infill_joins_beginnings_and_prefers_to_end(pair):
    one = pair[0]
    vocab, ends = one.client.vocab, set(one.client.info.eog_tokens)
    pieces = [vocab.piece(token) if token not in ends else b"" for token in range(one.client.info.n_vocab)]
    cat, dog, moon = (vocab.tokenize(text, False, False)[-1] for text in ("cat", "dog", "moon"))
    beginning = next(
        token for token, piece in enumerate(pieces) if piece and piece != pieces[cat] and pieces[cat].startswith(piece)
    )
    never = tuple((token, -60.0) for token in ends)
    logits = pair[1].logits(one.tokens(PROMPT))

    def wish(**values: float) -> tuple[tuple[int, float], ...]:
        """Biases that give these words these logits."""
        tokens = {"cat": cat, "dog": dog, "moon": moon, "beginning": beginning}
        return (*never, *((tokens[name], value - logits[tokens[name]]) for name, value in values.items()))

    cases = {
        "one word": wish(cat=40.0),
        "a word and its beginning": wish(cat=40.0, beginning=39.5),
        "two words": wish(cat=40.0, dog=40.0),
        "one of three is too rare": wish(cat=40.0, dog=40.0, moon=38.0),
        "nothing is likely": (*never,),
        "the end is likely": tuple((token, 8.0) for token in ends),
    }
    sizes = {}
    for name, bias in cases.items():
        for rows, got, _ in drawn(pair, 1, samplers=("infill",), logit_bias=bias):
            expected = plain(infill(rows, pieces, ends))
            assert_same(got, expected)
            sizes[name] = sum(prob > 1e-6 for prob in got.values())
    assert sizes["one word"] == 1 and sizes["two words"] == 2, sizes
