"""Grammars in llama.cpp: it keeps as many stacks as were counted; grammars that once stopped a server are refused or
fast; a grammar that takes too long ends only its own request.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ctypes_api.objects import Model
from server.engine.llama import grammar as backend_grammar
from server.engine.llama import sampler as backend_sampler
from server.engine.seam.task import SamplingParams
from server.engine.slots.sampling import make_chain
from server.errors import ApiError
from server.grammar.gbnf import GrammarError, parse
from server.grammar.gbnf_cost import END, Stacks
from server.grammar.gbnf_rewrite import make_affordable
from server.grammar.json_schema.convert import convert
from tests.hostile_grammars import FOUND, hostile_grammar
from tests.native.engines import Engine
from tests.support import PATIENCE, wait_until
from tests.unit.grammar.gbnf_oracle import Generator
from tests.unit.grammar.json_schema_cases import CASES
from tests.unit.grammar.test_gbnf import ARITHMETIC, TAKEN, VALUES
from tests.unit.grammar.test_gbnf_cost import some_grammars, step

GREEDY = SamplingParams(temperature=0.0)
INIT = (
    "_Z23llama_grammar_init_implPK11llama_vocabPKcS3_bPS3_mPKim",
    ctypes.c_void_p,
    (
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_bool,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_size_t,
    ),
)
ACCEPT = ("_Z20llama_grammar_acceptP13llama_grammarj", None, (ctypes.c_void_p, ctypes.c_uint32))
STACKS = ("_Z24llama_grammar_get_stacksP13llama_grammar", ctypes.POINTER(ctypes.c_void_p), (ctypes.c_void_p,))
FREE = ("_Z23llama_grammar_free_implP13llama_grammar", None, (ctypes.c_void_p,))
VECTOR_BYTES = 24


class Native:
    """llama.cpp's own grammar, through functions of C++ that it exports for its tests."""

    def __init__(self, model: Model) -> None:
        self.vocab = model.vocab
        library = ctypes.CDLL(str(model.libs.files.llama))
        self.init, self.accept, self.stacks, self.free = (
            self.function(library, *row) for row in (INIT, ACCEPT, STACKS, FREE)
        )

    @staticmethod
    def function(library: ctypes.CDLL, name: str, result: object, arguments: tuple):
        function = library[name]
        function.restype, function.argtypes = result, arguments
        return function

    def counts(self, grammar: str, text: str) -> Iterator[int]:
        """The number of stacks before each character and at the end."""
        raw = self.init(self.vocab, grammar.encode(), b"root", False, None, 0, None, 0)
        try:
            for char in [*text, None]:
                begin, end = self.stacks(raw)[:2]
                yield ((end or 0) - (begin or 0)) // VECTOR_BYTES
                if char is not None:
                    self.accept(raw, ord(char))
        finally:
            self.free(raw)


@pytest.fixture(scope="module")
def native(model: Model) -> Native:
    return Native(model)


@pytest.mark.skipif(sys.platform == "win32", reason="llama.cpp exports these functions under other names there")
@pytest.mark.parametrize(
    "grammar",
    [
        ARITHMETIC,
        VALUES,
        *(grammar for grammar, fits, _ in TAKEN if fits),
        *(convert(case.schema).grammar for case in CASES[::4]),
        *some_grammars(60, 9),
    ],
)
def test_llama_cpp_has_as_many_stacks_as_were_counted(grammar: str, native: Native):
    rng, stacks = random.Random(1), Stacks(parse(grammar))
    for _ in range(3):
        text = Generator(grammar, 12).text(rng)[:24]
        situation = set(stacks.start(stacks.grammar.root))
        ours = [len(situation)]
        for char in text:
            situation = step(stacks, situation, char)
            ours.append(len(situation))
        assert list(native.counts(grammar, text)) == ours
        assert END in situation or len(text) == 24


def spoken_under(engine: Engine, grammar: str) -> str:
    return engine.say("the cat", 12, SamplingParams(temperature=1.0, seed=3, grammar=grammar)).text


@pytest.mark.parametrize("grammar", [*FOUND.values(), *(hostile_grammar(random.Random(n)) for n in range(40))])
def test_hostile_grammars_are_refused_or_quick(grammar: str, one: Engine):
    """The filter's own limit of the processor's time would fail the request, and with it the test."""
    try:
        ready = make_affordable(grammar)
    except GrammarError:
        return
    assert spoken_under(one, ready) is not None


@pytest.fixture(scope="module")
def one(libs_folder, tiny_spm_model) -> Iterator[Engine]:
    engine = Engine(libs_folder, tiny_spm_model, n_ctx=1024, n_slots=3)
    yield engine
    engine.close()


def test_a_filter_that_takes_too_long_ends_its_request_alone(one: Engine):
    """The clock says that each part of the vocabulary takes a second."""
    expected = one.say("the dog", 40).tokens
    factory, now = one.backend._samplers.grammars, [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    factory.clock = clock
    try:
        task = one.task("the cat", 10, SamplingParams(temperature=1.0, seed=1, grammar='root ::= "zq"*'))
        said = []
        beside = threading.Thread(target=lambda: said.append(one.say("the dog", 40)), daemon=True)
        beside.start()
        with pytest.raises(ApiError, match="grammar is too ambiguous here: it took more than 0.8 s"):
            one.ask(task)
        beside.join(PATIENCE)
        assert said[0].tokens == expected
    finally:
        factory.clock = time.thread_time
    assert spoken_under(one, 'root ::= "a"*') is not None


@pytest.mark.parametrize("n", [1, 7, 100, 8192])
def test_a_filter_in_parts_rules_out_what_a_whole_one_does(n: int, one: Engine, monkeypatch):
    grammars = one.backend._samplers.grammars
    expected = spoken_under(one, VALUES)
    wait_until(lambda: grammars.tree is not None, "the vocabulary is read")
    assert spoken_under(one, VALUES) == expected, "the allowed tokens are found in the tree"
    monkeypatch.setattr(grammars, "tree", None)
    monkeypatch.setattr(backend_sampler, "FILTER_TOKENS", n)
    monkeypatch.setattr(backend_grammar, "FILTER_TOKENS", n)
    monkeypatch.setattr(one.backend._samplers, "_candidates", None)
    assert spoken_under(one, VALUES) == expected


SEARCHED = [
    *(convert(case.schema).grammar for case in CASES[::7]),
    VALUES,
    ARITHMETIC,
    'root ::= [^é]* "é" [^"\\\\]+',
    'root ::= "世" [界-龥]* | "\\U0001F600"+ [à-ü]{2}',
    "root ::= [^丁]+",  # half of a letter is refused, since it could become this one
    'root ::= "a"? <[300]> !<[5]>',
]


@pytest.mark.parametrize("top_k", [0, 20])
@pytest.mark.parametrize("tree", ["tree", "no tree"])
def test_no_bytes_that_are_no_text_pass_a_grammar(top_k: int, tree: str, one: Engine, monkeypatch):
    """llama.cpp takes any bytes for a letter; what they become would be longer than the grammar allows."""
    grammars = one.backend._samplers.grammars
    one.say("the cat", 2, SamplingParams(grammar=VALUES))
    wait_until(lambda: grammars.tree is not None, "the vocabulary is read")
    if tree != "tree":
        monkeypatch.setattr(grammars, "tree", None)
    odd = [token for token in range(one.backend._n_vocab) if not grammars.piece(token).isascii()]
    assert len(odd) > 100 and len(grammars.loose) == 77, "bytes that go on with a letter, or that no letter has"
    bias = tuple((token, 12.0) for token in odd)
    wild = SamplingParams(
        temperature=2.0, top_k=top_k, top_p=1.0, min_p=0.0, grammar='root ::= [^"]{1,9} "."', logit_bias=bias
    )
    n_odd = 0
    for seed in range(30):
        said = one.say("the cat", 80, replace(wild, seed=seed))
        text = b"".join(one.backend.piece(token) for token in said.tokens).decode("utf-8")
        assert text == said.text and text.endswith(".") and len(text) <= 10
        n_odd += not text.isascii()
    assert n_odd > 10


@pytest.mark.parametrize("split", [1, 6, 128])
def test_the_tokens_found_in_the_tree_are_those_that_a_filter_leaves(split: int, one: Engine, monkeypatch):
    monkeypatch.setattr(backend_grammar, "SPLIT", split)
    grammars = backend_grammar.Grammars(one.backend._llama, one.backend._vocab, one.backend._n_vocab)
    every = range(one.backend._n_vocab)
    chance, n_found, most = random.Random(split), 0, 0
    try:
        for text in map(make_affordable, SEARCHED):
            grammar = grammars.make(text)
            wait_until(lambda: grammars.tree is not None, "the vocabulary is read")
            for _ in range(25):
                allowed = [token for token in grammars.ask(grammar._raw, every) if grammar._is_text(token)]
                found = grammar.find_allowed()
                assert found is None or sorted(found) == allowed, text
                n_found += found is not None
                most = max(most, len(allowed))
                token = chance.choice(allowed or [-1])
                if token < 0 or token in grammars.ends:
                    break
                grammar.accept(token)
            grammar.close()
    finally:
        grammars.close()
    assert n_found > 200 and most > 100


@pytest.mark.parametrize("top_k", [1, 20, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_where_much_is_allowed_the_likeliest_are_enough(top_k: int, temperature: float, one: Engine, monkeypatch):
    params = SamplingParams(temperature=temperature, top_k=top_k, grammar='root ::= [^ao]+ "."')
    monkeypatch.setattr(one.backend._samplers.grammars, "tree", None)
    found = []
    find = backend_grammar.Grammar.find_likeliest
    monkeypatch.setattr(
        backend_grammar.Grammar, "find_likeliest", lambda *args: (found.append(find(*args)), found[-1])[1]
    )
    said = [one.say("the cat", 20, replace(params, seed=seed)).tokens for seed in range(8)]
    assert any(found)
    monkeypatch.setattr(backend_sampler, "count_considered", lambda stages: 0)
    assert [one.say("the cat", 20, replace(params, seed=seed)).tokens for seed in range(8)] == said


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
        {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 1.2, "top_k": 0, "repeat_penalty": 1.4, "presence_penalty": 0.3},
        {"temperature": 1.0, "dry_multiplier": 1.0, "dry_allowed_length": 1},
    ],
    ids=["greedy", "usual", "all", "penalties", "dry"],
)
def test_a_chain_draws_from_the_allowed_tokens_alone_as_from_all(fields, one: Engine, monkeypatch):
    grammar = convert({"type": "array", "items": {"enum": ["the moon", "a star", 7, True]}, "minItems": 6}).grammar
    params = [SamplingParams(seed=seed, grammar=grammar, **fields) for seed in range(8)]
    one.say("the cat", 2, params[0])
    one.backend._samplers.grammars.wait()
    said = [one.say("the cat", 40, each).tokens for each in params]
    monkeypatch.setattr(backend_sampler, "can_take_few", lambda stages: False)
    assert [one.say("the cat", 40, each).tokens for each in params] == said


@pytest.mark.parametrize(
    "fields, is_so",
    [
        ({"temperature": 0.0}, True),
        ({"temperature": 0.8, "logit_bias": ((3, 1.0),)}, True),
        ({"temperature": 0.8, "dynatemp_range": 0.5}, False),
        ({"temperature": 0.8, "typical_p": 0.5}, False),
        ({"temperature": 0.8, "mirostat": 1}, False),
        ({"temperature": 0.8, "xtc_probability": 0.5}, False),
    ],
)
def test_chains_that_count_their_candidates_get_them_all(fields, is_so, one: Engine):
    assert backend_sampler.can_take_few(make_chain(SamplingParams(**fields), one.backend.facts)) is is_so


def test_a_copied_dry_sampler_draws_as_a_new_one(one: Engine):
    params = SamplingParams(
        temperature=1.0, seed=3, dry_multiplier=2.0, dry_allowed_length=1, dry_sequence_breakers=("\n", "the")
    )
    factory = one.backend._samplers
    factory.close()
    first = one.say("the cat the cat", 40, params).tokens
    assert len(factory._dry) == 1
    assert [one.say("the cat the cat", 40, params).tokens for _ in range(2)] == [first, first]
    for i in range(3 * backend_sampler.DRY_KEPT):
        one.say("the cat", 2, SamplingParams(temperature=1.0, dry_multiplier=1.0 + i))
    assert len(factory._dry) == backend_sampler.DRY_KEPT
