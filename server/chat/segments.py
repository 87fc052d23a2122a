"""The input and output of chat templates: content parts of messages, and prompts in which users' text is marked.

Imports nothing of the project, since handlers need it even without a template.
"""

from __future__ import annotations

Segments = list[tuple[str, bool]]
"""The text of a prompt in order, as pairs: (text, whether it came from a user)."""


def read_plain_text(content: object) -> str:
    """The text of a message's content. Text parts are joined with line breaks, except around parts that stand for an
    image or a sound (`is_media`)."""
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
    return (
        isinstance(part, dict)
        and part.get("type", "text") in ("text", "input_text", "output_text")
        and isinstance(part.get("text"), str)
    )
