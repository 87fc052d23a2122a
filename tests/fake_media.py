"""Images and audio for the fake backend: files whose length is their number of KV cells."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace

from server.engine.seam.task import AUDIO, IMAGE, Media
from server.engine.slots.backend import DECODE_NO_ROOM, DECODE_OK
from server.engine.slots.media import Chunk, Prepared, make_placeholders
from server.errors import ApiError
from tests.fake_embeddings import vector_of
from tests.fakes import Cell, FakeBackend
from tests.media_files import sha256

OPENING, CLOSING = ord("<"), ord(">")


def picture_bytes(number: int, n_cells: int = 4, n_chunks: int = 1) -> bytes:
    """A file that `FakeMedia` takes for an image of `n_chunks` chunks of so many cells; `number` makes it unique."""
    return b"FAKE" + struct.pack("<HHI", n_cells, n_chunks, number)


def media(data: bytes, kind: str = IMAGE, where: str = "here") -> Media:
    """A file of a task."""
    return Media(kind, data, sha256(data), where)


class FakeMedia:
    """See `slots.backend.MediaBackend`. Puts `<` and `>` around each image if it has `marks`; gives back what isn't
    FAKE.

    `n_pos_factor` 2 makes each position take two cells, as M-RoPE models do. `fail_at` has codes or exceptions for the
    Nth decode, `fail_encode_at` exceptions for the Nth encoding.
    """

    def __init__(
        self, backend: FakeBackend, vision: bool = True, audio: bool = False, n_pos_factor: int = 1, marks: bool = True
    ) -> None:
        self.vision, self.audio = vision, audio
        self.encoded: list[Chunk] = []
        self.decoded: list[Chunk] = []
        self.fail_at: dict[int, int | Exception] = {}
        self.fail_encode_at: dict[int, Exception] = {}
        self.n_decodes = 0
        self.n_open = 0
        self._marks = marks
        self._backend = backend
        self._n_pos_factor = n_pos_factor
        backend.media = self
        backend.media_embeddings = FakeMediaEmbeddings(backend, self)

    def least_tokens(self, media: Media) -> int:
        """One for each pixel and each second, if anybody has looked; any thread."""
        return media.width * media.height + int(media.seconds)

    def prepare(self, media: Media) -> Prepared:
        """Any thread."""
        if not (self.audio if media.kind == AUDIO else self.vision):
            raise ApiError(400, f"{media.where}: this model can't take {media.kind} input")
        if media.data[:4] != b"FAKE":
            raise ApiError(400, f"{media.where}: the file can't be decoded")
        n_cells, n_chunks, _ = struct.unpack("<HHI", media.data[4:])
        parts: list[list[int] | Chunk] = [[OPENING]] if self._marks else []
        for i in range(n_chunks):
            ids = make_placeholders(f"{media.hash} {i}".encode(), n_cells // self._n_pos_factor)
            parts.append(Chunk(ids, n_cells))
        self.n_open += 1
        parts += [[CLOSING]] if self._marks else []
        return Prepared(tuple(parts), _Owner(self))

    def encode(self, chunk: Chunk) -> None:
        """Remember whose embeddings are there."""
        self._backend.check_thread()
        self.encoded.append(chunk)
        if len(self.encoded) in self.fail_encode_at:
            raise self.fail_encode_at[len(self.encoded)]

    def decode(self, chunk: Chunk, seq: int, pos: int, output: bool) -> tuple[int, int]:
        """Store the placeholders as cells; half of them if it fails."""
        self._backend.check_thread()
        assert self.encoded and self.encoded[-1] is chunk, "the embeddings of another chunk"
        cells = self._backend.cells.setdefault(seq, [])
        assert [cell.pos for cell in cells] == list(range(pos)), "not where the sequence goes on"
        assert all(cell.lora == self._backend.lora for cell in cells), "computed with other adapters"
        self.n_decodes += 1
        code = self.fail_at.pop(self.n_decodes, DECODE_OK)
        if isinstance(code, Exception):
            raise code
        if self._backend.n_cells is not None and self._backend.n_used + len(chunk.ids) > self._backend.n_cells:
            return DECODE_NO_ROOM, 0
        ids = chunk.ids if code == DECODE_OK else chunk.ids[: len(chunk.ids) // 2]
        cells += (Cell(pos + i, token, self._backend.lora) for i, token in enumerate(ids))
        self._backend.outputs.clear()
        if code == DECODE_OK:
            self.decoded.append(chunk)
            if output:
                self._backend.outputs[chunk.n_tokens - 1] = self._backend.history(seq)
        return code, chunk.n_tokens - 1


class FakeMediaEmbeddings:
    """See `slots.backend.MediaEmbeddingBackend`; a row is `vector_of` all positions up to it. `fail_at` has codes or
    exceptions for the Nth evaluation. Without `can_trim` only all of it can be dropped."""

    def __init__(
        self, backend: FakeBackend, eyes: FakeMedia, n_input: int = 200, n_rows: int = 8, can_trim: bool = True
    ) -> None:
        self.width, self.n_input, self.n_rows, self.can_trim = 4, n_input, n_rows, can_trim
        self.held: list[int] = []
        self.log: list[str | int] = []  # "encode", "chunk", or how many tokens of text
        self.fail_at: dict[int, int | Exception] = {}
        self._backend, self._eyes = backend, eyes
        self._encoded: Chunk | None = None
        self._n_evaluated = 0

    def encode(self, chunk: Chunk) -> None:
        """Keep it."""
        self._eyes.encode(chunk)
        self._encoded = chunk
        self.log.append("encode")

    def embed_chunk(self, chunk: Chunk, pos: int) -> tuple[int, bytes]:
        """A row for each cell."""
        assert self._encoded is chunk, "the embeddings of another chunk"
        self.log.append("chunk")
        n = len(chunk.ids)
        return self._evaluate(chunk.ids, pos, [-(-n * (i + 1) // chunk.n_tokens) for i in range(chunk.n_tokens)])

    def embed_tokens(self, tokens: Sequence[int], pos: int) -> tuple[int, bytes]:
        """A row for each token."""
        assert 0 < len(tokens) <= self.n_rows
        self.log.append(len(tokens))
        return self._evaluate(tokens, pos, range(1, len(tokens) + 1))

    def trim(self, start: int) -> bool:
        """Forget what comes behind `start`."""
        if start and not self.can_trim:
            return False
        del self.held[start:]
        return True

    def _evaluate(self, ids: Sequence[int], pos: int, ends: Iterable[int]) -> tuple[int, bytes]:
        self._backend.check_thread()
        assert pos == len(self.held), f"position {pos}, it holds {len(self.held)}"
        self._backend.wait_at_the_gate()
        self._n_evaluated += 1
        code = self.fail_at.pop(self._n_evaluated, DECODE_OK)
        if isinstance(code, Exception):
            raise code
        self.held += ids if code == DECODE_OK else ids[:1]
        rows = [struct.pack("4f", *vector_of(self.held[: pos + end])) for end in ends] if code == DECODE_OK else ()
        return code, b"".join(rows)


class _Owner:
    def __init__(self, media: FakeMedia) -> None:
        self._media = media
        self._is_open = True

    def close(self) -> None:
        assert self._is_open, "freed twice"
        self._is_open = False
        self._media.n_open -= 1


def written_out(prompt: list[int], files: list[Media], marks: bool = True) -> list[int]:
    """A prompt as the cache will hold it."""
    fake = FakeMedia(FakeBackend(), audio=True, marks=marks)
    tokens: list[int] = []
    for token in prompt:
        parts = fake.prepare(files[-1 - token]).parts if token < 0 else ([token],)
        for part in parts:
            tokens += part.ids if isinstance(part, Chunk) else part
    return tokens


class Eyes(FakeMedia):
    """Real files: each takes as many cells as its length says."""

    def least_tokens(self, media):
        return 3

    def prepare(self, media):
        number = sum(media.data) % 2**32
        fake = b"FAKE" + (3 + len(media.data) % 5).to_bytes(2, "little") + b"\1\0" + number.to_bytes(4, "little")
        return super().prepare(replace(media, data=fake))


def seeing(vision: bool = True, audio: bool = True, **fields) -> FakeBackend:
    backend = FakeBackend(**{"n_ctx": 4096, "n_slots": 2, **fields})
    Eyes(backend, vision, audio)
    backend.info = replace(backend.info, vision=vision, audio=audio)
    return backend


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
