"""Grammars over libllama: which tokens are allowed next. Engine thread; the thread `vocabulary` reads the vocabulary.

llama.cpp's grammar sampler checks any list of tokens. The drawn token is checked first. If the grammar refuses it, the
allowed tokens are searched for. Checking the whole vocabulary takes milliseconds, and most often few tokens are
allowed: a quote, digits, a key. So the vocabulary is kept as a tree of its tokens' bytes, and tokens that begin with
`Th` are checked only if the token `Th` is allowed. If many tokens are allowed, but the sampler chain considers only the
likeliest, only these are checked. Otherwise all tokens are checked, in parts, because a C call can't be interrupted.

llama.cpp counts a token with invalid UTF-8 as one character, which it may not be in the answer's text. So tokens that
make the text invalid UTF-8 are refused here.

Not taken: computing the allowed tokens from the grammar's text. Any difference from llama.cpp's rules would end the
process, because its sampler throws a C++ exception when it has to accept a token that it refuses.
"""

from __future__ import annotations

import codecs
import ctypes
import math
import re
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ctypes_api.llama_types import llama_token_data, llama_token_data_array
from server.errors import ApiError

if TYPE_CHECKING:
    from server.grammar.given import GivenText, Places

FILTER_S = 0.8
"""The most CPU seconds for one search of allowed tokens: all streams wait for it."""

FILTER_TOKENS = 8192
"""Tokens checked by one C call, which can't be interrupted."""

SPLIT, DEEPEST = 128, 4
"""A branch of the tree splits by the next byte if it has more than `SPLIT` tokens, down to `DEEPEST` bytes."""

MOST, MOST_PROBES, MOST_SHARE = 4096, 1024, 0.75
"""Limits of a search in the tree: tokens to check, branches to probe at a depth, share of the vocabulary. Beyond them a
check of all tokens is as fast."""

LONGEST = 512  # bytes: longer tokens are not read
KEPT_GRAMMARS, KEPT_TEXTS = 8, 1024  # entries of the caches of `Grammars.make_given` and `Grammars.spell`
TEXTS_AND_CLASSES = re.compile(r'"(?:[^"\\]|\\.)*"|#[^\n]*|\[(?:[^\]\\]|\\.)*\]')
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]|\\[uU]|\\x[89a-fA-F]")


class Branch(NamedTuple):
    """`size` tokens with a common prefix. `probe` is the token that equals the prefix (-1: none); `tokens` are checked
    one by one, the others are in `branches`."""

    size: int
    probe: int
    tokens: Sequence[int]
    branches: Sequence[Branch]


def grow(pieces: Sequence[tuple[bytes, int]], depth: int = 0) -> Branch:
    """A tree of (bytes, token) pairs whose first `depth` bytes are equal."""
    probe = next((token for piece, token in pieces if len(piece) == depth), -1)
    if depth == DEEPEST or depth and len(pieces) <= SPLIT:
        return Branch(len(pieces), probe, [token for _, token in pieces], ())
    groups: dict[int, list[tuple[bytes, int]]] = {}
    for pair in pieces:
        if len(pair[0]) > depth:
            groups.setdefault(pair[0][depth], []).append(pair)
    return Branch(
        len(pieces),
        probe,
        [token for piece, token in pieces if len(piece) == depth],
        [grow(group, depth + 1) for group in groups.values()],
    )


def find(tree: Branch, always: Sequence[int], ask: Callable[[Sequence[int]], list[int]]) -> list[int] | None:
    """The allowed tokens among those of the tree and `always`; None if the search exceeds its limits (`MOST`, ...).

    `ask` returns the allowed tokens of a list.
    """
    tokens, level = [*always, *tree.tokens], tree.branches
    while level:
        probes = [branch.probe for branch in level if branch.probe >= 0]
        if len(probes) > MOST_PROBES:
            return None
        allowed = set(ask(probes))
        level = [branch for branch in level if branch.probe < 0 or branch.probe in allowed]
        tokens += [token for branch in level for token in branch.tokens]
        if len(tokens) > MOST or sum(branch.size for branch in level) > MOST_SHARE * tree.size:
            return None
        level = [below for branch in level for below in branch.branches]
    return ask(tokens)


def is_searchable(grammar: str) -> bool:
    """Whether all prefixes of an allowed token are allowed, as the search requires. They may not be if the grammar
    names tokens (`<think>`), or has negated sets with characters beyond ASCII: there, llama.cpp refuses the first bytes
    of a character."""
    negated = [found for found in TEXTS_AND_CLASSES.findall(grammar) if found.startswith("[^")]
    return "<" not in TEXTS_AND_CLASSES.sub("", grammar) and not any(map(BEYOND_ASCII.search, negated))


def find_half_letter(text: bytes) -> bytes | None:
    """The bytes of an incomplete character at the end of this text (b"" if there is none); None if the text isn't
    UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(text)
    except UnicodeDecodeError:
        return None
    return decoder.getstate()[0]


class Grammars:
    """What the grammars of one model share. `clock` returns the calling thread's CPU time in seconds."""

    def __init__(self, llama: Any, vocab: Any, n_vocab: int) -> None:
        self.llama = llama
        self.vocab = vocab
        self.clock: Callable[[], float] = time.thread_time
        self.ends: Sequence[int] = ()  # tokens that end a text, or are too long for the tree; read with the tree
        self.tree: Branch | None = None  # None until the vocabulary is read
        self.loose: Sequence[int] = ()  # tokens that can't begin UTF-8 text; read with the tree
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(LONGEST)
        self._n_vocab = n_vocab
        self._rows = (llama_token_data * MOST)()
        self._ids, self._logits = get_column(self._rows, "i", 0), get_column(self._rows, "f", 1)
        self._ones = memoryview(array("f", [1.0]) * MOST)
        self._array = llama_token_data_array(ctypes.cast(self._rows, ctypes.POINTER(llama_token_data)), 0, -1, False)
        self._row = self._rows[0]
        self._places: dict[tuple[str, str], Places | None] = {}
        self._spelled: dict[str, list[int]] = {}
        self._reader: threading.Thread | None = None
        self._is_closing = False

    def make(self, text: str, root: str = "root") -> Grammar:
        """Parse a grammar. ApiError 400 if llama.cpp can't."""
        raw = self.llama.llama_sampler_init_grammar(self.vocab, text.encode(), root.encode())
        if not raw:
            raise ApiError(400, "Failed to parse grammar")
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="vocabulary", daemon=True)
            self._reader.start()
        return Grammar(self, raw, text, root)

    def ask(self, raw: int, tokens: Sequence[int]) -> list[int]:
        """The tokens of this list that a grammar allows. The list has at most `MOST` tokens."""
        n = len(tokens)
        self._ids[:n] = memoryview(array("i", tokens))
        self._logits[:n] = self._ones[:n]
        self._array.size, self._array.selected, self._array.sorted = n, -1, False
        self.llama.llama_sampler_apply(raw, self._array)
        return [token for token, logit in zip(tokens, self._logits[:n].tolist()) if logit != -math.inf]

    def ask_one(self, raw: int, token: int) -> bool:
        row, array = self._row, self._array
        row.id, row.logit = token, 1.0
        array.size, array.selected, array.sorted = 1, -1, False
        self.llama.llama_sampler_apply(raw, array)
        return row.logit != -math.inf

    def make_given(self, text: str, root: str) -> GivenText | None:
        """A `GivenText` of this grammar, for one task; None if the grammar is too long or can't be read here."""
        from server.grammar.gbnf import GrammarError
        from server.grammar.given import MOST_BYTES, GivenText, Places  # seldom needed

        if len(text) > MOST_BYTES:
            return None
        key = text, root
        if key in self._places:
            places = self._places.pop(key)
        else:
            try:
                places = Places(text, root)
            except GrammarError:
                places = None
        self._places[key] = places
        if len(self._places) > KEPT_GRAMMARS:
            del self._places[next(iter(self._places))]
        return None if places is None else GivenText(places)

    def spell(self, text: str) -> list[int]:
        """`tokenize`, with the latest texts cached."""
        found = self._spelled.get(text)
        if found is None:
            if len(self._spelled) == KEPT_TEXTS:
                self._spelled.clear()
            found = self._spelled[text] = self.tokenize(text)
        return found

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text that follows other text; [] if a newline before it isn't a token of its own.

        The text is read behind a newline, because some tokenizers add a space at the start of a text.
        """
        data = b"\n" + text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 8))()
        n = self.llama.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), False, False)
        behind = next((i for i in range(n) if self.piece(tokens[i]) == b"\n"), n)
        return tokens[behind + 1 : n]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; b"" if it is too long."""
        found = self._pieces.get(token)
        if found is None:
            n = self.llama.llama_token_to_piece(self.vocab, token, self._buffer, LONGEST, 0, True)
            found = self._pieces[token] = self._buffer.raw[: max(n, 0)]
        return found

    def wait(self) -> None:
        """Wait until the vocabulary is read."""
        if self._reader is not None:
            self._reader.join()

    def close(self) -> None:
        """End the thread that reads the vocabulary."""
        self._is_closing = True
        self.wait()

    def _read(self) -> None:
        """On the thread `vocabulary`: read the texts of all tokens and grow the tree."""
        to_piece, is_end = self.llama.llama_token_to_piece, self.llama.llama_vocab_is_eog
        buffer = ctypes.create_string_buffer(LONGEST)
        pieces, ends, loose = [], [], []
        for token in range(self._n_vocab):
            n = to_piece(self.vocab, token, buffer, LONGEST, 0, True)
            if is_end(self.vocab, token):
                ends.append(token)
            elif n < 0:
                ends.append(token)  # longer than the buffer: always checked
            elif n and buffer.raw[0]:
                pieces.append((buffer.raw[: min(n, DEEPEST + 1)], token))
            if n > 0 and not (text := buffer.raw[:n]).isascii() and find_half_letter(text) is None:
                loose.append(token)
            if self._is_closing:
                return
        self.ends, self.loose = ends, loose
        self.tree = grow(pieces)


class Grammar:
    """A grammar of one task. `accept` must get allowed tokens only."""

    def __init__(self, shared: Grammars, raw: int, text: str, root: str) -> None:
        self._shared = shared
        self._llama = shared.llama
        self._raw = raw
        self._text, self._root = text, root
        self._is_searchable = is_searchable(text)
        self._half = b""  # the first bytes of a character whose other bytes are still to come
        self._given: GivenText | None = None
        # The accepted bytes that `_given` hasn't read; None if `_given` can't be made.
        self._unread: list[bytes] | None = []

    def is_allowed(self, token: int) -> bool:
        return self._is_text(token) and self._shared.ask_one(self._raw, token)

    def accept(self, token: int) -> None:
        """Go on to the state after this token."""
        piece = self._shared.piece(token)
        if self._half or not piece.isascii():
            self._half = find_half_letter(self._half + piece) or b""
        if self._unread is not None:
            self._unread.append(piece)
        self._llama.llama_sampler_accept(self._raw, token)

    def foresee(self) -> list[int]:
        """The tokens of the text that must come next; [] if there is a choice or no `GivenText` for this grammar."""
        unread = self._unread
        if unread is None:
            return []
        if self._given is None:
            self._given = self._shared.make_given(self._text, self._root)
            if self._given is None:
                self._unread = None
                return []
        for piece in unread:
            self._given.feed(piece)
        unread.clear()
        text = self._given.find_ahead()
        return self._shared.spell(text) if text else []

    def find_allowed(self) -> list[int] | None:
        """The allowed tokens if a search finds some, but few; else None."""
        shared = self._shared
        if self._half:
            shared.wait()
            return shared.ask(self._raw, [token for token in shared.loose if self._is_text(token)][:MOST]) or None
        if shared.tree is None or not self._is_searchable:
            return None
        ends = shared.clock() + FILTER_S

        def ask(tokens: Sequence[int]) -> list[int]:
            allowed = shared.ask(self._raw, tokens)
            self._require_time(ends)
            return allowed

        found = find(shared.tree, shared.ends, ask)
        return [token for token in found or () if self._is_text(token)] or None

    def find_likeliest(self, rows: llama_token_data_array, n: int) -> list[int] | None:
        """The allowed tokens of these rows; None if they are fewer than `n`."""
        likeliest = [rows.data[i].id for i in range(rows.size)]
        allowed = self._shared.ask(self._raw, [token for token in likeliest if self._is_text(token)])
        return allowed if len(allowed) >= n else None

    def filter(self, parts: Sequence[llama_token_data_array]) -> None:
        """Set the logits of refused tokens in these arrays to -inf. ApiError if that takes more than `FILTER_S`."""
        ends = self._shared.clock() + FILTER_S
        for part in parts:
            self._llama.call_llama_sampler_apply(self._raw, part)
            self._require_time(ends)
        self._shared.wait()
        for token in self._shared.loose:
            part = parts[token // FILTER_TOKENS]
            part.data[token % FILTER_TOKENS].logit = -math.inf

    def close(self) -> None:
        self._llama.llama_sampler_free(self._raw)

    def _is_text(self, token: int) -> bool:
        """Whether the text with this token is UTF-8; its last character may be incomplete."""
        piece = self._shared.piece(token)
        return (not self._half and piece.isascii()) or find_half_letter(self._half + piece) is not None

    def _require_time(self, ends: float) -> None:
        if self._shared.clock() > ends:
            raise ApiError(
                400,
                f"the grammar is too ambiguous here: it took more than {FILTER_S:g} s to find the tokens that may come "
                "next, and other requests wait meanwhile",
            )


def get_column(rows: ctypes.Array, format: Literal["i", "f"], place: int) -> Any:
    """The ids ("i", 0) or logits ("f", 1) of an array of `llama_token_data`, as a memoryview."""
    return memoryview(rows).cast("B").cast(format)[place::3]
