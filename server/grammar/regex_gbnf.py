"""Converts regular expressions and lists of choices to grammars: the request fields `regex` and `choice`, and `pattern`
of JSON schema.

Runs on connection threads; imports only `server.grammar`. A pattern becomes a minimal automaton, and that becomes the
grammar. So at most one parse stack of the sampler reads each character, even for an ambiguous pattern. A pattern whose
automaton would be too large is translated piece by piece.

Not taken: copying the pattern's characters into GBNF, which has other escapes and no anchors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache

from server.grammar import automaton
from server.grammar.automaton import Charset, Dfa, Nfa, TooLarge
from server.grammar.gbnf import GrammarError, check
from server.grammar.gbnf_build import (
    COUNT_MAX,
    Builder,
    make_choice,
    make_factored,
    make_literal,
    make_sequence,
    print_dfa,
)
from server.grammar.regex_parse import Node, Unsupported, is_nullable, parse

__all__ = [
    "Unsupported",
    "make_bounded_pieces",
    "make_choice_grammar",
    "compile_pattern",
    "make_pattern_pieces",
    "make_regex_grammar",
]

STATES_MAX = 400  # of a pattern's minimal automaton
_LOOKS_MAX = 4  # lookaheads, besides those at the front
_ANY_TEXT: Node = ("rep", ("set", automaton.ANY), 0, None)
CHOICES_MAX = 10_000
_PARTS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\((?!\?)", re.S)  # escapes, classes, and "(" of capturing groups


def make_regex_grammar(pattern: str) -> str:
    """The grammar of the field `regex`: the whole output must match. Raises `Unsupported`."""
    builder = Builder()
    try:
        dfa = compile_pattern(pattern, search=False)
    except TooLarge:
        return _check_grammar(
            builder.render_text(make_pattern_pieces(builder, pattern, "part", builder.make_char_class, search=False))
        )
    if dfa.is_empty():
        raise Unsupported("no text matches this pattern")
    return builder.render_text(print_dfa(builder, dfa, "part", builder.make_char_class) or '""')


def _check_grammar(grammar: str) -> str:
    """Raises `Unsupported` if the grammar is too large for llama.cpp."""
    try:
        check(grammar)
    except GrammarError as error:
        raise Unsupported(f"the pattern is too large: {error.message}") from None
    return grammar


def make_choice_grammar(choices: list[str]) -> str:
    """The grammar of the field `choice`: the output is one of these texts. Raises ValueError for a bad list."""
    if not isinstance(choices, list) or not choices or not all(isinstance(text, str) for text in choices):
        raise ValueError("'choice' must be a non-empty array of strings")
    if len(choices) > CHOICES_MAX:
        raise ValueError(f"'choice' has {len(choices)} texts, the limit is {CHOICES_MAX}")
    if any("\0" in text or not _is_text(text) for text in choices):
        raise ValueError("a text in 'choice' contains a NUL character or half of a surrogate pair")
    return Builder().render_text(make_factored(make_literal(text) if text else "" for text in choices) or '""')


def _is_text(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


@lru_cache(maxsize=256)
def compile_pattern(pattern: str, *, search: bool) -> Dfa:
    """The minimal automaton of a pattern. With `search` it accepts texts that contain a match, as JSON schema requires.
    Raises `Unsupported`, or `TooLarge` beyond STATES_MAX states."""
    looks, node = _split_looks(parse(pattern))
    dfa = _make_automaton(node, search)
    for negative, inner in looks:
        other = automaton.minimise(_make_automaton(("cat", [("start",), inner]), search=True))
        dfa = automaton.intersect_dfas(dfa, automaton.negate(other) if negative else other, STATES_MAX * 4)
    dfa = automaton.minimise(dfa)
    if len(dfa.accept) > STATES_MAX:
        raise TooLarge
    return dfa


@lru_cache(maxsize=256)
def search_states(pattern: str) -> tuple[tuple[tuple[int, ...], ...], bool]:
    """(the automaton of a pattern's matches as rows, see `Trigger`; whether the pattern begins with `^`). Raises
    `Unsupported`, or `TooLarge` beyond STATES_MAX states."""
    node = parse(pattern)
    items = list(node[1]) if node[0] == "cat" else [node]
    is_anchored = items[:1] == [("start",)]
    rest: Node = ("cat", items[is_anchored : len(items) - (items[-1:] == [("end",)])])
    for part in _PARTS.finditer(pattern):
        if part.group() == "(" and part.start() > is_anchored:
            raise Unsupported("capturing groups are not supported here; write '(?:...)'", part.start())
    if _has_assertion(rest):
        raise Unsupported("'^' is only supported at the beginning, '$' only at the end, and lookahead not at all")
    dfa = automaton.minimise(_make_automaton(rest, search=False))
    if len(dfa.accept) > STATES_MAX:
        raise TooLarge
    if dfa.accept[0] or dfa.is_empty():
        raise Unsupported("the pattern matches the empty text, or nothing at all")
    rows = zip(dfa.accept, dfa.moves)
    return tuple(
        (int(accept), *(number for chars, target in moves for low, high in chars for number in (low, high, target)))
        for accept, moves in rows
    ), is_anchored


def _has_assertion(node: Node) -> bool:
    parts = node[1] if node[0] in ("cat", "alt") else [node[1]] if node[0] == "rep" else []
    return node[0] in ("start", "end", "look") or any(map(_has_assertion, parts))


def _split_looks(node: Node) -> tuple[list[tuple[bool, Node]], Node]:
    """Separates the lookaheads at the front of a pattern, `^(?=...)(?!...)...`: ([(is_negative, node)], the pattern
    without them). They are conditions on the whole text. Other lookaheads stay in the pattern."""
    if node[0] != "cat" or not any(item[0] == "look" for item in node[1]):
        return [], node
    items = node[1]
    first = 1 if items[0][0] == "start" else 0
    last = first
    while last < len(items) and items[last][0] == "look":
        last += 1
    if first == 0:
        return [], node
    return [(item[1], item[2]) for item in items[first:last]], ("cat", items[:first] + items[last:])


def _count_looks(node: Node) -> int:
    if node[0] in ("cat", "alt"):
        return sum(map(_count_looks, node[1]))
    return 1 if node[0] == "look" else _count_looks(node[1]) if node[0] == "rep" else 0


def _has_start(node: Node) -> bool:
    parts = node[1] if node[0] in ("cat", "alt") else [part for part in node[1:] if isinstance(part, tuple)]
    return node[0] == "start" or (node[0] not in ("set", "dfa") and any(map(_has_start, parts)))


def _without_looks(items: list[Node]) -> Node:
    """A node for items that end with the text. Each lookahead becomes one automaton with all that follows it."""
    for index, item in enumerate(items):
        if not _count_looks(item):
            continue
        before, after = items[:index], items[index + 1 :]
        if item[0] == "cat":
            return ("cat", [*before, _without_looks([*item[1], *after])])
        if item[0] == "rep" and item[2:] == (0, 1):
            item = ("alt", [item[1], ("cat", [])])
        if item[0] == "alt":
            return ("cat", [*before, ("alt", [_without_looks([part, *after]) for part in item[1]])])
        if item[0] == "rep" or _has_start(item[2]):
            raise Unsupported("lookahead is not supported inside a repetition, or with '^' inside it")
        ahead = automaton.minimise(_make_automaton(("cat", [item[2], _ANY_TEXT]), search=False))
        then = automaton.minimise(_make_automaton(("cat", after), search=False))
        return (
            "cat",
            [
                *before,
                (
                    "dfa",
                    automaton.minimise(
                        automaton.intersect_dfas(automaton.negate(ahead) if item[1] else ahead, then, STATES_MAX * 4)
                    ),
                ),
            ],
        )
    return ("cat", items)


def _make_automaton(node: Node, search: bool) -> Dfa:
    n_looks = _count_looks(node)
    if n_looks > _LOOKS_MAX:
        raise Unsupported(f"more than {_LOOKS_MAX} lookaheads that aren't at the beginning")
    if n_looks:
        node, search = _without_looks([_ANY_TEXT, node, _ANY_TEXT] if search else [node]), False
    nfa = Nfa()
    start, final = nfa.add_state(), nfa.add_state()
    if search:
        nfa.step(start, automaton.ANY, start)
        nfa.step(final, automaton.ANY, final)
    entry, leave = _build(nfa, node)
    nfa.move(start, entry)
    nfa.move(leave, final)
    return automaton.determinise(nfa, start, final, STATES_MAX * 4)


def _build(nfa: Nfa, node: Node) -> tuple[int, int]:
    """Adds the states of a node: (entry, exit)."""
    kind = node[0]
    entry, leave = nfa.add_state(), nfa.add_state()
    if kind == "set":
        nfa.step(entry, node[1], leave)
    elif kind == "cat":
        current = entry
        for part in node[1]:
            start, end = _build(nfa, part)
            nfa.move(current, start)
            current = end
        nfa.move(current, leave)
    elif kind == "alt":
        for part in node[1]:
            start, end = _build(nfa, part)
            nfa.move(entry, start)
            nfa.move(end, leave)
    elif kind == "rep":
        _build_repetition(nfa, node, entry, leave)
    elif kind in ("start", "end"):
        nfa.move(entry, leave, automaton.AT_START if kind == "start" else automaton.AT_END)
    else:
        _build_automaton(nfa, node[1], entry, leave)
    return entry, leave


def _build_automaton(nfa: Nfa, dfa: Dfa, entry: int, leave: int) -> None:
    states = [nfa.add_state() for _ in dfa.accept]
    nfa.move(entry, states[0])
    for state, here, accept in zip(states, dfa.moves, dfa.accept):
        for chars, target in here:
            nfa.step(state, chars, states[target])
        if accept:
            nfa.move(state, leave)


def _build_repetition(nfa: Nfa, node: Node, entry: int, leave: int) -> None:
    _, part, least, most = node
    current = entry
    for _ in range(least):
        start, end = _build(nfa, part)
        nfa.move(current, start)
        current = end
    nfa.move(current, leave)
    if most is None:
        start, end = _build(nfa, part)
        nfa.move(current, start)
        nfa.move(end, start)
        nfa.move(end, leave)
        return
    for _ in range(most - least):
        start, end = _build(nfa, part)
        nfa.move(current, start)
        nfa.move(end, leave)
        current = end


def make_pattern_pieces(
    builder: Builder, pattern: str, hint: str, class_of: Callable[[Charset], str], *, search: bool
) -> str:
    """A pattern translated piece by piece. With `search` any text may stand at an end without an anchor. Raises
    `Unsupported`."""
    return _make_piece(builder, _make_whole(parse(pattern), search), hint, class_of)


def make_bounded_pieces(
    builder: Builder,
    pattern: str,
    hint: str,
    class_of: Callable[[Charset], str],
    *,
    search: bool,
    least: int,
    most: int,
) -> str | None:
    """A pattern's texts of `least` to `most` characters, translated piece by piece; None if that is not possible. Each
    unbounded repetition gets a fixed upper count, so some long texts are lost. Raises `Unsupported`."""
    node = _make_whole(parse(pattern), search)
    longest, n_open = _compute_extent(node)
    if longest > most or _compute_shortest(node) < least:
        return None
    return _make_piece(builder, _limit_repetitions(node, (most - longest) // max(n_open, 1)), hint, class_of)


def _make_whole(node: Node, search: bool) -> Node:
    """The pattern for the whole text. Anchors at the ends are dropped; with `search` any text stands where one is
    missing."""
    parts = []
    for branch in node[1] if node[0] == "alt" else [node]:
        items = list(branch[1]) if branch[0] == "cat" else [branch]
        left, right = items[:1] == [("start",)], items[-1:] == [("end",)]
        any_text = [_ANY_TEXT] if search else []
        parts.append(
            ("cat", ([] if left else any_text) + items[left : len(items) - right] + ([] if right else any_text))
        )
    return ("alt", parts)


def _compute_extent(node: Node) -> tuple[int, int]:
    """(length of the longest text if unbounded repetitions have their lowest count, the number of unbounded repetitions
    that can lengthen it)."""
    kind = node[0]
    if kind == "set":
        return 1, 0
    if kind in ("cat", "alt"):
        pairs = [_compute_extent(part) for part in node[1]]
        join = sum if kind == "cat" else max
        return join([size for size, _ in pairs] or [0]), join([n_open for _, n_open in pairs] or [0])
    if kind == "rep":
        size, n_open = _compute_extent(node[1])
        times = node[2] if node[3] is None else node[3]
        return times * size, times * n_open + (node[3] is None)
    return 0, 0


def _compute_shortest(node: Node) -> int:
    kind = node[0]
    if kind in ("cat", "alt"):
        return (sum if kind == "cat" else min)([_compute_shortest(part) for part in node[1]] or [0])
    return node[2] * _compute_shortest(node[1]) if kind == "rep" else int(kind == "set")


def _limit_repetitions(node: Node, share: int) -> Node:
    """The node with each unbounded repetition limited to at most `share` additional characters."""
    if node[0] in ("cat", "alt"):
        return (node[0], [_limit_repetitions(part, share) for part in node[1]])
    if node[0] != "rep":
        return node
    _, part, least, most = node
    if most is not None:
        return ("rep", _limit_repetitions(part, share), least, most)
    part = _limit_repetitions(part, math.isqrt(share))
    size = _compute_extent(part)[0]
    return ("rep", part, least, least + (share // size if size else 0))


def _make_piece(builder: Builder, node: Node, hint: str, class_of: Callable[[Charset], str]) -> str:
    """One node as an expression that can stand in a sequence."""
    kind = node[0]
    if kind == "set":
        return class_of(node[1])
    if kind == "cat":
        return make_sequence(*(_make_piece(builder, part, hint, class_of) for part in node[1]))
    if kind == "alt":
        return make_choice(_make_piece(builder, part, hint, class_of) for part in node[1])
    if kind != "rep":
        raise Unsupported("assertions are not supported in a pattern this large")
    _, part, least, most = node
    if is_nullable(part) and (most is None or most > 1):
        raise Unsupported("in a pattern this large, what is repeated must not be empty")
    if max(least, most or 0) > COUNT_MAX:
        raise Unsupported("this repetition count is too large")
    expression = _make_piece(builder, part, hint, class_of)
    return builder.repeat(hint, expression, least, most) if expression else ""
