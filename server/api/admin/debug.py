"""What helps to find out why something is slow. Connection thread.

POST /debug/stacks: what every Python thread of the server is doing, as text. Off unless asked for with --debug-stacks:
it shows paths of this machine. GET /debug/cache: what the prompt cache did for the latest requests of the key that
asks, and what it could not do.
"""

from __future__ import annotations

from server.api.context import Context
from server.errors import ApiError
from server.stacks import stacks
from server.web.message import Request, Response, json_response


class DebugHandler:
    """`stacks` answers 501 unless the server was started with `--debug-stacks`, `cache` where slots are hidden."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def stacks(self, request: Request) -> Response:
        """This process first, then the engine's, if it has one of its own."""
        if not self._context.options.debug_stacks:
            raise ApiError(501, "This server doesn't show its stacks. Start it with `--debug-stacks`")
        text = stacks("web process") + "\n" + self._context.models.stacks()
        return Response(200, text.encode("utf-8", "replace"), {"Content-Type": "text/plain; charset=utf-8"})

    def cache(self, request: Request) -> Response:
        """All requests that are remembered for this key, or those to the model that the query names."""
        if not self._context.options.slots:
            raise ApiError(501, "This server does not support slots endpoint. Start it with `--slots`")
        name = request.query.get("model")
        model = self._context.models.known(name, request.key_id).name if name else None
        return json_response(self._context.cache_notes.report(request.owner, model))
