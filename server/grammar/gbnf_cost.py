"""Estimates what a grammar costs llama.cpp for each token, so that grammars that cost too much can be refused.

llama.cpp's sampler keeps one parse stack for each way to read the text so far. It tests each token of the vocabulary on
each stack, and each character of a token can multiply the stacks. An ambiguous grammar of 40 bytes can take minutes for
one token, and a sampler can't be interrupted.

This module builds the same stacks. It starts at each place of the grammar that may have a choice, and reads the
characters that keep the most stacks alive. It goes on only where two or more stacks read the same character, so a
deterministic grammar costs almost no work. The work is bounded.

Pure functions on connection threads; `given` uses `Stacks` on the engine thread. Imports `gbnf` only. Not taken: an
exact bound, because there are infinitely many texts; trying the real vocabulary, which is slower than the sampler.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from server.grammar.gbnf import LITERAL, REFERENCE, REPEAT, TOKEN, Grammar, Item

LIMIT = 1000.0
"""The most that a token may cost. Unit: the test of the whole vocabulary on one stack."""

MIXED = (1.0, 1.0, 0.12, 0.12, 0.09, 0.06, 0.04, 0.02)
WORDS = (1.0, 1.0, 0.95, 0.87, 0.75, 0.60, 0.48, 0.36, 0.26, 0.18, 0.11, 0.07, 0.04, 0.02, 0.01) + (0.005,) * 9
RUNS = (1.0, 0.02, 0.01) + (0.006,) * 9 + (0.005,) * 12 + (0.001,) * 24 + (0.0003,) * 32
"""For each of three kinds of tokens: element n is the share of all tokens that are of this kind and have more than n
characters. WORDS: tokens of letters, after a first character of any kind. RUNS: tokens that repeat one character.
MIXED: the others. A share of 1.0 stands for all tokens: their kinds don't differ yet."""

WAY, RARE = 0.002, 0.005
"""WAY: the cost of passing one stack between two characters; in proportion less if the share of tokens is below RARE.
RARE: this share of tokens, or the whole share if smaller, always counts as not yet stopped by the grammar."""

WIDE = 100
"""For more stacks than this the cost is estimated even if no two of them read the same character."""

WORK, WORK_TOKEN, WORK_ENDS = 50_000, 50_000, 1_000_000
"""Limits of steps. WORK: for the search after the first look at each place; then the search ends. WORK_TOKEN: for one
token. WORK_ENDS: to find what may follow each alternative. A grammar that exceeds one of the last two is too dear."""

Run = tuple[tuple[int, int], ...]
_LETTERS: Run = ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0x10FFFF))
_BLANKS: Run = ((9, 10), (13, 13), (32, 32))

END, ROOT = 0, -1
_ALL = 0x10FFFF
_TOKENS = _ALL + 1  # token n of a grammar counts as the character _TOKENS + n
_ANY_TOKEN = 1 << 33


def compute_cost(grammar: Grammar, limit: float = LIMIT) -> tuple[float, int]:
    """(cost of the most expensive token found, in the unit of LIMIT; offset in the grammar's text at which it begins).
    At the first token above `limit` the search stops, and the cost is infinite."""
    search = _Search(grammar, limit)
    offset = search.run()
    return search.dearest, offset


class TooDear(Exception):
    """The grammar costs too much, or a limit of steps is exceeded."""


class Stacks:
    """llama.cpp's parse stacks. Each stack has a number n, and each frame a number f.

    `nodes[n]`: (top frame, stack below). Stack 0 is END, the empty one. `frames[f]`: a place in an alternative, as
    (alternative, item index, state). The state of a literal is the number of characters read. The state of a repetition
    is (rounds that must follow, rounds that may follow, whether an optional round has been read).
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.alternatives: list[list[Item]] = []
        self.of_rule = [[self._add_alternative(items) for items in rule] for rule in grammar.rules]
        self._inner: dict[int, int] = {}
        self.frames: list[tuple] = []
        self._frame_ids: dict[tuple, int] = {}
        self.nodes: list[tuple[int, int]] = [(-1, -1)]
        self._node_ids: dict[tuple[int, int], int] = {}
        self._closed: dict[int, tuple[int, ...]] = {}
        self._n_ways: dict[tuple[int, ...], int] = {}
        self._after: dict[int, tuple[int, ...]] = {}
        self._ranges: dict[int, tuple[tuple[int, int], ...]] = {}
        self.work, self.ends_at = 0, math.inf

    def _add_alternative(self, items: list[Item]) -> int:
        self.alternatives.append([item for item in items if not _is_nothing(item)])
        return len(self.alternatives) - 1

    def get_inner(self, item: Item) -> int:
        """The number of the alternative that a repetition repeats."""
        items = item.value[0]
        number = self._inner.get(id(items))
        if number is None:
            number = self._inner[id(items)] = self._add_alternative(items)
        return number

    def place(self, alternative: int, index: int, rest: int, state: Any = None) -> int:
        """The stack `rest` with a frame for an item of an alternative. After the last item there is no frame."""
        items = self.alternatives[alternative]
        if index == len(items):
            return rest
        if state is None:
            kind = items[index].kind
            state = 0 if kind == LITERAL else (*items[index].value[1:], False) if kind == REPEAT else None
        key = (alternative, index, state)
        frame = self._frame_ids.get(key)
        if frame is None:
            frame = self._frame_ids[key] = len(self.frames)
            self.frames.append(key)
        return self.push(frame, rest)

    def push(self, frame: int, rest: int) -> int:
        key = (frame, rest)
        node = self._node_ids.get(key)
        if node is None:
            node = self._node_ids[key] = len(self.nodes)
            self.nodes.append(key)
        return node

    def start(self, rule: int) -> tuple[int, ...]:
        """The first stacks of a rule: those that read a character, and END if the rule may be empty."""
        firsts = (self.close(self.place(alternative, 0, END)) for alternative in self.of_rule[rule])
        return tuple(dict.fromkeys(stack for stacks in firsts for stack in stacks))

    def close(self, stack: int) -> tuple[int, ...]:
        """The stacks that this one leads to without reading a character. Each of them reads one next, or is END."""
        found = self._closed.get(stack)
        return self.walk(stack)[0] if found is None else found

    def walk(self, stack: int) -> tuple[tuple[int, ...], set[int]]:
        """(the result of `close`; all stacks passed, with this one and the result)."""
        todo, passed, ends = [stack], set(), []
        while todo:
            one = todo.pop()
            if one in passed:
                continue
            passed.add(one)
            self.work += 1
            if self.work > self.ends_at:
                raise TooDear
            ways = self.list_ways(one)
            if ways is None:
                ends.append(one)
            else:
                todo += ways
        found = self._closed[stack] = tuple(ends)
        self._n_ways[found] = len(passed)
        return found, passed

    def count_ways(self, stack: int) -> int:
        """The number of stacks that `close` passes after the character that this stack reads."""
        return self._n_ways[self.list_after(stack)] if stack != END else 0

    def list_ways(self, stack: int) -> list[int] | None:
        """The stacks that this one leads to in one move without reading; None if it reads a character, or is END."""
        if stack == END:
            return None
        frame, rest = self.nodes[stack]
        alternative, index, state = self.frames[frame]
        item = self.alternatives[alternative][index]
        if item.kind == REFERENCE:
            rest = self.place(alternative, index + 1, rest)
            return [self.place(one, 0, rest) for one in self.of_rule[item.value]]
        if item.kind != REPEAT:
            return None
        least, most, _ = state
        again = self.place(self.get_inner(item), 0, self.push_again(alternative, index, state, rest))
        return [again] if least else [again, self.place(alternative, index + 1, rest)]

    def push_again(self, alternative: int, index: int, state: tuple, rest: int) -> int:
        """The stack after one more round of a repetition."""
        least, most, _ = state
        if most == 1:
            return self.place(alternative, index + 1, rest)
        return self.place(alternative, index, rest, (max(least - 1, 0), None if most is None else most - 1, least == 0))

    def list_after(self, stack: int) -> tuple[int, ...]:
        """The stacks after the character that this one reads."""
        found = self._after.get(stack)
        if found is None:
            frame, rest = self.nodes[stack]
            alternative, index, state = self.frames[frame]
            item = self.alternatives[alternative][index]
            if item.kind == LITERAL and state + 1 < len(item.value):
                follow = self.place(alternative, index, rest, state + 1)
            else:
                follow = self.place(alternative, index + 1, rest)
            found = self._after[stack] = self.close(follow)
        return found

    def list_ranges(self, stack: int) -> tuple[tuple[int, int], ...]:
        """The characters that a stack can read; tokens count as characters above U+10FFFF."""
        frame = self.nodes[stack][0]
        found = self._ranges.get(frame)
        if found is None:
            alternative, index, state = self.frames[frame]
            item = self.alternatives[alternative][index]
            if item.kind == LITERAL:
                code = ord(item.value[state])
                found = ((code, code),)
            else:
                found = tuple(_list_ranges(item))
            self._ranges[frame] = found
        return found

    def rebase(self, stack: int, base: int) -> int:
        """The stack with `base` in place of END."""
        frames = []
        while stack != END:
            frame, stack = self.nodes[stack]
            frames.append(frame)
        for frame in reversed(frames):
            base = self.push(frame, base)
        return base


def _is_nothing(item: Item) -> bool:
    """Whether an item is always empty: llama.cpp has no element for it."""
    return item.kind == LITERAL and not item.value or item.kind == REPEAT and item.value[2] == 0


def _list_ranges(item: Item) -> Iterator[tuple[int, int]]:
    is_negated, value = item.value
    if item.kind == TOKEN:
        code = _TOKENS + (value if isinstance(value, int) else (1 << 32) + hash(value) % (1 << 32))
        value, low, high = ((code, code),), _TOKENS, _ANY_TOKEN
    else:
        low, high = 0, _ALL
    for first, last in sorted(value):  # without overlaps, or a stack would count twice
        first = max(first, low)
        if is_negated and first > low:
            yield low, first - 1
        elif not is_negated and first <= last:
            yield first, last
        low = max(low, last + 1)
    if is_negated and low <= high:
        yield low, high


class _Search:
    """Searches for the most expensive token.

    A `situation` is the set of stacks that one text leads to from a place in an alternative. Below these stacks is END,
    the end of that alternative. When a stack has become END, the search goes on after each use of the alternative.
    """

    def __init__(self, grammar: Grammar, limit: float) -> None:
        self.stacks = Stacks(grammar)
        self.limit = limit
        self.dearest, self.dearest_offset, self.offset = 1.0, 0, 0
        self.users: dict[int, list[tuple[int, int, Any]]] = {}
        self.bases: dict[int, dict[int, None]] = {}
        self.seen: set[tuple[int, frozenset[int]]] = set()
        self.covered: dict[int, int] = {}

    def run(self) -> int:
        """Returns the offset of the place where the most expensive token begins."""
        stacks = self.stacks
        places = list(self.find_places())
        todo: deque[tuple[int, int, frozenset[int]]] = deque()
        try:
            self.follow_ends()
            self.look(0, ROOT, stacks.start(stacks.grammar.root), todo)
            for alternative, index, state in places:
                self.offset = stacks.alternatives[alternative][index].offset
                place = stacks.place(alternative, index, END, state)
                if not self.is_covered(place, alternative):
                    self.look(self.offset, alternative, self.cover(place, alternative), todo)
            ends_at = stacks.work + WORK
            while todo and stacks.work < ends_at:
                self.offset, alternative, situation = todo.popleft()
                for next_alternative, following in self.list_following(alternative, situation):
                    self.look(self.offset, next_alternative, following, todo)
        except TooDear:
            self.dearest, self.dearest_offset = math.inf, self.offset
        return self.dearest_offset

    def look(self, offset: int, alternative: int, situation: Iterable[int], todo: deque) -> None:
        """Estimates the cost of a situation, and adds the situation to `todo` if it has to be followed."""
        situation = frozenset(situation)
        self.stacks.ends_at = self.stacks.work + WORK_TOKEN
        if (alternative, situation) in self.seen or len(situation) < 2:
            return
        self.seen.add((alternative, situation))
        shared = self.find_shared(situation)
        price = self.compute_cost_ahead(situation, shared) if shared or len(situation) > WIDE else len(situation)
        if price > self.dearest:
            self.dearest, self.dearest_offset = price, offset
        if price > self.limit:
            raise TooDear
        if shared or END in situation:
            todo.append((offset, alternative, situation))

    def cover(self, place: int, alternative: int) -> tuple[int, ...]:
        """The situation at a place. Marks all stacks on the way to it as covered by this alternative."""
        found, passed = self.stacks.walk(place)
        for stack in passed:
            self.covered.setdefault(stack, alternative)
        return found

    def is_covered(self, place: int, alternative: int) -> bool:
        """Whether a look at this place would find nothing new: other alternatives have covered all its stacks, and what
        may follow its alternative may also follow them."""
        others = {self.covered.get(way) for way in self.stacks.list_ways(place) or (place,)}
        uses = self.bases.get(alternative, {}).keys()
        return None not in others and all(
            uses <= self.bases.get(other, {}).keys() for other in others if other is not None
        )

    def list_following(self, alternative: int, situation: frozenset[int]) -> Iterator[tuple[int, Iterable[int]]]:
        """The next situations: after one more character, or after each use of the alternative if it may end here."""
        if END in situation and alternative != ROOT:
            yield from self.list_used(alternative, situation)
            return
        for _, matching in self.find_shared(situation):
            yield alternative, {stack for one in matching for stack in self.stacks.list_after(one)}

    def find_places(self) -> Iterator[tuple[int, int, Any]]:
        """Each reference and repetition. Fills `users`: for each alternative, the places after its uses."""
        stacks = self.stacks
        todo, seen = list(stacks.of_rule[stacks.grammar.root]), {stacks.grammar.root}
        while todo:
            one = todo.pop()
            for i, item in enumerate(stacks.alternatives[one]):
                if item.kind == REFERENCE:
                    for used in stacks.of_rule[item.value]:
                        self.users.setdefault(used, []).append((one, i + 1, None))
                    if item.value not in seen:
                        seen.add(item.value)
                        todo += stacks.of_rule[item.value]
                    yield one, i, None
                elif item.kind == REPEAT:
                    yield from self.list_rounds(one, i, item)
                    todo.append(stacks.get_inner(item))

    def list_rounds(self, alternative: int, index: int, item: Item) -> Iterator[tuple[int, int, Any]]:
        """The places of a repetition: its beginning, and the beginning of its optional rounds."""
        _, least, most = item.value
        inside = self.users.setdefault(self.stacks.get_inner(item), [])
        begins = [(least, most, False)] + ([(0, None if most is None else most - least, False)] if least else [])
        for state in begins:
            if state[1] == 0:
                continue
            yield alternative, index, state
            least, most, _ = state
            rest = (max(least - 1, 0), None if most is None else most - 1, least == 0)
            inside.append((alternative, index, rest) if most != 1 else (alternative, index + 1, None))

    def list_used(self, alternative: int, situation: frozenset[int]) -> Iterator[tuple[int, frozenset[int]]]:
        """The situation after each use of the alternative."""
        stacks = self.stacks
        others = [stack for stack in situation if stack != END]
        for base in self.bases.get(alternative, ()):
            if base == END:
                yield ROOT, situation
                continue
            owner = stacks.frames[stacks.nodes[base][0]][0]
            stacks.work += len(others)
            yield owner, frozenset((*stacks.close(base), *(stacks.rebase(stack, base) for stack in others)))

    def follow_ends(self) -> None:
        """Fills `bases`: for each alternative the stacks that may follow it. END follows the root. If an alternative B
        ends with a use of A, all that follows B also follows A."""
        stacks = self.stacks
        inside: dict[int, list[int]] = {}
        todo = [(one, END) for one in stacks.of_rule[stacks.grammar.root]]
        for one, users in self.users.items():
            for user, index, state in users:
                base = stacks.place(user, index, END, state)
                if base == END:
                    inside.setdefault(user, []).append(one)
                else:
                    todo.append((one, base))
        n_steps = 0
        while todo:
            one, base = todo.pop()
            n_steps += 1
            if n_steps > WORK_ENDS:
                raise TooDear
            bases = self.bases.setdefault(one, {})
            if base not in bases:
                bases[base] = None
                todo += [(inner, base) for inner in inside.get(one, ())]

    def find_shared(self, situation: Iterable[int]) -> list[tuple[int, frozenset[int]]]:
        """(character, the stacks that read it) for characters that two or more stacks read. A set of stacks within
        another set is left out."""
        opens: dict[int, list[int]] = {}
        shuts: dict[int, list[int]] = {}
        for stack in situation:
            if stack != END:
                for low, high in self.stacks.list_ranges(stack):
                    opens.setdefault(low, []).append(stack)
                    shuts.setdefault(high + 1, []).append(stack)
        self.stacks.work += len(opens)
        alive: set[int] = set()
        sets: dict[frozenset[int], int] = {}
        for code in sorted({*opens, *shuts}):
            if code in shuts:
                alive.difference_update(shuts[code])
            if code in opens:
                alive.update(opens[code])
                if len(alive) > 1:
                    sets.setdefault(frozenset(alive), code)
        self.stacks.work += len(sets) ** 2 // 8
        return [(code, one) for one, code in sets.items() if len(sets) == 1 or not any(one < other for other in sets)]

    def compute_cost_ahead(self, situation: frozenset[int], shared: list[tuple[int, frozenset[int]]]) -> float:
        """The cost of a token that begins in this situation, for the texts that keep the most stacks alive."""
        price = max(self.compute_cost_along(situation, MIXED), self.compute_cost_along(situation, WORDS, _LETTERS))
        for run in (_BLANKS, *(((code, code),) for code, _ in shared)):
            if price > self.limit:
                break
            price = max(price, self.compute_cost_along(situation, RUNS, run))
        return price

    def compute_cost_along(self, situation: frozenset[int], shares: tuple[float, ...], run: Run | None = None) -> float:
        """The cost of a token whose characters are all in `run` (None: any). With WORDS the first character may be any.
        `shares`: MIXED, WORDS or RUNS."""
        stacks = self.stacks
        ways = dict.fromkeys(situation, 1)
        price, alive = 0.0, 1.0
        for n, share in enumerate(shares):
            total = sum(ways.values())
            n_ways = sum(n * stacks.count_ways(one) for one, n in ways.items())
            price += total * max(min(share, alive), min(share, RARE)) + n_ways * WAY * min(share / RARE, 1.0)
            if total < 2 or price > self.limit:
                return price
            if stacks.work > stacks.ends_at:
                raise TooDear
            following: dict[int, int] = {}
            busiest, part = self.choose_busiest(ways, None if run is _LETTERS and not n else run)
            alive *= part
            for one in busiest:
                for stack in stacks.list_after(one):
                    following[stack] = following.get(stack, 0) + ways[one]
            if following == ways and part == 1.0:
                return price + sum(total * share + n_ways * WAY * min(share / RARE, 1.0) for share in shares[n + 1 :])
            ways = following
        return price

    def choose_busiest(self, ways: dict[int, int], run: Run | None) -> tuple[list[int], float]:
        """Chooses the character of `run` that leads to the most stacks. Returns (the stacks that read it, the share of
        tokens that go on). A token with another character counts in proportion to the stacks that its character leads
        to."""
        stacks = self.stacks
        changes: dict[int, int] = {}
        parts = [(stack, low, high) for stack in ways if stack != END for low, high in stacks.list_ranges(stack)]
        if run is not None:
            parts = [
                (stack, max(low, first), min(high, last))
                for stack, low, high in parts
                for first, last in run
                if low <= last and first <= high
            ]
        stacks.work += len(parts)
        for stack, low, high in parts:
            n = ways[stack] * len(stacks.list_after(stack))
            changes[low] = changes.get(low, 0) + n
            changes[high + 1] = changes.get(high + 1, 0) - n
        best = best_code = total = before = 0
        tested = 0.0
        for code in sorted(changes):
            tested += total * (_estimate_mass(code) - _estimate_mass(before))
            before = code
            total += changes[code]
            if total > best:
                best, best_code = total, code
        if not best:
            return [], 0.0
        return [stack for stack, low, high in parts if low <= best_code <= high], min(tested / best, 1.0)


def _estimate_mass(code: int) -> float:
    """The share of tokens whose character at a given place is below `code`: an upper estimate, so it can exceed 1."""
    return _MASSES[code] if code < 128 else _MASSES[127] + min(code / 0x3000, 1.0) * 0.2


_MASSES = [0.0]
for _code in range(127):
    _MASSES.append(
        _MASSES[-1] + (0.5 if _code == 32 else 0.06 if 97 <= _code <= 122 else 0.03 if 65 <= _code <= 90 else 0.01)
    )
