"""Routes of stored responses: GET, DELETE, /input_items and /cancel under /v1/responses/{id}; also
/v1/responses/input_tokens. Run on connection threads.

To a client, responses of another key don't exist. A response that was running when its server ended counts as failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.api.context import Context
from server.api.dialects.response_items import (
    FAILED,
    IN_PROGRESS,
    QUEUED,
    find_earlier_records,
    items_of_record,
    replay,
)
from server.api.dialects.responses import read_conversation, read_fields
from server.api.request.chat.messages import make_chat_prompt
from server.api.request.fields import RESPONSES
from server.api.request.media import Files
from server.api.stored.background import Runs
from server.api.tokens import count_tokens
from server.errors import ApiError
from server.web.message import EventStream, Request, Response, make_json_response

ORDERS = ("asc", "desc")
MAX_LIMIT, LIMIT = 100, 20  # items in one page of a list: at most, and by default
LOST = {"code": "server_error", "message": "the server ended before this response was complete"}


class ResponseHandlers:
    def __init__(self, context: Context, runs: Runs) -> None:
        self._context = context
        self._runs = runs

    def get(self, request: Request) -> Response | EventStream:
        """The response, or its stream again, after the event `starting_after`."""
        id_ = request.params["id"]
        is_streamed = request.query.get("stream", "").lower() in ("true", "1")
        after = number(request, "starting_after", -1, -1, 2**31) if is_streamed else -1
        run = self._runs.get(id_, request.key_id)
        if run is not None:
            return EventStream(run.stream(request, after)) if is_streamed else make_json_response(run.response)
        found = self._find(request)
        if not is_streamed:
            return make_json_response(found["response"])
        return EventStream(replay(found["response"], found.get("deltas", ()), found["was_begun"], after))

    def delete(self, request: Request) -> Response:
        """Delete a response; a running one is ended first. ApiError 503 if that takes too long."""
        id_ = request.params["id"]
        run = self._runs.get(id_, request.key_id)
        if run is not None and not run.cancel():
            raise ApiError(503, "this response hasn't ended yet; try again", headers={"Retry-After": "5"})
        self._find(request)
        self._context.stored.delete(id_, request.key_id)
        return make_json_response({"id": id_, "object": "response", "deleted": True})

    def cancel(self, request: Request) -> Response:
        """End a background response and return it with its text so far. A finished one stays as it is."""
        run = self._runs.get(request.params["id"], request.key_id)
        if run is not None:
            run.cancel()
            return make_json_response(run.response)
        response = self._find(request)["response"]
        if not response["background"]:
            raise ApiError(400, "only background responses can be cancelled")
        return make_json_response(response)

    def list_input_items(self, request: Request) -> Response:
        """Lists the items of the response's input, and before them those of all responses that it continues from."""
        self._find(request)
        *before, own = find_earlier_records(self._context, request.key_id, request.params["id"])
        items = [item for found in before for item in items_of_record(found)]
        return make_json_response(make_page(request, [*items, *own["input"]]))

    def count(self, request: Request) -> Response:
        body = request.read_json_object()
        models = self._context.models
        model = models.spell(body.get("model"), request)
        files = Files(model, request)
        conversation, _ = read_conversation(self._context, model, read_fields(model, body), files)
        chat = make_chat_prompt(model, conversation, files)
        answer = {"object": "response.input_tokens", "input_tokens": count_tokens(models, model, chat.prompt, request)}
        return RESPONSES.reply(answer, body, chat.warnings)

    def _find(self, request: Request) -> dict[str, Any]:
        """The stored response of the request's id. ApiError 404."""
        id_ = request.params["id"]
        found: dict[str, Any] | None = None
        if id_.startswith("resp_"):
            found = self._context.stored.get(id_, request.key_id)
        if found is None:
            raise ApiError(404, f"there is no response {id_[:80]!r}")
        response = found["response"]
        if response["status"] in (QUEUED, IN_PROGRESS):
            found["response"] = {**response, "status": FAILED, "error": LOST}
        return found


def make_page(request: Request, items: Sequence[Any], default: int = LIMIT, most: int = MAX_LIMIT) -> dict[str, Any]:
    """One page of a list, as the query wants it: `order`, `after` (the id of an item), `limit`."""
    order = request.query.get("order", "desc")
    if order not in ORDERS:
        raise ApiError(400, f"order: {order[:40]!r} is unknown; use one of {', '.join(ORDERS)}")
    limit = number(request, "limit", default, 1, most)
    ordered = list(items if order == "asc" else reversed(items))
    after = request.query.get("after")
    if after is not None:
        at = next((i for i, item in enumerate(ordered) if item["id"] == after), None)
        if at is None:
            raise ApiError(400, f"after: there is no item {after[:80]!r}")
        ordered = ordered[at + 1 :]
    data = ordered[:limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": len(ordered) > limit}


def number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A number from the query, or the default. ApiError 400."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise ApiError(400, f"{name}: {text[:40]!r} is not a number from {max(low, 0)} to {high}")
    return int(text)
