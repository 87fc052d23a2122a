"""Converts text to tokens and back, with a vocabulary pointer (`Model.vocab`).

Any thread may call these functions. Text is bytes (except in `get_token_text`), because a token may end within a
character. Ids are checked first, because an unknown one would end the process.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any

from ctypes_api.errors import LibsError
from ctypes_api.llama_types import LLAMA_VOCAB_TYPE_NONE
from ctypes_api.loader import Libs

_OVERFLOW = -(1 << 31)  # llama.cpp's result for too long a text
_MOST = (1 << 31) - 1  # most bytes of a text
_PIECE = ctypes.c_char * 64  # longer tokens need a second call


@cache
def _make_array_type(n: int) -> Any:
    """The type of an array of `n` integers; making it takes longer than making an array."""
    return ctypes.c_int32 * n


def tokenize(libs: Libs, vocab: int, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
    """Token ids of `text`.

    `add_special` adds BOS and EOS as the model has them; `parse_special` recognises control tokens such as
    `<|im_end|>`. LibsError if the text is too long for llama.cpp, or the model has no vocabulary.
    """
    _check(libs, vocab, ())
    room = len(text) + 8  # a token per byte, plus BOS, EOS and a leading space
    for _ in range(2):
        tokens = _make_array_type(1 << (room - 1).bit_length())()
        count = libs.llama.llama_tokenize(vocab, text, len(text), tokens, room, add_special, parse_special)
        if count >= 0:
            return tokens[:count]
        if count == _OVERFLOW:
            break
        room = -count
    raise LibsError(f"a text of {len(text)} bytes can't be tokenized: it is too long")


def token_to_piece(libs: Libs, vocab: int, token: int, special: bool) -> bytes:
    """The bytes of one token, with `special` also those of control tokens. LibsError for an unknown id."""
    _check(libs, vocab, (token,))
    buffer = _PIECE()
    length = libs.llama.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
    if length < 0:
        buffer = (ctypes.c_char * -length)()
        length = libs.llama.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
    return buffer.raw[:length]


def get_token_text(libs: Libs, vocab: int, token: int) -> str:
    """A token's text; "" for a negative id."""
    return token_to_piece(libs, vocab, token, True).decode("utf-8", "replace") if token >= 0 else ""


def list_suppressed_tokens(libs: Libs, vocab: int) -> tuple[int, ...]:
    """The tokens that the model's file forbids to draw."""
    n = ctypes.c_int32(0)
    tokens = libs.llama.llama_vocab_get_suppress_tokens(vocab, ctypes.byref(n))
    return tuple(tokens[i] for i in range(n.value))


def detokenize(
    libs: Libs,
    vocab: int,
    tokens: Sequence[int],
    remove_special: bool = False,
    unparse_special: bool = False,
    most: int | None = None,
) -> bytes:
    """The text of `tokens`; flags as in llama_detokenize. LibsError for an unknown id, or more than `most` bytes."""
    _check(libs, vocab, tokens)
    numbers = (ctypes.c_int32 * len(tokens)).from_buffer(array("i", tokens))
    room = min(6 * len(tokens) + 64, most or _MOST)  # enough for most texts
    for _ in range(2):
        buffer: Any = (ctypes.c_char * room)()
        length = libs.llama.llama_detokenize(vocab, numbers, len(tokens), buffer, room, remove_special, unparse_special)
        if length >= 0:
            return buffer[:length]
        if length == _OVERFLOW or -length > (most or _MOST):
            break
        room = -length
    raise LibsError(f"{len(tokens)} tokens can't be converted to text: it would be too long")


def _check(libs: Libs, vocab: int, tokens: Sequence[int]) -> None:
    if libs.llama.llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE:
        raise LibsError("this model has no vocabulary: text can't be converted to tokens or back")
    count = libs.llama.llama_vocab_n_tokens(vocab)
    for token in (min(tokens), max(tokens)) if tokens else ():
        if not 0 <= token < count:
            raise LibsError(f"token {token} isn't in the vocabulary of {count} tokens")
