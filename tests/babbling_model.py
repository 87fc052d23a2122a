"""A model that knows the words of tools and schemas but writes them at random, so that only a grammar makes sense of
them.

For thousands of tests of grammars: random weights, one layer, and a vocabulary in which tools need few tokens, some of
which cross the borders of JSON values (`"},`). A token takes 0.1 ms.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from tests.gguf_writer import GgufFile
from tests.random_calls import body_of
from tests.tiny_models import CHATML, Weights, bpe_vocabulary, llama_shape

N_WORDS, N_EMBD, N_FF = 400, 64, 64
WORD = re.compile(r" ?[A-Za-z_-]+|[^A-Za-z\s]{1,6}")


def babble(path: Path, *, template: str = CHATML, n_ctx_train: int = 16_384, seed: int = 3) -> Path:
    """Write the model."""
    found: Counter[str] = Counter()
    for i in range(100):
        found.update(WORD.findall(json.dumps(body_of(i)["tools"], ensure_ascii=False)))
    words = [word for word, _ in found.most_common(N_WORDS) if len(word) > 1]
    gguf = GgufFile("llama", "babble")
    n_vocab = len(bpe_vocabulary(gguf, words, fim=False).tokens)
    gguf.string("tokenizer.chat_template", template)
    llama_shape(gguf, n_ctx_train, n_blocks=1, n_embd=N_EMBD, n_ff=N_FF, n_head=1, n_head_kv=1, head_size=N_EMBD)
    weights = Weights(gguf, seed)
    weights.matrix("token_embd.weight", N_EMBD, n_vocab, spread=1.0)
    weights.matrix("output.weight", N_EMBD, n_vocab, spread=0.6)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        weights.fill(name + ".weight", 1.0, N_EMBD)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        weights.matrix(f"blk.0.{name}.weight", N_EMBD, N_FF)
    return gguf.write(path)
