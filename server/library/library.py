"""Downloads models for requests, and reports the progress to all requests that wait.

Connection threads start and watch downloads; a thread `download` runs each. Requests for the same model share one
download. It stops when no request waits for it, unless a request didn't want to wait (`is_kept`). The part that has
arrived stays on the disk, and the next download continues it. Files come only from the hub that the server's
environment names: a request names a repository, never a URL.

Not taken: a queue. More than `MAX_RUNNING` downloads at a time are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from server.download import DownloadError, Progress, fetch_model, fetch_projector
from server.errors import ApiError
from server.log import get_logger
from server.models.file_names import parse_repository
from server.models.removal import RemovalError, list_removable_files, remove_files
from server.records import field, record

if TYPE_CHECKING:
    from server.models.catalogue import ModelEntry

MAX_RUNNING = 4  # downloads at a time
RUNNING, FINISHED, FAILED, STOPPED = "downloading", "finished", "failed", "stopped"

log = get_logger("models")


class Stopped(Exception):
    """The download was stopped, or no request waits for it any more."""


@record(eq=False)
class Download:
    """One download. `done` of `file`'s `total` bytes (0: unknown) have arrived. `state` is one of the constants above,
    `reason` says why it has failed or stopped. `n_changes` counts changes of these fields."""

    name: str
    file: str = ""
    done: int = 0
    total: int = 0
    state: str = RUNNING
    reason: str = ""
    is_kept: bool = False
    n_watchers: int = 0
    n_changes: int = 0
    must_stop: threading.Event = field(default_factory=threading.Event)

    @property
    def has_ended(self) -> bool:
        return self.state != RUNNING

    def has_news(self, n_seen: int) -> bool:
        """Whether it has changed since `n_changes` was `n_seen`."""
        return self.n_changes != n_seen


class Library:
    """The running downloads. `changed` is called when a model has arrived, `tell` at each change of a download. `cache`
    is the folder of downloads, `folders` are further folders from which models may be removed. `token` is the access
    token for the hub."""

    def __init__(
        self,
        cache: Path,
        changed: Callable[[], None],
        tell: Callable[[Download], None],
        *,
        folders: Sequence[Path] = (),
        token: str | None = None,
        is_offline: bool = False,
    ) -> None:
        self.changed = changed
        self._cache = cache
        self._tell = tell
        self._roots = [cache / "models", *folders]
        self._token = token
        self._is_offline = is_offline
        self._news = threading.Condition()  # its lock guards all downloads
        self._running: dict[str, Download] = {}

    def download(self, name: str, is_kept: bool = False) -> Download:
        """Begin to download the repository `name`, or return its running download. ApiError 400 for a wrong name, 501
        if the server is offline, 503 for too many downloads."""
        if self._is_offline:
            raise ApiError(501, "this server downloads nothing (--offline)")
        repo = parse_repository(name)
        if repo is None:
            raise ApiError(400, "model: give a repository's name, USER/MODEL or USER/MODEL:QUANT, not a URL")
        with self._news:
            found = self._running.get(repo)
            if found is None or found.must_stop.is_set():
                if len(self._running) >= MAX_RUNNING:
                    raise ApiError(503, f"{MAX_RUNNING} downloads are running: try again when one has ended")
                found = self._running[repo] = Download(repo)
                threading.Thread(target=self._run, args=(found,), name="download", daemon=True).start()
            found.is_kept |= is_kept
            return found

    def list_running(self) -> list[Download]:
        with self._news:
            return list(self._running.values())

    def watch(self, download: Download, timeout_s: float) -> Generator[None]:
        """Yield now, at each change, and after `timeout_s` seconds without one, until the download has ended. Closing
        the last iterator of a download stops it, unless it `is_kept`."""
        with self._news:
            download.n_watchers += 1
        n_seen = -1
        try:
            while True:
                with self._news:
                    self._news.wait_for(partial(download.has_news, n_seen), timeout_s)
                    n_seen = download.n_changes
                    has_ended = download.has_ended
                yield
                if has_ended:
                    return
        finally:
            with self._news:
                download.n_watchers -= 1
                if not download.n_watchers and not download.is_kept:
                    download.must_stop.set()

    def stop(self, name: str) -> bool:
        """Have a model's download stop. Return whether there was one."""
        with self._news:
            found = self._running.get(parse_repository(name) or "")
            if found is not None:
                found.must_stop.set()
            return found is not None

    def check_removable(self, entry: ModelEntry, others: Sequence[ModelEntry]) -> None:
        """ApiError 400, with the reason, if a model's files can't be removed."""
        try:
            list_removable_files(entry, others, self._roots)
        except RemovalError as error:
            raise ApiError(400, str(error)) from None

    def remove(self, entry: ModelEntry, others: Sequence[ModelEntry]) -> None:
        """Remove a model's files, which no engine may have open. ApiError 400 or 500 if they can't be removed."""
        self.check_removable(entry, others)
        try:
            for path in remove_files(entry, others, self._roots):
                log.info("removed %s", path)
        except RemovalError as error:
            raise ApiError(500, str(error)) from None

    def close(self) -> None:
        """Have all downloads stop."""
        for download in self.list_running():
            download.must_stop.set()

    def _run(self, download: Download) -> None:
        report = Report(download, self._update)
        try:
            path = fetch_model(
                None, download.name, token=self._token, cache=self._cache, progress=report, sleep=report.sleep
            )
            fetch_projector(
                download.name, path, token=self._token, cache=self._cache, progress=report, sleep=report.sleep
            )
            self.changed()
            state, reason = FINISHED, ""
        except Stopped:
            state, reason = STOPPED, "the download has been stopped; what has arrived is kept"
        except DownloadError as error:
            state, reason = FAILED, str(error)
        except Exception as error:
            log.error("the download of %s has failed", download.name, exc_info=error)
            state, reason = FAILED, "the download has failed; the log says why"
        with self._news:
            if self._running.get(download.name) is download:
                del self._running[download.name]
        self._update(download, state=state, reason=reason)

    def _update(self, download: Download, **changes: object) -> None:
        with self._news:
            for name, value in changes.items():
                setattr(download, name, value)
            download.n_changes += 1
            self._news.notify_all()
        self._tell(download)


class Report(Progress):
    """Updates a `Download`, and raises `Stopped` when it has to stop."""

    def __init__(self, download: Download, update: Callable[..., None]) -> None:
        super().__init__(say=lambda line: log.info("%s", line))
        self._download = download
        self._update = update
        self._shown = 0.0

    def start(self, label: str, done: int, size: int | None) -> None:
        self._update(self._download, file=label, done=done, total=size or 0)

    def show(self, done: int) -> None:
        """Update the number of bytes, in steps of a thousandth of the file, but at least 1 MiB."""
        if self._download.must_stop.is_set():
            raise Stopped
        step = max(self._download.total // 1000, 1 << 20)
        if done == self._download.total or done - self._download.done >= step:
            self._update(self._download, done=done)

    def sleep(self, seconds: float) -> None:
        """Wait between two tries, or raise `Stopped`."""
        if self._download.must_stop.wait(seconds):
            raise Stopped
