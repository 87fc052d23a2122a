"""Downloads one file.

Runs where `fetch` runs, while the file's lock is held. The data is written to `NAME.part`; `NAME.part.json` says which
version of the file it is. The file gets its name when it is complete and checked. After a broken connection the
download continues if the server still has that version, otherwise it starts again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from server.download.client import CHECKSUM_HEADERS, SHA256, SIZE_HEADER, Answer, Client, describe_url
from server.download.local import DownloadError, Trouble, check_space, describe_disk_error, format_megabytes
from server.records import field, record

MAGIC = b"GGUF"
BLOCK = 1 << 18  # bytes that are read at once
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)", re.ASCII)


@record(frozen=True)
class Wanted:
    """One file to download. `sha256` and `size` are set if they are known in advance.

    `is_cached`: `target` is in the cache, not at a path that the user has chosen.
    """

    url: str
    target: Path
    sha256: str = ""
    size: int | None = None
    is_cached: bool = True


@record(frozen=True)
class Facts:
    """A server's information about a file. `validator` is an entity tag or a date."""

    size: int | None = None
    validator: str = ""
    sha256: str = ""

    @classmethod
    def from_answer(cls, answer: Answer) -> Facts:
        """Read the headers of an answer. The size is the whole file's, even in a partial answer."""
        found = CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
        sizes = (
            answer.header(SIZE_HEADER),
            found[3] if found else "",
            answer.header("Content-Length") if answer.status == 200 else "",
        )
        size = next((int(text) for text in sizes if text.isascii() and text.isdigit()), None)
        tag = answer.header("ETag").strip()
        sums = (answer.header(name).strip('" ') for name in CHECKSUM_HEADERS)
        # a weak tag (W/"...") doesn't mean that the bytes are the same
        return cls(
            size,
            tag if tag.startswith('"') else answer.header("Last-Modified").strip(),
            next((text.lower() for text in sums if SHA256.fullmatch(text)), ""),
        )


@record
class Transfer:
    """The download of one file that doesn't exist yet."""

    client: Client
    wanted: Wanted
    part: Part = field(init=False)

    def run(self) -> str:
        """Download the file and give it its name. Return its sha256. DownloadError; after network errors the part that
        has arrived is kept."""
        self.part = Part(self.wanted)
        try:
            self.client.persist(self._try, lambda: self.part.size, self.wanted.target.name)
            self.part.flush()
        finally:
            self.part.close()
            self.client.progress.clear()
        os.replace(self.part.path, self.wanted.target)
        self.part.forget()
        return self.part.digest.hexdigest()

    def _try(self) -> None:
        if not self.part.is_whole:
            self._request()
        expected = self.wanted.sha256 or self.part.facts.sha256
        digest = self.part.digest.hexdigest()
        if expected and digest != expected:
            complaint = f"the downloaded data has the sha256 {digest}, not {expected}"
            if self.part.facts.size is None:  # the data may be incomplete: ask for the rest
                raise Trouble(complaint)
            is_pieced = self.part.is_pieced
            self.part.restart()
            if is_pieced:  # the pieces may be of two versions
                raise Trouble(complaint)
            raise DownloadError(
                f"{self.wanted.target.name}: {complaint}: correct the checksum if you gave one, or run this again"
            )
        if self.part.head != MAGIC:
            raise self._refuse_no_model("")

    def _request(self) -> None:
        headers = self.part.resume_headers()
        if not headers:
            self.part.restart()
        with self.client.open(self.wanted.url, headers) as answer:
            facts = Facts.from_answer(answer)
            self._check(answer, facts)
            if answer.status in (206, 416) and not self._is_continuation(answer, facts):
                self.part.restart()
                raise Trouble("the server has another version of the file, or sent a wrong part of it")
            if answer.status not in (206, 416):
                self.part.restart()
            self.part.begin(facts)
            if answer.status != 416:  # 416: the file is complete; its checksum is checked later
                self._receive(answer)

    def _check(self, answer: Answer, facts: Facts) -> None:
        """DownloadError if the headers show that the download would fail."""
        name, wanted = self.wanted.target.name, self.wanted
        packed = answer.header("Content-Encoding")
        if packed not in ("", "identity"):
            raise DownloadError(
                f"{name}: the server compresses the file ({packed[:20]}), although it was asked not to: use another URL"
            )
        is_other = wanted.sha256 and facts.sha256 not in ("", wanted.sha256)
        if is_other or wanted.size is not None and facts.size not in (None, wanted.size):
            raise DownloadError(
                f"{name}: the server has another version of the file ({facts.size} bytes, sha256 "
                f"{facts.sha256 or 'unknown'}): correct the checksum if you gave one, or run this again"
            )
        is_framed = answer.header("Transfer-Encoding").lower() == "chunked"
        if answer.status == 200 and facts.size is None and not (wanted.sha256 or facts.sha256 or is_framed):
            raise DownloadError(
                f"{name}: the server doesn't report the file's length, so an incomplete download could not be "
                "detected: give its checksum, or use another URL"
            )
        if facts.size is not None:
            check_space(wanted.target.parent, facts.size - (self.part.size if answer.status == 206 else 0))

    def _is_continuation(self, answer: Answer, facts: Facts) -> bool:
        """Whether a 206 continues the part that has arrived, or a 416 shows that it is complete, both for the same
        version."""
        part, before = self.part, self.part.facts
        found = CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
        if found is None or facts.sha256 and before.sha256 not in ("", facts.sha256):
            return False
        has_proof = bool(self.wanted.sha256 or before.sha256)
        if answer.status == 416:
            return facts.size == part.size and has_proof
        is_same = has_proof or (
            before.size in (None, facts.size) and (not facts.validator or before.validator in ("", facts.validator))
        )
        return is_same and found[1] is not None and int(found[1]) == part.size

    def _receive(self, answer: Answer) -> None:
        part, progress, size = self.part, self.client.progress, self.part.facts.size
        progress.start(self.wanted.target.name, part.size, size)
        while size is None or part.size < size:
            block = answer.body.read1(BLOCK if size is None else min(BLOCK, size - part.size))
            if not block:
                break
            part.append(block)
            progress.show(part.size)
            if len(part.head) == len(MAGIC) and part.head != MAGIC:
                raise self._refuse_no_model(answer.header("Content-Type"))
        if size is not None and part.size < size:
            raise Trouble(f"the connection ended after {format_megabytes(part.size)} of {format_megabytes(size)}")

    def _refuse_no_model(self, content_type: str) -> DownloadError:
        self.part.restart()
        if content_type.startswith("text/html"):
            return DownloadError(
                f"{describe_url(self.wanted.url)} is a web page, not a model: use the URL of the file itself "
                "(on Hugging Face "
                "the one with /resolve/, not /blob/)"
            )
        return DownloadError(
            f"{describe_url(self.wanted.url)} is not a GGUF file: use the URL of a file whose name ends in .gguf"
        )


class Part:
    """The data of a file that has arrived: `NAME.part`, and a note that says which version it is.

    Disk errors become DownloadError. `is_pieced`: the data came through several connections.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.path = wanted.target.with_name(wanted.target.name + ".part")
        self._note_path = self.path.with_name(self.path.name + ".json")
        self._url = hashlib.sha256(wanted.url.encode("utf-8", "surrogatepass")).hexdigest()
        self._reset()
        with self._guard_disk():
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._file = io.FileIO(os.open(self.path, flags, 0o666), "r+")
        noted = self._read_note()
        if noted:
            self.facts = noted
            with self._guard_disk():
                while block := self._file.read(BLOCK):
                    self._count(block)
        is_too_long = self.facts.size is not None and self.size > self.facts.size
        if is_too_long or self.head not in (b"", MAGIC):
            self.restart()

    @property
    def is_whole(self) -> bool:
        """Whether the data has the size that the server reported."""
        return self.size > 0 and self.size == self.facts.size

    def resume_headers(self) -> dict[str, str]:
        """The headers that ask for the missing data; empty if all is missing, or if the answer's version couldn't be
        checked."""
        validator = self.facts.validator
        if not self.size or not (validator or self._wanted.sha256):
            return {}
        self.is_pieced = True
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": validator} if validator else {})

    def begin(self, facts: Facts) -> None:
        """Write the note about the version whose data follows."""
        before = self.facts
        self.facts = Facts(facts.size, facts.validator or before.validator, facts.sha256 or before.sha256)
        note = {"url": self._url, **dataclasses.asdict(self.facts)}
        with self._guard_disk():
            self._note_path.write_text(json.dumps(note), "utf-8")

    def append(self, block: bytes) -> None:
        left = memoryview(block)
        while left:
            with self._guard_disk():
                n = self._file.write(left)
            self._count(left[:n])
            left = left[n:]

    def restart(self) -> None:
        """Drop all data. The note stays until `begin` replaces it."""
        with self._guard_disk():
            self._file.seek(0)
            self._file.truncate()
        self._reset()

    def flush(self) -> None:
        """Sync to the disk."""
        with self._guard_disk():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. Remove it, and its note, if it is empty."""
        self._file.close()
        if not self.size:
            with contextlib.suppress(OSError):
                self.path.unlink()
            self.forget()

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._note_path.unlink()

    def _reset(self) -> None:
        self.size, self.head, self.digest = 0, b"", hashlib.sha256()
        self.facts, self.is_pieced = Facts(), False

    def _count(self, block: bytes | memoryview) -> None:
        self.digest.update(block)
        self.size += len(block)
        self.head += bytes(block[: len(MAGIC) - len(self.head)])

    def _read_note(self) -> Facts | None:
        """The noted version of the data; None if there is no valid note for this URL."""
        try:
            note = json.loads(self._note_path.read_text("utf-8"))
            url, size, validator, checksum = (note[key] for key in ("url", "size", "validator", "sha256"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        is_sound = (size is None or type(size) is int) and type(validator) is type(checksum) is str
        return Facts(size, validator, checksum) if is_sound and url == self._url else None

    @contextlib.contextmanager
    def _guard_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DownloadError(describe_disk_error(error, self.path)) from None
