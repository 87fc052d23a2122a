"""Bounds of numbers in JSON schemas: exact compared with Python's Decimal, for any number of digits; the grammar grows
linearly with the digits.

`may_be_written` has the intended differences: at most DIGITS digits unless a bound has more, no exponent, no integer
-0.
"""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.grammar.gbnf import CHARS, LITERAL, REFERENCE, check, parse
from server.grammar.json_schema.convert import SchemaError, convert
from server.grammar.json_schema.numbers import DIGITS, FEWEST_PLACES
from tests.fuzzing import fuzz
from tests.unit.grammar.gbnf_oracle import Matcher

FLOAT_MAX = 1.7976931348623157e308

SIZES = st.one_of(st.integers(1, 5), st.integers(15, 45), st.integers(1, 400))


def whole_numbers(sizes: st.SearchStrategy[int] = SIZES) -> st.SearchStrategy[int]:
    """As many of one size as of another; few digits differ from 0 and 9, at which carrying is hard."""
    digits = sizes.flatmap(lambda size: st.text(st.sampled_from("0099123456789"), min_size=size, max_size=size))
    return st.builds(lambda text, sign: sign * int(text), digits, st.sampled_from([1, -1]))


BOUNDS = st.one_of(
    whole_numbers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-100, 100).map(lambda x: round(x, 3)),
    st.sampled_from([0, -0.0, 1, 0.5, 1e-7, -1e-300, 5e-324, FLOAT_MAX, -FLOAT_MAX, 1e22, 2**128]),
)
LOWER = st.sampled_from(["minimum", "exclusiveMinimum"])
UPPER = st.sampled_from(["maximum", "exclusiveMaximum"])
DECIMALS = st.text("0123456789", max_size=DIGITS)


def exact(value: int | float) -> Decimal:
    return Decimal(value) if isinstance(value, int) else Decimal(repr(value))


def lies_within(number: Decimal, schema: dict) -> bool:
    return all(
        {
            "minimum": number >= bound,
            "exclusiveMinimum": number > bound,
            "maximum": number <= bound,
            "exclusiveMaximum": number < bound,
        }[key]
        for key, value in schema.items()
        if key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        for bound in [exact(value)]
    )


def n_digits(bound: Decimal) -> int:
    return len(format(bound.copy_abs(), "f").partition(".")[0])


def has_excluded(schema: dict) -> bool:
    """Whether a bound is excluded that a float with many digits could be rounded to."""
    return any(schema.get(key) for key in ("exclusiveMinimum", "exclusiveMaximum")) and "multipleOf" not in schema


def may_be_written(text: str, schema: dict) -> bool:
    """Whether the grammar promises this spelling of a number that lies within the bounds."""
    whole, _, decimals = text.lstrip("-").partition(".")
    if (
        Decimal(text) == 0
        and text.startswith("-")
        or len(decimals) > (FEWEST_PLACES if has_excluded(schema) else DIGITS)
        or "." in text
        and schema["type"] == "integer"
    ):
        return False
    sides = [("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")]
    far, near = reversed(sides) if not text.startswith("-") else sides
    if any(key in schema for key in far) and "multipleOf" not in schema:
        return True
    own = [exact(schema[key]) for key in near if key in schema]
    own = [bound for bound in own if (bound < 0) == text.startswith("-") and bound]
    return len(whole) <= max([DIGITS, *(n_digits(bound) + 1 for bound in own)])


def near(bound: int | float) -> list[str]:
    """Numbers around a bound, among them those that differ from it in the last digit, or in length."""
    with localcontext() as context:
        context.prec = 1000
        base = exact(bound)
        changes = [
            Decimal(0),
            *(
                sign * Decimal(10) ** power
                for sign in (1, -1)
                for power in (-DIGITS, -3, 0, 1, n_digits(base) - 1, n_digits(base))
            ),
        ]
        found = [base + change for change in changes] + [-base, base * 10, base / 10]
    return [format(number, "f") for number in found]


def judged(schema: dict, texts: list[str]) -> list[str]:
    """The texts on which grammar and Decimal differ."""
    matcher = Matcher(convert(schema, strict=True).grammar)
    wrong = []
    for text in texts:
        accepted = matcher.accepts(text)
        within = lies_within(Decimal(text), schema) and (
            "multipleOf" not in schema or (Fraction(text) / Fraction(exact(schema["multipleOf"]))).denominator == 1
        )
        if (accepted and not within) or (within and not accepted and may_be_written(text, schema)):
            wrong.append(text)
    return wrong


@fuzz(150)
@given(
    st.sampled_from(["integer", "number"]),
    LOWER,
    BOUNDS,
    UPPER,
    BOUNDS,
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(whole_numbers(), DECIMALS), max_size=5),
)
def test_bounds_of_any_size_are_exact(
    kind: str,
    lower: str,
    low: int | float,
    upper: str,
    high: int | float,
    has_low: bool,
    has_high: bool,
    others: list[tuple[int, str]],
):
    if has_low and has_high and exact(low) > exact(high):
        low, high = high, low
    schema = {"type": kind, **({lower: low} if has_low else {}), **({upper: high} if has_high else {})}
    texts = ["0", "1", "-1", "10", "0.5", "-0.5"]
    texts += [text for bound in (low, high) for text in near(bound)]
    texts += [f"{whole}.{decimals}".rstrip(".") for whole, decimals in others]
    if has_low or has_high:  # without a bound, numbers of any kind have exponents too
        texts = [text for text in texts if re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", text)]
        if sum((has_low, has_high)) == 1 and kind == "number" and not exact(low if has_low else high):
            texts = [text for text in texts if len(text) <= 9 and Decimal(text)]  # a sign alone, see below
        try:
            assert judged(schema, texts) == []
        except SchemaError:
            assert not any(lies_within(Decimal(text), schema) for text in texts if may_be_written(text, schema))


@fuzz(60)
@given(LOWER, UPPER, whole_numbers(st.integers(1, 60)), st.integers(0, 5000), st.integers(1, 30), st.integers(0, 40))
def test_multiples_in_a_range_are_exact(lower: str, upper: str, low: int, width: int, step: int, n_zeros: int):
    step *= 10**n_zeros
    schema = {"type": "integer", lower: low, upper: low + width * step, "multipleOf": step}
    first = low // step * step
    texts = [str(first + step * k) for k in (-1, 0, 1, 2, width // 2, width - 1, width, width + 1)]
    texts += [str(low), str(low + 1), str(first + step + 1), str(first * 10 + 1)]
    try:
        conversion = convert(schema)
    except SchemaError:
        assert not any(lies_within(Decimal(text), schema) and int(text) % step == 0 for text in texts)
        return
    matcher = Matcher(conversion.grammar)
    for text in texts:
        assert not matcher.accepts(text) or lies_within(Decimal(text), schema)
        assert not matcher.accepts(text) or conversion.warnings or int(text) % step == 0
        if lies_within(Decimal(text), schema) and int(text) % step == 0 and len(text.lstrip("-")) <= DIGITS:
            assert matcher.accepts(text)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "minimum": -3.4028234663852886e38},
        {"type": "number", "maximum": 3.4028234663852886e38},
        {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
        {"type": "number", "minimum": -FLOAT_MAX, "maximum": FLOAT_MAX},
        {"type": "number", "minimum": -FLOAT_MAX},
        {"type": "number", "exclusiveMinimum": 5e-324},
        {"type": "number", "minimum": 1e-300, "maximum": 2.5e-300},
        {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**128},
        {"type": "integer", "minimum": -(10**300) + 7},
        {"type": "integer", "minimum": 10**300 - 3, "maximum": 10**300 + 3},
        {"type": "integer", "maximum": -(10**399 + 1)},
        {"type": "integer", "minimum": 1e300},
        {"type": "number", "minimum": 10**400 + 1, "maximum": 10**400 + 2},
        {"type": "integer", "multipleOf": 86400},
        {"type": "integer", "multipleOf": 10**300},
        {"type": "integer", "minimum": 0, "maximum": 10**300, "multipleOf": 7},
    ],
    ids=str,
)
def test_bounds_that_clients_write_are_enforced_in_full(schema: dict):
    conversion = convert(schema, strict=True)
    check(conversion.grammar)
    assert conversion.warnings == []
    bounds = [value for key, value in schema.items() if key not in ("type", "multipleOf")]
    texts = [text for bound in bounds for text in near(bound) if text.partition(".")[0] not in ("-0", "-")]
    assert judged(schema, [*texts, "0", "7", "-7", "864", "86400", "86500", "172800", "1" + "0" * 300]) == []


def test_a_sign_alone_keeps_the_exponent():
    matcher = Matcher(convert({"type": "number", "exclusiveMinimum": 0}).grammar)
    assert matcher.accepts("2.5e10") and matcher.accepts("0.001") and not matcher.accepts("0.0")


def test_numbers_between_two_that_differ_far_behind_the_point():
    matcher = Matcher(convert({"type": "number", "minimum": 1e-300, "maximum": 2.5e-300}, strict=True).grammar)
    assert matcher.accepts("0." + "0" * 299 + "2") and matcher.accepts("0." + "0" * 299 + "25")
    assert not matcher.accepts("0." + "0" * 299 + "3") and not matcher.accepts("0")


def native_size(grammar: str) -> int:
    """How many elements llama.cpp makes of a grammar: it writes counted repetitions out."""

    def size(items) -> int:
        total = 0
        for item in items:
            inner, least, most = item.value if item.kind not in (LITERAL, CHARS, REFERENCE) else ([], 0, 0)
            total += max(most or least or 1, 1) * size(inner) if inner else 1
        return total

    return sum(size(items) for alternatives in parse(grammar).rules for items in alternatives)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: {"type": "integer", "minimum": -int("8" * size), "maximum": int("37" * size)},
        lambda size: {"type": "integer", "minimum": int("4" * (size // 2)), "maximum": int("61" * size)},
        lambda size: {"type": "number", "minimum": int("5" * size)},
        lambda size: {"type": "number", "exclusiveMinimum": -int("5" * size), "maximum": int("29" * size)},
    ],
)
def test_a_range_costs_so_much_for_each_digit_and_no_more(make):
    small, large = convert(make(50)).grammar, convert(make(400)).grammar
    check(large)
    assert len(large) < 12 * len(small) and native_size(large) < 12 * native_size(small)
    assert len(large) < 200 * 1000


@pytest.mark.parametrize(
    ("bounds", "texts"),
    [
        ({"exclusiveMinimum": 0.125, "maximum": 3.75}, ["0.12500000000000000006", "0.1250000000000000000001"]),
        ({"minimum": 0, "exclusiveMaximum": 3.75}, ["3.74999999999999999999", "3.7499999999999999"]),
        ({"exclusiveMinimum": -2.5, "exclusiveMaximum": 10000}, ["9999.9999999999999", "-2.4999999999999999"]),
    ],
)
def test_no_number_that_a_float_rounds_to_an_excluded_bound(bounds: dict, texts: list[str]) -> None:
    matcher = Matcher(convert({"type": "number", **bounds}, strict=True).grammar)
    for text in texts:
        assert float(text) in bounds.values() and not matcher.accepts(text)
    for text in ("0.5", "1.25", "3.123456"):
        assert matcher.accepts(text)
