"""POST /v1/attribute: finds the parts of a prompt that a finished answer rests on. Runs on a connection thread."""

from __future__ import annotations

from typing import Any

from server.api.context import Context
from server.api.request.chat.messages import make_chat_prompt, read_conversation
from server.api.request.fields import ATTRIBUTE
from server.api.request.media import Files
from server.api.request.prompt import tokenize_prompt
from server.engine.seam.task import Task
from server.errors import ApiError
from server.evidence.attribution import attribute, read_wanted
from server.evidence.spans import texts_of
from server.web.message import Request, Response


class AttributeHandler:
    """`handle` attributes an answer that was written earlier, by this server or another."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def handle(self, request: Request) -> Response:
        body = request.read_json_object()
        model = self._context.models.get(body.get("model"), request)
        model.require_generative()
        values = ATTRIBUTE.read(body)
        if not values["answer"]:
            raise ApiError(400, "answer: the text of the answer is required")
        said: dict[str, Any] = {name: values[name] for name in ("spans", "method", "part")}
        wanted = read_wanted(said)
        if values["messages"] is not None:
            files = Files(model, request)
            prompt = make_chat_prompt(model, read_conversation(model, body, files), files).prompt
            task = Task(-1, prompt.tokens, media=prompt.media, owner=request.owner)
        elif isinstance(values["prompt"], str):
            task = Task(-1, tokenize_prompt(values["prompt"], model.vocab), owner=request.owner)
        else:
            raise ApiError(400, "prompt: a text is required here, or else `messages`, a chat")
        answer = model.vocab.tokenize(values["answer"], False, False)
        found = attribute(model, request, task, answer, texts_of(body), wanted)  # type: ignore[arg-type]
        return ATTRIBUTE.reply({"attribution": found}, body)
