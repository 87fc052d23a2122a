"""POST /debug/stacks: what every Python thread of the server is doing, as text. Connection thread.

Off unless asked for with --debug-stacks: it shows paths of this machine.
"""

from __future__ import annotations

from server.api.context import Context
from server.errors import ApiError
from server.stacks import stacks
from server.web.message import Request, Response


class DebugHandler:
    """`stacks` answers 501 unless the server was started with `--debug-stacks`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def stacks(self, request: Request) -> Response:
        """This process first, then the engine's, if it has one of its own."""
        if not self._context.options.debug_stacks:
            raise ApiError(501, "This server doesn't show its stacks. Start it with `--debug-stacks`")
        text = stacks("web process") + "\n" + self._context.models.stacks()
        return Response(200, text.encode("utf-8", "replace"), {"Content-Type": "text/plain; charset=utf-8"})
