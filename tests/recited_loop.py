"""A model of any size that answers the steps of the bench's agent loop as recorded.

`python -m tests.recited_loop BASE OUT LIBS [TYPE [LAYERS WIDTH]]` writes it, with the vocabulary of BASE and by default
the layers and width of SmolLM2 with 135 million weights. So servers are compared at an agent's work with the speed of a
real model; a real small model would write other answers.

It is a GPT-2 whose next token depends only on the position: the learned row of each position is the output row of the
recorded token. All layers are zeros and take the usual time. Not taken: a grammar that allows only one text, because
its cost differs between servers.
"""

from __future__ import annotations

import argparse
import random
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

from server.bench.agent_loop import make_prompts
from server.engine.client.vocab import open_vocab
from tests.gguf_edit import Info, Parts, scalar, string, take_apart

N_POSITIONS = 8192
HEAD = 64
BLOCK = 32
TYPES = {"f32": (0, 4 * BLOCK), "q4_0": (2, 18), "q4_1": (3, 20), "q8_0": (8, 34)}  # number, bytes of a block
SPREAD = (
    0.1 / 74
)  # of the output's rows: a token's logit is `width` / 10 where it is meant, below `width` / 40 elsewhere


class Tensors:
    """Tensors in the making, into `parts`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._blocks: list[bytes] = []
        self._size = 0

    def add(self, name: str, dims: Sequence[int], kind: str, data: bytes) -> None:
        """One, as the file has it."""
        self._parts.tensors.append(Info(name.encode(), tuple(dims), TYPES[kind][0], self._size))
        self._blocks.append(data + b"\0" * (-len(data) % BLOCK))
        self._size += len(self._blocks[-1])

    def zeros(self, name: str, n_in: int, n_out: int, kind: str) -> None:
        """A matrix of zeros, and its bias."""
        self.add(name + ".weight", (n_in, n_out), kind, bytes(TYPES[kind][1] * (n_in // BLOCK) * n_out))
        self.floats(name + ".bias", (n_out,), [0.0] * n_out)

    def norm(self, name: str, width: int) -> None:
        """A layer norm that only norms."""
        self.floats(name + ".weight", (width,), [1.0] * width)
        self.floats(name + ".bias", (width,), [0.0] * width)

    def floats(self, name: str, dims: Sequence[int], values: Sequence[float]) -> None:
        """Plain numbers."""
        self.add(name, dims, "f32", array("f", values).tobytes())

    def finish(self) -> None:
        """All data is there."""
        self._parts.data = b"".join(self._blocks)


def tokens_of_loop(libs: Path, base: Path) -> list[int]:
    """The whole loop as the servers tokenize it."""
    prompt, answer = make_prompts()[-1]
    return list(open_vocab(str(libs), str(base)).tokenize(prompt + answer, True, True))


def recite_loop(path: Path, base: Path, tokens: Sequence[int], width: int, n_layers: int, kind: str) -> Path:
    """Write a model that says `tokens[i + 1]` at position i, with the vocabulary of `base`."""
    vocabulary = take_apart(base)
    parts = Parts(pairs=[(key, value) for key, value in vocabulary.pairs if key.startswith(b"tokenizer.")])
    (n_vocab,) = struct.unpack_from("<Q", vocabulary.get("tokenizer.ggml.tokens"), 8)
    parts.set("general.architecture", string("gpt2")).set("general.name", string("recited loop"))
    for name, number in (
        ("context_length", N_POSITIONS),
        ("embedding_length", width),
        ("block_count", n_layers),
        ("feed_forward_length", 4 * width),
        ("attention.head_count", width // HEAD),
    ):
        parts.set("gpt2." + name, scalar("u32", number))
    parts.set("gpt2.attention.layer_norm_epsilon", scalar("f32", 1e-5))
    chance = random.Random(1)
    rows = [array("b", chance.randbytes(width)) for _ in range(n_vocab)]
    tensors = Tensors(parts)
    n_blocks = width // BLOCK
    tensors.add("token_embd.weight", (width, n_vocab), "q8_0", bytes(TYPES["q8_0"][1] * n_blocks * n_vocab))
    said = [*tokens[1:], *tokens[: N_POSITIONS + 1 - len(tokens)]]
    positions = array("f")
    for token in said[:N_POSITIONS]:
        positions.extend(map(float, rows[token]))
    positions.extend([0.0] * (N_POSITIONS * width - len(positions)))
    tensors.add("position_embd.weight", (width, N_POSITIONS), "f32", positions.tobytes())
    scale = struct.pack("<e", SPREAD)
    cut = range(0, width, BLOCK)
    output = b"".join(scale + row[at : at + BLOCK].tobytes() for row in rows for at in cut)
    tensors.add("output.weight", (width, n_vocab), "q8_0", output)
    tensors.norm("output_norm", width)
    for layer in range(n_layers):
        prefix = f"blk.{layer}."
        tensors.norm(prefix + "attn_norm", width)
        tensors.zeros(prefix + "attn_qkv", width, 3 * width, kind)
        tensors.zeros(prefix + "attn_output", width, width, kind)
        tensors.norm(prefix + "ffn_norm", width)
        tensors.zeros(prefix + "ffn_up", width, 4 * width, kind)
        tensors.zeros(prefix + "ffn_down", 4 * width, width, kind)
    tensors.finish()
    return parts.write(path)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.recited_loop")
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("libs", type=Path, help="folder with the libraries")
    parser.add_argument("type", choices=TYPES, nargs="?", default="q4_0")
    parser.add_argument("layers", type=int, nargs="?", default=30)
    parser.add_argument("width", type=int, nargs="?", default=576)
    options = parser.parse_args()
    tokens = tokens_of_loop(options.libs, options.base)
    recite_loop(options.out, options.base, tokens, options.width, options.layers, options.type)
    print(f"{options.out}: {len(tokens)} tokens are recited")


if __name__ == "__main__":
    main()
