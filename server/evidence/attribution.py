"""Attribution: measures how much less likely an answer becomes when parts of its prompt (spans) are removed.

Runs on a connection thread. Background tasks, one after the other, compute the probabilities of the answer's tokens
with the whole prompt, without any of the spans, and without each of them. The method `exact` computes the prompt
without the span. `fast` removes a span's keys and values from the sequence and computes only the last tokens before the
answer again. The tokens in between were computed with the span and still contain some of it. So the heaviest spans (at
most `CONFIRMED`) are measured exactly, too, until the heaviest of all is an exact one.

If a fact is stated twice, removing one of the places changes little. So if no single span has half of the effect of all
together, pairs are removed, too: of the `PAIRED` spans that by themselves restore most of the answer's probability.

Ways not taken: gradients or attention weights, which llama.cpp doesn't provide. Keeping the last tokens before the
answer as they are: the heaviest span was wrong in every sixth answer. All pairs of spans: their number grows with the
square.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate, combinations
from typing import Any

from server.engine.seam.task import BACKGROUND, GAVE_WAY, PromptProbs, SamplingParams, Task
from server.errors import ApiError
from server.evidence.spans import Span, find_sentences, find_spans
from server.models.model import Model
from server.records import record, replace
from server.web.message import Request

FAST, EXACT = "fast", "exact"
MOST_SPANS = 100
MOST_ROWS = 200_000
"""Most tokens to compute for one attribution."""

TAIL = 32
"""The tokens before the answer that `fast` computes again: half a tile of rows."""

PAIRED, N_PAIRS = 4, 6
"""The number of spans that pairs are made of, and the number of pairs."""

CONFIRMED = 3
"""The most spans, and the most pairs, of a `fast` attribution that are measured exactly."""

FACTOR = 0.7
"""The least weight that counts, in nats: half as likely. In quantised models, rounding may cause smaller
differences."""

FIELDS = {"spans": list, "method": str, "part": str}
Weigh = Callable[..., float]


@record(frozen=True)
class Wanted:
    """A request for an attribution."""

    spans: tuple[str, ...] | None = None
    """The texts of the prompt to attribute to; None: its sentences."""
    method: str = ""
    """If empty, `fast` if the model's memory can do that, else `exact`."""
    part: str = ""
    """A part of the answer; if empty, all of it."""


def read_wanted(value: object) -> Wanted | None:
    """The field `attribute`: true, a list of texts, or an object with `spans`, `method` and `part`. None if no
    attribution is requested. ApiError 400."""
    if value is None or value is False:
        return None
    said: Any = {} if value is True else {"spans": value} if isinstance(value, list) else value
    if not isinstance(said, dict) or any(
        name not in FIELDS or not isinstance(one, FIELDS[name]) for name, one in said.items() if one is not None
    ):
        raise ApiError(400, "attribute: use true, a list of texts, or an object with spans, method and part")
    spans, method = said.get("spans"), said.get("method") or ""
    if method not in ("", FAST, EXACT):
        raise ApiError(400, f"attribute: the method must be {FAST} or {EXACT}")
    if spans is not None and not all(isinstance(one, str) and one.strip() for one in spans):
        raise ApiError(400, "attribute: the spans must be texts of the prompt")
    if spans is not None and len(spans) > MOST_SPANS:
        raise ApiError(400, f"attribute: at most {MOST_SPANS} spans are allowed", reason="too_many")
    return Wanted(None if spans is None else tuple(spans), method, said.get("part") or "")


def attribute(
    model: Model,
    request: Request,
    task: Task,
    answer: Sequence[int],
    texts: Sequence[tuple[int | None, str]],
    wanted: Wanted,
) -> dict[str, Any] | None:
    """Attribute an answer to the prompt of a task; None for an empty answer. ApiError 400 if the prompt has files, the
    computation would be too large or a text isn't found; 501 if the model's memory can't do `wanted.method`."""
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
    vocab = model.vocab
    answer = list(answer)
    while answer and vocab.is_control(answer[-1]):
        answer.pop()
    if task.media:
        raise ApiError(400, "attribute: prompts with images or sound can't be attributed")
    if not answer:
        return None
    spans = find_spans(texts, [vocab.piece(token) for token in task.prompt], wanted.spans)
    is_read_again = method == EXACT or model.info.n_slots == 1
    require_few(len(spans), len(answer), len(task.prompt), is_read_again)
    parts = parts_of(answer, wanted.part, vocab.piece)

    @cache
    def judge(method: str, *taken: Span) -> list[float]:
        """The log probability of each token of the answer, without some of the spans."""
        return judge_task(
            model, request, make_judging_task(model, task, answer, **choose_way(task.prompt, taken, method))
        )

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
    """ApiError 400 if there are too many spans, or too many tokens to compute. `is_read_again`: removing a span may
    mean computing the whole prompt again."""
    n_exact, n_others = 2 + min(CONFIRMED, n_spans) + CONFIRMED * (n_spans > 1), 2 * n_spans + N_PAIRS
    n_rows = n_exact * (n_prompt + n_answer) + n_others * ((n_prompt if is_read_again else TAIL) + n_answer)
    if n_spans > MOST_SPANS or n_rows > MOST_ROWS:
        raise ApiError(
            400,
            f"attribute: {n_spans} spans and an answer of {n_answer} tokens are too many: at most {MOST_SPANS} spans, "
            f"and {MOST_ROWS} tokens to compute ({n_rows} here), are allowed. Name only the spans that matter",
            reason="too_many",
        )


def confirm(nats: list[float], exactly: Callable[[int], float]) -> set[int]:
    """Measure the heaviest spans exactly, `CONFIRMED` at most, until the heaviest of all is one of them or weighs less
    than `FACTOR`. Returns their indices."""
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
    """The pairs of spans that weigh over one and a half times the sum of both spans' weights (each at least `FACTOR`),
    the heaviest first. A weight is the nats by which the answer's log probability falls; `of_all` is that of all."""
    if len(spans) < 2 or of_all < FACTOR or max(nats) * 2 >= of_all:
        return []
    alone = [weigh(*spans[:i], *spans[i + 1 :]) for i in range(len(spans))]
    best = sorted(sorted(range(len(spans)), key=alone.__getitem__)[:PAIRED])
    tried = sorted(combinations(best, 2), key=lambda pair: -weigh(spans[pair[0]], spans[pair[1]]))
    found = [(weigh_exactly(spans[i], spans[j]), i, j) for i, j in tried[:CONFIRMED]]
    heavy = [one for one in found if one[0] > 1.5 * (max(nats[one[1]], FACTOR) + max(nats[one[2]], FACTOR))]
    return [{"spans": [i, j], "nats": n} for n, i, j in sorted(heavy, reverse=True)]


def choose_way(prompt: Sequence[int], taken: Sequence[Span], method: str) -> dict[str, Any]:
    """How a task removes spans: from the prompt, or with `fast` from the cache where they lie before the last `TAIL`
    tokens."""
    at = len(prompt) - TAIL if method == FAST else 0
    cuts: list[tuple[int, int]] = []
    for first, last in sorted((span.first, min(span.last, at)) for span in taken if span.first < at):
        if cuts and first <= cuts[-1][1]:
            first, last = cuts[-1][0], max(cuts.pop()[1], last)
        cuts.append((first, last))
    places = {place for span in taken for place in range(max(span.first, at), span.last)}
    kept = tuple(token for place, token in enumerate(prompt) if place not in places)
    return {"prompt": kept, "cuts": tuple(cuts), "cut_at": at} if cuts else {"prompt": kept}


def make_judging_task(model: Model, task: Task, answer: Sequence[int], prompt: tuple[int, ...], **cuts: Any) -> Task:
    """A task that returns the probabilities of an answer's tokens and generates nothing."""
    return Task(
        model.engine.make_id(),
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


def judge_task(model: Model, request: Request, task: Task) -> list[float]:
    """The log probability of each token from `probs_from` on. A task that gave way is submitted again."""
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
            task = replace(task, id=model.engine.make_id())
        else:
            return [found[place] for place in sorted(found)][-(len(task.prompt) - task.probs_from) :]


# ---- parts of the answer ---------------------------------------------------------------------------------------------


@record(frozen=True)
class Part:
    """A part of the answer: its text, and its tokens from `first` up to `last`, which isn't included."""

    text: str
    first: int
    last: int


def parts_of(answer: Sequence[int], wanted: str, piece: Callable[[int], bytes]) -> list[Part]:
    """The sentences of an answer (together all of its tokens), or the wanted part. ApiError 400 if the answer doesn't
    contain it."""
    pieces = [piece(token) for token in answer]
    ends = list(accumulate(map(len, pieces)))
    text = b"".join(pieces).decode("utf-8", "surrogateescape")  # the answer may end inside a character

    def count_bytes(n: int) -> int:
        return len(text[:n].encode("utf-8", "surrogateescape"))

    if wanted := wanted.strip():
        at = text.find(wanted)
        if at < 0:
            raise ApiError(400, "attribute: the answer doesn't contain this part")
        return [Part(wanted, bisect_right(ends, count_bytes(at)), bisect_left(ends, count_bytes(at + len(wanted))) + 1)]
    places = list(find_sentences(text))
    firsts = [0, *(bisect_right(ends, count_bytes(start)) for start, _ in places[1:]), len(answer)]
    shown = [text[start:end].encode("utf-8", "surrogateescape").decode("utf-8", "replace") for start, end in places]
    return [Part(*part) for part in zip(shown, firsts, firsts[1:])]
