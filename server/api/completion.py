"""POST /completion: a prompt in, text out, whole or as a stream.

Connection thread. A request becomes one `Task`; its events become JSON here, the same ones whether they are streamed
or collected. The answer carries the fields of the 2024 documents and those of today's server side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict

from server.api import schema
from server.api.context import Context
from server.api.prompt import prompt_tokens
from server.engine.task import (STOP_EOS, STOP_LIMIT, STOP_WORD, Final, Piece, Progress, SamplingParams, Task, Timings,
                                TokenProbs)
from server.errors import ApiError
from server.web.message import EventStream, Request, Response, json_response, to_json
from server.web.sse import event


class CompletionHandler:
    """`handle` answers one request; everything about it lives in a `Completion`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def handle(self, request: Request) -> Response | EventStream:
        """Validate, submit, and answer as the body's `stream` says."""
        self._context.engine.require_ready()
        completion = Completion(self._context, request.json())
        if completion.values["stream"]:
            return EventStream(Stream(completion, request))
        return json_response(completion.run(request))


class Completion:
    """One request: its checked fields, its task, and the JSON of its events."""

    def __init__(self, context: Context, body: object) -> None:
        self._context = context
        self.values = schema.read(body, schema.COMPLETION_FIELDS)
        if "prompt" not in body:
            raise ApiError(400, "prompt: this field is required")
        vocab = context.engine.vocab
        self.prompt = body["prompt"]
        self.task = self._task(body, prompt_tokens(self.prompt, vocab), vocab)
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._probs: list[dict[str, object]] = []

    def _task(self, body: dict[str, object], tokens: tuple[int, ...], vocab) -> Task:
        values = self.values
        cap = self._context.options.n_predict
        n_predict = values["n_predict"]
        if cap >= 0:
            n_predict = cap if n_predict < 0 else min(n_predict, cap)
        params = schema.sampling_params(body, values, vocab.tokenize)
        for token, _ in params.logit_bias:
            if not 0 <= token < vocab.n_tokens:
                raise ApiError(400, f"logit_bias: there is no token {token}")
        return Task(
            id=self._context.engine.new_id(), prompt=tokens, sampling=params, n_predict=n_predict,
            n_keep=values["n_keep"], n_discard=values["n_discard"], stop=schema.strings("stop", values["stop"]),
            id_slot=values["id_slot"], cache_prompt=values["cache_prompt"],
            progress=values["stream"] and values["return_progress"])

    def submit(self):
        """Hand the task to the engine."""
        self._context.remember(self.task)
        return self._context.engine.submit(self.task, self.values["stream"])

    def run(self, request: Request) -> dict[str, object]:
        """The whole answer as one object."""
        with self.submit() as results, request.on_disconnect(results.cancel):
            for item in results:
                if isinstance(item, Piece):
                    self._collect(item)
                elif isinstance(item, Final):
                    return self.final(item)
        raise ApiError(500, "the engine gave no result")

    def _collect(self, piece: Piece) -> None:
        self._text.append(piece.text)
        self._tokens += piece.tokens
        self._probs += [probs_json(probs, self._context.engine.vocab) for probs in piece.probs]

    def chunk(self, piece: Piece) -> dict[str, object]:
        """One chunk of a stream."""
        chunk: dict[str, object] = {"index": 0, "content": piece.text, "tokens": list(piece.tokens), "stop": False}
        if piece.probs:
            chunk["completion_probabilities"] = [probs_json(p, self._context.engine.vocab) for p in piece.probs]
        return chunk

    def progress(self, item: Progress) -> dict[str, object]:
        """A chunk that tells how far the prompt has been read."""
        return {"index": 0, "content": "", "tokens": [], "stop": False, "prompt_progress": {
            "total": item.n_prompt, "cache": item.n_cached, "processed": item.n_processed,
            "time_ms": round(item.ms, 3)}}

    def final(self, final: Final) -> dict[str, object]:
        """The last object: the whole answer, or the last chunk of a stream (then without what was sent before)."""
        stream = self.values["stream"]
        text = "".join(self._text) + final.text
        answer: dict[str, object] = {
            "index": 0,
            "content": final.text if stream else text,
            "tokens": self._tokens if self.values["return_tokens"] and not stream else [],
            "id_slot": final.id_slot,
            "slot_id": final.id_slot,
            "stop": True,
            "model": self._context.model_name,
            "tokens_predicted": final.n_predicted,
            "tokens_evaluated": final.n_prompt,
            "tokens_cached": final.n_cached,
            "generation_settings": settings(self._context, self.task, stream),
            "prompt": self.prompt,
            "has_new_line": "\n" in text,
            "truncated": final.truncated,
            "stop_type": final.stop,
            "stopped_eos": final.stop == STOP_EOS,
            "stopped_limit": final.stop == STOP_LIMIT,
            "stopped_word": final.stop == STOP_WORD,
            "stopping_word": final.stopping_word,
            "timings": timings_json(final.timings),
        }
        if self._probs:
            answer["completion_probabilities"] = self._probs
        return answer


class Stream:
    """The chunks of one streamed completion. Closing it, at any point, frees the engine."""

    def __init__(self, completion: Completion, request: Request) -> None:
        self._completion = completion
        self._stack = ExitStack()
        results = self._stack.enter_context(completion.submit())
        self._stack.enter_context(request.on_disconnect(results.cancel))
        self._chunks = self._iterate(results)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        """The edge calls this when the stream has ended, for whatever reason."""
        self._stack.close()

    def _iterate(self, results) -> Iterator[bytes]:
        """An error before the first chunk is raised (the answer gets its status); later ones become an event."""
        completion, is_open, has_new_line = self._completion, False, False
        try:
            for item in results:
                if isinstance(item, Piece):
                    has_new_line = has_new_line or "\n" in item.text
                    yield event(completion.chunk(item))
                elif isinstance(item, Progress):
                    yield event(completion.progress(item))
                else:
                    answer = completion.final(item)
                    answer["has_new_line"] = has_new_line or answer["has_new_line"]
                    yield event(answer)
                is_open = True
        except ApiError as error:
            if not is_open:
                raise
            yield error_event(error)


def error_event(error: ApiError) -> bytes:
    """An error inside a stream: an `error:` line as the 2024 server sent it, and a last `data:` object."""
    body = error.body()
    return b"error: " + to_json(body["error"]) + b"\n" + event({**body, "content": "", "stop": True})


def settings(context: Context, task: Task, stream: bool) -> dict[str, object]:
    """`generation_settings`: the options as they took effect, under the documents' names."""
    params = sampling_json(task.sampling)
    return {
        "n_ctx": context.engine.info.n_ctx_slot, "model": context.model_name, **params,
        "n_predict": task.n_predict, "max_tokens": task.n_predict, "n_keep": task.n_keep, "n_discard": task.n_discard,
        "stop": list(task.stop), "stream": stream, "cache_prompt": task.cache_prompt,
    }


def sampling_json(params: SamplingParams) -> dict[str, object]:
    """`SamplingParams` as JSON; a banned token has the bias false, as requests write it."""
    fields = asdict(params)
    fields["samplers"] = list(params.samplers)
    fields["dry_sequence_breakers"] = list(params.dry_sequence_breakers)
    fields["logit_bias"] = [[token, False if bias == -math.inf else bias] for token, bias in params.logit_bias]
    prompt = fields.pop("penalty_prompt")
    fields["penalty_prompt_tokens"] = list(prompt or ())
    fields["use_penalty_prompt_tokens"] = prompt is not None
    return fields


def timings_json(timings: Timings) -> dict[str, object]:
    """`timings`: milliseconds and rates; a rate over no time is 0, never infinite."""
    n_steps = max(timings.predicted_n - 1, 0)
    return {
        "cache_n": timings.cache_n,
        "prompt_n": timings.prompt_n,
        "prompt_ms": round(timings.prompt_ms, 3),
        "prompt_per_token_ms": _ratio(timings.prompt_ms, timings.prompt_n),
        "prompt_per_second": _ratio(timings.prompt_n * 1e3, timings.prompt_ms),
        "predicted_n": timings.predicted_n,
        "predicted_ms": round(timings.predicted_ms, 3),
        "predicted_per_token_ms": _ratio(timings.predicted_ms, n_steps),
        "predicted_per_second": _ratio(n_steps * 1e3, timings.predicted_ms),
    }


def _ratio(a: float, b: float) -> float:
    return round(a / b, 3) if b > 0 else 0.0


def probs_json(probs: TokenProbs, vocab) -> dict[str, object]:
    """One item of `completion_probabilities`: 2024's `content` and `probs`, today's `logprob` and `top_logprobs`."""
    piece = vocab.piece(probs.token)
    text = piece.decode("utf-8", "replace")
    return {
        "content": text,
        "probs": [{"tok_str": vocab.piece(token).decode("utf-8", "replace"), "prob": prob} for token, prob in probs.top],
        "id": probs.token,
        "token": text,
        "bytes": list(piece),
        "logprob": probs.logprob,
        "top_logprobs": [_logprob_json(token, logprob, vocab) for token, logprob in probs.top_logprobs],
    }


def _logprob_json(token: int, logprob: float, vocab) -> dict[str, object]:
    piece = vocab.piece(token)
    return {"id": token, "token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": logprob}
