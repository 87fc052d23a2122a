"""Which models there are, and what state they are in: /models, /v1/models; load and unload them; events of all changes.

Connection thread. The shapes are OpenAI's list (`data`), Ollama's beside it (`models`), and llama-server's `status`.
Nothing here wakes or loads a model but what says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from queue import Empty
from typing import Any

from server.api.admin.status import modalities, model_capabilities
from server.api.context import Context
from server.api.request.fields import LOAD, MODEL
from server.engine.seam.task import ModelInfo
from server.errors import ApiError
from server.models.entry import FAILED, LOADING, Entry
from server.web import sse
from server.web.message import EventStream, Request, Response, json_response

PING_S = 15.0


class ModelHandlers:
    """The routes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, request: Request) -> Response:
        """All models that the key may use."""
        entries = self._context.models.seen_by(request.key_id)
        return json_response(
            {
                "object": "list",
                "data": [self._entry(entry) for entry in entries],
                "models": [self._named(entry) for entry in entries],
            }
        )

    def one(self, request: Request) -> Response:
        """One of them, by any of its names."""
        models = self._context.models
        name = request.params["name"]
        entry = models.find(name, request.key_id)
        if name not in entry.names and models.lone is not None:  # which answers to every name
            raise ApiError(404, f"model: there is no {name[:80]!r} here; GET /v1/models lists what there is")
        return json_response(self._entry(entry))

    def load(self, request: Request) -> Response:
        """Begin to load one; `GET /models` and `/models/sse` tell how it goes on. Options of its own need the rights of
        fetching and removing."""
        body, name = named_in(request)
        options = LOAD.read(body)["options"]
        if options is not None:
            self._context.require_manager(request, "give a model options of its own")
        entry = self._context.models.load(name, request.key_id, options)
        return LOAD.reply({"success": True, "model": entry.name, "status": self._status(entry)}, body)

    def unload(self, request: Request) -> Response:
        """Unload one, once its work is done."""
        body, name = named_in(request)
        entry = self._context.models.unload(name, request.key_id)
        return MODEL.reply({"success": True, "model": entry.name, "status": self._status(entry)}, body)

    def events(self, request: Request) -> EventStream:
        """Server-sent events: every change of state, beginning with the states at present."""
        return EventStream(self._iterate(request.key_id))

    def _iterate(self, key_id: str) -> Iterator[bytes]:
        models = self._context.models
        with models.news.read() as queue:
            mine = models.seen_by(key_id)
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
                        yield sse.event(news)
                    continue
                entry, state, reason = news
                if models.may_use(key_id, entry.names):
                    yield event_of(entry, state, **({"failed": True, "reason": reason} if state == FAILED else {}))

    def _status(self, entry: Entry) -> dict[str, Any]:
        """`value`, and what belongs to that: `progress` from 0 to 1, or why it has `failed`."""
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

    def _entry(self, entry: Entry) -> dict[str, Any]:
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
            "meta": None if info is None else meta_json(info),
            "architecture": modalities(info),
            "capabilities": self._capabilities(entry),
        }

    def _named(self, entry: Entry) -> dict[str, Any]:
        name = entry.names[0]
        return {
            "name": name,
            "model": name,
            "type": "model",
            "description": "",
            "tags": list(entry.tags),
            "capabilities": self._capabilities(entry),
            "details": details(entry.info),
        }

    def _capabilities(self, entry: Entry) -> Any:
        """None is not known yet: the model has never been loaded."""
        model = entry.model
        if model is not None and model.info is not None:
            entry.capabilities = tuple(model_capabilities(model))
        return list(entry.capabilities)


def named_in(request: Request) -> tuple[dict[str, Any], str]:
    """A body, and the model that it names. ApiError 400 without one."""
    body = request.json_object()
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "model: give the name of a model, as GET /models lists them")
    return body, name


def event_of(entry: Entry, value: str, **more: object) -> bytes:
    """That a model is in this state."""
    return sse.event({"model": entry.name, "event": "model_status", "data": {"status": value, **more}})


def meta_json(info: ModelInfo) -> dict[str, Any]:
    """What is known of a model that has been loaded."""
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


def details(info: ModelInfo | None) -> dict[str, Any]:
    """What kind of model it is in Ollama's words, as far as its file says so."""
    family = "" if info is None else info.meta.get("general.architecture", "")
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "" if info is None else count_text(info.n_params),
        "quantization_level": "" if info is None else quantization(info.desc),
    }


def count_text(n: int) -> str:
    """A number of parameters: 134.52M, 7.2B."""
    if n >= 10**9:
        return f"{n / 1e9:.1f}B"
    return f"{n / 1e6:.2f}M" if n >= 10**6 else f"{n / 1e3:.2f}K"


def quantization(desc: str) -> str:
    """The type of the weights from llama.cpp's description of a model, such as `llama 7B Q4_K - Medium`."""
    kind = " ".join(desc.split(" ")[2:]).removeprefix("all ")
    return re.sub(r" - ([SML])\w+", r"_\1", kind).split(" ")[0]
