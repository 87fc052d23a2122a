"""POST /v1/chat/completions and /v1/completions: OpenAI's dialect over the same tasks as /completion.

Connection thread. Every native field may be given as an extra. What differs is the way in (messages or prompt,
`logprobs`, `n`) and the JSON of the answers.
"""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from server.api.completion import Completion, answer, progress_json, timings_json, token_json
from server.api.context import Context, Vocab
from server.api.echo import EchoedPrompt, joined, token_name
from server.api.fields import CHAT, TEXT
from server.api.infill import InfillHandler
from server.api.media import Files
from server.api.messages import chat_prompt, flag
from server.api.prompt import read_prompts
from server.engine.seam.task import STOP_LIMIT, Final, Piece, Progress, PromptProbs, TokenProbs
from server.errors import ApiError
from server.web.message import EventStream, Request, Response, error_body
from server.web.sse import DONE, event, named_event

MAX_TOP_LOGPROBS = 100


class OpenAiHandlers:
    """The routes of this dialect."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._infill = InfillHandler(context)

    def chat(self, request: Request) -> Response | EventStream:
        """A conversation's next message."""
        body = self._body(request)
        return answer(ChatCompletion(self._context, body), request, CHAT.unread(body))

    def complete(self, request: Request) -> Response | EventStream:
        """A text's continuation; with `suffix` what belongs in between."""
        body = self._body(request)
        return answer(TextCompletion(self._context, body, self._infill), request, TEXT.unread(body))

    def apply_template(self, request: Request) -> Response:
        """The prompt that `messages` would become."""
        body = self._body(request)
        prompt = chat_prompt(self._context, body)
        return CHAT.reply({"prompt": prompt.text}, body, prompt.warnings)

    def count_tokens(self, request: Request) -> Response:
        """How many tokens the prompt of `messages` has."""
        body = self._body(request)
        prompt = chat_prompt(self._context, body)
        tokens = prompt.tokens
        if tokens.media:
            raise ApiError(
                400,
                f"{tokens.media[0].where}: how many tokens a file takes is known only when it is "
                "decoded; the usage of an answer has it",
            )
        return CHAT.reply({"object": "response.input_tokens", "input_tokens": len(tokens)}, body, prompt.warnings)

    def _body(self, request: Request) -> dict[str, object]:
        self._context.engine.require_ready()
        body = request.json()
        if not isinstance(body, dict):
            raise ApiError(400, "the request body must be a JSON object")
        return body


class OpenAiCompletion(Completion):
    """What chat and text completions have in common."""

    object_name = chunk_name = id_prefix = ""

    def __init__(
        self, context: Context, body: dict[str, object], native: dict[str, object], prompts: list[tuple[int, ...]]
    ) -> None:
        super().__init__(context, {**native, "seed": small_seed(native.get("seed"))}, prompts)
        self._model = model_name(body, context)
        self.id = self.id_prefix + secrets.token_urlsafe(18)
        self._created = int(time.time())
        options = body.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise ApiError(400, "stream_options: give an object")
        name = "stream_options.include_usage"
        self._include_usage = bool(flag({name: (options or {}).get("include_usage")}, name, False))
        self._finals: dict[int, Final] = {}
        self._has_begun = [False] * len(self.tasks)
        self._places = [TokenPlaces(context.engine.vocab) for _ in self.tasks]

    def default_ping_s(self) -> int:
        """OpenAI's clients skip comments."""
        return self._context.options.sse_ping_interval

    def run(self, request: Request) -> dict[str, object]:
        """The whole answer: one object with all choices."""
        with self.running(request) as results:
            for item in results:
                if isinstance(item, Piece):
                    self._pieces[self._index[item.id]].append(item)
                    self._places[self._index[item.id]].add(item.probs)
                elif isinstance(item, Final):
                    self._finals[self._index[item.id]] = item
                elif isinstance(item, PromptProbs):
                    self.judged(self._index[item.id], item)
        choices = [self.choice(i, self._finals[i]) for i in range(len(self.tasks))]
        result = {
            **self._head(self.object_name),
            "choices": choices,
            "usage": self._usage(),
            "timings": timings_json(self._finals[0].timings),
        }
        if self.warnings:
            result["warnings"] = list(self.warnings)
        if self._context.options.verbose:
            native = [self.final(self._finals[i]) for i in range(len(self.tasks))]
            result["__verbose"] = native if len(native) > 1 else native[0]
        return result

    def events(self, item: PromptProbs | Piece | Progress | Final) -> Iterator[bytes]:
        """Chunks for one event of the engine."""
        index = self._index[item.id]
        if isinstance(item, PromptProbs):
            self.judged(index, item)
            return
        if not self._has_begun[index]:
            self._has_begun[index] = True
            yield from self.opening(index)
        if isinstance(item, Progress):
            yield event({**self._chunk([self.delta(index, None, None, None)]), "prompt_progress": progress_json(item)})
            return
        if isinstance(item, Piece):
            self._places[index].add(item.probs)
        if item.text:
            chunk = self._chunk([self.delta(index, item.text, self._logprobs(index, item.text), None)])
            if isinstance(item, Piece) and item.timings is not None:
                chunk["timings"] = timings_json(item.timings)
            yield event(chunk)
        if isinstance(item, Final):
            self._finals[index] = item
            yield event(self._last_chunk(index, item))

    def _last_chunk(self, index: int, final: Final) -> dict[str, object]:
        """Why a choice has ended; it has no text."""
        last = self._chunk([self.delta(index, None, self._last_logprobs(index), finish_reason(final))])
        last["timings"] = timings_json(final.timings)
        if self.warnings:
            last["warnings"] = list(self.warnings)
        if self._context.options.verbose:
            last["__verbose"] = self.final(final)
        return last

    def tail(self) -> Iterator[bytes]:
        """Usage if asked for, then `[DONE]`."""
        if self._include_usage:
            yield event({**self._chunk([]), "usage": self._usage(), "timings": timings_json(self._finals[0].timings)})
        yield DONE

    def error(self, error: ApiError) -> bytes:
        """An `error` event, after which the stream ends."""
        return named_event("error", error_body(error))

    def judged(self, index: int, item: PromptProbs) -> None:
        """How likely tokens of the prompt are, in dialects that ask for it."""

    def opening(self, index: int) -> Iterator[bytes]:
        """Chunks before the first text of a choice."""
        return iter(())

    def choice(self, index: int, final: Final) -> dict[str, object]:
        """One complete choice."""
        raise AssertionError("a dialect has its own choices")

    def delta(self, index: int, text: str | None, logprobs: object, finish: str | None) -> dict[str, object]:
        """One choice of a chunk."""
        raise AssertionError("a dialect has its own deltas")

    def logprobs(self, tokens: list[tuple[TokenProbs, int]]) -> object:
        """The `logprobs` object for these tokens and their places in the text."""
        raise AssertionError("a dialect has its own logprobs")

    def _last_logprobs(self, index: int) -> object:
        """The `logprobs` object of tokens behind all text (an end of text, where those count), else None."""
        rest = self._places[index].rest()
        return self.logprobs(rest) if rest else None

    def _logprobs(self, index: int, text: str) -> object:
        """The `logprobs` object for the next part of a choice's text, None unless it was asked for."""
        return self.logprobs(self._places[index].take(text)) if self.tasks[index].sampling.n_probs else None

    def _token(self, probs: TokenProbs, n_top: int) -> dict[str, object]:
        """A token as chats show it, with its likeliest rivals."""
        vocab = self._context.engine.vocab
        top = [{**token_json(id_, vocab), "logprob": logprob} for id_, logprob in probs.top_logprobs[:n_top]]
        return {**token_json(probs.token, vocab), "logprob": probs.logprob, "top_logprobs": top}

    def _text(self, index: int, final: Final) -> str:
        return "".join(piece.text for piece in self._pieces[index]) + final.text

    def _head(self, object_name: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": object_name,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": f"llama.cpp-{self._context.engine.info.llama_version}",
        }

    def _chunk(self, choices: list[dict[str, object]]) -> dict[str, object]:
        return {**self._head(self.chunk_name), "choices": choices}

    def _usage(self) -> dict[str, object]:
        finals = [self._finals[i] for i in sorted(self._finals)]
        n_answers = max(self.values["n_cmpl"], 1)
        n_prompt = sum(final.n_prompt for final in finals[::n_answers])
        n_predicted = sum(final.n_predicted for final in finals)
        n_cached = sum(final.timings.cache_n for final in finals[::n_answers])
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_predicted,
            "total_tokens": n_prompt + n_predicted,
            "prompt_tokens_details": {"cached_tokens": n_cached},
        }


class ChatCompletion(OpenAiCompletion):
    """One chat request."""

    object_name, chunk_name, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, context: Context, body: dict[str, object]) -> None:
        refuse_tool_choice(body)
        native = {
            name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs", "response_fields")
        }
        self._n_top = count(body, "top_logprobs", MAX_TOP_LOGPROBS)
        if flag(body, "logprobs", False):
            native["n_probs"] = max(self._n_top, 1)
        elif self._n_top:
            raise ApiError(400, "top_logprobs needs logprobs to be true")
        prompt = chat_prompt(context, body)
        super().__init__(context, body, {**native, "prompt": prompt.text}, [prompt.tokens])
        self.warnings = (*self.warnings, *prompt.warnings)
        if not body.get("logprobs"):
            self._n_top = self.tasks[0].sampling.n_probs

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
        text = self._text(index, final)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": self._logprobs(index, text),
            "finish_reason": finish_reason(final),
        }

    def logprobs(self, tokens: list[tuple[TokenProbs, int]]) -> object:
        """Chat form: a list of tokens with their alternatives."""
        return {"content": [self._token(item, self._n_top) for item, _ in tokens], "refusal": None}


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
        self._echo = bool(flag(body, "echo", False))
        if body.get("suffix"):
            for name in ("prompt", "suffix"):
                if not isinstance(body[name], str):
                    raise ApiError(400, f"{name}: {str(body[name])[:40]!r} is not a string, which a suffix needs")
            if self._echo and native.get("n_probs"):
                raise ApiError(400, "suffix: probabilities of the prompt (echo and logprobs) are for texts without one")
            prompts = [infill.prompt({"input_prefix": body["prompt"], "input_suffix": body["suffix"]}, body)]
        else:
            prompts, _ = read_prompts(
                body["prompt"], context.engine.vocab, not context.system_prompt.prompt, False, Files(context)
            )
        super().__init__(context, body, native, prompts)
        self._n_top = self.tasks[0].sampling.n_probs if body.get("logprobs") is None else n_probs
        self._echoed: list[EchoedPrompt] = []
        if self._echo and self.tasks[0].sampling.n_probs:
            self._judge_prompts()

    def _judge_prompts(self) -> None:
        """Have the prompts' tokens judged, too: then all tokens have their entries, and offsets count the prompt."""
        self.tasks = [replace(task, prompt_probs=self._n_top, cache_prompt=False) for task in self.tasks]
        vocab = self._context.engine.vocab
        self._echoed = [EchoedPrompt(task.prompt, self._prompt_text(i), vocab) for i, task in enumerate(self.tasks)]
        self._places = [TokenPlaces(vocab, len(prompt.text)) for prompt in self._echoed]

    def judged(self, index: int, item: PromptProbs) -> None:
        """The next tokens of a prompt."""
        self._echoed[index].add(item)

    def opening(self, index: int) -> Iterator[bytes]:
        """With `echo`, the prompt."""
        if self._echo:
            logprobs = self._echoed[index].logprobs(self._n_top) if self._echoed else None
            yield event(self._chunk([self.delta(index, self._prompt_text(index), logprobs, None)]))

    def delta(self, index: int, text: str | None, logprobs: object, finish: str | None) -> dict[str, object]:
        """One choice of a chunk."""
        return {"index": index, "text": text or "", "logprobs": logprobs, "finish_reason": finish}

    def choice(self, index: int, final: Final) -> dict[str, object]:
        """The text."""
        text = self._text(index, final)
        logprobs = self._logprobs(index, text)
        if self._echoed:
            logprobs = joined([self._echoed[index].logprobs(self._n_top), logprobs, self._last_logprobs(index)])
        return {
            "index": index,
            "text": self._prompt_text(index) + text if self._echo else text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(final),
        }

    def logprobs(self, tokens: list[tuple[TokenProbs, int]]) -> object:
        """Text form: parallel lists, with offsets into the text; the chat form's list beside them."""
        piece = self._context.engine.vocab.piece
        return {
            "tokens": [token_name(piece(item.token)) for item, _ in tokens],
            "token_logprobs": [item.logprob for item, _ in tokens],
            "top_logprobs": [
                {token_name(piece(id_)): logprob for id_, logprob in item.top_logprobs[: self._n_top]}
                for item, _ in tokens
            ],
            "text_offset": [place for _, place in tokens],
            "content": [self._token(item, self._n_top) for item, _ in tokens],
        }

    def _prompt_text(self, index: int) -> str:
        prompt = self.prompt[index // self.values["n_cmpl"]] if self._is_list_of_strings() else self.prompt
        if isinstance(prompt, str):
            return prompt
        vocab = self._context.engine.vocab
        tokens = [token for token in self.tasks[index].prompt if not vocab.is_control(token)]
        return vocab.detokenize(tokens).decode("utf-8", "replace")

    def _is_list_of_strings(self) -> bool:
        return isinstance(self.prompt, list) and bool(self.prompt) and all(isinstance(x, str) for x in self.prompt)


class TokenPlaces:
    """Which tokens a text is made of, and at which character each begins.

    Tokens are known before their text is: that of half a character or of what may become a stop word is held back, and
    a stop word's never comes. Control tokens, such as the one that ends a text, are no part of it; they are kept for
    `rest` where the text goes on behind an echoed prompt of `n_echoed` characters, since then each token counts.
    """

    def __init__(self, vocab: Vocab, n_echoed: int | None = None) -> None:
        self._vocab = vocab
        self._keeps_control = n_echoed is not None
        self._first = n_echoed or 0
        self._control: list[tuple[TokenProbs, int]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: list[tuple[TokenProbs, int]] = []
        self._n_tokens = self._n_text = 0  # characters: of all tokens, and of the text taken so far

    def add(self, probs: Iterable[TokenProbs]) -> None:
        """The next tokens."""
        for item in probs:
            if not self._vocab.is_control(item.token):
                self._waiting.append((item, self._n_tokens))
                self._n_tokens += len(self._decoder.decode(self._vocab.piece(item.token)))
            elif self._keeps_control:
                self._control.append((item, self._first + self._n_tokens))

    def take(self, text: str) -> list[tuple[TokenProbs, int]]:
        """The tokens that begin in the next part of the text, with their places."""
        self._n_text += len(text)
        n = sum(place < self._n_text for _, place in self._waiting)
        taken, self._waiting = self._waiting[:n], self._waiting[n:]
        return [(item, self._first + place) for item, place in taken]

    def rest(self) -> list[tuple[TokenProbs, int]]:
        """Tokens that are no text, at the end."""
        rest, self._control = self._control, []
        return rest


def model_name(body: Mapping[str, object], context: Context) -> str:
    """How answers name the model: the alias if the server has one (with several the one asked for), else whatever the
    request says."""
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise ApiError(400, f"model: {str(name)[:40]!r} is not a string")
    aliases = [alias.strip() for alias in (context.options.alias or "").split(",") if alias.strip()]
    if aliases:
        return name if name in aliases else aliases[0]
    return name or context.model_name


def small_seed(seed: object) -> object:
    """OpenAI's seeds have 64 bits, ours 32; what isn't a seed at all is left to the ordinary check."""
    if type(seed) is int and abs(seed) < 2**63 and not -1 <= seed < 2**32:
        return seed % 2**32
    return seed


def finish_reason(final: Final) -> str:
    """`length` where a limit ended the text, else `stop`."""
    return "length" if final.stop == STOP_LIMIT else "stop"


def count(body: Mapping[str, object], name: str, most: int) -> int:
    """A count from 0 to `most`; null and false are 0."""
    value = body.get(name)
    if value is None or value is False:
        return 0
    if type(value) is not int or not 0 <= value <= most:
        raise ApiError(400, f"{name}: {str(value)[:40]!r} is not a number from 0 to {most}")
    return value


def refuse_tool_choice(body: Mapping[str, object]) -> None:
    """Tools reach the template, but their calls aren't enforced or parsed yet: what can't be kept is refused."""
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise ApiError(400, "tool_choice: this server can't enforce tool calls yet; leave it out or say auto or none")
