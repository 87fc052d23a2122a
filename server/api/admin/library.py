"""Fetching and removing models by request: POST and DELETE /models, /api/pull, /api/delete. Connection thread.

Only with --manage-models, and only for an admin's key. Nothing that a request says becomes a path or an address: a
download is named by its repository, and what is removed is a model of the list. Progress goes to /models/sse, in
llama-server's words, and into the answer of /api/pull, in Ollama's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from server.api.context import Context
from server.api.request.fields import MANAGE, OLLAMA_DELETE, OLLAMA_PULL, warning_header
from server.errors import ApiError
from server.web.message import EventStream, Request, Response, json_response, to_json

if TYPE_CHECKING:
    from server.library.library import Download, Library

STREAM_TYPE = "application/x-ndjson"
TELL_EVERY_S = 5.0
FINISHED = "finished"  # as the library has it, which only some servers import


class LibraryHandlers:
    """The routes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def fetch(self, request: Request) -> Response:
        """POST /models: begin to download a model, which the answer doesn't wait for."""
        library = self._library(request)
        body = request.json_object()
        name = named(MANAGE.read(body)["model"])
        download = library.download(name, is_kept=True)
        return MANAGE.reply({"success": True, "model": download.name}, body)

    def remove(self, request: Request) -> Response:
        """DELETE /models: a model's files, or a download of it that is running. The query or the body names it."""
        self._library(request)
        body = request.json_object() if request.body else {}
        self._remove(request, named(request.query.get("model") or MANAGE.read(body)["model"]))
        return MANAGE.reply({"success": True}, body)

    def pull(self, request: Request) -> Response | EventStream:
        """POST /api/pull: download a model, with lines of progress unless `stream` is false."""
        library = self._library(request)
        body = request.json_object()
        own = OLLAMA_PULL.read(body)
        download = library.download(named(own["model"]))
        headers = warning_header(OLLAMA_PULL.unread(body))
        if own["stream"]:
            return EventStream(pull_lines(library, download), {"Content-Type": STREAM_TYPE, **headers})
        watch = library.watch(download, TELL_EVERY_S)
        try:
            for _ in watch:
                request.require_client()
        finally:
            watch.close()
        if download.state != FINISHED:
            raise ApiError(500, download.reason)
        return json_response({"status": "success"}, headers=headers)

    def delete(self, request: Request) -> Response:
        """DELETE /api/delete: a model's files."""
        self._library(request)
        body = request.json_object()
        self._remove(request, named(OLLAMA_DELETE.read(body)["model"]))
        return Response(200, b"", warning_header(OLLAMA_DELETE.unread(body)))

    def _library(self, request: Request) -> Library:
        """The library, if the request may use it. ApiError 501 where there is none, 403 without an admin's key."""
        self._context.require_manager(request, "fetch or remove models")
        library = self._context.library
        assert library is not None
        return library

    def _remove(self, request: Request, name: str) -> None:
        library, models = self._library(request), self._context.models
        if library.stop(name):
            return
        if models.lone is not None:
            raise ApiError(501, "this server was started with one model, which it keeps")
        entry = models.find(name, request.key_id)
        others = [other.source for other in models.entries if other is not entry]
        library.check_removable(entry.source, others)
        models.retire(entry)
        try:
            library.remove(entry.source, others)
        finally:
            library.changed()
        models.news.tell({"model": entry.name, "event": "model_remove", "data": {}})


def named(name: Any) -> str:
    """The name of a model in a request. ApiError 400 without one."""
    if not isinstance(name, str) or not name:
        raise ApiError(400, "model: give the name of a model")
    return name


def download_event(download: Download) -> dict[str, Any]:
    """What /models/sse says of a download, as llama-server does."""
    event: dict[str, Any] = {"model": download.name, "event": "download_progress", "data": {}}
    if download.has_ended:
        is_there = download.state == FINISHED
        return {**event, "event": "download_finished" if is_there else "download_failed", "data": reason_of(download)}
    return {**event, "data": {"progress": {download.file: {"done": download.done, "total": download.total}}}}


def reason_of(download: Download) -> dict[str, str]:
    """Why there is no model, where there is none."""
    return {"reason": download.reason} if download.reason else {}


def pull_lines(library: Library, download: Download) -> Iterator[bytes]:
    """The answer of /api/pull: lines of JSON, the last of which says `success` or has an `error`."""
    watch = library.watch(download, TELL_EVERY_S)
    try:
        for _ in watch:  # a line each time, also without news: only a write shows that the client has left
            if download.has_ended:
                break
            yield _line(progress_json(download))
        if download.state != FINISHED:
            yield _line({"error": download.reason})
            return
        yield _line({"status": "verifying sha256 digest"})
        yield _line({"status": "success"})
    finally:
        watch.close()


def progress_json(download: Download) -> dict[str, Any]:
    """How far a file is. Clients have a bar for each digest; the file's own isn't known before it is there."""
    if not download.file:
        return {"status": "pulling manifest"}
    digest = hashlib.sha256(download.file.encode("utf-8", "replace")).hexdigest()
    line = {"status": f"pulling {download.file}", "digest": f"sha256:{digest}"}
    return {**line, "total": download.total, "completed": download.done} if download.total else line


def _line(message: dict[str, Any]) -> bytes:
    return to_json(message) + b"\n"
