"""The embedding context over libllama: a second context on the model that is loaded, for vectors instead of text.

Engine thread only; a part of the backend. Two kinds of models differ in what can be cut. An encoder (BERT and its
kin) looks at a whole input at once, so all rows of a batch go through one ubatch, which has to be as long as the
longest input. A generative model has a KV cache: what is behind a token doesn't change it, so an input can be spread
over batches as long as its vector is that of the last token, or of each token.

llama.cpp computes logits of all rows along with the embeddings, so batches of generative models with large
vocabularies are kept small: their buffer has a float for each row and word.
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
NON_CAUSAL = 1
N_SEQS = 64
N_SEQS_RECURRENT = 8  # each sequence of a recurrent model has a whole state
MAX_LOGITS = 2**25  # floats: 128 MiB
LEARNED_POSITIONS = ("bert",)
MIN_ROWS, MAX_ROWS = 32, 512


@record(frozen=True)
class EmbeddingShape:
    """How large a context has to be, and what it can do; see `EmbeddingBackend` for the names."""

    pooling: int
    n_input: int
    n_rows: int
    n_seqs: int
    n_ctx: int
    n_ubatch: int
    can_split: bool
    advice: str


def pooling_of(model: Model, params: Mapping[str, Any], is_generative: bool) -> int:
    """The pooling that is asked for, else the model's own; generative models that name none: the last token's."""
    asked = params.get("pooling_type")
    if isinstance(asked, int) and asked >= 0:
        return asked
    meta = model.meta()
    own = meta.get(f"{meta.get('general.architecture', '')}.pooling_type")
    if own is not None and own.isdecimal():
        return int(own)
    if is_generative and template_of(meta):
        return LLAMA_POOLING_TYPE_RANK
    return LLAMA_POOLING_TYPE_LAST if is_generative else LLAMA_POOLING_TYPE_NONE


def longest_input(model: Model, n_ctx: int, params: Mapping[str, Any]) -> int:
    """Tokens that an encoder can take: no more than it was trained on, unless rope settings stretch it.

    With learned positions (plain BERT) there is no row for a position beyond, and ggml ends the process.
    """
    is_stretched = any(name.startswith(("rope_", "yarn_")) for name in params)
    if is_stretched and model.meta().get("general.architecture") not in LEARNED_POSITIONS:
        return n_ctx
    return min(n_ctx, model.libs.llama.llama_model_n_ctx_train(model))


def class_labels(model: Model) -> tuple[str, ...]:
    """Names of a classifier's outputs; those without one are called by their number. Empty without a single name."""
    llama = model.libs.llama
    labels = [llama.llama_model_cls_label(model, i) for i in range(llama.llama_model_n_cls_out(model))]
    if not any(labels):
        return ()
    return tuple(label.decode("utf-8", "replace") if label else str(i) for i, label in enumerate(labels))


def use_adapters(context: Context, adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Have a context compute with these adapters from now on."""
    used = [(adapter, scale) for adapter, scale in adapters if scale]
    if used:
        raw = (ctypes.c_void_p * len(used))(*(adapter.raw for adapter, _ in used))
        scales = (ctypes.c_float * len(used))(*(scale for _, scale in used))
        if context.libs.llama.llama_set_adapters_lora(context, raw, len(used), scales) != 0:
            raise RuntimeError("llama.cpp refused the LoRA adapters")


def encoder_shape(pooling: int, n_ctx: int, n_ubatch: int) -> EmbeddingShape:
    """For a model without a KV cache. Longer inputs than `n_ubatch` make the ubatch larger, one at a time."""
    n = max(n_ctx, n_ubatch)
    return EmbeddingShape(
        pooling,
        n_ctx,
        n_ubatch,
        N_SEQS,
        n,
        n,
        False,
        "give it shorter texts, or start the server with a larger --ctx-size if the model can do with one",
    )


def generative_shape(
    pooling: int, n_ctx: int, n_ubatch: int, n_vocab: int, is_recurrent: bool, is_causal: bool
) -> EmbeddingShape:
    """For a model with a KV cache, or with a recurrent state."""
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
            "give it shorter texts, or start the server with a larger --ctx-size",
        )
    return EmbeddingShape(
        pooling,
        min(n_ctx, n_ubatch),
        n_ubatch,
        n_seqs,
        max(n_ctx, n_ubatch),
        n_ubatch,
        False,
        f"give it shorter texts, or start the server with a larger --ubatch-size (--pooling "
        f"{POOLING_NAMES[pooling]} needs a whole text in one)",
    )


class LlamaEmbeddings:
    """See `EmbeddingBackend`. `fields` are those of the context that generates: threads, cache types and so on."""

    def __init__(self, model: Model, shape: EmbeddingShape, abort: AbortFlag, fields: Mapping[str, Any]) -> None:
        self._llama = model.libs.llama
        self._abort = abort
        n_seqs = min(shape.n_seqs, shape.n_ubatch)  # llama.cpp ends the process if outputs are fewer
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
                **self._context_fields(shape, n_seqs),
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
    def _context_fields(shape: EmbeddingShape, n_seqs: int) -> dict[str, Any]:
        """What the context is for."""
        return {"embeddings": True, "pooling_type": shape.pooling}

    @staticmethod
    def _outputs(span: Span) -> bytes:
        """Which rows are outputs: all, whatever their flag says."""
        return b"\x01" * len(span)

    def embed(self, spans: Sequence[Span]) -> int:
        """See `EmbeddingBackend`."""
        batch, at = self._batch, 0
        for span in spans:
            n = len(span)
            batch.token[at : at + n] = span.tokens
            batch.pos[at : at + n] = range(span.pos, span.pos + n)
            batch.seq[at : at + n] = [span.seq] * n
            batch.logits[at : at + n] = self._outputs(span)
            at += n
        batch.n_tokens = at
        self._abort.clear()
        code = self._run(self.context, batch.struct)
        if code == 0:
            self._llama.llama_synchronize(self.context)
        return code

    def vectors(self, spans: Sequence[Span]) -> list[bytes]:
        """See `EmbeddingBackend`."""
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
        """See `EmbeddingBackend`."""
        memory = self.context.memory
        return not memory or bool(self._llama.llama_memory_seq_rm(memory, seq, start, -1))

    def set_lora(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        """Compute with these adapters from now on."""
        use_adapters(self.context, adapters)

    def close(self) -> None:
        """More than once is fine."""
        self.context.close()

    def _copy(self, vector: Any) -> bytes:
        if not vector:
            raise RuntimeError("llama.cpp has no embedding for a row that it has computed")
        return ctypes.string_at(vector, 4 * self.width)


# ---- rerankers without a classification head -------------------------------------------------------------------------

# Models that are asked whether a document fits, and say "yes" or "no". Such a model (Qwen3-Reranker as published) is an
# ordinary text model with a template for the question. A document's score is the softmax over the logits of the two
# words behind the prompt, which is what a conversion with a head computes, too. Logits of other words and other rows
# aren't needed, so this context computes none of them for the rows before the last. Without a template nothing is known
# of the question, and any number would be an invention.
WORDS = ("yes", "no")


def answers_in_words(pooling: int, config: EngineConfig) -> bool:
    """Whether a model ranks although it has no head to do so."""
    if pooling != LLAMA_POOLING_TYPE_RANK:
        return False
    from server.model_files import gguf  # here, because hardly any model gets here

    parts = gguf.read_all(config.model, span=(config.model_offset, config.model_size))
    return not has_head(tensor for part in parts for tensor in part.tensors)


class LlamaWordScores(LlamaEmbeddings):
    """See `EmbeddingBackend`: a row has the chances of "yes" and of "no". `shape` is that of a context which pools the
    last token; StartError if nothing says that this model can be asked."""

    def __init__(
        self, model: Model, shape: EmbeddingShape, n_ubatch: int, abort: AbortFlag, fields: Mapping[str, Any]
    ) -> None:
        self._words = tuple(vocabulary.tokenize(model.libs, model.vocab, word.encode(), False, False) for word in WORDS)
        if not template_of(model.meta()) or not shape.can_split:
            raise StartError(
                "this model can't rank: it has no classification head, and its metadata no template "
                f"to ask it with ({TEMPLATE_KEY})"
            )
        if any(len(tokens) != 1 for tokens in self._words):
            raise StartError(
                "this model can't rank: it has no classification head, and 'yes' and 'no' aren't "
                "tokens of its vocabulary"
            )
        n_cells = shape.n_input + n_ubatch
        super().__init__(model, replace(shape, n_rows=n_ubatch, n_ubatch=n_ubatch, n_ctx=n_cells), abort, fields)
        self.pooling, self.width = POOLING_NAMES[LLAMA_POOLING_TYPE_RANK], len(WORDS)

    @staticmethod
    def _context_fields(shape: EmbeddingShape, n_seqs: int) -> dict[str, Any]:
        """A context for text whose outputs are one row of each sequence."""
        return {"embeddings": False, "pooling_type": LLAMA_POOLING_TYPE_NONE, "n_outputs_max": n_seqs}

    @staticmethod
    def _outputs(span: Span) -> bytes:
        return bytes(len(span) - 1) + bytes([span.output])

    def vectors(self, spans: Sequence[Span]) -> list[bytes]:
        """See `EmbeddingBackend`."""
        found, row = [], 0
        for span in spans:
            row += len(span)
            found.append(self._scores(row - 1) if span.output else b"")
        return found

    def _scores(self, row: int) -> bytes:
        logits = self._llama.llama_get_logits_ith(self.context, row)
        yes, no = (logits[tokens[0]] for tokens in self._words)
        best = max(yes, no)
        weights = math.exp(yes - best), math.exp(no - best)
        return struct.pack("2f", *(weight / sum(weights) for weight in weights))
