"""POST /api/generate of Ollama's dialect: one prompt in, text out. Connection thread.

The prompt is the user's message of a chat, unless the request has a template of its own (`template`), has written all
of it (`raw`), or wants what belongs before a `suffix`. Of the language of Ollama's templates only what such a template
needs is known: the three variables, and conditions on them. The rest, which is about lists of messages, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from server.api.dialects.dialect import Dialect
from server.api.dialects.infill import infill_prompt
from server.api.dialects.ollama import (
    STREAM_TYPE,
    Message,
    OllamaReply,
    conversation,
    error_json,
    loaded,
    read_format,
    read_values,
    with_images,
)
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import chat_prompt
from server.api.request.constraints import AnswerForm, constraint_of
from server.api.request.fields import OLLAMA_GENERATE, warning_header
from server.api.request.media import Files
from server.api.request.prompt import Prompt, token_id, tokenize_all
from server.api.request.text_request import Incoming, TextRequest, text_request
from server.chat.segments import Segments, plain_text
from server.errors import ApiError
from server.models.model import Model
from server.records import replace
from server.web.message import Response

ACTION = re.compile(r"\{\{([^{}]{0,200})\}\}")
MAX_TEMPLATE = 1 << 16  # characters
MAX_DEPTH = 16


def read_generate(incoming: Incoming) -> TextRequest | Response:
    """A prompt; without one, that the model be loaded."""
    model, body, files = incoming.model, incoming.body, incoming.files
    own = OLLAMA_GENERATE.read(body)
    if not own["prompt"] and not own["suffix"]:
        return loaded(model, own, OLLAMA_GENERATE.unread(body), generate_part)
    if own["raw"] and (own["template"] or own["system"] or own["context"]):
        raise ApiError(400, "raw: a prompt that is the whole text has no template, system or context")
    values, warnings = read_values(model, own, OLLAMA_GENERATE.unread(body))
    wanted = read_format(own["format"], model.defaults)
    if own["suffix"] or own["raw"] or own["template"]:
        prompt, shown = written_prompt(model, own, values["n_predict"], files)
        form = AnswerForm(constraint_of(wanted))
    else:
        chat = chat_prompt(model, conversation(model, turns(own, files), own["think"]), files)
        prompt, shown, warnings = chat.prompt, chat.text, (*chat.warnings, *warnings)
        form = answer_form(model, chat, wanted)
    return text_request(
        incoming,
        values,
        [behind(own["context"], prompt, model)],
        shown,
        default_ping_s=incoming.context.options.sse_ping_interval,
        warnings=warnings,
        form=form,
    )


def turns(own: Mapping[str, Any], files: Files) -> list[Message]:
    """The request as messages."""
    user = {"role": "user", "content": with_images(own["prompt"], own["images"], "", files)}
    return [*([{"role": "system", "content": own["system"]}] if own["system"] else []), user]


def written_prompt(model: Model, own: Mapping[str, Any], n_predict: int, files: Files) -> tuple[Prompt, str]:
    """The prompt of a request that leaves the model's template alone, and its text."""
    if own["suffix"]:
        if own["images"]:
            raise ApiError(400, "images don't go with a suffix")
        return infill_prompt(model, own["prompt"], own["suffix"], n_predict), own["prompt"]
    text = plain_text(with_images(own["prompt"], own["images"], "", files))
    segments = [(text, False)]
    if not own["raw"]:
        segments = fill_template(own["template"], {".System": own["system"], ".Prompt": text, ".Response": ""})
    shown = "".join(part for part, _ in segments)
    model.vocab.measure(shown)
    prompt = tokenize_all(model.vocab, segments, model.info.bos_token, not model.system_prompt.prompt, files)
    return prompt, files.shown(shown)


def fill_template(source: str, values: Mapping[str, str]) -> Segments:
    """A template of Ollama's with these variables, up to the place of the answer. ApiError 400 for what it may not
    have."""
    if len(source) > MAX_TEMPLATE:
        raise ApiError(400, f"template: {len(source)} characters are too many, at most {MAX_TEMPLATE} are allowed")
    segments: Segments = []
    conditions: list[bool] = []
    trims_left = False
    for i, part in enumerate(ACTION.split(source)):
        if not i % 2:
            text = part.lstrip() if trims_left else part
            if all(conditions):
                segments.append((text, False))
            continue
        trims_left = part.endswith("-")
        if part.startswith("-") and segments and all(conditions):
            segments[-1] = (segments[-1][0].rstrip(), False) if not segments[-1][1] else segments[-1]
        word, _, name = part.removeprefix("-").removesuffix("-").strip().partition(" ")
        if word == "if" and name.strip() in values and len(conditions) < MAX_DEPTH:
            conditions.append(bool(values[name.strip()]))
        elif part and word in ("else", "end") and not name and conditions:
            last = conditions.pop()
            conditions += [not last] if word == "else" else []
        elif word not in values or name:
            raise ApiError(
                400,
                f"template: {part.strip()[:60]!r} can't be read; known are {', '.join(values)}, and if, else and end",
            )
        elif all(conditions):
            if word == ".Response":
                return segments
            segments.append((values[word], True))
    if conditions:
        raise ApiError(400, "template: an if has no end")
    return segments


def behind(context: object, prompt: Prompt, model: Model) -> Prompt:
    """A prompt behind the tokens of an earlier answer."""
    if not context:
        return prompt
    if not isinstance(context, list):
        raise ApiError(400, "context: give the list of numbers of an earlier answer")
    earlier = tuple(token_id("context", token, model.vocab) for token in context)
    tokens = prompt.tokens[1:] if prompt.tokens[:1] == (model.vocab.bos,) else prompt.tokens
    return replace(prompt, tokens=(*earlier, *tokens))


def generate_part(text: str, thinking: str, calls: list[Message]) -> Message:
    """A line has a text, and no calls."""
    return {"response": text, **({"thinking": thinking} if thinking else {})}


DIALECT = Dialect(read_generate, partial(OllamaReply, make_part=generate_part), error_json, warning_header, STREAM_TYPE)
