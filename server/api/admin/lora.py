"""GET and POST /lora-adapters: the scales of adapters for requests that set none. Runs on connection threads."""

from __future__ import annotations

from server.api.request.fields import LORA
from server.api.request.text_request import read_lora_scales
from server.models.models import Models
from server.web.message import Request, Response, make_json_response


class LoraHandlers:
    def __init__(self, models: Models) -> None:
        self._models = models

    def list(self, request: Request) -> Response:
        """`[{"id", "path", "scale"}, ...]`."""
        model = self._models.get(request.query.get("model"), request)
        return make_json_response(model.engine.run_command("get_lora")["adapters"])

    def set(self, request: Request) -> Response:
        """Set the scales of `[{"id", "scale"}, ...]`; adapters that aren't listed are switched off."""
        model = self._models.get(request.query.get("model"), request)
        body = request.read_json()
        scales = read_lora_scales(body, model)
        return LORA.reply(model.set_lora(tuple(scales.items())), body)
