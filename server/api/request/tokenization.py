"""Prompts as token ids: texts, special tokens that users can't forge, and files in between. Connection thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from server.api.request.media import Files
from server.chat.segments import Segments
from server.engine.seam.task import Media
from server.models.model import Vocab
from server.records import record


@record(frozen=True)
class Prompt:
    """Token ids of one prompt, in which -1 stands for the first file of `media`, -2 for the second, and so on."""

    tokens: tuple[int, ...]
    media: tuple[Media, ...] = ()


def tokenize_all(vocab: Vocab, segments: Segments, bos_token: str, wants_bos: bool, files: Files) -> Prompt:
    """`tokenize_segments`, stretch by stretch where files are in between."""
    if not files.media:
        return Prompt(tuple(tokenize_segments(vocab, segments, bos_token, wants_bos)))
    add_special = wants_bos and not begins_with_bos(segments, bos_token)
    return join(
        files.split(segments),
        lambda stretch: tokenize_segments(vocab, stretch, bos_token, False),
        files.media,
        special_ends(vocab, add_special),
    )


def begins_with_bos(segments: Segments, bos_token: str) -> bool:
    """Whether the template itself has written the token that texts begin with."""
    return bool(bos_token and segments and not segments[0][1] and segments[0][0].startswith(bos_token))


def tokenize_segments(vocab: Vocab, segments: Segments, bos_token: str, wants_bos: bool = True) -> list[int]:
    """Token ids of a rendered prompt in which no user text has become a special token.

    Usually the whole text is tokenised at once, as the model has seen it in training. Only where that gives special
    tokens that the template itself didn't write, they are put in by hand between plain text. `wants_bos`: whether the
    model's BOS comes first where its metadata asks for it and the template (`bos_token`) hasn't written it.
    """
    text = "".join(part for part, _ in segments)
    add_special = wants_bos and not begins_with_bos(segments, bos_token)
    tokens = vocab.tokenize(text, add_special, True, may_cut=True)
    if not any(is_user for _, is_user in segments):
        return tokens
    own = [
        token
        for part, is_user in segments
        if not is_user
        for token in vocab.tokenize(part, False, True)
        if vocab.is_control(token)
    ]
    before, after = special_ends(vocab, add_special)
    if [token for token in tokens if vocab.is_control(token)] == [*before, *own, *after]:
        return tokens
    return [*before, *tokenize_between(vocab, segments, own), *after]


def tokenize_between(vocab: Vocab, segments: Segments, special: Sequence[int]) -> list[int]:
    """Tokens of the segments with those of `special` where the template has written their names, and nowhere else.

    What lies between two of them is tokenised as one piece, which is what the tokenizer does itself; so this is the
    same as tokenising the whole, but for names in users' text. (White space that some special tokens swallow stays.)
    """
    ids = {vocab.piece(token).decode("utf-8", "replace"): token for token in special}
    names = re.compile("|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True))) if ids else None
    tokens: list[int] = []
    plain = ""
    for part, is_user in segments:
        at = 0
        for found in names.finditer(part) if names and not is_user else ():
            plain += part[at : found.start()]
            tokens += vocab.tokenize(plain, False, False, may_cut=True) if plain else []
            tokens.append(ids[found.group()])
            plain, at = "", found.end()
        plain += part[at:]
    return tokens + (vocab.tokenize(plain, False, False, may_cut=True) if plain else [])


def special_ends(vocab: Vocab, add_special: bool) -> tuple[list[int], list[int]]:
    """The tokens that the model's metadata wants before and behind a text."""
    ends = vocab.tokenize("", add_special, True)
    n_before = 1 if ends[:1] == [vocab.bos] else 0
    return ends[:n_before], ends[n_before:]


def join(
    parts: Sequence[Segments | int],
    tokenize: Callable[[Segments], list[int]],
    media: Sequence[Media],
    ends: tuple[Sequence[int], Sequence[int]],
) -> Prompt:
    """The prompt of stretches and files between two ends; texts are tokenised one by one, as libmtmd does it."""
    tokens: list[int] = list(ends[0])
    files: dict[str, Media] = {}  # in order; one that stands in several places comes along once
    for part in parts:
        if isinstance(part, int):
            file = media[part]
            files.setdefault(file.hash, file)
            tokens.append(-1 - list(files).index(file.hash))
        elif part:
            tokens += tokenize(part)
    return Prompt((*tokens, *ends[1]), tuple(files.values()))
