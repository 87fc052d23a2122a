"""On which parts of its prompt an answer rests: how much less likely it gets when a part is taken away.

Connection thread. The answer's tokens are judged once with the whole prompt, and once more without each span, one task
after the other, behind everybody else's. Two ways: `fast` takes a span's keys and values out of a copy of what is in
the cache, so that only the answer's rows are computed; what stands behind the span has been computed with it. `exact`
reads the prompt without the span.

Not taken: gradients or attention weights. llama.cpp gives neither, and weights don't say what an answer would be
without a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from server.engine.seam.task import PromptProbs, SamplingParams, Task
from server.errors import ApiError
from server.evidence.spans import Span, find_spans
from server.models.model import Model
from server.records import record
from server.web.message import Request

FAST, EXACT = "fast", "exact"
MOST_SPANS = 100
MOST_ROWS = 50_000  # of answers, in all spans together
PRIORITY = -100  # behind everybody else's tasks
FIELDS = {"spans": list, "method": str, "part": str}


@record(frozen=True)
class Wanted:
    """What is to be attributed: to which texts (None: the sentences), how, and which part of the answer ("": all)."""

    spans: tuple[str, ...] | None = None
    method: str = FAST
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
    spans, method = said.get("spans"), said.get("method") or FAST
    if method not in (FAST, EXACT):
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
    files or that would take too much, 501 where the model's memory can't."""
    vocab = model.vocab
    answer = list(answer)
    while answer and vocab.is_control(answer[-1]):
        answer.pop()
    if task.media:
        raise ApiError(400, "attribute: prompts with images or sound can't be taken apart")
    if not answer:
        return None
    spans = find_spans(texts, [vocab.piece(token) for token in task.prompt], wanted.spans)
    if len(spans) > MOST_SPANS or len(spans) * len(answer) > MOST_ROWS:
        raise ApiError(
            400,
            f"attribute: {len(spans)} spans for an answer of {len(answer)} tokens are too much; at most {MOST_SPANS} "
            f"spans, and {MOST_ROWS} tokens in all of them. Name the spans that matter",
            reason="too_many",
        )
    start, end = part_of(answer, wanted.part, vocab.piece)

    def judge(**fields: Any) -> float:
        """The log probability of the answer's part after a prompt."""
        prompt = fields.pop("prompt", task.prompt)
        found = judged(model, request, judging(model, task, prompt, answer, **fields))
        return sum(found[start - len(answer) : end - len(answer) or None])

    whole = judge()
    found = [
        {"text": span.text, "start": span.start, "end": span.end, "message": span.message, "nats": round(nats, 4)}
        for span in spans
        for nats in [whole - judge(**way(task.prompt, span, wanted.method))]
    ]
    kept = [token for i, token in enumerate(task.prompt) if not any(span.first <= i < span.last for span in spans)]
    return {
        "spans": found,
        "answer_logprob": round(whole, 4),
        "without_spans_logprob": round(judge(prompt=tuple(kept)), 4),
        "method": wanted.method,
    }


def way(prompt: Sequence[int], span: Span, method: str) -> dict[str, Any]:
    """How a span is taken away: out of the cache, or out of the prompt."""
    if method == FAST:
        return {"cut": (span.first, span.last)}
    return {"prompt": (*prompt[: span.first], *prompt[span.last :])}


def judging(model: Model, task: Task, prompt: Sequence[int], answer: Sequence[int], **fields: Any) -> Task:
    """A task that says how likely an answer is."""
    return Task(
        model.engine.new_id(),
        (*prompt, *answer),
        SamplingParams(temperature=0.0),
        n_predict=0,
        lora=task.lora,
        owner=task.owner,
        priority=PRIORITY,
        stream=False,
        prompt_probs=0,
        probs_from=len(prompt),
        **fields,
    )


def judged(model: Model, request: Request, task: Task) -> list[float]:
    """The log probability of each token from `probs_from` on."""
    found: dict[int, float] = {}
    with model.engine.submit(task, stream=False) as results, request.on_disconnect(results.cancel):
        for message in results:
            if type(message) is PromptProbs:
                found |= {message.start + i: one.logprob for i, one in enumerate(message.probs)}
    return [found[place] for place in sorted(found)][-(len(task.prompt) - task.probs_from) :]


def part_of(answer: Sequence[int], part: str, piece: Callable[[int], bytes]) -> tuple[int, int]:
    """The tokens of a part of the answer, all for "". ApiError 400 if it isn't in there."""
    if not part:
        return 0, len(answer)
    pieces = [piece(token) for token in answer]
    at = b"".join(pieces).find(part.strip().encode("utf-8", "surrogatepass"))
    if at < 0:
        raise ApiError(400, "attribute: the answer has no such part")
    ends = list(accumulate(map(len, pieces)))
    stop = at + len(part.strip().encode("utf-8", "surrogatepass"))
    start = next(i for i, end in enumerate(ends) if end > at)
    return start, next(i for i, end in enumerate(ends) if end >= stop) + 1
