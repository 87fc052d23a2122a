"""Finite automata over Unicode characters, for patterns, formats and number ranges.

Pure functions on connection threads; imports the standard library and `server.records`. In a grammar made from a
deterministic automaton, at most one of llama.cpp's parse stacks reads each character. Intersection and complement
express what GBNF can't: a text that matches two patterns, or a pattern and a length; all keys except some.

A character set is a sorted tuple of inclusive (low, high) code points without surrogates. Not taken: automata over
UTF-8 bytes, because the grammars made from them are far larger.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from server.records import field, record

Charset = tuple[tuple[int, int], ...]

ANY: Charset = ((0, 0xD7FF), (0xE000, 0x10FFFF))

ALWAYS, AT_START, AT_END = range(3)  # conditions of a move that reads nothing, see `Nfa`
_WORK_MAX = 500_000  # the most pairs of moves that one intersection may compare


class TooLarge(Exception):
    """The automaton would exceed its limit of states or work."""


def make_charset(*ranges: tuple[int, int]) -> Charset:
    """The union of the ranges, without surrogates."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    if any(low <= 0xDFFF and high >= 0xD800 for low, high in joined):
        return intersect(tuple(joined), ANY)
    return tuple(joined)


def collect_characters(text: str) -> Charset:
    return make_charset(*((ord(char), ord(char)) for char in text))


def intersect(first: Charset, second: Charset) -> Charset:
    result = []
    i = j = 0
    while i < len(first) and j < len(second):
        low, high = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if low <= high:
            result.append((low, high))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return tuple(result)


def complement(chars: Charset) -> Charset:
    """All characters but these."""
    gaps = []
    previous = 0
    for low, high in chars:
        if low > previous:
            gaps.append((previous, low - 1))
        previous = high + 1
    if previous <= 0x10FFFF:
        gaps.append((previous, 0x10FFFF))
    return intersect(tuple(gaps), ANY)


def without(chars: Charset, other: Charset) -> Charset:
    return intersect(chars, complement(other))


def has_code(chars: Charset, code: int) -> bool:
    index = bisect_right(chars, (code, 0x110000)) - 1
    return index >= 0 and chars[index][1] >= code


def partition(sets: list[Charset]) -> list[tuple[int, Charset]]:
    """Splits the union of `sets` into pieces, so that each set contains each piece wholly or not at all. Returns (bit
    mask of the sets that contain the piece, piece) for each."""
    toggles: dict[int, int] = {}
    for index, chars in enumerate(sets):
        for low, high in chars:
            toggles[low] = toggles.get(low, 0) ^ (1 << index)
            toggles[high + 1] = toggles.get(high + 1, 0) ^ (1 << index)
    pieces: dict[int, list[tuple[int, int]]] = {}
    mask = previous = 0
    for point in sorted(toggles):
        if mask and toggles[point]:
            pieces.setdefault(mask, []).append((previous, point - 1))
        if toggles[point]:
            previous = point
        mask ^= toggles[point]
    return [(mask, tuple(ranges)) for mask, ranges in pieces.items()]


@record
class Nfa:
    """A nondeterministic automaton. `steps[s]` has the moves of state s that read a character, as (index into `sets`,
    target). `free[s]` has its moves that read nothing, as (condition, target). Conditions: ALWAYS, AT_START (before the
    first character), AT_END (after the last). `limit`: the most states."""

    steps: list[list[tuple[int, int]]] = field(default_factory=list)
    free: list[list[tuple[int, int]]] = field(default_factory=list)
    sets: list[Charset] = field(default_factory=list)
    set_index: dict[Charset, int] = field(default_factory=dict)
    limit: int = 4000

    def add_state(self) -> int:
        if len(self.steps) >= self.limit:
            raise TooLarge
        self.steps.append([])
        self.free.append([])
        return len(self.steps) - 1

    def step(self, source: int, chars: Charset, target: int) -> None:
        """Adds a move that reads one character of `chars`."""
        index = self.set_index.setdefault(chars, len(self.sets))
        if index == len(self.sets):
            self.sets.append(chars)
        self.steps[source].append((index, target))

    def move(self, source: int, target: int, condition: int = ALWAYS) -> None:
        """Adds a move that reads nothing."""
        self.free[source].append((condition, target))

    def compute_closure(self, states: set[int], conditions: tuple[int, ...]) -> set[int]:
        """The `states`, and all that free moves with these conditions reach from them."""
        reached = set(states)
        stack = list(states)
        while stack:
            for condition, target in self.free[stack.pop()]:
                if condition in conditions and target not in reached:
                    reached.add(target)
                    stack.append(target)
        return reached


@record
class Dfa:
    """A deterministic automaton with start state 0. `moves[s]`: (characters, target); no character is in two moves of a
    state."""

    accept: list[bool]
    moves: list[list[tuple[Charset, int]]]

    def can_accept(self, text: str, check: Callable[[], None] = lambda: None) -> bool:
        """Whether the whole text is accepted. `check` is called every 1,000 characters and may raise to stop."""
        state = 0
        for index, char in enumerate(text):
            if index % 1000 == 0:
                check()
            code = ord(char)
            state = next((target for chars, target in self.moves[state] if has_code(chars, code)), -1)
            if state < 0:
                return False
        return self.accept[state]

    def is_empty(self) -> bool:
        """Whether no text is accepted. Only for the result of `minimise`."""
        return not any(self.accept)

    def compute_lengths(self) -> tuple[int, int | None]:
        """The shortest and the longest accepted length in characters; None: unbounded. Only for the result of
        `minimise`."""
        shortest = 0
        front, seen = {0}, {0}
        while front and not any(self.accept[state] for state in front):
            front = {target for state in front for _, target in self.moves[state]} - seen
            seen |= front
            shortest += 1
        entries = [0] * len(self.moves)
        for here in self.moves:
            for _, target in here:
                entries[target] += 1
        depth = [0] * len(self.moves)
        ready = [state for state, count in enumerate(entries) if not count]
        for state in ready:  # in topological order; the states of a loop never become ready
            for _, target in self.moves[state]:
                depth[target] = max(depth[target], depth[state] + 1)
                entries[target] -= 1
                if not entries[target]:
                    ready.append(target)
        return shortest, max(depth) if len(ready) == len(depth) else None


def determinise(
    nfa: Nfa, start: int, final: int, limit: int, keep: Callable[[set[int]], set[int]] = lambda states: states
) -> Dfa:
    """The deterministic automaton of an NFA (subset construction). `keep` may drop redundant states from a subset.
    Raises `TooLarge` beyond `limit` states, or if the subsets that moves lead to have more than 100 * `limit` states
    together."""
    pieces = partition(nfa.sets)
    first = keep(nfa.compute_closure({start}, (ALWAYS, AT_START)))
    numbers = {frozenset(first): 0}
    subsets = [first]
    accept = [final in nfa.compute_closure({start}, (ALWAYS, AT_START, AT_END))]
    moves: list[list[tuple[Charset, int]]] = []
    work = 0
    while len(moves) < len(subsets):
        targets: dict[int, set[int]] = {}
        for state in subsets[len(moves)]:
            for index, target in nfa.steps[state]:
                targets.setdefault(index, set()).add(target)
        here: dict[int, list[tuple[int, int]]] = {}
        for relevant, chars in _group_pieces(pieces, targets).items():
            members = set().union(*(targets[i] for i in targets if relevant >> i & 1))
            subset = keep(nfa.compute_closure(members, (ALWAYS,)))
            key = frozenset(subset)
            number = numbers.setdefault(key, len(subsets))
            work += len(subset)
            if number == len(subsets):
                subsets.append(subset)
                accept.append(final in nfa.compute_closure(subset, (ALWAYS, AT_END)))
            here.setdefault(number, []).extend(chars)
        if len(subsets) > limit or work > 100 * limit:
            raise TooLarge
        moves.append([(make_charset(*ranges), target) for target, ranges in here.items()])
    return Dfa(accept, moves)


def _group_pieces(pieces: list[tuple[int, Charset]], targets: dict[int, set[int]]) -> dict[int, list]:
    """The characters that a subset's moves can read, by the bit mask of those moves' sets that contain them."""
    present = sum(1 << index for index in targets)
    groups: dict[int, list[tuple[int, int]]] = {}
    for mask, chars in pieces:
        if mask & present:
            groups.setdefault(mask & present, []).extend(chars)
    return groups


def intersect_dfas(first: Dfa, second: Dfa, limit: int) -> Dfa:
    """The intersection. Raises `TooLarge` beyond `limit` states, or for too many pairs of moves."""
    numbers = {(0, 0): 0}
    pairs = [(0, 0)]
    moves: list[list[tuple[Charset, int]]] = []
    work = 0
    while len(moves) < len(pairs):
        one, two = pairs[len(moves)]
        here = []
        work += len(first.moves[one]) * len(second.moves[two])
        if work > _WORK_MAX:
            raise TooLarge
        for chars_one, target_one in first.moves[one]:
            for chars_two, target_two in second.moves[two]:
                chars = intersect(chars_one, chars_two)
                if chars:
                    pair = (target_one, target_two)
                    number = numbers.setdefault(pair, len(pairs))
                    if number == len(pairs):
                        pairs.append(pair)
                    here.append((chars, number))
        if len(pairs) > limit:
            raise TooLarge
        moves.append(_merge(here))
    return Dfa([first.accept[one] and second.accept[two] for one, two in pairs], moves)


def _merge(moves: list[tuple[Charset, int]]) -> list[tuple[Charset, int]]:
    """The same moves with one character set per target."""
    if len({target for _, target in moves}) == len(moves):
        return moves
    joined: dict[int, list[tuple[int, int]]] = {}
    for chars, target in moves:
        joined.setdefault(target, []).extend(chars)
    return [(make_charset(*ranges), target) for target, ranges in joined.items()]


def negate(dfa: Dfa) -> Dfa:
    """The texts that `dfa` refuses."""
    sink = len(dfa.accept)
    moves = []
    for here in dfa.moves:
        rest = complement(make_charset(*(pair for chars, _ in here for pair in chars)))
        moves.append(here + [(rest, sink)] if rest else list(here))
    moves.append([(ANY, sink)])
    return Dfa([not accept for accept in dfa.accept] + [True], moves)


def make_words(texts: list[str]) -> Dfa:
    """The automaton that accepts exactly these texts: their prefix tree."""
    children: list[dict[str, int]] = [{}]
    accept = [False]
    for text in texts:
        state = 0
        for char in text:
            target = children[state].setdefault(char, len(children))
            if target == len(children):
                children.append({})
                accept.append(False)
            state = target
        accept[state] = True
    return Dfa(accept, [[(((ord(char), ord(char)),), target) for char, target in here.items()] for here in children])


def make_avoiding(text: str) -> Dfa:
    """All texts that don't contain the non-empty `text`. In state n, the longest beginning of `text` with which the
    input so far ends has n characters."""
    moves = []
    for n in range(len(text)):
        here: dict[int, list[str]] = {}
        for char in dict.fromkeys(text):
            so_far = text[:n] + char
            size = next(size for size in range(min(len(so_far), len(text)), -1, -1) if so_far.endswith(text[:size]))
            if size:
                here.setdefault(size, []).append(char)
        steps = [(collect_characters("".join(chars)), size) for size, chars in here.items() if size < len(text)]
        rest = complement(collect_characters("".join(char for chars in here.values() for char in chars)))
        moves.append([*steps, (rest, 0)])
    return Dfa([True] * len(text), moves)


def make_length_between(least: int, most: int | None) -> Dfa:
    """All texts of `least` to `most` characters; None: unbounded."""
    last = least if most is None else most
    moves = [[(ANY, state + 1)] for state in range(last)] + [[(ANY, last)] if most is None else []]
    return Dfa([state >= least for state in range(last + 1)], moves)


def minimise(dfa: Dfa) -> Dfa:
    """The smallest automaton that accepts the same texts. Each state reaches an accepting one, except the start state
    of an empty automaton. States are numbered in the order of the first visit."""
    dfa = _trim(dfa)
    block = _compute_blocks(dfa)
    numbers = {block[0]: 0}
    order = [0]
    moves: list[list[tuple[Charset, int]]] = []
    while len(moves) < len(order):
        here: dict[int, list[tuple[int, int]]] = {}
        for chars, target in dfa.moves[order[len(moves)]]:
            number = numbers.setdefault(block[target], len(order))
            if number == len(order):
                order.append(target)
            here.setdefault(number, []).extend(chars)
        moves.append(sorted((make_charset(*ranges), target) for target, ranges in here.items()))
    return Dfa([dfa.accept[state] for state in order], moves)


def _trim(dfa: Dfa) -> Dfa:
    """The automaton without states that can't reach an accepting one. The start state stays."""
    sources: list[list[int]] = [[] for _ in dfa.moves]
    for state, here in enumerate(dfa.moves):
        for _, target in here:
            sources[target].append(state)
    alive = {state for state, accept in enumerate(dfa.accept) if accept}
    stack = list(alive)
    while stack:
        for source in sources[stack.pop()]:
            if source not in alive:
                alive.add(source)
                stack.append(source)
    kept = [0] + [state for state in range(1, len(dfa.accept)) if state in alive]
    number = {state: index for index, state in enumerate(kept)}
    moves = [[(chars, number[target]) for chars, target in dfa.moves[state] if target in alive] for state in kept]
    return Dfa([dfa.accept[state] for state in kept], moves)


def _compute_blocks(dfa: Dfa) -> list[int]:
    """For each state the number of its equivalence class (Hopcroft's algorithm)."""
    pieces = partition(list({chars: None for here in dfa.moves for chars, _ in here}))
    letters = {
        chars: [letter for letter, (_, piece) in enumerate(pieces) if has_code(chars, piece[0][0])]
        for here in dfa.moves
        for chars, _ in here
    }
    inverse: dict[tuple[int, int], list[int]] = {}
    for state, here in enumerate(dfa.moves):
        for chars, target in here:
            for letter in letters[chars]:
                inverse.setdefault((letter, target), []).append(state)
    block = [int(accept) for accept in dfa.accept]
    members = [{s for s, b in enumerate(block) if b == number} for number in (0, 1)]
    waiting = {(number, letter) for number in (0, 1) for letter in range(len(pieces))}
    while waiting:
        number, letter = waiting.pop()
        touched: dict[int, set[int]] = {}
        for target in members[number]:
            for state in inverse.get((letter, target), ()):
                touched.setdefault(block[state], set()).add(state)
        for old, part in touched.items():
            if len(part) == len(members[old]):
                continue
            new = len(members)
            members[old] -= part
            members.append(part)
            for state in part:
                block[state] = new
            for other in range(len(pieces)):
                smaller = new if len(part) <= len(members[old]) else old
                waiting.add((new if (old, other) in waiting else smaller, other))
    return block
