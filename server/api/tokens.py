"""POST /tokenize and /detokenize. Connection thread; the engine is not asked."""

from __future__ import annotations

from server.api.context import Context
from server.api.fields import DETOKENIZE, TOKENIZE, TOKENIZE_FIELDS
from server.api.schema import read, token_id
from server.errors import ApiError
from server.web.message import Request, Response


class TokenHandlers:
    """Text to token ids and back."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def tokenize(self, request: Request) -> Response:
        """`{"tokens": [...]}`; with `with_pieces` each is `{"id", "piece"}`."""
        self._context.engine.require_ready()
        body = request.json()
        values = read(body, TOKENIZE_FIELDS)
        vocab = self._context.engine.vocab
        tokens = vocab.tokenize(values["content"], values["add_special"], values["parse_special"])
        if values["with_pieces"]:
            tokens = [{"id": token, "piece": piece_json(vocab.piece(token))} for token in tokens]
        return TOKENIZE.reply({"tokens": tokens}, body)

    def detokenize(self, request: Request) -> Response:
        """`{"content": text}`; bytes that are no UTF-8 become U+FFFD."""
        self._context.engine.require_ready()
        body = request.json()
        if not isinstance(body, dict) or not isinstance(body.get("tokens", []), list):
            raise ApiError(400, "tokens: give a list of token ids")
        vocab = self._context.engine.vocab
        tokens = [token_id("tokens", token, vocab) for token in body.get("tokens", [])]
        return DETOKENIZE.reply({"content": vocab.detokenize(tokens).decode("utf-8", "replace")}, body)


def piece_json(piece: bytes) -> str | list[int]:
    """A token's text, or its bytes as numbers where they are no UTF-8 of their own."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
