"""A reference for grammars: whether a grammar accepts a text, and which texts it produces.

Runs in the test process; imports this project's GBNF reader, which is tested separately (`test_gbnf.py`) and with
llama.cpp (`tests/native`). Matching keeps all parse stacks alive, as llama.cpp does, with shared tails. Not taken: an
Earley parser, which would also accept grammars that llama.cpp can't run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from server.grammar.gbnf import CHARS, LITERAL, REFERENCE, REPEAT, Grammar, Item, parse

Stack = tuple  # (item or character test, rest of the stack) or () at the end


class Matcher:
    """Reads texts one character at a time. `stacks` are the ways to go on; `()` among them means: may end."""

    def __init__(self, text: str, reader: Callable[[str], Grammar] = parse) -> None:
        self.grammar: Grammar = reader(text)
        self.shared: dict[tuple[int, int], Stack] = {}
        self.items: dict[tuple, Item] = {}
        self.end: Stack = ()

    def accepts(self, text: str) -> bool:
        stacks = self.start()
        for char in text:
            stacks = self.advance(stacks, char)
            if not stacks:
                return False
        return self.end in stacks

    def start(self) -> list[Stack]:
        root = self.item(REFERENCE, self.grammar.root)
        return self.close([self.push(root, self.end)])

    def advance(self, stacks: Iterable[Stack], char: str) -> list[Stack]:
        following = []
        for stack in stacks:
            if stack and self.matches(stack[0], char):
                item, rest = stack
                tail = item.value[1:] if item.kind == LITERAL else ""
                following.append(self.push(self.item(LITERAL, tail), rest) if tail else rest)
        return self.close(following)

    def matches(self, item: Item, char: str) -> bool:
        if item.kind == LITERAL:
            return item.value[0] == char
        negated, ranges = item.value
        return any(low <= ord(char) <= high for low, high in ranges) != negated

    def item(self, kind: int, value: object) -> Item:
        return self.items.setdefault((kind, value), Item(kind, value, 0))

    def repetition(self, inner: Item, least: int, most: int | None) -> Item:
        return self.items.setdefault((REPEAT, id(inner), least, most), Item(REPEAT, ([inner], least, most), 0))

    def push(self, item: Item, rest: Stack) -> Stack:
        return self.shared.setdefault((id(item), id(rest)), (item, rest))

    def close(self, stacks: list[Stack]) -> list[Stack]:
        """All stacks whose top reads a character, or that are at the end."""
        seen: set[int] = set()
        result = []
        while stacks:
            stack = stacks.pop()
            if id(stack) in seen:
                continue
            seen.add(id(stack))
            if not stack or stack[0].kind == CHARS or (stack[0].kind == LITERAL and stack[0].value):
                result.append(stack)
            elif stack[0].kind == LITERAL:
                stacks.append(stack[1])
            elif stack[0].kind == REFERENCE:
                for items in self.grammar.rules[stack[0].value]:
                    rest = stack[1]
                    for item in reversed(items):
                        rest = self.push(item, rest)
                    stacks.append(rest)
            elif stack[0].kind == REPEAT:
                stacks.extend(self.unroll(stack[0], stack[1]))
            else:
                raise ValueError("tokens can't be matched against text")
        return result

    def unroll(self, item: Item, rest: Stack) -> list[Stack]:
        (inner,), least, most = item.value
        if most == 0:
            return [rest]
        more = self.repetition(inner, max(least - 1, 0), None if most is None else most - 1)
        taken = self.push(inner, self.push(more, rest))
        return [taken] if least else [taken, rest]


def accepts(grammar: str, text: str) -> bool:
    """Whether the grammar produces the text."""
    return Matcher(grammar).accepts(text)


class Generator:
    """Random texts of a grammar. Beyond `size` characters only the shortest ways to an end are taken."""

    def __init__(self, text: str, size: int = 80, reader: Callable[[str], Grammar] = parse) -> None:
        self.grammar = reader(text)
        self.size = size
        self.height = self.heights()

    def heights(self) -> list[float]:
        """For each rule the depth of its flattest derivation; infinite if it never ends."""
        height = [float("inf")] * len(self.grammar.rules)
        changed = True
        while changed:
            changed = False
            for number, alternatives in enumerate(self.grammar.rules):
                best = min(1 + self.flattest(items, height) for items in alternatives)
                if best < height[number]:
                    height[number], changed = best, True
        return height

    def flattest(self, items: list[Item], height: list[float]) -> float:
        tallest = 0.0
        for item in items:
            while item.kind == REPEAT and item.value[1] > 0:
                item = item.value[0][0]
            if item.kind == REFERENCE:
                tallest = max(tallest, height[item.value])
        return tallest

    def text(self, rng: random.Random) -> str:
        """One text."""
        result: list[str] = []
        length = 0
        stack = [Item(REFERENCE, self.grammar.root, 0)]
        while stack:
            item = stack.pop()
            if item.kind == LITERAL:
                result.append(item.value)
                length += len(item.value)
            elif item.kind == CHARS:
                result.append(self.character(item, rng))
                length += 1
            elif item.kind == REFERENCE:
                alternatives = self.grammar.rules[item.value]
                least = min(self.flattest(items, self.height) for items in alternatives)
                choices = [
                    items for items in alternatives if length < self.size or self.flattest(items, self.height) == least
                ]
                choices = [items for items in choices if self.flattest(items, self.height) < float("inf")]
                stack.extend(reversed(rng.choice(choices)))
            else:
                (inner,), least, most = item.value
                extra = 0
                while length < self.size and rng.random() < 0.6 and (most is None or least + extra < most):
                    extra += 1
                stack.extend([inner] * (least + extra))
        return "".join(result)

    def character(self, item: Item, rng: random.Random) -> str:
        """Mostly something printable, sometimes anything the class holds."""
        negated, ranges = item.value
        if rng.random() < 0.9:
            plain = [code for code in range(0x20, 0x7F) if any(low <= code <= high for low, high in ranges) != negated]
            if plain:
                return chr(rng.choice(plain))
        while True:
            low, high = (0, 0x2FFF) if negated else rng.choice(ranges)
            code = rng.randint(low, min(high, low + 0x3000))
            if any(low <= code <= high for low, high in ranges) != negated and not 0xD800 <= code <= 0xDFFF:
                return chr(code)
