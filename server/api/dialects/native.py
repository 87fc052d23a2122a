"""The dialect of POST /completion (and of the answers of /infill): text for a prompt.

Runs on the threads of `server.api.generation`. Answers have llama-server's fields of 2024 and of today.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from json.encoder import encode_basestring
from typing import Any

from server.api.context import Context
from server.api.dialects.dialect import Answer, Dialect, Waiting
from server.api.request.fields import COMPLETION
from server.api.request.prompt import read_prompts, strip_files
from server.api.request.sampling import read_strings
from server.api.request.text_request import Arrival, Incoming, TextRequest, make_text_request
from server.api.serialize import (
    make_cache_json,
    make_probs_json,
    make_progress_json,
    make_progress_timings,
    make_settings_json,
    make_timings_json,
)
from server.chat.output.events import End, Event, Text
from server.engine.seam.task import STOP_EOS, STOP_LIMIT, STOP_WORD, Progress
from server.errors import ApiError
from server.web.message import make_error_body, to_json
from server.web.sse import PING
from server.web.sse import encode_event as sse_event

MISSING = object()


def read_completion(incoming: Incoming) -> TextRequest:
    """Read POST /completion. Its `system_prompt` replaces the model's for this and all later requests."""
    model, body = incoming.model, incoming.body
    if body.get("system_prompt") is not None:
        model.set_system_prompt(body["system_prompt"])
    values, unread = COMPLETION.read(body, model.defaults), COMPLETION.list_unread(body)
    if values["prompt"] is None:
        raise ApiError(400, "prompt: this field is required")
    prompts, is_list = read_prompts(
        values["prompt"],
        model.vocab,
        not model.system_prompt.prompt,
        incoming.context.options.is_2024,
        incoming.files,
        partial(model.require_room, values["n_cmpl"]),
        values["image_data"],
    )
    return make_text_request(
        incoming,
        values,
        prompts,
        strip_files(values["prompt"]),
        is_list=is_list,
        default_ping_s=get_default_ping_s(incoming.context),
        warnings=unread,
    )


def get_default_ping_s(context: Context) -> int:
    """Seconds of silence after which a stream sends a comment. Off by default, since clients of 2024 don't expect
    comments."""
    return context.options.native_ping_interval


class NativeReply:
    id = ""
    ping = PING

    def __init__(self, context: Context, asked: TextRequest) -> None:
        self._asked = asked
        self._tasks = asked.tasks
        self._vocab = asked.model.vocab
        self._is_after = asked.values["post_sampling_probs"]
        self._is_verbose = context.options.is_verbose or asked.values["verbose"]
        self._fields = read_strings("response_fields", asked.values["response_fields"] or ())
        self._has_new_line = [False] * len(asked.tasks)
        self._held = [""] * len(asked.tasks)  # text without tokens, for the last object of the stream

    def encode_event(self, index: int, event: Event) -> bytes:
        """Plain text, the most common event, is formatted by hand, in a tenth of a JSON encoder's time."""
        if type(event) is Text:
            if "\n" in event.text:
                self._has_new_line[index] = True
            tokens = event.tokens
            if not tokens:
                self._held[index] += event.text
                return b""
            if not event.probs and event.timings is None:
                ids = tokens[0] if len(tokens) == 1 else ",".join(map(str, tokens))
                return (
                    f'data: {{"index":{index},"content":{encode_basestring(event.text)},"tokens":[{ids}],'
                    '"stop":false}\n\n'
                ).encode("utf-8", "replace")
            return sse_event(self._make_chunk(index, event))
        if isinstance(event, End):
            return sse_event(self._make_last(index, Answer(self._tasks[index], [self._held[index]], final=event.final)))
        if isinstance(event, Progress):
            progress = {"prompt_progress": make_progress_json(event), "timings": make_progress_timings(event)}
            return sse_event({**self._make_chunk(index, Text("")), **progress})
        return b""

    def _make_chunk(self, index: int, event: Text) -> dict[str, Any]:
        chunk: dict[str, Any] = {"index": index, "content": event.text, "tokens": list(event.tokens), "stop": False}
        if event.probs:
            chunk["completion_probabilities"] = [
                make_probs_json(one, self._vocab, self._is_after) for one in event.probs
            ]
        if event.timings is not None:
            chunk["timings"] = make_timings_json(event.timings)
        return chunk

    def end(self) -> bytes:
        """No bytes: `stop: true` in the last object already marks the end of the stream."""
        return b""

    def encode_error(self, error: ApiError) -> bytes:
        return encode_error_event(error)

    def make_whole(self, answers: Sequence[Answer]) -> object:
        """One object, or a list of them in the order of the prompts."""
        results = [self._make_last(i, answer) for i, answer in enumerate(answers)]
        return results if self._asked.is_list else results[0]

    def _make_last(self, index: int, answer: Answer) -> dict[str, Any]:
        has_new_line = self._has_new_line[index] or "\n" in answer.text
        return pick(answer_json(self._asked, index, answer, has_new_line, self._is_verbose), self._fields)


def answer_json(asked: TextRequest, index: int, answer: Answer, has_new_line: bool, is_verbose: bool) -> dict[str, Any]:
    """The last object of an answer: the whole answer, or in a stream the part that hasn't been sent yet."""
    task, final, values, vocab = answer.task, answer.final, asked.values, asked.model.vocab
    result: dict[str, Any] = {
        "index": index,
        "content": answer.text,
        "tokens": answer.tokens if values["return_tokens"] else [],
        "id_slot": final.id_slot,
        "slot_id": final.id_slot,
        "stop": True,
        "model": asked.model.name,
        "tokens_predicted": final.n_predicted,
        "tokens_evaluated": final.n_prompt,
        "tokens_cached": final.n_cached,
        "generation_settings": make_settings_json(asked.model, task, values["stream"]),
        "prompt": asked.get_shown(index),
        "has_new_line": has_new_line,
        "truncated": final.truncated,
        "stop_type": final.stop,
        "stopped_eos": final.stop == STOP_EOS,
        "stopped_limit": final.stop == STOP_LIMIT,
        "stopped_word": final.stop == STOP_WORD,
        "stopping_word": final.stopping_word,
        "timings": make_timings_json(final.timings),
        "cache": make_cache_json(asked, final),  # type: ignore[arg-type]
        **asked.extras.get(index, {}),
    }
    probs = answer.probs
    if final.stopping_word:  # drop the stop word's probabilities: one per token of its text, as in llama-server
        probs = probs[: -len(vocab.tokenize(final.stopping_word, False, False)) or None]
    if probs:
        result["completion_probabilities"] = [
            make_probs_json(one, vocab, values["post_sampling_probs"]) for one in probs
        ]
    if asked.warnings:
        result["warnings"] = list(asked.warnings)
    if is_verbose:
        result["__prompt_processed"] = vocab.detokenize(list(task.prompt)).decode("utf-8", "replace")
    return result


def pick(result: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """`response_fields`: keep only these fields. `a/b` picks the field `b` of `a`, and is also its name in the result.
    Unknown fields are skipped; without any paths everything is kept."""
    if not paths:
        return result
    picked: dict[str, Any] = {}
    for path in paths:
        value: object = result
        for name in path.split("/"):
            value = value.get(name, MISSING) if isinstance(value, dict) else MISSING
        if value is not MISSING:
            picked[path] = value
    return picked


def encode_error_event(error: ApiError) -> bytes:
    """An `error:` line as in 2024, and a last `data:` object."""
    body = make_error_body(error)
    return b"error: " + to_json(body["error"]) + b"\n" + sse_event({**body, "content": "", "stop": True})


def load_event(arrival: Arrival, model: str, progress: dict[str, Any]) -> bytes:
    """A progress event while the model is loaded: an object without text."""
    return sse_event({"index": 0, "content": "", "tokens": [], "stop": False, "load_progress": progress})


WAITING = Waiting(load_event, encode_error_event)
DIALECT = Dialect(read_completion, NativeReply, waiting=WAITING)
