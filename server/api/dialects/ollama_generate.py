"""POST /api/generate in Ollama's dialect: text for one prompt. Runs on connection threads.

The prompt becomes the user's message of a chat, except in three cases: the request has its own `template`, sends the
complete text (`raw`), or wants the text before a `suffix`. Of Ollama's template language, only `.System`,
`.Prompt`, `.Response` and conditions on them are supported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from server.api.dialects.dialect import Dialect
from server.api.dialects.infill import make_infill_prompt
from server.api.dialects.ollama import (
    STREAM_TYPE,
    Message,
    OllamaReply,
    answer_load,
    make_conversation,
    make_error_json,
    read_format,
    read_values,
    with_images,
)
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import make_chat_prompt
from server.api.request.constraints import AnswerForm, constraint_of
from server.api.request.fields import OLLAMA_GENERATE, make_warning_header
from server.api.request.media import Files
from server.api.request.prompt import Prompt, check_token_id, tokenize_all
from server.api.request.text_request import Incoming, TextRequest, make_text_request
from server.chat.segments import Segments, read_plain_text
from server.errors import ApiError
from server.models.model import Model
from server.records import replace
from server.web.message import Response

ACTION = re.compile(r"\{\{([^{}]{0,200})\}\}")
MAX_TEMPLATE = 1 << 16  # characters of a template
MAX_DEPTH = 16  # conditions within each other


def read_generate(incoming: Incoming) -> TextRequest | Response:
    """Read a request. Without prompt and suffix, it only loads or unloads the model."""
    model, body, files = incoming.model, incoming.body, incoming.files
    own = OLLAMA_GENERATE.read(body)
    if not own["prompt"] and not own["suffix"]:
        return answer_load(model, own, OLLAMA_GENERATE.list_unread(body), generate_part)
    if own["raw"] and (own["template"] or own["system"] or own["context"]):
        raise ApiError(400, "raw: it can't be used together with template, system or context")
    values, warnings = read_values(model, own, OLLAMA_GENERATE.list_unread(body))
    wanted = read_format(own["format"], model.defaults)
    if own["suffix"] or own["raw"] or own["template"]:
        prompt, shown = make_written_prompt(model, own, values["n_predict"], files)
        form = AnswerForm(constraint_of(wanted))
    else:
        chat = make_chat_prompt(model, make_conversation(model, make_turns(own, files), own["think"]), files)
        prompt, shown, warnings = chat.prompt, chat.text, (*chat.warnings, *warnings)
        form = answer_form(model, chat, wanted)
    return make_text_request(
        incoming,
        values,
        [put_behind(own["context"], prompt, model)],
        shown,
        default_ping_s=incoming.context.options.sse_ping_interval,
        warnings=warnings,
        form=form,
    )


def make_turns(own: Mapping[str, Any], files: Files) -> list[Message]:
    user = {"role": "user", "content": with_images(own["prompt"], own["images"], "", files)}
    return [*([{"role": "system", "content": own["system"]}] if own["system"] else []), user]


def make_written_prompt(model: Model, own: Mapping[str, Any], n_predict: int, files: Files) -> tuple[Prompt, str]:
    """The prompt of a request without the model's chat template, and its text without `suffix`."""
    if own["suffix"]:
        if own["images"]:
            raise ApiError(400, "images can't be used together with a suffix")
        return make_infill_prompt(model, own["prompt"], own["suffix"], n_predict), own["prompt"]
    text = read_plain_text(with_images(own["prompt"], own["images"], "", files))
    segments = [(text, False)]
    if not own["raw"]:
        segments = fill_template(own["template"], {".System": own["system"], ".Prompt": text, ".Response": ""})
    shown = "".join(part for part, _ in segments)
    model.vocab.measure(shown)
    prompt = tokenize_all(model.vocab, segments, model.info.bos_token, not model.system_prompt.prompt, files)
    return prompt, files.replace_markers(shown)


def fill_template(source: str, values: Mapping[str, str]) -> Segments:
    """Fill a template of Ollama's with these variables, up to where the answer begins. ApiError 400."""
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
                400, f"template: {part.strip()[:60]!r} isn't supported; use {', '.join(values)}, if, else and end"
            )
        elif all(conditions):
            if word == ".Response":
                return segments
            segments.append((values[word], True))
    if conditions:
        raise ApiError(400, "template: an if without an end")
    return segments


def put_behind(context: object, prompt: Prompt, model: Model) -> Prompt:
    """The prompt behind the tokens in `context`, which an earlier answer returned. ApiError 400."""
    if not context:
        return prompt
    if not isinstance(context, list):
        raise ApiError(400, "context: the list of numbers from an earlier answer is required")
    earlier = tuple(check_token_id("context", token, model.vocab) for token in context)
    tokens = prompt.tokens[1:] if prompt.tokens[:1] == (model.vocab.bos,) else prompt.tokens
    return replace(prompt, tokens=(*earlier, *tokens))


def generate_part(text: str, thinking: str, calls: list[Message]) -> Message:
    return {"response": text, **({"thinking": thinking} if thinking else {})}


DIALECT = Dialect(
    read_generate, partial(OllamaReply, make_part=generate_part), make_error_json, make_warning_header, STREAM_TYPE
)
