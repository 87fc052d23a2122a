"""A reference implementation of all-MiniLM-L6-v2 as published, without code of this server or llama.cpp; and the model
as a GGUF file.

The published model is a zip of safetensors and vocabulary (`build_scripts/fetch_model.py --embedding` fetches it). The
reference is BERT as its authors describe it: WordPiece tokens in plain Python, float32 matrices in numpy, one text at a
time. The GGUF file equals the result of llama.cpp's converter: f16 matrices, f32 for the rest.

Not taken: sentence-transformers as the reference, because it needs PyTorch, which is far larger.
"""

from __future__ import annotations

import json
import struct
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.gguf_writer import GgufFile

N_BLOCKS, N_HEADS, EPSILON = 6, 12, 1e-12
CLS, SEP, UNKNOWN, MAX_WORD = 101, 102, 100, 100
# part of a block in GGUF -> in the published file
PARTS = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}


class MiniLM:
    """The published model: `vector(text)` is what it was published to compute."""

    def __init__(self, archive: Path) -> None:
        with zipfile.ZipFile(archive) as files:
            self.weights = read_safetensors(files.read("model.safetensors"))
            self.vocabulary: dict[str, int] = json.loads(files.read("tokenizer.json"))["model"]["vocab"]

    def tokens(self, text: str) -> list[int]:
        """WordPiece: each word into its longest known pieces from the left."""
        return [CLS, *(token for word in words(text) for token in self._pieces(word)), SEP]

    def _pieces(self, word: str) -> list[int]:
        pieces, at = [], 0
        while at < len(word):
            end = next((end for end in range(len(word), at, -1) if self._name(word, at, end) in self.vocabulary), 0)
            if not end or len(word) > MAX_WORD:
                return [UNKNOWN]
            pieces.append(self.vocabulary[self._name(word, at, end)])
            at = end
        return pieces

    @staticmethod
    def _name(word: str, at: int, end: int) -> str:
        return ("##" if at else "") + word[at:end]

    def vector(self, text: str) -> np.ndarray:
        """Mean of the tokens' last states, at length 1."""
        tokens = self.tokens(text)
        x = self._norm(
            "embeddings.LayerNorm",
            self.weights["embeddings.word_embeddings.weight"][tokens]
            + self.weights["embeddings.position_embeddings.weight"][: len(tokens)]
            + self.weights["embeddings.token_type_embeddings.weight"][0],
        )
        for block in range(N_BLOCKS):
            x = self._block(f"encoder.layer.{block}.", x)
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _block(self, prefix: str, x: np.ndarray) -> np.ndarray:
        n, width = x.shape
        q, k, v = (
            self._linear(f"{prefix}attention.self.{name}", x).reshape(n, N_HEADS, -1).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(width // N_HEADS))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        seen = (weights @ v).transpose(1, 0, 2).reshape(n, width)
        x = self._norm(prefix + "attention.output.LayerNorm", x + self._linear(prefix + "attention.output.dense", seen))
        inner = gelu(self._linear(prefix + "intermediate.dense", x))
        return self._norm(prefix + "output.LayerNorm", x + self._linear(prefix + "output.dense", inner))

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(EPSILON))
        return scaled * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def write_gguf(self, path: Path) -> Path:
        """The same as a GGUF file with f16 matrices."""
        gguf = GgufFile("bert", "all-MiniLM-L6-v2")
        gguf.scalars(
            "bert.",
            "u32",
            context_length=512,
            embedding_length=384,
            block_count=N_BLOCKS,
            feed_forward_length=1536,
            attention__head_count=N_HEADS,
            pooling_type=1,
        )
        gguf.scalar("bert.attention.layer_norm_epsilon", "f32", EPSILON)
        gguf.scalar("bert.attention.causal", "bool", False)
        self._write_vocabulary(gguf)
        for name, source in tensor_names():
            values = self.weights[source]
            is_half = values.ndim == 2 and not source.startswith(("embeddings.position", "embeddings.token_type"))
            gguf.raw(
                name,
                tuple(reversed(values.shape)),
                "f16" if is_half else "f32",
                values.astype("<f2" if is_half else "<f4").tobytes(),
            )
        return gguf.write(path)

    def _write_vocabulary(self, gguf: GgufFile) -> None:
        names = sorted(self.vocabulary, key=self.vocabulary.__getitem__)
        special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
        gguf.string("tokenizer.ggml.model", "bert")
        gguf.string("tokenizer.ggml.pre", "default")
        gguf.strings(
            "tokenizer.ggml.tokens",
            [name if name in special else name[2:] if name.startswith("##") else "\u2581" + name for name in names],
        )
        gguf.array("tokenizer.ggml.token_type", "i32", [3 if name in special else 1 for name in names])
        gguf.scalars(
            "tokenizer.ggml.",
            "u32",
            token_type_count=2,
            bos_token_id=CLS,
            eos_token_id=SEP,
            seperator_token_id=SEP,
            unknown_token_id=UNKNOWN,
            padding_token_id=0,
            mask_token_id=103,
        )


def tensor_names() -> Iterator[tuple[str, str]]:
    """(name in GGUF, name in the published file) of every tensor that is used."""
    yield "token_embd.weight", "embeddings.word_embeddings.weight"
    yield "position_embd.weight", "embeddings.position_embeddings.weight"
    yield "token_types.weight", "embeddings.token_type_embeddings.weight"
    for kind in ("weight", "bias"):
        yield f"token_embd_norm.{kind}", f"embeddings.LayerNorm.{kind}"
        for block in range(N_BLOCKS):
            for part, source in PARTS.items():
                yield f"blk.{block}.{part}.{kind}", f"encoder.layer.{block}.{source}.{kind}"


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The float32 tensors of a file: a length, JSON that says where each tensor is, and the numbers."""
    (n_head,) = struct.unpack_from("<Q", data)
    head = json.loads(data[8 : 8 + n_head])
    found = {}
    for name, row in head.items():
        if row.get("dtype") == "F32":
            start, end = row["data_offsets"]
            found[name] = np.frombuffer(data, "<f4", (end - start) // 4, 8 + n_head + start).reshape(row["shape"])
    return found


def words(text: str) -> list[str]:
    """What BERT calls words: lower case without accents; each sign and each Chinese character is one."""
    plain = "".join(char for char in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(char) != "Mn")
    return "".join(f" {char} " if is_sign(char) or 0x4E00 <= ord(char) <= 0x9FFF else char for char in plain).split()


def is_sign(char: str) -> bool:
    """Punctuation: all of Unicode's, and in ASCII whatever is neither letter, digit nor blank."""
    return (
        unicodedata.category(char).startswith("P")
        or char.isascii()
        and char.isprintable()
        and not (char.isalnum() or char == " ")
    )


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution's share below x, by Abramowitz and Stegun 7.1.26 (exact to 1.5e-7)."""
    z = np.abs(x) / np.sqrt(np.float32(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = ((((1.061405429 * t - 1.453152027) * t) + 1.421413741) * t - 0.284496736) * t + 0.254829592
    erf = np.sign(x) * (1 - series * t * np.exp(-z * z))
    return (0.5 * x * (1 + erf)).astype(np.float32)
