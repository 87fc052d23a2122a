"""Chooses the chat template: the one from the options, else the model's, else ChatML.

Runs on any thread; may read a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.chat.jinja import TemplateError
from server.chat.template import CHATML, BuiltinTemplate, ChatTemplate
from server.errors import ApiError
from server.log import get_logger

META_KEY = "tokenizer.chat_template"
TOOLS_META_KEY = META_KEY + ".tool_use"

log = get_logger("chat")


def choose_template(options: Any, info: Any, vocab: Any) -> ChatTemplate | BuiltinTemplate:
    """The template from `--chat-template-file`, `--chat-template` or the model's metadata (perhaps with a second one
    for conversations with tools), else ChatML.

    ApiError 500 if the file can't be read, the template can't be compiled, or llama.cpp has no such template.
    """
    source, tool_source = options.chat_template or "", ""
    if options.chat_template_file:
        try:
            source = Path(options.chat_template_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ApiError(500, f"--chat-template-file {options.chat_template_file} can't be read: {error}") from None
    if not source:
        source, tool_source = info.meta.get(META_KEY, ""), info.meta.get(TOOLS_META_KEY, "")
        source = source or tool_source
    if not source:
        log.warning("this model has no chat template: using ChatML; choose another with --chat-template")
        source = "chatml"
    if source == "chatml" and options.jinja:
        source = CHATML
    if source in vocab.builtin_templates or not options.jinja:
        return make_builtin(source, vocab)
    if "{" not in source:
        raise ApiError(
            500,
            f"--chat-template: '{source[:40]}' is neither a Jinja template nor the name of a template built into "
            f"llama.cpp; the names are {', '.join(vocab.builtin_templates)}",
        )
    try:
        return ChatTemplate(source, info.bos_token, info.eos_token, tool_source)
    except TemplateError as error:
        raise ApiError(500, f"the chat template can't be compiled: {error}") from None


def make_builtin(source: str, vocab: Any) -> BuiltinTemplate:
    """The template built into libllama that `source` names or resembles. ApiError 500 if it can't render a message."""
    template = BuiltinTemplate(source, lambda messages, add: vocab.apply_template(source, messages, add))
    try:
        template.render([{"role": "user", "content": "x"}], True, {})
    except ApiError:
        raise ApiError(
            500,
            "--no-jinja: llama.cpp has no built-in template like this one; remove --no-jinja, or name a built-in "
            "template with --chat-template",
        ) from None
    return template
