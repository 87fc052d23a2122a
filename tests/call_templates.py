"""One chat template for each format of tool calls, by the model family's name; see `tests/unit/chat/family_templates`."""

from __future__ import annotations

from tests.unit.chat.family_templates import FAMILIES, FIREFUNCTION, GENERIC, NAMED

CALL_TEMPLATES = {**NAMED, **FAMILIES, "firefunction": FIREFUNCTION, "generic": GENERIC}
