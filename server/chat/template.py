"""A model's chat template: which one it is, and how messages become prompt text.

Pure text, on handler threads. `ChatTemplate` renders Jinja; `BuiltinTemplate` lets libllama's fixed list do it (names
of `--chat-template`, and `--no-jinja`). Both give segments of (text, is user input), so that the tokenizer can keep
what users typed from becoming special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from server.chat.jinja import Template, mark

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
          "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
PROBE = "a9f1probe"
MARKED_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls", "thinking")

Segments = list[tuple[str, bool]]


class ChatTemplate:
    """A Jinja template with the model's special tokens. Raises `TemplateSyntaxError` when it can't be compiled."""

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        self.source = source
        self.bos_token = bos_token
        self._template = Template(source)
        self._base = {"bos_token": bos_token, "eos_token": eos_token}
        self._wants_parts = self._does_want_parts()

    def render(self, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool,
               extra: Mapping[str, object]) -> Segments:
        """The prompt for `messages` in segments; `extra` are further variables (tools, enable_thinking, ...).

        Raises `TemplateError` with the place in the template and the index of the message.
        """
        shaped = [_marked(self._shaped(message)) for message in messages]
        context = {**self._base, **extra, "messages": shaped, "add_generation_prompt": add_generation_prompt}
        return self._template.render_segments(context)

    def _shaped(self, message: Mapping[str, object]) -> dict[str, object]:
        """Content in the form that this template reads: text parts joined to one string, or the reverse."""
        content = message.get("content")
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

    It knows roles and plain text only, and can't tell user input apart: everything it gives counts as such except
    nothing, so prompts of its kind are tokenised as a whole.
    """

    def __init__(self, source: str, apply: Callable[[Sequence[tuple[str, str]], bool], str]) -> None:
        self.source = source
        self.bos_token = ""
        self._apply = apply

    def render(self, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool,
               extra: Mapping[str, object]) -> Segments:
        """See `ChatTemplate.render`; `extra` is not used."""
        pairs = [(str(message.get("role", "")), plain_text(message.get("content"))) for message in messages]
        return [(self._apply(pairs, add_generation_prompt), False)]


def plain_text(content: object) -> str:
    """The text of a message's content: a string, or its text parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if is_text(part))
    return content if isinstance(content, str) else ""


def is_text(part: object) -> bool:
    """Whether a content part is text."""
    return isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text") and isinstance(
        part.get("text"), str)


def _marked(message: dict[str, object]) -> dict[str, object]:
    return {key: mark(value) if key in MARKED_KEYS else value for key, value in message.items()}
