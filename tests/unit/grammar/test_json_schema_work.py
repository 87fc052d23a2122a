"""The deadline of a conversion is checked everywhere, so that a schema that costs too much soon ends in an error.

Measured in work, not in seconds: the events of Python's profiler (calls and returns) between two checks.
"""

from __future__ import annotations

import sys

import pytest

from server.grammar.json_schema import convert as json_schema
from server.grammar.json_schema import shapes as json_shapes
from server.grammar.json_schema.convert import SchemaError, convert

GAP_MAX = 1_600_000  # half a second, where nothing else runs
PATIENCE = 300  # looks at the clock until the time is up


class Clock:
    """Stands in for the module `time`: counts who looks, and the work in between."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.looks = self.work = self.gap = 0

    def thread_time(self) -> float:
        self.looks += 1
        self.gap, self.work = max(self.gap, self.work), 0
        return 1e9 if self.looks > self.patience else 0.0

    def watch(self, *_: object) -> None:
        self.work += 1


def largest_gap(monkeypatch: pytest.MonkeyPatch, schema: dict, patience: float) -> Clock:
    clock = Clock(patience)
    monkeypatch.setattr(json_shapes, "time", clock)
    json_schema._convert_text.cache_clear()
    sys.setprofile(clock.watch)
    try:
        convert(schema)
    except SchemaError:
        pass
    finally:
        sys.setprofile(None)
    clock.thread_time()
    return clock


def chain(size: int) -> dict:
    needs = {
        f"d{i}": {"type": "object", "properties": {"n": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["n"]}
        for i in range(size)
    }
    return {"$defs": {**needs, f"d{size}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def letters(size: int, tail: str) -> str:
    return "|".join(chr(0x4E00 + 2 * i) + tail for i in range(size))


HOSTILE = {
    "long bounds": {
        "type": "object",
        "properties": {
            f"p{i}": {"type": "number", "minimum": -int(f"{i + 10}" * 200), "maximum": int(f"{i + 11}" * 200)}
            for i in range(3)
        },
    },
    "patterns": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "pattern": f"(a|b)*a(a|b){{9}}{i}"} for i in range(8)},
    },
    "patterns at once": {"type": "string", "allOf": [{"pattern": f"{i}|[a-z]{{{i + 1}}}x"} for i in range(15)]},
    "two patterns of many letters": {
        "type": "string",
        "allOf": [{"pattern": letters(60, "x")}, {"pattern": letters(60, "y")}],
    },
    "a long value and its patterns": {"enum": ["a" * 100_000], "allOf": [{"pattern": f"^a*b?{i}?"} for i in range(50)]},
    "many values and their patterns": {
        "enum": [f"a{i}" for i in range(3000)],
        "allOf": [{"pattern": f"^a[0-9]*{i}?"} for i in range(20)],
    },
    "keys and their patterns": {
        "type": "object",
        "properties": {f"a{i}": {} for i in range(150)},
        "allOf": [{"patternProperties": {f"^a[0-9]*{i}?": {"minimum": i}}} for i in range(40)],
    },
    "long keys": {"type": "object", "properties": {f"{i}" * 100: {} for i in range(60)}, "additionalProperties": True},
    "a chain of definitions": chain(1500),
    "lists of items": {"type": "array", "allOf": [{"prefixItems": [{"minimum": i}] * 300} for i in range(40)]},
    "items that contain": {
        "type": "array",
        "contains": {"minimum": 5},
        "minContains": 20,
        "maxItems": 40,
        "items": {"type": "integer"},
    },
    "choices": {"allOf": [{"anyOf": [{"required": [f"a{i}{j}"]} for j in range(10)]} for i in range(20)]},
    "parts beside a choice": {"allOf": [{} for _ in range(3000)], "anyOf": [{"minimum": i} for i in range(200)]},
    "one of many": {"oneOf": [{"enum": list(range(i, i + 300))} for i in range(40)]},
    "values of a branch": {"oneOf": [{"enum": [[i, j] for j in range(1000)]} for i in range(5)]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_clock_is_looked_at_all_the_time(name: str, monkeypatch: pytest.MonkeyPatch):
    clock = largest_gap(monkeypatch, HOSTILE[name], patience=float("inf"))
    assert clock.gap < GAP_MAX, clock.looks


@pytest.mark.parametrize("name", HOSTILE)
def test_a_conversion_ends_soon_after_its_time_is_up(name: str, monkeypatch: pytest.MonkeyPatch):
    clock = largest_gap(monkeypatch, HOSTILE[name], PATIENCE)
    assert clock.looks < PATIENCE + 5


def test_one_deadline_holds_for_all_rounds_of_a_conversion(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(json_schema, "compute_deadline", lambda: asked.append(1) or 1e9)
    json_schema._convert_text.cache_clear()
    endless = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}
    convert({"$defs": {"n": endless}, "anyOf": [{"$ref": "#/$defs/n"}, {"type": "integer"}]})
    assert len(asked) == 1


def test_endless_alternatives_that_no_round_has_reached_are_refused():
    """Each round finds that one more of these objects can have no property, and so no value."""

    def chain(n: int) -> dict:
        chained = {f"o{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/o{i + 1}"}},
                             "minProperties": 1, "additionalProperties": False} for i in range(n)}  # fmt: skip
        endless = {"type": "object", "properties": {"a": {"$ref": f"#/$defs/o{n}"}}, "required": ["a"]}
        return {"$defs": {**chained, f"o{n}": endless}, "anyOf": [{"$ref": "#/$defs/o0"}, {"type": "integer"}]}

    assert (
        "object" not in convert(chain(3)).grammar and convert(chain(3)).grammar == convert({"type": "integer"}).grammar
    )
    with pytest.raises(SchemaError, match="without a finite value"):
        convert(chain(20))


def test_pointers_that_would_fill_the_memory_are_refused():
    schema = {"$ref": "#/x", "x": {}, "K" * 100_000: [{}] * 10_000}
    with pytest.raises(SchemaError, match="too long"):
        convert(schema)
