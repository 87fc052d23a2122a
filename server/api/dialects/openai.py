"""The common part of OpenAI's chat and text dialects: chunks, whole answers, usage.

Runs on the threads that `server/api/generation.py` names.
"""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Callable, Iterable, Sequence
from json.encoder import encode_basestring
from typing import Any, Protocol

from server.api.context import Context
from server.api.dialects.dialect import Answer, Waiting
from server.api.dialects.native import answer_json
from server.api.request.fields import STREAM_OPTION_FIELDS
from server.api.request.schema import read
from server.api.request.text_request import Arrival, TextRequest
from server.api.serialize import (
    make_cache_json,
    make_progress_json,
    make_progress_timings,
    make_timings_json,
    make_token_json,
)
from server.chat.output.events import End, Event, Reasoning, Text, ToolCall
from server.engine.seam.task import STOP_ABORT, STOP_LIMIT, Final, Progress, PromptProbs, TokenProbs
from server.errors import ApiError
from server.models.model import Vocab
from server.web.message import make_error_body, to_json
from server.web.sse import DONE, PING, encode_named_event
from server.web.sse import encode_event as sse_event

MARK = secrets.token_hex(16)  # placeholder for a chunk's text; random, so that the model's name can't equal it
Part = Text | Reasoning | ToolCall

PlacedToken = tuple[TokenProbs, int]
"""A token, and the index of the character at which it begins in the text."""


class Form(Protocol):
    """Makes what differs between the two dialects, for one request."""

    object_name: str
    chunk_name: str
    id_prefix: str
    n_echoed: list[int] | None
    """The number of characters of each choice's prompt; None unless the prompt's tokens get logprobs."""
    calls_finish: str
    """The `finish_reason` of a choice that calls tools."""

    def make_opening(self, index: int) -> dict[str, Any] | None:
        """The choice of the chunk before the answer's text; None if there is none."""

    def make_delta(self, index: int, part: Part | None, logprobs: object, finish: str | None) -> dict[str, Any]:
        """The choice of a chunk with a part of the answer. `part` is None in the last chunk and for progress."""

    def make_choice(self, index: int, answer: Answer, logprobs: object, rest: object, finish: str) -> dict[str, Any]:
        """A whole choice. `rest` is the `logprobs` object of control tokens, or None."""

    def make_logprobs(self, tokens: Sequence[PlacedToken]) -> object:
        """The `logprobs` object of tokens and their places."""

    def note_judged(self, index: int, part: PromptProbs) -> None:
        """Note the probabilities of some of the prompt's tokens."""


class OpenAiReply:
    ping = PING

    def __init__(self, context: Context, asked: TextRequest, make_form: Callable[[TextRequest], Form]) -> None:
        model, values = asked.model, asked.values
        self._asked = asked
        self._form = form = make_form(asked)
        self._is_verbose = context.options.is_verbose or values["verbose"]
        self.id = form.id_prefix + asked.arrival.token
        self._created = asked.arrival.created
        self._model_name = model.choose_name(values["model"])
        self._fingerprint = f"b-{model.info.llama_version}"
        options = read(values["stream_options"], STREAM_OPTION_FIELDS, where="stream_options.")
        self._include_usage = options["include_usage"]
        self._has_probs = values["n_probs"] > 0
        n_echoed = form.n_echoed
        self._places = [
            TokenPlaces(model.vocab, task.preserved_tokens, None if n_echoed is None else n_echoed[i], asked.is_parsed)
            for i, task in enumerate(asked.tasks)
        ]
        self._is_legacy = values.get("reasoning_format") == "deepseek-legacy"
        self._finals: dict[int, Final] = {}
        self._calling: set[int] = set()  # indexes of choices that have called tools
        self._frames: dict[object, tuple[bytes, bytes]] = {}

    # ---- streams ----------------------------------------------------------------------------------------------

    def encode_event(self, index: int, event: Event) -> bytes:
        if type(event) is Text:
            if not self._has_probs and event.timings is None:
                if not event.text:
                    return b""
                before, behind = self._frames.get(index) or self._encode_frame(index, index, Text(MARK))
                return before + encode_basestring(event.text).encode("utf-8", "replace") + behind
            return self._encode_text(index, event)
        if self._has_probs and isinstance(event, (Reasoning, ToolCall)):
            self._take_tokens(index, event)
        if type(event) is Reasoning:
            return self._fill_frame(index, event, event.text, (index, Reasoning), Reasoning(MARK))
        if type(event) is ToolCall:
            return self._call(index, event)
        if isinstance(event, End):
            self._finals[index] = event.final
            return sse_event(self._make_last_chunk(index, event.final))
        if isinstance(event, PromptProbs):
            self._form.note_judged(index, event)
            return b""
        if isinstance(event, Progress):
            chunk = self._make_chunk([self._form.make_delta(index, None, None, None)])
            progress = {"prompt_progress": make_progress_json(event), "timings": make_progress_timings(event)}
            return sse_event({**chunk, **progress})
        opening = self._form.make_opening(index)
        return b"" if opening is None else sse_event(self._make_chunk([opening]))

    def _encode_frame(self, key: object, index: int, part: Part) -> tuple[bytes, bytes]:
        """Encode a chunk whose `part` has MARK as its text, and keep the bytes around MARK for further chunks."""
        data = sse_event(self._make_chunk([self._form.make_delta(index, part, None, None)]))
        before, _, behind = data.partition(to_json(MARK))
        self._frames[key] = before, behind
        return before, behind

    def _fill_frame(self, index: int, part: Part, text: str, key: object, marked: Part) -> bytes:
        """A chunk with reasoning or arguments; b"" without text. `key` finds the chunk's JSON in `_frames`."""
        if not text:
            return b""
        if part.timings is not None:
            return self._encode_timed(index, part, None)
        before, behind = self._frames.get(key) or self._encode_frame(key, index, marked)
        return before + encode_basestring(text).encode("utf-8", "replace") + behind

    def _call(self, index: int, event: ToolCall) -> bytes:
        head = b""
        if event.name:
            self._calling.add(index)
            head = self._encode_timed(index, ToolCall(event.index, event.id, event.name, timings=event.timings), None)
            event = ToolCall(event.index, arguments=event.arguments, timings=event.timings)
        marked = ToolCall(event.index, arguments=MARK)
        return head + self._fill_frame(index, event, event.arguments, (index, event.index), marked)

    def _encode_text(self, index: int, event: Text) -> bytes:
        tokens = self._take_tokens(index, event)
        return self._encode_timed(index, event, self._make_logprobs(tokens)) if event.text else b""

    def _encode_timed(self, index: int, part: Part, logprobs: object) -> bytes:
        chunk = self._make_chunk([self._form.make_delta(index, part, logprobs, None)])
        if part.timings is not None:
            chunk["timings"] = make_timings_json(part.timings)
        return sse_event(chunk)

    def _make_last_chunk(self, index: int, final: Final) -> dict[str, Any]:
        choice = self._form.make_delta(index, None, self._rest(index), self._finish(index, final))
        last = self._make_chunk([{**choice, **self._asked.extras.get(index, {})}])
        last |= self._make_numbers(final)
        if self._asked.warnings:
            last["warnings"] = list(self._asked.warnings)
        if self._is_verbose:
            last["__verbose"] = self._make_native(index, Answer(self._asked.tasks[index], [final.text], final=final))
        return last

    def end(self) -> bytes:
        """The usage, if the request asks for it, then `[DONE]`."""
        if not self._include_usage:
            return DONE
        usage = {**self._make_chunk([]), "usage": self._make_usage(), **self._make_numbers(self._finals[0])}
        return sse_event(usage) + DONE

    def encode_error(self, error: ApiError) -> bytes:
        return encode_error_event(error)

    # ---- whole answers ----------------------------------------------------------------------------------------

    def make_whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        self._finals = {i: answer.final for i, answer in enumerate(answers) if answer.final is not None}
        self._calling = {i for i, answer in enumerate(answers) if answer.calls}
        result = {
            **self._make_head(self._form.object_name),
            "choices": [self._make_choice(*pair) for pair in enumerate(answers)],
            "usage": self._make_usage(),
            **self._make_numbers(self._finals[0]),
        }
        if self._asked.warnings:
            result["warnings"] = list(self._asked.warnings)
        if self._is_verbose:
            native = [self._make_native(i, answer) for i, answer in enumerate(answers)]
            result["__verbose"] = native if len(native) > 1 else native[0]
        return result

    def _make_choice(self, index: int, answer: Answer) -> dict[str, Any]:
        for part in answer.prompt_probs:
            self._form.note_judged(index, part)
        logprobs = self._make_logprobs([token for part in answer.judged for token in self._take_tokens(index, part)])
        finish = self._finish(index, self._finals[index])
        choice = self._form.make_choice(index, answer, logprobs, self._rest(index), finish)
        return {**choice, **self._asked.extras.get(index, {})}

    # ---- parts of both ----------------------------------------------------------------------------------------

    def _take_tokens(self, index: int, part: Part) -> list[PlacedToken]:
        """Note a part's tokens. Returns those of a text; none for reasoning and calls."""
        places = self._places[index]
        places.add(part.probs)
        if type(part) is Reasoning and not self._is_legacy:  # in the legacy format the text contains reasoning, too
            places.take(part.text)
        return places.take(part.text) if type(part) is Text else []

    def _make_logprobs(self, tokens: Sequence[PlacedToken]) -> object:
        return self._form.make_logprobs(tokens) if self._has_probs else None

    def _rest(self, index: int) -> object:
        """The `logprobs` object of control tokens; None if none were kept."""
        rest = self._places[index].rest()
        return self._form.make_logprobs(rest) if rest else None

    def _finish(self, index: int, final: Final) -> str:
        """The `finish_reason` of a choice. An answer that was cut off ends with "length" even within a call."""
        if final.stop == STOP_LIMIT:
            return "length"
        return self._form.calls_finish if index in self._calling and final.stop != STOP_ABORT else "stop"

    def _make_native(self, index: int, answer: Answer) -> dict[str, Any]:
        """The answer as POST /completion would write it."""
        return answer_json(self._asked, index, answer, "\n" in answer.text, self._is_verbose)

    def _make_head(self, object_name: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_name,
            "created": self._created,
            "model": self._model_name,
            "system_fingerprint": self._fingerprint,
        }

    def _make_chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._make_head(self._form.chunk_name), "choices": choices}

    def _make_numbers(self, final: Final) -> dict[str, Any]:
        return {"timings": make_timings_json(final.timings), "cache": make_cache_json(self._asked, final)}

    def _make_usage(self) -> dict[str, Any]:
        finals = [self._finals[i] for i in sorted(self._finals)]
        n_answers = self._asked.n
        n_prompt = sum(final.n_prompt for final in finals[::n_answers])
        n_predicted = sum(final.n_predicted for final in finals)
        n_cached = sum(final.timings.cache_n for final in finals[::n_answers])
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_predicted,
            "total_tokens": n_prompt + n_predicted,
            "prompt_tokens_details": {"cached_tokens": n_cached},
            "completion_tokens_details": {"reasoning_tokens": sum(final.n_reasoning for final in finals)},
        }


def encode_error_event(error: ApiError) -> bytes:
    return encode_named_event("error", make_error_body(error))


def make_waiting(id_prefix: str, object_name: str, choice: dict[str, Any]) -> Waiting:
    """Writes the beginning of a stream whose model is still loading: chunks with the load's progress. `choice` has the
    dialect's own fields of an empty choice."""

    def encode_progress(arrival: Arrival, model: str, progress: dict[str, Any]) -> bytes:
        return sse_event(
            {
                "id": id_prefix + arrival.token,
                "object": object_name,
                "created": arrival.created,
                "model": model,
                "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": None}],
                "load_progress": progress,
            }
        )

    return Waiting(encode_progress, encode_error_event)


class TokenPlaces:
    """Finds the tokens that a text consists of, and the character at which each begins.

    Tokens come before their text: half a character and a possible stop word are held back, and a stop word is never
    sent. Control tokens have no text, except those in `preserved`. If the text follows an echoed prompt of `n_echoed`
    characters, every token needs an entry, so control tokens are kept for `rest`.

    If a parser removes the markers of calls and reasoning from the text (`is_parsed`), each part of the text is
    searched for in the text of the tokens.
    """

    def __init__(
        self, vocab: Vocab, preserved: Sequence[int] = (), n_echoed: int | None = None, is_parsed: bool = False
    ) -> None:
        self._vocab = vocab
        self._preserved = frozenset(preserved)
        self._keeps_control = n_echoed is not None
        self._is_parsed = is_parsed
        self._first = n_echoed or 0
        self._control: list[PlacedToken] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: list[PlacedToken] = []
        self._n_tokens = self._n_text = 0  # characters of all tokens, and of the text taken so far
        self._untaken = ""  # text of tokens after the text taken so far

    def add(self, probs: Iterable[TokenProbs]) -> None:
        for item in probs:
            if item.token in self._preserved or not self._vocab.is_control(item.token):
                self._waiting.append((item, self._n_tokens))
                said = self._decoder.decode(self._vocab.piece(item.token))
                self._n_tokens += len(said)
                self._untaken += said if self._is_parsed else ""
            elif self._keeps_control:
                self._control.append((item, self._first + self._n_tokens))

    def take(self, text: str) -> list[PlacedToken]:
        """The tokens that begin in the next part of the text, with their places."""
        if self._is_parsed and not self._untaken.startswith(text):
            n_left_out = max(self._untaken.rfind(text), 0)
            self._untaken = self._untaken[n_left_out:]
            self._take(n_left_out)
        self._untaken = self._untaken[len(text) :]
        return [(item, self._first + place) for item, place in self._take(len(text))]

    def _take(self, n_characters: int) -> list[PlacedToken]:
        self._n_text += n_characters
        n = sum(place < self._n_text for _, place in self._waiting)
        taken, self._waiting = self._waiting[:n], self._waiting[n:]
        return taken

    def rest(self) -> list[PlacedToken]:
        """The control tokens that were kept. Called at the end."""
        rest, self._control = self._control, []
        return rest


def make_likely_json(probs: TokenProbs, n_top: int, vocab: Vocab) -> dict[str, Any]:
    """A token as chat answers write it, with at most `n_top` of the most likely tokens."""
    top = [make_token_json(id_, vocab, logprob=logprob) for id_, logprob in probs.top_logprobs[:n_top]]
    return {**make_token_json(probs.token, vocab, logprob=probs.logprob), "top_logprobs": top}
