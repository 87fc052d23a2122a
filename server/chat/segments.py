"""What goes into chat templates and what comes out of them: parts of messages, and text that knows who wrote it.

A leaf: handlers need it for every prompt, also where no template is ever compiled.
"""

from __future__ import annotations

Segments = list[tuple[str, bool]]
"""Text of a prompt in order: (text, whether a user typed it)."""


def plain_text(content: object) -> str:
    """The text of a message's content: a string, or its text parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if is_text(part))
    return content if isinstance(content, str) else ""


def is_text(part: object) -> bool:
    """Whether a content part is text."""
    return (
        isinstance(part, dict)
        and part.get("type", "text") in ("text", "input_text", "output_text")
        and isinstance(part.get("text"), str)
    )
