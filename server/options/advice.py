"""The sampling settings that a model's file recommends (`general.sampling.*`), checked like values of options.

A load reads them. A value that its option would refuse is left out and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.options.row import Option, OptionError, convert
from server.options.table import OPTIONS

PREFIX = "general.sampling."
NAMES = {
    "sequence": "samplers",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temp": "temperature",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
"""llama.cpp's keys, without the prefix, and the request fields that they set."""
MAX_TEXT = 512  # characters of a text; llama.cpp reads no more
DIGITS = 7  # significant digits of a 32-bit float; the digits behind them are noise


def read_advice(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The recommended values by the names of request fields, and a line for each wrong value."""
    rows = {option.name: option for option in OPTIONS}
    advice: dict[str, Any] = {}
    faults = []
    for key, name in NAMES.items():
        if PREFIX + key in metadata:
            try:
                advice[name] = _convert_value(rows[name], PREFIX + key, metadata[PREFIX + key])
            except OptionError as error:
                faults.append(str(error))
    return advice, faults


def _convert_value(option: Option, key: str, value: object) -> object:
    if option.type not in (int, float):
        text = value if isinstance(value, str) and len(value) < MAX_TEXT else ""
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        text = ""
    else:
        text = f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
    if not text:
        raise OptionError(f"{key}: {str(value)[:40]!r} is not a valid value")
    return convert(option, key, text)
