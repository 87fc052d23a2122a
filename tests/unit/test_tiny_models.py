"""The model files that the tests make: the container is valid, and the recipes have their promised properties.

Runs without native libraries: a small reader checks the container, arithmetic checks the attention.
`tests/native/test_tiny_models_run.py` runs the files in libllama.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tests.gguf_writer import ALIGNMENT, GgufFile

RECIPES: dict[str, Callable[[Path], Path]] = {
    "tiny spm": lambda path: tiny_models.tiny_llama(path, "spm"),
    "tiny bpe": lambda path: tiny_models.tiny_llama(path, "bpe"),
    "tiny spm with fim": lambda path: tiny_models.tiny_llama(path, "spm", fim=True),
    "recite": tiny_models.recite,
    "bert embed": tiny_models.tiny_bert,
    "bert rerank": lambda path: tiny_models.tiny_bert(path, rerank=True),
    "lora": tiny_models.tiny_lora,
    "mmproj gemma3": tiny_models.tiny_mmproj,
    "mmproj mlp": lambda path: tiny_models.tiny_mmproj(path, "mlp"),
}
SCALAR_CODES = {4: "I", 5: "i", 6: "f", 7: "?"}


class Reader:
    """Reads what GgufFile writes, strictly: anything unexpected is an error."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        magic, version, n_tensors, n_pairs = self.take("<4sIQQ")
        assert (magic, version) == (b"GGUF", 3)
        self.pairs = dict(self.pair() for _ in range(n_pairs))
        self.tensors = {}
        infos = [self.info() for _ in range(n_tensors)]
        start = -(-self.at // ALIGNMENT) * ALIGNMENT
        end = start
        for name, dims, kind, offset in infos:
            assert kind == 0 and start + offset == end, f"{name} leaves a gap"
            size = 4 * math.prod(dims)
            values = struct.unpack_from(f"<{size // 4}f", data, end)
            self.tensors[name] = (dims, values)
            end += -(-size // ALIGNMENT) * ALIGNMENT
        assert end == len(data)

    def take(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return values

    def string(self) -> str:
        (length,) = self.take("<Q")
        return self.take(f"<{length}s")[0].decode("utf-8")

    def pair(self) -> tuple[str, Any]:
        key = self.string()
        (kind,) = self.take("<I")
        if kind == 8:
            return key, self.string()
        if kind == 9:
            kind, count = self.take("<IQ")
            return key, [self.string() if kind == 8 else self.take("<" + SCALAR_CODES[kind])[0] for _ in range(count)]
        return key, self.take("<" + SCALAR_CODES[kind])[0]

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        (n_dims,) = self.take("<I")
        dims = self.take(f"<{n_dims}Q")
        return name, dims, *self.take("<IQ")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_gives_a_well_formed_file_and_the_same_bytes_again(name: str, tmp_path: Path):
    first = RECIPES[name](tmp_path / "first.gguf").read_bytes()
    assert first == RECIPES[name](tmp_path / "second.gguf").read_bytes()
    read = Reader(first)
    assert read.pairs["general.architecture"] in ("llama", "bert", "clip")
    assert len(first) < 2_000_000
    for tokens in (value for key, value in read.pairs.items() if key == "tokenizer.ggml.tokens"):
        assert len(tokens) == len(set(tokens)) == len(read.pairs["tokenizer.ggml.token_type"])
        assert read.tensors["token_embd.weight"][0][1] == len(tokens)


def test_writer_keeps_values_and_types():
    gguf = GgufFile("llama", "naïve 😀")
    gguf.scalars("a.", "u32", b__c=7)
    gguf.scalar("flag", "bool", True)
    gguf.scalar("third", "f32", 0.5)
    gguf.strings("words", ["", "größe"])
    gguf.array("scores", "i32", [-1, 2])
    gguf.tensor("m", (3, 2), [1, 2, 3, 4, 5, 6])
    gguf.tensor("v", (1,), [9])
    read = Reader(gguf.to_bytes())
    assert read.pairs == {
        "general.architecture": "llama",
        "general.name": "naïve 😀",
        "a.b.c": 7,
        "flag": True,
        "third": 0.5,
        "words": ["", "größe"],
        "scores": [-1, 2],
    }
    assert read.tensors == {"m": ((3, 2), (1, 2, 3, 4, 5, 6)), "v": ((1,), (9,))}


@pytest.mark.parametrize("name, dims", [("new", (2, 2)), ("old", (3,))])
def test_writer_refuses_a_tensor_that_cannot_be_right(name: str, dims: tuple[int, ...]):
    gguf = GgufFile("llama", "x")
    gguf.tensor("old", (3,), [1, 2, 3])
    with pytest.raises(ValueError, match=name):
        gguf.tensor(name, dims, [1, 2, 3])


def test_options_reach_the_file(tmp_path: Path):
    path = tiny_models.tiny_llama(tmp_path / "a.gguf", n_ctx_train=77, fim=True, chat_template=None)
    read = Reader(path.read_bytes())
    tokens = read.pairs["tokenizer.ggml.tokens"]
    assert read.pairs["llama.context_length"] == 77
    assert "tokenizer.chat_template" not in read.pairs
    assert [tokens[read.pairs[f"tokenizer.ggml.fim_{name}_token_id"]] for name in ("pre", "suf", "mid")] == [
        "<PRE>",
        "<SUF>",
        "<MID>",
    ]
    other = tiny_models.tiny_llama(tmp_path / "b.gguf", n_ctx_train=77, fim=True, chat_template=None, seed=1)
    assert other.read_bytes() != path.read_bytes()


@pytest.mark.parametrize("distance", [distance for block in tiny_models.DISTANCES for distance in block])
def test_each_head_clearly_prefers_one_cell_at_every_position(distance: int):
    """With scores 30 apart, what softmax gives to all other cells together vanishes in float32."""
    size = tiny_models.HEAD_SIZE
    angles = [10000.0 ** (-2 * j / size) for j in range(size // 2)]

    def score(back: int) -> float:
        fit = sum(math.cos(a * (distance - back)) + tiny_models.OWN * math.cos(a * back) for a in angles)
        return tiny_models.KEY**2 / math.sqrt(size) * fit

    scores = [score(back) for back in range(2000)]
    best, runner_up = 0, -1
    for position in range(1, len(scores)):
        if scores[position] > scores[best]:
            best, runner_up = position, best
        elif runner_up < 0 or scores[position] > scores[runner_up]:
            runner_up = position
        assert scores[best] - scores[runner_up] > 30, f"at position {position}"
        if position >= distance:
            assert best == distance


@pytest.mark.parametrize("kind", ["spm", "bpe"])
def test_every_vote_has_an_odd_number_of_voters_of_equal_weight(kind: str, tmp_path: Path):
    tensors = Reader(tiny_models.tiny_llama(tmp_path / "model.gguf", kind).read_bytes()).tensors
    for vote in range(tiny_models.N_VOTES):
        ballots = []
        for block in range(len(tiny_models.DISTANCES)):
            (n_in, _), values = tensors[f"blk.{block}.attn_output.weight"]
            row = tiny_models.VOTE + vote
            ballots += [abs(value) for value in values[row * n_in : (row + 1) * n_in] if value]
        assert len(ballots) % 2 == 1
        assert set(ballots) == {tiny_models.VOTE_SIZE}


def test_there_is_a_word_for_every_outcome_of_the_votes():
    words = [*tiny_models.WORDS, *tiny_models.SIGNS]
    assert len(set(words)) == len(words) == 2**tiny_models.N_VOTES
