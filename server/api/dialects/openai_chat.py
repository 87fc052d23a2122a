"""The dialect of POST /v1/chat/completions. Runs on the threads that `server/api/generation.py` names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from server.api.dialects.dialect import Answer, Dialect
from server.api.dialects.openai import OpenAiReply, Part, make_likely_json, make_waiting
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import make_chat_prompt, read_conversation
from server.api.request.constraints import read_wanted
from server.api.request.fields import CHAT
from server.api.request.text_request import Incoming, TextRequest, make_text_request
from server.chat.output.events import Reasoning, Text, ToolCall
from server.engine.seam.task import PromptProbs, TokenProbs
from server.errors import ApiError


def read_chat(incoming: Incoming) -> TextRequest:
    model, body = incoming.model, incoming.body
    values, unread = CHAT.read(body, model.defaults), CHAT.list_unread(body)
    if values["logprobs"]:
        values["n_probs"] = max(values["top_logprobs"], 1)
    elif values["top_logprobs"]:
        raise ApiError(400, "top_logprobs needs logprobs to be true")
    chat = make_chat_prompt(model, read_conversation(model, body, incoming.files), incoming.files)
    return make_text_request(
        incoming,
        values,
        [chat.prompt],
        chat.text,
        default_ping_s=incoming.context.options.sse_ping_interval,
        warnings=(*chat.warnings, *unread),
        form=answer_form(model, chat, read_wanted(body, model.defaults), parses_calls=values["parse_tool_calls"]),
    )


class ChatForm:
    object_name, chunk_name, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"
    n_echoed: list[int] | None = None

    def __init__(self, asked: TextRequest) -> None:
        values = asked.values
        self._is_old = bool(values["functions"])  # requests with `functions` are answered with `function_call`
        self.calls_finish = "function_call" if self._is_old else "tool_calls"
        self._n_top = values["top_logprobs"] if values["logprobs"] else values["n_probs"]
        self._vocab = asked.model.vocab

    def make_opening(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def make_delta(self, index: int, part: Part | None, logprobs: object, finish: str | None) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if isinstance(part, Text):
            delta = {"content": part.text}
        elif isinstance(part, Reasoning):
            delta = {"reasoning_content": part.text}
        elif part is not None:
            delta = self._call_delta(part)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _call_delta(self, part: ToolCall) -> dict[str, Any]:
        function = {**({"name": part.name} if part.name else {}), "arguments": part.arguments}
        if self._is_old:
            return {"function_call": function}
        head = {"id": part.id, "type": "function"} if part.name else {}
        return {"tool_calls": [{"index": part.index, **head, "function": function}]}

    def make_choice(self, index: int, answer: Answer, logprobs: object, rest: object, finish: str) -> dict[str, Any]:
        """The message's content is null if it has calls and no text."""
        text, reasoning = answer.text, answer.reasoning
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not answer.calls else None}
        if reasoning:
            message["reasoning_content"] = reasoning
        functions = [{"name": call.name, "arguments": call.arguments} for call in answer.calls]
        if functions and self._is_old:
            message["function_call"] = functions[0]
        elif functions:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": function}
                for call, function in zip(answer.calls, functions)
            ]
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def make_logprobs(self, tokens: Sequence[tuple[TokenProbs, int]]) -> object:
        return {"content": [make_likely_json(item, self._n_top, self._vocab) for item, _ in tokens], "refusal": None}

    def note_judged(self, index: int, part: PromptProbs) -> None:
        """Never called: chats don't echo prompts."""


DIALECT = Dialect(
    read_chat,
    partial(OpenAiReply, make_form=ChatForm),
    waiting=make_waiting(ChatForm.id_prefix, ChatForm.chunk_name, {"delta": {}}),
)
