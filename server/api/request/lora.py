"""The `lora` of requests: which adapters, and how strong. Connection thread, pure.

Adapters are loaded at start (`--lora`); requests and /lora-adapters choose their scales.
"""

from __future__ import annotations

from server.api.request.schema import as_float
from server.errors import ApiError
from server.models.model import Model

MAX_SCALE = 1000.0  # of an adapter: far beyond use, and far from overflowing the model's numbers


def read_lora(value: object, model: Model) -> tuple[tuple[int, float], ...] | None:
    """A request's `lora` list as (adapter, scale) pairs, None when it is absent."""
    if value is None:
        return None
    return tuple(sorted((i, scale) for i, scale in lora_scales(value, model).items() if scale))


def lora_scales(value: object, model: Model) -> dict[int, float]:
    """`[{"id", "scale"}, ...]` checked against the loaded adapters."""
    if not isinstance(value, list):
        raise ApiError(400, "lora: give a list of objects with id and scale")
    scales: dict[int, float] = {}
    n = len(model.info.adapters)
    for item in value:
        if not isinstance(item, dict) or type(item.get("id")) is not int or not 0 <= item["id"] < n:
            raise ApiError(400, f"lora: {str(item)[:60]} names no adapter; this server has {n}, ids start at 0")
        scale = item.get("scale", 0.0)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise ApiError(400, f"lora: the scale of adapter {item['id']} is not a number")
        scales[item["id"]] = as_float("lora", scale)
        if abs(scale) > MAX_SCALE:
            raise ApiError(
                400,
                f"lora: the scale of adapter {item['id']} is out of range, allowed is {-MAX_SCALE:g} to {MAX_SCALE:g}",
            )
    return scales
