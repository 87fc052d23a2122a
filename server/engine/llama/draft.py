"""The draft model of speculative decoding: its configuration, the check of its vocabulary, and its guesses.

Engine thread. A draft model is a second `LlamaBackend` with as many sequences and KV cells as the large one, plus
`Likeliest`, a sampler chain that picks the most likely token and its probability. A draft consists of token ids, so
both vocabularies must be the same, apart from padding; they are compared once.
"""

from __future__ import annotations

import math
from typing import Any

from ctypes_api.llama_types import llama_token_data_array
from server.engine.llama.sampler import CustomSamplers, SamplerFactory
from server.engine.seam.config import EngineConfig
from server.engine.slots.sampling import Stage

N_BEST = 10  # tokens in the softmax
MAX_SIZE_DIFFERENCE = 128  # tokens of padding by which the vocabularies may differ, as in llama.cpp's `common`


class Likeliest:
    """Picks the most likely token of a batch row."""

    def __init__(self, factory: SamplerFactory, ctx: Any) -> None:
        self._llama = factory.llama
        self._ctx = ctx
        self._chance = 0.0
        self._custom = CustomSamplers(factory.llama, -1)
        self._chain, _ = factory.make_chain([Stage("top_k", (N_BEST,))])
        factory.llama.llama_sampler_chain_add(self._chain, self._custom.make(b"likeliest", self._pick))

    def sample(self, row: int) -> tuple[int, float]:
        """The token, and its probability among the `N_BEST` likeliest."""
        token = self._llama.llama_sampler_sample(self._chain, self._ctx, row)
        return token, self._chance

    def close(self) -> None:
        self._llama.llama_sampler_free(self._chain)

    def _pick(self, candidates: llama_token_data_array) -> None:
        """C calls it with the candidates sorted by the top-k sampler."""
        rows = candidates.data
        best = rows[0].logit
        self._chance = 1.0 / sum(math.exp(rows[i].logit - best) for i in range(min(candidates.size, N_BEST)))
        candidates.selected = 0


def make_drafter_config(config: EngineConfig, n_ctx: int, is_split: bool) -> EngineConfig:
    """The draft model's configuration: slots, context and batches of the large model, a file and parameters of its
    own."""
    spec = config.spec
    return EngineConfig(
        model=spec.model,
        libs=config.libs,
        cpu_variant=config.cpu_variant,
        n_slots=config.n_slots,
        n_ctx=n_ctx,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        n_threads=spec.n_threads,
        n_threads_batch=spec.n_threads_batch,
        warmup=config.warmup,
        is_fitted=False,
        kv_unified=not is_split,
        model_params=spec.model_params,
        context_params=spec.context_params,
    )


def describe_vocab_difference(llama: Any, large: int, small: int) -> str:
    """How the draft model's vocabulary `small` differs from `large`; "" if it doesn't."""
    if llama.llama_vocab_type(large) != llama.llama_vocab_type(small):
        return "it has another kind of vocabulary"
    for name in ("bos", "eos"):
        special = getattr(llama, f"llama_vocab_{name}")
        if special(large) != special(small):
            return f"its {name.upper()} token is {special(small)}, not {special(large)}"
    sizes = llama.llama_vocab_n_tokens(large), llama.llama_vocab_n_tokens(small)
    if abs(sizes[0] - sizes[1]) > MAX_SIZE_DIFFERENCE:
        return f"its vocabulary has {sizes[1]} tokens, not {sizes[0]}"
    text = llama.llama_vocab_get_text
    for token in range(min(sizes)):
        if text(large, token) != text(small, token):
            return f"its token {token} is {_quote(text(small, token))}, not {_quote(text(large, token))}"
    return ""


def _quote(text: bytes) -> str:
    return repr(text.decode("utf-8", "replace"))[:40]
