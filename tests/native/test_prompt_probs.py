"""Log-probabilities of a prompt's tokens with the real libraries, compared with a softmax in plain Python over the
logits of a context that evaluates one prefix at a time. Runs in the test process, without HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from server.engine.seam.task import PromptProbs, Task, TokenProbs
from tests.native.engines import GREEDY, STEM, Engine


def judge(one: Engine, tasks: Sequence[Task]) -> list[list[TokenProbs]]:
    """What the engine says of each task's prompt, all tasks at once."""
    found: dict[int, list[TokenProbs]] = {task.id: [] for task in tasks}
    with one.client.submit(*tasks, stream=True) as results:
        for event in results:
            if isinstance(event, PromptProbs):
                assert event.start == len(found[event.id]) + 1
                found[event.id] += event.probs
    return list(found.values())


def task(one: Engine, prompt: str, n_predict: int = 0, n_top: int = 3) -> Task:
    return Task(
        one.client.make_id(), one.tokens(prompt), GREEDY, n_predict=n_predict, cache_prompt=False, prompt_probs=n_top
    )


def log_softmax(logits: Sequence[float]) -> list[float]:
    most = max(logits)
    log_sum = most + math.log(math.fsum(math.exp(logit - most) for logit in logits))
    return [logit - log_sum for logit in logits]


@pytest.mark.parametrize("n_batch", [2048, 32], ids=["large batch", "small batch"])
def test_each_token_of_a_prompt_is_judged_as_the_reference_does(engine, reference, tiny_model, n_batch):
    one, other = engine(tiny_model, n_batch=n_batch), reference(tiny_model)
    prompt = STEM + "the moon sang naïve songs 😀 " + STEM * 2
    tokens = one.tokens(prompt)
    assert len(tokens) > 64, "more than one part"
    (found,) = judge(one, [task(one, prompt)])
    assert [item.token for item in found] == list(tokens[1:])
    for i, item in enumerate(found, 1):
        values = log_softmax(other.logits(tokens[:i]))
        assert item.logprob == pytest.approx(values[tokens[i]], abs=1e-3), i
        assert item.prob == pytest.approx(math.exp(values[tokens[i]]), abs=1e-3)
        assert [logprob for _, logprob in item.top_logprobs] == pytest.approx(
            sorted(values, reverse=True)[:3], abs=1e-3
        )
        assert [values[id_] for id_, _ in item.top_logprobs] == pytest.approx(
            [logprob for _, logprob in item.top_logprobs], abs=1e-3
        )


def test_prompts_judged_together_get_the_same_numbers_and_disturb_no_text(engine, tiny_model):
    one = engine(tiny_model, n_slots=3)
    prompts = [STEM * 3, STEM + "the star", "a"]
    alone = [judge(one, [task(one, prompt)])[0] for prompt in prompts]
    text = one.say(STEM, 30, cache_prompt=False).text
    together = judge(one, [task(one, prompt, n_predict=5) for prompt in prompts])
    assert [len(found) for found in together] == [len(one.tokens(prompt)) - 1 for prompt in prompts]
    for a, b in zip(alone, together):
        assert [item.logprob for item in a] == pytest.approx([item.logprob for item in b], abs=1e-3)
    assert one.say(STEM, 30, cache_prompt=False).text == text
