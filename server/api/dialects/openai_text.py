"""The dialect of POST /v1/completions: continues prompts. Runs on the threads that `server/api/generation.py` names.

With `suffix` the model fills in the text between prompt and suffix. With `echo` the answer begins with the prompt. If
the answer's tokens have logprobs, the echoed prompt's have them, too, and offsets count from the start of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from server.api.dialects.dialect import Answer, Dialect
from server.api.dialects.echo import EchoedPrompt, format_token_name, join_lists, make_top_logprobs
from server.api.dialects.infill import make_infill_prompt
from server.api.dialects.openai import OpenAiReply, Part, make_likely_json, make_waiting
from server.api.request.fields import TEXT
from server.api.request.prompt import Prompt, read_prompts, strip_files
from server.api.request.text_request import Incoming, TextRequest, make_text_request
from server.chat.output.events import Text
from server.engine.seam.task import PromptProbs, TokenProbs
from server.errors import ApiError
from server.models.model import Model


def read_text(incoming: Incoming) -> TextRequest:
    """Read one or more prompts; choices are in their order."""
    model, body = incoming.model, incoming.body
    values, unread = TEXT.read(body, model.defaults), TEXT.list_unread(body)
    if values["prompt"] is None:
        raise ApiError(400, "prompt: this field is required")
    if values["logprobs"] is not None:
        values["n_probs"] = max(values["logprobs"], 1)
    is_judged = values["echo"] and values["n_probs"] > 0
    if values["suffix"]:
        prompts = [make_prompt_between(model, values, is_judged)]
    else:
        require_room = partial(model.require_room, values["n_cmpl"])
        prompts, _ = read_prompts(
            values["prompt"], model.vocab, not model.system_prompt.prompt, False, incoming.files, require_room
        )
    return make_text_request(
        incoming,
        values,
        prompts,
        strip_files(values["prompt"]),
        default_ping_s=incoming.context.options.sse_ping_interval,
        prompt_probs=read_n_top(values) if is_judged else -1,
        warnings=unread,
    )


def make_prompt_between(model: Model, values: Mapping[str, Any], is_judged: bool) -> Prompt:
    if not isinstance(values["prompt"], str):
        raise ApiError(400, f"prompt: {str(values['prompt'])[:40]!r} is not a string; `suffix` needs one")
    if is_judged:
        raise ApiError(400, "suffix: it can't be used together with both echo and logprobs")
    return make_infill_prompt(model, values["prompt"], values["suffix"], values["n_predict"])


def read_n_top(values: Mapping[str, Any]) -> int:
    return values["n_probs"] if values["logprobs"] is None else values["logprobs"]


class TextForm:
    object_name = chunk_name = "text_completion"
    id_prefix = "cmpl-"
    calls_finish = "stop"

    def __init__(self, asked: TextRequest) -> None:
        self._vocab = asked.model.vocab
        self._n_top = read_n_top(asked.values)
        self._prompts = list_prompt_texts(asked) if asked.values["echo"] else None
        self._judged: list[EchoedPrompt] = []
        self.n_echoed = None
        if asked.tasks[0].prompt_probs >= 0:
            pairs = zip(asked.tasks, self._prompts or ())
            self._judged = [EchoedPrompt(task.prompt, text, self._vocab) for task, text in pairs]
            self.n_echoed = [len(text) for text in self._prompts]

    def make_opening(self, index: int) -> dict[str, Any] | None:
        """The choice with the prompt; None without `echo`."""
        if self._prompts is None:
            return None
        logprobs = self._judged[index].make_logprobs(self._n_top) if self._judged else None
        return self.make_delta(index, Text(self._prompts[index]), logprobs, None)

    def make_delta(self, index: int, part: Part | None, logprobs: object, finish: str | None) -> dict[str, Any]:
        text = part.text if isinstance(part, Text) else ""
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def make_choice(self, index: int, answer: Answer, logprobs: Any, rest: Any, finish: str) -> dict[str, Any]:
        text = answer.text
        if self._judged:
            logprobs = join_lists([self._judged[index].make_logprobs(self._n_top), logprobs, rest])
        return {
            "index": index,
            "text": text if self._prompts is None else self._prompts[index] + text,
            "logprobs": logprobs,
            "finish_reason": finish,
        }

    def make_logprobs(self, tokens: Sequence[tuple[TokenProbs, int]]) -> object:
        """OpenAI's parallel lists with offsets into the text; `content` is the chat dialect's list."""
        piece = self._vocab.piece
        return {
            "tokens": [format_token_name(piece(item.token)) for item, _ in tokens],
            "token_logprobs": [item.logprob for item, _ in tokens],
            "top_logprobs": [make_top_logprobs(item, self._n_top, self._vocab) for item, _ in tokens],
            "text_offset": [place for _, place in tokens],
            "content": [make_likely_json(item, self._n_top, self._vocab) for item, _ in tokens],
        }

    def note_judged(self, index: int, part: PromptProbs) -> None:
        self._judged[index].add(part)


def list_prompt_texts(asked: TextRequest) -> list[str]:
    """What `echo` writes before each choice: the prompts as they came if all are strings, else their tokens' text."""
    given: list[Any] = asked.shown if isinstance(asked.shown, list) else [asked.shown]
    if all(isinstance(prompt, str) for prompt in given) and len(given) * asked.n == len(asked.tasks):
        return [prompt for prompt in given for _ in range(asked.n)]
    vocab = asked.model.vocab
    visible = ([token for token in task.prompt if not vocab.is_control(token)] for task in asked.tasks)
    return [vocab.detokenize(tokens).decode("utf-8", "replace") for tokens in visible]


DIALECT = Dialect(
    read_text,
    partial(OpenAiReply, make_form=TextForm),
    waiting=make_waiting(TextForm.id_prefix, TextForm.chunk_name, {"text": ""}),
)
