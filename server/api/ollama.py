"""Ollama's routes for models and embeddings. Runs on connection threads.

Requests to create, copy or push models are refused. Ollama's names have tags, `name:latest`; clients add `:latest` to a
name without one.
"""

from __future__ import annotations

import hashlib
import re
import time
from datetime import datetime, timezone
from typing import Any

from server.api.admin.models import make_details
from server.api.admin.status import get_template_source, list_model_capabilities
from server.api.context import Context
from server.api.dialects.ollama import keep_alive, make_head
from server.api.embeddings import EUCLIDEAN, EmbeddingHandlers, list_of
from server.api.request.fields import OLLAMA_EMBED, OLLAMA_EMBEDDINGS, OLLAMA_SHOW, make_warning_header
from server.errors import ApiError
from server.models.entry import LOADED, Entry
from server.models.model import Model
from server.web.message import Items, Request, Response, make_json_response

VERSION = "0.12.11"  # the version of Ollama's API that is implemented here
NEVER = "9999-12-31T23:59:59Z"  # `expires_at` of a model that stays loaded
AS_IT_IS = -1  # the value of embd_normalize for vectors that aren't normalised
SHOWN_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "seed")
CAPABILITIES = ("completion", "tools", "thinking", "vision", "audio", "embedding")
GENERAL_NUMBERS = ("general.file_type", "general.quantization_version")
WHOLE, DECIMAL = re.compile(r"-?[0-9]{1,18}"), re.compile(r"-?[0-9]{1,30}\.[0-9]{1,30}(?:e[+-]?[0-9]{1,3})?")


class OllamaHandlers:
    def __init__(self, context: Context, embeddings: EmbeddingHandlers) -> None:
        self._context = context
        self._embeddings = embeddings

    def show_version(self, request: Request) -> Response:
        return make_json_response({"version": VERSION})

    def list_tags(self, request: Request) -> Response:
        entries = self._context.models.list_seen_by(request.key_id)
        return make_json_response(
            {"models": [self._make_entry(entry, name) for entry in entries for name in list_tagged_names(entry)]}
        )

    def list_running(self, request: Request) -> Response:
        models = self._context.models
        return make_json_response(
            {
                "models": [
                    {**self._make_entry(entry, name), **self._make_state(entry)}
                    for entry in models.list_seen_by(request.key_id)
                    if models.status(entry) == LOADED and entry.info is not None
                    for name in list_tagged_names(entry)
                ]
            }
        )

    def _make_state(self, entry: Entry) -> dict[str, Any]:
        """A loaded model's state: when it will be unloaded, its size if it uses a GPU, and the context of a slot."""
        info = entry.info
        assert info is not None
        has_gpu = any(not name.startswith("CPU") for name in info.devices)
        left_s = self._context.models.compute_left_s(entry)
        return {
            "expires_at": NEVER if left_s is None else format_iso_time(time.time() + left_s),
            "size_vram": info.size if has_gpu else 0,
            "context_length": info.n_ctx_slot,
        }

    def show(self, request: Request) -> Response:
        body = request.read_json_object()
        own = OLLAMA_SHOW.read(body)
        model = self._context.models.get(own["model"], request)
        parameters = list_shown_parameters(model)
        name = list_tagged_names(self._context.models.find(own["model"], request.key_id))[0]
        answer = {
            "license": model.info.meta.get("general.license", ""),
            "modelfile": "\n".join([f"FROM {name}", *(f"PARAMETER {line}" for line in parameters)]),
            "parameters": "\n".join(parameters),
            "template": get_template_source(model),
            "details": make_details(model.info),
            "model_info": make_model_info(model, own["verbose"]),
            "capabilities": list_capabilities(model),
            "modified_at": self._format_started(),
        }
        return make_json_response(answer, headers=make_warning_header(OLLAMA_SHOW.list_unread(body)))

    def embed(self, request: Request) -> Response:
        """POST /api/embed: vectors of length 1."""
        begun = time.monotonic_ns()
        body = request.read_json_object()
        own = OLLAMA_EMBED.read(body)
        texts = [own["input"]] if isinstance(own["input"], str) else own["input"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ApiError(400, "input: a text or a list of texts is required")
        model = self._context.models.get(own["model"], request)
        warnings = (*OLLAMA_EMBED.list_unread(body), *keep_alive(model, own["keep_alive"]))
        vectors, n_tokens = self._compute_vectors(request, model, texts, own["dimensions"], EUCLIDEAN)
        answer = {
            "model": make_head(model, own["model"])["model"],
            "embeddings": Items(vectors),
            "total_duration": time.monotonic_ns() - begun,
            "load_duration": 0,
            "prompt_eval_count": n_tokens,
        }
        return make_json_response(answer, headers=make_warning_header(warnings))

    def embed_prompt(self, request: Request) -> Response:
        """POST /api/embeddings, the older route: one vector, not normalised."""
        body = request.read_json_object()
        own = OLLAMA_EMBEDDINGS.read(body)
        model = self._context.models.get(own["model"], request)
        warnings = (*OLLAMA_EMBEDDINGS.list_unread(body), *keep_alive(model, own["keep_alive"]))
        vectors, _ = self._compute_vectors(request, model, [own["prompt"]], None, AS_IT_IS)
        return make_json_response({"embedding": vectors[0] if vectors else []}, headers=make_warning_header(warnings))

    def refuse(self, request: Request) -> Response:
        raise ApiError(
            501,
            "this server doesn't create, copy or push models; a section of --models-preset adds a model under another "
            "name or with other settings",
        )

    def _compute_vectors(
        self, request: Request, model: Model, texts: list[str], n: int | None, kind: int
    ) -> tuple[list[list[float]], int]:
        """A vector for each text, and the number of all tokens. A single empty text gets no vector: clients send it
        only to load the model."""
        if texts in ([], [""]):
            return [], 0
        if model.info.pooling == "none":
            raise ApiError(400, "this route needs one vector per text, but the server runs with --pooling none")
        values = {"input": texts, "image_data": None, "dimensions": n, "embd_normalize": kind}
        found, n_tokens = self._embeddings.compute_vectors(request, model, values)
        return [list_of(rows[0]) for rows in found], n_tokens

    def _format_started(self) -> str:
        return format_iso_time(self._context.started)

    def _make_entry(self, entry: Entry, name: str) -> dict[str, Any]:
        """A model in a list. `digest` only tells models apart; it isn't a hash of the file."""
        size = entry.size if entry.info is None else entry.info.size
        return {
            "name": name,
            "model": name,
            "modified_at": self._format_started(),
            "size": size,
            "digest": hashlib.sha256(f"{name}\0{size}".encode("utf-8", "replace")).hexdigest(),
            "details": make_details(entry.info),
        }


def format_iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def list_tagged_names(entry: Entry) -> list[str]:
    """The model's names with a tag. A loaded model without an alias is named after its file."""
    names, model = entry.names, entry.model
    if model is not None and not model.options.aliases:
        names = (re.split(r"[\\/]", model.own_name)[-1].removesuffix(".gguf"),)
    return [name if ":" in name else name + ":latest" for name in names]


def make_model_info(model: Model, is_verbose: bool) -> dict[str, Any]:
    """The metadata of the model's file; the tokenizer's, which is long, only if `is_verbose`."""
    meta = {
        key: text if key.startswith("general.") and key not in GENERAL_NUMBERS else parse_typed(text)
        for key, text in model.info.meta.items()
        if is_verbose or not key.startswith("tokenizer.")
    }
    return {**meta, "general.parameter_count": model.info.n_params}


def parse_typed(text: str) -> object:
    """A metadata value with its JSON type; llama.cpp returns all values as text."""
    if WHOLE.fullmatch(text):
        return int(text)
    if DECIMAL.fullmatch(text):
        return float(text)
    return text == "true" if text in ("true", "false") else text


def list_capabilities(model: Model) -> list[str]:
    has_middle = {"pre", "suf", "mid"} <= model.vocab.fim.keys()
    words = list_model_capabilities(model)
    return [*(word for word in CAPABILITIES if word in words), *["insert"] * has_middle]


def list_shown_parameters(model: Model) -> list[str]:
    """The context's size and the SHOWN_DEFAULTS set by the user or the model's file, one line each."""
    values = {"num_ctx": model.info.n_ctx_slot}
    values |= {name: model.defaults[name] for name in SHOWN_DEFAULTS if name in model.defaults}
    return [f"{name:<30} {value}" for name, value in values.items()]
