"""Automata over the digits of JSON numbers: numbers between bounds, and multiples of a number.

Pure functions on connection threads; imports only grammar modules and `records`. Bounds are exact decimals of any
length: each digit of a number is compared with the bound's digit at the same place. Numbers with bounds have no
exponent, unless zero is the only bound. If they aren't multiples, they have at most DIGITS digits on either side of the
point, or as many as a bound, and fewer decimals if a float could round to an excluded bound. Integers are never `-0`.

Not taken: floats, which are wrong for 0.1 at a bound; regular expressions, which would repeat a bound's beginning for
each of its digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction

from server.grammar import automaton
from server.grammar.automaton import Dfa, TooLarge
from server.grammar.gbnf_build import Choice
from server.records import record

DIGITS = 20  # the most digits before or after the point
FLOAT_DIGITS = 15
"""Digits that a 64-bit float always preserves. A number with more could be read as the excluded bound next to it."""
FEWEST_PLACES = 6  # decimals that are allowed even beside excluded bounds with very many digits
_STATES_MAX = 500  # of the automaton of multiples within bounds
_PRODUCT_MAX = 4000  # states of such an automaton before it is minimised
_PLACES_MAX = 12  # decimals of `multipleOf`
_ENUMERATE_MAX = 256  # multiples that are written one by one

_DIGITS = "0123456789"
_NOTHING = Dfa([False], [[]])

# Numbers that are only bounded by zero, as GBNF. Exponents are too short to overflow a float or round it to zero.
_WHOLE = f"[1-9] [0-9]{{0,{DIGITS - 1}}}"
_DECIMALS = f'("." [0-9]{{1,{DIGITS}}})?'
_EXPONENT = "([eE] [-+]? [0-9]{1,2})?"
_POSITIVE = f'({_WHOLE} {_DECIMALS} | "0." "0"{{0,9}} [1-9] [0-9]{{0,9}}) {_EXPONENT}'
_NOT_NEGATIVE = f'("0" | {_WHOLE}) {_DECIMALS} {_EXPONENT}'


@record(frozen=True)
class Range:
    """The numbers x with low <= x <= high (None: no bound; `*_open`: the bound is excluded) that are multiples of
    `multiple`."""

    integer: bool
    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False
    multiple: Fraction | None = None

    def can_hold(self, value: int | float) -> bool:
        exact = make_exact_decimal(value)
        if self.low is not None and (exact < self.low or (self.low_open and exact == self.low)):
            return False
        if self.high is not None and (exact > self.high or (self.high_open and exact == self.high)):
            return False
        return self.multiple is None or (Fraction(exact) / self.multiple).denominator == 1


def make_exact_decimal(value: int | float) -> Decimal:
    """The shortest decimal that stands for the number, not its binary value."""
    return Decimal(value) if isinstance(value, int) else Decimal(repr(value))


def compute_common_multiple(first: Fraction | None, second: Fraction) -> Fraction:
    if first is None:
        return second
    return Fraction(math.lcm(first.numerator, second.numerator), math.gcd(first.denominator, second.denominator))


def make_range_dfa(wanted: Range) -> Dfa:
    """The automaton of the numbers in a range; it may be empty. Raises `TooLarge` if multiples need too many states."""
    if wanted.integer:
        return _make_integers(wanted)
    bounds = [_Bound(bound) for bound in (wanted.low, wanted.high) if bound is not None]
    n_decimals = max((len(bound.decimals) for bound in bounds), default=0)
    dfa = _make_between(wanted, max(_count_places(wanted), n_decimals))
    # Bounds may differ only in later decimals.
    return dfa if not dfa.is_empty() else _make_between(wanted, 1 + n_decimals)


def _count_places(wanted: Range) -> int:
    """The most decimals that a number may have without a float rounding it to an excluded bound."""
    ends = ((wanted.low, wanted.low_open), (wanted.high, wanted.high_open))
    excluded = [len(_Bound(bound).whole) for bound, is_open in ends if bound and is_open]
    if not excluded or wanted.multiple is not None:
        return DIGITS
    return max(FLOAT_DIGITS - max(excluded), FEWEST_PLACES)


def _make_integers(wanted: Range) -> Dfa:
    low = _compute_integer_bound(wanted.low, wanted.low_open, +1)
    high = _compute_integer_bound(wanted.high, wanted.high_open, -1)
    modulus = wanted.multiple.numerator if wanted.multiple is not None else 1
    if low is not None and high is not None and (high - low) // modulus <= _ENUMERATE_MAX and modulus > 1:
        first = -(-low // modulus) * modulus
        return automaton.minimise(automaton.make_words([str(n) for n in range(first, high + 1, modulus)]))
    return _make_between(
        Range(
            True,
            None if low is None else Decimal(low),
            False,
            None if high is None else Decimal(high),
            False,
            None if modulus == 1 else Fraction(modulus),
        ),
        0,
    )


def _compute_integer_bound(bound: Decimal | None, is_open: bool, direction: int) -> int | None:
    if bound is None:
        return None
    whole = math.ceil(bound) if direction > 0 else math.floor(bound)
    return whole + direction if is_open and whole == bound else whole


def _make_between(wanted: Range, places: int) -> Dfa:
    """The numbers in a range with at most `places` decimals; with 0 they are integers without -0."""
    low, high = wanted.low, wanted.high
    plain = negative = _NOTHING
    zero_open = high == 0 and wanted.high_open
    if high is None or high > 0 or (high == 0 and not zero_open):
        is_above = low is not None and low >= 0
        plain = _make_unsigned(
            low if low is not None and is_above else Decimal(0),
            is_above and wanted.low_open,
            high,
            wanted.high_open,
            places,
            wanted.multiple,
        )
    if low is None or low < 0:
        is_below = high is not None and high < 0
        negative = _make_unsigned(
            high if high is not None and is_below else Decimal(0),
            wanted.high_open if is_below else zero_open or not places,
            low,
            wanted.low_open,
            places,
            wanted.multiple,
        )
    dfa = _with_minus(plain, negative)
    if wanted.multiple is not None:
        dfa = automaton.minimise(automaton.intersect_dfas(dfa, _make_multiples(wanted.multiple), _PRODUCT_MAX))
        if len(dfa.accept) > _STATES_MAX:
            raise TooLarge
    return dfa


class _Bound:
    """The digits of a bound, without sign. `order` compares the number read so far to the bound: -1 below, 0 equal, 1
    above. While the whole part goes on, only digits are compared; at its end, a different length decides."""

    def __init__(self, bound: Decimal) -> None:
        self.whole, _, decimals = format(bound.copy_abs(), "f").partition(".")
        self.decimals = decimals.rstrip("0")

    def compare_next_whole(self, order: int, used: int, digit: str) -> int:
        if used >= len(self.whole):
            return 1
        return order or (digit > self.whole[used]) - (digit < self.whole[used])

    def end_whole(self, order: int, used: int) -> int:
        return order if used >= len(self.whole) else -1

    def compare_next_decimal(self, order: int, used: int, digit: str) -> int:
        own = self.decimals[used : used + 1] or "0"
        return order or (digit > own) - (digit < own)

    def end(self, order: int, used: int) -> int:
        return order if used >= len(self.decimals) else order or -1


class _Nowhere(_Bound):
    """A missing upper bound: every number is below it."""

    def __init__(self) -> None:
        self.whole = self.decimals = ""

    def compare_next_whole(self, order: int, used: int, digit: str) -> int:
        return -1

    compare_next_decimal = compare_next_whole


def _make_unsigned(
    least: Decimal, least_open: bool, most: Decimal | None, most_open: bool, places: int, multiple: Fraction | None
) -> Dfa:
    """The decimals without sign between `least` and `most`, both taken without sign. Without `most` they have at most
    DIGITS digits before the point, or one more than `least`; with a multiple, any number of digits.

    A state is (phase, digits so far in this phase, order to `least`, order to `most`).
    """
    low, high = _Bound(least), _Nowhere() if most is None else _Bound(most)
    size = max(DIGITS, len(low.whole) + 1, len(str(int(multiple or 0))) + 1)
    if most is not None:
        size = len(high.whole) if multiple is None else min(size, len(high.whole))
    is_endless = multiple is not None and most is None

    def list_steps(state: tuple[str, int, int, int]) -> Iterator[tuple[str, tuple]]:
        phase, used, under, over = state
        if phase in ("zero", "whole") and places:
            yield ".", ("point", 0, low.end_whole(under, used), high.end_whole(over, used))
        digits = (_DIGITS,) if under and over else _DIGITS  # once both orders are decided, all digits are alike
        if phase in ("start", "whole") and (used < size or is_endless):
            for some in digits:
                after = "zero" if phase == "start" and some == "0" else "whole"
                yield (
                    some,
                    (
                        after,
                        min(used + 1, size),
                        low.compare_next_whole(under, used, some),
                        high.compare_next_whole(over, used, some),
                    ),
                )
        if phase in ("point", "decimals") and used < places and under >= 0 >= over:
            for some in digits:
                yield (
                    some,
                    (
                        "decimals",
                        used + 1,
                        low.compare_next_decimal(under, used, some),
                        high.compare_next_decimal(over, used, some),
                    ),
                )

    def can_accept(state: tuple[str, int, int, int]) -> bool:
        phase, used, under, over = state
        if phase in ("zero", "whole"):
            under, over, used = low.end_whole(under, used), high.end_whole(over, used), 0
        under, over = low.end(under, used), high.end(over, used)
        return (
            phase not in ("start", "point")
            and (under > 0 or (under == 0 and not least_open))
            and (over < 0 or (over == 0 and not most_open))
        )

    return _explore(("start", 0, 0, 0), list_steps, can_accept)


def _explore(
    start: tuple, steps: Callable[[tuple], Iterable[tuple[str, tuple]]], accepts: Callable[[tuple], bool]
) -> Dfa:
    """The automaton of the reachable states. `steps(state)` yields (characters, next state)."""
    numbers = {start: 0}
    states = [start]
    moves: list[list[tuple[automaton.Charset, int]]] = []
    while len(moves) < len(states):
        here: dict[int, list[str]] = {}
        for chars, target in steps(states[len(moves)]):
            number = numbers.setdefault(target, len(states))
            if number == len(states):
                states.append(target)
            here.setdefault(number, []).append(chars)
        moves.append([(automaton.collect_characters("".join(chars)), number) for number, chars in here.items()])
    return Dfa([accepts(state) for state in states], moves)


def _with_minus(plain: Dfa, negative: Dfa) -> Dfa:
    """The texts of `plain`, and those of `negative` after a minus. No move of `plain` may lead to its start."""
    shift = len(plain.accept)
    moves = [*plain.moves, *([(chars, target + shift) for chars, target in here] for here in negative.moves)]
    moves[0] = [*moves[0], (automaton.collect_characters("-"), shift)]
    return automaton.minimise(Dfa(plain.accept + negative.accept, moves))


def make_sign_expression(wanted: Range) -> str | None:
    """The GBNF of a range whose only bound is zero; None for all others."""
    if wanted.integer or wanted.multiple is not None or (wanted.low is None) == (wanted.high is None):
        return None
    if wanted.low is not None:
        return None if wanted.low != 0 else _POSITIVE if wanted.low_open else _NOT_NEGATIVE
    if wanted.high != 0:
        return None
    return f'"-" {_POSITIVE}' if wanted.high_open else Choice(f'"0" | "-" {_POSITIVE}')


def _make_multiples(step: Fraction) -> Dfa:
    """The decimals without exponent that are multiples of `step`. Each digit updates the remainder. Trailing zeros are
    counted separately, so a step such as 1,000,000 needs few states.

    A state is (phase, remainder of the digits so far without trailing zeros, trailing zeros, decimals so far).
    """
    places = 0
    while (step * 10**places).denominator != 1:
        places += 1
        if places > _PLACES_MAX:
            raise TooLarge
    modulus = (step * 10**places).numerator
    wanted = 0
    while modulus % 10 == 0:
        modulus, wanted = modulus // 10, wanted + 1
    if modulus * (places + wanted + 1) > _PRODUCT_MAX:
        raise TooLarge

    def list_steps(state: tuple[str, int, int, int]) -> Iterator[tuple[str, tuple]]:
        phase, rest, zeros, used = state
        if phase == "start":
            yield "-", ("signed", 0, wanted, 0)
        if phase == "whole" and places:
            yield ".", ("point", rest, zeros, 0)
        is_decimal = phase in ("point", "decimals")
        if used < places or not is_decimal:
            for digit in _DIGITS:
                if digit == "0" and zeros < wanted:
                    value, count = rest, zeros + 1
                elif digit == "0":
                    value, count = rest * 10 % modulus, zeros
                else:
                    value, count = (rest * 10 ** (zeros + 1) + int(digit)) % modulus, 0
                yield digit, ("decimals" if is_decimal else "whole", value, count, used + is_decimal)

    def can_accept(state: tuple[str, int, int, int]) -> bool:
        phase, rest, zeros, used = state
        return phase in ("whole", "decimals") and zeros == wanted and rest * 10 ** (places - used) % modulus == 0

    return _explore(("start", 0, wanted, 0), list_steps, can_accept)
