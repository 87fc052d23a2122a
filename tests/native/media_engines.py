"""Engines with a projector, and libmtmd's own evaluation of a prompt to compare them with."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.engine.seam.task import IMAGE, Media, Task
from tests.media_files import sha256
from tests.native.engines import Engine

Parts = Sequence[str | Media]
QUIET = {"warmup": False, "use_gpu": False}


def image(data: bytes, kind: str = IMAGE) -> Media:
    """A file of a request."""
    return Media(kind, data, sha256(data), "image")


def task(engine: Engine, parts: Parts, n: int = 24, **fields: object) -> Task:
    """A task over texts, tokenised one by one as libmtmd does it, and files."""
    tokens: list[int] = []
    files: list[Media] = []
    vocab = engine.client.vocab
    if vocab.add_bos:
        tokens.append(vocab.bos)
    for part in parts:
        if isinstance(part, Media):
            files.append(part)
            tokens.append(-len(files))
        else:
            tokens += vocab.tokenize(part, False, True)
    return engine.task(tokens, n, media=tuple(files), **fields)


class HelperReference:
    """Greedy text behind texts and images by `mtmd_helper_eval_chunks` alone, in a context that nobody shares."""

    def __init__(self, libs: Path, model: Path, mmproj: Path, stack: ExitStack) -> None:
        from ctypes_api import loader
        from ctypes_api.objects import Batch, Context, Model, MtmdContext

        self._libs = loader.load(libs, with_mtmd=True)
        self._model = stack.enter_context(Model(self._libs, model))
        self._context = stack.enter_context(
            Context(self._model, n_ctx=2048, n_batch=512, n_ubatch=512, n_threads=1, n_threads_batch=1, kv_unified=True)
        )
        self._mtmd = stack.enter_context(MtmdContext(self._model, mmproj, n_threads=1, warmup=False, use_gpu=False))
        self._batch = stack.enter_context(Batch(self._libs, 8))
        self._n_vocab = self._libs.llama.llama_vocab_n_tokens(self._model.vocab)

    def greedy(self, parts: Parts, n: int) -> list[int]:
        """The `n` most likely tokens."""
        position, said = self._read(parts), []
        for _ in range(n):
            logits = self._libs.llama.llama_get_logits_ith(self._context, -1)[: self._n_vocab]
            said.append(logits.index(max(logits)))
            self._batch.token[0], self._batch.pos[0], self._batch.seq[0] = said[-1], position, 0
            self._batch.logits[0], self._batch.n_tokens = True, 1
            assert self._libs.llama.llama_decode(self._context, self._batch.struct) == 0
            position += 1
        return said

    def _read(self, parts: Parts) -> int:
        """Evaluate a prompt; the next position."""
        mtmd = self._libs.mtmd
        self._libs.llama.llama_memory_clear(self._context.memory, True)
        n_past = ctypes.c_int32(0)
        with chunks_of(self._libs, self._mtmd, parts) as chunks:
            assert (
                mtmd.mtmd_helper_eval_chunks(self._mtmd, self._context, chunks, 0, 0, 512, True, ctypes.byref(n_past))
                == 0
            )
        return n_past.value


class HelperVectors:
    """A vector for each token of texts and images by `mtmd_helper_eval_chunk_single`, in a context of its own."""

    def __init__(self, libs: Path, model: Path, mmproj: Path, stack: ExitStack) -> None:
        from ctypes_api import loader
        from ctypes_api.llama_types import LLAMA_POOLING_TYPE_NONE
        from ctypes_api.objects import Context, Model, MtmdContext

        self._libs = loader.load(libs, with_mtmd=True)
        self._model = stack.enter_context(Model(self._libs, model))
        self._context = stack.enter_context(
            Context(
                self._model,
                n_ctx=2048,
                n_batch=1024,
                n_ubatch=1024,
                n_threads=1,
                n_threads_batch=1,
                embeddings=True,
                pooling_type=LLAMA_POOLING_TYPE_NONE,
            )
        )
        self._mtmd = stack.enter_context(MtmdContext(self._model, mmproj, n_threads=1, warmup=False, use_gpu=False))
        self._width = self._libs.llama.llama_model_n_embd_out(self._model)

    def rows(self, parts: Parts) -> list[list[float]]:
        """In the order of the tokens."""
        mtmd, llama = self._libs.mtmd, self._libs.llama
        llama.llama_memory_clear(self._context.memory, True)
        found: list[list[float]] = []
        with chunks_of(self._libs, self._mtmd, parts) as chunks:
            n_past = ctypes.c_int32(0)
            for i in range(mtmd.mtmd_input_chunks_size(chunks)):
                chunk = mtmd.mtmd_input_chunks_get(chunks, i)
                assert (
                    mtmd.mtmd_helper_eval_chunk_single(
                        self._mtmd, self._context, chunk, n_past.value, 0, 1024, True, ctypes.byref(n_past)
                    )
                    == 0
                )
                n = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
                assert n <= 1024, "one batch only"
                numbers = llama.llama_get_embeddings(self._context)[: n * self._width]
                found += [numbers[at : at + self._width] for at in range(0, len(numbers), self._width)]
        return found


@contextmanager
def chunks_of(libs, context, parts: Parts) -> Iterator[int]:
    """A prompt as libmtmd cuts it."""
    from ctypes_api.media import Bitmap
    from ctypes_api.mtmd import mtmd_bitmap_p, mtmd_input_text

    text = "".join("<__media__>" if isinstance(part, Media) else part for part in parts).encode()
    with ExitStack() as stack:
        files = [stack.enter_context(Bitmap(context, part.data)) for part in parts if isinstance(part, Media)]
        chunks = libs.mtmd.mtmd_input_chunks_init()
        stack.callback(libs.mtmd.mtmd_input_chunks_free, chunks)
        given = mtmd_input_text(text, len(text), True, True)
        bitmaps = (mtmd_bitmap_p * len(files))(*(file.raw for file in files))
        assert libs.mtmd.mtmd_tokenize(context, chunks, ctypes.byref(given), bitmaps, len(files)) == 0
        yield chunks
