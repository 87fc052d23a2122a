"""Models that write a given text: a cue at the end of the prompt selects the text, whatever the prompt contains.

For tests of what follows from a model's text (tool calls, reasoning), with real decoding and sampling and with tokens
that end anywhere. The cue is a token, and each next token depends only on the last one (`tiny_models.follow`), so each
part of a text is a token of its own, and no part occurs twice. `with_cue` makes a template write the cue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from tests.gguf_writer import GgufFile
from tests.tiny_models import CHATML, bpe_vocabulary, byte_symbols, follow

PIECE = 3  # characters, or more where so few have been used up
END = "<|im_end|>"


def with_cue(template: str) -> str:
    """The template, and behind its generation prompt the cue: `cue` of the request's `chat_template_kwargs`, else the
    number of messages."""
    number = "(cue if cue is defined else messages | length)"
    return template + "{% if add_generation_prompt %}{{ '<|cue_' ~ " + number + " ~ '|>' }}{% endif %}"


def recite_answers(
    path: Path,
    answers: Mapping[int, str],
    *,
    template: str = CHATML,
    control: Sequence[str] = (),
    n_ctx_train: int = 8192,
) -> Path:
    """Write a model that says `answers[n]` after the cue `<|cue_n|>`, and then ends.

    Texts in `control` are special tokens, also within answers, where each may occur once.
    """
    gguf = GgufFile("llama", "reciter")
    cues = {n: f"<|cue_{n}|>" for n in answers}
    symbols = byte_symbols()
    used: set[str] = set()
    chains = []
    for n, answer in answers.items():
        pieces = list(cut(answer, control, used))
        chains.append([cues[n], *(piece if piece in control else symbolic(piece, symbols) for piece in pieces), END])
    said = [token for chain in chains for token in chain[1:-1] if token not in control]
    vocabulary = bpe_vocabulary(gguf, (), False, control=[*cues.values(), *control], unread=said)
    gguf.string("tokenizer.chat_template", with_cue(template))
    places = {text: token for token, text in enumerate(vocabulary.tokens)}
    follower = {places[text]: places[then] for chain in chains for text, then in pairwise(chain)}
    return follow(gguf, path, [follower.get(token, places[END]) for token in range(len(places))], n_ctx_train)


def cut(answer: str, control: Sequence[str], used: set[str]) -> Iterator[str]:
    """The answer in pieces; adds them to those in use. Raises ValueError where a piece would occur twice."""
    stretches = re.split(f"({'|'.join(map(re.escape, control))})", answer) if control else [answer]
    for stretch in filter(None, stretches):
        if stretch not in control:
            yield from unused_pieces(stretch, used)
        elif stretch in used:
            raise ValueError(f"{stretch} occurs twice")
        else:
            used.add(stretch)
            yield stretch


def unused_pieces(text: str, used: set[str]) -> list[str]:
    """Cut from the left, each piece as short as can be; where the rest has been used up, the piece before it grows."""
    sizes: list[int] = []
    start = 0
    while start < len(text):
        size = PIECE
        while text[start : start + size] in used and start + size < len(text):
            size += 1
        while text[start : start + size] in used:  # the end of the text: goes into the piece before it
            start -= (size := sizes.pop()) if sizes else _twice(text)
            used.discard(text[start : start + size])
            size = len(text) - start
        used.add(text[start : start + size])
        sizes.append(size)
        start += size
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [text[end - size : end] for size, end in zip(sizes, ends)]


def _twice(text: str) -> int:
    raise ValueError(f"{text!r} occurs twice")


def symbolic(piece: str, symbols: Sequence[str]) -> str:
    """As the vocabulary stores it."""
    return "".join(symbols[byte] for byte in piece.encode())
