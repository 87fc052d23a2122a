"""Finds the field of a request, such as a message's content, from which a position in the rendered prompt comes.

Connection thread, only to report where a prompt differs from the cached one. The conversation is rendered again, after
all letters and digits in each text of the request have been replaced by a letter of the text's own. The letter at the
position in the rendered text then identifies the field, whatever the template has done with the text. Other characters
stay, and so do roles, ids and names in tags, because templates depend on them. A position at such a character belongs
to the text around it.

Not taken: searching the prompt for the texts of the request. They often occur several times, or are cut, joined or
written as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from server.api.request.prompt import Place
from server.errors import ApiError
from server.records import record

Path = tuple[Any, ...]
FIRST, LAST = 0x20000, 0x2A6D6  # rare Chinese characters: they have no case, and Python prints them as they are
KEPT = frozenset(("role", "id", "tool_call_id", "type", "required"))
VARIABLES = ("tools", "documents")
TAG = re.compile(r"(<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\])")
STRING = re.compile(
    r'("(?:[^"\\]+|\\.?)*(?:"|\Z))', re.DOTALL
)  # also a string that isn't closed, so that matching takes linear time
ESCAPE = re.compile(r"(\\u[0-9a-fA-F]{4}|\\.)", re.DOTALL)
WORD = re.compile(r"\w")
MARKER = b"<__media_"
MAX_STRANGE = 8  # tokens that may be missing in the text, such as those that a model's metadata adds around it
SLACK = 16  # bytes of white space that the tokenizer may have dropped around special tokens
MAX_KEY, MAX_FIELD = 60, 200  # characters of a key, and of a whole field's path


@record(frozen=True)
class Leaf:
    """A text of the request: its field's path, and its characters before the first and behind the last replaced one."""

    path: Path
    head: str
    tail: str


class Rewriter:
    """Replaces each text's letters by a letter of its own, which isn't in `text`. `leaves` has the texts by letter."""

    def __init__(self, text: str) -> None:
        self.leaves: dict[str, Leaf] = {}
        taken = set(text)
        self._letters = (letter for letter in map(chr, range(FIRST, LAST + 1)) if letter not in taken)

    def rewrite(self, value: Any, path: Path) -> Any:
        """A copy of JSON data with replaced letters. Each text keeps its length."""
        if isinstance(value, str):
            return self._rewrite_text(value, path)
        if isinstance(value, (list, tuple)):
            return [self.rewrite(item, (*path, i)) for i, item in enumerate(value)]
        if not isinstance(value, dict) or value.get("is_media"):
            return value
        return {key: item if key in KEPT else self.rewrite(item, (*path, key)) for key, item in value.items()}

    def _rewrite_text(self, text: str, path: Path) -> str:
        letter = next(self._letters, "")
        if not letter:
            return text  # all letters are in use
        if path[-1] == "arguments":  # JSON text
            written = _rewrite_within(STRING, text, lambda part: _replace_between(ESCAPE, part, letter))
        else:
            written = _replace_between(TAG, text, letter)
        n_before = next((i for i, one in enumerate(written) if one == letter), 0)
        self.leaves[letter] = Leaf(path, text[:n_before], text[written.rfind(letter) + 1 :])
        return written


def _replace_between(pattern: re.Pattern[str], text: str, letter: str) -> str:
    """The text with all letters and digits replaced, except in matches of the pattern, which is one group."""
    return "".join(part if i % 2 else WORD.sub(letter, part) for i, part in enumerate(pattern.split(text)))


def _rewrite_within(pattern: re.Pattern[str], text: str, rewrite: Callable[[str], str]) -> str:
    return "".join(rewrite(part) if i % 2 else part for i, part in enumerate(pattern.split(text)))


@record(frozen=True)
class Origin:
    """A rendered conversation: its `text`, with markers instead of files, and `render`, which makes such a text of
    messages and variables. A position behind the text's end belongs to the next message, the answer."""

    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]
    text: str
    render: Callable[[Any, Any], str]

    def place(self, pieces: Iterable[bytes | None], n_same: int) -> Place | None:
        """See `prompt.Source`."""
        offset = find_offset(self.text, pieces, n_same)
        if offset is None:
            return None
        rewriter = Rewriter(self.text)
        messages = rewriter.rewrite(self.messages, ("messages",))
        variables = {
            name: rewriter.rewrite(value, (name,)) if name in VARIABLES else value
            for name, value in self.variables.items()
        }
        try:
            written = self.render(messages, variables)
        except ApiError:
            return None
        if offset >= len(written):
            return Place(f"messages[{len(messages)}].content", len(messages), "assistant")
        return self._find_owner(written, offset, rewriter.leaves)

    def _find_owner(self, written: str, at: int, leaves: Mapping[str, Leaf]) -> Place | None:
        text = self.text
        if any(a != b and b not in leaves for a, b in zip(text[: at + 1], written)):
            return None  # the template has rendered something different, so positions don't correspond
        end = min(len(text), len(written))
        behind = next((i for i in range(at, end) if written[i] in leaves), end)
        before = next((i for i in range(min(at, end) - 1, -1, -1) if written[i] in leaves), -1)
        last, following = leaves.get(written[before]) if before >= 0 else None, leaves.get(written[behind : behind + 1])
        if following is not None and (behind == at or following is last or following.head.endswith(text[at:behind])):
            return self._make_place(following.path)
        if last is not None and last.tail.startswith(text[before + 1 : at]):
            return self._make_place(last.path)
        return self._find_between(last.path if last else (), following.path if following else (), at)

    def _find_between(self, last: Path, following: Path, at: int) -> Place:
        """The field of a position between two texts: a role, an object that contains both, or the template itself."""
        n = next((i for i, (a, b) in enumerate(zip(last, following)) if a != b), min(len(last), len(following)))
        if n > 1:
            return self._make_place(last[:n])
        if following[:1] != ("messages",):
            return Place("chat_template")
        number = following[1]
        role = self.messages[number]["role"]
        is_role = _find_word_at(self.text, at) == role
        return Place(f"messages[{number}].role" if is_role else "chat_template", number, role)

    def _make_place(self, path: Path) -> Place:
        name = str(path[0])
        for part in path[1:]:
            name += f"[{part}]" if isinstance(part, int) else f".{str(part)[:MAX_KEY]}"
        number = path[1] if path[0] == "messages" else None
        return Place(name[:MAX_FIELD], number, None if number is None else self.messages[number]["role"])


def _find_word_at(text: str, at: int) -> str:
    before, behind = re.search(r"\w*$", text[max(at - 64, 0) : at]), re.match(r"\w*", text[at : at + 64])
    return (before.group() if before else "") + (behind.group() if behind else "")


def find_offset(text: str, pieces: Iterable[bytes | None], n_more: int = 0) -> int | None:
    """The number of characters of a text that its first tokens and `n_more` further bytes cover; None if the tokens
    don't match the text. A piece is a token's bytes, or None for a file, which the text has a marker for."""
    data, at, n_strange = text.encode("utf-8", "surrogatepass"), 0, 0
    for piece in pieces:
        if piece is None:
            start = data.find(MARKER, at, at + SLACK + len(MARKER))
            at = data.find(b">", start) + 1 if start >= 0 else at
        elif data.startswith(piece, at):
            at += len(piece)
        elif not at and data.startswith(piece.lstrip()):  # many tokenizers add a space at the beginning
            at = len(piece.lstrip())
        else:
            start = data.find(piece, at, at + SLACK + len(piece))
            n_strange += start < 0
            at = start + len(piece) if start >= 0 else at
        if n_strange > MAX_STRANGE:
            return None
    return len(data[: at + n_more].decode("utf-8", "ignore"))
