"""GET and POST /lora-adapters: the loaded adapters and their scales for requests that don't say otherwise."""

from __future__ import annotations

from server.api.completion import lora_scales
from server.api.context import Context
from server.api.fields import LORA
from server.web.message import Request, Response, json_response


class LoraHandlers:
    """Adapters are loaded at start (`--lora`); here only their scales change."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, request: Request) -> Response:
        """`[{"id", "path", "scale"}, ...]`."""
        return json_response(self._context.engine.command("get_lora")["adapters"])

    def set(self, request: Request) -> Response:
        """Take over `[{"id", "scale"}, ...]`; adapters that are not named are switched off."""
        self._context.engine.require_ready()
        body = request.json()
        scales = lora_scales(body, self._context)
        return LORA.reply(self._context.engine.command("set_lora", scales=tuple(scales.items()))["adapters"], body)
