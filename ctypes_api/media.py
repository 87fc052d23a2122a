"""Owners of libmtmd's objects for a file: the decoded bitmap, and the chunks for a prompt.

They can be made on any thread, since decoding and tokenising are thread-safe in libmtmd. Encoding is only allowed on
the thread that owns the context.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_size_t

from ctypes_api.errors import LibsError
from ctypes_api.mtmd import MTMD_INPUT_CHUNK_TYPE_TEXT, mtmd_bitmap_p, mtmd_helper_init_opt, mtmd_input_text
from ctypes_api.objects import MtmdContext, Owner

# libmtmd starts ffmpeg for files that it can't decode. A request's bytes must not reach another program, so libmtmd
# gets a folder that doesn't exist.
NO_PROGRAM = b"/nonexistent"


class Bitmap(Owner):
    """A decoded image (RGB) or sound (mono, f32, in the projector's sample rate)."""

    def __init__(self, context: MtmdContext, data: bytes) -> None:
        """Decode a file in memory. LibsError if libmtmd can't read it."""
        super().__init__(context.libs)
        mtmd = self.libs.mtmd
        options: mtmd_helper_init_opt = mtmd.mtmd_helper_init_opt_default()
        options.video_params.ffmpeg_bin_dir = NO_PROGRAM
        found = mtmd.mtmd_helper_bitmap_init_from_buf(context, data, len(data), False, options)
        if found.video_ctx:
            mtmd.mtmd_helper_video_free(found.video_ctx)
        self._own(found.bitmap)
        if self.raw is None or found.video_ctx:
            self.close()
            raise LibsError("the file can't be decoded")

    @property
    def n_bytes(self) -> int:
        """Size of the decoded data."""
        return self.libs.mtmd.mtmd_bitmap_get_n_bytes(self)

    def _free(self, raw: int) -> None:
        self.libs.mtmd.mtmd_bitmap_free(raw)


class EmptyBitmap(Owner):
    """An image or sound without data, to count the tokens that it would take."""

    def __init__(self, context: MtmdContext, width: int, height: int = 0) -> None:
        """With height 0 a sound of `width` samples."""
        super().__init__(context.libs)
        mtmd = self.libs.mtmd
        self._own(
            mtmd.mtmd_bitmap_init(width, height, None) if height else mtmd.mtmd_bitmap_init_from_audio(width, None)
        )

    def _free(self, raw: int) -> None:
        self.libs.mtmd.mtmd_bitmap_free(raw)


class Chunks(Owner):
    """The chunks (text or media) that stand for a bitmap in a prompt, in order. Freeing this object frees them."""

    def __init__(self, context: MtmdContext, bitmap: Bitmap | EmptyBitmap) -> None:
        """LibsError if the projector can't use this bitmap."""
        super().__init__(context.libs)
        mtmd = self.libs.mtmd
        marker: bytes = mtmd.mtmd_get_marker(context)
        self._own(mtmd.mtmd_input_chunks_init())
        text = mtmd_input_text(c_char_p(marker), len(marker), False, True)
        code = mtmd.mtmd_tokenize(context, self, ctypes.byref(text), (mtmd_bitmap_p * 1)(bitmap.raw), 1)
        if code != 0:
            self.close()
            raise LibsError(f"libmtmd can't prepare the file (code {code})")

    def __len__(self) -> int:
        return self.libs.mtmd.mtmd_input_chunks_size(self)

    def __getitem__(self, index: int) -> int:
        """A chunk's address, valid as long as this object."""
        return self.libs.mtmd.mtmd_input_chunks_get(self, index)

    def get_text_tokens(self, index: int) -> list[int] | None:
        """The tokens of a text chunk; None for a media chunk."""
        mtmd, chunk = self.libs.mtmd, self[index]
        if mtmd.mtmd_input_chunk_get_type(chunk) != MTMD_INPUT_CHUNK_TYPE_TEXT:
            return None
        n = c_size_t(0)
        tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n))
        return tokens[: n.value]

    def count_tokens(self, index: int) -> int:
        """The number of KV cells that a chunk takes."""
        return self.libs.mtmd.mtmd_input_chunk_get_n_tokens(self[index])

    def _free(self, raw: int) -> None:
        self.libs.mtmd.mtmd_input_chunks_free(raw)
