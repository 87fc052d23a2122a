"""A model's chat template: which one it is, and how messages become prompt text.

Pure text, on handler threads. `ChatTemplate` renders Jinja; `BuiltinTemplate` lets libllama's fixed list do it (names
of `--chat-template`, and `--no-jinja`). Both give segments of (text, is user input), so that the tokenizer can keep
what users typed from becoming special tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from server.chat.jinja import Template, mark
from server.chat.segments import Segments, is_text, plain_text

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROBE = "a9f1probe"
UNMARKED_KEY = "role"  # templates make special tokens of it; its letters are checked before
MARKED_VARIABLES = ("tools", "documents")
WHITESPACE = " \t\n\v\f\r"  # what libllama's templates trim


class ChatTemplate:
    """A Jinja template with the model's special tokens. Raises `TemplateSyntaxError` when it can't be compiled.

    `tool_source` is another template for conversations with tools; "" when there is none.
    """

    def __init__(self, source: str, bos_token: str, eos_token: str, tool_source: str = "") -> None:
        self.source = source
        self.bos_token = bos_token
        self._for_tools = ChatTemplate(tool_source, bos_token, eos_token) if tool_source else None
        self._template = Template(source)
        self._knows_developer = "developer" in source
        self._base = {"bos_token": bos_token, "eos_token": eos_token}
        self._wants_parts = self._does_want_parts()

    def render(
        self, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool, extra: Mapping[str, object]
    ) -> Segments:
        """The prompt for `messages` in segments; `extra` are further variables (tools, enable_thinking, ...).

        Raises `TemplateError` with the place in the template and the index of the message.
        """
        if self._for_tools is not None and extra.get("tools"):
            return self._for_tools.render(messages, add_generation_prompt, extra)
        shaped = [_marked(self._shaped(message)) for message in messages]
        marked = {name: mark(extra[name]) for name in MARKED_VARIABLES if name in extra}
        context = {**self._base, **extra, **marked, "messages": shaped, "add_generation_prompt": add_generation_prompt}
        return self._template.render_segments(context)

    def _shaped(self, message: Mapping[str, object]) -> dict[str, object]:
        """Content in the form that this template reads: text parts joined to one string, or the reverse. OpenAI's
        newer name for the system's role is used only where the template knows it."""
        content = message.get("content")
        if not self._knows_developer:
            message = _without_developer(message)
        if self._wants_parts and isinstance(content, str):
            return {**message, "content": [{"type": "text", "text": content}]}
        if not self._wants_parts and isinstance(content, list) and all(is_text(part) for part in content):
            return {**message, "content": "".join(part["text"] for part in content)}
        return dict(message)

    def _does_want_parts(self) -> bool:
        """Whether plain text gets lost in this template while a list of parts doesn't."""
        return not self._shows(PROBE) and self._shows([{"type": "text", "text": PROBE}])

    def _shows(self, content: object) -> bool:
        context = {**self._base, "messages": [{"role": "user", "content": content}], "add_generation_prompt": False}
        try:
            return PROBE in self._template.render(context)
        except Exception:
            return False


class BuiltinTemplate:
    """One of libllama's own templates through `apply(messages, add_generation_prompt) -> text`.

    It knows roles and plain text only. Which text is users' shows because it is rendered with a random key in place
    of each content; white space around contents stays, for some of these templates trim it.
    """

    def __init__(self, source: str, apply: Callable[[Sequence[tuple[str, str]], bool], str]) -> None:
        self.source = source
        self.bos_token = ""
        self._apply = apply

    def render(
        self, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool, extra: Mapping[str, object]
    ) -> Segments:
        """See `ChatTemplate.render`; `extra` is not used."""
        key = secrets.token_hex(8)
        pairs: list[tuple[str, str]] = []
        texts: list[str] = []
        for message in map(_without_developer, messages):
            content = plain_text(message.get("content"))
            text = content.strip(WHITESPACE)
            pairs.append((str(message["role"]), content.replace(text, f"{key}-{len(texts)}-", 1) if text else content))
            texts.append(text)
        parts = re.split(f"{key}-([0-9]+)-", self._apply(pairs, add_generation_prompt))
        segments = [(texts[int(part)], True) if i % 2 else (part, False) for i, part in enumerate(parts)]
        return [segment for segment in segments if segment[0]]


def _marked(message: dict[str, object]) -> dict[str, object]:
    return {key: value if key == UNMARKED_KEY else mark(value) for key, value in message.items()}


def _without_developer(message: Mapping[str, object]) -> Mapping[str, object]:
    return {**message, "role": "system"} if message.get("role") == "developer" else message
