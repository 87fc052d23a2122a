"""Images and sound through libmtmd: the projector's part of the backend.

`least_tokens` and `prepare` run on the thread `media`, all else on the engine's thread; libmtmd allows both at once. A
projector turns a file into ordinary tokens (such as `<start_of_image>`) and chunks. A chunk is encoded to one embedding
per KV cell. The embeddings are decoded like tokens, but in batches of their own: a batch of libllama holds tokens or
embeddings, and is causal or non-causal as a whole.

Not taken: `mtmd_helper_eval_chunks`. It can't be stopped between two batches, and returns no logits for a prompt that
ends with an image.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

from ctypes_api.errors import LibsError
from ctypes_api.media import Bitmap, Chunks, EmptyBitmap
from ctypes_api.mtmd import mtmd_decoder_pos
from ctypes_api.objects import AbortFlag, Batch, Context, Model, MtmdContext
from server.engine.llama.params import find_devices
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import AUDIO, Media
from server.engine.slots.backend import DECODE_OK
from server.engine.slots.media import Chunk, Prepared, make_placeholders
from server.errors import ApiError, StartError

N_POS_MROPE = 4  # positions per row with M-RoPE: time, row, column and z
MIN_SAMPLES_BYTES = 8  # bytes of two samples: libmtmd aborts the process on a sound of one
PROBE_S = 60  # seconds of silence that tell the projector's tokens per second


class Projector:
    """An mmproj file opened for a model and its context. See `slots.backend.MediaBackend`."""

    def __init__(self, model: Model, context: Context, config: EngineConfig, abort: AbortFlag) -> None:
        self._libs = model.libs
        self._llama, self._mtmd = self._libs.llama, self._libs.mtmd
        self._context, self._abort = context, abort
        fields = {
            "n_threads": int(self._llama.llama_n_threads_batch(context)),
            "print_timings": False,
            **config.mmproj_params,
        }
        if "device" in fields:
            fields["device"] = find_devices(self._libs, (fields["device"],), "--mmproj-device")[0]
        try:
            self._raw = MtmdContext(model, config.mmproj, **fields)
        except LibsError as error:
            raise StartError(f"--mmproj {config.mmproj}: {error}") from None
        self.vision = bool(self._mtmd.mtmd_support_vision(self._raw))
        self.audio = bool(self._mtmd.mtmd_support_audio(self._raw))
        self._n_pos = N_POS_MROPE if self._mtmd.mtmd_decode_use_mrope(self._raw) else 1
        self._n_embd = int(self._llama.llama_model_n_embd_inp(model))
        self._n_batch = int(self._llama.llama_n_batch(context))
        self._n_ubatch = int(self._llama.llama_n_ubatch(context))
        self._audio_rate: float | None = None

    def least_tokens(self, media: Media) -> int:
        """See `MediaBackend`. Exact for an image; a bit too low for a sound, and 0 for one of up to `PROBE_S`."""
        if media.kind == AUDIO:
            return int(media.seconds * self._measure_tokens_per_second()) if media.seconds > PROBE_S else 0
        return self._count(media.width, media.height) if media.width else 0

    def _measure_tokens_per_second(self) -> float:
        """A lower bound, measured once: the tokens of a minute of silence less those of a second, per second.

        Some projectors pad the last window of a sound; the subtraction removes the padding.
        """
        if self._audio_rate is None:
            n = self._mtmd.mtmd_get_audio_sample_rate(self._raw)
            self._audio_rate = max(self._count(PROBE_S * n) - self._count(n), 0) / PROBE_S
        return self._audio_rate

    def _count(self, width: int, height: int = 0) -> int:
        """Tokens of an image of this size, or of a sound of `width` samples, without its data; 0 if unknown."""
        try:
            with EmptyBitmap(self._raw, width, height) as bitmap, Chunks(self._raw, bitmap) as chunks:
                return sum(map(chunks.count_tokens, range(len(chunks))))
        except LibsError:
            return 0

    def prepare(self, media: Media) -> Prepared:
        if not (self.audio if media.kind == AUDIO else self.vision):
            raise ApiError(400, f"{media.where}: this model can't take {media.kind} input")
        try:
            with Bitmap(self._raw, media.data) as bitmap:
                if media.kind == AUDIO and bitmap.n_bytes < MIN_SAMPLES_BYTES:
                    raise ApiError(400, f"{media.where}: the sound is too short")
                chunks = Chunks(self._raw, bitmap)
        except LibsError as error:
            raise ApiError(400, f"{media.where}: {error}; is it a complete {media.kind} file?") from None
        return Prepared(tuple(self._make_part(media, chunks, i) for i in range(len(chunks))), chunks)

    def _make_part(self, media: Media, chunks: Chunks, index: int) -> list[int] | Chunk:
        tokens = chunks.get_text_tokens(index)
        if tokens is not None:
            return tokens
        raw = chunks[index]
        n_tokens = chunks.count_tokens(index)
        n_pos = self._mtmd.mtmd_input_chunk_get_n_pos(raw)
        is_causal = not self._mtmd.mtmd_decode_use_non_causal(self._raw, raw)
        if not is_causal and n_tokens > self._n_ubatch:
            raise ApiError(
                400,
                f"{media.where}: the {media.kind} has {n_tokens} tokens, which this model must read in one ubatch; "
                f"start the server with --ubatch-size {n_tokens} or more (now {self._n_ubatch})",
            )
        return Chunk(make_placeholders(f"{media.hash} {index}".encode(), n_pos), n_tokens, is_causal, raw)

    def encode(self, chunk: Chunk) -> None:
        if self._mtmd.mtmd_encode_chunk(self._raw, chunk.native) != 0:
            raise RuntimeError("libmtmd could not encode the file")

    def decode(self, chunk: Chunk, seq: int, pos: int, output: bool) -> tuple[int, int]:
        self._abort.clear()
        with self.switch_attention(self._context, chunk):
            for batch, is_last in self.make_batches(chunk, self._get_output(), seq, pos, self._n_batch):
                batch.logits[batch.n_tokens - 1] = output and is_last
                code = self._llama.llama_decode(self._context, batch.struct)
                if code != DECODE_OK:
                    return code, -1
        self._llama.llama_synchronize(self._context)
        return DECODE_OK, batch.n_tokens - 1

    def copy_encoded(self, chunk: Chunk) -> ctypes.Array:
        """A copy of the embeddings of the chunk encoded last."""
        size = chunk.n_tokens * self._n_embd
        copy = (ctypes.c_float * size)()
        ctypes.memmove(copy, self._get_output(), ctypes.sizeof(copy))
        return copy

    @contextlib.contextmanager
    def switch_attention(self, context: Context, chunk: Chunk) -> Iterator[None]:
        """Switch a context to the chunk's attention, causal or not, and back at the end of the block."""
        if not chunk.is_causal:
            self._llama.llama_set_causal_attn(context, False)
        try:
            yield
        finally:
            if not chunk.is_causal:
                self._llama.llama_set_causal_attn(context, True)

    def make_batches(self, chunk: Chunk, source: int, seq: int, pos: int, n_batch: int) -> Iterator[tuple[Batch, bool]]:
        """(batch, is last) pairs with the chunk's embeddings, which begin at address `source`. A batch has at most
        `n_batch` rows."""
        for start in range(0, chunk.n_tokens, n_batch):
            n = min(n_batch, chunk.n_tokens - start)
            yield self._batch(chunk, source, start, n, seq, pos), start + n == chunk.n_tokens

    def close(self) -> None:
        """Free the projector; must be called before the model is closed."""
        self._raw.close()

    def _get_output(self) -> Any:
        return ctypes.cast(self._mtmd.mtmd_get_output_embd(self._raw), ctypes.c_void_p).value

    def _batch(self, chunk: Chunk, source: int, start: int, n: int, seq: int, pos: int) -> Batch:
        """Rows [start, start + n) of the encoded chunk, whose first row has position `pos`."""
        batch = Batch(self._libs, n, n_embd=self._n_embd, n_pos=self._n_pos)
        row_bytes = self._n_embd * ctypes.sizeof(ctypes.c_float)
        ctypes.memmove(batch.embd, source + start * row_bytes, n * row_bytes)
        batch.seq[:] = [seq] * n
        for dimension, positions in enumerate(self._compute_positions(chunk, pos)):
            batch.pos[dimension * n : (dimension + 1) * n] = positions[start : start + n]
        batch.n_tokens = n
        return batch

    def _compute_positions(self, chunk: Chunk, pos: int) -> list[list[int]]:
        """The positions of all rows, per dimension: one dimension, or the `N_POS_MROPE` of M-RoPE."""
        line = list(range(pos, pos + chunk.n_tokens))
        if self._n_pos == 1:
            return [line]
        image = self._mtmd.mtmd_input_chunk_get_tokens_image(chunk.native)
        if not image:
            return [line] * N_POS_MROPE
        places = (mtmd_decoder_pos * chunk.n_tokens)()
        self._mtmd.mtmd_helper_image_get_decoder_pos(image, pos, places)
        return [
            [place.t for place in places],
            [place.y for place in places],
            [place.x for place in places],
            [place.z for place in places],
        ]
