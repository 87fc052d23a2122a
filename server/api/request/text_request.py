"""A checked request for text in any dialect: its tasks for the engine, and what the reply needs.

Connection thread. A dialect reads its prompt and fields; `make_text_request` does the rest, which all dialects share.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.api.context import Context
from server.api.request.constraints import AnswerForm
from server.api.request.media import Files
from server.api.request.prompt import Prompt
from server.api.request.sampling import make_sampling_params, read_strings
from server.api.request.schema import as_float
from server.api.request.triggers import read_form
from server.chat.output.parser import OutputParser
from server.engine.seam.task import BACKGROUND, SamplingParams, Task
from server.errors import ApiError
from server.models.model import Model
from server.records import field, record, replace

PAIR_BYTES, TOKEN_BYTES = 24, 8  # bytes that an answer needs for a token with its bias, and for a token
MAX_REPEATED = 64 << 20  # bytes of fields that answers repeat, in all answers of a request
MAX_SCALE = 1000.0  # of an adapter; larger scales are useless and could overflow the model's numbers


@record(frozen=True)
class Arrival:
    """Values that are set when a request arrives: `created` is the time in seconds, `t_ns` that of the monotonic clock
    in nanoseconds, `token` the last part of the id of OpenAI's answers. If the model has to be loaded first, `place` is
    the place in the queue of loads (1 is the next one), else 0."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    created: int = field(default_factory=lambda: int(time.time()))
    t_ns: int = field(default_factory=lambda: time.monotonic_ns())
    place: int = 0


@record
class Incoming:
    """A request for a dialect to read. `files` collects its images and sounds. `body_sha256` is the hash of the body's
    bytes, "" without --record."""

    context: Context
    model: Model
    body: Mapping[str, Any]
    files: Files
    owner: str
    body_sha256: str = ""
    arrival: Arrival = field(default_factory=Arrival)


@record(frozen=True)
class TextRequest:
    """A request that has been read.

    `values` are the checked fields of its dialect, `shown` is the prompt as answers show it. There is a task for each
    of the `n` answers to each prompt, in the order of the prompts. With `is_list` the client gets a list of answers.
    `warnings` name parts of the request that have no effect. `new_parser` makes the parser of calls and reasoning; None
    if answers are only text. `own` is further data of the dialect. `extras` are further fields of an answer by its
    index: evidence, which is made when the answer has ended. `cache` is what the cache did, by the task's id."""

    model: Model
    values: Mapping[str, Any]
    tasks: tuple[Task, ...]
    n: int
    shown: Any
    is_list: bool
    warnings: tuple[str, ...]
    default_ping_s: int
    new_parser: Callable[[], OutputParser] | None = None
    own: Any = None
    body: Mapping[str, Any] = field(default_factory=dict)
    body_sha256: str = ""
    arrival: Arrival = field(default_factory=Arrival)
    extras: dict[int, dict[str, Any]] = field(default_factory=dict)
    prompts: Sequence[Prompt] = ()
    cache: dict[int, dict[str, Any]] = field(default_factory=dict)

    def to_background(self) -> TextRequest:
        """The same request with a priority below all others."""
        return replace(self, tasks=tuple(replace(task, priority=BACKGROUND) for task in self.tasks))

    @property
    def is_parsed(self) -> bool:
        """Whether calls and reasoning are separated from the text."""
        return self.new_parser is not None

    def prompt_of(self, id_task: int) -> Prompt:
        index = next(i for i, task in enumerate(self.tasks) if task.id == id_task)
        return self.prompts[index // self.n]

    def get_shown(self, index: int) -> Any:
        """The prompt that the answer with this index shows: its own, if there are several."""
        return self.shown[index // self.n] if len(self.tasks) > self.n else self.shown

    @property
    def ping_s(self) -> float | None:
        """Seconds of silence after which a stream gets a ping; None for never."""
        asked = self.values["sse_ping_interval"]
        seconds = self.default_ping_s if asked is None else asked
        return seconds if seconds > 0 else None


def require_small(n_answers: int, sampling: SamplingParams, stop: Sequence[str]) -> None:
    """ApiError 400 if the fields that each answer repeats are too large in all answers together."""
    n_bytes = PAIR_BYTES * len(sampling.logit_bias) + TOKEN_BYTES * len(sampling.penalty_prompt or ())
    n_bytes += sum(map(len, (sampling.grammar, *stop, *sampling.dry_sequence_breakers)))
    n_bytes += sum(len(trigger.text) for trigger in sampling.grammar_triggers)
    if n_answers > 1 and n_answers * n_bytes > MAX_REPEATED:
        raise ApiError(
            400,
            f"grammar, stop, logit_bias and similar fields have {n_bytes:,} bytes, which is too much for {n_answers} "
            f"answers: at most {MAX_REPEATED:,} bytes in all answers together are allowed",
            reason="too_many",
        )


def make_text_request(
    incoming: Incoming,
    values: Mapping[str, Any],
    prompts: Sequence[Prompt],
    shown: Any,
    *,
    default_ping_s: int,
    is_list: bool = False,
    prompt_probs: int = -1,
    warnings: tuple[str, ...] = (),
    form: AnswerForm | None = None,
) -> TextRequest:
    """The request of a dialect that has read its prompts and fields, with `warnings` about these. `values` include all
    fields of a completion. Without a `form`, the fields in the body constrain the answer. For `prompt_probs` see
    `Task`."""
    model = incoming.model
    form = form or read_form(values, incoming.body, model)
    model.require_room(values["n_cmpl"], len(prompts))
    samplings = make_sampling_params(values, model.vocab, model.defaults, form.constraint)
    stop = read_strings("stop", values["stop"])
    if not form.has_text:
        stop = ()
    require_small(len(prompts) * len(samplings), samplings[0], stop)
    n_predict, stream = values["n_predict"], values["stream"]
    if n_predict < 0:
        n_predict = model.options.requests.n_predict
    n_max = model.options.requests.max_predict
    if n_max >= 0:
        n_predict = n_max if n_predict < 0 else min(n_predict, n_max)
    same = {
        "owner": incoming.owner,
        "stop": stop,
        "lora": read_lora(values["lora"], model),
        "n_predict": n_predict,
        "n_keep": values["n_keep"],
        "n_discard": values["n_discard"],
        "n_indent": values["n_indent"],
        "id_slot": values["id_slot"],
        "priority": values["priority"],
        "cache_prompt": values["cache_prompt"] and prompt_probs < 0,
        "prompt_probs": prompt_probs,
        "t_max_prompt_ms": max(values["t_max_prompt_ms"], 0),
        "t_max_predict_ms": max(values["t_max_predict_ms"], 0),
        "t_max_ms": max(values["t_max_ms"], 0),
        "draft_n_max": values["speculative.n_max"],
        "draft_n_min": values["speculative.n_min"],
        "draft_p_min": values["speculative.p_min"],
        "stream": stream,
        "progress": stream and values["return_progress"],
        "timings": stream and values["timings_per_token"],
        "preserved_tokens": form.preserved_tokens,
        "reasoning": form.thinking,
    }
    tasks = [
        Task(
            id=model.engine.make_id(),
            prompt=prompt.tokens,
            media=prompt.media,
            may_respell=prompt.may_respell and same["cache_prompt"],
            sampling=sampling,
            **same,
        )
        for prompt in prompts
        for sampling in samplings
    ]
    return TextRequest(
        model=model,
        values=values,
        tasks=tuple(tasks),
        n=len(samplings),
        shown=shown,
        is_list=is_list or len(samplings) > 1,
        warnings=(*form.constraint.warnings, *warnings),
        default_ping_s=default_ping_s,
        new_parser=form.new_parser,
        body=incoming.body,
        body_sha256=incoming.body_sha256,
        arrival=incoming.arrival,
        prompts=prompts,
    )


def read_lora(value: object, model: Model) -> tuple[tuple[int, float], ...] | None:
    """A request's `lora` list as (adapter, scale) pairs; None if it is absent. ApiError 400."""
    if value is None:
        return None
    return tuple(sorted((i, scale) for i, scale in read_lora_scales(value, model).items() if scale))


def read_lora_scales(value: object, model: Model) -> dict[int, float]:
    """The scales by adapter in a list `[{"id", "scale"}, ...]`. ApiError 400, also for an unknown adapter."""
    if not isinstance(value, list):
        raise ApiError(400, "lora: give a list of objects with id and scale")
    scales: dict[int, float] = {}
    n = len(model.info.adapters)
    for item in value:
        if not isinstance(item, dict) or type(item.get("id")) is not int or not 0 <= item["id"] < n:
            raise ApiError(400, f"lora: {str(item)[:60]} names no adapter; this model has {n}, ids start at 0")
        scale = item.get("scale", 0.0)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise ApiError(400, f"lora: the scale of adapter {item['id']} is not a number")
        scales[item["id"]] = as_float("lora", scale)
        if abs(scale) > MAX_SCALE:
            raise ApiError(
                400,
                f"lora: the scale of adapter {item['id']} is out of range, allowed is {-MAX_SCALE:g} to {MAX_SCALE:g}",
            )
    return scales
