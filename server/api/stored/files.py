"""/v1/files: uploads, lists, sends and deletes the files of batches. Runs on connection threads.

Needs --store-dir. To a client, files of another key don't exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.api.context import Context
from server.api.stored.responses import make_page
from server.batches.files import MAX_AGE_S, UPLOADED, File, Files
from server.batches.runner import Batches
from server.errors import ApiError
from server.web.http1.multipart import Part
from server.web.message import EventStream, Request, Response, make_json_response

MIN_AGE_S = 3600
MAX_NAME, MAX_FIELD = 255, 100  # characters of a file's name, bytes of a form field
MOST = 10_000  # files in one page of a list
CHUNK_BYTES = 1 << 18
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


def require_own(context: Context, request: Request) -> None:
    """ApiError 403 for a list that would show other users' things, because there are no keys to tell users apart."""
    if context.is_shared and not request.key_id:
        raise ApiError(403, "lists need API keys on a server that other machines can reach", "permission_error")


class FileHandlers:
    def __init__(self, context: Context, batches: Batches) -> None:
        self._context, self._batches = context, batches

    @property
    def _files(self) -> Files:
        return self._batches.files

    def upload(self, request: Request) -> Response:
        """Store a file. ApiError 400 for a bad form, 413 if no room is left."""
        files = self._files
        part, values = read_form(request.form)
        if values.get("purpose") != UPLOADED:
            raise ApiError(400, f"purpose: {values.get('purpose', '')!r} is unknown; only {UPLOADED!r} is supported")
        age_s = read_age(values.get("expires_after[anchor]"), values.get("expires_after[seconds]"))
        name = "".join(letter for letter in part.filename if letter.isprintable())[:MAX_NAME] or "file.jsonl"
        return make_json_response(files.add(request.key_id, name, part.data, age_s).as_json())

    def list(self, request: Request) -> Response:
        """Lists the key's files, the newest first; `purpose` selects some of them."""
        require_own(self._context, request)
        purpose = request.query.get("purpose")
        found = [file for file in self._files.list_of_key(request.key_id) if purpose in (None, file.purpose)]
        return make_json_response(make_page(request, [file.as_json() for file in found], MOST, MOST))

    def get(self, request: Request) -> Response:
        return make_json_response(self._find(request).as_json())

    def content(self, request: Request) -> EventStream:
        file = self._find(request)
        stream = self._files.open(file.id)

        def read_chunks() -> Iterator[bytes]:
            with stream:
                while data := stream.read(CHUNK_BYTES):
                    yield data

        return EventStream(read_chunks(), {"Content-Type": "application/octet-stream"})

    def delete(self, request: Request) -> Response:
        """Delete a file. ApiError 409 while a batch needs it."""
        id_ = request.params["id"]
        if not self._files.delete(id_, request.key_id):
            raise make_unknown_error(id_)
        return make_json_response({"id": id_, "object": "file", "deleted": True})

    def _find(self, request: Request) -> File:
        id_ = request.params["id"]
        file = self._files.get(id_, request.key_id)
        if file is None:
            raise make_unknown_error(id_)
        return file


def read_form(parts: Sequence[Part]) -> tuple[Part, dict[str, str]]:
    files = [part for part in parts if part.is_file]
    if len(files) != 1 or files[0].name != "file":
        raise ApiError(400, "file: exactly one file is required in the form")
    values: dict[str, str] = {}
    for part in parts:
        if part.is_file:
            continue
        if part.name not in FIELDS or part.name in values or len(part.data) > MAX_FIELD:
            raise ApiError(400, f"{part.name[:40]!r} is not a field of this form, is given twice, or is too long")
        values[part.name] = part.decode_text()
    return files[0], values


def read_age(anchor: object, seconds: object) -> int:
    """OpenAI's `expires_after`: the seconds until a file is deleted. ApiError 400."""
    if anchor is None and seconds is None:
        return MAX_AGE_S
    text = str(seconds)
    is_number = text.isascii() and text.isdigit() and len(text) < 10 and not isinstance(seconds, bool)
    if anchor != "created_at" or not is_number or not MIN_AGE_S <= int(text) <= MAX_AGE_S:
        raise ApiError(
            400, f"expires_after: the anchor must be created_at, the seconds from {MIN_AGE_S} to {MAX_AGE_S}"
        )
    return int(text)


def make_unknown_error(id_: str) -> ApiError:
    return ApiError(404, f"there is no {id_[:80]!r}")
