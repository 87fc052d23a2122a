"""The environment variables in which Vertex AI tells a container its port and paths.

With `AIP_MODE=PREDICTION` the server listens on the port `AIP_HTTP_PORT`, even if an option sets another one, because
the service reaches no other port. `AIP_HEALTH_ROUTE` is another path of /health, `AIP_PREDICT_ROUTE` the path of
predictions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server.options.row import Option, OptionError, convert

PATH = re.compile(r"/[\w.~:@/-]{0,500}", re.ASCII)


def read_vertex(environ: Mapping[str, str], port: Option) -> dict[str, Any]:
    """`health_route` and `predict_route` ("" for none), and in Vertex AI the port. OptionError for a wrong value."""
    if environ.get("AIP_MODE") != "PREDICTION":
        return {"health_route": "", "predict_route": ""}
    return {
        "port": convert(port, "AIP_HTTP_PORT", environ.get("AIP_HTTP_PORT") or "8080"),
        "health_route": _read_path(environ, "AIP_HEALTH_ROUTE", ""),
        "predict_route": _read_path(environ, "AIP_PREDICT_ROUTE", "/predict"),
    }


def _read_path(environ: Mapping[str, str], name: str, default: str) -> str:
    """The path in a variable. The first slash may be missing."""
    text = environ.get(name, "")
    if not text:
        return default
    path = text if text.startswith("/") else "/" + text
    if not PATH.fullmatch(path):
        raise OptionError(f"{name}: {text[:80]!r} is not a path of letters, digits and the characters / . ~ : @ - _")
    return path
