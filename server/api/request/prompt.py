"""Prompts as token ids. Connection thread.

First the `prompt` of a request in all its forms, then what these and rendered conversations become: tokens of texts,
special tokens that users can't forge, and files in between.
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
    """A `field` of a request, by its path; if it is one of a message, that one's number and its role."""

    field: str
    message: int | None = None
    role: str | None = None


class Source(Protocol):
    """What a prompt was made of, for those who want to know."""

    def place(self, pieces: Iterable[bytes | None], n_same: int) -> Place | None:
        """Whose text stands `n_same` bytes behind these first pieces of the prompt (None: a file); None if that isn't
        to be found out."""


@record(frozen=True)
class Prompt:
    """Token ids of one prompt, in which -1 stands for the first file of `media`, -2 for the second, and so on.
    `may_respell`: it has what the model wrote earlier, which comes back as text; see `Task`. Without a `source` it is
    the request's `prompt`."""

    tokens: tuple[int, ...]
    media: tuple[Media, ...] = ()
    may_respell: bool = False
    source: Source | None = None

    def place(self, vocab: Vocab, at: int, n_same: int) -> Place | None:
        """Whose text the token `at` is, `n_same` bytes behind its beginning; None if that isn't to be found out."""
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
    """Every prompt, and whether they came as a list (then the answer is a list too). Before anything is made of them
    `require_room` is told how many there are.

    A list of strings and ids is one sequence; a list with lists or objects in it is a list of prompts. A list of
    strings alone is one sequence in the 2024 documents (`strings_are_one`) and a list of prompts today. Images come
    with an object's `multimodal_data`, or with the body's `image_data` for a prompt that is one string.
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
            return [_one(part, vocab, add_special, files, f"prompt[{i}]") for i, part in enumerate(prompt)], True
    return [_one(prompt, vocab, add_special, files, "prompt")], False


def _one(prompt: object, vocab: Vocab, add_special: bool, files: Files, where: str) -> Prompt:
    if isinstance(prompt, dict) and prompt.get("multimodal_data") is not None:
        return with_files_in(with_files(prompt, where, files), vocab, add_special, files)
    return Prompt(prompt_tokens(prompt, vocab, add_special))


def with_files_in(parts: list, vocab: Vocab, add_special: bool, files: Files) -> Prompt:
    """The prompt of texts and numbers of files."""

    def tokenize(segments: list[tuple[str, bool]]) -> list[int]:
        return vocab.tokenize("".join(text for text, _ in segments), False, True)

    return join(parts, tokenize, files.media, special_ends(vocab, add_special))


def shown(prompt: object) -> object:
    """A prompt as answers repeat it: without the files in it."""
    if isinstance(prompt, list):
        return [shown(part) for part in prompt] if any(isinstance(part, dict) for part in prompt) else prompt
    if isinstance(prompt, Mapping) and "multimodal_data" in prompt:
        return {name: value for name, value in prompt.items() if name != "multimodal_data"}
    return prompt


def prompt_tokens(prompt: object, vocab: Vocab, add_special: bool = True) -> tuple[int, ...]:
    """One prompt: a string, or a list of strings and token ids that make one sequence.

    BOS (and what else the model wants) is added where the first element is a string and the model's metadata asks for
    it. Special tokens written out in the text are recognised.
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
            tokens.append(token_id("prompt", part, vocab))
    return tuple(tokens)


def token_id(name: str, value: object, vocab: Vocab) -> int:
    """`value` as a token id of this vocabulary, else ApiError 400 naming `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ApiError(400, f"{name}: {shorten(value)} is not a token id")
    if not 0 <= value < vocab.n_tokens:
        raise ApiError(
            400, f"{name}: there is no token {shorten(value)}; this vocabulary has 0 to {vocab.n_tokens - 1}"
        )
    return value


def with_images(prompt: str, image_data: object, files: Files, name: str = "prompt") -> list[Segments | int]:
    """A prompt of 2024, which came in the field `name`: `[img-12]` stands for the image of `image_data` whose `id` is
    12."""
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
    """A prompt of today: the markers of `prompt_string` stand for the files of `multimodal_data`, in order."""
    text, data = prompt.get("prompt_string"), prompt.get("multimodal_data")
    if not isinstance(text, str):
        raise ApiError(400, f"{where}.prompt_string is not a string")
    if not isinstance(data, list):
        raise ApiError(400, f"{where}.multimodal_data is not a list of files in base64")
    texts = text.split(DEFAULT_MARKER) if data else [text]
    if len(texts) - 1 != len(data):
        raise ApiError(
            400,
            f"{where}: prompt_string has {len(texts) - 1} markers {DEFAULT_MARKER}, multimodal_data {len(data)} files",
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
    """`tokenize_segments`, stretch by stretch where files are in between."""
    if not files.media:
        return Prompt(tuple(tokenize_segments(vocab, segments, bos_token, wants_bos)))
    add_special = wants_bos and not begins_with_bos(segments, bos_token)
    return join(
        files.split(segments),
        lambda stretch: tokenize_segments(vocab, stretch, bos_token, False),
        files.media,
        special_ends(vocab, add_special),
    )


def begins_with_bos(segments: Segments, bos_token: str) -> bool:
    """Whether the template itself has written the token that texts begin with."""
    return bool(bos_token and segments and not segments[0][1] and segments[0][0].startswith(bos_token))


def tokenize_segments(vocab: Vocab, segments: Segments, bos_token: str, wants_bos: bool = True) -> list[int]:
    """Token ids of a rendered prompt in which no user text has become a special token.

    Usually the whole text is tokenised at once, as the model has seen it in training. Only where that gives special
    tokens that the template itself didn't write, they are put in by hand between plain text. `wants_bos`: whether the
    model's BOS comes first where its metadata asks for it and the template (`bos_token`) hasn't written it.
    """
    text = "".join(part for part, _ in segments)
    add_special = wants_bos and not begins_with_bos(segments, bos_token)
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
    before, after = special_ends(vocab, add_special)
    if [token for token in tokens if vocab.is_control(token)] == [*before, *own, *after]:
        return tokens
    return [*before, *tokenize_between(vocab, segments, own), *after]


def tokenize_between(vocab: Vocab, segments: Segments, special: Sequence[int]) -> list[int]:
    """Tokens of the segments with those of `special` where the template has written their names, and nowhere else.

    What lies between two of them is tokenised as one piece, which is what the tokenizer does itself; so this is the
    same as tokenising the whole, but for names in users' text. (White space that some special tokens swallow stays.)
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


def special_ends(vocab: Vocab, add_special: bool) -> tuple[list[int], list[int]]:
    """The tokens that the model's metadata wants before and behind a text."""
    ends = vocab.tokenize("", add_special, True)
    n_before = 1 if ends[:1] == [vocab.bos] else 0
    return ends[:n_before], ends[n_before:]


def join(
    parts: Sequence[Segments | int],
    tokenize: Callable[[Segments], list[int]],
    media: Sequence[Media],
    ends: tuple[Sequence[int], Sequence[int]],
) -> Prompt:
    """The prompt of stretches and files between two ends; texts are tokenised one by one, as libmtmd does it."""
    tokens: list[int] = list(ends[0])
    files: dict[str, Media] = {}  # in order; one that stands in several places comes along once
    for part in parts:
        if isinstance(part, int):
            file = media[part]
            files.setdefault(file.hash, file)
            tokens.append(-1 - list(files).index(file.hash))
        elif part:
            tokens += tokenize(part)
    return Prompt((*tokens, *ends[1]), tuple(files.values()))
