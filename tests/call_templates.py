"""One chat template for each form of calls, by the family's name; see `tests/unit/chat/family_templates`."""

from __future__ import annotations

from tests.unit.chat.family_templates import FAMILIES, FIREFUNCTION, GENERIC, NAMED

CALL_TEMPLATES = {**NAMED, **FAMILIES, "firefunction": FIREFUNCTION, "generic": GENERIC}
