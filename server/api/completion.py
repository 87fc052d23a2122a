"""POST /completion: a prompt in, text out, whole or as a stream.

Connection thread. A request becomes one `Task`; its events become JSON here, the same ones whether they are streamed
or collected. The answer carries the fields of the 2024 documents and those of today's server side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from json.encoder import encode_basestring
from typing import Any

from server.api import schema
from server.api.constraints import read_constraint
from server.api.context import Context
from server.api.fields import COMPLETION
from server.api.media import Files
from server.api.prompt import read_prompts, shown, without_files
from server.engine.seam.task import (
    STOP_EOS,
    STOP_LIMIT,
    STOP_WORD,
    Event,
    Final,
    Piece,
    Progress,
    SamplingParams,
    Task,
    Timings,
    TokenProbs,
)
from server.errors import ApiError
from server.log import is_verbose, verbose
from server.web.message import EventStream, Request, Response, Writer, error_body, json_response, to_json
from server.web.sse import comment, event

MAX_SCALE = 1000.0  # of an adapter: far beyond use, and far from overflowing the model's numbers
MISSING = object()
MAX_JOINED = 64  # events in one chunk of a stream
PING = comment("ping")


class CompletionHandler:
    """`handle` answers one request; everything about it lives in a `Completion`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def handle(self, request: Request) -> Response | EventStream:
        """Validate, submit, and answer as the body's `stream` says."""
        self._context.engine.require_ready()
        body = request.json()
        if isinstance(body, dict) and body.get("system_prompt") is not None:
            self._context.set_system_prompt(body["system_prompt"])
        completion = Completion(self._context, body)
        if is_verbose():
            verbose(
                "request",
                id=request.id,
                body=without_files(body),
                tokens=[list(task.prompt) for task in completion.tasks],
            )
        return answer(completion, request, COMPLETION.unread(body))


def answer(completion: Completion, request: Request, warnings: Sequence[str]) -> Response | EventStream:
    """Run a completion as its `stream` field says; `warnings` about the request go into the answer too."""
    completion.warnings = (*completion.warnings, *warnings)
    headers = {"X-Queue-Position": str(completion.queue_position())}
    if completion.values["stream"]:
        return EventStream(Stream(completion, request), headers)
    result = completion.run(request)
    if is_verbose():
        verbose("response", id=request.id, body=result)
    return json_response(result, headers=headers)


class Completion:
    """One request: its checked fields, its tasks, and the JSON of their events.

    There is one task for each prompt and each of its `n_cmpl` answers. `prompts` is given by routes that build
    their own (infill, chat); else it is read from the body. Other dialects override the methods that make JSON.
    """

    id = ""
    """Of the answer, in dialects that give it one."""

    def __init__(self, context: Context, body: object, prompts: list[tuple[int, ...]] | None = None) -> None:
        context.require_generative()
        self._context = context
        self.values = schema.read(body, schema.COMPLETION_FIELDS, context.defaults)
        self.prompt = shown(body.get("prompt", ""))
        context.keep_prompt(self.prompt)
        is_list = False
        if prompts is None:
            if body.get("prompt") is None:
                raise ApiError(400, "prompt: this field is required")
            prompts, is_list = read_prompts(
                body["prompt"],
                context.engine.vocab,
                not context.system_prompt.prompt,
                context.is_2024,
                Files(context),
                body.get("image_data"),
            )
        n = self.values["n_cmpl"]
        self.is_list = is_list or n > 1
        constraint = read_constraint(body, context.defaults)
        self.warnings = constraint.warnings
        self._params = schema.sampling_params(body, self.values, context.engine.vocab, context.defaults)
        if constraint.grammar:
            self._params = replace(self._params, grammar=constraint.grammar)
        self._lora = read_lora(self.values["lora"], context)
        self._fields = schema.strings("response_fields", self.values["response_fields"] or ())
        self.tasks = [self._task(tokens, i) for tokens in prompts for i in range(n)]
        self._index = {task.id: i for i, task in enumerate(self.tasks)}
        self._pieces: list[list[Piece]] = [[] for _ in self.tasks]
        self._has_new_line = [False] * len(self.tasks)

    def _task(self, tokens: tuple[int, ...], number: int) -> Task:
        values = self.values
        cap, n_predict = self._context.options.n_predict, values["n_predict"]
        if cap >= 0:
            n_predict = cap if n_predict < 0 else min(n_predict, cap)
        params = self._params
        if number:
            params = replace(params, seed=(params.seed + number) % 2**32)
        return Task(
            id=self._context.engine.new_id(),
            prompt=tuple(tokens),
            sampling=params,
            n_predict=n_predict,
            media=getattr(tokens, "media", ()),
            n_keep=values["n_keep"],
            n_discard=values["n_discard"],
            stop=schema.strings("stop", values["stop"]),
            id_slot=values["id_slot"],
            priority=values["priority"],
            cache_prompt=values["cache_prompt"],
            progress=values["stream"] and values["return_progress"],
            lora=self._lora,
            n_indent=values["n_indent"],
            t_max_prompt_ms=max(values["t_max_prompt_ms"], 0),
            t_max_predict_ms=max(values["t_max_predict_ms"], 0),
            t_max_ms=max(values["t_max_ms"], 0),
            draft_n_max=values["speculative.n_max"],
            draft_n_min=values["speculative.n_min"],
            draft_p_min=values["speculative.p_min"],
            stream=values["stream"],
            timings=values["stream"] and values["timings_per_token"],
        )

    @property
    def ping_s(self) -> float | None:
        """How long a stream may be silent, in seconds; None for ever."""
        asked = self.values["sse_ping_interval"]
        seconds = self.default_ping_s() if asked is None else asked
        return seconds if seconds > 0 else None

    def default_ping_s(self) -> int:
        """The documents of 2024 know no comments in streams, so here there are none unless somebody wants them."""
        options = self._context.options
        return options.sse_ping_interval if options.is_set("sse_ping_interval") else -1

    def queue_position(self) -> int:
        """The place in the queue that the first task would get now: 0 is a slot at once, 1 the next one."""
        snapshot = self._context.engine.snapshot
        return 0 if snapshot.n_idle > snapshot.n_deferred else snapshot.n_deferred + 1

    @contextmanager
    def running(self, request: Request) -> Iterator[Any]:
        """The `Results` of the tasks, which the engine has as long as the block lasts. They are the request owner's; a
        client that leaves ends them, and so does POST /v1/abort with the request's id or that of the answer."""
        request.require_client()
        self.tasks = [replace(task, owner=request.owner) for task in self.tasks]
        with (
            self._context.engine.submit(*self.tasks, stream=self.values["stream"]) as results,
            request.on_disconnect(results.cancel),
            self._context.running.entry((request.id, self.id), request.key_id, results.finish),
        ):
            yield results

    def run(self, request: Request) -> object:
        """The whole answer: an object, or a list of them in the order of the prompts."""
        answers: list[dict[str, object] | None] = [None] * len(self.tasks)
        with self.running(request) as results:
            for item in results:
                if isinstance(item, Piece):
                    self._pieces[self._index[item.id]].append(item)
                elif isinstance(item, Final):
                    answers[self._index[item.id]] = self.final(item)
        return answers if self.is_list else answers[0]

    def events(self, item: Piece | Progress | Final) -> Iterable[bytes]:
        """What a stream sends for one event of the engine. The ordinary piece of text, one per token and reader, is
        put together by hand: that takes a tenth of what building and encoding a dict takes."""
        if type(item) is Piece and not item.probs and item.timings is None:
            index = self._index[item.id]
            if "\n" in item.text:
                self._has_new_line[index] = True
            text = 'data: {"index":%d,"content":%s,"tokens":[%s],"stop":false}\n\n' % (
                index,
                encode_basestring(item.text),
                ",".join(map(str, item.tokens)),
            )
            return (text.encode("utf-8", "replace"),)
        return (event(self.chunk(item)),)

    def tail(self) -> Iterator[bytes]:
        """What a stream sends at its end: nothing, the last object has `stop: true`."""
        return iter(())

    def error(self, error: ApiError) -> bytes:
        """An error in a stream that has begun."""
        return error_event(error)

    def chunk(self, item: Piece | Progress | Final) -> dict[str, object]:
        """One event as a chunk of a stream."""
        index = self._index[item.id]
        if isinstance(item, Final):
            return self.final(item)
        chunk: dict[str, object] = {"index": index, "content": "", "tokens": [], "stop": False}
        if isinstance(item, Progress):
            chunk["prompt_progress"] = progress_json(item)
            return chunk
        self._has_new_line[index] |= "\n" in item.text
        chunk["content"] = item.text
        chunk["tokens"] = list(item.tokens)
        if item.probs:
            chunk["completion_probabilities"] = [self._probs(probs) for probs in item.probs]
        if item.timings is not None:
            chunk["timings"] = timings_json(item.timings)
        return chunk

    def final(self, final: Final) -> dict[str, object]:
        """The last object of a task: the whole answer, or the last chunk of a stream (without what was sent)."""
        stream, index = self.values["stream"], self._index[final.id]
        task, pieces = self.tasks[index], self._pieces[index]
        text = "".join(piece.text for piece in pieces) + final.text
        result: dict[str, object] = {
            "index": index,
            "content": text,
            "tokens": [t for p in pieces for t in p.tokens] if self.values["return_tokens"] else [],
            "id_slot": final.id_slot,
            "slot_id": final.id_slot,
            "stop": True,
            "model": self._context.model_name,
            "tokens_predicted": final.n_predicted,
            "tokens_evaluated": final.n_prompt,
            "tokens_cached": final.n_cached,
            "generation_settings": settings(self._context, task, stream),
            "prompt": self.prompt,
            "has_new_line": "\n" in text or self._has_new_line[index],
            "truncated": final.truncated,
            "stop_type": final.stop,
            "stopped_eos": final.stop == STOP_EOS,
            "stopped_limit": final.stop == STOP_LIMIT,
            "stopped_word": final.stop == STOP_WORD,
            "stopping_word": final.stopping_word,
            "timings": timings_json(final.timings),
        }
        probs = self._shown_probs([probs for piece in pieces for probs in piece.probs], final.stopping_word)
        if probs:
            result["completion_probabilities"] = probs
        if self.warnings:
            result["warnings"] = list(self.warnings)
        if self._context.options.verbose:
            result["__prompt_processed"] = self._context.engine.vocab.detokenize(list(task.prompt)).decode(
                "utf-8", "replace"
            )
        return pick(result, self._fields)

    def _shown_probs(self, probs: list[TokenProbs], stopping_word: str) -> list[dict[str, object]]:
        """Without the last ones that made up the stop word, counted as llama-server does: by the word's own tokens."""
        if stopping_word:
            probs = probs[: -len(self._context.engine.vocab.tokenize(stopping_word, False, False)) or None]
        return [self._probs(one) for one in probs]

    def _probs(self, probs: TokenProbs) -> dict[str, object]:
        return probs_json(probs, self._context.engine.vocab, self.values["post_sampling_probs"])


class Stream:
    """The chunks of one streamed completion. Closing it, at any point, frees the engine."""

    def __init__(self, completion: Completion, request: Request) -> None:
        self._stack = ExitStack()
        self._completion = completion
        self._results = self._stack.enter_context(completion.running(request))
        self._chunks = self._iterate(completion, self._results)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def divert(self, writer: Writer) -> None:
        """From now on what comes while `__next__` waits is sent by the thread that brings it (see `EventStream`)."""

        def send(items: list[Event]) -> bool:
            return writer.offer(b"".join([part for item in items for part in self._completion.events(item)]))

        self._results.divert(send, writer.drain)

    def close(self) -> None:
        """The edge calls this when the stream has ended, for whatever reason."""
        self._stack.close()

    @staticmethod
    def _iterate(completion: Completion, results) -> Iterator[bytes]:
        """An error before the first chunk is raised (the answer gets its status); later ones become an event.

        What has come meanwhile goes out together, and so do the last event and the tail: each send is a system call,
        and wakes the client.
        """
        is_open = False
        parts: list[bytes] = []
        try:
            for item in results.events(completion.ping_s):
                parts += (PING,) if item is None else completion.events(item)
                if parts and type(item) is not Final and (len(parts) >= MAX_JOINED or not results.has_more):
                    yield b"".join(parts)
                    is_open = True
                    parts.clear()
            yield b"".join((*parts, *completion.tail()))
        except ApiError as error:
            if not is_open and not parts:
                raise
            completion._context.refusals.count(error.reason)
            yield b"".join((*parts, completion.error(error)))


def read_lora(value: object, context: Context) -> tuple[tuple[int, float], ...] | None:
    """The request's `lora` list as (adapter, scale) pairs, None when it is absent."""
    if value is None:
        return None
    return tuple(sorted((i, scale) for i, scale in lora_scales(value, context).items() if scale))


def lora_scales(value: object, context: Context) -> dict[int, float]:
    """`[{"id", "scale"}, ...]` checked against the loaded adapters."""
    if not isinstance(value, list):
        raise ApiError(400, "lora: give a list of objects with id and scale")
    scales: dict[int, float] = {}
    n = len(context.engine.info.adapters)
    for item in value:
        if not isinstance(item, dict) or type(item.get("id")) is not int or not 0 <= item["id"] < n:
            raise ApiError(400, f"lora: {str(item)[:60]} names no adapter; this server has {n}, ids start at 0")
        scale = item.get("scale", 0.0)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise ApiError(400, f"lora: the scale of adapter {item['id']} is not a number")
        scales[item["id"]] = schema.as_float("lora", scale)
        if abs(scale) > MAX_SCALE:
            raise ApiError(
                400,
                f"lora: the scale of adapter {item['id']} is out of range, allowed is {-MAX_SCALE:g} to {MAX_SCALE:g}",
            )
    return scales


def pick(result: dict[str, object], paths: tuple[str, ...]) -> dict[str, object]:
    """`response_fields`: only these fields; `a/b` reaches into objects and keeps its flat name. Absent ones are left
    out; no paths means everything."""
    if not paths:
        return result
    picked: dict[str, object] = {}
    for path in paths:
        value: object = result
        for name in path.split("/"):
            value = value.get(name, MISSING) if isinstance(value, dict) else MISSING
        if value is not MISSING:
            picked[path] = value
    return picked


def error_event(error: ApiError) -> bytes:
    """An error inside a stream: an `error:` line as the 2024 server sent it, and a last `data:` object."""
    body = error_body(error)
    return b"error: " + to_json(body["error"]) + b"\n" + event({**body, "content": "", "stop": True})


def settings(context: Context, task: Task, stream: bool) -> dict[str, object]:
    """`generation_settings`: the options as they took effect, under the documents' names."""
    params = sampling_json(task.sampling)
    if task.sampling.ignore_eos:
        params["logit_bias"] += [[token, False] for token in context.engine.info.eog_tokens]
    return {
        "n_ctx": context.engine.info.n_ctx_slot,
        "model": context.model_name,
        **params,
        "n_predict": task.n_predict,
        "max_tokens": task.n_predict,
        "n_keep": task.n_keep,
        "n_discard": task.n_discard,
        "stop": list(task.stop),
        "stream": stream,
        "cache_prompt": task.cache_prompt,
        "n_indent": task.n_indent,
        "speculative.n_max": _own(task.draft_n_max, context.options.spec_draft_n_max),
        "speculative.n_min": _own(task.draft_n_min, context.options.spec_draft_n_min),
        "speculative.p_min": _own(task.draft_p_min, context.options.spec_draft_p_min),
        "t_max_predict_ms": task.t_max_predict_ms,
        "t_max_ms": task.t_max_ms,
        "lora": [{"id": i, "scale": scale} for i, scale in task.lora or ()],
    }


def sampling_json(params: SamplingParams) -> dict[str, object]:
    """`SamplingParams` as JSON; a banned token has the bias false, as requests write it."""
    fields = {name: getattr(params, name) for name in SamplingParams.__dataclass_fields__}
    fields["samplers"] = list(params.samplers)
    fields["dry_sequence_breakers"] = list(params.dry_sequence_breakers)
    fields["logit_bias"] = [[token, False if bias == -math.inf else bias] for token, bias in params.logit_bias]
    prompt = fields.pop("penalty_prompt")
    fields["penalty_prompt_tokens"] = list(prompt or ())
    fields["use_penalty_prompt_tokens"] = prompt is not None
    return fields


def progress_json(progress: Progress) -> dict[str, object]:
    """`prompt_progress`; with `queue_position` as long as the task waits."""
    result: dict[str, object] = {
        "total": progress.n_prompt,
        "cache": progress.n_cached,
        "processed": progress.n_processed,
        "time_ms": round(progress.ms, 3),
    }
    if progress.place:
        result["queue_position"] = progress.place
    return result


def timings_json(timings: Timings) -> dict[str, object]:
    """`timings`: milliseconds and rates; a rate over no time is 0, never infinite."""
    n_steps = max(timings.predicted_n - 1, 0)
    drafts = {"draft_n": timings.draft_n, "draft_n_accepted": timings.draft_n_accepted} if timings.draft_n else {}
    return {
        "cache_n": timings.cache_n,
        "cache_source": timings.cache_source,
        **({"cache_reason": timings.cache_reason} if timings.cache_reason else {}),
        "prompt_n": timings.prompt_n,
        "prompt_ms": round(timings.prompt_ms, 3),
        "prompt_per_token_ms": _ratio(timings.prompt_ms, timings.prompt_n),
        "prompt_per_second": _ratio(timings.prompt_n * 1e3, timings.prompt_ms),
        "predicted_n": timings.predicted_n,
        "predicted_ms": round(timings.predicted_ms, 3),
        "predicted_per_token_ms": _ratio(timings.predicted_ms, n_steps),
        "predicted_per_second": _ratio(n_steps * 1e3, timings.predicted_ms),
        **drafts,
    }


def _own(value: float, default: float) -> float:
    """A task's value, the server's where it is negative."""
    return default if value < 0 else value


def _ratio(a: float, b: float) -> float:
    return round(a / b, 3) if b > 0 else 0.0


def probs_json(probs: TokenProbs, vocab, is_after_sampling: bool) -> dict[str, object]:
    """One item of `completion_probabilities`: 2024's `content` and `probs`, today's `logprob` and `top_logprobs`
    (or `prob` and `top_probs` with `post_sampling_probs`)."""
    token = token_json(probs.token, vocab)
    result = {
        "content": token["token"],
        "probs": [{"tok_str": vocab.piece(id_).decode("utf-8", "replace"), "prob": prob} for id_, prob in probs.top],
        **token,
    }
    if is_after_sampling:
        result["prob"] = probs.prob
        result["top_probs"] = [{**token_json(id_, vocab), "prob": prob} for id_, prob in probs.top]
    else:
        result["logprob"] = probs.logprob
        result["top_logprobs"] = [{**token_json(id_, vocab), "logprob": logprob} for id_, logprob in probs.top_logprobs]
    return result


def token_json(token: int, vocab) -> dict[str, object]:
    """A token as `id`, text and bytes."""
    piece = vocab.piece(token)
    return {"id": token, "token": piece.decode("utf-8", "replace"), "bytes": list(piece)}
