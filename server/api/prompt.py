"""The `prompt` of a request in all its forms, as token ids. Pure functions of the body and the vocabulary."""

from __future__ import annotations

from server.api.context import Vocab
from server.api.schema import token_id
from server.errors import ApiError

FORMS = "prompt: give a string, a list of strings and token ids, {\"prompt_string\": text}, or a list of those"
MAX_PROMPTS = 1024


def read_prompts(prompt: object, vocab: Vocab, add_special: bool, strings_are_one: bool,
                 ) -> tuple[list[tuple[int, ...]], bool]:
    """Token ids of every prompt, and whether they came as a list (then the answer is a list too).

    A list of strings and ids is one sequence; a list with lists or objects in it is a list of prompts. A list of
    strings alone is one sequence in the 2024 documents (`strings_are_one`) and a list of prompts today.
    """
    if isinstance(prompt, list) and prompt:
        if any(isinstance(part, (list, dict)) for part in prompt):
            is_list = True
        else:
            is_list = not strings_are_one and len(prompt) > 1 and all(isinstance(part, str) for part in prompt)
        if is_list:
            if len(prompt) > MAX_PROMPTS:
                raise ApiError(400, f"prompt: {len(prompt)} prompts are too many, at most {MAX_PROMPTS} are allowed")
            return [prompt_tokens(part, vocab, add_special) for part in prompt], True
    return [prompt_tokens(prompt, vocab, add_special)], False


def prompt_tokens(prompt: object, vocab: Vocab, add_special: bool = True) -> tuple[int, ...]:
    """One prompt: a string, or a list of strings and token ids that make one sequence.

    BOS (and what else the model wants) is added where the first element is a string and the model's metadata asks for
    it. Special tokens written out in the text are recognised.
    """
    if isinstance(prompt, dict):
        if "multimodal_data" in prompt:
            raise ApiError(501, "this server was started without a multimodal projector (--mmproj)")
        prompt = prompt.get("prompt_string")
    if isinstance(prompt, str):
        return tuple(vocab.tokenize(prompt, add_special, True))
    if not isinstance(prompt, list):
        raise ApiError(400, FORMS)
    tokens: list[int] = []
    for i, part in enumerate(prompt):
        if isinstance(part, str):
            tokens += vocab.tokenize(part, add_special and i == 0, True)
        else:
            tokens.append(token_id("prompt", part, vocab))
    return tuple(tokens)
