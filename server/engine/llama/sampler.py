"""Sampler chains over libllama: one `LlamaSampler` per running task. Engine thread only, but for `draw_ahead`.

`STAGES` turns the stages of `sampling` into C samplers; `CustomSamplers` makes those that libllama no longer has. A
draw is one C call (`llama_sampler_sample`). If a request wants probabilities, or the grammar refuses the token, the
logits are copied into a candidate array of our own, to which the chain is applied. The copy is a strided `memoryview`
copy; no Python code loops over the vocabulary.

The grammar (`grammar`) is asked after the draw, and only about the drawn token. If it refuses that token, a second draw
takes one of the tokens that it allows. The chain accepts only the final token.
"""

from __future__ import annotations

import ctypes
import math
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain as chained
from typing import Any

from ctypes_api.llama_types import (
    llama_logit_bias,
    llama_sampler,
    llama_sampler_apply_fn,
    llama_sampler_i,
    llama_sampler_name_fn,
    llama_token_data,
    llama_token_data_array,
)
from server.engine.llama.grammar import FILTER_TOKENS, MOST, Grammar, Grammars, get_column
from server.engine.seam.task import TokenProbs
from server.engine.slots.phases import Begin
from server.engine.slots.sampling import Stage
from server.errors import ApiError

GREEDY_STAGE = "greedy"
MIROSTAT_M = 100  # tokens that Mirostat estimates its curve from, as in llama.cpp
MIN_PROB = 1e-45  # the least float32 above 0, for a logarithm

LIKELIEST = 256
"""How many of the likeliest tokens are checked if the search finds too many and the chain considers only a few
(`count_considered`)."""

WITHOUT_COUNT = {"logit_bias", "penalties", "dry", "top_k", "top_p", "min_p", "temperature", "dist", "greedy"}
DRY_KEPT = 8  # DRY samplers kept for copying
TFS_ROWS = 4096  # candidates that tail-free sampling looks at
FLAT = 1e-6  # a sum of second differences below this means a flat curve


class Candidates:
    """A `llama_token_data_array` for all tokens or some, filled anew for each draw.

    A row has three columns of 4 bytes: id, logit, p. Samplers reorder and shorten the array, so a template restores the
    ids.
    """

    def __init__(self, n_vocab: int) -> None:
        self._rows = (llama_token_data * n_vocab)()
        self._template = (llama_token_data * n_vocab)()
        get_column(self._template, "i", 0)[:] = (
            memoryview((ctypes.c_int32 * n_vocab)(*range(n_vocab))).cast("B").cast("i")
        )
        self._logits = get_column(self._rows, "f", 1)
        self._refused: Any = None  # the template with all logits -inf, made at its first use
        self._few: Any = None  # rows for some tokens, made at their first use
        self._few_columns: Any = None
        self._n_vocab = n_vocab
        self.array = llama_token_data_array()
        self.parts = [self._make_part(start) for start in range(0, n_vocab, FILTER_TOKENS)]

    def fill(self, logits: Any) -> None:
        """Copy the logits of one batch row (`n_vocab` floats)."""
        ctypes.memmove(self._rows, self._template, ctypes.sizeof(self._rows))
        self._logits[:] = self._get_floats(logits)
        self._reset(self._rows, self._n_vocab)

    def fill_only(self, logits: Any, tokens: Sequence[int]) -> None:
        """Copy the logits of some tokens only, in the order of their ids.

        A single token gets a second row with -inf, so that this draw uses as many random numbers as a draw from all
        rows.
        """
        if self._few is None:
            self._few = (llama_token_data * (max(MOST, LIKELIEST) + 1))()
            self._few_columns = get_column(self._few, "i", 0), get_column(self._few, "f", 1)
        tokens, source = sorted(tokens), self._get_floats(logits)
        values = array("f", [source[token] for token in tokens])
        if len(tokens) == 1:
            tokens.append((tokens[0] + 1) % self._n_vocab)
            values.append(-math.inf)
        ids, floats = self._few_columns
        ids[: len(tokens)], floats[: len(tokens)] = memoryview(array("i", tokens)), memoryview(values)
        self._reset(self._few, len(tokens))

    def fill_few(self, logits: Any, tokens: Iterable[int]) -> None:
        """Copy the logits of some tokens; the other rows get -inf."""
        if self._refused is None:
            self._refused = (llama_token_data * self._n_vocab).from_buffer_copy(self._template)
            get_column(self._refused, "f", 1)[:] = memoryview(array("f", [-math.inf]) * self._n_vocab)
        ctypes.memmove(self._rows, self._refused, ctypes.sizeof(self._rows))
        source, target = self._get_floats(logits), self._logits
        for token in tokens:
            target[token] = source[token]
        self._reset(self._rows, self._n_vocab)

    def _get_floats(self, logits: Any) -> Any:
        source = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self._n_vocab)).contents
        return memoryview(source).cast("B").cast("f")

    def _reset(self, rows: Any, n: int) -> None:
        self.array.data = ctypes.cast(rows, ctypes.POINTER(llama_token_data))
        self.array.size = n
        self.array.selected = -1
        self.array.sorted = False

    def _make_part(self, start: int) -> llama_token_data_array:
        """The rows from `start` on, `FILTER_TOKENS` at most, as an array of their own."""
        row = ctypes.byref(self._rows, start * ctypes.sizeof(llama_token_data))
        n = min(FILTER_TOKENS, self._n_vocab - start)
        return llama_token_data_array(ctypes.cast(row, ctypes.POINTER(llama_token_data)), n, -1, False)

    def list_rows(self, n: int) -> list[tuple[int, float, float]]:
        """The first `n` rows as (id, logit, p)."""
        data = self.array.data
        return [(data[i].id, data[i].logit, data[i].p) for i in range(min(n, self.array.size))]

    @property
    def selected(self) -> int:
        """The token id that the last sampler of a chain picked."""
        return self.array.data[self.array.selected].id


class SamplerFactory:
    """Makes the samplers of one model, and owns what they share."""

    def __init__(self, llama: Any, vocab: Any, n_vocab: int) -> None:
        self.llama = llama
        self.vocab = vocab
        self.n_vocab = n_vocab
        self.newline = llama.llama_vocab_nl(vocab)
        self.grammars = Grammars(llama, vocab, n_vocab)
        self._candidates: Candidates | None = None
        self._dry: dict[tuple, int] = {}

    @property
    def candidates(self) -> Candidates:
        """The shared scratch array, made at its first use."""
        if self._candidates is None:
            self._candidates = Candidates(self.n_vocab)
        return self._candidates

    def make_chain(self, stages: Sequence[Stage]) -> tuple[int, CustomSamplers]:
        """A C sampler chain of `stages`, to be freed by the caller, and the object that must outlive it."""
        raw = self.llama.llama_sampler_chain_init(self.llama.llama_sampler_chain_default_params())
        custom = CustomSamplers(self.llama, self.newline)
        for stage in stages:
            for sampler in self._make_samplers(stage, custom):
                self.llama.llama_sampler_chain_add(raw, sampler)
        return raw, custom

    def without_accept(self, chain: int) -> tuple[int, object]:
        """A new chain that draws as `chain` does, without making `chain` accept the token; and the new chain's
        interface. The interface and `chain` must outlive the new chain."""
        original = llama_sampler.from_address(chain)
        interface = llama_sampler_i(name=original.iface.contents.name, apply=original.iface.contents.apply)
        raw = self.llama.llama_sampler_chain_init(self.llama.llama_sampler_chain_default_params())
        self.llama.llama_sampler_chain_add(raw, self.llama.llama_sampler_init(ctypes.byref(interface), original.ctx))
        return raw, interface

    def _make_samplers(self, stage: Stage, custom: CustomSamplers) -> list[int]:
        if stage.name == "tfs_z":
            return [custom.make_tail_free(*stage.args)]
        if stage.name == "penalties" and not stage.args[-1]:
            remember, restore = custom.keep_newline()
            return [remember, STAGES["penalties"](self, *stage.args), restore]
        return [STAGES[stage.name](self, *stage.args)]

    def make_dry(self, *args: Any) -> int:
        """A DRY sampler, copied from an equal one if possible: a new one searches all tokens for each breaker."""
        made = self._dry.pop(args, None)
        self._dry[args] = made = _make_dry(self, *args) if made is None else made
        if len(self._dry) > DRY_KEPT:
            self.llama.llama_sampler_free(self._dry.pop(next(iter(self._dry))))
        return self.llama.llama_sampler_clone(made)

    def close(self) -> None:
        """Free the kept DRY samplers, and end the thread that reads the vocabulary."""
        self.grammars.close()
        while self._dry:
            self.llama.llama_sampler_free(self._dry.popitem()[1])


class LlamaSampler:
    """The chain and the grammar, if any, of one task; see `TokenSampler`. With `waits` the grammar applies from
    `begin_grammar` on."""

    def __init__(
        self, factory: SamplerFactory, ctx: Any, stages: Sequence[Stage], grammar: str, waits: bool = False
    ) -> None:
        self._factory = factory
        self._llama = factory.llama
        self._ctx = ctx
        self._text = grammar
        self._grammar = factory.grammars.make(grammar) if grammar else None
        self._parsed: Grammar | None = None  # a grammar that waits
        if waits:
            self._grammar, self._parsed = None, self._grammar
        self._chain: int | None
        self._chain, self._custom = factory.make_chain(stages)
        self._draw_only: int | None = None  # `without_accept` of the chain
        if waits or grammar:
            self._draw_only, self._interface = factory.without_accept(self._chain)
        self._is_greedy = stages[-1].name == GREEDY_STAGE
        self._n_considered = count_considered(stages)
        self._takes_few = can_take_few(stages)
        self._ahead: int | None = None
        if self._draw_only is None:
            self.sample = self._sample_plain  # type: ignore[method-assign]

    @property
    def can_draw_ahead(self) -> bool:
        """False for chains with samplers in Python: they need the GIL."""
        return self._custom.is_empty

    def accept(self, tokens: Sequence[int]) -> None:
        """Make the chain, but not the grammar, accept these tokens."""
        accept, chain = self._llama.llama_sampler_accept, self._chain
        for token in tokens:
            accept(chain, token)

    def _sample_plain(self, row: int) -> int:
        token = self._ahead
        if token is None:
            return self._llama.llama_sampler_sample(self._chain, self._ctx, row)
        self._ahead = None
        return token

    def draw_ahead(self, row: int) -> None:
        """On any thread, without the GIL: make the draw with which the row's `sample` or `draw` begins."""
        self._ahead = self._llama.call_llama_sampler_sample(self._draw_only or self._chain, self._ctx, row)

    def sample(self, row: int) -> int:
        return self._accept(self.draw(row))

    def draw(self, row: int) -> int:
        if not self._draw_only:
            return self._draw(row).selected
        token, self._ahead = self._ahead, None
        if token is None:
            token = self._llama.llama_sampler_sample(self._draw_only, self._ctx, row)
        return token if self._grammar is None else self.fit(row, token)

    def commit(self, token: int) -> None:
        self._accept(token)

    def sample_probs(self, row: int, n_probs: int) -> TokenProbs:
        """Draw and accept a token; report the `n_probs` likeliest tokens before and after the sampler chain."""
        probs = self.draw_probs(row, n_probs)
        self._accept(probs.token)
        return probs

    def draw_probs(self, row: int, n_probs: int) -> TokenProbs:
        before, log_sum = self._compute_model_probs(row, n_probs)
        candidates = self._draw(row)
        token = candidates.selected
        logit = self._llama.llama_get_logits_ith(self._ctx, row)[token]
        logprobs = tuple((id_, max(logit - log_sum, -1e9)) for id_, logit, _ in before)
        if self._is_greedy:
            top = tuple((id_, p) for id_, _, p in before)
            prob = math.exp(logit - log_sum)
        else:
            prob = candidates.array.data[candidates.array.selected].p
            top = self._list_after_chain(candidates, n_probs, before)
        return TokenProbs(token, prob, max(logit - log_sum, -1e9), top, logprobs)

    def compute_row_probs(self, row: int, token: int, n_probs: int) -> TokenProbs:
        top, log_sum = self._compute_model_probs(row, n_probs)
        logprob = max(self._llama.llama_get_logits_ith(self._ctx, row)[token] - log_sum, -1e9)
        return TokenProbs(
            token, math.exp(logprob), logprob, (), tuple((id_, max(logit - log_sum, -1e9)) for id_, logit, _ in top)
        )

    def replay(self, row: int, token: int) -> None:
        """See `TokenSampler`. A greedy draw changes no random state, so it is skipped.

        ApiError if the grammar refuses the token: accepting it would end the process.
        """
        if not self._is_greedy:
            self._draw(row)
        if self._grammar is not None and not self._grammar.is_allowed(token):
            raise ApiError(
                500, "after a restart of the engine, the grammar refuses a token that the answer has already"
            )
        self._accept(token)

    def close(self) -> None:
        """Free the C samplers; may be called again."""
        for raw in (self._draw_only, self._chain):
            if raw:
                self._llama.llama_sampler_free(raw)
        for grammar in (self._grammar, self._parsed):
            if grammar:
                grammar.close()
        self._draw_only = self._chain = self._grammar = self._parsed = None

    # ---- a grammar that begins inside the text ------------------------------------------------------------------

    def begin_grammar(self, begin: Begin) -> None:
        """See `TokenSampler`. If a token has other text before the grammar's first character, the grammar is extended
        by that."""
        if begin.lead or begin.unless:
            name = "begin"
            while name in self._text:
                name += "n"
            rule = (
                f"{_format_literal(begin.unless)} .* | root" if begin.unless else f"{_format_literal(begin.lead)} root"
            )
            self._grammar = self._factory.grammars.make(f"{self._text}\n{name} ::= {rule}\n", name)
        else:
            self._grammar, self._parsed = self._parsed or self._factory.grammars.make(self._text), None
        for token in begin.tokens:
            if not self.is_allowed(token):
                self.end_grammar()
                raise ApiError(400, "grammar_triggers: the grammar doesn't allow the text that triggered it")
            self._grammar.accept(token)

    def end_grammar(self) -> None:
        if self._grammar is not None:
            self._grammar.close()
        self._grammar = None

    def fit(self, row: int, token: int) -> int:
        if self.is_allowed(token):
            return token
        self._draw_under_grammar(self._llama.llama_get_logits_ith(self._ctx, row))
        return self._factory.candidates.selected

    def foresee(self) -> list[int]:
        return [] if self._grammar is None else self._grammar.foresee()

    def _draw(self, row: int) -> Candidates:
        llama, candidates = self._llama, self._factory.candidates
        logits = llama.llama_get_logits_ith(self._ctx, row)
        candidates.fill(logits)
        llama.llama_sampler_apply(self._chain, candidates.array)
        if self._grammar is not None and not self.is_allowed(candidates.selected):
            self._draw_under_grammar(logits)
        return candidates

    def _draw_under_grammar(self, logits: Any) -> None:
        """Draw from the tokens that the grammar allows; the result is `selected` of the candidates."""
        candidates = self._fill_allowed(logits)
        self._llama.llama_sampler_apply(self._chain, candidates.array)
        if not self.is_allowed(candidates.selected):
            self._draw_end(logits)

    def _draw_end(self, logits: Any) -> None:
        """The grammar and biases leave no token: end the text if its end is the likeliest allowed token, else ApiError.
        Accepting a refused token would end the process."""
        llama, candidates = self._llama, self._fill_allowed(logits)
        best = STAGES["top_k"](self._factory, 1)
        llama.llama_sampler_apply(best, candidates.array)
        llama.llama_sampler_free(best)
        candidates.array.selected = 0
        token = candidates.selected
        if not (llama.llama_vocab_is_eog(self._factory.vocab, token) and self.is_allowed(token)):
            raise ApiError(400, "the grammar and logit_bias together leave no token to choose from")

    def _fill_allowed(self, logits: Any) -> Candidates:
        """Candidates with the logits of the tokens that the grammar allows. ApiError if that takes too long."""
        candidates, grammar = self._factory.candidates, self._grammar
        few = grammar.find_allowed()
        if few is None and self._n_considered:
            candidates.fill(logits)
            best = STAGES["top_k"](self._factory, LIKELIEST)
            self._llama.llama_sampler_apply(best, candidates.array)
            self._llama.llama_sampler_free(best)
            few = grammar.find_likeliest(candidates.array, self._n_considered)
        if few is None:
            candidates.fill(logits)
            grammar.filter(candidates.parts)
        elif self._takes_few:
            candidates.fill_only(logits, few)
        else:
            candidates.fill_few(logits, few)
        return candidates

    def is_allowed(self, token: int) -> bool:
        return self._grammar.is_allowed(token)

    def _accept(self, token: int) -> int:
        self._llama.llama_sampler_accept(self._chain, token)
        if self._grammar is not None:
            self._grammar.accept(token)
        return token

    def _compute_model_probs(self, row: int, n: int) -> tuple[list[tuple[int, float, float]], float]:
        """The model's `n` likeliest tokens before the chain as (id, logit, p), and the log of the softmax's sum."""
        llama, candidates = self._llama, self._factory.candidates
        candidates.fill(llama.llama_get_logits_ith(self._ctx, row))
        for stage in (Stage("dist", (0,)), Stage("top_k", (max(n, 1),))):
            raw = STAGES[stage.name](self._factory, *stage.args)
            llama.llama_sampler_apply(raw, candidates.array)
            llama.llama_sampler_free(raw)
        rows = candidates.list_rows(max(n, 1))
        return rows[:n], rows[0][1] - math.log(max(rows[0][2], MIN_PROB))

    def _list_after_chain(self, candidates: Candidates, n: int, before: list) -> tuple[tuple[int, float], ...]:
        """The chain's candidates, likeliest first, filled up to `n` with tokens that it ruled out (probability 0)."""
        raw = STAGES["top_k"](self._factory, n)
        self._llama.llama_sampler_apply(raw, candidates.array)
        self._llama.llama_sampler_free(raw)
        top = [(id_, p) for id_, _, p in candidates.list_rows(n)]
        kept = {id_ for id_, _ in top}
        top += [(id_, 0.0) for id_, _, _ in before if id_ not in kept]
        return tuple(top[:n])


def count_considered(stages: Sequence[Stage]) -> int:
    """How many of the likeliest tokens a chain considers by its first stage; 0 for all, or for more than a quarter of
    `LIKELIEST`."""
    first = stages[0]
    n = 1 if first.name == GREEDY_STAGE else first.args[0] if first.name == "top_k" else 0
    return n if n <= LIKELIEST // 4 else 0


def can_take_few(stages: Sequence[Stage]) -> bool:
    """Whether a chain draws the same from the allowed tokens alone. Some samplers also count refused tokens."""
    return all(
        stage.name in WITHOUT_COUNT and (stage.name != "temperature" or stage.args[1] == 0.0) for stage in stages
    )


def _format_literal(text: str) -> str:
    return '"' + "".join(f"\\U{ord(char):08X}" for char in text) + '"'


def _make_logit_bias(factory: SamplerFactory, bias: tuple[tuple[int, float], ...]) -> int:
    numbers = chained.from_iterable(bias)  # packed at once: a struct per token would be slow for a whole vocabulary
    rows = (llama_logit_bias * len(bias)).from_buffer_copy(struct.pack("if" * len(bias), *numbers))
    return factory.llama.llama_sampler_init_logit_bias(factory.n_vocab, len(bias), rows)


def _make_penalties(
    factory: SamplerFactory, last_n: int, repeat: float, frequency: float, presence: float, penalize_nl: bool
) -> int:
    return factory.llama.llama_sampler_init_penalties(factory.n_vocab, last_n, repeat, frequency, presence)


def _make_dry(
    factory: SamplerFactory, multiplier: float, base: float, allowed_length: int, last_n: int, breakers: tuple[str, ...]
) -> int:
    words = (ctypes.c_char_p * len(breakers))(*(word.encode() for word in breakers))
    return factory.llama.llama_sampler_init_dry(
        factory.vocab, multiplier, base, allowed_length, last_n, words, len(breakers)
    )


STAGES: dict[str, Callable[..., int]] = {
    "logit_bias": _make_logit_bias,
    "penalties": _make_penalties,
    "dry": SamplerFactory.make_dry,
    "greedy": lambda f: f.llama.llama_sampler_init_greedy(),
    "dist": lambda f, seed: f.llama.llama_sampler_init_dist(seed),
    "top_k": lambda f, k: f.llama.llama_sampler_init_top_k(k),
    "top_p": lambda f, p, keep: f.llama.llama_sampler_init_top_p(p, keep),
    "min_p": lambda f, p, keep: f.llama.llama_sampler_init_min_p(p, keep),
    "typical_p": lambda f, p, keep: f.llama.llama_sampler_init_typical(p, keep),
    "top_n_sigma": lambda f, n: f.llama.llama_sampler_init_top_n_sigma(n),
    "xtc": lambda f, p, t, keep, seed: f.llama.llama_sampler_init_xtc(p, t, keep, seed),
    "temperature": lambda f, t, delta, exponent: f.llama.llama_sampler_init_temp_ext(t, delta, exponent),
    "mirostat": lambda f, seed, tau, eta: f.llama.llama_sampler_init_mirostat(f.n_vocab, seed, tau, eta, MIROSTAT_M),
    "mirostat_v2": lambda f, seed, tau, eta: f.llama.llama_sampler_init_mirostat_v2(seed, tau, eta),
    "adaptive_p": lambda f, target, decay, seed: f.llama.llama_sampler_init_adaptive_p(target, decay, seed),
    "infill": lambda f: f.llama.llama_sampler_init_infill(f.vocab),
}


# ---- samplers that libllama no longer has ----------------------------------------------------------------------------


class CustomSamplers:
    """Makes the Python samplers of one chain, and keeps alive what C points at: it must outlive the chain.

    Each is a `llama_sampler_i` of Python functions. C calls them within a chain, on the engine's thread, with the GIL.
    """

    def __init__(self, llama: Any, newline: int) -> None:
        self._llama = llama
        self._newline = newline
        self._alive: list[object] = []

    @property
    def is_empty(self) -> bool:
        """Whether all samplers of the chain are C's."""
        return not self._alive

    def make_tail_free(self, z: float, min_keep: int) -> int:
        """Tail-free sampling (2020, trentbrick.github.io/Tail-Free-Sampling); see `compute_tail_free_length`."""

        def apply(candidates: llama_token_data_array) -> None:
            n_all = candidates.size
            if n_all <= 2:
                return
            self._sort(candidates, min(n_all, TFS_ROWS))
            n_kept = compute_tail_free_length(_compute_softmax(candidates), z, min_keep)
            candidates.size = n_all if n_kept is None else n_kept
            candidates.sorted = candidates.size <= TFS_ROWS

        return self.make(b"tfs_z", apply)

    def keep_newline(self) -> tuple[int, int]:
        """Two samplers to put around penalties: the second restores the newline's logit that the first has saved."""
        seen: list[float | None] = [None]

        def remember(candidates: llama_token_data_array) -> None:
            row = self._find_newline_row(candidates)
            seen[0] = None if row is None else candidates.data[row].logit

        def restore(candidates: llama_token_data_array) -> None:
            row = self._find_newline_row(candidates)
            if row is not None and seen[0] is not None:
                candidates.data[row].logit = seen[0]
                candidates.sorted = False

        return self.make(b"newline-remember", remember), self.make(b"newline-restore", restore)

    def _find_newline_row(self, candidates: llama_token_data_array) -> int | None:
        """The newline token's row: its id in an array that was not reordered, else found by a search."""
        newline = self._newline
        if newline < 0:
            return None
        if newline < candidates.size and candidates.data[newline].id == newline:
            return newline
        address = ctypes.addressof(candidates.data.contents)
        rows = (ctypes.c_int32 * (3 * candidates.size)).from_address(address)
        ids = memoryview(rows).cast("B").cast("i")[::3].tolist()
        return ids.index(newline) if newline in ids else None

    def _sort(self, candidates: llama_token_data_array, n: int) -> None:
        sampler = self._llama.llama_sampler_init_top_k(n)
        self._llama.llama_sampler_apply(sampler, candidates)
        self._llama.llama_sampler_free(sampler)

    def make(self, name: bytes, apply: Callable[[llama_token_data_array], None]) -> int:
        """A C sampler that calls `apply`; freed with its chain."""
        label = ctypes.create_string_buffer(name)
        interface = llama_sampler_i(
            name=llama_sampler_name_fn(lambda _: ctypes.addressof(label)),
            apply=llama_sampler_apply_fn(lambda _, array: apply(array.contents)),
        )
        self._alive += (interface, label)
        return self._llama.llama_sampler_init(ctypes.byref(interface), None)


def _compute_softmax(candidates: llama_token_data_array) -> list[float]:
    logits = [candidates.data[i].logit for i in range(candidates.size)]
    weights = [math.exp(logit - logits[0]) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def compute_tail_free_length(probs: list[float], z: float, min_keep: int) -> int | None:
    """How many of the sorted `probs` tail-free sampling keeps; None for all of them.

    The second differences of the curve, normalised to sum 1, are added up until they exceed `z`.
    """
    first = [a - b for a, b in zip(probs, probs[1:])]
    second = [abs(a - b) for a, b in zip(first, first[1:])]
    total = sum(second)
    running = 0.0
    for i, bend in enumerate(second):
        running += bend / total if total > FLAT else 1 / len(second)
        if running > z and i >= max(min_keep, 1):
            return i
    return None
