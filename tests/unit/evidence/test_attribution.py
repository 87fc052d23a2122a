"""The engine tasks of attribution, and the results from their numbers, without an engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from server.engine.seam.task import GAVE_WAY, PromptProbs, Task, TokenProbs
from server.errors import ApiError
from server.evidence import attribution
from server.evidence.attribution import choose_way, confirm, find_pairs, judge_task, parts_of, require_few
from server.evidence.spans import Span


def span(first: int, last: int) -> Span:
    return Span(f"{first}-{last}", 0, 1, None, first, last)


@pytest.mark.covers("P07")
def test_a_fact_that_stands_twice_rests_on_both_of_its_places_together():
    spans, asked = [span(i, i + 1) for i in range(6)], []
    facts = {spans[1], spans[4]}

    def judge(*taken: Span) -> float:
        asked.append(taken)
        return 8.0 if facts <= set(taken) else 0.1

    nats = [0.1] * 6
    assert find_pairs(spans, nats, 8.0, judge, judge) == [{"spans": [1, 4], "nats": 8.0}]
    assert len(asked) == len(spans) + attribution.N_PAIRS + attribution.CONFIRMED


def test_a_pair_that_is_heavy_only_the_fast_way_is_none():
    spans = [span(i, i + 1) for i in range(4)]
    assert find_pairs(spans, [0.1] * 4, 8.0, lambda *taken: 6.0, lambda *taken: 0.2) == []


@pytest.mark.parametrize(
    "fast, exact, known",
    [
        ([5.0, 1.0, 0.1], [4.0, 0.0, 0.0], {0}),
        ([5.0, 3.0, 0.1], [1.0, 2.0, 0.0], {0, 1}),
        ([5.0, 4.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], {0, 1, 2}),
        ([0.6, 0.2], [9.0, 9.0], set()),
        ([], [], set()),
    ],
)
def test_the_heaviest_are_judged_exactly_until_the_one_on_top_has_been(fast, exact, known):
    assert confirm(fast, exact.__getitem__) == known


@pytest.mark.parametrize("nats, of_all", [([5.0, 0.1, 0.0], 6.0), ([0.1, 0.1, 0.0], 0.3), ([9.0], 20.0), ([], 0.0)])
def test_nothing_is_taken_away_by_twos_where_one_span_explains_it_or_nothing_is_to_be_explained(nats, of_all):
    def judge(*_: Span) -> float:
        raise AssertionError("judged for nothing")

    assert find_pairs([span(i, i + 1) for i in range(len(nats))], nats, of_all, judge, judge) == []


def test_two_spans_that_weigh_what_each_of_them_does_are_no_pair():
    nats = [3.0, 3.0, 0.0]
    spans = [span(i, i + 1) for i in range(3)]

    def judge(*taken: Span) -> float:
        return sum(nats[one.first] for one in taken)

    assert find_pairs(spans, nats, 9.0, judge, judge) == []


@pytest.mark.parametrize("method", ["fast", "exact"])
@pytest.mark.parametrize("seed", range(50))
def test_whichever_way_spans_go_what_is_left_is_the_prompt_without_them(method, seed):
    rng = random.Random(seed)
    prompt = list(range(rng.choice([5, 33, 60, 200])))
    spans = [span(*sorted(rng.sample(range(len(prompt)), 2))) for _ in range(rng.randint(0, 6))]
    found = choose_way(prompt, spans, method)
    left, cuts, at = list(found["prompt"]), found.get("cuts", ()), found.get("cut_at", 0)
    assert left[:at] == prompt[:at], "what stands before the tail is found in the cache"
    assert all(0 <= first < last <= at for first, last in cuts)
    assert all(last < first for (_, last), (first, _) in zip(cuts, cuts[1:])), "apart, in order"
    for first, last in reversed(cuts):
        del left[first:last]
    assert left == [token for token in prompt if not any(one.first <= token < one.last for one in spans)]
    if method == "exact":
        assert not cuts


def test_the_tail_is_computed_again_however_far_away_a_span_is():
    found = choose_way(range(1000), [span(10, 20)], "fast")
    assert found["cuts"] == ((10, 20),) and found["cut_at"] == 1000 - attribution.TAIL


@pytest.mark.covers("P08")
def test_spans_and_rows_are_bounded_by_all_that_may_be_computed():
    require_few(100, 500, 8000, False)
    for n_spans, n_answer, n_prompt, is_read_again in (
        (101, 1, 32, False),
        (100, 1000, 32, False),
        (100, 500, 8000, True),
        (2, 10, 30_000, False),
        (1, 200_000, 32, False),
    ):
        with pytest.raises(ApiError, match="too many"):
            require_few(n_spans, n_answer, n_prompt, is_read_again)


PIECES = {1: b" In", 2: b" the", 3: b" kitchen", 4: b".", 5: b" Or", 6: b" not", 7: "ü".encode()[:1], 8: b"?"}


def test_sentences_of_an_answer_have_the_tokens_that_write_them():
    found = parts_of([1, 2, 3, 4, 5, 6, 8], "", PIECES.__getitem__)
    assert [(one.text, one.first, one.last) for one in found] == [("In the kitchen.", 0, 4), ("Or not?", 4, 7)]


def test_a_wanted_part_has_its_tokens_and_what_is_not_there_is_refused():
    [part] = parts_of([1, 2, 3, 4, 5, 6], "kitchen. O", PIECES.__getitem__)
    assert (part.first, part.last) == (2, 5)
    with pytest.raises(ApiError, match="doesn't contain this part"):
        parts_of([1, 2], "cellar", PIECES.__getitem__)


def test_an_answer_that_ends_within_a_character_has_parts_all_the_same():
    found = parts_of([1, 4, 5, 7], "", PIECES.__getitem__)
    assert [(one.text, one.first, one.last) for one in found] == [("In.", 0, 2), ("Or\ufffd", 2, 4)]


class Answer:
    """What an engine says that gives the slot to others as often as told, and then answers."""

    def __init__(self, engine: Engine, task: Task) -> None:
        self._engine, self._task = engine, task

    def __iter__(self) -> Iterator[PromptProbs]:
        task, engine = self._task, self._engine
        probs = [TokenProbs(token, 0.5, -float(token), (), ()) for token in task.prompt[task.probs_from :]]
        yield PromptProbs(task.id, task.probs_from, tuple(probs[:1]))
        if engine.n_refusals:
            engine.n_refusals -= 1
            raise ApiError(503, "others come first", reason=engine.reason)
        yield PromptProbs(task.id, task.probs_from + 1, tuple(probs[1:]))

    def cancel(self) -> None:
        raise AssertionError("nobody has left")


class Engine:
    def __init__(self, n_refusals: int, reason: str = GAVE_WAY) -> None:
        self.n_refusals, self.reason, self.asked = n_refusals, reason, [0]

    def make_id(self) -> int:
        return self.asked[-1] + 1

    @contextmanager
    def submit(self, task: Task, stream: bool) -> Iterator[Answer]:
        self.asked.append(task.id)
        yield Answer(self, task)


@pytest.mark.covers("P09")
def test_a_judgement_that_gave_its_slot_to_others_is_asked_for_again():
    task, request = Task(1, (5, 6, 7, 8), prompt_probs=0, probs_from=2), SimpleNamespace(on_disconnect=nullcontext)
    engine = Engine(3)
    assert judge_task(SimpleNamespace(engine=engine), request, task) == [-7.0, -8.0]
    assert engine.asked == [0, 1, 2, 3, 4]
    with pytest.raises(ApiError):
        judge_task(SimpleNamespace(engine=Engine(1, "queue_full")), request, task)
