"""POST /tokenize, /detokenize, /apply-template and the routes that count tokens; GET /tokenizer_info.

Runs on connection threads. The engine is used only to count the tokens of files. Requests to /tokenize may have
llama-server's form (`content`) or vLLM's (`prompt`, or the `messages` of a chat).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.api.admin.status import get_template_source
from server.api.dialects import anthropic
from server.api.request.chat.messages import make_chat_prompt, read_conversation
from server.api.request.fields import CHAT, DETOKENIZE, MESSAGES, TOKENIZE, TOKENIZE_CHAT, make_warning_header
from server.api.request.media import Files
from server.api.request.prompt import Prompt, check_token_id
from server.engine.seam.task import Task
from server.errors import ApiError
from server.models.model import Model
from server.models.models import Models
from server.web.message import Items, Request, Response, make_json_response

TOKENS_AT_ONCE = 4096  # tokens turned into JSON at a time
SPECIAL = {"pad_token": "padding", "unk_token": "unknown"}
"""Names in the answer, and the names that GGUF files have for these tokens."""


class TokenHandlers:
    def __init__(self, models: Models) -> None:
        self._models = models

    def tokenize(self, request: Request) -> Response:
        """`{"tokens": [...]}`. With `with_pieces` each token is `{"id", "piece"}`. For vLLM's form see
        `make_counted`."""
        body = request.read_json_object()
        model = self._models.spell(body.get("model"), request)
        given = [name for name in ("content", "prompt", "messages") if body.get(name) is not None]
        if len(given) > 1:
            raise ApiError(400, f"{given[0]} and {given[1]} can't be used together")
        if given == ["messages"]:
            return _tokenize_chat(model, body, request)
        vocab, values = model.vocab, TOKENIZE.read(body)
        if values["prompt"] is not None:
            prompt = vocab.tokenize(values["prompt"], values["add_special_tokens"], True, must_fit=False)
            return TOKENIZE.reply(make_counted(model, prompt, values["return_token_strs"]), body)
        tokens = vocab.tokenize(values["content"], values["add_special"], values["parse_special"], must_fit=False)
        items: Any = tokens
        if values["with_pieces"]:
            items = ({"id": token, "piece": make_piece_json(vocab.piece(token))} for token in tokens)
        return TOKENIZE.reply({"tokens": Items(items, TOKENS_AT_ONCE)}, body)

    def detokenize(self, request: Request) -> Response:
        """`{"content": text}`, for vLLM's clients also as `prompt`. Invalid UTF-8 becomes U+FFFD."""
        body = request.read_json_object()
        vocab = self._models.spell(body.get("model"), request).vocab
        if not isinstance(body.get("tokens", []), list):
            raise ApiError(400, "tokens: give a list of token ids")
        tokens = [check_token_id("tokens", token, vocab) for token in body.get("tokens", [])]
        text = vocab.detokenize(tokens, vocab.max_bytes).decode("utf-8", "replace")
        return DETOKENIZE.reply({"content": text, "prompt": text}, body)

    def show_info(self, request: Request) -> Response:
        """The fields of a tokenizer's configuration, as in vLLM. A field is null where the model has none."""
        model = self._models.spell(request.query.get("model"), request)
        info, vocab = model.info, model.vocab
        special = {name: find_special_token(model, key) for name, key in SPECIAL.items()}
        return make_json_response(
            {
                "tokenizer_class": info.meta.get("tokenizer.ggml.model", ""),
                "vocab_size": vocab.n_tokens,
                "model_max_length": info.n_ctx_slot,
                "bos_token": info.bos_token or None,
                "eos_token": info.eos_token or None,
                **special,
                "add_bos_token": vocab.add_bos,
                "add_eos_token": vocab.add_eos,
                "chat_template": get_template_source(model) or None,
            }
        )

    def apply_template(self, request: Request) -> Response:
        body = request.read_json_object()
        model = self._models.spell(body.get("model"), request)
        files = Files(model, request)
        prompt = make_chat_prompt(model, read_conversation(model, body, files), files)
        return CHAT.reply({"prompt": prompt.text}, body, prompt.warnings)

    def count(self, request: Request) -> Response:
        body = request.read_json_object()
        model = self._models.spell(body.get("model"), request)
        files = Files(model, request)
        chat = make_chat_prompt(model, read_conversation(model, body, files), files)
        answer = {
            "object": "response.input_tokens",
            "input_tokens": count_tokens(self._models, model, chat.prompt, request),
        }
        return CHAT.reply(answer, body, chat.warnings)

    def count_messages(self, request: Request) -> Response:
        body = request.read_json_object()
        model = self._models.spell(body.get("model"), request)
        files = Files(model, request)
        values = MESSAGES.read(body, model.defaults)
        chat = make_chat_prompt(model, anthropic.read_conversation(model, values, files), files)
        headers = make_warning_header((*chat.warnings, *MESSAGES.list_unread(body)))
        n_tokens = count_tokens(self._models, model, chat.prompt, request)
        return make_json_response({"input_tokens": n_tokens}, headers=headers)


def count_tokens(models: Models, model: Model, prompt: Prompt, request: Request) -> int:
    """The number of tokens of a prompt. A prompt with files becomes a task and waits its turn, because only the engine
    can decode files. ApiError 400 for a bad file."""
    if not prompt.media:
        return len(prompt.tokens)
    model = models.get(model.name, request)
    task = Task(model.engine.make_id(), prompt.tokens, media=prompt.media, owner=request.owner, only_counts=True)
    request.require_client()
    with model.engine.submit(task, stream=False) as results, request.on_disconnect(results.cancel):
        [final] = results
    return final.n_prompt


def _tokenize_chat(model: Model, body: dict[str, Any], request: Request) -> Response:
    values, files = TOKENIZE_CHAT.read(body, model.defaults), Files(model, request)
    chat = make_chat_prompt(model, read_conversation(model, body, files), files)
    if chat.prompt.media:
        raise ApiError(400, f"{chat.prompt.media[0].where}: a file has no token ids")
    answer = make_counted(model, chat.prompt.tokens, values["return_token_strs"])
    return TOKENIZE_CHAT.reply(answer, body, chat.warnings)


def make_counted(model: Model, tokens: Sequence[int], with_texts: bool) -> dict[str, Any]:
    """Tokens and their number in vLLM's form."""
    answer = {"count": len(tokens), "max_model_len": model.info.n_ctx_slot, "tokens": Items(tokens, TOKENS_AT_ONCE)}
    if with_texts:
        texts = (model.vocab.piece(token).decode("utf-8", "replace") for token in tokens)
        answer["token_strs"] = Items(texts, TOKENS_AT_ONCE)
    return answer


def find_special_token(model: Model, key: str) -> str | None:
    """The text of the token whose id the model's file has under this key; None without one."""
    text = model.info.meta.get(f"tokenizer.ggml.{key}_token_id", "")
    if not text.isdecimal() or len(text) > 9 or int(text) >= model.vocab.n_tokens:
        return None
    return model.vocab.piece(int(text)).decode("utf-8", "replace")


def make_piece_json(piece: bytes) -> str | list[int]:
    """A token's text, or a list of its bytes if they aren't valid UTF-8."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
