"""/models and /v1/models: lists models and their states, loads and unloads them, and sends events about changes.

Runs on connection threads. Entries of the list `data` have OpenAI's fields and llama-server's `status`, those of
`models` have Ollama's. Of these routes, only the one to load a model loads or wakes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from queue import Empty
from typing import Any

from server.api.admin.status import list_modalities, list_model_capabilities
from server.api.context import Context
from server.api.request.fields import LOAD, MODEL
from server.engine.seam.task import ModelInfo
from server.errors import ApiError
from server.models.entry import FAILED, LOADING, Entry
from server.web import sse
from server.web.message import EventStream, Request, Response, make_json_response

PING_S = 15.0  # seconds without an event after which the stream of events sends a ping


class ModelHandlers:
    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, request: Request) -> Response:
        entries = self._context.models.list_seen_by(request.key_id)
        return make_json_response(
            {
                "object": "list",
                "data": [self._make_entry(entry) for entry in entries],
                "models": [self._make_named_entry(entry) for entry in entries],
            }
        )

    def get(self, request: Request) -> Response:
        """Describes one model, found by any of its names."""
        models = self._context.models
        name = request.params["name"]
        entry = models.find(name, request.key_id)
        if name not in entry.names and models.lone is not None:  # a lone model is found under any name
            raise ApiError(404, f"model: there is no {name[:80]!r}; GET /v1/models lists all models")
        return make_json_response(self._make_entry(entry))

    def load(self, request: Request) -> Response:
        """Start to load a model; `GET /models` and `/models/sse` report its progress. Only an admin's request may pass
        options."""
        body, name = read_name(request)
        options = LOAD.read(body)["options"]
        if options is not None:
            self._context.require_manager(request, "give a model options of its own")
        entry = self._context.models.load(name, request.key_id, options)
        return LOAD.reply({"success": True, "model": entry.name, "status": self._status(entry)}, body)

    def unload(self, request: Request) -> Response:
        """Unload a model once its running requests have ended."""
        body, name = read_name(request)
        entry = self._context.models.unload(name, request.key_id)
        return MODEL.reply({"success": True, "model": entry.name, "status": self._status(entry)}, body)

    def stream_events(self, request: Request) -> EventStream:
        """A stream of server-sent events on the models that this key may use: their states, then changes and
        downloads."""
        return EventStream(self._iterate(request.key_id))

    def _iterate(self, key_id: str) -> Iterator[bytes]:
        models = self._context.models
        with models.news.read() as queue:
            mine = models.list_seen_by(key_id)
            yield b"".join(event_of(entry, **self._status(entry)) for entry in mine)
            while True:
                try:
                    news = queue.get(timeout=PING_S)
                except Empty:
                    yield sse.PING
                    continue
                if news is None:
                    return
                if isinstance(news, dict):
                    if models.may_use(key_id, (news["model"],)):
                        yield sse.encode_event(news)
                    continue
                entry, state, reason = news
                if models.may_use(key_id, entry.names):
                    yield event_of(entry, state, **({"failed": True, "reason": reason} if state == FAILED else {}))

    def _status(self, entry: Entry) -> dict[str, Any]:
        """The model's state in `value`. While it loads, also `progress` (0 to 1), and `queue_position` if it waits;
        after a failure, `failed` and `reason`."""
        value = self._context.models.status(entry)
        status: dict[str, Any] = {"value": value}
        if value == LOADING:
            engine = entry.model.engine if entry.model is not None and entry.load is None else None
            status["progress"] = round(entry.progress if engine is None else engine.progress, 3)
            if place := self._context.models.place(entry):
                status["queue_position"] = place
        if value == FAILED:
            status |= {"failed": True, "reason": entry.reason}
        return status

    def _make_entry(self, entry: Entry) -> dict[str, Any]:
        info = entry.info
        return {
            "id": entry.names[0],
            "aliases": list(entry.names),
            "tags": list(entry.tags),
            "object": "model",
            "created": self._context.started,
            "owned_by": "llama_srv",
            "status": self._status(entry),
            "source": entry.origin,
            "size": entry.size if info is None else info.size,
            "meta": None if info is None else make_meta_json(info),
            "architecture": list_modalities(info),
            "capabilities": self._list_capabilities(entry),
        }

    def _make_named_entry(self, entry: Entry) -> dict[str, Any]:
        name = entry.names[0]
        return {
            "name": name,
            "model": name,
            "type": "model",
            "description": "",
            "tags": list(entry.tags),
            "capabilities": self._list_capabilities(entry),
            "details": make_details(entry.info),
        }

    def _list_capabilities(self, entry: Entry) -> Any:
        """What the model can do; [] while that is unknown because it has never been loaded."""
        model = entry.model
        if model is not None and model.info is not None:
            entry.capabilities = tuple(list_model_capabilities(model))
        return list(entry.capabilities)


def read_name(request: Request) -> tuple[dict[str, Any], str]:
    """The body, and the name of a model in it. ApiError 400 without a name."""
    body = request.read_json_object()
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "model: a name is required; GET /models lists all models")
    return body, name


def event_of(entry: Entry, value: str, **more: object) -> bytes:
    return sse.encode_event({"model": entry.name, "event": "model_status", "data": {"status": value, **more}})


def make_meta_json(info: ModelInfo) -> dict[str, Any]:
    return {
        "n_vocab": info.n_vocab,
        "n_ctx": info.n_ctx_slot,
        "n_ctx_train": info.n_ctx_train,
        "n_embd": info.n_embd,
        "n_params": info.n_params,
        "size": info.size,
        "desc": info.desc,
        "pooling": info.pooling,
        "classes": list(info.classes),
    }


def make_details(info: ModelInfo | None) -> dict[str, Any]:
    """Format and size of a model in Ollama's form, as far as its file has them."""
    family = "" if info is None else info.meta.get("general.architecture", "")
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "" if info is None else count_text(info.n_params),
        "quantization_level": "" if info is None else parse_quantization(info.desc),
    }


def count_text(n: int) -> str:
    """A number of parameters as text: 134.52M, 7.2B."""
    if n >= 10**9:
        return f"{n / 1e9:.1f}B"
    return f"{n / 1e6:.2f}M" if n >= 10**6 else f"{n / 1e3:.2f}K"


def parse_quantization(desc: str) -> str:
    """The type of the weights, taken from llama.cpp's description of a model such as `llama 7B Q4_K - Medium`."""
    kind = " ".join(desc.split(" ")[2:]).removeprefix("all ")
    return re.sub(r" - ([SML])\w+", r"_\1", kind).split(" ")[0]
