"""Converts prompts to token ids. Connection thread.

The first half reads the `prompt` of a request in all its forms. The second half tokenises rendered conversations so
that users' text can't become special tokens, and joins texts and files. A segment is a text, and whether a user wrote
it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from server.api.request.media import DEFAULT_MARKER, Files
from server.api.request.schema import shorten
from server.chat.segments import Segments
from server.engine.seam.task import Media
from server.errors import ApiError
from server.models.model import Vocab
from server.records import record

FORMS = 'prompt: give a string, a list of strings and token ids, {"prompt_string": text}, or a list of those'
MAX_PROMPTS = 1024
MESSAGE = re.compile(r"messages\[(\d+)\]")
OLD_MARKER = re.compile(r"\[img-([0-9]{1,18})\]")


@record(frozen=True)
class Place:
    """A `field` of a request, by its path; in a message, also the message's index and role."""

    field: str
    message: int | None = None
    role: str | None = None


class Source(Protocol):
    """Maps positions in a prompt to fields of the request."""

    def place(self, pieces: Iterable[bytes | None], n_same: int) -> Place | None:
        """`pieces` are the bytes of the prompt's first tokens (None for a file). Returns the field of the text `n_same`
        bytes behind them; None if it can't be found."""


@record(frozen=True)
class Prompt:
    """Token ids of one prompt, in which -1 stands for the first file of `media`, -2 for the second, and so on.
    `may_respell`: the prompt contains earlier answers as text; see `Task`. Without a `source`, `place` finds the field
    `prompt`."""

    tokens: tuple[int, ...]
    media: tuple[Media, ...] = ()
    may_respell: bool = False
    source: Source | None = None

    def place(self, vocab: Vocab, at: int, n_same: int) -> Place | None:
        """The field of the text `n_same` bytes behind the beginning of token `at`; None if it can't be found."""
        if self.tokens[at] < 0:
            where = self.media[-1 - self.tokens[at]].where
            found = MESSAGE.match(where)
            return Place(where, int(found[1]) if found else None)
        if self.source is None:
            return Place("prompt")
        return self.source.place((None if one < 0 else vocab.piece(one) for one in self.tokens[:at]), n_same)


def read_prompts(
    prompt: object,
    vocab: Vocab,
    add_special: bool,
    strings_are_one: bool,
    files: Files,
    require_room: Callable[[int], None],
    image_data: object = None,
) -> tuple[list[Prompt], bool]:
    """All prompts, and whether they came as a list, which makes the answer a list. `require_room` gets the number of
    listed prompts before they are tokenised, and may refuse it.

    A list of strings and ids is one prompt. A list that contains lists or objects is a list of prompts. A list of
    several strings is one prompt in llama-server's documents of 2024 (`strings_are_one`) and a list of prompts today.
    Files come in an object's `multimodal_data`, or in the body's `image_data` if the prompt is one string.
    """
    if image_data:
        if not isinstance(prompt, str):
            raise ApiError(400, "image_data goes with a prompt that is one string")
        return [with_files_in(with_images(prompt, image_data, files), vocab, add_special, files)], False
    if isinstance(prompt, list) and prompt:
        if any(isinstance(part, (list, dict)) for part in prompt):
            is_list = True
        else:
            is_list = not strings_are_one and len(prompt) > 1 and all(isinstance(part, str) for part in prompt)
        if is_list:
            if len(prompt) > MAX_PROMPTS:
                message = f"prompt: {len(prompt)} prompts are too many, at most {MAX_PROMPTS} are allowed"
                raise ApiError(400, message, reason="too_many")
            require_room(len(prompt))
            return [_read_one(part, vocab, add_special, files, f"prompt[{i}]") for i, part in enumerate(prompt)], True
    return [_read_one(prompt, vocab, add_special, files, "prompt")], False


def _read_one(prompt: object, vocab: Vocab, add_special: bool, files: Files, where: str) -> Prompt:
    if isinstance(prompt, dict) and prompt.get("multimodal_data") is not None:
        return with_files_in(with_files(prompt, where, files), vocab, add_special, files)
    return Prompt(tokenize_prompt(prompt, vocab, add_special))


def with_files_in(parts: list, vocab: Vocab, add_special: bool, files: Files) -> Prompt:
    def tokenize(segments: list[tuple[str, bool]]) -> list[int]:
        return vocab.tokenize("".join(text for text, _ in segments), False, True)

    return join(parts, tokenize, files.media, find_special_ends(vocab, add_special))


def strip_files(prompt: object) -> object:
    """A prompt as answers show it: without its files."""
    if isinstance(prompt, list):
        return [strip_files(part) for part in prompt] if any(isinstance(part, dict) for part in prompt) else prompt
    if isinstance(prompt, Mapping) and "multimodal_data" in prompt:
        return {name: value for name, value in prompt.items() if name != "multimodal_data"}
    return prompt


def tokenize_prompt(prompt: object, vocab: Vocab, add_special: bool = True) -> tuple[int, ...]:
    """The tokens of one prompt: a string, an object with `prompt_string`, or a list of strings and token ids.

    With `add_special`, BOS and other tokens that the model's metadata asks for are added if the prompt begins with a
    string. Names of special tokens in the text become these tokens. ApiError 400.
    """
    if isinstance(prompt, dict):
        prompt = prompt.get("prompt_string")
    if isinstance(prompt, str):
        return tuple(vocab.tokenize(prompt, add_special, True, may_cut=True))
    if not isinstance(prompt, list):
        raise ApiError(400, FORMS)
    tokens: list[int] = []
    for i, part in enumerate(prompt):
        if isinstance(part, str):
            tokens += vocab.tokenize(part, add_special and i == 0, True, may_cut=True)
        else:
            tokens.append(check_token_id("prompt", part, vocab))
    return tuple(tokens)


def check_token_id(name: str, value: object, vocab: Vocab) -> int:
    """`value` as a token id of this vocabulary; otherwise ApiError 400 for the field `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ApiError(400, f"{name}: {shorten(value)} is not a token id")
    if not 0 <= value < vocab.n_tokens:
        raise ApiError(
            400, f"{name}: there is no token {shorten(value)}; this vocabulary has 0 to {vocab.n_tokens - 1}"
        )
    return value


def with_images(prompt: str, image_data: object, files: Files, name: str = "prompt") -> list[Segments | int]:
    """A prompt with images in the format of 2024: in the text of the field `name`, `[img-12]` stands for the image in
    `image_data` whose `id` is 12."""
    ids: dict[int, int] = {}
    if not isinstance(image_data, list):
        raise ApiError(400, "image_data: give a list of objects with data and id")
    for i, item in enumerate(image_data):
        where = f"image_data[{i}]"
        if not isinstance(item, dict) or type(item.get("id")) is not int:
            raise ApiError(400, f"{where} is not an object with data and id")
        if item["id"] in ids:
            raise ApiError(400, f"{where}: the id {item['id']} is given twice")
        files.add_base64(item.get("data"), where)
        ids[item["id"]] = i
    parts: list[Segments | int] = []
    used: set[int] = set()
    for i, part in enumerate(OLD_MARKER.split(prompt)):
        if not i % 2:
            parts.append([(part, False)] if part else [])
        elif int(part) not in ids:
            raise ApiError(400, f"{name}: there is no image with the id {int(part)} for [img-{part}] in image_data")
        else:
            used.add(int(part))
            parts.append(ids[int(part)])
    unused = next((number for number in ids if number not in used), None)
    if unused is not None:
        raise ApiError(400, f"image_data[{ids[unused]}]: the {name} has no [img-{unused}]")
    return parts


def with_files(prompt: Mapping[str, Any], where: str, files: Files) -> list[Segments | int]:
    """A prompt with files in today's format: the markers in `prompt_string` stand for the files in `multimodal_data`,
    in order."""
    text, data = prompt.get("prompt_string"), prompt.get("multimodal_data")
    if not isinstance(text, str):
        raise ApiError(400, f"{where}.prompt_string is not a string")
    if not isinstance(data, list):
        raise ApiError(400, f"{where}.multimodal_data is not a list of files in base64")
    texts = text.split(DEFAULT_MARKER) if data else [text]
    if len(texts) - 1 != len(data):
        raise ApiError(
            400,
            f"{where}: prompt_string has {len(texts) - 1} markers {DEFAULT_MARKER}, but multimodal_data has "
            f"{len(data)} files",
        )
    first = len(files.media)
    for i, item in enumerate(data):
        files.add_base64(item, f"{where}.multimodal_data[{i}]")
    parts: list[Segments | int] = []
    for i, part in enumerate(texts):
        parts += [first + i - 1] if i else []
        parts.append([(part, False)] if part else [])
    return parts


def tokenize_all(vocab: Vocab, segments: Segments, bos_token: str, wants_bos: bool, files: Files) -> Prompt:
    """Tokenise segments, with `tokenize_segments` for each stretch between files."""
    if not files.media:
        return Prompt(tuple(tokenize_segments(vocab, segments, bos_token, wants_bos)))
    add_special = wants_bos and not has_bos(segments, bos_token)
    return join(
        files.split(segments),
        lambda stretch: tokenize_segments(vocab, stretch, bos_token, False),
        files.media,
        find_special_ends(vocab, add_special),
    )


def has_bos(segments: Segments, bos_token: str) -> bool:
    """Whether the template itself has written the BOS token."""
    return bool(bos_token and segments and not segments[0][1] and segments[0][0].startswith(bos_token))


def tokenize_segments(vocab: Vocab, segments: Segments, bos_token: str, wants_bos: bool = True) -> list[int]:
    """Token ids of a rendered prompt in which no text of a user has become a special token.

    Normally the whole text is tokenised at once, as in the model's training. If that yields special tokens that the
    template didn't write, the text is tokenised as plain text, and the template's special tokens are put between its
    parts. `wants_bos`: BOS comes first if the model's metadata asks for it and the template hasn't written `bos_token`.
    """
    text = "".join(part for part, _ in segments)
    add_special = wants_bos and not has_bos(segments, bos_token)
    tokens = vocab.tokenize(text, add_special, True, may_cut=True)
    if not any(is_user for _, is_user in segments):
        return tokens
    own = [
        token
        for part, is_user in segments
        if not is_user
        for token in vocab.tokenize(part, False, True)
        if vocab.is_control(token)
    ]
    before, after = find_special_ends(vocab, add_special)
    if [token for token in tokens if vocab.is_control(token)] == [*before, *own, *after]:
        return tokens
    return [*before, *tokenize_between(vocab, segments, own), *after]


def tokenize_between(vocab: Vocab, segments: Segments, special: Sequence[int]) -> list[int]:
    """Tokens of the segments, with the tokens of `special` only where the template has written their names.

    The text between two special tokens is tokenised as a whole, as the tokenizer itself does. So the result is that of
    tokenising the whole text, except for names of special tokens in users' text. (White space around special tokens
    that the tokenizer would drop stays.)
    """
    ids = {vocab.piece(token).decode("utf-8", "replace"): token for token in special}
    names = re.compile("|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True))) if ids else None
    tokens: list[int] = []
    plain = ""
    for part, is_user in segments:
        at = 0
        for found in names.finditer(part) if names and not is_user else ():
            plain += part[at : found.start()]
            tokens += vocab.tokenize(plain, False, False, may_cut=True) if plain else []
            tokens.append(ids[found.group()])
            plain, at = "", found.end()
        plain += part[at:]
    return tokens + (vocab.tokenize(plain, False, False, may_cut=True) if plain else [])


def find_special_ends(vocab: Vocab, add_special: bool) -> tuple[list[int], list[int]]:
    """The tokens that the model's metadata asks for before and behind a text."""
    ends = vocab.tokenize("", add_special, True)
    n_before = 1 if ends[:1] == [vocab.bos] else 0
    return ends[:n_before], ends[n_before:]


def join(
    parts: Sequence[Segments | int],
    tokenize: Callable[[Segments], list[int]],
    media: Sequence[Media],
    ends: tuple[Sequence[int], Sequence[int]],
) -> Prompt:
    """The prompt made of lists of segments and of files, between two lists of tokens. Each list is tokenised by itself,
    as in libmtmd."""
    tokens: list[int] = list(ends[0])
    files: dict[str, Media] = {}  # by hash, in order; a file that occurs several times is sent once
    for part in parts:
        if isinstance(part, int):
            file = media[part]
            files.setdefault(file.hash, file)
            tokens.append(-1 - list(files).index(file.hash))
        elif part:
            tokens += tokenize(part)
    return Prompt((*tokens, *ends[1]), tuple(files.values()))
