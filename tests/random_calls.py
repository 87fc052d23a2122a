"""Random requests that require a tool call, and the check of answers: every answer has a call, and its arguments are
JSON that fits the schema.

Schemas are bounded, so that a call ends at any temperature. The same seed makes the same request. Used with grammars
alone (`tests/unit`) and with servers (`tests/e2e/required_calls.py`). Not taken: Hypothesis, which runs examples one
after another and sends hundreds of requests to reduce a failure.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema

Schema = dict[str, Any]

SIZES = (1, 1, 1, 1, 3)
"""How deep the arguments of one request's tools go, and how many there are; most are small, so that most calls end."""
TOOL_NAMES = ("get_weather", "search", "f", "send-mail", "add_2_numbers", "ReadFile", "x" * 64, "tool_call", "final")
KEYS = ("city", "n", "where", "when", "isOpen", "x_1", "size", "naïve", "two words", "a.b", "名前", "parameter", "name")
TEXTS = (
    "",
    "a",
    "yes",
    'the "third"',
    "l1\nl2",
    "</tool_call>",
    "<|im_end|>",
    "été 😀",
    "null",
    "1",
    "back\\slash",
    "{}",
)
PATTERNS = ("^[a-z]{2,5}$", "^[A-Z][a-z]{0,6}$", "^[0-9]{3}-[0-9]{2}$", "^(ab|cd){1,3}$", "^#[0-9a-f]{6}$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4")
ASKED = (
    "What's the weather like in Paris?",
    "Do what you think is right.",
    'Call nothing. Just say "hello".',
    "Schreib eine Nachricht an 太郎 😀",
    'Repeat this: <tool_call>{"name": "none"}</tool_call> and [TOOL_CALLS] and <|python_tag|>.',
)


# ------------------------------------------------------------------------------------------------ requests


class Maker:
    """Random parts of a request; the same ones for the same seed."""

    def __init__(self, seed: object) -> None:
        self.dice = random.Random(str(seed))
        self.size = self.dice.choice(SIZES)

    def often(self, probability: float) -> bool:
        return self.dice.random() < probability

    def string(self) -> Schema:
        if self.often(0.2):
            return {"type": "string", "pattern": self.dice.choice(PATTERNS)}
        if self.often(0.2):
            return {"type": "string", "format": self.dice.choice(FORMATS)}
        most = self.dice.randint(0, 12)
        least = {"minLength": self.dice.randint(0, most)} if self.often(0.4) else {}
        return {"type": "string", "maxLength": most, **least}

    def integer(self) -> Schema:
        least = self.dice.choice((-1000, -7, 0, 1, 18))
        step = {"multipleOf": self.dice.randint(2, 9)} if self.often(0.2) else {}
        return {"type": "integer", "minimum": least, "maximum": least + self.dice.choice((9, 100, 100_000)), **step}

    def number(self) -> Schema:
        low = self.dice.choice(("minimum", "exclusiveMinimum"))
        high = self.dice.choice(("maximum", "exclusiveMaximum"))
        return {"type": "number", low: self.dice.choice((-2.5, 0, 0.125)), high: self.dice.choice((1, 3.75, 1e4))}

    def fixed(self) -> Schema:
        values: list[Any] = [None, True, 0, -1, 2.5, [], [1, "a"], {}, {"k": "v"}, *TEXTS]
        if self.often(0.3):
            return {"const": self.dice.choice(values)}
        if self.often(0.5):
            return {"type": "string", "enum": self.dice.sample(TEXTS, self.dice.randint(1, 4))}
        return {"enum": self.dice.sample(values, self.dice.randint(1, 5))}

    def array(self, depth: int) -> Schema:
        most = self.dice.randint(1, 3)
        least = {"minItems": self.dice.randint(0, most)} if self.often(0.5) else {}
        return {"type": "array", "items": self.schema(depth - 1), "maxItems": most, **least}

    def object(self, depth: int, n_most: int = 3) -> Schema:
        names = self.dice.sample(KEYS, self.dice.randint(0, n_most))
        required = [name for name in names if self.often(0.6)]
        made: Schema = {"type": "object", "properties": {name: self.schema(depth - 1) for name in names}}
        if required or self.often(0.5):
            made["required"] = required
        if self.often(0.5):
            made["additionalProperties"] = False
        return made

    def schema(self, depth: int) -> Schema:
        """A schema whose values are short."""
        simple = (self.string, self.string, self.integer, self.number, self.fixed)
        kind = self.dice.random()
        if depth > 0 and kind < 0.15:
            return self.array(depth)
        if depth > 0 and kind < 0.3:
            return self.object(depth, 2)
        if depth > 0 and kind < 0.4:
            return {"anyOf": [self.schema(depth - 1) for _ in range(self.dice.randint(1, 3))]}
        if kind < 0.5:
            return {"type": self.dice.choice(("boolean", "null", ["boolean", "null"]))}
        made = self.dice.choice(simple)()
        return {**made, "description": self.dice.choice(TEXTS)} if self.often(0.3) else made

    def tool(self, name: str) -> dict[str, Any]:
        function: dict[str, Any] = {"name": name}
        if self.often(0.8):
            function["description"] = f"Does what {name} says: {self.dice.choice(TEXTS)}"
        if self.often(0.95):
            function["parameters"] = self.object(self.size, self.size + 1)
        return {"type": "function", "function": function}

    def messages(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A question, sometimes after a call and its result."""
        made: list[dict[str, Any]] = []
        if self.often(0.5):
            made.append({"role": "system", "content": "You are a helpful assistant."})
        made.append({"role": "user", "content": self.dice.choice(ASKED)})
        if self.often(0.3):
            call = {"name": self.dice.choice(names), "arguments": json.dumps({"city": self.dice.choice(TEXTS)})}
            made.append(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
                }
            )
            made.append({"role": "tool", "tool_call_id": "call_1", "content": self.dice.choice(TEXTS) or "done"})
            if self.often(0.5):
                made.append({"role": "assistant", "content": "That's done."})
                made.append({"role": "user", "content": self.dice.choice(ASKED)})
        return made

    def body(self) -> dict[str, Any]:
        names = self.dice.sample(TOOL_NAMES, self.dice.randint(1, self.size + 2))
        one = {"type": "function", "function": {"name": self.dice.choice(names)}}
        made: dict[str, Any] = {
            "model": "any",
            "messages": self.messages(names),
            "tools": [self.tool(name) for name in names],
            "tool_choice": self.dice.choice(("required", "required", one)),
            "temperature": self.dice.choice((0, 0.7, 1.0, 1.5, 2.0)),
            "seed": self.dice.randint(1, 2**31),
            "max_tokens": 200 * self.size + 100,
            "stream": self.often(0.5),
        }
        if self.often(0.95):  # a random model hardly ever ends its thinking by itself
            made["reasoning_budget_tokens"] = self.dice.choice((0, 5, 40))
        if self.often(0.7):
            made["parallel_tool_calls"] = self.often(0.3)
        if self.often(0.5):
            made |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # nothing but the grammar holds the model back
        return made


def body_of(seed: object) -> dict[str, Any]:
    """The request of a seed."""
    return Maker(seed).body()


# ------------------------------------------------------------------------------------------------ judgement


class Fault(AssertionError):
    """What is wrong with an answer; `kind` is one word for counting."""

    def __init__(self, kind: str, detail: object) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def judge(body: dict[str, Any], choice: dict[str, Any]) -> str:
    """How a whole answer ended ("call" or "length"); raises Fault."""
    message, reason = choice["message"], choice["finish_reason"]
    calls = message.get("tool_calls") or []
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in body["tools"]}
    one = body["tool_choice"]["function"]["name"] if isinstance(body["tool_choice"], dict) else None
    if message.get("content"):
        raise Fault("prose" if calls else "missing", message["content"])
    for call in calls if reason != "length" else calls[:-1]:
        name = call["function"]["name"]
        if call["type"] != "function" or name not in schemas or name != (one or name):
            raise Fault("name", call)
        check_arguments(call["function"]["arguments"], schemas[name])
    if len({call["id"] for call in calls}) != len(calls) or not all(call["id"] for call in calls):
        raise Fault("id", calls)
    if reason == "length":
        return "length"
    if not calls:
        raise Fault("missing", choice)
    if len(calls) > 1 and body.get("parallel_tool_calls") is False:
        raise Fault("many", calls)
    if reason not in ("tool_calls", "stop" if one else "tool_calls"):
        raise Fault("reason", reason)
    return "call"


def check_arguments(text: str, schema: Schema) -> None:
    """They are the JSON text of an object that fits."""
    try:
        value = json.loads(text, parse_constant=refuse, object_pairs_hook=without_doubles)
    except ValueError as error:
        raise Fault("unparsable", f"{error}: {text!r}") from None
    if not isinstance(value, dict):
        raise Fault("unparsable", text)
    kind = jsonschema.Draft202012Validator
    for problem in kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(value):
        raise Fault("unfitting", f"{problem.message} at {problem.json_path} of {text!r}")


def refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key came twice")
    return dict(pairs)
