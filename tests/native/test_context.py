"""Full contexts with the real libraries: endless texts, models that can't shift, a system prompt that changes, and
positions grouped by self-extend.

The reference evaluates the remaining tokens from their start, in a context of its own. tiny_llama computes the same
from shifted cells as from new ones, so every token is known.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.engine.seam.task import SamplingParams
from tests.native.engines import STEM, Reference, in_both_layouts
from tests.support import PATIENCE, wait_until

N_CTX = 64
SMALL = {"n_ctx": 4 * N_CTX, "n_slots": 4, "shift_context": True}  # llama.cpp makes no smaller cache than 256


@pytest.mark.covers("B05", "Q09", "R14")
@pytest.mark.parametrize(
    ("n_keep", "n_discard"), [(0, 0), (7, 0), (-1, 0), (3, 9), (0, 1), (0, 1000), (60, 0), (1000, 0)]
)
def test_an_endless_text_goes_on_many_contexts_long(engine, reference, tiny_spm_model, n_keep, n_discard):
    one, other = engine(tiny_spm_model, **SMALL), reference(tiny_spm_model)
    prompt = list(one.tokens(STEM))
    said = one.say(STEM, 6 * N_CTX, n_keep=n_keep, n_discard=n_discard)
    assert said.final.truncated and said.final.n_predicted == 6 * N_CTX and said.final.stop == "limit"
    kept = min(len(prompt) if n_keep < 0 else n_keep, N_CTX - 4)
    dropped = min(n_discard or (N_CTX - kept) // 2, N_CTX - kept - 1)
    history, n_shifts = list(prompt), 0
    for i, token in enumerate(said.tokens):
        if i % 3 == 0:
            assert other.greedy(history, 1) == [token], f"token {i}, {n_shifts} shifts"
        if len(history) == N_CTX:
            del history[kept : kept + dropped]
            n_shifts += 1
        history.append(token)
    assert n_shifts >= 5
    assert history[: min(kept, len(prompt))] == prompt[:kept]


def test_within_the_context_nothing_is_truncated(engine, tiny_spm_model):
    one = engine(tiny_spm_model, **SMALL)
    n_prompt = len(one.tokens(STEM))
    assert not one.say(STEM, N_CTX - n_prompt).final.truncated
    assert one.say(STEM, N_CTX - n_prompt + 2).final.truncated


def test_a_model_that_cannot_shift_ends_where_the_context_does_and_the_process_lives(engine, tiny_spm_model):
    """llama.cpp aborts the process when such a cache is shifted, so it must never be asked to."""
    one = engine(tiny_spm_model, **SMALL)
    one.backend.can_shift = False
    said = one.say(STEM, 500)
    assert said.final.truncated and said.final.stop == "limit"
    assert said.final.n_predicted == N_CTX - len(one.tokens(STEM)) + 1
    assert one.say("the cat", 5).final.n_predicted == 5


@in_both_layouts
def test_neighbours_that_share_a_beginning_never_notice_an_endless_one(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=3, n_ctx=768, shift_context=True)
    prompts = [STEM + name for name in ("the moon", "the star", "a fox")]
    alone = [one.say(prompt, 20, cache_prompt=False).text for prompt in prompts]
    one.say(STEM, 1, id_slot=0)  # whose cells the others share from now on
    endless = one.task(prompts[0], 700, id_slot=0)
    texts: list[str] = []

    def run() -> None:
        texts.append(one.ask(endless, True).text)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    n_rounds = 0
    while thread.is_alive() and n_rounds < 40 or n_rounds < 3:
        tasks = [one.task(prompt, 20, id_slot=i) for i, prompt in enumerate(prompts) if i]
        assert [said.text for said in one.say_all(tasks)] == alone[1:], f"round {n_rounds}"
        n_rounds += 1
    thread.join(PATIENCE)
    assert texts[0].startswith(alone[0])
    assert texts[0] == one.say(prompts[0], 700, cache_prompt=False).text


# ---- the shared system prompt ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kv_unified", "n_copies"), [(True, 1), (False, 4)])
def test_cells_of_the_system_prompt_are_counted_as_often_as_they_are_there(
    engine, tiny_spm_model, kv_unified, n_copies
):
    one = engine(tiny_spm_model, n_slots=4, n_ctx=1024, kv_unified=kv_unified)
    system = one.tokens(STEM)
    one.client.run_command("system_prompt", tokens=system)
    assert one.client.snapshot.kv_used == len(system)
    tails = [one.client.vocab.tokenize(text, False, False) for text in ("the moon", "red", "a b c d", "night")]
    one.say_all([one.task(tail, 5, id_slot=i) for i, tail in enumerate(tails)])
    wait_until(lambda: one.client.snapshot.n_processing == 0, "all to be done")
    # the last token of a text is never evaluated, so each slot keeps four of its five
    assert one.client.snapshot.kv_used == n_copies * len(system) + sum(len(tail) + 4 for tail in tails)


@in_both_layouts
@pytest.mark.covers("B01")
def test_the_system_prompt_changes_behind_running_texts(engine, tiny_spm_model):
    one = engine(tiny_spm_model, n_slots=2, n_ctx=1024)
    tail = one.client.vocab.tokenize("the moon", False, False)
    first, second = one.tokens(STEM), one.tokens("red fox and old dog " * 3)
    expected = {system: one.say((*system, *tail), 200, cache_prompt=False).text for system in (first, second)}
    one.client.run_command("system_prompt", tokens=first)
    tasks = [one.task(tail, 200) for _ in range(2)]
    with one.client.submit(tasks[0], stream=True) as running, one.client.submit(tasks[1], stream=True) as other:
        texts = ["", ""]
        events = [iter(running), iter(other)]
        texts[0] += next(events[0]).text
        texts[1] += next(events[1]).text
        change = threading.Thread(target=one.client.run_command, args=("system_prompt",), kwargs={"tokens": second})
        change.start()
        late: list[str] = []
        asking = threading.Thread(target=lambda: late.append(one.say(tail, 200).text))
        wait_until(lambda: one.client._replies or not change.is_alive(), "the change to be asked for")
        for i in range(2):
            texts[i] += "".join(event.text for event in events[i])
        change.join(PATIENCE)
        asking.start()
        asking.join(PATIENCE)
    assert texts == [expected[first]] * 2, "running texts end as they began"
    assert late == [expected[second]]
    assert all(one.say(tail, 200, id_slot=i, cache_prompt=False).text == expected[second] for i in range(2))


# ---- self-extend -------------------------------------------------------------------------------------------------


class Folding(Reference):
    """A reference that evaluates token by token and, before each, moves every position where self-extend wants it."""

    def logits_of_each(self, tokens: list[int], n: int, w: int) -> Iterator[list[float]]:
        """Of the token behind each of `tokens`."""
        memory, start, end = self._context.memory, 0, 0
        for token in tokens:
            if end >= start + w:
                for position in range(start, start + w):
                    target = start + (position - start) // n
                    self._llama.llama_memory_seq_add(memory, 0, position, position + 1, target - position)
                start, end = start + w // n, start + w // n
            self._batch.token[0], self._batch.pos[0], self._batch.seq[0], self._batch.logits[0] = token, end, 0, True
            self._batch.n_tokens = 1
            assert self._llama.llama_decode(self._context, self._batch.struct) == 0
            yield self._llama.llama_get_logits_ith(self._context, 0)[: self.n_vocab]
            end += 1


@pytest.mark.covers("C33", "C34")
@pytest.mark.parametrize("n_batch", [512, 48])
@pytest.mark.parametrize(("n", "w"), [(2, 32), (4, 64), (4, 16), (8, 64)])
def test_folded_positions_turn_the_keys_to_where_they_are(engine, libs_folder, tiny_spm_model, n, w, n_batch):
    """The tiny model looks at distances alone: they must be those of the folded positions."""
    one = engine(tiny_spm_model, n_ctx=1024, n_group=n, group_width=w, n_batch=n_batch)
    prompt = one.tokens(STEM * 5)
    said = one.say(prompt, 3 * w, SamplingParams(temperature=0.0, n_probs=5))
    with ExitStack() as stack:
        other = Folding(libs_folder, tiny_spm_model, stack)
        logits_of_each = list(other.logits_of_each([*prompt, *said.tokens[:-1]], n, w))[len(prompt) - 1 :]
    far_off, n_said = 0, len(said.probs)
    for probs, logits in zip(said.probs, logits_of_each, strict=True):
        highest = max(logits)
        total = highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits))
        far_off += any(abs(logprob - (logits[token] - total)) > 0.2 for token, logprob in probs.top_logprobs)
    assert far_off <= n_said // 10, "where two tokens are at one place, rounding may decide"
