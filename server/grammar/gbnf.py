"""Reads GBNF, llama.cpp's grammar notation, and refuses grammars that would crash or hang its sampler.

Runs on connection threads, before native code; `read` also on the engine thread. llama.cpp parses by recursion without
a depth limit, follows leftmost references without remembering visited ones (exponential for some grammars), misses some
left recursions and loops forever on `{5,2}`. This module reads the notation of llama.cpp v0.5.0
(`src/llama-grammar.cpp`) without recursion and in nearly linear time.

Not taken: a lenient reader that repairs grammars. What llama.cpp would refuse is refused here, with line and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from server.records import field, record

LITERAL, CHARS, TOKEN, REFERENCE, REPEAT = range(5)

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_CLASS = re.compile(r"\[(\^?)((?:[^\]\\]|\\.)*)\]", re.DOTALL)
_TOKEN = re.compile(r"(!?)<(?:\[([0-9]+)\]|([^>\[][^>]*)?)>")
_COUNT = re.compile(r"[0-9]+")
_HEX_ESCAPE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})")
_PLAIN_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_POSTFIX = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_MAX_CODE_POINT = 0x10FFFF
_MAX_TOKEN = 2**31 - 1


class GrammarError(Exception):
    """A refused grammar: a one-line `message`, `line` and `column` (both from 1)."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"{message} (line {line}, column {column})")
        self.message = message
        self.line = line
        self.column = column


@record(frozen=True)
class Limits:
    """Upper bounds for a grammar, which keep llama.cpp's C++ stack and time small."""

    text_bytes: int = 1 << 20
    depth: int = 200  # nested parentheses
    rules: int = 100_000  # with those that llama.cpp makes of repetitions and groups
    elements: int = 500_000  # elements of these rules
    repetitions: int = 2_000  # copies of one item; llama.cpp's own limit
    chain: int = 1_000  # levels of native recursion
    visits: int = 2_000_000  # native calls of llama.cpp's search for left recursion
    width: int = 1_000  # alternatives open at one place; llama.cpp tests the vocabulary against each of them


class Item(NamedTuple):
    """One element of a sequence. `offset` is its place in the text. `value` by kind: LITERAL str; CHARS (is_negated,
    ((low, high), ...)); TOKEN (is_negated, id or text); REFERENCE rule number; REPEAT (items, least, most or None)."""

    kind: int
    value: Any
    offset: int


@record
class Grammar:
    """A parsed grammar. `rules[i]` is a list of alternatives, each a list of items; each pair of parentheses is a rule
    of its own. `names` maps the names in the text to rule numbers."""

    text: str
    names: dict[str, int] = field(default_factory=dict)
    rules: list[list[list[Item]] | None] = field(default_factory=list)
    root: int = 0

    def make_error(self, message: str, offset: int) -> GrammarError:
        before = self.text[:offset]
        return GrammarError(message, before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def check(text: str, *, root: str = "root", limits: Limits = Limits()) -> None:
    """Raises `GrammarError` unless llama.cpp v0.5.0 can load and run the grammar within `limits`."""
    parse(text, root=root, limits=limits)


def parse(text: str, *, root: str = "root", limits: Limits = Limits()) -> Grammar:
    """The checked grammar as data. Raises `GrammarError`."""
    grammar = read(text, root=root, limits=limits)
    check_loops(grammar, limits)
    return grammar


def read(text: str, *, root: str = "root", limits: Limits = Limits()) -> Grammar:
    """The grammar as data, without the checks of loops and width. Raises `GrammarError`."""
    grammar = Grammar(text)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise grammar.make_error("the grammar contains half of a surrogate pair", error.start) from None
    if size > limits.text_bytes:
        raise grammar.make_error(f"the grammar has {size} bytes, the limit is {limits.text_bytes}", 0)
    if "\0" in text:
        raise grammar.make_error("the grammar contains a NUL character; write \\x00", text.index("\0"))
    _Parser(grammar, limits).run()
    if root not in grammar.names or grammar.rules[grammar.names[root]] is None:
        raise grammar.make_error(f"the grammar has no rule named '{root}'", 0)
    grammar.root = grammar.names[root]
    return grammar


@record
class _Group:
    """A rule or parenthesis that is still open while parsing. `sizes[i]`: native elements of `items[i]`. `factor`
    mirrors llama.cpp's n_prev_rules: the native rules that the last item stands for. They limit how often it may be
    repeated."""

    rule: int
    offset: int
    symbols_before: int = 0
    alternatives: list[list[Item]] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    factor: int = 1


class _Parser:
    """One pass over the text, with a stack of open groups in place of recursion."""

    def __init__(self, grammar: Grammar, limits: Limits) -> None:
        self.grammar = grammar
        self.text = grammar.text
        self.limits = limits
        self.position = 0
        self.symbols = 0
        self.elements = 0
        self.uses: dict[int, int] = {}
        self.groups: list[_Group] = []

    def make_error(self, message: str, offset: int | None = None) -> GrammarError:
        return self.grammar.make_error(message, self.position if offset is None else offset)

    def run(self) -> None:
        self.skip_space(lines=True)
        while self.position < len(self.text):
            self.read_rule()
        names = {number: name for name, number in self.grammar.names.items()}
        for number, offset in self.uses.items():
            if self.grammar.rules[number] is None:
                raise self.make_error(f"the rule '{names[number]}' is used but not defined", offset)

    def skip_space(self, lines: bool) -> None:
        pattern = _SPACE_LINES if lines else _SPACE
        self.position = pattern.match(self.text, self.position).end()

    def add_symbol(self, count: int = 1) -> None:
        self.symbols += count
        if self.symbols > self.limits.rules:
            raise self.make_error(f"the grammar expands to more than {self.limits.rules} rules")

    def add_rule(self) -> int:
        self.add_symbol()
        self.grammar.rules.append(None)
        return len(self.grammar.rules) - 1

    def get_named_rule(self, name: str) -> int:
        if name not in self.grammar.names:
            self.grammar.names[name] = self.add_rule()
        return self.grammar.names[name]

    def read_rule(self) -> None:
        start = self.position
        match = _NAME.match(self.text, start)
        if match is None:
            hint = (
                "; an alternative on a new line needs a '|' at the end of the line before, or parentheses"
                if self.text[start] == "|"
                else ""
            )
            raise self.make_error(f"expected the name of a rule{hint}")
        self.position = match.end()
        rule = self.get_named_rule(match.group())
        self.skip_space(lines=False)
        if not self.text.startswith("::=", self.position):
            raise self.make_error("expected '::=' (names of rules are letters, digits and '-')")
        self.position += 3
        self.skip_space(lines=True)
        self.groups = [_Group(rule, start)]
        while self.read_item():
            pass
        if len(self.groups) > 1:
            raise self.make_error("this '(' is never closed", self.groups[-1].offset)
        self.close_group()
        if self.position < len(self.text) and self.text[self.position] not in "\r\n":
            raise self.make_error(f"unexpected {self.text[self.position]!r}")
        self.skip_space(lines=True)

    def read_item(self) -> bool:
        """Reads one item, operator or parenthesis; False at the end of the rule."""
        if self.position >= len(self.text):
            return False
        char = self.text[self.position]
        reader = _READERS.get(char)
        if reader is not None:
            reader(self)
        elif _NAME.match(char):
            self.read_reference()
        elif char == ")" and len(self.groups) > 1:
            self.end_group()
        else:
            if len(self.groups) > 1:
                raise self.make_error(f"unexpected {char!r} inside parentheses")
            return False
        self.skip_space(lines=len(self.groups) > 1)
        return True

    def add(self, item: Item, size: int, factor: int = 1) -> None:
        group = self.groups[-1]
        group.items.append(item)
        group.sizes.append(size)
        group.factor = factor
        self.count_elements(size)

    def count_elements(self, count: int) -> None:
        self.elements += count
        if self.elements > self.limits.elements:
            raise self.make_error(f"the grammar expands to more than {self.limits.elements} elements; repeat less")

    def read_literal(self) -> None:
        start = self.position
        match = _LITERAL.match(self.text, start)
        if match is None:
            raise self.make_error("this string is never closed")
        body = match.group(1)
        if "\\" in body:
            body = "".join(chr(code) for code, _ in self.decode_characters(body, start + 1))
        self.add(Item(LITERAL, body, start), len(body))
        self.position = match.end()

    def decode_characters(self, body: str, offset: int) -> list[tuple[int, int]]:
        """(code point, index after it in `body`) of each character, escapes decoded."""
        result = []
        index = 0
        while index < len(body):
            if body[index] != "\\":
                index += 1
                result.append((ord(body[index - 1]), index))
                continue
            plain = _PLAIN_ESCAPES.get(body[index + 1])
            match = _HEX_ESCAPE.match(body, index + 1)
            if match is not None:
                code = int(match.group(match.lastindex or 0), 16)
            elif plain is not None:
                code = ord(plain)
            else:
                raise self.make_error(
                    f"unknown or unfinished escape: a backslash and {body[index + 1]!r}", offset + index
                )
            if code > _MAX_CODE_POINT:
                raise self.make_error("this character is beyond U+10FFFF", offset + index)
            index = index + 2 if match is None else match.end()
            result.append((code, index))
        return result

    def read_class(self) -> None:
        start = self.position
        match = _CLASS.match(self.text, start)
        if match is None:
            raise self.make_error("this '[' is never closed")
        body, offset = match.group(2), start + 1 + len(match.group(1))
        if not body:
            raise self.make_error("this character class is empty; '.' stands for any character")
        ranges = self.parse_ranges(body, offset)
        self.add(Item(CHARS, (bool(match.group(1)), tuple(ranges)), start), 2 * len(ranges))
        self.position = match.end()

    def parse_ranges(self, body: str, offset: int) -> list[tuple[int, int]]:
        """The ranges of a class. As in llama.cpp, '-' makes a range only between two characters."""
        characters = self.decode_characters(body, offset)
        ranges = []
        index = 0
        while index < len(characters):
            low, behind = characters[index]
            high = low
            if index + 2 < len(characters) and body[behind] == "-":
                high = characters[index + 2][0]
                index += 2
            if high < low:
                raise self.make_error("this range is in the wrong order", offset + behind)
            ranges.append((low, high))
            index += 1
        return ranges

    def read_any(self) -> None:
        self.add(Item(CHARS, (False, ((0, _MAX_CODE_POINT),)), self.position), 1)
        self.position += 1

    def read_token(self) -> None:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise self.make_error("expected a token: <[id]> or <text>")
        number = int(match.group(2)[:12]) if match.group(2) else None
        if number is not None and number > _MAX_TOKEN:
            raise self.make_error("this token id is too large")
        value = f"<{match.group(3) or ''}>" if number is None else number
        self.add(Item(TOKEN, (bool(match.group(1)), value), self.position), 1)
        self.position = match.end()

    def read_reference(self) -> None:
        match = _NAME.match(self.text, self.position)
        rule = self.get_named_rule(match.group())
        self.uses.setdefault(rule, self.position)
        self.add(Item(REFERENCE, rule, self.position), 1)
        self.position = match.end()

    def start_group(self) -> None:
        if len(self.groups) > self.limits.depth:
            raise self.make_error(f"parentheses are nested deeper than {self.limits.depth}")
        before = self.symbols
        self.groups.append(_Group(self.add_rule(), self.position, before))
        self.position += 1

    def end_group(self) -> None:
        group = self.close_group()
        self.add(Item(REFERENCE, group.rule, group.offset), 1, max(1, self.symbols - group.symbols_before))
        self.position += 1

    def close_group(self) -> _Group:
        """Ends the innermost rule or group. Of two rules with the same name the later one counts, as in llama.cpp. The
        earlier one stays in the native grammar, so it is checked as well."""
        group = self.groups.pop()
        group.alternatives.append(group.items)
        if self.grammar.rules[group.rule] is not None:
            self.grammar.rules.append(self.grammar.rules[group.rule])
        self.grammar.rules[group.rule] = group.alternatives
        self.count_elements(len(group.alternatives))
        return group

    def begin_alternative(self) -> None:
        group = self.groups[-1]
        group.alternatives.append(group.items)
        group.items, group.sizes, group.factor = [], [], 1
        self.position += 1
        self.skip_space(lines=True)

    def read_postfix(self) -> None:
        least, most = _POSTFIX[self.text[self.position]]
        self.repeat(least, most, self.position)
        self.position += 1

    def read_braces(self) -> None:
        start = self.position
        lines = len(self.groups) > 1
        self.position += 1
        self.skip_space(lines)
        least = self.read_count()
        most: int | None = least
        self.skip_space(lines)
        if self.text.startswith(",", self.position):
            self.position += 1
            self.skip_space(lines)
            has_most = _COUNT.match(self.text, self.position)
            most = self.read_count() if has_most else None
            self.skip_space(lines)
        if not self.text.startswith("}", self.position):
            raise self.make_error("expected '}' after the numbers of a repetition")
        if most is not None and most < least:
            raise self.make_error("this repetition has its numbers in the wrong order", start)
        self.repeat(least, most, start)
        self.position += 1

    def read_count(self) -> int:
        match = _COUNT.match(self.text, self.position)
        if match is None:
            raise self.make_error("expected a number")
        digits = match.group().lstrip("0") or "0"
        if len(digits) > 9 or int(digits) > self.limits.repetitions:
            raise self.make_error(
                f"a repetition count can be at most {self.limits.repetitions};"
                " repeat a rule that repeats, or omit the bound"
            )
        self.position = match.end()
        return int(digits)

    def repeat(self, least: int, most: int | None, offset: int) -> None:
        """Wraps the last item in a repetition; llama.cpp limits nested ones."""
        group = self.groups[-1]
        if not group.items or group.sizes[-1] == 0:
            raise self.make_error("nothing stands before this repetition", offset)
        copies = most or least or 1
        if group.factor * copies > self.limits.repetitions:
            raise self.make_error(
                f"nested repetitions multiply to more than {self.limits.repetitions};"
                " write the inner part as a rule of its own",
                offset,
            )
        group.factor *= copies
        item, size = group.items.pop(), group.sizes.pop()
        n_optional = 1 if most is None else most - least
        self.add_symbol(n_optional)
        size_now = least * size + (1 if n_optional else 0)
        self.count_elements(size_now - size + n_optional * (size + 3))
        group.items.append(Item(REPEAT, ([item], least, most), offset))
        group.sizes.append(size_now)


_READERS = {
    '"': _Parser.read_literal,
    "[": _Parser.read_class,
    "<": _Parser.read_token,
    "!": _Parser.read_token,
    ".": _Parser.read_any,
    "(": _Parser.start_group,
    "|": _Parser.begin_alternative,
    "{": _Parser.read_braces,
    "*": _Parser.read_postfix,
    "+": _Parser.read_postfix,
    "?": _Parser.read_postfix,
}


def find_nullable_rules(grammar: Grammar) -> list[bool]:
    """For each rule whether it can match the empty text."""
    nullable = [False] * len(grammar.rules)
    waiting: dict[int, list[tuple[int, int]]] = {}
    missing: list[int] = []
    ready = []
    for number, alternatives in enumerate(grammar.rules):
        for items in alternatives:
            needs = _find_needs(items)
            if needs is None:
                continue
            for rule in needs:
                waiting.setdefault(rule, []).append((number, len(missing)))
            if not needs:
                ready.append(number)
            missing.append(len(needs))
    while ready:
        rule = ready.pop()
        if nullable[rule]:
            continue
        nullable[rule] = True
        for number, sequence in waiting.get(rule, ()):
            missing[sequence] -= 1
            if missing[sequence] == 0:
                ready.append(number)
    return nullable


def _find_needs(items: list[Item]) -> list[int] | None:
    """The rules that must be nullable for this sequence to be nullable; None if it never is."""
    needs = []
    for item in items:
        while item.kind == REPEAT and item.value[1] > 0:
            item = item.value[0][0]
        if item.kind == REFERENCE:
            needs.append(item.value)
        elif not (item.kind == REPEAT or (item.kind == LITERAL and not item.value)):
            return None
    return needs


def _is_empty(item: Item, nullable: list[bool]) -> bool:
    """Whether an item that isn't a repetition can match the empty text."""
    return nullable[item.value] if item.kind == REFERENCE else item.kind == LITERAL and not item.value


class _Edge(NamedTuple):
    """A possible leftmost item of a rule: a reference, or a terminal (rule None). For one call of the containing rule,
    llama.cpp reaches the item `times` times, `levels` calls deep, and makes `visits` calls for repetitions."""

    rule: int | None
    offset: int
    levels: int
    times: int
    visits: int


def check_loops(grammar: Grammar, limits: Limits = Limits()) -> None:
    """Refuses endless loops, too long or too many chains of leftmost references, and too many open alternatives."""
    nullable = find_nullable_rules(grammar)
    edges: list[list[_Edge]] = []
    for alternatives in grammar.rules:
        found: list[_Edge] = []
        for items in alternatives:
            _add_edges(grammar, items, nullable, found)
        edges.append(found)
    order = _check_chains(grammar, edges, limits)
    _check_widths(grammar, nullable, order, limits)


def _add_edges(grammar: Grammar, items: list[Item], nullable: list[bool], found: list[_Edge]) -> None:
    """Collects the possible leftmost items of one alternative. Refuses an unbounded repetition of something that can be
    empty."""
    leftmost = True
    for item in items:
        repeats = []
        while item.kind == REPEAT:
            repeats.append(item)
            item = item.value[0][0]
        empty = _is_empty(item, nullable)
        levels, times, visits = 0, 1, 0
        for repeat in reversed(repeats):
            _, least, most = repeat.value
            if empty and most is None:
                raise grammar.make_error(
                    "this repetition is an endless loop: what it repeats can be empty", repeat.offset
                )
            copies = (most or least) if empty else 1
            levels += copies
            times, visits = min(times * copies, 1 << 60), min((visits + 1) * copies, 1 << 60)
            empty = empty or least == 0
        if leftmost and (item.kind == REFERENCE or levels):
            found.append(_Edge(item.value if item.kind == REFERENCE else None, item.offset, levels, times, visits))
        leftmost = leftmost and empty


def _check_chains(grammar: Grammar, edges: list[list[_Edge]], limits: Limits) -> list[int]:
    """Searches leftmost references depth-first, for left recursion (a cycle) and for the limits of depth and visits.
    Returns the rules, each after all rules that it can begin with."""
    order = []
    depth = [0] * len(edges)
    visits = [0] * len(edges)
    state = [0] * len(edges)
    for start in range(len(edges)):
        stack = [(start, 0)] if state[start] == 0 else []
        while stack:
            rule, index = stack.pop()
            state[rule] = 1
            if index < len(edges[rule]):
                edge = edges[rule][index]
                stack.append((rule, index + 1))
                if edge.rule is not None and state[edge.rule] == 1:
                    raise grammar.make_error(
                        f"the rule '{_name_of(grammar, stack)}' is left-recursive: it can begin with itself",
                        edge.offset,
                    )
                if edge.rule is not None and state[edge.rule] == 0:
                    stack.append((edge.rule, 0))
                continue
            state[rule] = 2
            order.append(rule)
            depth[rule] = 1 + max(
                (edge.levels + (depth[edge.rule] if edge.rule is not None else 0) for edge in edges[rule]), default=0
            )
            visits[rule] = 1 + sum(
                edge.visits + (edge.times * visits[edge.rule] if edge.rule is not None else 0) for edge in edges[rule]
            )
            if depth[rule] > limits.chain:
                raise grammar.make_error(
                    f"rules begin with rules more than {limits.chain} levels deep", edges[rule][0].offset
                )
            if visits[rule] > limits.visits:
                raise grammar.make_error(
                    "too many ways to reach the first character: several references to the same rule"
                    " at the beginning of a rule multiply",
                    edges[rule][0].offset,
                )
    return order


def _check_widths(grammar: Grammar, nullable: list[bool], order: list[int], limits: Limits) -> None:
    """Refuses places where more than `limits.width` alternatives are open. `order` is the result of `_check_chains`."""
    widths = [0] * len(grammar.rules)
    for rule in order:
        begins = [next(_count_widths(items, nullable, widths), 0) for items in grammar.rules[rule]]
        widths[rule] = min(1 << 60, sum(begins))
    for rule in order:
        for items in grammar.rules[rule]:
            widest = max(_count_widths(items, nullable, widths), default=0)
            if max(widest, widths[rule]) > limits.width:
                raise grammar.make_error(
                    f"more than {limits.width} alternatives are open here: write a beginning that alternatives "
                    "have in common only once, as 'choice' does",
                    items[0].offset,
                )


def _count_widths(items: list[Item], nullable: list[bool], widths: list[int]) -> Iterator[int]:
    """The open alternatives at the start of each run of items. A run ends with the first item that can't be empty."""
    run: list[int] = []
    for item in items:
        copies, empty, inner = 1, False, item
        while inner.kind == REPEAT:
            inner, least, most = inner.value[0][0], inner.value[1], inner.value[2]
            empty = empty or least == 0
            copies *= (most or least or 1) if _can_be_empty(inner, nullable) else 1
        empty = empty or _is_empty(inner, nullable)
        run.append((widths[inner.value] if inner.kind == REFERENCE else 1) * copies)
        if not empty:
            yield sum(run)
            run = []
    if run:
        yield sum(run)


def _can_be_empty(item: Item, nullable: list[bool]) -> bool:
    while item.kind == REPEAT:
        if item.value[1] == 0:
            return True
        item = item.value[0][0]
    return _is_empty(item, nullable)


def _name_of(grammar: Grammar, stack: list[tuple[int, int]]) -> str:
    """The innermost named rule on the search's stack. Groups have no name."""
    names = {number: name for name, number in grammar.names.items()}
    return next((names[rule] for rule, _ in reversed(stack) if rule in names), "root")
