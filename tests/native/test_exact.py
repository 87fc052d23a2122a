"""Exact mode: on a real quantised model, whose rounding depends on the size of a step, a request's text is the same
alone, in a batch, after another request, and repeated. Needs the native libraries and SmolLM2.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.engine.seam.task import SamplingParams
from tests.native.engines import GREEDY, Engine

QUESTIONS = [
    "Why is the sky blue?",
    "Write a poem about the sea.",
    "Count to thirty.",
    "Who was Ada Lovelace?",
    "Explain gravity to a child in a few sentences.",
    "Name ten animals and what they eat.",
]
N = 24


@pytest.fixture(scope="module")
def exact(libs_folder, smollm2) -> Iterator[Engine]:
    one = Engine(libs_folder, smollm2, n_slots=3, n_ctx=3 * 512, n_batch=64, n_ubatch=64, exact=True)
    yield one
    one.close()


def prompt(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.covers("B07")
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(seed=11, temperature=1.2)], ids=["greedy", "sampled"])
def test_company_changes_nothing(exact, sampling):
    alone = [exact.say(prompt(question), N, sampling).tokens for question in QUESTIONS]
    together = exact.say_all([exact.task(prompt(question), N, sampling) for question in QUESTIONS])
    assert [said.tokens for said in together] == alone
    assert [exact.say(prompt(question), N, sampling).tokens for question in reversed(QUESTIONS)] == alone[::-1]
    assert all(said.final.n_cached and not said.final.timings.cache_n for said in together)


def test_each_slot_has_its_share_of_the_context(exact):
    assert (exact.client.info.n_ctx, exact.client.info.n_ctx_slot) == (3 * 512, 512)
    said = exact.say(prompt("Tell me everything. " * 90), 40)
    assert said.final.n_prompt > 360 and said.final.n_predicted == 40
