"""The embedding context over libllama: a context of the loaded model for vectors instead of text.

Engine thread only; part of the backend. An encoder (such as BERT) attends to a whole input at once, so its ubatch must
be as long as the longest input. The inputs of a causal model can be split over batches, unless the pooling needs all
tokens of an input in one batch.

llama.cpp computes the logits of all rows along with the embeddings: a float per row and token of the vocabulary. So
where inputs can be split, a large vocabulary makes batches small.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ctypes_api import vocabulary
from ctypes_api.llama_types import (
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_RANK,
)
from ctypes_api.objects import AbortFlag, Adapter, Batch, Context, Model
from server.engine.seam.config import EngineConfig
from server.engine.slots.planner import Span
from server.errors import StartError
from server.model_files.rerankers import TEMPLATE_KEY, has_head, template_of
from server.records import record, replace

POOLING_NAMES = {
    LLAMA_POOLING_TYPE_NONE: "none",
    LLAMA_POOLING_TYPE_MEAN: "mean",
    LLAMA_POOLING_TYPE_CLS: "cls",
    LLAMA_POOLING_TYPE_LAST: "last",
    LLAMA_POOLING_TYPE_RANK: "rank",
}
NON_CAUSAL = 1  # LLAMA_ATTENTION_TYPE_NON_CAUSAL
N_SEQS = 64  # inputs in a batch at most
N_SEQS_RECURRENT = 8  # the same for recurrent models, where each sequence takes memory for a whole state
MAX_LOGITS = 2**25  # floats of a batch: 128 MiB
LEARNED_POSITIONS = ("bert",)  # architectures with a table of positions
MIN_ROWS, MAX_ROWS = 32, 512  # rows of a batch if inputs can be split


@record(frozen=True)
class EmbeddingShape:
    """The sizes of a context for embeddings. `EmbeddingBackend` explains the names that aren't llama.cpp's."""

    pooling: int
    n_input: int
    n_rows: int
    n_seqs: int
    n_ctx: int
    n_ubatch: int
    can_split: bool
    advice: str


def pooling_of(model: Model, params: Mapping[str, Any], is_generative: bool) -> int:
    """The pooling type that the user set, else the model's own. Without either: "rank" for a generative model with a
    reranking template, "last" for other generative models, "none" for encoders."""
    asked = params.get("pooling_type")
    if isinstance(asked, int) and asked >= 0:
        return asked
    meta = model.read_meta()
    own = meta.get(f"{meta.get('general.architecture', '')}.pooling_type")
    if own is not None and own.isdecimal():
        return int(own)
    if is_generative and template_of(meta):
        return LLAMA_POOLING_TYPE_RANK
    return LLAMA_POOLING_TYPE_LAST if is_generative else LLAMA_POOLING_TYPE_NONE


def compute_longest_input(model: Model, n_ctx: int, params: Mapping[str, Any]) -> int:
    """The most tokens of an encoder's input: `n_ctx`, but at most the training context unless RoPE options stretch it.

    Learned positions (plain BERT) can't be stretched: ggml ends the process at a position beyond their table.
    """
    is_stretched = any(name.startswith(("rope_", "yarn_")) for name in params)
    if is_stretched and model.read_meta().get("general.architecture") not in LEARNED_POSITIONS:
        return n_ctx
    return min(n_ctx, model.libs.llama.llama_model_n_ctx_train(model))


def read_class_labels(model: Model) -> tuple[str, ...]:
    """The labels of a classifier's outputs, with numbers for missing ones; empty if it has no labels."""
    llama = model.libs.llama
    labels = [llama.llama_model_cls_label(model, i) for i in range(llama.llama_model_n_cls_out(model))]
    if not any(labels):
        return ()
    return tuple(label.decode("utf-8", "replace") if label else str(i) for i, label in enumerate(labels))


def use_adapters(context: Context, adapters: Sequence[tuple[Adapter, float]]) -> None:
    used = [(adapter, scale) for adapter, scale in adapters if scale]
    if used:
        raw = (ctypes.c_void_p * len(used))(*(adapter.raw for adapter, _ in used))
        scales = (ctypes.c_float * len(used))(*(scale for _, scale in used))
        if context.libs.llama.llama_set_adapters_lora(context, raw, len(used), scales) != 0:
            raise RuntimeError("llama.cpp refused the LoRA adapters")


def make_encoder_shape(pooling: int, n_ctx: int, n_ubatch: int) -> EmbeddingShape:
    """The shape for a model without a KV cache. An input longer than `n_ubatch` is a batch of its own."""
    n = max(n_ctx, n_ubatch)
    return EmbeddingShape(
        pooling,
        n_ctx,
        n_ubatch,
        N_SEQS,
        n,
        n,
        False,
        "send shorter texts, or start the server with a larger --ctx-size if the model allows one",
    )


def make_generative_shape(
    pooling: int, n_ctx: int, n_ubatch: int, n_vocab: int, is_recurrent: bool, is_causal: bool
) -> EmbeddingShape:
    """The shape for a model with a KV cache or a recurrent state."""
    n_seqs = N_SEQS_RECURRENT if is_recurrent else N_SEQS
    if is_causal and pooling in (LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_LAST):
        n_rows = min(max(MAX_LOGITS // n_vocab, MIN_ROWS), MAX_ROWS, n_ubatch)
        return EmbeddingShape(
            pooling,
            n_ctx,
            n_rows,
            n_seqs,
            n_ctx + n_rows,
            n_rows,
            True,
            "send shorter texts, or start the server with a larger --ctx-size",
        )
    return EmbeddingShape(
        pooling,
        min(n_ctx, n_ubatch),
        n_ubatch,
        n_seqs,
        max(n_ctx, n_ubatch),
        n_ubatch,
        False,
        f"send shorter texts, or start the server with a larger --ubatch-size (--pooling "
        f"{POOLING_NAMES[pooling]} needs a whole text in one ubatch)",
    )


class LlamaEmbeddings:
    """See `EmbeddingBackend`. `fields` are context parameters that the slots' context has, too: threads, cache types
    and so on."""

    def __init__(self, model: Model, shape: EmbeddingShape, abort: AbortFlag, fields: Mapping[str, Any]) -> None:
        self._llama = model.libs.llama
        self._abort = abort
        n_seqs = min(shape.n_seqs, shape.n_ubatch)  # llama.cpp ends the process if n_ubatch < n_seq_max
        self.context = Context(
            model,
            abort=abort,
            **{
                **fields,
                "n_ctx": shape.n_ctx,
                "n_batch": shape.n_ubatch,
                "n_ubatch": shape.n_ubatch,
                "n_seq_max": n_seqs,
                "kv_unified": True,
                **self._make_context_fields(shape, n_seqs),
            },
        )
        self._batch = Batch(model.libs, shape.n_ubatch)
        self._is_pooled = shape.pooling != LLAMA_POOLING_TYPE_NONE
        is_encoder = self._llama.llama_model_has_encoder(model) and not self._llama.llama_model_has_decoder(model)
        self._run = self._llama.llama_encode if is_encoder else self._llama.llama_decode
        self.pooling = POOLING_NAMES[shape.pooling]
        self.width = int(
            self._llama.llama_model_n_cls_out(model)
            if shape.pooling == LLAMA_POOLING_TYPE_RANK
            else self._llama.llama_model_n_embd_out(model)
        )
        self.n_input, self.n_rows, self.n_seqs = shape.n_input, shape.n_rows, n_seqs
        self.can_split = shape.can_split
        self.advice = shape.advice

    @staticmethod
    def _make_context_fields(shape: EmbeddingShape, n_seqs: int) -> dict[str, Any]:
        return {"embeddings": True, "pooling_type": shape.pooling}

    @staticmethod
    def _mark_outputs(span: Span) -> bytes:
        return b"\x01" * len(span)

    def embed(self, spans: Sequence[Span]) -> int:
        batch, at = self._batch, 0
        for span in spans:
            n = len(span)
            batch.token[at : at + n] = span.tokens
            batch.pos[at : at + n] = range(span.pos, span.pos + n)
            batch.seq[at : at + n] = [span.seq] * n
            batch.logits[at : at + n] = self._mark_outputs(span)
            at += n
        batch.n_tokens = at
        self._abort.clear()
        code = self._run(self.context, batch.struct)
        if code == 0:
            self._llama.llama_synchronize(self.context)
        return code

    def read_vectors(self, spans: Sequence[Span]) -> list[bytes]:
        found, row = [], 0
        for span in spans:
            if self._is_pooled:
                found.append(
                    self._copy(self._llama.llama_get_embeddings_seq(self.context, span.seq)) if span.output else b""
                )
            else:
                found.append(
                    b"".join(
                        self._copy(self._llama.llama_get_embeddings_ith(self.context, i))
                        for i in range(row, row + len(span))
                    )
                )
            row += len(span)
        return found

    def trim(self, seq: int, start: int) -> bool:
        memory = self.context.memory
        return not memory or bool(self._llama.llama_memory_seq_rm(memory, seq, start, -1))

    def set_lora(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        use_adapters(self.context, adapters)

    def close(self) -> None:
        """Free the context; may be called again."""
        self.context.close()

    def _copy(self, vector: Any) -> bytes:
        if not vector:
            raise RuntimeError("llama.cpp returned no embedding for a computed row")
        return ctypes.string_at(vector, 4 * self.width)


# ---- rerankers without a classification head -------------------------------------------------------------------------

# Such a model (Qwen3-Reranker as published) is an ordinary text model with a template that asks whether a document fits
# a query. It answers "yes" or "no". A document's score is the probability of "yes" if only these two words could follow
# the prompt. Logits are computed for an input's last row only.
WORDS = ("yes", "no")


def must_answer_in_words(pooling: int, config: EngineConfig) -> bool:
    """Whether the model has to rank, but has no classification head."""
    if pooling != LLAMA_POOLING_TYPE_RANK:
        return False
    from server.model_files import gguf  # seldom needed

    parts = gguf.read_all(config.model, span=(config.model_offset, config.model_size))
    return not has_head(tensor for part in parts for tensor in part.tensors)


class LlamaWordScores(LlamaEmbeddings):
    """See `EmbeddingBackend`. A vector has the probabilities of "yes" and "no". `shape` is that of pooling "last".

    StartError if the model has no template or isn't `can_split`, or a word isn't one token.
    """

    def __init__(
        self, model: Model, shape: EmbeddingShape, n_ubatch: int, abort: AbortFlag, fields: Mapping[str, Any]
    ) -> None:
        self._words = tuple(vocabulary.tokenize(model.libs, model.vocab, word.encode(), False, False) for word in WORDS)
        if not template_of(model.read_meta()) or not shape.can_split:
            raise StartError(
                "this model can't rank: it has no classification head, and its metadata has no reranking template "
                f"({TEMPLATE_KEY})"
            )
        if any(len(tokens) != 1 for tokens in self._words):
            raise StartError(
                "this model can't rank: it has no classification head, and 'yes' and 'no' aren't single tokens"
            )
        n_cells = shape.n_input + n_ubatch
        super().__init__(model, replace(shape, n_rows=n_ubatch, n_ubatch=n_ubatch, n_ctx=n_cells), abort, fields)
        self.pooling, self.width = POOLING_NAMES[LLAMA_POOLING_TYPE_RANK], len(WORDS)

    @staticmethod
    def _make_context_fields(shape: EmbeddingShape, n_seqs: int) -> dict[str, Any]:
        return {"embeddings": False, "pooling_type": LLAMA_POOLING_TYPE_NONE, "n_outputs_max": n_seqs}

    @staticmethod
    def _mark_outputs(span: Span) -> bytes:
        return bytes(len(span) - 1) + bytes([span.output])

    def read_vectors(self, spans: Sequence[Span]) -> list[bytes]:
        found, row = [], 0
        for span in spans:
            row += len(span)
            found.append(self._compute_scores(row - 1) if span.output else b"")
        return found

    def _compute_scores(self, row: int) -> bytes:
        logits = self._llama.llama_get_logits_ith(self.context, row)
        yes, no = (logits[tokens[0]] for tokens in self._words)
        best = max(yes, no)
        weights = math.exp(yes - best), math.exp(no - best)
        return struct.pack("2f", *(weight / sum(weights) for weight in weights))
