"""/v1/batches: starts, lists, shows and cancels batches. Runs on connection threads; `server.batches` does the work.

To a client, batches of another key don't exist.
"""

from __future__ import annotations

from typing import Any

from server.api.context import Context
from server.api.dialects.responses import check_metadata
from server.api.request.fields import BATCH
from server.api.stored.files import make_unknown_error, read_age, require_own
from server.api.stored.responses import make_page
from server.batches.batch import WINDOW, Asked, Batch
from server.batches.files import MAX_AGE_S, UPLOADED
from server.batches.lines import ENDPOINTS
from server.batches.runner import Batches
from server.errors import ApiError
from server.web.message import Request, Response, make_json_response


class BatchHandlers:
    def __init__(self, context: Context, batches: Batches) -> None:
        self._context, self._batches = context, batches

    def create(self, request: Request) -> Response:
        batches, body = self._batches, request.read_json_object()
        values = BATCH.read(body)
        check_metadata(values["metadata"])
        if values["endpoint"] not in ENDPOINTS:
            raise ApiError(
                400, f"endpoint: {str(values['endpoint'])[:80]!r} is unknown; use one of {', '.join(ENDPOINTS)}"
            )
        if values["completion_window"] != WINDOW:
            raise ApiError(400, f"completion_window: only {WINDOW!r} is supported")
        id_ = values["input_file_id"]
        file = batches.files.get(id_, request.key_id) if isinstance(id_, str) else None
        if file is None or file.purpose != UPLOADED:
            raise ApiError(400, f"input_file_id: there is no file {str(id_)[:80]!r} with the purpose {UPLOADED!r}")
        asked = Asked(
            request.key_id,
            file,
            values["endpoint"],
            values["metadata"] or {},
            _choose_age(values["output_expires_after"]),
        )
        return BATCH.reply(batches.create(asked).as_json(), body)

    def list(self, request: Request) -> Response:
        """Lists the key's batches, the newest first."""
        require_own(self._context, request)
        found = self._batches.list_of_key(request.key_id)
        return make_json_response(make_page(request, [batch.as_json() for batch in found]))

    def get(self, request: Request) -> Response:
        return make_json_response(self._find(request).as_json())

    def cancel(self, request: Request) -> Response:
        """Stop a batch. Answers written so far are kept."""
        batch = self._find(request)
        self._batches.cancel(batch)
        return make_json_response(batch.as_json())

    def _find(self, request: Request) -> Batch:
        id_ = request.params["id"]
        batch = self._batches.get(id_, request.key_id)
        if batch is None:
            raise make_unknown_error(id_)
        return batch


def _choose_age(said: Any) -> int:
    return MAX_AGE_S if said is None else read_age(said.get("anchor"), said.get("seconds"))
