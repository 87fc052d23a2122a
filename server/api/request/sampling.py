"""Makes the engine's `SamplingParams` from a request's fields.

Connection thread. `schema` has the table of the fields and checks single numbers. This module reads the fields
that come in several forms or need the vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from server.api.request.constraints import FREE, Constraint
from server.api.request.prompt import check_token_id
from server.api.request.schema import SAMPLING_FIELDS, as_float, shorten
from server.engine.seam.task import SAMPLER_ALIASES, SAMPLER_NAMES, SamplingParams
from server.errors import ApiError
from server.models.model import Vocab

# How many strings a list may have. All requests wait while the engine processes a list: it searches each token of the
# vocabulary for each breaker, and applies each sampler to the whole vocabulary for each generated token.
MAX_STRINGS = {"dry_sequence_breakers": 100, "samplers": 100, "stop": 10_000}

# The time that llama.cpp's DRY sampler needs to search the vocabulary. It uses the first BREAKER_BYTES of a breaker.
# For each token it needs BREAKER_TOKEN_S seconds. For a token that ends with the breaker's first byte, it needs
# BREAKER_TAIL_S more, and BREAKER_BYTE_S per byte of the breaker. A sample of VOCAB_SAMPLE tokens shows how many such
# tokens there are. All breakers of a request together may need BREAKERS_S.
BREAKER_BYTES, BREAKER_TOKEN_S, BREAKER_TAIL_S, BREAKER_BYTE_S = 40, 50e-9, 15e-6, 0.3e-6
BREAKERS_S, VOCAB_SAMPLE = 0.3, 1024

# The letters of samplers in `--sampling-seq`, and in `samplers` if that is a string.
SAMPLER_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typical_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "i": "infill",
    "a": "adaptive_p",
    "f": "tfs_z",
}


def make_sampling_params(
    values: Mapping[str, Any],
    vocab: Vocab,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    constraint: Constraint = FREE,
) -> tuple[SamplingParams, ...]:
    """The `SamplingParams` of each answer to a prompt. They differ in their seeds. ApiError 400."""
    samplers = read_sampler_names(values["samplers"])
    if defaults.get("penalties_first") and "penalties" not in samplers:
        samplers = ("penalties", *samplers)
    breakers = read_strings("dry_sequence_breakers", values["dry_sequence_breakers"])
    if values["dry_multiplier"] and "dry" in samplers:
        breakers = cut_dry_breakers(breakers, vocab)
    fields = {field.name: values[field.name] for field in SAMPLING_FIELDS} | {
        "grammar": constraint.grammar,
        "grammar_lazy": constraint.is_lazy,
        "grammar_triggers": constraint.triggers,
        "samplers": samplers,
        "logit_bias": read_logit_bias(values["logit_bias"], vocab),
        "penalty_prompt": read_penalty_prompt(values["penalty_prompt"], vocab),
        "dry_sequence_breakers": breakers,
    }
    seed = random.getrandbits(32) if values["seed"] == -1 else values["seed"]
    return tuple(SamplingParams(**fields, seed=(seed + i) % 2**32) for i in range(values["n_cmpl"]))


def cut_dry_breakers(texts: Sequence[str], vocab: Vocab) -> tuple[str, ...]:
    """The breakers, cut as in llama.cpp, without duplicates. ApiError if searching for them in the vocabulary would
    take too long.
    """
    cut = tuple(dict.fromkeys(text.encode()[:BREAKER_BYTES].decode(errors="ignore") for text in texts))
    sample = [vocab.piece(token)[-1:] for token in range(0, vocab.n_tokens, vocab.n_tokens // VOCAB_SAMPLE + 1)]
    seconds = 0.0
    for text in map(str.encode, cut):
        part = sample.count(text[:1]) / len(sample) if len(text) > 1 else 0.0
        seconds += vocab.n_tokens * (BREAKER_TOKEN_S + part * (BREAKER_TAIL_S + BREAKER_BYTE_S * len(text)))
    if seconds > BREAKERS_S:
        raise ApiError(
            400,
            f"dry_sequence_breakers: searching {vocab.n_tokens} tokens for these {len(cut)} would take about "
            f"{seconds:.1f} s and delay other requests; give fewer or shorter ones",
        )
    return cut


def read_penalty_prompt(value: object, vocab: Vocab) -> tuple[int, ...] | None:
    """The tokens of `penalty_prompt` (a text or ids), which penalties count instead of the prompt; None without it."""
    if value is None:
        return None
    if isinstance(value, str):
        return tuple(vocab.tokenize(value, False, True))
    if not isinstance(value, list):
        raise ApiError(400, f"penalty_prompt: {shorten(value)} is neither a text nor a list of token ids")
    return tuple(check_token_id("penalty_prompt", token, vocab) for token in value)


def read_sampler_names(names: object) -> tuple[str, ...]:
    """The names in `samplers` (a list, a name, or a string of letters), with aliases resolved. ApiError 400."""
    if isinstance(names, str) and names not in SAMPLER_NAMES and names not in SAMPLER_ALIASES:
        names = [SAMPLER_LETTERS.get(letter, letter) for letter in names]
    known = []
    for name in read_strings("samplers", names):
        name = SAMPLER_ALIASES.get(name, name)
        if name not in SAMPLER_NAMES:
            raise ApiError(400, f"samplers: '{name[:40]}' is unknown; use one of {', '.join(SAMPLER_NAMES)}")
        known.append(name)
    return tuple(known)


def read_strings(name: str, value: object) -> tuple[str, ...]:
    """A list of strings; a single string becomes a list. ApiError 400 for other values and too many strings."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ApiError(400, f"{name}: {shorten(value)} is not a list of strings")
    if len(items) > MAX_STRINGS.get(name, len(items)):
        raise ApiError(400, f"{name}: {len(items)} are too many, at most {MAX_STRINGS[name]} are allowed")
    return tuple(items)


def read_logit_bias(value: object, vocab: Vocab) -> tuple[tuple[int, float], ...]:
    """`logit_bias` as (token, bias) pairs. In a list of pairs or an object, each token or text has a number, or false
    for a ban. ApiError 400."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, (list, tuple)):
        raise ApiError(400, f"logit_bias: {shorten(value)} is neither a list of pairs nor an object")
    bias: list[tuple[int, float]] = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ApiError(400, f"logit_bias: {shorten(pair)} is not a pair of a token and its bias")
        amount = _read_bias_amount(pair[1])
        bias += [(token, amount) for token in _read_bias_tokens(pair[0], vocab, isinstance(value, dict))]
        if len(bias) > vocab.n_tokens:
            raise ApiError(400, f"logit_bias: more entries than this vocabulary has tokens, {vocab.n_tokens}")
    return tuple(bias)


def _read_bias_amount(value: object) -> float:
    if value is False:
        return -math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ApiError(400, f"logit_bias: {shorten(value)} is neither a number nor false")
    return as_float("logit_bias", value)


def _read_bias_tokens(key: object, vocab: Vocab, is_object: bool) -> list[int]:
    """The tokens of a text, or the token of an id. In a JSON object, ids are strings."""
    if isinstance(key, str) and not (is_object and key.isascii() and key.isdecimal() and len(key) < 10):
        return vocab.tokenize(key, False, False)
    return [check_token_id("logit_bias", int(key) if isinstance(key, str) else key, vocab)]
