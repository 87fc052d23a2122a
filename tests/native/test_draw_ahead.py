"""Tokens sampled on several threads at once equal those of one thread, because each sampler has its own random state."""

from __future__ import annotations

import pytest

from server.engine.llama import backend as native
from server.engine.llama.draws import Draws
from server.engine.llama.sampler import LlamaSampler
from server.engine.seam.config import SpecConfig
from server.engine.seam.task import SamplingParams
from tests.native.engines import GREEDY, PROMPTS, Engine

N_SLOTS = 8
KINDS = {
    "default": SamplingParams(temperature=1.2, repeat_penalty=1.1, presence_penalty=0.2),
    "greedy": GREEDY,
    "mirostat": SamplingParams(temperature=1.5, mirostat=2),
    "xtc": SamplingParams(temperature=1.5, xtc_probability=0.5, min_p=0.0),
    "tail-free": SamplingParams(temperature=1.5, tfs_z=0.9),  # Python's own: never drawn ahead
    "newline": SamplingParams(temperature=1.5, repeat_penalty=1.3, penalize_nl=False),
    "grammar": SamplingParams(temperature=1.5, grammar='root ::= ("a" | "b" | " ")+'),
    "probabilities": SamplingParams(temperature=1.5, n_probs=3),
    "biased": SamplingParams(temperature=1.5, logit_bias=((5, 3.0), (7, -100.0)), ignore_eos=True),
}


@pytest.fixture
def crowd(engine, tiny_spm_model) -> Engine:
    """One compute thread, since others may use the machine, and a helper all the same."""
    crowd = engine(tiny_spm_model, n_slots=N_SLOTS, n_ctx=2048, spec=SpecConfig(lookup=True, ngram=2, min_gain=0.0))
    crowd.backend._draws = Draws(1)
    return crowd


@pytest.mark.parametrize(("n_threads", "n_cores", "n_helpers"), [(2, 2, 1), (1, 2, 0), (4, 2, 1)])
def test_there_are_as_many_threads_as_compute(engine, tiny_spm_model, monkeypatch, n_threads, n_cores, n_helpers):
    monkeypatch.setattr(native, "count_usable_cores", lambda: n_cores)
    assert engine(tiny_spm_model, n_threads=n_threads).backend._draws._n_helpers == n_helpers


def tasks(engine: Engine) -> list:
    kinds = list(KINDS.values())
    return [
        engine.task(
            f"{i} {PROMPTS[i % len(PROMPTS)]}",
            24,
            SamplingParams(
                **{**{name: getattr(kinds[i % len(kinds)], name) for name in SamplingParams.__slots__}, "seed": i}
            ),
        )
        for i in range(3 * len(kinds))
    ]


def test_the_same_tokens_as_one_after_the_other(crowd, monkeypatch):
    ahead = []
    draw_ahead = LlamaSampler.draw_ahead
    monkeypatch.setattr(LlamaSampler, "draw_ahead", lambda self, row: (ahead.append(row), draw_ahead(self, row)))
    together = [said.tokens for said in crowd.say_all(tasks(crowd))]
    assert ahead
    crowd.backend._draws.close()
    n_ahead = len(ahead)
    alone = [said.tokens for said in crowd.say_all(tasks(crowd))]
    assert len(ahead) == n_ahead
    assert together == alone


def test_guesses_are_checked_behind_what_was_drawn_ahead(crowd):
    loop = "night and day and night and day and night and "
    asked = [crowd.task(f"{i} {loop}", 40, SamplingParams(seed=i, temperature=0.7)) for i in range(N_SLOTS)]
    together = crowd.say_all(asked)
    assert sum(said.final.timings.draft_n for said in together)
    crowd.backend._draws.close()
    again = [crowd.task(task.prompt, 40, task.sampling) for task in asked]
    assert [said.tokens for said in crowd.say_all(again)] == [said.tokens for said in together]
