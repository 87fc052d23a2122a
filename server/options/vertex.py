"""Vertex AI's variables: where that service asks a container. A leaf, used once at start by `parser`.

With `AIP_MODE=PREDICTION` the port is `AIP_HTTP_PORT`, also where an option names another one: nobody could reach that.
`AIP_HEALTH_ROUTE` is one more path of /health, `AIP_PREDICT_ROUTE` that of predictions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server.options.row import Option, OptionError, convert

PATH = re.compile(r"/[\w.~:@/-]{0,500}", re.ASCII)


def read_vertex(environ: Mapping[str, str], port: Option) -> dict[str, Any]:
    """`health_route` and `predict_route`, "" for none, and the port. OptionError for what can't be used."""
    if environ.get("AIP_MODE") != "PREDICTION":
        return {"health_route": "", "predict_route": ""}
    return {
        "port": convert(port, "AIP_HTTP_PORT", environ.get("AIP_HTTP_PORT") or "8080"),
        "health_route": _path(environ, "AIP_HEALTH_ROUTE", ""),
        "predict_route": _path(environ, "AIP_PREDICT_ROUTE", "/predict"),
    }


def _path(environ: Mapping[str, str], name: str, default: str) -> str:
    """A variable's path, which may come without its first slash."""
    text = environ.get(name, "")
    if not text:
        return default
    path = text if text.startswith("/") else "/" + text
    if not PATH.fullmatch(path):
        raise OptionError(f"{name}: {text[:80]!r} is no path of letters, digits and the signs / . ~ : @ - _")
    return path
