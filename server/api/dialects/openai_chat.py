"""The dialect of POST /v1/chat/completions: messages in, a message out. Connection thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from server.api.dialects.dialect import Dialect
from server.api.dialects.openai import OpenAiReply, likely_json
from server.api.request.chat.messages import chat_prompt
from server.api.request.fields import CHAT
from server.api.request.text_request import Incoming, TextRequest, text_request
from server.engine.seam.task import PromptProbs, TokenProbs
from server.errors import ApiError


def read_chat(incoming: Incoming) -> TextRequest:
    """A conversation, whose next message is wanted."""
    model, body = incoming.model, incoming.body
    refuse_tool_choice(body)
    values, unread = CHAT.read(body, model.defaults), CHAT.unread(body)
    if values["logprobs"]:
        values["n_probs"] = max(values["top_logprobs"], 1)
    elif values["top_logprobs"]:
        raise ApiError(400, "top_logprobs needs logprobs to be true")
    chat = chat_prompt(model, body, incoming.files)
    return text_request(
        incoming,
        values,
        [chat.prompt],
        chat.text,
        default_ping_s=incoming.context.options.sse_ping_interval,
        warnings=(*chat.warnings, *unread),
    )


def refuse_tool_choice(body: Mapping[str, Any]) -> None:
    """Tools reach the template, but their calls aren't enforced or parsed yet: what can't be kept is refused."""
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise ApiError(400, "tool_choice: this server can't enforce tool calls yet; leave it out or say auto or none")


class ChatForm:
    """Choices with a message."""

    object_name, chunk_name, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"
    n_echoed: list[int] | None = None

    def __init__(self, asked: TextRequest) -> None:
        values = asked.values
        self._n_top = values["top_logprobs"] if values["logprobs"] else values["n_probs"]
        self._vocab = asked.model.vocab

    def opening(self, index: int) -> dict[str, Any]:
        """The role."""
        delta = {"role": "assistant", "content": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, text: str | None, logprobs: object, finish: str | None) -> dict[str, Any]:
        """The next part of the message."""
        delta = {} if text is None else {"content": text}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def choice(self, index: int, text: str, logprobs: object, rest: object, finish: str) -> dict[str, Any]:
        """The message."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": logprobs,
            "finish_reason": finish,
        }

    def logprobs(self, tokens: Sequence[tuple[TokenProbs, int]]) -> object:
        """A list of tokens with their alternatives."""
        return {"content": [likely_json(item, self._n_top, self._vocab) for item, _ in tokens], "refusal": None}

    def judged(self, index: int, part: PromptProbs) -> None:
        """Chats don't ask for that."""


DIALECT = Dialect(read_chat, partial(OpenAiReply, make_form=ChatForm))
