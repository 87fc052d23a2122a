"""Rewrites grammars that cost llama.cpp too much into equivalent ones that are cheaper.

A part of a grammar without recursion and tokens is regular. It becomes a minimal deterministic automaton, which has one
way to read each text, and is written as rules again. So nested counts, alternatives with common beginnings and
`("a"*)*` cost no more than a simple spelling of the same language.

Pure functions on connection threads. Not taken: rules for special cases; the minimal automaton covers them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from server.grammar import gbnf, gbnf_cost
from server.grammar.automaton import (
    AT_END,
    Charset,
    Dfa,
    Nfa,
    TooLarge,
    collect_characters,
    complement,
    determinise,
    make_charset,
    minimise,
)
from server.grammar.gbnf import LITERAL, REFERENCE, REPEAT, TOKEN, Grammar, GrammarError, Item
from server.grammar.gbnf_build import Builder, make_choice, make_literal, make_sequence, print_dfa

STATES, PLACES, MOVES, DEPTH = 2500, 10_000, 100_000, 60
"""The limits of one automaton: deterministic states, nondeterministic states, moves, nested items."""


def make_affordable(text: str) -> str:
    """The grammar if it passes all checks, else an equivalent one that does. Raises `GrammarError` without one."""
    grammar = gbnf.read(text)
    try:
        gbnf.check_loops(grammar)
        _check_cost(grammar)
        return text
    except GrammarError as error:
        refusal = error
    try:
        rewritten = _Rewriting(grammar).run()
        _check_cost(gbnf.parse(rewritten))
        return rewritten
    except (GrammarError, TooLarge):
        raise refusal from None


def _check_cost(grammar: Grammar) -> None:
    price, offset = gbnf_cost.compute_cost(grammar)
    if price > gbnf_cost.LIMIT:
        raise grammar.make_error(
            "there are too many ways to read the same text from here on, and llama.cpp follows them all:"
            " write the grammar so that the next character decides between alternatives",
            offset,
        )


class _Rewriting:
    """Writes the rules that the root needs. `regular[rule]`: the rule has no recursion and no tokens."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.regular = _find_regular_rules(grammar)
        self.builder = Builder()
        self.names: dict[int, str] = {}
        self.waiting: list[int] = []

    def run(self) -> str:
        root = self.builder.reserve("root")
        self.builder.rules[root] = self.rewrite_alternatives([[Item(REFERENCE, self.grammar.root, 0)]]) or '""'
        while self.waiting:
            rule = self.waiting.pop()
            self.builder.rules[self.names[rule]] = self.rewrite_alternatives(self.grammar.rules[rule]) or '""'
        return self.builder.render_text(root)

    def rewrite_alternatives(self, alternatives: Any) -> str:
        return make_choice(self.rewrite_items(items) for items in alternatives)

    def rewrite_items(self, items: list[Item]) -> str:
        """An alternative: each run of regular items as an automaton, the other items by `rewrite_item`."""
        parts, stretch = [], []
        for item in [*items, None]:
            if item is not None and _is_regular(item, self.regular):
                stretch.append(item)
                continue
            if stretch:
                parts.append(self.write_automaton(stretch))
                stretch = []
            if item is not None:
                parts.append(self.rewrite_item(item))
        return make_sequence(*parts)

    def write_automaton(self, items: list[Item]) -> str:
        """A run of regular items, written with one way to read each text."""
        if all(item.kind == LITERAL for item in items):
            return make_sequence(*(make_literal(item.value) for item in items if item.value))
        dfa = _Automaton(self.grammar).make_dfa(items)
        if dfa.is_empty():
            raise TooLarge
        return print_dfa(self.builder, dfa, "part", self.builder.make_char_class)

    def rewrite_item(self, item: Item) -> str:
        """An item that isn't regular. In a repetition, runs of regular items become automata."""
        if item.kind == REFERENCE:
            if item.value not in self.names:
                self.names[item.value] = self.builder.reserve("rule")
                self.waiting.append(item.value)
            return self.names[item.value]
        if item.kind == REPEAT:
            inner, least, most = item.value
            return self.builder.repeat("again", self.rewrite_items(inner), least, most)
        is_negated, token = item.value
        return ("!" if is_negated else "") + (f"<[{token}]>" if isinstance(token, int) else token)


def _is_regular(item: Item, regular: list[bool]) -> bool:
    while item.kind == REPEAT:
        item = item.value[0][0]
    return item.kind != TOKEN and (item.kind != REFERENCE or regular[item.value])


def _find_regular_rules(grammar: Grammar) -> list[bool]:
    """For each rule whether it is regular: neither it nor any rule that it uses is recursive or has tokens."""
    users: list[list[int]] = [[] for _ in grammar.rules]
    missing = [0] * len(grammar.rules)
    for rule, alternatives in enumerate(grammar.rules):
        for items in alternatives:
            for item in items:
                while item.kind == REPEAT:
                    item = item.value[0][0]
                if item.kind == REFERENCE:
                    users[item.value].append(rule)
                missing[rule] += item.kind in (REFERENCE, TOKEN)
    regular = [False] * len(grammar.rules)
    ready = [rule for rule, n in enumerate(missing) if n == 0]
    while ready:
        rule = ready.pop()
        regular[rule] = True
        for user in users[rule]:
            missing[user] -= 1
            if missing[user] == 0:
                ready.append(user)
    return regular


class _Part(NamedTuple):
    """A part of the automaton: the states of its first and of its last characters, and whether it may be empty."""

    first: list[int]
    last: list[int]
    is_empty: bool


_NOTHING = _Part([], [], True)


class _Automaton:
    """The automaton of regular items. In each state but start and end, a character of the grammar was read last.

    `places[s]`: (place, optional rounds done in each of the repetitions around it). Of two states at the same place,
    one with at most the other's rounds in each repetition accepts all texts that the other does.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.nfa = Nfa(limit=PLACES)
        self.chars: list[Charset] = []
        self.places: list[tuple[tuple, tuple[int, ...]]] = []
        self.n_moves = 0

    def make_dfa(self, items: list[Item]) -> Dfa:
        start, final = (self.add_state((), (), ()) for _ in range(2))
        part = self.add_sequence(items, (), (), 0)
        self.connect([start], part.first)
        for state in (*part.last, *([start] if part.is_empty else ())):
            self.nfa.move(state, final, AT_END)
        return minimise(determinise(self.nfa, start, final, STATES, self.choose_best))

    def choose_best(self, states: set[int]) -> set[int]:
        """The states, without those for which another one accepts all their texts."""
        groups: dict[tuple, list[int]] = {}
        for state in states:
            groups.setdefault(self.places[state][0], []).append(state)
        if len(groups) == len(states):
            return states
        kept: list[int] = []
        for alike in groups.values():
            front: list[int] = []
            for state in sorted(alike, key=lambda state: self.places[state][1]):
                done = self.places[state][1]
                if not any(all(map(int.__le__, self.places[other][1], done)) for other in front):
                    front.append(state)
            kept += front
        return set(kept)

    def add_state(self, chars: Charset, place: tuple, done: tuple[int, ...]) -> int:
        self.chars.append(chars)
        self.places.append((place, done))
        return self.nfa.add_state()

    def connect(self, sources: list[int], targets: list[int]) -> None:
        self.n_moves += len(sources) * len(targets)
        if self.n_moves > MOVES:
            raise TooLarge
        for source in sources:
            for target in targets:
                self.nfa.step(source, self.chars[target], target)

    def join_parts(self, one: _Part, other: _Part) -> _Part:
        self.connect(one.last, other.first)
        return _Part(
            one.first + other.first if one.is_empty else one.first,
            other.last + one.last if other.is_empty else other.last,
            one.is_empty and other.is_empty,
        )

    def add_sequence(self, items: list[Item], place: tuple, done: tuple[int, ...], depth: int) -> _Part:
        if depth > DEPTH:
            raise TooLarge
        part = _NOTHING
        for i, item in enumerate(items):
            part = self.join_parts(part, self.add_item(item, (*place, i), done, depth + 1))
        return part

    def add_item(self, item: Item, place: tuple, done: tuple[int, ...], depth: int) -> _Part:
        if item.kind == REPEAT:
            return self.repeat(item, place, done, depth)
        if item.kind == REFERENCE:
            return self.add_choice(self.grammar.rules[item.value], place, done, depth)
        if item.kind == LITERAL:
            return self.add_choice([[item]], place, done, depth)
        state = self.add_state(_make_chars(item), place, done)
        return _Part([state], [state], False)

    def add_choice(self, alternatives: list[list[Item]], place: tuple, done: tuple[int, ...], depth: int) -> _Part:
        """Literals at the beginning of alternatives become a prefix tree, because there may be thousands."""
        begun: dict[str, int] = {}
        first: list[int] = []
        last: list[int] = []
        is_empty = False
        for i, items in enumerate(alternatives):
            text = items[0].value if items and items[0].kind == LITERAL else ""
            for n in range(1, len(text) + 1):
                if text[:n] not in begun:
                    begun[text[:n]] = self.add_state(collect_characters(text[n - 1]), (*place, text[:n]), done)
                    if n > 1:
                        self.connect([begun[text[: n - 1]]], [begun[text[:n]]])
                    else:
                        first.append(begun[text[:n]])
            part = self.add_sequence(items[1:] if text else items, (*place, i), done, depth)
            if text:
                self.connect([begun[text]], part.first)
                last += [begun[text]] if part.is_empty else []
            else:
                first += part.first
                is_empty = is_empty or part.is_empty
            last += part.last
        return _Part(first, last, is_empty)

    def repeat(self, item: Item, place: tuple, done: tuple[int, ...], depth: int) -> _Part:
        inner, least, most = item.value
        part = _NOTHING
        for i in range(least):
            part = self.join_parts(part, self.add_sequence(inner, (*place, i), done, depth))
        if most is None:
            loop = self.add_sequence(inner, (*place, -1), done, depth)
            self.connect(loop.last, loop.first)
            return self.join_parts(part, _Part(loop.first, loop.last, True))
        rounds, last = _NOTHING, []
        for i in range(most - least):  # empty rounds are left out: they read nothing
            one = self.add_sequence(inner, (*place, -1), (*done, i), depth)
            self.connect(rounds.last, one.first)
            rounds = _Part(rounds.first if i else one.first, one.last, True)
            last += one.last
        return self.join_parts(part, _Part(rounds.first, last, True))


def _make_chars(item: Item) -> Charset:
    is_negated, ranges = item.value
    chars = make_charset(*ranges)
    return complement(chars) if is_negated else chars
