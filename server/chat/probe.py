"""Finds out which input a chat template reads, by rendering made-up conversations with it.

Templates differ in the input they expect: text or a list of parts; the arguments of a call as an object or as JSON
text; a system message at the beginning or anywhere; reasoning under one key or another. Most answers are found by
rendering a conversation with words that occur in no template, and looking for these words in the prompt. An answer is
found when first needed, perhaps by two threads at once, and then kept. Pure, any thread.

Not taken: only searching the template's source for names. Templates mention roles in prose, and read keys without
rendering them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from server.chat.jinja import Template, TemplateError
from server.chat.jinja.limits import Limits
from server.chat.variables import NEAREST_EFFORTS, NO_EFFORT, SAME_EFFORTS

Message = Mapping[str, Any]

WORD, OTHER, KEY, NAME = "a9f1probe", "a9f2probe", "a9f3probe", "a9f4probe"
STRANGER = "a9f5probe"  # a role or value that no template knows
PARTS = [{"type": "text", "text": WORD}, {"type": "text", "text": OTHER}]
AS_DATA = (f"'text': '{WORD}'", f'"text": "{WORD}"')  # the template printed the list of parts itself
ARGUMENTS = {KEY: WORD}
ARGUMENTS_TEXT = json.dumps(ARGUMENTS)
MISREAD = (str(ARGUMENTS), json.dumps(ARGUMENTS_TEXT)[1:-1])  # an object in Python's syntax, text encoded twice
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": NAME,
            "description": "x",
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "string", "description": "x"}},
                "required": ["x"],
            },
        },
    }
]
USER = {"role": "user", "content": "x"}
ASSISTANT = {"role": "assistant", "content": "x"}
CALL_ID, SECOND_ID = "a9f6probe", "a9f7probe"  # nine letters and digits, as some templates require
RESULT = {"role": "tool", "tool_call_id": CALL_ID, "name": NAME, "content": "x"}
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
LIMITS = Limits(steps=100_000)  # of one rendering


class Probe:
    """Answers questions about one template. `base(tools)` returns its variables other than the messages."""

    def __init__(self, template: Template, base: Callable[[Sequence[Message]], Mapping[str, Any]]) -> None:
        self.source = template.source
        self._template = template
        self._base = base
        self._reads_parts: dict[str, bool] = {}
        self._efforts: dict[tuple[str, str], str | None] = {}

    @cached_property
    def wants_parts(self) -> bool:
        """Whether the template loses plain text and renders lists of parts."""
        return not self._can_show([{"role": "user", "content": WORD}], WORD) and self.can_read_parts("user")

    def can_read_parts(self, role: str) -> bool:
        """Whether the template renders all text of a list of parts in messages of this role."""
        if role not in self._reads_parts:
            message = {"role": role, "content": PARTS}
            before, after = {
                "user": ([], []),
                "system": ([], [USER]),
                "assistant": ([USER], [USER]),
                "tool": ([USER, self._call()], []),
            }.get(role, ([], [USER]))
            self._reads_parts[role] = self._can_show([*before, message, *after], WORD, OTHER, never=AS_DATA)
        return self._reads_parts[role]

    @cached_property
    def knows_developer(self) -> bool:
        """Whether the template treats the role `developer` differently from an unknown role."""
        if "developer" not in self._template.source:
            return False
        developer, stranger = (self.render([{"role": role, "content": WORD}, USER]) for role in ("developer", STRANGER))
        return (
            developer is not None
            and WORD in developer
            and (
                stranger is None or developer.replace("developer", STRANGER) != stranger.replace("developer", STRANGER)
            )
        )

    @cached_property
    def reads_system(self) -> bool:
        """Whether the template renders a system message at the beginning."""
        return self._can_show([{"role": "system", "content": WORD}, USER], WORD)

    @cached_property
    def reads_system_without_question(self) -> bool:
        """The same as `reads_system`, if the last message isn't the user's (as after a tool result)."""
        return self.reads_system and self._can_show([{"role": "system", "content": WORD}, USER, ASSISTANT], WORD)

    @cached_property
    def reads_later_system(self) -> bool:
        """Whether the template renders system messages (of each role that it knows) in the middle of a conversation,
        and still the first one."""
        first = [{"role": "system", "content": OTHER}] if self.reads_system else []
        return all(
            self._can_show(
                [*first, USER, ASSISTANT, {"role": role, "content": WORD}, USER], WORD, *([OTHER] if first else [])
            )
            for role in ("system", "developer")[: 1 + self.knows_developer]
        )

    @cached_property
    def call_form(self) -> tuple[str | None, bool] | None:
        """The form in which the template renders tool calls: the content of a message without text ("" or None), and
        whether arguments must be an object. None if it doesn't render calls."""
        for content in ("", None):
            for arguments in (ARGUMENTS, ARGUMENTS_TEXT):
                messages = [USER, _call(content, arguments), RESULT]
                if self._can_show(messages, KEY, WORD, never=MISREAD):
                    return content, arguments is ARGUMENTS
        return None

    @cached_property
    def reads_tools(self) -> bool:
        text = self.render([USER], TOOLS)
        return text is not None and NAME in text

    @cached_property
    def reasoning_key(self) -> str:
        """The key under which the template reads the assistant's reasoning: one of REASONING_KEYS, `content` for a part
        of type `thinking`, or "" if it renders no reasoning."""
        for key in REASONING_KEYS:
            if self._can_show_reasoning({key: WORD}):
                return key
        parts = [{"type": "thinking", "thinking": WORD}, {"type": "text", "text": OTHER}]
        never = (f"'thinking': '{WORD}'", f'"thinking": "{WORD}"')
        return (
            "content" if self._can_show([USER, {**ASSISTANT, "content": parts}, USER], WORD, OTHER, never=never) else ""
        )

    def find_effort(self, name: str, effort: str) -> str | None:
        """The value of the variable `name` for a reasoning effort; None if the template has none. Efforts that aren't
        "none" or in NEAREST_EFFORTS stay unchanged."""
        if effort not in NEAREST_EFFORTS:
            return effort if effort != "none" else next((one for one in NO_EFFORT if self._has_quoted_text(one)), None)
        if (name, effort) not in self._efforts:
            known = [value for value in SAME_EFFORTS.get(effort, ()) if self._has_effect(name, value)]
            taken = (value for value in (effort, *NEAREST_EFFORTS[effort]) if self._with(name, value) is not None)
            self._efforts[name, effort] = known[0] if known else next(taken, None)
        return self._efforts[name, effort]

    def _has_quoted_text(self, text: str) -> bool:
        return f"'{text}'" in self.source or f'"{text}"' in self.source

    def _has_effect(self, name: str, value: str) -> bool:
        """Whether a value of a variable makes another prompt than an unknown value."""
        text, other = self._with(name, value), self._with(name, STRANGER)
        return text is not None and text != other

    def _with(self, name: str, value: str) -> str | None:
        return self.render([USER], variables={name: value})

    @cached_property
    def reads_many_calls(self) -> bool:
        """Whether the template renders two calls in one message; true if it renders no calls at all."""
        [first], [second] = self._call()["tool_calls"], _call(*self._make_form(OTHER))["tool_calls"]
        both = {**self._call(), "tool_calls": [first, {**second, "id": SECOND_ID}]}
        results = [RESULT, {**RESULT, "tool_call_id": SECOND_ID}]
        return self.call_form is None or self._can_show([USER, both, *results], WORD, OTHER)

    @cached_property
    def wants_short_ids(self) -> bool:
        """Whether the template refuses the call id "x", as Mistral's do. They want nine letters and digits."""
        refused = {**self._call(), "tool_calls": [{**self._call()["tool_calls"][0], "id": "x"}]}
        return self.call_form is not None and self.render([USER, refused, {**RESULT, "tool_call_id": "x"}]) is None

    @cached_property
    def reads_results(self) -> bool:
        return self._can_show([USER, self._call(), {**RESULT, "content": WORD}], WORD)

    @cached_property
    def refuses_text_beside_reasoning(self) -> bool:
        """Whether a message with tool calls may have reasoning or a text, but not both."""
        reasoning = {self.reasoning_key: WORD}
        both = [USER, {**self._call(), **reasoning, "content": "x"}, RESULT]
        return self.render(both) is None and self._can_show([USER, {**self._call(), **reasoning}, RESULT], WORD)

    def _can_show_reasoning(self, reasoning: Message) -> bool:
        """Whether reasoning is rendered in an earlier answer, or in the current one before a tool result."""
        return self._can_show([USER, {**ASSISTANT, **reasoning}, USER], WORD) or self._can_show(
            [USER, {**_call(*self._make_form(OTHER)), **reasoning}, RESULT], WORD
        )

    def _call(self) -> dict[str, Any]:
        return _call(*self._make_form(WORD))

    def _make_form(self, value: str) -> tuple[str | None, object]:
        content, is_object = self.call_form or ("", False)
        return content, {KEY: value} if is_object else json.dumps({KEY: value})

    def _can_show(self, messages: Sequence[Message], *words: str, never: Sequence[str] = ()) -> bool:
        text = self.render(messages)
        return text is not None and all(word in text for word in words) and not any(bad in text for bad in never)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), variables: Mapping[str, Any] | None = None
    ) -> str | None:
        """The prompt; None if the template refuses the conversation. `TOOLS` is the default if there are calls."""
        if not tools and any("tool_calls" in message for message in messages):
            tools = TOOLS
        context = {**self._base(tools), **(variables or {}), "messages": messages, "add_generation_prompt": True}
        try:
            return self._template.render(context, limits=LIMITS)
        except TemplateError:
            return None


def _call(content: str | None, arguments: object) -> dict[str, Any]:
    call = {"id": CALL_ID, "type": "function", "function": {"name": NAME, "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}
