"""/v1/conversations: stored lists of items. Responses continue from them and are added to them. Runs on connection
threads.

To a client, conversations of another key don't exist. A conversation can grow until the store is full.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from server.api.context import Context
from server.api.dialects.response_items import N_TOKEN, with_ids
from server.api.dialects.responses import FOREIGN, ITEMS, check_metadata
from server.api.request.chat.parts import one_of
from server.api.request.fields import CONVERSATION
from server.api.stored.responses import make_page
from server.errors import ApiError
from server.web.message import Request, Response, make_json_response

MAX_ADDED = 20  # items in one request


class ConversationHandlers:
    def __init__(self, context: Context) -> None:
        self._context = context

    def create(self, request: Request) -> Response:
        body = {} if not request.body else request.read_json_object()
        values = CONVERSATION.read(body)
        check_metadata(values["metadata"])
        token = secrets.token_hex(N_TOKEN)
        id_ = "conv_" + token
        about = {
            "id": id_,
            "object": "conversation",
            "created_at": int(time.time()),
            "metadata": values["metadata"] or {},
        }
        found = {"conversation": about, "items": read_new_items(values["items"], token)}
        if not self._context.stored.put(id_, request.key_id, found):
            raise ApiError(503, "no room is left for this conversation (--store-size)", reason="memory")
        return CONVERSATION.reply(about, body)

    def get(self, request: Request) -> Response:
        return make_json_response(self._find(request)["conversation"])

    def update(self, request: Request) -> Response:
        """Replace the conversation's metadata."""
        body = request.read_json_object()
        values = CONVERSATION.read(body)
        check_metadata(values["metadata"])
        about = {"metadata": values["metadata"] or {}}
        self._change(request, lambda found: {**found, "conversation": {**found["conversation"], **about}})
        return CONVERSATION.reply(self._find(request)["conversation"], body)

    def delete(self, request: Request) -> Response:
        id_ = request.params["id"]
        if not id_.startswith("conv_") or not self._context.stored.delete(id_, request.key_id):
            raise make_unknown_error(id_)
        return make_json_response({"id": id_, "object": "conversation.deleted", "deleted": True})

    def list_items(self, request: Request) -> Response:
        return make_json_response(make_page(request, self._find(request)["items"]))

    def add_items(self, request: Request) -> Response:
        body = request.read_json_object()
        token = request.params["id"].partition("_")[2]
        added = read_new_items(CONVERSATION.read(body)["items"], token)
        self._change(request, lambda found: {**found, "items": [*found["items"], *added]})
        data = {"object": "list", "data": added, "has_more": False}
        ends = {"first_id": added[0]["id"], "last_id": added[-1]["id"]} if added else {}
        return CONVERSATION.reply({**data, **ends}, body)

    def get_item(self, request: Request) -> Response:
        for item in self._find(request)["items"]:
            if item["id"] == request.params["item"]:
                return make_json_response(item)
        raise make_unknown_error(request.params["item"])

    def delete_item(self, request: Request) -> Response:
        """Delete one item; answers with the conversation."""
        self.get_item(request)
        id_ = request.params["item"]
        self._change(request, lambda found: {**found, "items": [item for item in found["items"] if item["id"] != id_]})
        return self.get(request)

    def _find(self, request: Request) -> dict[str, Any]:
        id_ = request.params["id"]
        found: dict[str, Any] | None = self._context.stored.get(id_, request.key_id)
        if found is None or not id_.startswith("conv_"):
            raise make_unknown_error(id_)
        return found

    def _change(self, request: Request, change: Callable[[Any], object]) -> None:
        self._find(request)
        if not self._context.stored.change(request.params["id"], request.key_id, change):
            raise ApiError(503, "no room is left for this conversation (--store-size)", reason="memory")


def read_new_items(value: object, token: str) -> list[Any]:
    """Items of a request, each with an id by which it can be found."""
    if not isinstance(value, (list, type(None))):
        raise ApiError(400, "items: a list of items is required")
    if len(value or ()) > MAX_ADDED:
        raise ApiError(400, f"items: {len(value or ())} are too many, at most {MAX_ADDED} are allowed in one request")
    items = list(with_ids(value, f"{token}{secrets.token_hex(4)}", "items"))
    for i, item in enumerate(items):
        one_of((*ITEMS, *FOREIGN), item.get("type"), f"items[{i}].type")
    return items


def make_unknown_error(id_: str) -> ApiError:
    return ApiError(404, f"there is no {id_[:80]!r}")
