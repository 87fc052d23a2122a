"""Downloads and removes models by request: POST and DELETE /models, /api/pull, /api/delete. Runs on connection threads.

Needs --manage-models and an admin's key. A request can't name a path or a URL: a download is named by its repository,
and only a model in the server's list can be removed. Progress is sent to /models/sse in llama-server's format, and
in the answer of /api/pull in Ollama's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from server.api.context import Context
from server.api.request.fields import MANAGE, OLLAMA_DELETE, OLLAMA_PULL, make_warning_header
from server.errors import ApiError
from server.web.message import EventStream, Request, Response, make_json_response, to_json

if TYPE_CHECKING:
    from server.library.library import Download, Library

STREAM_TYPE = "application/x-ndjson"
TELL_EVERY_S = 5.0  # longest time without a line of progress
FINISHED = "finished"  # as in `library.FINISHED`; without --manage-models that module is not imported


class LibraryHandlers:
    def __init__(self, context: Context) -> None:
        self._context = context

    def fetch(self, request: Request) -> Response:
        """POST /models: start to download a model, and answer at once."""
        library = self._require_library(request)
        body = request.read_json_object()
        name = require_name(MANAGE.read(body)["model"])
        download = library.download(name, is_kept=True)
        return MANAGE.reply({"success": True, "model": download.name}, body)

    def remove(self, request: Request) -> Response:
        """DELETE /models: delete a model's files, or stop its download. The query or the body names the model."""
        self._require_library(request)
        body = request.read_json_object() if request.body else {}
        self._remove(request, require_name(request.query.get("model") or MANAGE.read(body)["model"]))
        return MANAGE.reply({"success": True}, body)

    def pull(self, request: Request) -> Response | EventStream:
        """POST /api/pull: download a model. The answer has lines of progress unless `stream` is false."""
        library = self._require_library(request)
        body = request.read_json_object()
        own = OLLAMA_PULL.read(body)
        download = library.download(require_name(own["model"]))
        headers = make_warning_header(OLLAMA_PULL.list_unread(body))
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
        return make_json_response({"status": "success"}, headers=headers)

    def delete(self, request: Request) -> Response:
        """DELETE /api/delete: delete a model's files, or stop its download."""
        self._require_library(request)
        body = request.read_json_object()
        self._remove(request, require_name(OLLAMA_DELETE.read(body)["model"]))
        return Response(200, b"", make_warning_header(OLLAMA_DELETE.list_unread(body)))

    def _require_library(self, request: Request) -> Library:
        self._context.require_manager(request, "fetch or remove models")
        library = self._context.library
        assert library is not None
        return library

    def _remove(self, request: Request, name: str) -> None:
        library, models = self._require_library(request), self._context.models
        if library.stop(name):
            return
        if models.lone is not None:
            raise ApiError(501, "the only model of this server can't be removed")
        entry = models.find(name, request.key_id)
        others = [other.source for other in models.entries if other is not entry]
        library.check_removable(entry.source, others)
        models.retire(entry)
        try:
            library.remove(entry.source, others)
        finally:
            library.changed()
        models.news.tell({"model": entry.name, "event": "model_remove", "data": {}})


def require_name(name: Any) -> str:
    """The name of a model from a request. ApiError 400 without one."""
    if not isinstance(name, str) or not name:
        raise ApiError(400, "model: the name of a model is required")
    return name


def download_event(download: Download) -> dict[str, Any]:
    """The event of a download on /models/sse, in llama-server's format."""
    event: dict[str, Any] = {"model": download.name, "event": "download_progress", "data": {}}
    if download.has_ended:
        is_there = download.state == FINISHED
        return {**event, "event": "download_finished" if is_there else "download_failed", "data": reason_of(download)}
    return {**event, "data": {"progress": {download.file: {"done": download.done, "total": download.total}}}}


def reason_of(download: Download) -> dict[str, str]:
    return {"reason": download.reason} if download.reason else {}


def pull_lines(library: Library, download: Download) -> Iterator[bytes]:
    """The answer of /api/pull: lines of JSON. The last one has `"status": "success"` or an `error`."""
    watch = library.watch(download, TELL_EVERY_S)
    try:
        for _ in watch:  # also without progress: a client that has left is noticed only by a failing write
            if download.has_ended:
                break
            yield _encode_line(make_progress_json(download))
        if download.state != FINISHED:
            yield _encode_line({"error": download.reason})
            return
        yield _encode_line({"status": "verifying sha256 digest"})
        yield _encode_line({"status": "success"})
    finally:
        watch.close()


def make_progress_json(download: Download) -> dict[str, Any]:
    """The progress of the current file. Clients draw a bar per digest. The file's digest isn't known yet, so a hash of
    its name takes its place."""
    if not download.file:
        return {"status": "pulling manifest"}
    digest = hashlib.sha256(download.file.encode("utf-8", "replace")).hexdigest()
    line = {"status": f"pulling {download.file}", "digest": f"sha256:{digest}"}
    return {**line, "total": download.total, "completed": download.done} if download.total else line


def _encode_line(message: dict[str, Any]) -> bytes:
    return to_json(message) + b"\n"
