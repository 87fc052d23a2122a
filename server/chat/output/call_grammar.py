"""Makes the grammar that forces valid tool calls, from a format, the tools and the tool choice.

Pure functions, any thread. The last results are cached, since an agent's next request has the same tools. This module
writes the text around calls, `call_texts` each call.

Not taken: one schema with a branch for each tool. Most formats aren't JSON, and a warning should name its tool.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from server.chat.output.call_texts import CallTexts, ToolSchemaError, make_text_literal
from server.chat.output.formats import (
    CallFormat,
    ChannelCall,
    JsonCall,
    KeyedCall,
    NamedCall,
    ParameterCall,
    PythonCall,
    QuotelessCall,
)
from server.chat.output.heads import NAME, find_first_word, find_heads
from server.chat.output.kinds import read_tool_parameters
from server.grammar.gbnf import GrammarError
from server.grammar.gbnf_build import Text, make_factored, make_literal, make_optional, make_sequence
from server.grammar.gbnf_rewrite import make_affordable
from server.records import record

__all__ = ["CallConstraint", "ToolSchemaError", "call_constraint"]

CALLS_MAX = 100  # calls in one answer
_SLACK = r"[ \t\n]{0,4}"


@record(frozen=True)
class CallConstraint:
    """The grammar for an answer with calls.

    With `anchored`, the grammar applies to the whole answer after the reasoning. Otherwise it applies from a trigger to
    the end: one of the `triggers` anywhere in the visible text, or one of the `start_triggers` at the beginning of this
    text (white space ignored). `warnings`: what the grammar doesn't enforce, one line each, with the tool's name and
    the JSON pointer.
    """

    grammar: str
    triggers: tuple[str, ...]
    start_triggers: tuple[str, ...]
    anchored: bool
    warnings: tuple[str, ...]


def call_constraint(
    format: CallFormat,
    tools: Sequence[Mapping[str, Any]],
    *,
    choice: str,
    names: Iterable[str] | None = None,
    parallel: bool = True,
    final_schema: object = None,
    strict: bool = False,
) -> CallConstraint:
    """The constraint for `choice` "required" (only calls) or "auto" (text, then perhaps calls to the end).

    `tools` are in OpenAI's form. `names` are the tools that may be called (None: all). With a `final_schema`, the
    answer is either calls or JSON that fits this schema. With `strict`, or with `strict` in a tool, keywords that can't
    be enforced are refused. Raises `ToolSchemaError`.
    """
    allowed = None if names is None else frozenset(names)
    given = {
        name: (parameters, strict or _is_strict(tools, name))
        for name, parameters in read_tool_parameters(tools).items()
        if allowed is None or name in allowed
    }
    if not given:
        raise ToolSchemaError("", "there is no tool that may be called", "#")
    if (taken := _find_taken_name(format)) in given:
        raise ToolSchemaError(taken, "this model writes that name before its text; rename the tool", "#")
    try:
        text = json.dumps([given, final_schema])
    except (ValueError, TypeError, RecursionError):
        raise ToolSchemaError("", "the schemas are not JSON", "#") from None
    return _make_constraint(format, text, choice == "required", parallel, strict)


def _find_taken_name(form: CallFormat) -> str:
    """The name that no tool may have, since visible text begins like a call of it (Functionary's `all`); "" if there is
    none."""
    if form.content is None or not isinstance(form.call, NamedCall):
        return ""
    mark, before = form.content.open.strip(), form.before_all + form.before_call + form.call.before_name
    return mark.removeprefix(before) if mark.startswith(before) else ""


def _is_strict(tools: Sequence[Mapping[str, Any]], name: str) -> bool:
    functions = [tool.get("function") for tool in tools]
    return any(isinstance(f, dict) and f.get("name") == name and f.get("strict") is True for f in functions)


@lru_cache(maxsize=64)
def _make_constraint(form: CallFormat, text: str, is_required: bool, parallel: bool, strict: bool) -> CallConstraint:
    given, final_schema = json.loads(text)
    anchored = is_required or final_schema is not None
    texts = CallTexts(form, given, is_lazy=not anchored)
    frame = _Frame(texts, parallel and form.can_be_many)
    if not anchored:
        root = frame.from_trigger()
    elif final_schema is None:
        root = frame.answer()
    else:
        root = make_factored([frame.answer(), frame.make_final(final_schema, strict)])
    try:
        grammar = make_affordable(texts.builder.render_text(root))
    except GrammarError as error:
        raise ToolSchemaError("", f"the grammar of the calls is too large: {error.message}", "#") from None
    return CallConstraint(grammar, *find_triggers(form, list(given)), anchored, tuple(texts.warnings))


def find_triggers(form: CallFormat, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts that begin calls: those that count anywhere in the visible text, and those that count only at its
    beginning."""
    call = form.call
    if isinstance(call, ChannelCall):
        addressed = _find_recipient(call)
        return (call.call_head[0], f"{call.start} {addressed}"), (addressed,)
    silent = [text.lstrip() for text in (form.content.open, *form.silent)] if form.content else list(form.silent)
    found: list[str] = []
    starts: list[str] = []
    for marker, head in find_heads(form).items():
        says_little = any(text.startswith(marker) for text in silent) and head.parts[1].kind == NAME
        ways = [marker + name for name in names] if says_little else [marker]
        if marker[0].isalnum():  # a word, which may occur in any text
            ways = [(form.before_all + form.before_call).strip()]
        found += ways
        if form.opening and marker.startswith(form.opening):
            ways = ways if marker != form.opening else [marker + name for name in names]
            starts += [way[len(form.opening) :] for way in ways]
    if form.at_start:
        starts += [start for name in names for start in _list_starts(form, name)]
    return tuple(found), tuple(starts)


def _find_recipient(call: ChannelCall) -> str:
    """The part of Harmony's head that names the recipient of a message."""
    return call.call_head[0][call.call_head[0].index("to=") :]


def _list_starts(form: CallFormat, name: str) -> list[str]:
    """The beginnings of an answer that is a call of this tool, in formats whose calls have no mark."""
    call = form.call
    before = (form.before_all + form.before_call).strip()
    if isinstance(call, JsonCall):
        return [f'{before}{{"{call.name_key}":{blank}{json.dumps(name)}' for blank in ("", " ")]
    if isinstance(call, KeyedCall):
        return [f"{before}{{{json.dumps(name)}:"]
    if isinstance(call, PythonCall):
        return [f"{before}{name}("]
    assert isinstance(call, (NamedCall, ParameterCall, QuotelessCall))
    return [f"{before}{call.before_name}{name}{find_first_word(call.after_name)}".lstrip()]


class _Frame:
    """Writes the grammar of the text around calls. `is_many`: the answer may have several calls."""

    def __init__(self, texts: CallTexts, is_many: bool) -> None:
        self.texts = texts
        self.form = texts.form
        self.is_many = is_many
        self.call = texts.builder.define("call", make_factored(texts.calls))

    def answer(self) -> str:
        """An answer that consists of calls."""
        form = self.form
        if isinstance(form.call, ChannelCall):
            return make_sequence(
                make_optional(make_literal(form.call.start)), make_literal(form.call.call_head[0]), self.call
            )
        start = form.before_all + form.before_call
        if not form.opening:
            first = make_sequence(make_text_literal(start), self.call)
        else:
            calls = [self.remove_opening(make_sequence(make_text_literal(start), call)) for call in self.texts.calls]
            first = self.texts.builder.define("first-call", make_factored(calls))
        return self.group(make_sequence(first, make_text_literal(form.after_call)), form.after_all)

    def remove_opening(self, expression: str) -> str:
        """The expression without the `opening`, with which the prompt ends. If the format has reasoning, the model may
        repeat the opening."""
        opening = make_literal(self.form.opening)[1:-1]
        items = getattr(expression, "items", (expression,))
        if not opening or not isinstance(items[0], Text) or not items[0][1:].startswith(opening):
            return expression
        rest = Text('"' + items[0][1 + len(opening) :])
        rest_items = [rest, *items[1:]] if rest != '""' else items[1:]
        again = make_optional(make_literal(self.form.opening)) if self.form.reasoning is not None else ""
        return make_sequence(again, *rest_items)

    def group(self, first: str, after_all: str) -> str:
        form = self.form
        more = make_sequence(
            make_text_literal(form.between + form.before_call), self.call, make_text_literal(form.after_call)
        )
        further = self.texts.builder.repeat("more", more, 0, CALLS_MAX - 1) if self.is_many else ""
        return make_sequence(first, further, make_text_literal(after_all))

    def from_trigger(self) -> str:
        form = self.form
        if isinstance(form.call, ChannelCall):
            return self.make_channel_ways(form.call)
        ways = [self.answer()] if form.at_start or form.opening else []
        also = {find_first_word(text): text for text in form.also_before}
        for marker, head in find_heads(form).items():
            if head.in_group:
                start, end, after_all = form.before_all + form.before_call, form.after_call, form.after_all
            elif form.before_call and marker == find_first_word(form.before_call):
                start, end, after_all = form.before_call, form.after_call, ""
            else:
                start, end, after_all = also.get(marker, ""), "", ""
            first = make_sequence(self.allow_space_after_marker(start), self.call, make_text_literal(end))
            ways.append(self.group(first, after_all))
        return make_factored(ways)

    def allow_space_after_marker(self, text: str) -> str:
        """A text of the format. If white space may follow its first word, any is allowed, since the token that ends the
        word may contain some."""
        marker = find_first_word(text)
        rest = text[text.index(marker) + len(marker) :]
        if rest[:1].isspace() or marker and not rest and isinstance(self.form.call, (JsonCall, KeyedCall)):
            return make_sequence(make_literal(marker), _SLACK, make_text_literal(rest.lstrip()))
        return make_text_literal(text.lstrip())

    def make_channel_ways(self, call: ChannelCall) -> str:
        """Harmony's calls, with the recipient before or after the channel."""
        addressed = make_literal(_find_recipient(call))
        start = make_optional(make_sequence(make_literal(call.start), make_literal(" ")))
        usual = self.texts.builder.define("usual", make_factored(self.texts.make_channel_calls("")))
        swapped = self.texts.builder.define(
            "swapped", make_factored(self.texts.make_channel_calls(f"{call.channel}commentary"))
        )
        return make_factored(
            [make_sequence(make_literal(call.call_head[0]), usual), make_sequence(start, addressed, swapped)]
        )

    def make_final(self, schema: object, strict: bool) -> str:
        """An answer that fits a schema, inside the tags of visible text."""
        answer = self.texts.make_schema_root("response_format", "final", schema, strict)
        content = self.form.content
        if content is None:
            return answer
        end = make_optional(make_text_literal(content.close.strip()))
        return make_sequence(self.remove_opening(make_sequence(make_text_literal(content.open.lstrip()), answer)), end)
