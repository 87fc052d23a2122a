"""The model's vocabulary in the web process: text to tokens and back, on any thread.

A second, `vocab_only` load of the model file (20-50 MiB, a tenth of a second), opened after the engine has loaded the
file successfully. libllama's tokenizer is thread-safe, so handler threads use it directly and the engine is never
asked. Template and metadata strings are there too; sizes like n_embd are not, they come from the engine.

Not taken: sending text to the engine. It would put tokenizing on the one thread that must not wait.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path

from ctypes_api import loader, vocabulary
from ctypes_api.errors import LibsError
from ctypes_api.llama_types import llama_chat_message
from ctypes_api.objects import Model
from server.errors import ApiError

FIM_TOKENS = ("pre", "suf", "mid", "rep", "sep")


def preload(folder: str) -> None:
    """Load the libraries beforehand. What goes wrong is left to `open_vocab`, which comes to it again."""
    with contextlib.suppress(LibsError, OSError):
        loader.load(Path(folder), with_backends=False)


def open_vocab(folder: str, model: str, offset: int = 0) -> NativeVocab:
    """The vocabulary of `model` (from `offset` on in that file) through the libraries in `folder`."""
    return NativeVocab(loader.load(Path(folder), with_backends=False), model, offset)


class NativeVocab:
    """See `api.context.Vocab`."""

    def __init__(self, libs: loader.Libs, path: str, offset: int = 0) -> None:
        self._libs = libs
        self._model = Model(libs, path, offset=offset, vocab_only=True)
        self._vocab = libs.llama.llama_model_get_vocab(self._model)
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
        return vocabulary.tokenize(self._libs, self._vocab, text.encode(), add_special, parse_special)

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

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of a token list, special tokens included; placeholders of media have none."""
        tokens = [token for token in tokens if token >= 0]
        return vocabulary.detokenize(self._libs, self._vocab, tokens, unparse_special=True)

    def close(self) -> None:
        """Free the vocabulary."""
        self._model.close()
