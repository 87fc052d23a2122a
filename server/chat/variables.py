"""The variables that templates read besides the messages. Pure but for the date, on handler threads.

What a request gives (`chat_template_kwargs`) is stronger than anything here, but for `reasoning_effort` and
`enable_thinking`, which are also given under the names that a template has for them. Dates have no time of day: the
same conversation then gives the same prompt all day long, so the cache keeps it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

DATES = {"date_string": "%d %b %Y", "current_date": "%Y-%m-%d", "datetime": "%A, %Y-%m-%d"}
THINKING = ("enable_thinking", "thinking")
EFFORTS = ("reasoning_effort", "reasoning_strength", "thinking_effort")


def template_variables(names: frozenset[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a template that reads `names` gets, of what a request has given and what it hasn't."""
    today = datetime.datetime.now()
    found: dict[str, Any] = {name: today.strftime(form) for name, form in DATES.items() if name in names}
    if "functions" in names and "tools" not in names:
        found["functions"] = function_list(given.get("tools") or ())
    thinks = next((given[name] for name in THINKING if isinstance(given.get(name), bool)), True)
    found |= {name: thinks for name in THINKING if name in names}
    return {**found, **given}


def function_list(tools: Sequence[Mapping[str, Any]]) -> str:
    """Tools as one text, for templates that print it."""
    functions = [tool.get("function", tool) for tool in tools]
    return json.dumps(functions, indent=4, ensure_ascii=False)
