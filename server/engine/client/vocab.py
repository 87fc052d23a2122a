"""The model's vocabulary in the web process: converts text to tokens and back, on any thread.

It is a second load of the model file, with `vocab_only` (20-50 MiB of memory). libllama's tokenizer is thread-safe.

SentencePiece's tokenizer (SPM) takes quadratic time for characters without a token, so long texts are cut into parts
if possible. A part begins with a character that no token has behind its first one, so no token can span the cut.

Not taken: sending text to the engine. All streams would wait while its thread tokenizes.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from ctypes_api import loader, vocabulary
from ctypes_api.errors import LibsError
from ctypes_api.llama_types import (
    LLAMA_TOKEN_ATTR_CONTROL,
    LLAMA_TOKEN_ATTR_LSTRIP,
    LLAMA_TOKEN_ATTR_RSTRIP,
    LLAMA_TOKEN_ATTR_UNKNOWN,
    LLAMA_TOKEN_ATTR_USER_DEFINED,
    LLAMA_VOCAB_TYPE_BPE,
    LLAMA_VOCAB_TYPE_NONE,
    LLAMA_VOCAB_TYPE_SPM,
    llama_chat_message,
)
from ctypes_api.objects import Model
from server.errors import ApiError

FIM_TOKENS = ("pre", "suf", "mid", "rep", "sep")
CUT_CHARACTERS = 1 << 14  # SPM: the least length of all parts but the last
STRIPS = LLAMA_TOKEN_ATTR_LSTRIP | LLAMA_TOKEN_ATTR_RSTRIP  # tokens that swallow white space beside them
# tokens that are found in a text by their names
NAMED = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED | LLAMA_TOKEN_ATTR_UNKNOWN
CHANGED_BY_NORMALISATION = "A  a\n\n b\ufb01\u2460\uff21e\u0301\u00e9"


def preload(folder: str) -> None:
    """Load the libraries early. Errors are ignored, because `open_vocab` raises them again."""
    with contextlib.suppress(LibsError, OSError):
        loader.load(Path(folder), with_backends=False)


def open_vocab(folder: str, model: str, offset: int = 0) -> NativeVocab | NoVocab:
    """Open the vocabulary of the model at byte `offset` of the file `model`."""
    vocab = NativeVocab(loader.load(Path(folder), with_backends=False), model, offset)
    return NoVocab(vocab) if vocab.is_none else vocab


class NativeVocab:
    """A `models.model.Vocab` without limits for texts."""

    def __init__(self, libs: loader.Libs, path: str, offset: int = 0) -> None:
        self._libs = libs
        self._model = Model(libs, path, offset=offset, vocab_only=True)
        weakref.finalize(self, self._model.close).atexit = False  # freed when no thread can use it any more
        self._vocab = libs.llama.llama_model_get_vocab(self._model)
        self._type = libs.llama.llama_vocab_type(self._vocab)
        self.is_none = self._type == LLAMA_VOCAB_TYPE_NONE
        self.has_patterns = self._type == LLAMA_VOCAB_TYPE_BPE
        self._pieces: dict[int, bytes] = {}
        self.n_tokens = libs.llama.llama_vocab_n_tokens(self._vocab)
        self.add_bos = bool(libs.llama.llama_vocab_get_add_bos(self._vocab))
        self.bos = libs.llama.llama_vocab_bos(self._vocab)
        self.add_eos = bool(libs.llama.llama_vocab_get_add_eos(self._vocab))
        self.eos = libs.llama.llama_vocab_eos(self._vocab)
        self.add_sep = bool(libs.llama.llama_vocab_get_add_sep(self._vocab))
        self.sep = libs.llama.llama_vocab_sep(self._vocab)
        fim = {name: getattr(libs.llama, f"llama_vocab_fim_{name}")(self._vocab) for name in FIM_TOKENS}
        self.fim = {name: token for name, token in fim.items() if token >= 0}

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`; with `add_special` BOS and EOS if the model adds them."""
        if len(text) > 2 * CUT_CHARACTERS and self._type == LLAMA_VOCAB_TYPE_SPM:
            return self._tokenize_cut(text, add_special, parse_special)
        return self._tokenize(text, add_special, parse_special)

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        return vocabulary.tokenize(self._libs, self._vocab, text.encode(), add_special, parse_special)

    def _tokenize_cut(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Tokenize a long text in parts, or as a whole if it can't be cut. If the model prefixes texts with a space,
        the tokenizer adds one to each part; all parts but the first lose it again."""
        parts = list(self._cut_parts(text))
        first = parts[-1][:1]
        pieces = [self.piece(token) for token in self._tokenize(first, False, False)]
        n_spaces = pieces[0] == b" "
        if len(parts) == 1 or b"".join(pieces[n_spaces:]) != first.encode():
            return self._tokenize(text, add_special, parse_special)
        ends = self._tokenize("", add_special, parse_special)
        n_before = 1 if ends[:1] == [self.bos] else 0
        tokens = ends[:n_before]
        for i, part in enumerate(parts):
            tokens += self._tokenize(part, False, parse_special)[n_spaces if i else 0 :]
        return tokens + ends[n_before:]

    def _cut_parts(self, text: str) -> Iterator[str]:
        """Cut a text where no token can span the cut. It isn't cut right behind a name (`_names`), where the tokenizer
        adds a space of its own."""
        start = 0
        while len(text) - start > 2 * CUT_CHARACTERS:
            found = self._foreign.search(text, start + CUT_CHARACTERS)
            while found is not None and text.endswith(self._names, start, found.start()):
                found = self._foreign.search(text, found.end())
            if found is None:
                break
            yield text[start : found.start()]
            start = found.start()
        yield text[start:]

    def least_tokens(self, text: str) -> int:
        """A lower bound for the number of tokens of a text, from its bytes; 0 if none is known."""
        longest, lost = self._longest_piece
        data = text.encode() if longest else b""
        return -(-(len(data) - sum(map(data.count, lost))) // max(longest, 1))

    @cached_property
    def _longest_piece(self) -> tuple[int, bytes]:
        """The length in bytes of the longest token, and the byte values without a token, which the tokenizer may drop.
        (0, b"") if it may change or drop other characters."""
        tokens = self._tokenize(CHANGED_BY_NORMALISATION, False, False)
        is_kept = b"".join(map(self.piece, tokens)).endswith(CHANGED_BY_NORMALISATION.encode())
        if self._type not in (LLAMA_VOCAB_TYPE_SPM, LLAMA_VOCAB_TYPE_BPE) or not is_kept:
            return 0, b""
        if any(self._get_attributes(token) & STRIPS for token in range(self.n_tokens)):
            return 0, b""
        pieces = {vocabulary.token_to_piece(self._libs, self._vocab, token, True) for token in range(self.n_tokens)}
        return max(map(len, pieces)), bytes(byte for byte in range(256) if bytes((byte,)) not in pieces)

    @cached_property
    def _foreign(self) -> re.Pattern[str]:
        """Matches a character that no token has behind its first one, and no name in `_names` has."""
        texts = (self._text_of(token).decode("utf-8", "replace") for token in range(self.n_tokens))
        letters = {" ", "\u2581", "\0", *"".join(text[1:] for text in texts), *"".join(self._names)}
        return re.compile(f"[^{re.escape(''.join(letters))}]")

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Texts of the tokens that the tokenizer searches for before all else."""
        named = [token for token in range(self.n_tokens) if self._get_attributes(token) & NAMED]
        return tuple(name for token in named if (name := self._text_of(token).decode("utf-8", "replace")))

    def _text_of(self, token: int) -> bytes:
        return self._libs.llama.llama_vocab_get_text(self._vocab, token)

    def _get_attributes(self, token: int) -> int:
        return self._libs.llama.llama_vocab_get_attr(self._vocab, token)

    def piece(self, token: int) -> bytes:
        """The bytes of a token, or the name of a control token; b"" for a placeholder of media (a negative id)."""
        piece = self._pieces.get(token) if token >= 0 else b""
        if piece is None:
            piece = self._pieces[token] = vocabulary.token_to_piece(self._libs, self._vocab, token, True)
        return piece

    def is_control(self, token: int) -> bool:
        return bool(self._libs.llama.llama_vocab_is_control(self._vocab, token))

    @property
    def builtin_templates(self) -> tuple[str, ...]:
        """Names of libllama's built-in chat templates."""
        n = self._libs.llama.llama_chat_builtin_templates(None, 0)
        names = (ctypes.c_char_p * n)()
        self._libs.llama.llama_chat_builtin_templates(names, n)
        return tuple(name.decode() for name in names)

    def apply_template(self, template: str, messages: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
        """Render (role, content) messages. `template` is a built-in one's name, or a Jinja text that libllama
        recognizes; ApiError 400 otherwise."""
        chat = (llama_chat_message * len(messages))(
            *(llama_chat_message(role.encode(), content.encode()) for role, content in messages)
        )
        size = 256 + 2 * sum(len(role) + len(content.encode()) for role, content in messages)
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = self._libs.llama.llama_chat_apply_template(
                template.encode(), chat, len(messages), add_generation_prompt, buffer, size
            )
            if n < 0:
                raise ApiError(400, "llama.cpp has no built-in chat template for this model; leave out --no-jinja")
            if n <= size:
                return buffer.raw[:n].decode("utf-8", "replace")
            size = n
        raise ApiError(500, "llama.cpp's chat template is longer than llama.cpp said")

    def detokenize(self, tokens: Sequence[int], most: int | None = None) -> bytes:
        """The bytes of tokens, special ones included, placeholders of media left out. ApiError 400 for more than `most`
        bytes."""
        tokens = [token for token in tokens if token >= 0]
        try:
            return vocabulary.detokenize(self._libs, self._vocab, tokens, unparse_special=True, most=most)
        except LibsError as error:
            raise ApiError(400, str(error), reason="too_large") from None

    def close(self) -> None:
        self._model.close()


class NoVocab:
    """The vocabulary of a file without one (`tokenizer.ggml.model` is `none`). Conversions raise ApiError 501."""

    def __init__(self, vocab: NativeVocab) -> None:
        self._vocab = vocab

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vocab, name)

    def refuse(self, *_: object, **__: object) -> NoReturn:
        raise ApiError(501, "this model's file has no vocabulary: send lists of token ids instead of text")

    tokenize = detokenize = least_tokens = piece = is_control = refuse
