"""Serves the files of the web page, on connection threads. There are no listings; hidden files and files outside the
folders are not served.

If the user has set a folder, it comes first; files that it lacks (`/completion.js`) come from the built-in folder. Text
is compressed for each answer. Not taken: streaming files. Those of a page are small, and `Response` takes whole
bodies."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

from server.web.http1.head import Headers
from server.web.message import Response

FILE_BYTES_MAX = 64 * 1024 * 1024  # larger files are not served

MIME_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".gif": "image/gif",
    ".htm": "text/html; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".map": "application/json; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json; charset=utf-8",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
}
"""Not the standard library's `mimetypes`: it reads the system's tables, and some Windows registries have text/plain for
.js."""

SEGMENT = re.compile(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]*(?<![. ])")
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)
"""Windows opens a device for such a name in every folder."""

COMPRESSED_SUFFIXES = frozenset(
    (".css", ".htm", ".html", ".js", ".json", ".map", ".md", ".mjs", ".svg", ".txt", ".webmanifest")
)
COMPRESSED_BYTES_MIN = 1024
"""Smaller files are not compressed."""

BUILTIN_HEADERS = {"Content-Security-Policy": "frame-ancestors 'none'", "Referrer-Policy": "no-referrer"}
"""Headers of the built-in pages. Pages in the user's folder get neither."""


class StaticFiles:
    """Serves the files of `folder` under `prefix`, and from `builtin` those that `folder` lacks."""

    def __init__(self, folder: Path, prefix: str = "", builtin: Path | None = None) -> None:
        self._builtin = builtin.resolve() if builtin else None
        self._folders = [folder.resolve(), *([self._builtin] if self._builtin else ())]
        self._prefix = prefix.rstrip("/")

    def respond(self, path: str, headers: Headers) -> Response | None:
        """200 with the file, 304 if the client has it already, None if it can't be served. `path` is decoded."""
        file = self.find(path)
        if file is None:
            return None
        try:
            with open(file, "rb") as opened:
                stat = os.fstat(opened.fileno())
                if stat.st_size > FILE_BYTES_MAX:
                    return None
                etag = f'W/"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
                # no-cache means "ask each time": after an update of the server a page must not mix versions.
                common = {
                    "ETag": etag,
                    "Cache-Control": "no-cache",
                    "X-Content-Type-Options": "nosniff",
                    "Vary": "Accept-Encoding",
                }
                if self._builtin and file.is_relative_to(self._builtin):
                    common |= BUILTIN_HEADERS
                if _is_match(headers.get("if-none-match", ""), etag):
                    return Response(304, b"", common)
                suffix = file.suffix.lower()
                body = opened.read()
                if (
                    suffix in COMPRESSED_SUFFIXES
                    and len(body) >= COMPRESSED_BYTES_MIN
                    and can_accept_gzip(headers.get("accept-encoding", ""))
                ):
                    body = gzip.compress(body, 6, mtime=0)
                    common["Content-Encoding"] = "gzip"
                content_type = MIME_TYPES.get(suffix, "application/octet-stream")
                return Response(200, body, {"Content-Type": content_type, **common})
        except OSError:
            return None

    def find(self, path: str) -> Path | None:
        """The regular file that `path` names inside one of the folders; None for anything else."""
        if not path.startswith(self._prefix + "/"):
            return None
        relative = path[len(self._prefix) + 1 :]
        if not relative or relative.endswith("/"):
            relative += "index.html"
        segments = relative.split("/")
        if not all(SEGMENT.fullmatch(segment) and not DEVICE_NAME.fullmatch(segment) for segment in segments):
            return None
        return next(filter(None, (_find_regular_file(folder, segments) for folder in self._folders)), None)


def _find_regular_file(folder: Path, segments: list[str]) -> Path | None:
    try:
        file = folder.joinpath(*segments).resolve(strict=True)
        # Checked after links are resolved, so that neither a link nor an unusual spelling leads out of the folder.
        return file if file.is_relative_to(folder) and file.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def can_accept_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header names gzip, x-gzip or `*` with a weight above zero."""
    weights = {}
    for item in accept_encoding.lower().split(","):
        coding, *parameters = (part.strip() for part in item.split(";"))
        weight = next((part[2:].strip() for part in parameters if part.startswith("q=")), "1")
        weights[coding] = weight.strip("0.") != ""
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", False)))


def _is_match(if_none_match: str, etag: str) -> bool:
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in known or etag.removeprefix("W/") in known
