"""POST /tokenize and /detokenize. Connection thread; the engine is not asked."""

from __future__ import annotations

from server.api.context import Context
from server.api.schema import Field, read, token_id
from server.errors import ApiError
from server.web.message import Request, Response, json_response

TOKENIZE_FIELDS = (
    Field("content", str, "", "the text"),
    Field("add_special", bool, False, "add BOS and the like where the model wants them"),
    Field("parse_special", bool, True, "recognise special tokens that are written out"),
    Field("with_pieces", bool, False, "give each token's text too"),
)


class TokenHandlers:
    """Text to token ids and back."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def tokenize(self, request: Request) -> Response:
        """`{"tokens": [...]}`; with `with_pieces` each is `{"id", "piece"}`."""
        self._context.engine.require_ready()
        values = read(request.json(), TOKENIZE_FIELDS)
        vocab = self._context.engine.vocab
        tokens = vocab.tokenize(values["content"], values["add_special"], values["parse_special"])
        if values["with_pieces"]:
            return json_response(
                {"tokens": [{"id": token, "piece": piece_json(vocab.piece(token))} for token in tokens]}
            )
        return json_response({"tokens": tokens})

    def detokenize(self, request: Request) -> Response:
        """`{"content": text}`; bytes that are no UTF-8 become U+FFFD."""
        self._context.engine.require_ready()
        body = request.json()
        if not isinstance(body, dict) or not isinstance(body.get("tokens", []), list):
            raise ApiError(400, "tokens: give a list of token ids")
        vocab = self._context.engine.vocab
        tokens = [token_id("tokens", token, vocab) for token in body.get("tokens", [])]
        return json_response({"content": vocab.detokenize(tokens).decode("utf-8", "replace")})


def piece_json(piece: bytes) -> str | list[int]:
    """A token's text, or its bytes as numbers where they are no UTF-8 of their own."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
