"""Writes GBNF: quoting, rules, counted repetition, shared beginnings of alternatives, and automata as rules.

Runs on connection threads. Expressions are strings. Their class says how they may be combined: `Text` is one quoted
string, `Sequence` is items in a row, `Choice` has a '|' outside of parentheses. Not taken: a tree of nodes, because no
expression is changed once it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from server.grammar.automaton import Charset, Dfa, collect_characters, complement
from server.records import field, record

# llama.cpp v0.5.0 unrolls counted repetitions and refuses more than 2000 (`MAX_REPETITION_THRESHOLD`).
BLOCK = 1000  # the largest count that is written; larger ones become rules of BLOCK copies
COUNT_MAX = BLOCK * 1000  # the largest count that `Builder.repeat` takes

_UNSAFE_NAME = re.compile(r"[^A-Za-z0-9]+")
_UNSAFE_TEXT = re.compile('["\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]')
_LITERAL_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CLASS_ESCAPES = {"]": "\\]", "[": "\\[", "\\": "\\\\", "-": "\\-", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ATOM = re.compile(r"[A-Za-z0-9-]+|\.|\[(?:[^\]\\]|\\.)*\]")
_UNIT = re.compile(r"\\(?:x..|u.{4}|U.{8}|.)|.", re.DOTALL)
_INLINE_DEPTH = 6  # nested parentheses; deeper parts become rules
_TAIL_INLINE = 64  # characters of a counted tail; longer tails become rules
_UNROLLED_MAX = 4000  # characters in all counted tails of one automaton; further tails become rules
_CLASS_RANGES_MAX = 6  # ranges of a class; larger classes become rules


class Text(str):
    """A quoted string; neighbouring ones can be joined."""

    __slots__ = ()


class Choice(str):
    """Alternatives; they need parentheses inside a sequence."""

    __slots__ = ()


class Sequence(str):
    """Items in a row. `items` keeps them apart, so that strings at the ends can still be joined."""

    items: tuple[str, ...]


def make_literal(text: str) -> Text:
    return Text('"' + _UNSAFE_TEXT.sub(_escape_match, text) + '"')


def _escape_match(match: re.Match[str]) -> str:
    return _LITERAL_ESCAPES.get(match.group()) or _make_printable(match.group())


def _make_printable(char: str) -> str:
    if not _UNSAFE_TEXT.match(char):
        return char
    code = ord(char)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}"


@lru_cache(maxsize=1024)
def make_char_class(chars: Charset) -> str:
    """The GBNF class of a non-empty character set; a single character is a literal.

    The class is never negated. With `[^...]` llama.cpp accepts half surrogates, and refuses a token that ends inside a
    character that could become an excluded one.
    """
    if len(chars) == 1 and chars[0][0] == chars[0][1]:
        return make_literal(chr(chars[0][0]))
    return "[" + _make_class_body(chars) + "]"


def _make_class_body(chars: Charset) -> str:
    parts = []
    for low, high in chars:
        parts.append(_make_class_char(low))
        if high > low:
            parts.append(("-" if high > low + 1 else "") + _make_class_char(high))
    return "".join(parts)


def _make_class_char(code: int) -> str:
    char = chr(code)
    if char == "^":
        return "\\x5E"
    if code > 0xFFFF:
        return f"\\U{code:08X}"
    if code > 0x7E:
        return f"\\u{code:04X}"
    return _CLASS_ESCAPES.get(char) or _make_printable(char)


def make_sequence(*parts: str) -> str:
    """The parts in a row, without empty ones; neighbouring strings are joined."""
    items: list[str] = []
    texts: list[str] = []
    for part in parts:
        if not part:
            continue
        new = part.items if isinstance(part, Sequence) else (part,)
        text = f"({part})" if isinstance(part, Choice) else part
        if items and isinstance(items[-1], Text) and isinstance(new[0], Text):
            items[-1] = Text(items[-1][:-1] + new[0][1:])
            items.extend(new[1:])
            texts[-1] = texts[-1][:-1] + text[1:]
        else:
            items.extend(new)
            texts.append(text)
    if len(items) < 2:
        return items[0] if items else ""
    result = Sequence(" ".join(texts))
    result.items = tuple(items)
    return result


def make_choice(parts: Iterable[str]) -> str:
    """The parts as alternatives, without duplicates; an empty part makes the whole optional."""
    unique = dict.fromkeys(parts)
    filled = [part for part in unique if part]
    if not filled:
        return ""
    expression = filled[0] if len(filled) == 1 else Choice(" | ".join(filled))
    return expression if len(filled) == len(unique) else make_optional(expression)


def make_factored(parts: Iterable[str], depth: int = 0) -> str:
    """The parts as alternatives, with common beginnings written once.

    The sampler tests the vocabulary on every open alternative, so thirty objects with the same first key would cost
    thirty times as much.
    """
    unique = list(dict.fromkeys(parts))
    heads: dict[str, list[tuple[str, ...]]] = {}
    for part in unique:
        items = part.items if isinstance(part, Sequence) else (part,) if part else ()
        is_text = bool(items) and isinstance(items[0], Text)
        head = _UNIT.match(items[0], 1).group() if is_text else "".join(items[:1])
        heads.setdefault(head, []).append(items)
    if len(heads) == len(unique) or depth > _INLINE_DEPTH:
        return make_choice(unique)
    ways = []
    for rows in heads.values():
        common, rests = _split_common(rows)
        ways.append(make_sequence(*common, make_factored([make_sequence(*rest) for rest in rests], depth + 1)))
    return make_choice(ways)


def _split_common(rows: list[tuple[str, ...]]) -> tuple[list[str], list[list[str]]]:
    """(the items that all rows begin with, the rest of each row). Strings are split between characters."""
    size = 0
    shortest = min(map(len, rows))
    while size < shortest and all(row[size] == rows[0][size] for row in rows):
        size += 1
    common, rests = list(rows[0][:size]), [list(row[size:]) for row in rows]
    if all(rest and isinstance(rest[0], Text) for rest in rests) and len(rows) > 1:
        texts = [_UNIT.findall(rest[0][1:-1]) for rest in rests]
        same = 0
        while same < min(map(len, texts)) and all(text[same] == texts[0][same] for text in texts):
            same += 1
        if same:
            common.append(Text('"' + "".join(texts[0][:same]) + '"'))
            for rest, text in zip(rests, texts):
                rest[:1] = [Text('"' + "".join(text[same:]) + '"')] if text[same:] else []
    return common, rests


def group(expression: str) -> str:
    """The expression, in parentheses if it needs them before an operator."""
    if isinstance(expression, Text) or _ATOM.fullmatch(expression):
        return expression
    return f"({expression})"


def make_optional(expression: str) -> str:
    return group(expression) + "?" if expression else ""


@record
class Builder:
    """Collects rules; `define` gives equal bodies one rule. `check` is called for each rule and may raise to stop."""

    check: Callable[[], None] = lambda: None
    rules: dict[str, str | None] = field(default_factory=dict)
    names_by_body: dict[str, str] = field(default_factory=dict)
    next_number: dict[str, int] = field(default_factory=dict)

    def reserve(self, hint: str) -> str:
        """Returns a new name whose body is set later: for rules that refer to themselves."""
        self.check()
        base = _UNSAFE_NAME.sub("-", hint[:100]).strip("-")[:40] or "rule"
        number = self.next_number.get(base, 1)
        name = base if number == 1 else f"{base}-{number}"
        while name in self.rules:
            number += 1
            name = f"{base}-{number}"
        self.next_number[base] = number + 1
        self.rules[name] = None
        return name

    def define(self, hint: str, body: str) -> str:
        """Returns the name of the rule with this body, and adds it if there is none."""
        self.check()
        name = self.names_by_body.get(body)
        if name is None:
            name = self.names_by_body[body] = self.reserve(hint)
            self.rules[name] = body
        return name

    def make_char_class(self, chars: Charset) -> str:
        """The class of a character set; a long one becomes a rule."""
        text = make_char_class(chars)
        return self.define("chars", text) if len(chars) > _CLASS_RANGES_MAX else text

    def repeat(self, hint: str, expression: str, least: int, most: int | None) -> str:
        """The expression `least` to `most` times (None: unbounded; both at most COUNT_MAX). Counts above BLOCK use
        rules of BLOCK copies."""
        if most == 0:
            return ""
        if (least, most) == (1, 1):
            return expression
        mark = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
        composite = not isinstance(expression, Text) and not _ATOM.fullmatch(expression)
        if composite and (mark is None or "{" in expression):
            expression = self.define(hint, expression)
        item = group(expression)
        if mark is not None:
            return item + mark
        if max(least, most or 0) <= BLOCK:
            return item + _count(least, most)
        return self._repeat_blocks(hint, item, least, most)

    def _repeat_blocks(self, hint: str, item: str, least: int, most: int | None) -> str:
        block = self.define(f"{hint}-{BLOCK}", f"{item}{{{BLOCK}}}")
        blocks, rest = divmod(least, BLOCK)
        head = make_sequence(*([f"{block}{{{blocks}}}"] if blocks else []), *([f"{item}{{{rest}}}"] if rest else []))
        if most is None:
            return make_sequence(head, f"{item}*")
        blocks, rest = divmod(most - least, BLOCK)
        if not blocks:
            return make_sequence(head, f"{item}{{0,{rest}}}" if rest else "")
        full = f"{block}{{{blocks}}}" + (f" {item}{{0,{rest}}}" if rest else "")
        tail = f"{full} | {block}{{0,{blocks - 1}}} {item}{{0,{BLOCK - 1}}}"
        return make_sequence(head, self.define(f"{hint}-tail", tail))

    def render_text(self, root: str) -> str:
        """The grammar. `root`: the root rule's expression, or 'root' if a rule has that name."""
        lines = [] if root == "root" else [f"root ::= {root}"]
        lines += [f"{name} ::= {body}" for name, body in self.rules.items()]
        return "\n".join(lines) + "\n"


def _count(least: int, most: int | None) -> str:
    if most is None:
        return f"{{{least},}}"
    return f"{{{least}}}" if least == most else f"{{{least},{most}}}"


def exclude_words(builder: Builder, texts: list[str], char: str, class_of: Callable[[Charset], str]) -> str:
    """Any text made of `char` except these words. A terminator that `char` can't match must follow."""
    children: dict[str, dict] = {}
    ends: set[int] = set()
    for text in texts:
        builder.check()
        node = children
        for letter in text:
            node = node.setdefault(letter, {})
        ends.add(id(node))
    order, index = [children], 0
    while index < len(order):
        order.extend(order[index].values())
        index += 1
    names: dict[int, str] = {}
    for node in reversed(order):
        builder.check()
        parts = [
            make_sequence(class_of(collect_characters(letter)), names[id(child)]) for letter, child in node.items()
        ]
        rest = complement(collect_characters("".join(node)))
        parts.append(make_sequence(class_of(rest), f"{char}*"))
        names[id(node)] = builder.define("other", make_choice(parts if id(node) in ends else ["", *parts]))
    return names[id(children)]


def print_dfa(builder: Builder, dfa: Dfa, hint: str, class_of: Callable[[Charset], str]) -> str:
    """The expression of a minimal automaton. `class_of` writes one character set. The automaton must not be empty.

    A state with one use is written in place, a run of one class as a count, a move to the same state as '*'.
    """
    return _Printer(builder, dfa, hint, class_of).run()


def count_rules(dfa: Dfa) -> int:
    """The number of rules that `print_dfa` writes, without those of character sets."""
    builder = Builder()
    print_dfa(builder, dfa, "rule", lambda chars: "x")
    return len(builder.rules)


class _Printer:
    def __init__(self, builder: Builder, dfa: Dfa, hint: str, class_of: Callable[[Charset], str]) -> None:
        self.builder = builder
        self.dfa = dfa
        self.hint = hint
        self.class_of = class_of
        uses = [1] + [0] * (len(dfa.moves) - 1)
        for state, here in enumerate(dfa.moves):
            for _, target in here:
                uses[target] += target != state
        self.uses = uses
        self.tails = _find_counted_tails(dfa)
        self.unrolled = 0
        self.names: dict[int, str] = {}
        self.waiting: list[int] = []

    def run(self) -> str:
        result = self.render_reference(0) if self.uses[0] > 1 else self.render_body(0, 0)
        while self.waiting:
            state = self.waiting.pop()
            self.builder.rules[self.names[state]] = self.render_body(state, 0)
        return result

    def render_reference(self, state: int) -> str:
        if not self.dfa.moves[state]:
            return ""
        tail = self.tails[state]
        if tail is not None:
            self.unrolled += tail[1]
            if self.unrolled > _UNROLLED_MAX:
                tail = self.tails[state] = None
        if tail is not None:
            chars, count, base = tail
            counted = self.builder.repeat(self.hint, self.class_of(chars), 0, count)
            if count > _TAIL_INLINE:
                counted = self.builder.define(f"{self.hint}-tail", counted)
            return make_sequence(counted, self.render_reference(base))
        if state not in self.names:
            self.names[state] = self.builder.reserve(self.hint)
            self.waiting.append(state)
        return self.names[state]

    def render_target(self, state: int, depth: int) -> str:
        """What follows a move to `state`: a reference, or the body in place."""
        if self.uses[state] > 1 or depth >= _INLINE_DEPTH:
            return self.render_reference(state)
        return self.render_body(state, depth)

    def render_body(self, state: int, depth: int) -> str:
        """The expression of the texts from `state` on."""
        parts: list[str] = []
        while True:
            if self.tails[state] is not None:
                return make_sequence(*parts, self.render_reference(state))
            loop = [chars for chars, target in self.dfa.moves[state] if target == state]
            others = [(chars, target) for chars, target in self.dfa.moves[state] if target != state]
            if loop:
                parts.append(group(self.class_of(loop[0])) + "*")
            if not others:
                return make_sequence(*parts)
            if len(others) > 1 or self.dfa.accept[state]:
                break
            chars, count, state = self.run_of(others[0])
            parts.append(self.builder.repeat(self.hint, self.class_of(chars), count, count))
            if self.uses[state] > 1:
                return make_sequence(*parts, self.render_reference(state))
        ways = [make_sequence(self.class_of(chars), self.render_target(target, depth + 1)) for chars, target in others]
        tail = make_choice(ways)
        return make_sequence(*parts, make_optional(tail) if self.dfa.accept[state] else tail)

    def run_of(self, move: tuple[Charset, int]) -> tuple[Charset, int, int]:
        """A move and those after it with the same characters, through states with one use: (characters, count, last
        state)."""
        chars, state = move
        count = 1
        while (
            self.uses[state] == 1
            and not self.dfa.accept[state]
            and len(self.dfa.moves[state]) == 1
            and self.dfa.moves[state][0][0] == chars
            and self.dfa.moves[state][0][1] != state
        ):
            state = self.dfa.moves[state][0][1]
            count += 1
        return chars, count, state


def _find_counted_tails(dfa: Dfa) -> list[tuple[Charset, int, int] | None]:
    """For each state: (class, n, base state) if its texts are `class{0,n}` and then a text of the base, else None.

    Such a state has the moves of its base and one more.
    """
    tails: list[tuple[Charset, int, int] | None] = [None] * len(dfa.moves)
    moves = [frozenset(here) for here in dfa.moves]
    sources: list[list[tuple[int, Charset]]] = [[] for _ in moves]
    ready: list[tuple[int, Charset, int, int, int]] = []
    for state, here in enumerate(dfa.moves):
        for chars, target in here:
            sources[target].append((state, chars))
            if state != target:
                ready.append((state, chars, target, target, 1))
    while ready:
        state, chars, target, base, count = ready.pop()
        same = dfa.accept[state] == dfa.accept[base] and moves[state] - {(chars, target)} == moves[base]
        if same and tails[state] is None:
            tails[state] = (chars, count, base)
            ready += [(source, chars, state, base, count + 1) for source, other in sources[state] if other == chars]
    return tails
