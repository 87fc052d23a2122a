"""Rerankers without a classification head: models that are asked whether a document fits, and say "yes" or "no".

Engine thread only; a part of the backend. Such a model (Qwen3-Reranker as published) is an ordinary text model with a
template for the question. A document's score is the softmax over the logits of the two words behind the prompt, which
is what a conversion with a head computes, too. Logits of other words and other rows aren't needed, so this context
computes none of them for the rows before the last.

Without a template nothing is known of the question, and any number would be an invention.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ctypes_api import vocabulary
from ctypes_api.llama_types import LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_RANK
from ctypes_api.objects import AbortFlag, Model
from server.engine.llama.embed import POOLING_NAMES, EmbeddingShape, LlamaEmbeddings
from server.engine.seam.config import EngineConfig
from server.engine.slots.planner import Span
from server.errors import StartError
from server.model_files.rerankers import TEMPLATE_KEY, has_head, template_of

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
        self, model: Model, shape: EmbeddingShape, n_ubatch: int, abort: AbortFlag, fields: Mapping[str, object]
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
    def _context_fields(shape: EmbeddingShape, n_seqs: int) -> dict[str, object]:
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
