"""What a model's file advises for sampling (`general.sampling.*`), checked as if it were said by options.

A leaf, used at start by the main thread. Nobody has looked at a downloaded file's values, so one that no option would
take is left out, and nothing else happens.
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
"""llama.cpp's keys, behind the prefix, and the fields of requests."""
MAX_TEXT = 512  # llama.cpp reads no more
DIGITS = 7  # of a 32-bit float; what comes behind them isn't what its author wrote


def read_advice(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The advised values by the names of request fields, and what is wrong with others, a line each."""
    rows = {option.name: option for option in OPTIONS}
    advice: dict[str, Any] = {}
    faults = []
    for key, name in NAMES.items():
        if PREFIX + key in metadata:
            try:
                advice[name] = _value(rows[name], PREFIX + key, metadata[PREFIX + key])
            except OptionError as error:
                faults.append(str(error))
    return advice, faults


def _value(option: Option, key: str, value: object) -> object:
    if option.type not in (int, float):
        text = value if isinstance(value, str) and len(value) < MAX_TEXT else ""
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        text = ""
    else:
        text = f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
    if not text:
        raise OptionError(f"{key}: {str(value)[:40]!r} is no value for it")
    return convert(option, key, text)
