"""Routes for finding out why something is slow. They run on connection threads.

POST /debug/stacks returns the call stacks of all Python threads as text. It needs --debug-stacks, because stacks show
paths of this machine. GET /debug/cache shows what the prompt cache saved in the latest requests of this owner, and why
it saved no more.
"""

from __future__ import annotations

from server.api.context import Context
from server.errors import ApiError
from server.stacks import collect_stacks
from server.web.message import Request, Response, make_json_response


class DebugHandler:
    """`show_stacks` answers 501 without `--debug-stacks`, `show_cache` without `--slots`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def show_stacks(self, request: Request) -> Response:
        """The stacks of this process, then those of each engine's process."""
        if not self._context.options.debug_stacks:
            raise ApiError(501, "this server doesn't show its stacks: start it with --debug-stacks")
        text = collect_stacks("web process") + "\n" + self._context.models.collect_stacks()
        return Response(200, text.encode("utf-8", "replace"), {"Content-Type": "text/plain; charset=utf-8"})

    def show_cache(self, request: Request) -> Response:
        """Notes on the owner's latest requests to all models, or to the query's."""
        if not self._context.options.slots:
            raise ApiError(501, "This server does not support slots endpoint. Start it with `--slots`")
        name = request.query.get("model")
        model = self._context.models.get_known(name, request.key_id).name if name else None
        return make_json_response(self._context.cache_notes.report(request.owner, model))
