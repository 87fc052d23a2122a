"""The form of a chat's answer: tool calls, reasoning, and the constraint of the text. Connection thread.

The model's template determines the format of calls and reasoning (`CallFormat`). The format determines the grammar that
enforces it, and the parser that separates calls and reasoning from the text.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator
from functools import partial
from weakref import WeakKeyDictionary

from server.api.request.chat.messages import ChatPrompt
from server.api.request.chat.reasoning import ReasoningWish
from server.api.request.chat.tools import REQUIRED, Tools
from server.api.request.constraints import AnswerForm, Constraint, Wanted, constraint_of
from server.chat.output.formats import CallFormat, ChannelCall, IdForm
from server.chat.output.parser import OutputParser
from server.engine.seam.task import START, WORD, Thinking, Trigger
from server.errors import ApiError
from server.models.model import Model, Vocab
from server.records import fields, is_record, replace

LETTERS = string.ascii_letters + string.digits


def answer_form(model: Model, chat: ChatPrompt, wanted: Wanted | None, parses_calls: bool = True) -> AnswerForm:
    """The form of the answers to this chat. `wanted` is the constraint that the request asks for, None for free text.
    ApiError 400 if the form can't be enforced."""
    form = replace(model.chat_template.call_format, reasoning=chat.tags)
    constraint = _make_constraint(form, chat.tools, wanted)
    tools = chat.tools.callable if parses_calls else ()
    reasoning = chat.reasoning.form
    if model.options.template.skip_chat_parsing:
        tools, reasoning = (), "none"
    has_marks = chat.tags or form.content or form.silent or isinstance(form.call, ChannelCall)
    new_parser = None
    if tools or reasoning != "none" and has_marks:
        new_id = partial(make_id, form.ids)
        new_parser = partial(OutputParser, form, tools, parse_calls=bool(tools), reasoning=reasoning, new_id=new_id)
    return AnswerForm(
        constraint,
        make_thinking(model.vocab, form, chat.reasoning, bool(tools)),
        find_control_marks(model.vocab, form),
        new_parser,
        has_text=chat.tools.choice != REQUIRED,
    )


def _make_constraint(form: CallFormat, tools: Tools, wanted: Wanted | None) -> Constraint:
    """The grammar of the calls that the request allows, and of the constraint that it asks for."""
    constraint = constraint_of(wanted)
    if not tools.callable:
        return constraint
    from server.chat.output.call_grammar import ToolSchemaError, call_constraint  # here: most chats have no tools

    if wanted is not None and not wanted.is_schema:
        raise ApiError(
            400, f"{wanted.field} and tools exclude each other; tools can be combined only with a JSON schema"
        )
    final = None if wanted is None or tools.choice == REQUIRED else wanted.value
    try:
        made = call_constraint(
            form, tools.callable, choice=tools.choice, parallel=tools.is_parallel, final_schema=final
        )
    except ToolSchemaError as error:
        raise ApiError(400, f"{'functions' if tools.is_old else 'tools'}: {error}") from None
    words = [Trigger(WORD, text) for text in made.triggers]
    starts = [Trigger(START, text) for text in made.start_triggers]
    return Constraint(made.grammar, (*constraint.warnings, *made.warnings), not made.anchored, (*words, *starts))


def make_thinking(vocab: Vocab, form: CallFormat, wish: ReasoningWish, has_tools: bool = False) -> Thinking | None:
    """The engine's settings for the reasoning of an answer; None without a reasoning format."""
    tags = form.reasoning
    if tags is None:
        return None
    end = [*vocab.tokenize(wish.message, False, False), *vocab.tokenize(tags.close, False, True)]
    return Thinking(
        tags.open.removeprefix(form.opening).strip(),
        tags.close.strip(),
        tags.is_opened,
        wish.budget,
        tuple(end),
        tags.ends_at if has_tools else "",
        isinstance(form.call, ChannelCall),
    )


_marks: WeakKeyDictionary[Vocab, dict[CallFormat, tuple[int, ...]]] = WeakKeyDictionary()
"""The results of `find_control_marks`. Weak keys: an entry goes with its vocabulary."""


def find_control_marks(vocab: Vocab, form: CallFormat) -> tuple[int, ...]:
    """The control tokens in the tags and marks of a format. The parser needs their text, though control tokens normally
    have none."""
    known = _marks.setdefault(vocab, {})
    if form not in known:
        known[form] = _find_control_marks(vocab, form)
    return known[form]


def _find_control_marks(vocab: Vocab, form: CallFormat) -> tuple[int, ...]:
    tokens = {token for text in set(_list_texts(form)) - {""} for token in vocab.tokenize(text, False, True)}
    return tuple(sorted(token for token in tokens if vocab.is_control(token)))


def _list_texts(value: object) -> Iterator[str]:
    """All texts in a record, its nested records and tuples."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _list_texts(part)
    elif is_record(value):
        for field in fields(value):
            yield from _list_texts(getattr(value, field.name))


def make_id(form: IdForm) -> str:
    return form.prefix + "".join(secrets.choice(LETTERS) for _ in range(form.n_letters))
