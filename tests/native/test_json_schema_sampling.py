"""Grammars in llama.cpp: everything that the converters write or that this project's reader accepts loads, and texts
sampled with a grammar parse and validate.

Logits are random (or the tiny model's own), so only the grammar decides. A grammar that the reader accepts but that
crashes llama.cpp would end this process; that is the test.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctypes_api.errors import LibsError
from ctypes_api.llama_types import llama_token_data, llama_token_data_array
from ctypes_api.objects import Batch, Context, Model, Sampler
from ctypes_api.vocabulary import token_to_piece
from server.grammar.gbnf import GrammarError, check
from server.grammar.json_schema.convert import convert
from server.grammar.regex_gbnf import make_choice_grammar, make_regex_grammar
from tests.support import need
from tests.unit.grammar.json_schema_cases import CASES, UNJUDGED, Case
from tests.unit.grammar.test_gbnf import TAKEN
from tests.unit.grammar.test_regex_gbnf import WHOLE

try:
    import jsonschema
except ImportError:
    jsonschema = None

TOKENS_MAX = 400
CLOSE_AFTER = 60  # tokens, then texts are pushed towards their end


@pytest.fixture(scope="module", autouse=True)
def oracle():
    need(jsonschema is not None, "the package jsonschema isn't installed (requirements-dev.txt)")


def grammar_sampler(model: Model, grammar: str) -> Sampler:
    """Raises LibsError if llama.cpp refuses the grammar."""
    llama = model.libs.llama
    return Sampler(model.libs, llama.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root"))


def loads(model: Model, grammar: str) -> bool:
    try:
        grammar_sampler(model, grammar).close()
    except LibsError:
        return False
    return True


class Dice:
    """Samples under a grammar from random logits. Tokens that start with bytes beyond ASCII are made rare:
    random ones seldom make UTF-8, which is nothing a grammar of characters can prevent in full."""

    def __init__(self, model: Model, closing: tuple[bytes, ...] = (b'"', b"}", b"]")) -> None:
        self.model = model
        self.closing_bytes = closing
        llama = model.libs.llama
        self.n_vocab = llama.llama_vocab_n_tokens(model.vocab)
        self.pieces = [token_to_piece(model.libs, model.vocab, token, False) for token in range(self.n_vocab)]
        self.eog = [bool(llama.llama_vocab_is_eog(model.vocab, token)) for token in range(self.n_vocab)]
        rng = random.Random(7)
        self.tables = [self.table(rng, closing=False) for _ in range(12)]
        self.closing = [self.table(rng, closing=True) for _ in range(12)]
        self.data = (llama_token_data * self.n_vocab)()

    def table(self, rng: random.Random, closing: bool) -> ctypes.Array:
        table = (llama_token_data * self.n_vocab)()
        for token, piece in enumerate(self.pieces):
            bias = -40.0 if piece[:1] >= b"\x80" else 0.0
            if closing and (self.eog[token] or piece[:1] in self.closing_bytes):
                bias = 14.0
            table[token].id, table[token].logit = token, rng.random() * 6 + bias
        return table

    def text(self, grammar: str, seed: object) -> bytes | None:
        """A text up to its end token; None if it was still going on after TOKENS_MAX tokens."""
        rng = random.Random(str(seed))
        llama = self.model.libs.llama
        made = b""
        with Sampler.make_chain(
            self.model.libs, grammar_sampler(self.model, grammar), llama.llama_sampler_init_dist(rng.getrandbits(31))
        ) as chain:
            for step in range(TOKENS_MAX):
                table = rng.choice(self.tables if step < CLOSE_AFTER else self.closing)
                ctypes.memmove(self.data, table, ctypes.sizeof(table))
                array = llama_token_data_array(data=self.data, size=self.n_vocab, selected=-1, sorted=False)
                llama.llama_sampler_apply(chain, ctypes.byref(array))
                chosen = array.data[array.selected]
                assert chosen.logit > float("-inf"), f"the grammar allows no token after {made!r}"
                if self.eog[chosen.id]:
                    return made
                llama.llama_sampler_accept(chain, chosen.id)
                made += self.pieces[chosen.id]
        return None


@pytest.fixture(scope="module")
def dice(model: Model) -> Dice:
    return Dice(model)


@pytest.mark.covers("Q24")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sampled_texts_parse_and_validate(case: Case, dice: Dice):
    converted = convert(case.schema)
    is_judged = case.name not in UNJUDGED and not converted.warnings
    for seed in range(2):
        text = dice.text(converted.grammar, (case.name, seed))
        if text is None:
            continue  # a long minimum, not done yet
        value = json.loads(text.decode("utf-8", errors="replace"))
        if is_judged:
            kind = jsonschema.validators.validator_for(case.schema, default=jsonschema.Draft202012Validator)
            problems = list(kind(case.schema, format_checker=kind.FORMAT_CHECKER).iter_errors(value))
            assert not problems or "multipleOf" in str(case.schema), (text, problems)


def test_most_texts_come_to_an_end(dice: Dice):
    ended = [dice.text(convert(case.schema).grammar, case.name) is not None for case in CASES]
    assert sum(ended) > 0.9 * len(ended)


@pytest.mark.covers("Q23")
@pytest.mark.parametrize("grammar", [grammar for grammar, _, _ in TAKEN])
def test_what_our_reader_takes_loads(grammar: str, model: Model):
    check(grammar)
    assert loads(model, grammar)


@pytest.mark.parametrize(
    "pattern", [pattern for pattern, _, _ in WHOLE] + [".{0,5000}", "(a|b)*a(a|b){12}", "[ab]{3000}"]
)
def test_patterns_load(pattern: str, model: Model):
    assert loads(model, make_regex_grammar(pattern))


def test_choices_load_and_are_chosen(dice: Dice):
    choices = ["yes", "no", "perhaps", 'the "third"']
    grammar = make_choice_grammar(choices)
    assert {dice.text(grammar, seed).decode() for seed in range(30)} == set(choices)


EXTREME = {
    "parentheses": "root ::= " + "(" * 200 + '"a"' + ")" * 200,
    "chain": "\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1}" for i in range(996)), 'r996 ::= "a"']),
    "chain of options": 'root ::= x{0,900}\nx ::= "a" |',
    "visits": "\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(9)), 'r9 ::= "a"']),
    "repetitions": 'root ::= "a"{2000} [b]{0,2000} c{1000,}\nc ::= "c"{0,2000} "d"',
    "long to the right": "\n".join(
        ["root ::= r0", *(f'r{i} ::= "a" r{i + 1}?' for i in range(15_000)), 'r15000 ::= "b"']
    ),
    "wide": "root ::= " + " | ".join(f'"{i}"' for i in range(1_000)),
    "question marks": 'root ::= "a"' + "?" * 900,
}


@pytest.mark.covers("B12")
@pytest.mark.parametrize("name", EXTREME)
def test_what_is_just_within_the_limits_survives_on_a_small_stack(name: str, model: Model):
    grammar = EXTREME[name]
    check(grammar)
    done: list[bool] = []
    threading.stack_size(1 << 20)  # what a thread has on Windows
    try:
        thread = threading.Thread(target=lambda: done.append(loads(model, grammar)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(0)
    assert done == [True]


def test_objects_as_wide_as_allowed_load(model: Model):
    optional = {"type": "object", "properties": {f"property{i}": {"type": "integer"} for i in range(800)}}
    for schema in (
        optional,
        {**optional, "required": list(optional["properties"])},
        {**optional, "additionalProperties": True},
    ):
        grammar = convert(schema).grammar
        check(grammar)
        assert loads(model, grammar)


PIECES = st.sampled_from(
    [
        '"a"',
        '"bc"',
        "[a-c]",
        "[^a]",
        ".",
        "x",
        "y",
        "(",
        ")",
        "|",
        "*",
        "+",
        "?",
        "{2}",
        "{0,3}",
        "{1,}",
        '""',
        "\n",
        "\nx ::= ",
        "\ny ::= ",
        " ",
        "# note\n",
        r'"\x41"',
        r"[\]\-]",
        "<[5]>",
        "!<[7]>",
        "]",
        '"',
        "{",
        "{0}",
    ]
)


@settings(max_examples=2000)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_random_grammars_that_our_reader_takes_load(model: Model, tail: str):
    grammar = "root ::= " + tail
    try:
        check(grammar)
    except GrammarError:
        return
    assert loads(model, grammar)


def test_the_tiny_model_writes_what_the_schema_asks_for(model: Model):
    """The way it goes in the server: decode, sample with the grammar first, accept, decode."""
    schema = {
        "type": "object",
        "required": ["name", "age", "tags"],
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 8},
            "age": {"type": "integer", "minimum": 18, "maximum": 99},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
        },
    }
    grammar = convert(schema).grammar
    llama = model.libs.llama
    for seed in range(3):
        with (
            Context(model, n_ctx=512, n_batch=64, n_threads=1, n_threads_batch=1) as context,
            Sampler.make_chain(
                model.libs, grammar_sampler(model, grammar), llama.llama_sampler_init_dist(seed)
            ) as chain,
        ):
            made, token = b"", llama.llama_vocab_bos(model.vocab)
            for position in range(300):
                batch = Batch(model.libs, 1)
                batch.token[0], batch.pos[0], batch.seq[0], batch.logits[0] = token, position, 0, 1
                batch.n_tokens = 1
                assert llama.llama_decode(context, batch.struct) == 0
                llama.llama_synchronize(context)
                token = llama.llama_sampler_sample(chain, context, -1)
                if llama.llama_vocab_is_eog(model.vocab, token):
                    break
                made += token_to_piece(model.libs, model.vocab, token, False)
            value = json.loads(made.decode("utf-8", errors="replace"))
        assert 18 <= value["age"] <= 99 and 1 <= len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b"}


def test_grammars_of_llama_cpp_are_taken_and_load(model: Model):
    source = os.environ.get("LLAMA_CPP_SOURCE")
    if not source:
        pytest.skip("only on machines where LLAMA_CPP_SOURCE names a checkout of llama.cpp")
    files = sorted(Path(source).glob("grammars/*.gbnf"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        check(text)
        assert loads(model, text)
