"""Chat templates: turn messages into the text of a prompt.

Pure, any thread. `ChatTemplate` renders Jinja. `BuiltinTemplate` uses a template built into libllama (named by
`--chat-template`, or with `--no-jinja`). Both return segments (text, whether it came from a user), so that the
tokenizer makes no special tokens of users' text. Not taken: returning one string.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from server.chat.adapt import adapt, name_results, rename_developer
from server.chat.find_format import find_format
from server.chat.jinja import Template, TemplateError, mark
from server.chat.output.formats import GENERIC, CallFormat, Tags
from server.chat.plain_tools import simplify_tools
from server.chat.probe import Probe
from server.chat.segments import Segments, read_plain_text
from server.chat.spell import show_tools, spell_calls, spell_results
from server.chat.variables import find_variables, is_read
from server.records import replace

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED_KEY = "role"  # templates make special tokens of roles; handlers have checked roles' characters
MARKED_VARIABLES = ("tools", "xml_tools", "functions", "documents")
Message = Mapping[str, Any]
WHITESPACE = " \t\n\v\f\r"  # libllama's templates trim these characters


class ChatTemplate:
    """A Jinja template with the model's special tokens. Raises `TemplateSyntaxError` if it can't be compiled.

    `tool_source` is a second template for conversations with tools, "" if there is none.
    """

    def __init__(self, source: str, bos_token: str, eos_token: str, tool_source: str = "") -> None:
        self.source = source
        self.bos_token = bos_token
        self._for_tools = ChatTemplate(tool_source, bos_token, eos_token) if tool_source else None
        self._template = Template(source)
        self._base = {"bos_token": bos_token, "eos_token": eos_token}
        self._probe = Probe(self._template, lambda tools: self._make_variables({"tools": tools} if tools else {}))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool, extra: Mapping[str, Any]) -> Segments:
        """The prompt for `messages` in segments. `extra` has further variables (tools, enable_thinking, ...).

        Raises `TemplateError` with the position in the template and, if known, the index of the message.
        """
        if self._for_tools is not None and (extra.get("tools") or has_calls(messages)):
            return self._for_tools.render(messages, add_generation_prompt, extra)
        try:
            return self._render(messages, add_generation_prompt, extra)
        except TemplateError:
            tools = extra.get("tools")
            simple = simplify_tools(tools) if tools else tools
            if simple != tools:
                with suppress(TemplateError):
                    return self._render(messages, add_generation_prompt, {**extra, "tools": simple})
            raise

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, extra: Mapping[str, Any]) -> Segments:
        adapted = adapt(self._spell(messages, extra.get("tools") or ()), self._probe)
        context = {
            **self._make_variables(extra),
            "messages": [_mark_message(message) for message in adapted],
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render_segments(context)
        except TemplateError as error:
            if len(adapted) != len(messages):
                error.message_index = None  # it was an index of the adapted messages, not the client's
            raise

    def _spell(self, messages: Sequence[Message], tools: Sequence[Message]) -> Sequence[Message]:
        """Turn tools, calls and results that the template doesn't render into text."""
        if tools and not self._probe.reads_tools:
            messages = show_tools(messages, tools, self.call_format)
        if has_calls(messages) and self._probe.call_form is None:
            messages = spell_calls(name_results(messages), self.call_format)
        if any(message.get("role") == "tool" for message in messages) and not self._probe.reads_results:
            messages = spell_results(messages)
        return messages

    def _make_variables(self, given: Mapping[str, Any]) -> dict[str, Any]:
        variables = find_variables(self._template.names, given, self._probe.find_effort)
        marked = {name: mark(variables[name]) for name in MARKED_VARIABLES if name in variables}
        return {**self._base, **variables, **marked}

    @cached_property
    def call_format(self) -> CallFormat:
        """The format of the model's calls and reasoning."""
        return self._for_tools.call_format if self._for_tools is not None else find_format(self._probe)

    def find_reasoning_tags(self, prompt: str, prefill: str = "") -> Tags | None:
        """The tags of the reasoning in an answer that begins after `prompt` and `prefill`. `is_opened` is true if these
        have opened the reasoning already. None if the model has no reasoning."""
        return find_reasoning_tags(self.call_format, prompt, prefill)

    @cached_property
    def capabilities(self) -> dict[str, bool]:
        """What the template and its format of calls support."""
        probe, form = (self._for_tools or self)._probe, self.call_format
        call_form = probe.call_form
        return {
            "supports_system_role": self._probe.reads_system,
            "supports_string_content": not self._probe.wants_parts,
            "supports_typed_content": self._probe.can_read_parts("user"),
            "supports_tools": probe.reads_tools,
            "supports_tool_calls": call_form is not None or form.is_native,
            "supports_parallel_tool_calls": form.can_be_many,
            "supports_object_arguments": call_form is not None and call_form[1],
            "supports_thinking": form.reasoning is not None,
            "supports_preserve_reasoning": bool(self._probe.reasoning_key),
        }

    def list_unread(self, names: Iterable[str]) -> tuple[str, ...]:
        """The variables, by their names in requests, that neither this template nor the one for tools reads."""
        mine = tuple(name for name in names if not is_read(name, self._template.names))
        return self._for_tools.list_unread(mine) if self._for_tools is not None else mine


class BuiltinTemplate:
    """A template built into libllama, called by `apply(messages, add_generation_prompt) -> text`.

    It reads only roles and plain text. To find users' text in the result, each message's text is replaced by a random
    key before rendering. White space around the text stays, since some templates trim it.
    """

    def __init__(self, source: str, apply: Callable[[Sequence[tuple[str, str]], bool], str]) -> None:
        self.source = source
        self.bos_token = ""
        self._apply = apply
        self.call_format = GENERIC
        self.capabilities = {"supports_system_role": True, "supports_string_content": True}

    def render(self, messages: Sequence[Message], add_generation_prompt: bool, extra: Mapping[str, Any]) -> Segments:
        """See `ChatTemplate.render`. Only the tools of `extra` are used."""
        if extra.get("tools"):
            messages = show_tools(messages, extra["tools"], self.call_format)
        messages = spell_results(spell_calls(messages, self.call_format))
        key = secrets.token_hex(8)
        pairs: list[tuple[str, str]] = []
        texts: list[str] = []
        for message in rename_developer(messages, None):
            content = read_plain_text(message.get("content"))
            text = content.strip(WHITESPACE)
            pairs.append((str(message["role"]), content.replace(text, f"{key}-{len(texts)}-", 1) if text else content))
            texts.append(text)
        parts = re.split(f"{key}-([0-9]+)-", self._apply(pairs, add_generation_prompt))
        segments = [(texts[int(part)], True) if i % 2 else (part, False) for i, part in enumerate(parts)]
        return [segment for segment in segments if segment[0]]

    def find_reasoning_tags(self, prompt: str, prefill: str = "") -> Tags | None:
        return find_reasoning_tags(self.call_format, prompt, prefill)

    def list_unread(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(names)


def find_reasoning_tags(format: CallFormat, prompt: str, prefill: str = "") -> Tags | None:
    """See `ChatTemplate.find_reasoning_tags`. Of the prompt only the end counts, since users may write tags too."""
    tags = format.reasoning
    if tags is None:
        return None
    opening, closing = tags.open.strip(), tags.close.strip()
    written = format.opening + prefill if prefill else ""
    is_begun = prompt.rstrip().endswith(opening) or written.lstrip().startswith(opening)
    return replace(tags, is_opened=is_begun and closing not in prefill)


def has_calls(messages: Sequence[Message]) -> bool:
    return any(message.get("tool_calls") for message in messages)


def _mark_message(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value if key == UNMARKED_KEY else mark(value) for key, value in message.items()}
