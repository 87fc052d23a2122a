"""On which parts of its prompt an answer rests: how much less likely it gets when a part is taken away.

Connection thread. The answer's tokens are judged once with the whole prompt, once with none of the spans, and once more
without each of them, one task after the other, behind everybody else's. Two ways: `exact` reads the prompt without the
span. `fast` takes a span's keys and values out of a copy of what is in the cache, and computes the last tokens before
the answer again. What lies between was computed with the span, and knows of it: so the first of two sentences about one
thing weighs too much. Therefore the heaviest are judged exactly, until the one on top is one of those.

A fact that stands twice rests on neither of its places. So where no span explains half of what all of them do, those
that restore most of the answer when they stand alone are taken away by twos.

Not taken: gradients or attention weights. llama.cpp gives neither, and weights don't say what an answer would be
without a text. Leaving the tokens before the answer as they are: they carry what the question found in the span, and
the sentence on top was another one in every sixth answer. All pairs of spans: they grow with the square.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate, combinations
from typing import Any

from server.engine.seam.task import BACKGROUND, GAVE_WAY, PromptProbs, SamplingParams, Task
from server.errors import ApiError
from server.evidence.spans import Span, find_spans, sentences
from server.models.model import Model
from server.records import record, replace
from server.web.message import Request

FAST, EXACT = "fast", "exact"
MOST_SPANS = 100
MOST_ROWS = 200_000
"""Of prompts and answers, in all judgements of one answer together."""

TAIL = 32
"""So many tokens before the answer `fast` computes again: half a tile, which costs little more than the answer's rows.
In most chats they are the question and what the template writes around it."""

PAIRED, N_PAIRS = 4, 6
"""So many spans are taken away by twos: in so many pairs."""

CONFIRMED = 3
"""So many spans that `fast` finds heavy are judged exactly at most, and so many pairs."""

FACTOR = 0.7
"""Nats: a change by the factor two. Less is what rounding does, with quantised models."""

FIELDS = {"spans": list, "method": str, "part": str}
Weigh = Callable[..., float]


@record(frozen=True)
class Wanted:
    """What is to be attributed: to which texts (None: the sentences), how ("": fast where the model's memory can, else
    exact), and which part of the answer ("": all)."""

    spans: tuple[str, ...] | None = None
    method: str = ""
    part: str = ""


def read_wanted(value: object) -> Wanted | None:
    """The field `attribute`: true, a list of texts, or an object with `spans`, `method` and `part`; None if it isn't
    wanted. ApiError 400."""
    if value is None or value is False:
        return None
    said: Any = {} if value is True else {"spans": value} if isinstance(value, list) else value
    if not isinstance(said, dict) or any(
        name not in FIELDS or not isinstance(one, FIELDS[name]) for name, one in said.items() if one is not None
    ):
        raise ApiError(400, "attribute: give true, a list of texts, or an object with spans, method and part")
    spans, method = said.get("spans"), said.get("method") or ""
    if method not in ("", FAST, EXACT):
        raise ApiError(400, f"attribute: the method is {FAST} or {EXACT}")
    if spans is not None and not all(isinstance(one, str) and one.strip() for one in spans):
        raise ApiError(400, "attribute: the spans are texts of the prompt")
    if spans is not None and len(spans) > MOST_SPANS:
        raise ApiError(400, f"attribute: at most {MOST_SPANS} spans", reason="too_many")
    return Wanted(None if spans is None else tuple(spans), method, said.get("part") or "")


def attribute(
    model: Model,
    request: Request,
    task: Task,
    answer: Sequence[int],
    texts: Sequence[tuple[int | None, str]],
    wanted: Wanted,
) -> dict[str, Any] | None:
    """The attribution of an answer to a task's prompt; None if there is no answer. ApiError 400 where the prompt has
    files or that would take too much, 501 where the model's memory can't do what is wanted."""
    try:
        return attribute_by(wanted.method or FAST, model, request, task, answer, texts, wanted)
    except ApiError as error:
        if error.status != 501 or wanted.method:
            raise
    return attribute_by(EXACT, model, request, task, answer, texts, wanted)


def attribute_by(
    method: str,
    model: Model,
    request: Request,
    task: Task,
    answer: Sequence[int],
    texts: Sequence[tuple[int | None, str]],
    wanted: Wanted,
) -> dict[str, Any] | None:
    """The same by one method."""
    vocab = model.vocab
    answer = list(answer)
    while answer and vocab.is_control(answer[-1]):
        answer.pop()
    if task.media:
        raise ApiError(400, "attribute: prompts with images or sound can't be taken apart")
    if not answer:
        return None
    spans = find_spans(texts, [vocab.piece(token) for token in task.prompt], wanted.spans)
    is_read_again = method == EXACT or model.info.n_slots == 1
    require_few(len(spans), len(answer), len(task.prompt), is_read_again)
    parts = parts_of(answer, wanted.part, vocab.piece)

    @cache
    def judge(method: str, *taken: Span) -> list[float]:
        """The log probability of each token of the answer, without some of the spans."""
        return judged(model, request, judging(model, task, answer, **way(task.prompt, taken, method)))

    whole, none = judge(EXACT), judge(EXACT, *spans)
    part = (parts[0].first, parts[-1].last) if wanted.part else (0, len(answer))

    def fall(other: Sequence[float], first: int = part[0], last: int = part[1]) -> float:
        return round(sum(whole[first:last]) - sum(other[first:last]), 4)

    def weigh(method: str, *taken: Span) -> float:
        return fall(judge(method, *taken))

    exact = confirm([weigh(method, span) for span in spans], lambda i: weigh(EXACT, spans[i]))
    without = [judge(EXACT if i in exact else method, span) for i, span in enumerate(spans)]
    nats = [fall(one) for one in without]
    return {
        "spans": [
            {"text": span.text, "start": span.start, "end": span.end, "message": span.message, "nats": n}
            for span, n in zip(spans, nats)
        ],
        "pairs": find_pairs(spans, nats, fall(none), partial(weigh, method), partial(weigh, EXACT)),
        "parts": [{"text": one.text, "nats": [fall(other, one.first, one.last) for other in without]} for one in parts],
        "answer_logprob": round(sum(whole[slice(*part)]), 4),
        "without_spans_logprob": round(sum(none[slice(*part)]), 4),
        "method": method,
    }


def require_few(n_spans: int, n_answer: int, n_prompt: int, is_read_again: bool) -> None:
    """ApiError 400 if there are too many spans, or too many rows for all judgements; `is_read_again`: each of them may
    have to read the whole prompt."""
    n_exact, n_others = 2 + min(CONFIRMED, n_spans) + CONFIRMED * (n_spans > 1), 2 * n_spans + N_PAIRS
    n_rows = n_exact * (n_prompt + n_answer) + n_others * ((n_prompt if is_read_again else TAIL) + n_answer)
    if n_spans > MOST_SPANS or n_rows > MOST_ROWS:
        raise ApiError(
            400,
            f"attribute: {n_spans} spans for an answer of {n_answer} tokens are too much; at most {MOST_SPANS} spans, "
            f"and {MOST_ROWS} tokens to be computed in all (here {n_rows}). Name the spans that matter",
            reason="too_many",
        )


def confirm(nats: list[float], exactly: Callable[[int], float]) -> set[int]:
    """Which of the spans are to be judged exactly: the heaviest, until the one on top has been."""
    nats, known = list(nats), set[int]()
    while nats and len(known) < CONFIRMED:
        top = max(range(len(nats)), key=nats.__getitem__)
        if top in known or nats[top] < FACTOR:
            break
        nats[top] = exactly(top)
        known.add(top)
    return known


def find_pairs(
    spans: Sequence[Span], nats: Sequence[float], of_all: float, weigh: Weigh, weigh_exactly: Weigh
) -> list[dict[str, Any]]:
    """The pairs of spans that weigh half as much again together as one by one, the heaviest first. `of_all` nats are
    those of all spans together; `weigh` says by how many an answer falls without some."""
    if len(spans) < 2 or of_all < FACTOR or max(nats) * 2 >= of_all:
        return []
    alone = [weigh(*spans[:i], *spans[i + 1 :]) for i in range(len(spans))]
    best = sorted(sorted(range(len(spans)), key=alone.__getitem__)[:PAIRED])
    tried = sorted(combinations(best, 2), key=lambda pair: -weigh(spans[pair[0]], spans[pair[1]]))
    found = [(weigh_exactly(spans[i], spans[j]), i, j) for i, j in tried[:CONFIRMED]]
    heavy = [one for one in found if one[0] > 1.5 * (max(nats[one[1]], FACTOR) + max(nats[one[2]], FACTOR))]
    return [{"spans": [i, j], "nats": n} for n, i, j in sorted(heavy, reverse=True)]


def way(prompt: Sequence[int], taken: Sequence[Span], method: str) -> dict[str, Any]:
    """How spans are taken away: out of the prompt, but for `fast` those before its tail out of the cache."""
    at = len(prompt) - TAIL if method == FAST else 0
    cuts: list[tuple[int, int]] = []
    for first, last in sorted((span.first, min(span.last, at)) for span in taken if span.first < at):
        if cuts and first <= cuts[-1][1]:
            first, last = cuts[-1][0], max(cuts.pop()[1], last)
        cuts.append((first, last))
    places = {place for span in taken for place in range(max(span.first, at), span.last)}
    kept = tuple(token for place, token in enumerate(prompt) if place not in places)
    return {"prompt": kept, "cuts": tuple(cuts), "cut_at": at} if cuts else {"prompt": kept}


def judging(model: Model, task: Task, answer: Sequence[int], prompt: tuple[int, ...], **cuts: Any) -> Task:
    """A task that says how likely an answer is."""
    return Task(
        model.engine.new_id(),
        (*prompt, *answer),
        SamplingParams(temperature=0.0),
        n_predict=0,
        lora=task.lora,
        owner=task.owner,
        priority=BACKGROUND,
        stream=False,
        prompt_probs=0,
        probs_from=len(prompt),
        **cuts,
    )


def judged(model: Model, request: Request, task: Task) -> list[float]:
    """The log probability of each token from `probs_from` on. A task that gave its slot to others is asked again."""
    while True:
        found: dict[int, float] = {}
        try:
            with model.engine.submit(task, stream=False) as results, request.on_disconnect(results.cancel):
                for message in results:
                    if type(message) is PromptProbs:
                        found |= {message.start + i: one.logprob for i, one in enumerate(message.probs)}
        except ApiError as error:
            if error.reason != GAVE_WAY:
                raise
            task = replace(task, id=model.engine.new_id())
        else:
            return [found[place] for place in sorted(found)][-(len(task.prompt) - task.probs_from) :]


# ---- parts of the answer ---------------------------------------------------------------------------------------------


@record(frozen=True)
class Part:
    """A part of the answer: its text, and its tokens [first, last)."""

    text: str
    first: int
    last: int


def parts_of(answer: Sequence[int], wanted: str, piece: Callable[[int], bytes]) -> list[Part]:
    """The sentences of an answer, which have all of its tokens, or the wanted part of it. ApiError 400 if that isn't in
    there."""
    pieces = [piece(token) for token in answer]
    ends = list(accumulate(map(len, pieces)))
    text = b"".join(pieces).decode("utf-8", "surrogateescape")  # an answer may end within a character

    def n_bytes(n: int) -> int:
        return len(text[:n].encode("utf-8", "surrogateescape"))

    if wanted := wanted.strip():
        at = text.find(wanted)
        if at < 0:
            raise ApiError(400, "attribute: the answer has no such part")
        return [Part(wanted, bisect_right(ends, n_bytes(at)), bisect_left(ends, n_bytes(at + len(wanted))) + 1)]
    places = list(sentences(text))
    firsts = [0, *(bisect_right(ends, n_bytes(start)) for start, _ in places[1:]), len(answer)]
    shown = [text[start:end].encode("utf-8", "surrogateescape").decode("utf-8", "replace") for start, end in places]
    return [Part(*part) for part in zip(shown, firsts, firsts[1:])]
