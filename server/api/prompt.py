"""The `prompt` of a request in all its forms, as token ids. Pure functions of the body and the vocabulary."""

from __future__ import annotations

from server.api.context import Vocab
from server.errors import ApiError


def prompt_tokens(prompt: object, vocab: Vocab) -> tuple[int, ...]:
    """A string, or a list of strings and token ids that make one sequence.

    BOS (and what else the model wants) is added where the first element is a string and the model's metadata asks for
    it. Special tokens written out in the text are recognised.
    """
    if isinstance(prompt, str):
        return tuple(vocab.tokenize(prompt, True, True))
    if not isinstance(prompt, list):
        raise ApiError(400, "prompt: give a string, or a list of strings and token ids")
    tokens: list[int] = []
    for i, part in enumerate(prompt):
        if isinstance(part, str):
            tokens += vocab.tokenize(part, i == 0, True)
        else:
            tokens.append(token_id("prompt", part, vocab))
    return tuple(tokens)


def token_id(name: str, value: object, vocab: Vocab) -> int:
    """`value` as a token id of this vocabulary, else ApiError 400 naming `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ApiError(400, f"{name}: {str(value)[:60]!r} is not a token id")
    if not 0 <= value < vocab.n_tokens:
        raise ApiError(400, f"{name}: there is no token {value}; this vocabulary has 0 to {vocab.n_tokens - 1}")
    return value
