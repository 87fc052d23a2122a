"""What the handlers of all routes share: the `Context` that `server/serving.py` makes."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from server.api.running import RunningRequests
from server.api.stored.cache_notes import CacheNotes
from server.api.stored.recordings import Recordings
from server.api.stored.store import Store
from server.errors import ApiError
from server.evidence.models import KnownModels
from server.log import get_logger
from server.metrics import Refusals
from server.models.models import Models
from server.records import field, record
from server.web.message import Request

if TYPE_CHECKING:
    from server.batches.runner import Batches
    from server.evidence.recorder import Recorder
    from server.library.library import Library
    from server.options.groups import ApiOptions

log = get_logger("api")


def is_never_admin(key_id: str) -> bool:
    """The `is_admin` of a server without admin keys."""
    return False


@record
class Context:
    """The shared objects and settings. Optional parts are None where the server runs without them."""

    models: Models
    options: ApiOptions
    started: int = field(default_factory=lambda: int(time.time()))
    """When the server started, in seconds since the epoch."""
    is_shared: bool = False
    """Whether there may be several users; then no user is shown another's requests."""
    running: RunningRequests = field(default_factory=RunningRequests)
    refusals: Refusals = field(default_factory=Refusals)
    is_admin: Callable[[str], bool] = is_never_admin
    """Whether the API key with this id is an admin's."""
    library: Library | None = None
    """Set where admins' requests may download and remove models (--manage-models)."""
    batches: Batches | None = None
    """Set where there is a folder for files and batches (--store-dir)."""
    stored: Store = field(default_factory=lambda: Store(0))
    known_models: KnownModels = field(default_factory=KnownModels)
    recorder: Recorder | None = None
    """Writes the file of --record."""
    recordings: Recordings = field(default_factory=Recordings)
    cache_notes: CacheNotes = field(default_factory=CacheNotes)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set once the server has been asked to stop."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def require_manager(self, request: Request, what: str) -> None:
        """ApiError 501 unless this server lets admins manage models, 403 unless the request's key is an admin's."""
        if self.library is None:
            raise ApiError(501, f"requests may not {what}: start the server with --manage-models and --admin-key")
        if not self.is_admin(request.key_id):
            raise ApiError(403, f"only a key of --admin-key may {what}")

    def keep_prompt(self, prompt: object) -> None:
        """With `--log-prompts-dir`, write a request's prompt (text or JSON) to a file there. Logs a failure."""
        folder = self.options.log_prompts_dir
        if not folder:
            return
        text = prompt if isinstance(prompt, str) else json.dumps(prompt, indent=2, ensure_ascii=False)
        path = Path(folder, f"{time.time_ns() // 10**6:012}-{next(self._numbers)}.txt")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8", "replace")
        except OSError as error:
            log.error("--log-prompts-dir: the prompt could not be written: %s", error)
