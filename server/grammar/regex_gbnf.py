"""Regular expressions and lists of choices as grammars: the request fields `regex` and `choice`, and JSON
schema's `pattern`.

Runs on HTTP handler threads; imports only the standard library and its neighbours in `server.grammar`. A pattern
becomes a minimal automaton and that becomes the grammar, so that one parse stack stays alive while sampling
however ambiguous the pattern was. Patterns whose automaton would be too large are translated piece by piece
instead.

Not taken: copying the pattern's characters into GBNF, which has other escapes and no anchors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from server.grammar import automaton
from server.grammar.automaton import Charset, Dfa, Nfa, TooLarge
from server.grammar.gbnf import GrammarError, check
from server.grammar.gbnf_build import COUNT_MAX, Builder, choice, factored, literal, print_dfa, sequence
from server.grammar.regex_parse import Node, Unsupported, is_nullable, parse

__all__ = ["Unsupported", "choice_grammar", "compile_pattern", "pattern_pieces", "regex_grammar"]

STATES_MAX = 400
CHOICES_MAX = 10_000


def regex_grammar(pattern: str) -> str:
    """The grammar of the field `regex`: the whole output has to match. Raises `Unsupported`."""
    builder = Builder()
    try:
        dfa = compile_pattern(pattern, search=False)
    except TooLarge:
        return _checked(builder.text(pattern_pieces(builder, pattern, "part", builder.char_class, any_text=None)))
    if dfa.is_empty():
        raise Unsupported("no text matches this pattern")
    return builder.text(print_dfa(builder, dfa, "part", builder.char_class) or '""')


def _checked(grammar: str) -> str:
    """The grammar, unless it is too large for llama.cpp."""
    try:
        check(grammar)
    except GrammarError as error:
        raise Unsupported(f"the pattern is too large: {error.message}") from None
    return grammar


def choice_grammar(choices: list[str]) -> str:
    """The grammar of the field `choice`: the output is one of these texts. ValueError for an empty or wrong
    list."""
    if not isinstance(choices, list) or not choices or not all(isinstance(text, str) for text in choices):
        raise ValueError("'choice' must be a non-empty array of strings")
    if len(choices) > CHOICES_MAX:
        raise ValueError(f"'choice' holds {len(choices)} texts, the limit is {CHOICES_MAX}")
    if any("\0" in text or not _is_text(text) for text in choices):
        raise ValueError("a text in 'choice' holds a NUL character or half a surrogate pair")
    return Builder().text(factored(literal(text) if text else "" for text in choices) or '""')


def _is_text(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


@lru_cache(maxsize=256)
def compile_pattern(pattern: str, *, search: bool) -> Dfa:
    """The minimal automaton of a pattern; with `search` of the texts that hold a match somewhere, as JSON
    schema has it. Raises `Unsupported`, or `TooLarge` beyond STATES_MAX states."""
    looks, node = _split_looks(parse(pattern))
    dfa = _automaton(node, search)
    for negative, inner in looks:
        other = automaton.minimal(_automaton(("cat", [("start",), inner]), search=True))
        dfa = automaton.both(dfa, automaton.negation(other) if negative else other, STATES_MAX * 4)
    dfa = automaton.minimal(dfa)
    if len(dfa.accept) > STATES_MAX:
        raise TooLarge
    return dfa


def _split_looks(node: Node) -> tuple[list[tuple[bool, Node]], Node]:
    """Takes lookaheads off the front of a pattern, `^(?=...)(?!...)...`, where they are plain conditions on
    the whole text. Elsewhere they stay, and are refused later."""
    if node[0] != "cat" or not any(item[0] == "look" for item in node[1]):
        return ([(node[1], node[2])], ("cat", [])) if node[0] == "look" else ([], node)
    items = node[1]
    first = 1 if items[0][0] == "start" else 0
    last = first
    while last < len(items) and items[last][0] == "look":
        last += 1
    if first == 0 and last > 0:
        raise Unsupported("lookahead is supported only behind a '^' that begins the pattern")
    return [(item[1], item[2]) for item in items[first:last]], ("cat", items[:first] + items[last:])


def _automaton(node: Node, search: bool) -> Dfa:
    nfa = Nfa()
    start, final = nfa.state(), nfa.state()
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
    entry, leave = nfa.state(), nfa.state()
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
        raise Unsupported("lookahead is supported only behind a '^' that begins the pattern")
    return entry, leave


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


def pattern_pieces(
    builder: Builder, pattern: str, hint: str, class_of: Callable[[Charset], str], any_text: str | None
) -> str:
    """A pattern translated piece by piece, for those that are too large as automata. `any_text` is put where
    a search is not anchored; None means that the whole text has to match. Raises `Unsupported`."""
    node = parse(pattern)
    branches = node[1] if node[0] == "alt" else [node]
    parts = []
    for branch in branches:
        items = list(branch[1]) if branch[0] == "cat" else [branch]
        anchored_left = bool(items) and items[0] == ("start",)
        anchored_right = bool(items) and items[-1] == ("end",)
        core = items[anchored_left : len(items) - anchored_right]
        parts.append(
            sequence(
                "" if anchored_left or not any_text else any_text,
                *(_piece(builder, item, hint, class_of) for item in core),
                "" if anchored_right or not any_text else any_text,
            )
        )
    return choice(parts)


def _piece(builder: Builder, node: Node, hint: str, class_of: Callable[[Charset], str]) -> str:
    """One node as an expression that can stand in a sequence."""
    kind = node[0]
    if kind == "set":
        return class_of(node[1])
    if kind == "cat":
        return sequence(*(_piece(builder, part, hint, class_of) for part in node[1]))
    if kind == "alt":
        return choice(_piece(builder, part, hint, class_of) for part in node[1])
    if kind != "rep":
        raise Unsupported("an assertion inside a pattern that is too large for an automaton")
    _, part, least, most = node
    if is_nullable(part) and (most is None or most > 1):
        raise Unsupported("a repetition of something that can be empty, in a pattern this large")
    if max(least, most or 0) > COUNT_MAX:
        raise Unsupported("this repetition count is too large")
    expression = _piece(builder, part, hint, class_of)
    return builder.repeat(hint, expression, least, most) if expression else ""
