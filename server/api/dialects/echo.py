"""`echo` with `logprobs` in /v1/completions: the probabilities of the prompt's tokens.

Runs on the threads of `server.api.generation`. Evaluation programs send a prompt, ask for at most one new token, and
add up the log probabilities of a part of the prompt. So every token has an entry, even those without text (BOS, EOS).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from server.api.serialize import make_token_json
from server.engine.seam.task import PromptProbs, TokenProbs
from server.models.model import Vocab


class EchoedPrompt:
    """A prompt: its tokens, its text as echoed, and the probabilities received so far."""

    def __init__(self, tokens: Sequence[int], text: str, vocab: Vocab) -> None:
        self.text = text
        self._tokens = tokens
        self._vocab = vocab
        self._probs: dict[int, TokenProbs] = {}

    def add(self, item: PromptProbs) -> None:
        """Add the next probabilities. The same part may come twice."""
        self._probs.update(enumerate(item.probs, item.start))

    def make_logprobs(self, n_top: int) -> dict[str, list[Any]]:
        """OpenAI's parallel lists, and `content` in its newer form. The first token has no probability, since no token
        is before it."""
        probs = [self._probs.get(i) for i in range(len(self._tokens))]
        return {
            "tokens": [format_token_name(self._vocab.piece(token)) for token in self._tokens],
            "token_logprobs": [one and one.logprob for one in probs],
            "top_logprobs": [one and make_top_logprobs(one, n_top, self._vocab) for one in probs],
            "text_offset": self._compute_offsets(),
            "content": [self._make_token(token, one, n_top) for token, one in zip(self._tokens, probs)],
        }

    def _make_token(self, token: int, one: TokenProbs | None, n_top: int) -> dict[str, Any]:
        top = one.top_logprobs[:n_top] if one else ()
        return {
            **make_token_json(token, self._vocab),
            "logprob": one and one.logprob,
            "top_logprobs": [{**make_token_json(id_, self._vocab), "logprob": logprob} for id_, logprob in top],
        }

    def _compute_offsets(self) -> list[int]:
        """The character of the echoed text at which each token begins. The tokens may begin with a space that the text
        lacks."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        offsets, n = [], 0
        for token in self._tokens:
            offsets.append(n)
            if not self._vocab.is_control(token):
                n += len(decoder.decode(self._vocab.piece(token)))
        surplus = max(n - len(self.text), 0)
        return [max(offset - surplus, 0) for offset in offsets]


def make_top_logprobs(probs: TokenProbs, n_top: int, vocab: Vocab) -> dict[str, float]:
    """The `n_top` most likely tokens at this place, plus the token itself if it is not one of them."""
    pairs = [*probs.top_logprobs[:n_top], (probs.token, probs.logprob)]
    return {format_token_name(vocab.piece(id_)): logprob for id_, logprob in pairs}


def format_token_name(piece: bytes) -> str:
    """A token's text, or in OpenAI's notation its bytes if they aren't valid UTF-8: `bytes:\\xe2\\x82`."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def join_lists(parts: Sequence[dict[str, list[Any]] | None]) -> dict[str, list[Any]] | None:
    """The parallel lists of several texts joined into one set of lists; None if there are none."""
    known = [part for part in parts if part]
    return {name: [value for part in known for value in part[name]] for name in known[0]} if known else None
