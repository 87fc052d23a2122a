"""What goes into chat templates and what comes out of them: parts of messages, and text that knows who wrote it.

A leaf: handlers need it for every prompt, also where no template is ever compiled.
"""

from __future__ import annotations

Segments = list[tuple[str, bool]]
"""Text of a prompt in order: (text, whether a user typed it)."""


def plain_text(content: object) -> str:
    """The text of a message's content: a string, or its text parts, each on lines of its own. What stands for an image
    or a sound (`is_media`) belongs to the line it is in."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts: list[str] = []
    breaks = has_text = False
    for part in filter(is_text, content):
        is_media = bool(part.get("is_media"))
        texts.append("\n" + part["text"] if breaks and not is_media else part["text"])
        has_text = has_text or part["text"] != ""
        breaks = has_text and not is_media
    return "".join(texts)


def is_text(part: object) -> bool:
    """Whether a content part is text."""
    return (
        isinstance(part, dict)
        and part.get("type", "text") in ("text", "input_text", "output_text")
        and isinstance(part.get("text"), str)
    )
