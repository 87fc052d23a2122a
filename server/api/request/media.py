"""Images and sound in requests: makes a `Media` from base64, a data: URL, a file of `--media-path` or a network URL.

Connection thread. An image's header is checked, a sound's file is rewritten (`media_sounds`); the engine decodes both.
An error names the file's place in the request, such as `messages[1].content[0]`. Until a text is tokenised, a marker
stands for each file in it. Markers can't be guessed, so a marker that a user types stays text.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from server import memory
from server.api.request import remote_media
from server.api.request.media_kinds import BadFile, check_image, kind_of
from server.api.request.media_sounds import make_plain_sound
from server.chat.segments import Segments
from server.engine.seam.task import AUDIO, IMAGE, Media
from server.errors import ApiError
from server.models.model import Model
from server.records import field, record
from server.web.message import Request

MAX_FILES = 256  # in a request
SAMPLE_BYTES = 4 * 16_000  # of a second of decoded sound
MIB = 1 << 20
STEP = 1 << 20  # characters of base64 decoded at once
PARTS = {"image_url": IMAGE, "input_image": IMAGE, "input_audio": AUDIO}
DEFAULT_MARKER = "<__media__>"  # the marker that clients write into `prompt_string`, and that answers show
NOUNS = {IMAGE: "an image", AUDIO: "a sound"}
VERBS = {IMAGE: "see images", AUDIO: "hear sounds", None: "take images or sounds"}


@record
class Files:
    """The files of one request, in the order in which they were found. The methods `add_*` return the marker of a file.

    The files' bytes count into the memory of all requests (`server.memory`). The same base64 text or URL is read once.
    Files from the disk or network may have `--max-body` MiB together. ApiError if the client has left.
    """

    model: Model
    request: Request = field(default_factory=lambda: Request("POST", "/"))  # default: a request without a client
    media: list[Media] = field(default_factory=list)
    _by_source: dict[str, Media] = field(default_factory=dict)
    _n_brought: int = 0
    _key: str = field(default_factory=lambda: secrets.token_hex(8))

    def add_part(self, part: Mapping[str, Any], where: str) -> str:
        """Add the file of a chat message's part."""
        kind = PARTS[part["type"]]
        self._require(kind, where)
        value = part.get("input_audio" if kind is AUDIO else "image_url")
        if kind is AUDIO:
            data = value.get("data") if isinstance(value, dict) else None
            return self._add(kind, where, data, lambda: self._decode(data, where, "input_audio.data"))
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str):
            raise ApiError(400, f"{where}: image_url.url is not a string")
        return self.add_image(url, where)

    def add_image(self, url: str, where: str) -> str:
        self._require(IMAGE, where)
        return self._add(IMAGE, where, url, lambda: self._load(url, where))

    def add_base64(self, text: Any, where: str, kind: str | None = None) -> str:
        """Add a file in base64, which must be of this kind if one is given."""
        self._require(kind, where)
        return self._add(kind, where, text, lambda: self._decode(text, where, "it"))

    def add_bytes(self, data: bytes, where: str, kind: str) -> str:
        return self._add(kind, where, None, lambda: data)

    def _add(self, kind: str | None, where: str, source: Any, load: Callable[[], bytes]) -> str:
        """Add a file, which `load` reads unless the request has had the same source before."""
        if len(self.media) == MAX_FILES:
            raise ApiError(400, f"{where}: a request may have at most {MAX_FILES} images and sounds")
        self.request.require_client()
        media = self._by_source.get(source) if isinstance(source, str) else None
        if media is None:
            media = self._read(kind, load(), where)
            if isinstance(source, str):
                self._by_source[source] = media
        if kind not in (None, media.kind):
            raise ApiError(400, f"{where} is {NOUNS[media.kind]}, but {NOUNS[kind]} is expected")
        self.media.append(media)
        return f"<__media_{self._key}_{len(self.media) - 1}__>"

    def _read(self, kind: str | None, data: bytes, where: str) -> Media:
        """The checked `Media` of a file. ApiError 400."""
        import hashlib  # here, because most models take no media

        name = hashlib.sha256(data).hexdigest()
        try:
            found = kind_of(data)
            if kind not in (None, found):
                raise BadFile(f"is {NOUNS[found]}, but {NOUNS[kind]} is expected")
            self._require(found, where)
            if found is IMAGE:
                size = check_image(data, self.model.media.image_max_pixels * 10**6)
                return Media(found, data, name, where, size.n_bytes, size.width, size.height)
            data, seconds = make_plain_sound(data)
            return Media(found, data, name, where, int(seconds * SAMPLE_BYTES), seconds=seconds)
        except BadFile as error:
            raise ApiError(400, f"{where} {error}") from None

    def _decode(self, text: Any, where: str, what: str) -> bytes:
        data = decode(text, where, what)
        memory.hold(len(data))
        return data

    def _require(self, kind: str | None, where: str) -> None:
        info = self.model.info
        can = {IMAGE: info.vision, AUDIO: info.audio, None: info.vision or info.audio}
        if not can[kind]:
            advice = "" if can[None] else "; a model that can needs its projector (--mmproj)"
            raise ApiError(400, f"{where}: this model can't {VERBS[kind]}{advice}")

    def _load(self, url: str, where: str) -> bytes:
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            head, comma, text = url.partition(",")
            if not comma or not head.endswith(";base64"):
                raise ApiError(400, f"{where}: a data: URL must have base64, such as data:image/png;base64,...")
            return self._decode(text, where, "the data: URL")
        if scheme not in ("file", "http", "https"):
            raise ApiError(400, f"{where}: image_url.url is not a data:, file:, http: or https: URL")
        if scheme != "file" and not self.model.media.media_urls:
            raise ApiError(
                400, f"{where}: this server downloads no files (--media-urls is off); send the file as a data: URL"
            )
        if scheme == "file":
            return read_file(self.model.media.media_path, url, self._bring, where)
        try:
            return remote_media.fetch(url, self.model.media.max_mib * MIB, bring=self._bring)
        except remote_media.FetchError as error:
            raise ApiError(400, f"{where}: {error}") from None

    def _bring(self, n_bytes: int) -> None:
        """Count bytes that come from files or the network. ApiError if they are too many."""
        limit = self.model.media.max_mib
        self._n_brought += n_bytes
        if self._n_brought > limit * MIB:
            raise ApiError(400, f"the files that this request names have more than {limit} MiB together (--max-body)")
        memory.hold(n_bytes)

    # ---- texts with markers -----------------------------------------------------------------------------------

    def split(self, segments: Segments) -> list[Segments | int]:
        """Split segments at the markers into lists of segments and indexes of files. ApiError unless each file is there
        exactly once."""
        pattern = re.compile(f"<__media_{self._key}_([0-9]+)__>")
        found: list[Segments | int] = [[]]
        for text, is_user in segments:
            for i, part in enumerate(pattern.split(text)):
                if i % 2:
                    found += [int(part), []]
                elif part:
                    found[-1].append((part, is_user))
        numbers = [part for part in found if isinstance(part, int)]
        for i, media in enumerate(self.media):
            if numbers.count(i) != 1:
                raise ApiError(400, f"{media.where}: the chat template omits or repeats this file")
        return found

    def replace_markers(self, text: str) -> str:
        """A text as answers show it: each marker becomes `DEFAULT_MARKER`."""
        return re.sub(f"<__media_{self._key}_[0-9]+__>", DEFAULT_MARKER, text) if self.media else text


def decode(text: Any, where: str, what: str) -> bytes:
    """The bytes of a base64 text. It may begin with the head of a data: URL."""
    if not isinstance(text, str):
        raise ApiError(400, f"{where}: {what} is not a string in base64")
    if text[:5] == "data:":
        text = text.partition(",")[2]
    try:
        data = b"".join(_decode_pieces(text))
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{where}: {what} is not base64") from None
    if not data:
        raise ApiError(400, f"{where}: {what} is empty")
    return data


def _decode_pieces(text: str) -> Iterator[bytes]:
    """Decode base64 in pieces, so that other threads can run in between. White space is skipped."""
    rest = ""
    for at in range(0, len(text), STEP):
        piece = rest + "".join(text[at : at + STEP].split())
        n = max(len(piece) - 4, 0) // 4 * 4  # the last four characters may have padding
        if "=" in piece[:n][-2:]:
            raise binascii.Error("there is text behind the end")
        yield base64.b64decode(piece[:n], validate=True)
        rest = piece[n:]
    yield base64.b64decode(rest, validate=True)


def read_file(folder: str | None, url: str, bring: Callable[[int], None], where: str) -> bytes:
    """The bytes of a file in the folder of `--media-path`. `bring` gets the size before the file is read, and may
    refuse it. ApiError 400, also for a link that leads out of the folder."""
    if not folder:
        raise ApiError(400, f"{where}: this server reads no files for requests (--media-path is not set)")
    name = url[len("file:") :].lstrip("/")
    root = Path(folder).resolve()
    try:
        path = (root / name).resolve()
        if not name or "\0" in name or not path.is_relative_to(root) or not path.is_file():
            raise FileNotFoundError
        with open(path, "rb") as stream:
            n = os.fstat(stream.fileno()).st_size
            bring(n)
            return stream.read(n)
    except (OSError, ValueError, RuntimeError):
        raise ApiError(400, f"{where}: there is no file {name[:80]!r} in the folder of --media-path") from None
