"""The vocabulary with limits on text, so that no text can end the server. Runs on connection threads.

libllama's tokenizers take about 120 bytes of memory per byte of text. The patterns of some models recurse once per
character of a word (`std::regex`), so a long word can overflow an ordinary stack. So

- a text that must fit the context is refused if its bytes show that it can't,
- such a model's texts with long words are tokenized on a thread with a large stack,
- large texts are tokenized one at a time,
- the memory for tokenizing texts of over `LONG` characters is counted (`server.memory`).

Not taken: tokenizing parts cut at arbitrary places, which may change the tokens; a process for tokenizing, a third one
to start and watch.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

from server import memory
from server.errors import ApiError

T = TypeVar("T")
MAX_TEXT = 4 << 20  # bytes
LONG = 1000  # characters: the tokenizer's recursion over shorter words fits on any thread's stack
LARGE = 1 << 16  # bytes: longer texts are tokenized one at a time
N_AT_ONCE = 4  # the most texts with long words, but not large, that are tokenized at once
WORK_BYTES = 120  # bytes of libllama's memory per byte of text
TOKEN_BYTES = 40  # bytes of an int in a list
STACK_BYTES = 1 << 20  # stack sizes are multiples of it
STACK_PER_LETTER = 512  # bytes of stack per character of a word: one and a half times what GCC's `std::regex` takes
MAX_WORD = 400_000
"""Characters of the longest word, or run of white space, for tokenizers with patterns."""
WORD = re.compile(r"\S+|\s+")

_large = threading.Lock()
_deep = threading.BoundedSemaphore(N_AT_ONCE)
_starting = threading.Lock()  # guards the stack size of new threads, which is global


class BoundedVocab:
    """See `models.model.Vocab`. `n_ctx` is the context's size in tokens, `max_bytes` the limit of any text.

    `cuts_prompts`: the engine drops the middle of prompts that are too long.
    """

    def __init__(self, vocab: Any, n_ctx: int, max_bytes: int = MAX_TEXT, cuts_prompts: bool = False) -> None:
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._cuts_prompts = cuts_prompts
        self.max_bytes = max_bytes
        self.piece, self.is_control = vocab.piece, vocab.is_control  # called per token, so without `__getattr__`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vocab, name)

    def tokenize(
        self, text: str, add_special: bool, parse_special: bool, *, must_fit: bool = True, may_cut: bool = False
    ) -> list[int]:
        if len(text) <= LONG:
            return self._vocab.tokenize(text, add_special, parse_special)
        if may_cut and self._cuts_prompts:
            text, must_fit = without_middle(text, self.max_bytes), False
        n_bytes = self.measure(text)
        if must_fit and n_bytes > self._n_ctx:
            self._require_fit(n_bytes, self._vocab.least_tokens(text))
        is_large = n_bytes > LARGE
        n_work, n_stack = WORK_BYTES * n_bytes, 0
        if self._vocab.has_patterns and may_have_long_word(text):
            n_stack = STACK_PER_LETTER * min(len(text), MAX_WORD)
            n_work += STACK_PER_LETTER * measure_longest_word(text) if is_large else n_stack
        work = partial(self._vocab.tokenize, text, add_special, parse_special)
        gate = _large if is_large else _deep if n_stack else nullcontext()
        with gate, memory.keep_held(n_work):
            tokens = on_deep_stack(work, STACK_BYTES + n_stack) if n_stack else work()
        memory.hold(TOKEN_BYTES * len(tokens))
        if must_fit:
            self._require_fit(n_bytes, len(tokens))
        return tokens

    def detokenize(self, tokens: Sequence[int], most: int | None = None) -> bytes:
        return self._vocab.detokenize(tokens, most)

    def measure(self, text: str) -> int:
        n_bytes = len(text) if len(text) > self.max_bytes or text.isascii() else len(text.encode())
        if n_bytes > self.max_bytes:
            raise ApiError(
                400,
                f"a text of {n_bytes:,} bytes is too long: this server tokenizes at most {self.max_bytes:,} bytes "
                "(--max-text)",
                reason="too_large",
            )
        if len(text) > MAX_WORD and self._vocab.has_patterns and (n := measure_longest_word(text)) > MAX_WORD:
            raise ApiError(
                400,
                f"{n:,} characters without a break are too many for this model's tokenizer, which takes {MAX_WORD:,}: "
                "add white space",
                reason="too_large",
            )
        return n_bytes

    def _require_fit(self, n_bytes: int, n_tokens: int) -> None:
        if n_tokens > self._n_ctx:
            raise ApiError(
                400,
                f"a text of {n_bytes:,} bytes is too large to process: it has at least {n_tokens} tokens, which "
                f"exceeds the available context size of {self._n_ctx}; shorten it, or start the server with a larger "
                "--ctx-size",
                "exceed_context_size_error",
                n_prompt_tokens=n_tokens,
                n_ctx=self._n_ctx,
            )


def may_have_long_word(text: str) -> bool:
    """Whether a word or a run of white space may be longer than `LONG`. If the text is cut into blocks of half
    that length, such a one fills a block; that is found quickly."""
    n = LONG // 2
    blocks = (text[at : at + n] for at in range(0, len(text) - n + 1, n))
    return any(block.isspace() or len(block.split(None, 1)[0]) == n for block in blocks)


def measure_longest_word(text: str) -> int:
    """The number of characters of the longest word or run of white space."""
    return max(len(found[0]) for found in WORD.finditer(text))


def without_middle(text: str, n_bytes: int) -> str:
    """The first and the last `n_bytes` / 2 bytes of a text, without cut characters; the whole text if it has at most
    `n_bytes`."""
    data = text.encode()
    if len(data) <= n_bytes:
        return text
    return data[: n_bytes // 2].decode("utf-8", "ignore") + data[-(n_bytes // 2) :].decode("utf-8", "ignore")


def on_deep_stack(work: Callable[[], T], n_bytes: int) -> T:
    """Call `work` on a thread with a stack of at least `n_bytes`. ApiError 503 if no thread can be started."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            errors.append(error)

    with _starting:
        before = threading.stack_size(-(-n_bytes // STACK_BYTES) * STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="tokenizer", daemon=True)
            thread.start()
        except RuntimeError:
            raise ApiError(503, "the system can't start another thread; try again", reason="memory") from None
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]
