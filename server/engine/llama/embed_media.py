"""The embedding context for inputs with images or sound: text and chunks in turn, a vector for each token.

Engine thread only; part of the backend. A context pools per batch, but an input with files takes several batches,
because a batch of libllama holds tokens or embeddings, not both. So this context doesn't pool: `media_embedder` takes
the first or last vector, and the web process computes means. The result is the same, since a causal model's vectors
don't depend on later tokens. A model with non-causal attention is refused, because its inputs can't be split into
batches.

Not taken: sharing the context of texts, if it doesn't pool either. Then no text could be computed between two batches
of an input with files.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from ctypes_api.objects import AbortFlag, Adapter, Batch, Context, Model
from server.engine.llama.embed import EmbeddingShape, use_adapters
from server.engine.llama.mtmd import Projector
from server.engine.slots.backend import DECODE_OK
from server.engine.slots.media import Chunk
from server.errors import ApiError


class LlamaMediaEmbeddings:
    """See `MediaEmbeddingBackend`. `shape` is that of a context without pooling; `fields` as for `LlamaEmbeddings`."""

    def __init__(
        self,
        model: Model,
        projector: Projector,
        shape: EmbeddingShape,
        n_at_once: int,
        abort: AbortFlag,
        fields: Mapping[str, Any],
    ) -> None:
        if not shape.can_split:
            raise ApiError(400, "this model reads a whole input at once, so it can't embed inputs with files")
        self._llama = model.libs.llama
        self._projector, self._abort = projector, abort
        self.n_rows = max(shape.n_rows, n_at_once)
        self.n_input = shape.n_input
        self.width = int(self._llama.llama_model_n_embd_out(model))
        self.context = Context(
            model,
            abort=abort,
            **{
                **fields,
                "n_ctx": shape.n_input + self.n_rows,
                "n_batch": self.n_rows,
                "n_ubatch": self.n_rows,
                "n_seq_max": 1,
                "kv_unified": True,
                "embeddings": True,
                "pooling_type": shape.pooling,
            },
        )
        self._batch = Batch(model.libs, self.n_rows)
        self._encoded: Any = None

    def encode(self, chunk: Chunk) -> None:
        """See `MediaEmbeddingBackend`. The result is copied, because a slot may encode another chunk before this one is
        embedded."""
        self._encoded = None
        self._projector.encode(chunk)
        self._encoded = self._projector.copy_encoded(chunk)

    def embed_chunk(self, chunk: Chunk, pos: int) -> tuple[int, bytes]:
        rows: list[bytes] = []
        self._abort.clear()
        with self._projector.switch_attention(self.context, chunk):
            for batch, _ in self._projector.make_batches(chunk, ctypes.addressof(self._encoded), 0, pos, self.n_rows):
                code = self._compute(batch, rows)
                if code != DECODE_OK:
                    return code, b""
        return DECODE_OK, b"".join(rows)

    def embed_tokens(self, tokens: Sequence[int], pos: int) -> tuple[int, bytes]:
        rows: list[bytes] = []
        batch, n = self._batch, len(tokens)
        batch.token[:n] = tokens
        batch.pos[:n] = range(pos, pos + n)
        batch.seq[:n] = [0] * n
        batch.n_tokens = n
        self._abort.clear()
        code = self._compute(batch, rows)
        return code, b"".join(rows)

    def trim(self, start: int) -> bool:
        return bool(self._llama.llama_memory_seq_rm(self.context.memory, 0, start, -1))

    def set_lora(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        use_adapters(self.context, adapters)

    def close(self) -> None:
        """Free the context; may be called again."""
        self.context.close()

    def _compute(self, batch: Batch, rows: list[bytes]) -> int:
        """Evaluate a batch, and append the vectors of all its rows to `rows`."""
        n = batch.n_tokens
        batch.logits[:n] = b"\x01" * n
        code = self._llama.llama_decode(self.context, batch.struct)
        if code == DECODE_OK:
            self._llama.llama_synchronize(self.context)
            rows.append(ctypes.string_at(self._llama.llama_get_embeddings(self.context), 4 * self.width * n))
        return code
