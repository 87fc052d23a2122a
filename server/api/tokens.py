"""POST /tokenize, /detokenize, /apply-template and the counting of chats' tokens. Connection thread; the engine is not
asked."""

from __future__ import annotations

from typing import Any

from server.api.dialects import anthropic
from server.api.request.chat.messages import ChatPrompt, chat_prompt, read_conversation
from server.api.request.fields import CHAT, DETOKENIZE, MESSAGES, TOKENIZE, warning_header
from server.api.request.media import Files
from server.api.request.prompt import token_id
from server.errors import ApiError
from server.models.model import Models
from server.web.message import Items, Request, Response, json_response

TOKENS_AT_ONCE = 4096


class TokenHandlers:
    """Text to token ids and back, chats to text."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def tokenize(self, request: Request) -> Response:
        """`{"tokens": [...]}`; with `with_pieces` each is `{"id", "piece"}`."""
        body = request.json_object()
        vocab = self._models.get(body.get("model")).vocab
        values = TOKENIZE.read(body)
        tokens = vocab.tokenize(values["content"], values["add_special"], values["parse_special"], must_fit=False)
        items: Any = tokens
        if values["with_pieces"]:
            items = ({"id": token, "piece": piece_json(vocab.piece(token))} for token in tokens)
        return TOKENIZE.reply({"tokens": Items(items, TOKENS_AT_ONCE)}, body)

    def detokenize(self, request: Request) -> Response:
        """`{"content": text}`; bytes that are no UTF-8 become U+FFFD."""
        body = request.json_object()
        vocab = self._models.get(body.get("model")).vocab
        if not isinstance(body.get("tokens", []), list):
            raise ApiError(400, "tokens: give a list of token ids")
        tokens = [token_id("tokens", token, vocab) for token in body.get("tokens", [])]
        return DETOKENIZE.reply({"content": vocab.detokenize(tokens, vocab.max_bytes).decode("utf-8", "replace")}, body)

    def apply_template(self, request: Request) -> Response:
        """The prompt that `messages` would become."""
        body = request.json_object()
        model = self._models.get(body.get("model"))
        files = Files(model, request)
        prompt = chat_prompt(model, read_conversation(model, body, files), files)
        return CHAT.reply({"prompt": prompt.text}, body, prompt.warnings)

    def count(self, request: Request) -> Response:
        """How many tokens the prompt of `messages` has."""
        body = request.json_object()
        model = self._models.get(body.get("model"))
        files = Files(model, request)
        chat = chat_prompt(model, read_conversation(model, body, files), files)
        answer = {"object": "response.input_tokens", "input_tokens": count_tokens(chat)}
        return CHAT.reply(answer, body, chat.warnings)

    def count_messages(self, request: Request) -> Response:
        """The same in Anthropic's dialect."""
        body = request.json_object()
        model = self._models.get(body.get("model"))
        files = Files(model, request)
        values = MESSAGES.read(body, model.defaults)
        chat = chat_prompt(model, anthropic.read_conversation(model, values, files), files)
        headers = warning_header((*chat.warnings, *MESSAGES.unread(body)))
        return json_response({"input_tokens": count_tokens(chat)}, headers=headers)


def count_tokens(chat: ChatPrompt) -> int:
    """How many tokens the prompt of a chat has. ApiError 400 where that can't be told."""
    media = chat.prompt.media
    if media:
        raise ApiError(
            400,
            f"{media[0].where}: how many tokens a file takes is known only when it is "
            "decoded; the usage of an answer has it",
        )
    return len(chat.prompt.tokens)


def piece_json(piece: bytes) -> str | list[int]:
    """A token's text, or its bytes as numbers where they are no UTF-8 of their own."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
