"""The files of one folder (the web page), read on connection threads. No listing, nothing outside, nothing
hidden.

Whole files in memory: what belongs to a page is small, and one code path for all answers is worth more than
streaming. """

from __future__ import annotations

import os
import re
from pathlib import Path

from server.web.head import Headers
from server.web.message import Response

FILE_BYTES_MAX = 64 * 1024 * 1024

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
"""Not the stdlib's `mimetypes`: it reads the machine's own tables, and Windows registries say text/plain for
.js."""

SEGMENT = re.compile(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]*(?<![. ])")
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?",
                         re.IGNORECASE)
"""Windows opens a device under such a name in every folder."""


class StaticFiles:
    """Serves `folder` under `prefix`."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self._folder = folder.resolve()
        self._prefix = prefix.rstrip("/")

    def respond(self, path: str, headers: Headers) -> Response | None:
        """200 with the file, 304 if the client has it already, None if there is no such file. `path` is
        decoded."""
        file = self.find(path)
        if file is None:
            return None
        try:
            with open(file, "rb") as opened:
                stat = os.fstat(opened.fileno())
                if stat.st_size > FILE_BYTES_MAX:
                    return None
                etag = f'W/"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
                # no-cache means "ask each time": after an update of the server the page must not mix
                # versions.
                common = {"ETag": etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
                if _matches(headers.get("if-none-match", ""), etag):
                    return Response(304, b"", common)
                content_type = MIME_TYPES.get(file.suffix.lower(), "application/octet-stream")
                return Response(200, opened.read(), {"Content-Type": content_type, **common})
        except OSError:
            return None

    def find(self, path: str) -> Path | None:
        """The regular file below the folder that `path` names; None for anything else, whatever its
        spelling."""
        if not path.startswith(self._prefix + "/"):
            return None
        relative = path[len(self._prefix) + 1:]
        if not relative or relative.endswith("/"):
            relative += "index.html"
        segments = relative.split("/")
        if not all(SEGMENT.fullmatch(segment) and not DEVICE_NAME.fullmatch(segment) for segment in segments):
            return None
        try:
            file = self._folder.joinpath(*segments).resolve(strict=True)
            # After resolving links, so that neither they nor a spelling we did not think of lead out.
            return file if file.is_relative_to(self._folder) and file.is_file() else None
        except (OSError, ValueError, RuntimeError):
            return None


def _matches(if_none_match: str, etag: str) -> bool:
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in known or etag.removeprefix("W/") in known
