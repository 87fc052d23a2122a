"""POST /v1/chat/completions and /v1/completions: OpenAI's dialect over the same tasks as /completion.

Connection thread. Every native field may be given as an extra; unknown fields are ignored. What differs is the way
in (messages or prompt, `logprobs`, `n`) and the JSON of the answers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping

from server.api.completion import Completion, answer, timings_json, token_json
from server.api.context import Context
from server.api.infill import InfillHandler
from server.api.messages import chat_prompt, flag
from server.api.prompt import read_prompts
from server.engine.task import STOP_LIMIT, Final, Piece, Progress, TokenProbs
from server.errors import ApiError
from server.web.message import EventStream, Request, Response, json_response
from server.web.sse import DONE, event, named_event

MAX_TOP_LOGPROBS = 100
PING_S = 30.0


class OpenAiHandlers:
    """The routes of this dialect."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._infill = InfillHandler(context)

    def chat(self, request: Request) -> Response | EventStream:
        """A conversation's next message."""
        body = self._body(request)
        return answer(ChatCompletion(self._context, body), request)

    def complete(self, request: Request) -> Response | EventStream:
        """A text's continuation; with `suffix` what belongs in between."""
        body = self._body(request)
        return answer(TextCompletion(self._context, body, self._infill), request)

    def apply_template(self, request: Request) -> Response:
        """The prompt that `messages` would become."""
        return json_response({"prompt": chat_prompt(self._context, self._body(request)).text})

    def count_tokens(self, request: Request) -> Response:
        """How many tokens the prompt of `messages` has."""
        n = len(chat_prompt(self._context, self._body(request)).tokens)
        return json_response({"object": "response.input_tokens", "input_tokens": n})

    def _body(self, request: Request) -> dict[str, object]:
        self._context.engine.require_ready()
        body = request.json()
        if not isinstance(body, dict):
            raise ApiError(400, "the request body must be a JSON object")
        return body


class OpenAiCompletion(Completion):
    """What chat and text completions have in common."""

    ping_s = PING_S
    object_name = chunk_name = id_prefix = ""

    def __init__(self, context: Context, body: dict[str, object], native: dict[str, object],
                 prompts: list[tuple[int, ...]]) -> None:
        super().__init__(context, native, prompts)
        self._model = body["model"] if isinstance(body.get("model"), str) and body["model"] else context.model_name
        self._id = self.id_prefix + secrets.token_urlsafe(18)
        self._created = int(time.time())
        options = body.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise ApiError(400, "stream_options: give an object")
        self._include_usage = bool(flag(options or {}, "include_usage", False))
        self._finals: dict[int, Final] = {}
        self._has_begun = [False] * len(self.tasks)

    def run(self, request: Request) -> dict[str, object]:
        """The whole answer: one object with all choices."""
        with self.submit() as results, request.on_disconnect(results.cancel):
            for item in results:
                if isinstance(item, Piece):
                    self._pieces[self._index[item.id]].append(item)
                elif isinstance(item, Final):
                    self._finals[self._index[item.id]] = item
        choices = [self.choice(i, self._finals[i]) for i in range(len(self.tasks))]
        result = {**self._head(self.object_name), "choices": choices, "usage": self._usage(),
                  "timings": timings_json(self._finals[0].timings)}
        if self.warnings:
            result["warnings"] = list(self.warnings)
        return result

    def events(self, item: Piece | Progress | Final) -> Iterator[bytes]:
        """Chunks for one event of the engine."""
        index = self._index[item.id]
        if isinstance(item, Progress):
            progress = {"total": item.n_prompt, "cache": item.n_cached, "processed": item.n_processed,
                        "time_ms": round(item.ms, 3)}
            yield event({**self._chunk([self.delta(index, "", None, None)]), "prompt_progress": progress})
            return
        if not self._has_begun[index]:
            self._has_begun[index] = True
            yield from self.opening(index)
        if isinstance(item, Piece):
            if item.text or item.probs:
                logprobs = self.logprobs([item]) if item.probs else None
                chunk = self._chunk([self.delta(index, item.text, logprobs, None)])
                if item.timings is not None:
                    chunk["timings"] = timings_json(item.timings)
                yield event(chunk)
            return
        self._finals[index] = item
        if item.text:
            yield event(self._chunk([self.delta(index, item.text, None, None)]))
        last = self._chunk([self.delta(index, None, None, finish_reason(item))])
        last["timings"] = timings_json(item.timings)
        if self.warnings:
            last["warnings"] = list(self.warnings)
        yield event(last)

    def tail(self) -> Iterator[bytes]:
        """Usage if asked for, then `[DONE]`."""
        if self._include_usage:
            yield event({**self._chunk([]), "usage": self._usage(),
                         "timings": timings_json(self._finals[0].timings)})
        yield DONE

    def error(self, error: ApiError) -> bytes:
        """An `error` event, after which the stream ends."""
        return named_event("error", error.body())

    def opening(self, index: int) -> Iterator[bytes]:
        """Chunks before the first text of a choice."""
        return iter(())

    def choice(self, index: int, final: Final) -> dict[str, object]:
        """One complete choice."""
        raise AssertionError("a dialect has its own choices")

    def delta(self, index: int, text: str | None, logprobs: object, finish: str | None) -> dict[str, object]:
        """One choice of a chunk."""
        raise AssertionError("a dialect has its own deltas")

    def logprobs(self, pieces: list[Piece]) -> object:
        """The `logprobs` object for the tokens of these pieces."""
        raise AssertionError("a dialect has its own logprobs")

    def _text(self, index: int, final: Final) -> str:
        return "".join(piece.text for piece in self._pieces[index]) + final.text

    def _head(self, object_name: str) -> dict[str, object]:
        return {"id": self._id, "object": object_name, "created": self._created, "model": self._model,
                "system_fingerprint": f"llama.cpp-{self._context.engine.info.llama_version}"}

    def _chunk(self, choices: list[dict[str, object]]) -> dict[str, object]:
        return {**self._head(self.chunk_name), "choices": choices}

    def _usage(self) -> dict[str, object]:
        finals = [self._finals[i] for i in sorted(self._finals)]
        n_answers = max(self.values["n_cmpl"], 1)
        n_prompt = sum(final.n_prompt for final in finals[::n_answers])
        n_predicted = sum(final.n_predicted for final in finals)
        n_cached = sum(final.timings.cache_n for final in finals[::n_answers])
        return {"prompt_tokens": n_prompt, "completion_tokens": n_predicted, "total_tokens": n_prompt + n_predicted,
                "prompt_tokens_details": {"cached_tokens": n_cached}}


class ChatCompletion(OpenAiCompletion):
    """One chat request."""

    object_name, chunk_name, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, context: Context, body: dict[str, object]) -> None:
        refuse_tool_choice(body)
        native = {name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs", "prompt")}
        if flag(body, "logprobs", False):
            native["n_probs"] = max(count(body, "top_logprobs", MAX_TOP_LOGPROBS), 1)
        elif body.get("top_logprobs"):
            raise ApiError(400, "top_logprobs needs logprobs to be true")
        self._n_top = count(body, "top_logprobs", MAX_TOP_LOGPROBS)
        prompt = chat_prompt(context, body)
        super().__init__(context, body, native, [prompt.tokens])

    def opening(self, index: int) -> Iterator[bytes]:
        """The role, before any text."""
        delta = {"role": "assistant", "content": None}
        yield event(self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]))

    def delta(self, index: int, text: str | None, logprobs: object, finish: str | None) -> dict[str, object]:
        """One choice of a chunk."""
        delta = {} if text is None else {"content": text}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def choice(self, index: int, final: Final) -> dict[str, object]:
        """The message."""
        pieces = self._pieces[index]
        message = {"role": "assistant", "content": self._text(index, final)}
        logprobs = self.logprobs(pieces) if self.tasks[index].sampling.n_probs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(final)}

    def logprobs(self, pieces: list[Piece]) -> object:
        """Chat form: a list of tokens with their alternatives."""
        return {"content": [self._token(probs) for piece in pieces for probs in piece.probs], "refusal": None}

    def _token(self, probs: TokenProbs) -> dict[str, object]:
        vocab = self._context.engine.vocab
        top = [{**token_json(id_, vocab), "logprob": logprob} for id_, logprob in probs.top_logprobs[:self._n_top]]
        return {**token_json(probs.token, vocab), "logprob": probs.logprob, "top_logprobs": top}


class TextCompletion(OpenAiCompletion):
    """One text completion request; a list of prompts gives choices in their order."""

    object_name = chunk_name = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, context: Context, body: dict[str, object], infill: InfillHandler) -> None:
        if body.get("prompt") is None:
            raise ApiError(400, "prompt: this field is required")
        native = {name: value for name, value in body.items() if name not in ("logprobs", "response_fields")}
        n_probs = count(body, "logprobs", MAX_TOP_LOGPROBS)
        if n_probs or body.get("logprobs") == 0 and body.get("logprobs") is not False:
            native["n_probs"] = max(n_probs, 1)
        self._n_top = n_probs
        if body.get("suffix"):
            prompts = [infill.prompt({"input_prefix": body["prompt"], "input_suffix": body["suffix"]}, body)]
        else:
            prompts, _ = read_prompts(body["prompt"], context.engine.vocab, not context.system_prompt.prompt, False)
        super().__init__(context, body, native, prompts)
        self._echo = bool(flag(body, "echo", False))
        self._offsets = [0] * len(self.tasks)

    def opening(self, index: int) -> Iterator[bytes]:
        """With `echo`, the prompt."""
        if self._echo:
            yield event(self._chunk([self.delta(index, self._prompt_text(index), None, None)]))

    def delta(self, index: int, text: str | None, logprobs: object, finish: str | None) -> dict[str, object]:
        """One choice of a chunk."""
        return {"index": index, "text": text or "", "logprobs": logprobs, "finish_reason": finish}

    def choice(self, index: int, final: Final) -> dict[str, object]:
        """The text."""
        text = self._text(index, final)
        if self._echo:
            text = self._prompt_text(index) + text
        logprobs = self.logprobs(self._pieces[index]) if self.tasks[index].sampling.n_probs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason(final)}

    def logprobs(self, pieces: list[Piece]) -> object:
        """Text form: parallel lists, with offsets into the generated text; the chat form's list beside them."""
        vocab = self._context.engine.vocab
        tokens, offsets, at = [], [], 0
        probs = [probs for piece in pieces for probs in piece.probs]
        for item in probs:
            tokens.append(vocab.piece(item.token).decode("utf-8", "replace"))
            offsets.append(at)
            at += len(tokens[-1])
        top = [{vocab.piece(id_).decode("utf-8", "replace"): logprob for id_, logprob in item.top_logprobs[:self._n_top]}
               for item in probs]
        return {"tokens": tokens, "token_logprobs": [item.logprob for item in probs], "top_logprobs": top,
                "text_offset": offsets}

    def _prompt_text(self, index: int) -> str:
        vocab = self._context.engine.vocab
        tokens = [token for token in self.tasks[index].prompt if not vocab.is_control(token)]
        return vocab.detokenize(tokens).decode("utf-8", "replace")


def finish_reason(final: Final) -> str:
    """`length` where a limit ended the text, else `stop`."""
    return "length" if final.stop == STOP_LIMIT else "stop"


def count(body: Mapping[str, object], name: str, most: int) -> int:
    """A count from 0 to `most`; false and null are 0, true is 1."""
    value = body.get(name) or 0
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ApiError(400, f"{name}: {str(value)[:40]!r} is not a number from 0 to {most}")
    return value


def refuse_tool_choice(body: Mapping[str, object]) -> None:
    """Tools reach the template, but their calls aren't enforced or parsed yet: what can't be kept is refused."""
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise ApiError(400, "tool_choice: this server can't enforce tool calls yet; leave it out or say auto or none")
