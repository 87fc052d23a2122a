"""Writes the engine's messages and settings as JSON, mostly with llama-server's names of fields. Runs on the thread
that writes the answer.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

from server.api.request.prompt import Place
from server.api.request.text_request import TextRequest
from server.engine.seam.task import (
    PATTERN,
    START,
    TOKEN,
    WORD,
    Difference,
    Final,
    Progress,
    SamplingParams,
    Task,
    Timings,
    TokenProbs,
    Trigger,
)
from server.log import get_logger
from server.models.model import Model, Vocab
from server.records import fields as record_fields

log = get_logger("api")


def make_settings_json(model: Model, task: Task, stream: bool) -> dict[str, Any]:
    """`generation_settings`: a task's settings."""
    params = make_sampling_json(task.sampling)
    if task.sampling.ignore_eos:
        params["logit_bias"] += [[token, False] for token in model.info.eog_tokens]
    spec = model.options.spec
    return {
        "n_ctx": model.info.n_ctx_slot,
        "model": model.name,
        **params,
        "n_predict": task.n_predict,
        "max_tokens": task.n_predict,
        "n_keep": task.n_keep,
        "n_discard": task.n_discard,
        "stop": list(task.stop),
        "stream": stream,
        "cache_prompt": task.cache_prompt,
        "n_indent": task.n_indent,
        "preserved_tokens": list(task.preserved_tokens),
        "speculative.n_max": _choose_own(task.draft_n_max, spec.spec_draft_n_max),
        "speculative.n_min": _choose_own(task.draft_n_min, spec.spec_draft_n_min),
        "speculative.p_min": _choose_own(task.draft_p_min, spec.spec_draft_p_min),
        "t_max_predict_ms": task.t_max_predict_ms,
        "t_max_ms": task.t_max_ms,
        "lora": [{"id": i, "scale": scale} for i, scale in task.lora or ()],
    }


def make_sampling_json(params: SamplingParams) -> dict[str, Any]:
    """`SamplingParams` as JSON. A banned token has the bias false, as in requests."""
    fields = {field.name: getattr(params, field.name) for field in record_fields(params)}
    fields["samplers"] = list(params.samplers)
    fields["dry_sequence_breakers"] = list(params.dry_sequence_breakers)
    fields["logit_bias"] = [[token, False if bias == -math.inf else bias] for token, bias in params.logit_bias]
    fields["grammar_triggers"] = [trigger_json(trigger) for trigger in params.grammar_triggers]
    prompt = fields.pop("penalty_prompt")
    fields["penalty_prompt_tokens"] = list(prompt or ())
    fields["use_penalty_prompt_tokens"] = prompt is not None
    return fields


def trigger_json(trigger: Trigger) -> dict[str, Any]:
    """A grammar trigger in llama.cpp's form."""
    if trigger.kind == TOKEN:
        return {"type": 0, "token": trigger.token}
    if trigger.kind == WORD:
        return {"type": 1, "value": trigger.text}
    if trigger.kind == START:
        return {"type": 3, "value": r"\s*" + re.escape(trigger.text)}
    return {"type": 2 if trigger.kind == PATTERN else 3, "value": trigger.text}


def make_progress_json(progress: Progress) -> dict[str, Any]:
    """`prompt_progress`, with `queue_position` while the task waits."""
    result: dict[str, Any] = {
        "total": progress.n_prompt,
        "cache": progress.n_cached,
        "processed": progress.n_processed,
        "time_ms": round(progress.ms, 3),
    }
    if progress.place:
        result["queue_position"] = progress.place
    return result


def make_progress_timings(progress: Progress) -> dict[str, Any]:
    """`timings` during prefill."""
    return make_timings_json(Timings(progress.n_cached, progress.n_processed - progress.n_cached, progress.ms, 0, 0.0))


def make_timings_json(timings: Timings) -> dict[str, Any]:
    """`timings`: milliseconds and rates. A rate over zero time is 0."""
    n_steps = max(timings.predicted_n - 1, 0)
    drafts = {"draft_n": timings.draft_n, "draft_n_accepted": timings.draft_n_accepted} if timings.draft_n >= 0 else {}
    return {
        "cache_n": timings.cache_n,
        "prompt_n": timings.prompt_n,
        "prompt_ms": round(timings.prompt_ms, 3),
        "prompt_per_token_ms": _compute_ratio(timings.prompt_ms, timings.prompt_n),
        "prompt_per_second": _compute_ratio(timings.prompt_n * 1e3, timings.prompt_ms),
        "predicted_n": timings.predicted_n,
        "predicted_ms": round(timings.predicted_ms, 3),
        "predicted_per_token_ms": _compute_ratio(timings.predicted_ms, n_steps),
        "predicted_per_second": _compute_ratio(n_steps * 1e3, timings.predicted_ms),
        **drafts,
    }


def make_cache_json(asked: TextRequest, final: Final) -> dict[str, Any]:
    """`cache`: how the KV cache was used. Fields are null where they are unknown or don't apply. Made once per
    answer."""
    if final.id not in asked.cache:
        difference = final.cache.first_difference
        asked.cache[final.id] = {
            "source": final.cache.source,
            "reason": final.cache.reason or None,
            "first_difference": difference and _make_difference_json(difference, asked, final),
        }
    return asked.cache[final.id]


def _make_difference_json(difference: Difference, asked: TextRequest, final: Final) -> dict[str, Any]:
    """Where prompt and cached tokens differ: the text before, then both sides token by token, since equal text can have
    different tokens. Files (negative ids) are shown as `[file]`. `cost_ms` estimates the lost rows' prefill time from
    this prompt's."""
    before, prompt, cached = (
        [b"[file]" if token < 0 else asked.model.vocab.piece(token) for token in tokens]
        for tokens in (difference.before, difference.prompt, difference.cached)
    )
    n_same = len(os.path.commonprefix([b"".join(prompt), b"".join(cached)]))
    place = _place(asked, final.id, difference.at, n_same) if difference.at >= 0 else None
    timings, n_lost = final.timings, difference.n_lost
    return {
        "position": difference.position,
        "message": place and place.message,
        "role": place and place.role,
        "field": place and place.field,
        "before": b"".join(before).decode("utf-8", "replace"),
        "prompt": [piece.decode("utf-8", "replace") for piece in prompt],
        "cached": [piece.decode("utf-8", "replace") for piece in cached],
        "rows_lost": n_lost,
        "cost_ms": round(n_lost * timings.prompt_ms / max(timings.prompt_n, 1), 3),
    }


def _place(asked: TextRequest, id_task: int, at: int, n_same: int) -> Place | None:
    try:
        return asked.prompt_of(id_task).place(asked.model.vocab, at, n_same)
    except Exception:  # this is only an explanation: a fault in it must not fail the answer
        log.exception("the place of a difference could not be found")
        return None


def make_probs_json(probs: TokenProbs, vocab: Vocab, is_after_sampling: bool) -> dict[str, Any]:
    """One item of `completion_probabilities`. It has the fields of 2024 (`content`, `probs`) and today's (`logprob` and
    `top_logprobs`, or `prob` and `top_probs` with `post_sampling_probs`)."""
    piece = vocab.piece(probs.token)
    text = piece.decode("utf-8", "replace")
    result = {
        "content": text,
        "probs": [{"tok_str": vocab.piece(id_).decode("utf-8", "replace"), "prob": prob} for id_, prob in probs.top],
        "id": probs.token,
        "token": text,
        "bytes": list(piece),
    }
    if is_after_sampling:
        result["prob"] = probs.prob
        result["top_probs"] = [make_token_json(id_, vocab, prob=prob) for id_, prob in probs.top if prob > 0]
    else:
        result["logprob"] = probs.logprob
        result["top_logprobs"] = [make_token_json(id_, vocab, logprob=logprob) for id_, logprob in probs.top_logprobs]
    return result


def make_token_json(token: int, vocab: Vocab, **numbers: float | None) -> dict[str, Any]:
    """A token with its id, text and bytes, and its probability under the given name."""
    piece = vocab.piece(token)
    return {"id": token, "token": piece.decode("utf-8", "replace"), "bytes": list(piece), **numbers}


def _choose_own(value: float, default: float) -> float:
    """The task's value, or the server's default if the task's is negative."""
    return default if value < 0 else value


def _compute_ratio(a: float, b: float) -> float:
    return round(a / b, 3) if b > 0 else 0.0
