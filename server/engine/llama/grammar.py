"""Grammars over libllama: which tokens may come next. Engine thread; the vocabulary is read by a thread of its own.

A grammar can be asked about any list of tokens. It is asked about the drawn token first, and only if it refuses that,
all that it allows have to be found. To ask about a whole vocabulary takes 3.5 ms for 50,000 tokens, and most often few
are allowed: a quote, digits, a key. So the vocabulary is kept as a tree of its tokens' bytes, and what begins with " t"
is only asked about if the token " t" itself is allowed. Where many are, the likeliest are enough for a chain that
looks at no others. What remains is to ask about all: in parts, for nothing can stop C in the middle of one.

llama.cpp takes any bytes for a letter, also those that are no UTF-8. Here such tokens are ruled out: in the text they
become another number of letters than the grammar has counted.

Not taken: finding the allowed tokens from the grammar's text. It would be a second implementation of what llama.cpp
does, and each difference would end the process, which throws when it is given a token that it refuses.
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
"""The processor's time for one filter of a grammar, for which all streams wait."""

FILTER_TOKENS = 8192
"""Tokens that are asked about with one call: nothing can stop it."""

SPLIT, DEEPEST = 128, 4
"""Tokens of one beginning that are told apart by their next byte, and by how many bytes."""

MOST, MOST_PROBES, MOST_SHARE = 4096, 1024, 0.75
"""Tokens that are asked about one by one, and the share of all whose beginning may be allowed. With more it is nearly
as quick to ask about all."""

LONGEST = 512  # bytes of a token that are read
KEPT_GRAMMARS, KEPT_TEXTS = 8, 1024  # of which it is known what is given
TEXTS_AND_CLASSES = re.compile(r'"(?:[^"\\]|\\.)*"|#[^\n]*|\[(?:[^\]\\]|\\.)*\]')
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]|\\[uU]|\\x[89a-fA-F]")


class Branch(NamedTuple):
    """`size` tokens that begin alike. `probe` is the one that is just this beginning, -1 if there is none; `tokens` are
    those that aren't told apart any further."""

    size: int
    probe: int
    tokens: Sequence[int]
    branches: Sequence[Branch]


def grow(pieces: Sequence[tuple[bytes, int]], depth: int = 0) -> Branch:
    """A tree of (bytes, token) pairs that agree in the first `depth` bytes."""
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
    """Those of a tree's tokens, and of those that are `always` asked about, that are allowed; `ask` gives the allowed
    ones of some. None where that takes too many questions."""
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
    """Whether a token can't be allowed unless its beginning is. That isn't so for tokens that are named by themselves
    (`<think>`), and llama.cpp refuses half a letter where any letter but some beyond ASCII is allowed."""
    negated = [found for found in TEXTS_AND_CLASSES.findall(grammar) if found.startswith("[^")]
    return "<" not in TEXTS_AND_CLASSES.sub("", grammar) and not any(map(BEYOND_ASCII.search, negated))


def half_letter(text: bytes) -> bytes | None:
    """The bytes of a letter that isn't complete at the end of this UTF-8, None if it is none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(text)
    except UnicodeDecodeError:
        return None
    return decoder.getstate()[0]


class Grammars:
    """What the grammars of one model share. `clock` is the processor's time of this thread, in seconds."""

    def __init__(self, llama: Any, vocab: Any, n_vocab: int) -> None:
        self.llama = llama
        self.vocab = vocab
        self.clock: Callable[[], float] = time.thread_time
        self.ends: Sequence[int] = ()  # the tokens that end a text
        self.tree: Branch | None = None  # once it is read
        self.loose: Sequence[int] = ()  # the tokens that are no UTF-8 by themselves; once the tree is read
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(LONGEST)
        self._n_vocab = n_vocab
        self._rows = (llama_token_data * MOST)()
        self._ids, self._logits = column(self._rows, "i", 0), column(self._rows, "f", 1)
        self._ones = memoryview(array("f", [1.0]) * MOST)
        self._array = llama_token_data_array(ctypes.cast(self._rows, ctypes.POINTER(llama_token_data)), 0, -1, False)
        self._row = self._rows[0]
        self._places: dict[tuple[str, str], Places | None] = {}
        self._spelled: dict[str, list[int]] = {}
        self._reader: threading.Thread | None = None
        self._is_closing = False

    def make(self, text: str, root: str = "root") -> Grammar:
        """ApiError 400 for a grammar that llama.cpp can't parse."""
        raw = self.llama.llama_sampler_init_grammar(self.vocab, text.encode(), root.encode())
        if not raw:
            raise ApiError(400, "Failed to parse grammar")
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="vocabulary", daemon=True)
            self._reader.start()
        return Grammar(self, raw, text, root)

    def ask(self, raw: int, tokens: Sequence[int]) -> list[int]:
        """Which of these tokens, at most `MOST`, a grammar allows."""
        n = len(tokens)
        self._ids[:n] = memoryview(array("i", tokens))
        self._logits[:n] = self._ones[:n]
        self._array.size, self._array.selected, self._array.sorted = n, -1, False
        self.llama.llama_sampler_apply(raw, self._array)
        return [token for token, logit in zip(tokens, self._logits[:n].tolist()) if logit != -math.inf]

    def ask_one(self, raw: int, token: int) -> bool:
        """Whether a grammar allows this token."""
        row, array = self._row, self._array
        row.id, row.logit = token, 1.0
        array.size, array.selected, array.sorted = 1, -1, False
        self.llama.llama_sampler_apply(raw, array)
        return row.logit != -math.inf

    def given(self, text: str, root: str) -> GivenText | None:
        """Follows a text through this grammar; None if the grammar is too long for that."""
        from server.grammar.gbnf import GrammarError
        from server.grammar.given import MOST_BYTES, GivenText, Places  # not at start, for few requests need it

        key = text, root
        places = self._places.pop(key, None)
        if places is None and len(text) <= MOST_BYTES:
            try:
                places = Places(text, root)
            except GrammarError:
                places = None
        self._places[key] = places
        if len(self._places) > KEPT_GRAMMARS:
            del self._places[next(iter(self._places))]
        return None if places is None else GivenText(places)

    def spell(self, text: str) -> list[int]:
        """The tokens in which the tokenizer writes a text that stands behind others; [] if that can't be found out."""
        found = self._spelled.get(text)
        if found is None:
            if len(self._spelled) == KEPT_TEXTS:
                self._spelled.clear()
            found = self._spelled[text] = self._tokenize(text)
        return found

    def _tokenize(self, text: str) -> list[int]:
        """Behind a line's end, because some tokenizers put a blank before a text."""
        data = b"\n" + text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 8))()
        n = self.llama.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), False, False)
        behind = next((i for i in range(n) if self.piece(tokens[i]) == b"\n"), n)
        return tokens[behind + 1 : n]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none of one that is too long."""
        found = self._pieces.get(token)
        if found is None:
            n = self.llama.llama_token_to_piece(self.vocab, token, self._buffer, LONGEST, 0, True)
            found = self._pieces[token] = self._buffer.raw[: max(n, 0)]
        return found

    def wait(self) -> None:
        """Until the vocabulary is read."""
        if self._reader is not None:
            self._reader.join()

    def close(self) -> None:
        """Let go of the vocabulary."""
        self._is_closing = True
        self.wait()

    def _read(self) -> None:
        """Thread `vocabulary`: 50 ms for 50,000 tokens, most of them with the interpreter's lock."""
        to_piece, is_end = self.llama.llama_token_to_piece, self.llama.llama_vocab_is_eog
        buffer = ctypes.create_string_buffer(LONGEST)
        pieces, ends, loose = [], [], []
        for token in range(self._n_vocab):
            n = to_piece(self.vocab, token, buffer, LONGEST, 0, True)
            if is_end(self.vocab, token):
                ends.append(token)
            elif n < 0:
                ends.append(token)  # too long to be told apart: asked about, too
            elif n and buffer.raw[0]:
                pieces.append((buffer.raw[: min(n, DEEPEST + 1)], token))
            if n > 0 and not (text := buffer.raw[:n]).isascii() and half_letter(text) is None:
                loose.append(token)
            if self._is_closing:
                return
        self.ends, self.loose = ends, loose
        self.tree = grow(pieces)


class Grammar:
    """A grammar in use for one task. Only tokens that it has allowed may be accepted: C++ throws at others."""

    def __init__(self, shared: Grammars, raw: int, text: str, root: str) -> None:
        self._shared = shared
        self._llama = shared.llama
        self._raw = raw
        self._text, self._root = text, root
        self._is_searchable = is_searchable(text)
        self._half = b""  # a letter of which not all bytes have come
        self._given: GivenText | None = None
        self._unread: list[bytes] | None = []  # what `_given` has to be told; None if there will be none

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        return self._is_text(token) and self._shared.ask_one(self._raw, token)

    def accept(self, token: int) -> None:
        """It is the next one."""
        piece = self._shared.piece(token)
        if self._half or not piece.isascii():
            self._half = half_letter(self._half + piece) or b""
        if self._unread is not None:
            self._unread.append(piece)
        self._llama.llama_sampler_accept(self._raw, token)

    def foresee(self) -> list[int]:
        """The tokens that come next if the text goes on in the only way that there is, [] where there are more."""
        unread = self._unread
        if unread is None:
            return []
        if self._given is None:
            self._given = self._shared.given(self._text, self._root)
            if self._given is None:
                self._unread = None
                return []
        for piece in unread:
            self._given.feed(piece)
        unread.clear()
        text = self._given.ahead()
        return self._shared.spell(text) if text else []

    def find_allowed(self) -> list[int] | None:
        """The tokens that may come next if they are few and quickly found, else None."""
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
        """The tokens of these rows that may come next, None if they are fewer than `n`."""
        likeliest = [rows.data[i].id for i in range(rows.size)]
        allowed = self._shared.ask(self._raw, [token for token in likeliest if self._is_text(token)])
        return allowed if len(allowed) >= n else None

    def filter(self, parts: Sequence[llama_token_data_array]) -> None:
        """Rule out the tokens of these arrays that may not come next. ApiError if that takes too long."""
        ends = self._shared.clock() + FILTER_S
        for part in parts:
            self._llama.call_llama_sampler_apply(self._raw, part)
            self._require_time(ends)
        self._shared.wait()
        for token in self._shared.loose:
            part = parts[token // FILTER_TOKENS]
            part.data[token % FILTER_TOKENS].logit = -math.inf

    def close(self) -> None:
        """Free it."""
        self._llama.llama_sampler_free(self._raw)

    def _is_text(self, token: int) -> bool:
        """Whether this token and what came before it are UTF-8."""
        piece = self._shared.piece(token)
        return (not self._half and piece.isascii()) or half_letter(self._half + piece) is not None

    def _require_time(self, ends: float) -> None:
        if self._shared.clock() > ends:
            raise ApiError(
                400,
                f"the grammar took more than {FILTER_S:g} s to choose from the tokens that may come "
                "next, and others wait for it: it has too many ways to go on from here",
            )


def column(rows: ctypes.Array, format: Literal["i", "f"], place: int) -> Any:
    """The ids (0) or logits (1) of an array of `llama_token_data`."""
    return memoryview(rows).cast("B").cast(format)[place::3]
