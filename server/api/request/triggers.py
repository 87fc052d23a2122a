"""Reads the fields of grammars that apply to a part of the text only: `grammar_lazy`, `grammar_triggers` and
`preserved_tokens`, in llama.cpp's format.

Pure; any thread. Number and size of the triggers are limited, because the engine searches for them after each token,
and all requests wait for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.request.constraints import AnswerForm, read_constraint
from server.api.request.sampling import check_token_id
from server.engine.seam.task import FULL, PATTERN, TOKEN, WORD, Trigger
from server.errors import ApiError
from server.models.model import Model, Vocab
from server.records import replace

KINDS = (TOKEN, WORD, PATTERN, FULL)
"""The kinds of triggers; a kind's index is its number in requests."""
# The most triggers, bytes of a text, patterns, transitions of all patterns, and preserved tokens.
MAX_TRIGGERS, MAX_BYTES, MAX_PATTERNS, MAX_MOVES, MAX_PRESERVED = 100, 1000, 8, 1000, 1000


def read_form(values: Mapping[str, Any], body: Mapping[str, Any], model: Model) -> AnswerForm:
    """The form of an answer that is only text. ApiError 400 for a constraint or trigger that can't be used."""
    constraint, vocab = read_constraint(body, model.defaults), model.vocab
    triggers = _read_triggers(values["grammar_triggers"], vocab)
    preserved = _read_preserved(values["preserved_tokens"], vocab)
    if values["grammar_lazy"] and constraint.grammar and not triggers:
        raise ApiError(400, "grammar_lazy needs grammar_triggers: without them the grammar would never apply")
    is_lazy = values["grammar_lazy"] and bool(constraint.grammar)
    return AnswerForm(replace(constraint, is_lazy=is_lazy, triggers=triggers), preserved_tokens=preserved)


def _read_triggers(value: object, vocab: Vocab) -> tuple[Trigger, ...]:
    rows = _list("grammar_triggers", value, MAX_TRIGGERS)
    if sum(isinstance(row, dict) and row.get("type") in (2, 3) for row in rows) > MAX_PATTERNS:
        raise ApiError(400, f"grammar_triggers: at most {MAX_PATTERNS} patterns are allowed")
    triggers = tuple(_trigger(f"grammar_triggers[{i}]", row, vocab) for i, row in enumerate(rows))
    n_moves = sum(len(states) // 3 for trigger in triggers for states in trigger.states)
    if n_moves > MAX_MOVES:
        raise ApiError(
            400, f"grammar_triggers: the patterns have {n_moves} transitions, at most {MAX_MOVES} are allowed"
        )
    return triggers


def _trigger(name: str, row: object, vocab: Vocab) -> Trigger:
    """The trigger of a text, or of {"type": 0 to 3, "value": text, "token": id}."""
    if isinstance(row, str):
        row = {"type": KINDS.index(WORD), "value": row}
    if not isinstance(row, dict):
        raise ApiError(400, f"{name}: give a text, or an object with a type")
    number = row.get("type")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(KINDS):
        raise ApiError(
            400, f"{name}.type: give 0 (a token), 1 (a word), 2 (a pattern) or 3 (a pattern from the beginning)"
        )
    if KINDS[number] == TOKEN:
        return Trigger(TOKEN, token=check_token_id(f"{name}.token", row.get("token"), vocab))
    text = row.get("value")
    if not isinstance(text, str) or not text:
        raise ApiError(400, f"{name}.value: give a text")
    _require_short(f"{name}.value", text)
    if "\0" in text:
        raise ApiError(400, f"{name}.value: the text holds a NUL character")
    return _make_word(text, vocab) if KINDS[number] == WORD else _make_pattern(name, KINDS[number], text)


def _make_word(text: str, vocab: Vocab) -> Trigger:
    """The trigger of a word. A control token's name becomes that token, because the name is never in the text."""
    tokens = vocab.tokenize(text, False, True)
    if len(tokens) == 1 and vocab.is_control(tokens[0]):
        return Trigger(TOKEN, token=tokens[0])
    return Trigger(WORD, text)


def _make_pattern(name: str, kind: str, text: str) -> Trigger:
    from server.grammar.automaton import TooLarge  # here, because few requests have patterns
    from server.grammar.regex_gbnf import Unsupported, search_states

    try:
        states, is_anchored = search_states(text)
    except (Unsupported, TooLarge) as error:
        raise ApiError(400, f"{name}.value: {str(error) or 'the pattern is too large'}") from None
    return Trigger(FULL if is_anchored else kind, text, states=states)


def _read_preserved(value: object, vocab: Vocab) -> tuple[int, ...]:
    """The ids in the list, and the tokens of texts that are one token. Other texts need no mention: they are shown."""
    tokens = []
    for item in _list("preserved_tokens", value, MAX_PRESERVED):
        if not isinstance(item, str):
            tokens.append(check_token_id("preserved_tokens", item, vocab))
            continue
        _require_short("preserved_tokens", item)
        if len(made := vocab.tokenize(item, False, True)) == 1:
            tokens += made
    return tuple(tokens)


def _require_short(name: str, text: str) -> None:
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise ApiError(400, f"{name}: the text is too long, at most {MAX_BYTES} bytes are allowed")


def _list(name: str, value: object, most: int) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ApiError(400, f"{name}: give a list")
    if len(value) > most:
        raise ApiError(400, f"{name}: {len(value)} are too many, at most {most} are allowed")
    return list(value)
