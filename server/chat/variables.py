"""The variables that templates read besides the messages. Pure except for the date; any thread.

Templates have different names for the same variable. Requests use `enable_thinking` and `reasoning_effort`; this module
converts them to the names and values that the template knows. Of the request's `chat_template_kwargs`, only efforts are
changed.

Dates have no time of day, so that a conversation's cached prefix can be reused all day.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

DATES = {"date_string": "%d %b %Y", "current_date": "%Y-%m-%d", "datetime": "%A, %Y-%m-%d"}
# variables that turn thinking on and off: (value for on, for off)
SWITCHES: dict[str, tuple[object, object]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "thinking_mode": ("enabled", "disabled"),
}
OFF_SWITCHES: dict[str, object] = {"thinking_budget": 0, "reasoning": False}  # set only to turn thinking off
ON_BY_DEFAULT = ("enable_thinking", "thinking")  # the other switches stay unset by default: the model decides
EFFORTS = ("reasoning_effort", "reasoning_strength", "thinking_effort")
ALIASES = {"enable_thinking": (*SWITCHES, *OFF_SWITCHES), "reasoning_effort": EFFORTS}
# effort -> values of the same meaning
SAME_EFFORTS = {"minimal": ("minimal", "low"), "xhigh": ("xhigh", "max"), "max": ("max", "xhigh")}
# effort -> the nearest values, for templates that refuse it
NEAREST_EFFORTS = {
    "minimal": ("low", "medium", "high"),
    "low": ("medium", "high"),
    "medium": ("high", "low"),
    "high": ("max", "medium"),
    "xhigh": ("high", "medium"),
    "max": ("high", "medium"),
}
NO_EFFORT = ("no_think", "none", "minimal")  # values for the effort "none"


def find_variables(
    names: Collection[str], given: Mapping[str, Any], find_effort: Callable[[str, str], str | None]
) -> dict[str, Any]:
    """The variables for a template that reads `names`. `given` are the request's; `find_effort` is the `Probe`'s."""
    found: dict[str, Any] = {}
    today = datetime.datetime.now()
    found |= {name: today.strftime(form) for name, form in DATES.items() if name in names}
    if "functions" in names and "tools" not in names:
        found["functions"] = write_functions(given.get("tools") or ())
    if "xml_tools" in names and given.get("tools"):
        found["xml_tools"] = given["tools"]
    found |= _make_switches(names, given)
    effort = given.get("reasoning_effort")
    efforts = {name: find_effort(name, effort) for name in EFFORTS if name in names} if isinstance(effort, str) else {}
    found = {**found, **given}
    for name, value in efforts.items():
        if value is None:
            found.pop(name, None)
        elif name == "reasoning_effort" or name not in given:
            found[name] = value
    return found


def _make_switches(names: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    wish = next((given[name] for name in ("enable_thinking", "thinking") if isinstance(given.get(name), bool)), None)
    if wish is None:
        return {name: True for name in ON_BY_DEFAULT if name in names}
    switches = {name: on if wish else off for name, (on, off) in SWITCHES.items() if name in names}
    return switches if wish else {**switches, **{name: off for name, off in OFF_SWITCHES.items() if name in names}}


def is_read(name: str, names: Collection[str]) -> bool:
    """Whether a template that reads `names` uses the request's variable `name`."""
    return any(alias in names for alias in (name, *ALIASES.get(name, ())))


def write_functions(tools: Sequence[Mapping[str, Any]]) -> str:
    """The tools as JSON text."""
    functions = [tool.get("function", tool) for tool in tools]
    return json.dumps(functions, indent=4, ensure_ascii=False)
