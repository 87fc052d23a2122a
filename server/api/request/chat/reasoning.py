"""Reads how much a chat's model thinks before it answers, and where its reasoning goes. Pure; any thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.errors import ApiError
from server.records import record

FORMS = {"none": "none", "auto": "split", "deepseek": "split", "deepseek-legacy": "legacy"}
MAX_MESSAGE = 10_000  # characters of `reasoning_budget_message`


@record(frozen=True)
class ReasoningWish:
    """How a request wants reasoning. `form` is the parser's: "none" leaves it in the text, "split" takes it out,
    "legacy" does both. `budget` is the most tokens of reasoning, -1 for no limit. After them, `message` ends the
    reasoning."""

    form: str
    budget: int
    message: str


def read_reasoning(values: Mapping[str, Any], variables: Mapping[str, Any]) -> ReasoningWish:
    """The wish of a chat with these fields and template variables. ApiError 400."""
    form, message = values["reasoning_format"], values["reasoning_budget_message"]
    if form not in FORMS:
        raise ApiError(400, f"reasoning_format: {form[:40]!r} is unknown; use one of {', '.join(FORMS)}")
    if len(message) > MAX_MESSAGE:
        raise ApiError(400, f"reasoning_budget_message: {len(message)} characters are too many, at most {MAX_MESSAGE}")
    is_off = variables.get("enable_thinking") is False
    return ReasoningWish(FORMS[form], 0 if is_off else values["reasoning_budget_tokens"], message)


def make_reasoning_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """The template variables of these fields. `server.chat.variables` maps them to the names that a template uses."""
    effort, is_enabled = values["reasoning_effort"], values["enable_thinking"]
    if is_enabled is None and (effort == "none" or values["reasoning_budget_tokens"] == 0):
        is_enabled = False
    return {
        **({} if is_enabled is None else {"enable_thinking": is_enabled}),
        **({"reasoning_effort": effort} if effort and not (effort == "none" and is_enabled) else {}),
    }
