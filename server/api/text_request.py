"""A checked request for text, whatever dialect it came in: what is asked of the engine, and what the reply must know.

Connection thread. A dialect reads its own form of prompt and its own fields; `text_request` does the rest, which is the
same for all, and everything is made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.api.constraints import read_constraint
from server.api.fields import Body
from server.api.lora import read_lora
from server.api.media import Prompt
from server.api.model import Model
from server.api.schema import sampling_params, strings
from server.engine.seam.task import SamplingParams, Task
from server.records import record


@record(frozen=True)
class TextRequest:
    """`values` are the checked fields of the dialect's table, `shown` is the prompt as answers repeat it. There is one
    answer for each prompt and each of `sampling`, in this order; with `is_list` the client wants a list of them.
    `warnings` is what of the request isn't kept."""

    model: Model
    values: Mapping[str, object]
    prompts: tuple[Prompt, ...]
    shown: object
    is_list: bool
    sampling: tuple[SamplingParams, ...]
    stop: tuple[str, ...]
    lora: tuple[tuple[int, float], ...] | None
    warnings: tuple[str, ...]
    prompt_probs: int
    default_ping_s: int

    @property
    def ping_s(self) -> float | None:
        """How long a stream may be silent, in seconds; None for ever."""
        asked = self.values["sse_ping_interval"]
        seconds = self.default_ping_s if asked is None else asked
        return seconds if seconds > 0 else None

    def tasks(self, owner: str) -> tuple[Task, ...]:
        """One for each answer. They are `owner`'s."""
        return tuple(self._task(prompt, sampling, owner) for prompt in self.prompts for sampling in self.sampling)

    def _task(self, prompt: Prompt, sampling: SamplingParams, owner: str) -> Task:
        values, stream = self.values, self.values["stream"]
        cap, n_predict = self.model.options.n_predict, values["n_predict"]
        if cap >= 0:
            n_predict = cap if n_predict < 0 else min(n_predict, cap)
        return Task(
            id=self.model.engine.new_id(),
            owner=owner,
            prompt=prompt.tokens,
            media=prompt.media,
            sampling=sampling,
            stop=self.stop,
            lora=self.lora,
            n_predict=n_predict,
            n_keep=values["n_keep"],
            n_discard=values["n_discard"],
            n_indent=values["n_indent"],
            id_slot=values["id_slot"],
            priority=values["priority"],
            cache_prompt=values["cache_prompt"] and self.prompt_probs < 0,
            prompt_probs=self.prompt_probs,
            t_max_prompt_ms=max(values["t_max_prompt_ms"], 0),
            t_max_predict_ms=max(values["t_max_predict_ms"], 0),
            t_max_ms=max(values["t_max_ms"], 0),
            draft_n_max=values["speculative.n_max"],
            draft_n_min=values["speculative.n_min"],
            draft_p_min=values["speculative.p_min"],
            stream=stream,
            progress=stream and values["return_progress"],
            timings=stream and values["timings_per_token"],
        )


def text_request(
    model: Model,
    table: Body,
    body: Mapping[str, object],
    values: Mapping[str, object],
    prompts: Sequence[Prompt],
    shown: object,
    *,
    default_ping_s: int,
    is_list: bool = False,
    prompt_probs: int = -1,
    warnings: tuple[str, ...] = (),
) -> TextRequest:
    """The request of a dialect that has read its fields (`values`, of its `table`) and its prompts, with `warnings`
    about these."""
    constraint = read_constraint(body, model.defaults)
    sampling = sampling_params(values, model.vocab, model.defaults, constraint.grammar)
    return TextRequest(
        model=model,
        values=values,
        prompts=tuple(prompts),
        shown=shown,
        is_list=is_list or len(sampling) > 1,
        sampling=sampling,
        stop=strings("stop", values["stop"]),
        lora=read_lora(values["lora"], model),
        warnings=(*constraint.warnings, *warnings, *table.unread(body)),
        prompt_probs=prompt_probs,
        default_ping_s=default_ping_s,
    )
