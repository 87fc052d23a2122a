"""What handlers of all routes share beside the models. Made once by `serving`."""

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


def nobody(key_id: str) -> bool:
    """Whose key is an admin's, on a server without such keys."""
    return False


@record
class Context:
    """With `is_shared` there may be several users: none of them is shown what others ask. `recorder` is that of
    --record, None without. `library` is there where requests may fetch and remove models, with a key of which
    `is_admin` is true. `batches` is there where there is a folder for them."""

    models: Models
    options: ApiOptions
    started: int = field(default_factory=lambda: int(time.time()))
    is_shared: bool = False
    running: RunningRequests = field(default_factory=RunningRequests)
    refusals: Refusals = field(default_factory=Refusals)
    is_admin: Callable[[str], bool] = nobody
    library: Library | None = None
    batches: Batches | None = None
    stored: Store = field(default_factory=lambda: Store(0))
    known_models: KnownModels = field(default_factory=KnownModels)
    recorder: Recorder | None = None
    recordings: Recordings = field(default_factory=Recordings)
    cache_notes: CacheNotes = field(default_factory=CacheNotes)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set once the server has been asked to end."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def require_manager(self, request: Request, what: str) -> None:
        """ApiError 501 unless requests of an admin may do this, 403 without an admin's key."""
        if self.library is None:
            raise ApiError(501, f"requests may not {what} here: --manage-models and --admin-key allow it")
        if not self.is_admin(request.key_id):
            raise ApiError(403, f"to {what} needs a key of --admin-key")

    def keep_prompt(self, prompt: object) -> None:
        """`--log-prompts-dir`: write a request's prompt, text or JSON, into a file named after the time (ms)."""
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
