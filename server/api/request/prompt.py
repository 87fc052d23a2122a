"""The `prompt` of a request in all its forms, as token ids. Connection thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from server.api.request.media import DEFAULT_MARKER, Files
from server.api.request.schema import token_id
from server.api.request.tokenization import Prompt, join, special_ends
from server.chat.segments import Segments
from server.errors import ApiError
from server.models.model import Vocab

FORMS = 'prompt: give a string, a list of strings and token ids, {"prompt_string": text}, or a list of those'
MAX_PROMPTS = 1024
OLD_MARKER = re.compile(r"\[img-([0-9]{1,18})\]")


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
