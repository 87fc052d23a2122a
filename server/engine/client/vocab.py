"""The model's vocabulary in the web process: text to tokens and back, on any thread.

A second, `vocab_only` load of the model file (20-50 MiB, a tenth of a second), opened after the engine has loaded the
file successfully. libllama's tokenizer is thread-safe, so handler threads use it directly and the engine is never
asked. Template and metadata strings are there too; sizes like n_embd are not, they come from the engine.

For each character that has no token, SPM's tokenizer copies all tokens so far: minutes for a megabyte of them. Nothing
can lie across the place before a character that no token has behind its first, so there, and only there, long texts are
cut.

Not taken: sending text to the engine. It would put tokenizing on the one thread that must not wait.
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
    LLAMA_TOKEN_ATTR_USER_DEFINED,
    LLAMA_VOCAB_TYPE_BPE,
    LLAMA_VOCAB_TYPE_NONE,
    LLAMA_VOCAB_TYPE_SPM,
    llama_chat_message,
)
from ctypes_api.objects import Model
from server.errors import ApiError

FIM_TOKENS = ("pre", "suf", "mid", "rep", "sep")
CUT_CHARACTERS = 1 << 14  # of a text for SPM that is cut where it can be
STRIPS = LLAMA_TOKEN_ATTR_LSTRIP | LLAMA_TOKEN_ATTR_RSTRIP
NAMED = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED
CHANGED_BY_NORMALISATION = "A  a\n\n b\ufb01\u2460\uff21e\u0301\u00e9"


def preload(folder: str) -> None:
    """Load the libraries beforehand. What goes wrong is left to `open_vocab`, which comes to it again."""
    with contextlib.suppress(LibsError, OSError):
        loader.load(Path(folder), with_backends=False)


def open_vocab(folder: str, model: str, offset: int = 0) -> NativeVocab | NoVocab:
    """The vocabulary of `model` (from `offset` on in that file) through the libraries in `folder`."""
    vocab = NativeVocab(loader.load(Path(folder), with_backends=False), model, offset)
    return NoVocab(vocab) if vocab.is_none else vocab


class NativeVocab:
    """See `api.model.Vocab`."""

    def __init__(self, libs: loader.Libs, path: str, offset: int = 0) -> None:
        self._libs = libs
        self._model = Model(libs, path, offset=offset, vocab_only=True)
        weakref.finalize(self, self._model.close).atexit = False  # once no thread can be at work in it
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
        """Token ids of `text`; with `add_special` BOS and EOS where the model wants them."""
        if len(text) > 2 * CUT_CHARACTERS and self._type == LLAMA_VOCAB_TYPE_SPM:
            return self._tokenize_cut(text, add_special, parse_special)
        return self._tokenize(text, add_special, parse_special)

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        return vocabulary.tokenize(self._libs, self._vocab, text.encode(), add_special, parse_special)

    def _tokenize_cut(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """The same tokens, one part of the text after the other. Where the model has texts begin with a space, the
        parts behind the first get one that isn't there."""
        parts = list(self._parts(text))
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

    def _parts(self, text: str) -> Iterator[str]:
        """None begins where a token can lie across, nor behind a token that is found by its name: there a text begins
        anew."""
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
        """A text has no fewer tokens than that; 0 if its bytes say nothing, because white space, accents or unknown
        words may vanish."""
        longest, lost = self._longest_piece
        data = text.encode() if longest else b""
        return -(-(len(data) - sum(map(data.count, lost))) // max(longest, 1))

    @cached_property
    def _longest_piece(self) -> tuple[int, bytes]:
        """The bytes of the longest token, and those bytes that have no token and vanish; 0 if nothing is certain."""
        tokens = self._tokenize(CHANGED_BY_NORMALISATION, False, False)
        is_kept = b"".join(map(self.piece, tokens)).endswith(CHANGED_BY_NORMALISATION.encode())
        if self._type not in (LLAMA_VOCAB_TYPE_SPM, LLAMA_VOCAB_TYPE_BPE) or not is_kept:
            return 0, b""
        if any(self._attributes(token) & STRIPS for token in range(self.n_tokens)):
            return 0, b""
        pieces = {vocabulary.token_to_piece(self._libs, self._vocab, token, True) for token in range(self.n_tokens)}
        return max(map(len, pieces)), bytes(byte for byte in range(256) if bytes((byte,)) not in pieces)

    @cached_property
    def _foreign(self) -> re.Pattern[str]:
        """Finds a character that no token has, but at its beginning."""
        texts = (self._text_of(token).decode("utf-8", "replace") for token in range(self.n_tokens))
        letters = {" ", "\u2581", "\0", *"".join(text[1:] for text in texts), *"".join(self._names)}
        return re.compile(f"[^{re.escape(''.join(letters))}]")

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Tokens that are looked for in texts before all else."""
        named = [token for token in range(self.n_tokens) if self._attributes(token) & NAMED]
        return tuple(name for token in named if (name := self._text_of(token).decode("utf-8", "replace")))

    def _text_of(self, token: int) -> bytes:
        """A token as the file has it: at least as long as its piece."""
        return self._libs.llama.llama_vocab_get_text(self._vocab, token)

    def _attributes(self, token: int) -> int:
        return self._libs.llama.llama_vocab_get_attr(self._vocab, token)

    def piece(self, token: int) -> bytes:
        """The bytes of a token, control tokens by their names; cached. Placeholders of media have none."""
        piece = self._pieces.get(token) if token >= 0 else b""
        if piece is None:
            piece = self._pieces[token] = vocabulary.token_to_piece(self._libs, self._vocab, token, True)
        return piece

    def is_control(self, token: int) -> bool:
        """Whether a token is a control token (BOS, end of turn, ...)."""
        return bool(self._libs.llama.llama_vocab_is_control(self._vocab, token))

    @property
    def builtin_templates(self) -> tuple[str, ...]:
        """Names of the chat templates that libllama knows by itself."""
        n = self._libs.llama.llama_chat_builtin_templates(None, 0)
        names = (ctypes.c_char_p * n)()
        self._libs.llama.llama_chat_builtin_templates(names, n)
        return tuple(name.decode() for name in names)

    def apply_template(self, template: str, messages: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
        """`llama_chat_apply_template`: `template` is a name of the list, or a Jinja text that it recognises."""
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
                raise ApiError(400, "llama.cpp has no built-in chat template that fits; leave out --no-jinja")
            if n <= size:
                return buffer.raw[:n].decode("utf-8", "replace")
            size = n
        raise ApiError(500, "llama.cpp's chat template did not fit its own measure")

    def detokenize(self, tokens: Sequence[int], most: int | None = None) -> bytes:
        """The bytes of a token list, special tokens included; placeholders of media have none. ApiError 400 if they are
        more than `most`."""
        tokens = [token for token in tokens if token >= 0]
        try:
            return vocabulary.detokenize(self._libs, self._vocab, tokens, unparse_special=True, most=most)
        except LibsError as error:
            raise ApiError(400, str(error), reason="too_large") from None

    def close(self) -> None:
        """Free the vocabulary."""
        self._model.close()


class NoVocab:
    """That of a file which holds none: `tokenizer.ggml.model` is none there. Its model computes on token ids that
    others have made; whatever needs text is refused with 501."""

    def __init__(self, vocab: NativeVocab) -> None:
        self._vocab = vocab

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vocab, name)

    def refuse(self, *_: object, **__: object) -> NoReturn:
        """ApiError, in the place of what needs tokens' texts."""
        raise ApiError(501, "this model's file has no vocabulary: it takes lists of token ids and no text")

    tokenize = detokenize = least_tokens = piece = is_control = refuse
