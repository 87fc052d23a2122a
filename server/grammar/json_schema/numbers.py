"""JSON numbers between bounds, and multiples of something, as automata over their digits.

Pure functions on HTTP handler threads; imports only the standard library and its neighbours. Bounds are exact
decimal arithmetic. Bounded numbers are written without exponent, with at most DIGITS digits on either side of
the point (more in front of it if a bound has more); only a sign bound keeps the exponent. Integers are never
`-0`. Not taken: comparing floats, which gets 0.1 wrong at the border.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

from server.grammar import automaton
from server.grammar.automaton import Dfa, TooLarge
from server.grammar.gbnf_build import Choice
from server.grammar.regex_gbnf import compile_pattern
from server.records import record

DIGITS = 20
_LARGEST = Decimal(10) ** 40
_STATES_MAX = 300
_PRODUCT_MAX = 4000
_ENUMERATE_MAX = 256

_FRACTION = rf"(\.\d{{1,{DIGITS}}})?"

# Numbers with no bound but a sign, as GBNF. Exponents are so short that no reader overflows or gets zero.
_WHOLE = f"[1-9] [0-9]{{0,{DIGITS - 1}}}"
_DECIMALS = f'("." [0-9]{{1,{DIGITS}}})?'
_EXPONENT = "([eE] [-+]? [0-9]{1,2})?"
_POSITIVE = f'({_WHOLE} {_DECIMALS} | "0." "0"{{0,9}} [1-9] [0-9]{{0,9}}) {_EXPONENT}'
_NOT_NEGATIVE = f'("0" | {_WHOLE}) {_DECIMALS} {_EXPONENT}'


@record(frozen=True)
class Range:
    """low <= x <= high; an open end excludes its bound; None: no bound. `multiple`: x is a multiple of it."""

    integer: bool
    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False
    multiple: Fraction | None = None

    def holds(self, value: int | float) -> bool:
        """Whether a number of a schema or an instance is inside."""
        exact = exact_decimal(value)
        if self.low is not None and (exact < self.low or (self.low_open and exact == self.low)):
            return False
        if self.high is not None and (exact > self.high or (self.high_open and exact == self.high)):
            return False
        return self.multiple is None or (Fraction(exact) / self.multiple).denominator == 1


def exact_decimal(value: int | float) -> Decimal:
    """The number as JSON writes it, not as binary stores it."""
    return Decimal(value) if isinstance(value, int) else Decimal(repr(value))


def common_multiple(first: Fraction | None, second: Fraction) -> Fraction:
    """The smallest number that is a multiple of both."""
    if first is None:
        return second
    return Fraction(math.lcm(first.numerator, second.numerator), math.gcd(first.denominator, second.denominator))


@lru_cache(maxsize=512)
def range_dfa(wanted: Range) -> Dfa:
    """The automaton of the numbers in a range, possibly empty. Raises `TooLarge` if the multiples need too
    many states (without `multiple` it never does)."""
    low, low_open = _inward(wanted.low, wanted.low_open, ROUND_CEILING)
    high, high_open = _inward(wanted.high, wanted.high_open, ROUND_FLOOR)
    if wanted.integer:
        return _integers(_integer_bound(low, low_open, +1), _integer_bound(high, high_open, -1), wanted.multiple)
    longest = max(len(format(abs(Decimal(bound)), "f").partition(".")[0]) for bound in (low or 0, high or 0))
    cap = max(DIGITS, longest + 1) if wanted.multiple is None else None
    dfa = automaton.both(
        _compile(_at_least(low, low_open, cap)), _compile(_at_most(high, high_open, cap)), _PRODUCT_MAX
    )
    if wanted.multiple is not None:
        dfa = _small(automaton.both(dfa, _multiples(wanted.multiple), _PRODUCT_MAX))
    return automaton.minimal(dfa)


def _inward(bound: Decimal | None, is_open: bool, rounding: str) -> tuple[Decimal | None, bool]:
    """The bound cut to DIGITS decimals and 40 digits, towards the inside of the range."""
    if bound is None:
        return None, False
    if abs(bound) > _LARGEST:
        outside = (bound < 0) == (rounding == ROUND_CEILING)
        return (_LARGEST.copy_sign(bound), False) if outside else (bound, is_open)
    with localcontext() as context:
        context.prec = 100
        cut = bound.quantize(Decimal(1).scaleb(-DIGITS), rounding=rounding)
    return (cut, is_open) if cut == bound else (cut, False)


def _integer_bound(bound: Decimal | None, is_open: bool, direction: int) -> int | None:
    if bound is None:
        return None
    whole = math.ceil(bound) if direction > 0 else math.floor(bound)
    return whole + direction if is_open and whole == bound else whole


def _compile(pattern: str) -> Dfa:
    return compile_pattern(pattern, search=False) if pattern else Dfa([False], [[]])


def _integers(low: int | None, high: int | None, multiple: Fraction | None) -> Dfa:
    modulus = multiple.numerator if multiple is not None else 1
    if low is not None and high is not None and (high - low) // modulus <= _ENUMERATE_MAX and modulus > 1:
        first = -(-low // modulus) * modulus
        return automaton.minimal(automaton.words([str(n) for n in range(first, high + 1, modulus)]))
    cap = None if modulus > 1 else DIGITS
    parts = []
    if high is None or high >= 0:
        parts.append(_whole(max(low or 0, 0), high, cap))
    if low is None or low < 0:
        parts.append(
            _prefixed("-", _whole(1 if high is None or high >= 0 else -high, None if low is None else -low, cap))
        )
    dfa = _compile(_either(parts))
    if modulus > 1:
        dfa = _small(automaton.both(dfa, _multiples(Fraction(modulus)), _PRODUCT_MAX))
    return automaton.minimal(dfa)


def _small(dfa: Dfa) -> Dfa:
    dfa = automaton.minimal(dfa)
    if len(dfa.accept) > _STATES_MAX:
        raise TooLarge
    return dfa


def _either(parts: list[str]) -> str:
    """Alternatives as a pattern; '' stands for no number at all."""
    return "(" + "|".join(part for part in parts if part) + ")" if any(parts) else ""


def _prefixed(prefix: str, pattern: str) -> str:
    return prefix + pattern if pattern else ""


def _whole(low: int, high: int | None, cap: int | None) -> str:
    """Whole numbers >= 0 in a range as a pattern, '' if there are none. Without `high` they have at most
    `cap` digits, or any number of them."""
    parts = []
    last = len(str(low)) if high is None else len(str(high))
    for size in range(len(str(low)), last + 1):
        least = max(low, 10 ** (size - 1) if size > 1 else 0)
        most = 10**size - 1 if high is None else min(high, 10**size - 1)
        if least <= most:
            parts.append(_same_size(str(least), str(most)))
    if high is None:
        tail = f"{{{last},}}" if cap is None else f"{{{last},{max(cap - 1, last)}}}"
        parts.append(rf"[1-9]\d{tail}")
    return _either(parts)


def _same_size(low: str, high: str) -> str:
    """Digit strings of one length between two such strings, as flat alternatives."""
    size = len(low)
    common = next((i for i in range(size) if low[i] != high[i]), size)
    if common == size:
        return low
    parts = []
    rest = size - common - 1
    middle_low, middle_high = int(low[common]), int(high[common])
    if set(low[common + 1 :]) <= {"0"}:
        middle_low -= 1
    else:
        parts += _climb(low, common + 1, up=True)
    if set(high[common + 1 :]) <= {"9"}:
        middle_high += 1
    else:
        parts += _climb(high, common + 1, up=False)
    if middle_low + 1 <= middle_high - 1:
        parts.append(f"{low[:common]}[{middle_low + 1}-{middle_high - 1}]" + rf"\d{{{rest}}}")
    return "|".join(parts)


def _climb(bound: str, start: int, up: bool) -> list[str]:
    """Strings that share `bound[:start]` and are not below (up) or not above it."""
    parts = [bound]
    for index in range(start, len(bound)):
        digit = int(bound[index])
        first, last = (digit + 1, 9) if up else (0, digit - 1)
        if first <= last:
            parts.append(f"{bound[:index]}[{first}-{last}]" + rf"\d{{{len(bound) - index - 1}}}")
    return parts


def _split(bound: Decimal) -> tuple[int, str]:
    """Whole part and decimals (without trailing zeros) of a non-negative number."""
    whole, _, decimals = format(bound, "f").partition(".")
    return int(whole), decimals.rstrip("0")


def _from(bound: Decimal, is_open: bool, cap: int | None) -> str:
    """Unsigned decimals not below `bound`."""
    whole, decimals = _split(bound)
    parts = [_whole(whole + 1, None, cap) + _FRACTION]
    tails = [rf"{decimals[:i]}[{int(digit) + 1}-9]\d{{0,{DIGITS}}}" for i, digit in enumerate(decimals) if digit != "9"]
    tails.append(decimals + (rf"0{{0,{DIGITS}}}[1-9]\d{{0,{DIGITS}}}" if is_open else rf"\d{{0,{DIGITS}}}"))
    if not decimals and not is_open:
        return _either([*parts, f"{whole}{_FRACTION}"])
    return _either([*parts, rf"{whole}\.({'|'.join(tails)})"])


def _upto(bound: Decimal, is_open: bool) -> str:
    """Unsigned decimals not above `bound`; '' if there are none."""
    whole, decimals = _split(bound)
    parts = [_whole(0, whole - 1, None) + _FRACTION] if whole else []
    if decimals:
        tails = [
            rf"{decimals[:i]}[0-{int(digit) - 1}]\d{{0,{DIGITS}}}" for i, digit in enumerate(decimals) if digit != "0"
        ]
        tails += [decimals[:i] for i in range(1, len(decimals))]
        tails += [] if is_open else [decimals + rf"0{{0,{DIGITS}}}"]
        parts.append(rf"{whole}(\.({'|'.join(tails)}))?")
    elif not is_open:
        parts.append(rf"{whole}(\.0{{1,{DIGITS}}})?")
    return _either(parts)


def _at_least(bound: Decimal | None, is_open: bool, cap: int | None) -> str:
    if bound is not None and bound >= 0:
        return _from(bound, is_open, cap)
    plain = _whole(0, None, cap) + _FRACTION
    return _either([plain, _prefixed("-", plain if bound is None else _upto(-bound, is_open))])


def _at_most(bound: Decimal | None, is_open: bool, cap: int | None) -> str:
    if bound is not None and bound < 0:
        return "-" + _from(-bound, is_open, cap)
    plain = _whole(0, None, cap) + _FRACTION
    negative = _from(Decimal(0), True, cap) if bound == 0 and is_open else plain
    return _either([plain if bound is None else _upto(bound, is_open), "-" + negative])


def sign_expression(wanted: Range) -> str | None:
    """The GBNF of a number range whose only bound is zero on one side; None for all others."""
    if wanted.integer or wanted.multiple is not None or (wanted.low is None) == (wanted.high is None):
        return None
    if wanted.low is not None:
        return None if wanted.low != 0 else _POSITIVE if wanted.low_open else _NOT_NEGATIVE
    if wanted.high != 0:
        return None
    return f'"-" {_POSITIVE}' if wanted.high_open else Choice(f'"0" | "-" {_POSITIVE}')


def _multiples(step: Fraction) -> Dfa:
    """Decimals without exponent that are multiples of `step`: a remainder is carried from digit to digit."""
    places = 0
    while (step * 10**places).denominator != 1:
        places += 1
        if places > 12:
            raise TooLarge
    modulus = (step * 10**places).numerator
    if modulus * (places + 1) > _PRODUCT_MAX:
        raise TooLarge
    numbers: dict[tuple, int] = {("start", 0, 0): 0}
    order = [("start", 0, 0)]
    moves = []
    while len(moves) < len(order):
        here = []
        for char, target in _multiple_steps(order[len(moves)], modulus, places):
            if target not in numbers:
                numbers[target] = len(order)
                order.append(target)
            here.append((((ord(char), ord(char)),), numbers[target]))
        moves.append(here)
    accept = [
        phase in ("whole", "decimals") and rest * 10 ** (places - used) % modulus == 0 for phase, rest, used in order
    ]
    return Dfa(accept, moves)


def _multiple_steps(state: tuple, modulus: int, places: int) -> list[tuple[str, tuple]]:
    """The moves of one state (phase, remainder so far, decimals so far)."""
    phase, rest, used = state
    steps = [("-", ("signed", 0, 0))] if phase == "start" else []
    if phase == "whole" and places:
        steps.append((".", ("point", rest, 0)))
    if phase in ("point", "decimals"):
        if used < places:
            steps += [(str(d), ("decimals", (rest * 10 + d) % modulus, used + 1)) for d in range(10)]
    else:
        steps += [(str(d), ("whole", (rest * 10 + d) % modulus, 0)) for d in range(10)]
    return steps
