"""POST /infill: writes the text between a prefix and a suffix. Runs on a connection thread.

The prompt joins both texts with the model's fill-in-the-middle tokens. Other files of the project (`input_extra`) come
first, with repository tokens if the vocabulary has them. With `--compat 2024` the answer is streamed unless `stream` is
false.
"""

from __future__ import annotations

from server.api.dialects.dialect import Dialect
from server.api.dialects.native import WAITING, NativeReply, get_default_ping_s
from server.api.request.fields import INFILL
from server.api.request.prompt import Prompt
from server.api.request.text_request import Incoming, TextRequest, make_text_request
from server.errors import ApiError
from server.models.model import Model, Vocab

RESERVE = 16  # tokens of the context that stay free beside prompt and answer
MAX_LETTER = 4  # most bytes of a character


def read_infill(incoming: Incoming) -> TextRequest:
    model, body = incoming.model, incoming.body
    values, unread = (
        INFILL.read(body, {**model.defaults, "stream": incoming.context.options.is_2024}),
        INFILL.list_unread(body),
    )
    prompt = make_infill_prompt(
        model,
        values["input_prefix"],
        values["input_suffix"],
        values["n_predict"],
        values["prompt"],
        values["input_extra"],
    )
    return make_text_request(
        incoming,
        values,
        [prompt],
        values["prompt"],
        default_ping_s=get_default_ping_s(incoming.context),
        warnings=unread,
    )


def make_infill_prompt(
    model: Model, input_prefix: str, input_suffix: str, n_predict: int, begin: str = "", input_extra: object = ()
) -> Prompt:
    """The fill-in-the-middle prompt. The answer continues prefix and `begin`. ApiError 501 if the vocabulary lacks a
    token for this."""
    vocab = model.vocab
    missing = [name for name in ("pre", "suf", "mid") if name not in vocab.fim]
    if missing:
        raise ApiError(501, f"this model can't fill in the middle: its vocabulary has no {', '.join(missing)} token")
    prefix = [*tokenize_part(vocab, input_prefix, is_end=True), *tokenize_part(vocab, begin, is_end=True)]
    suffix = tokenize_part(vocab, input_suffix, is_end=False)
    room = model.info.n_ctx_slot - RESERVE - max(n_predict, 0)
    prefix, suffix = fit(prefix, suffix, max(room, RESERVE))
    before, after = [vocab.fim["pre"], *prefix], [vocab.fim["suf"], *suffix]
    middle = [*after, *before] if model.options.spm_infill else [*before, *after]
    extra = tokenize_extra(vocab, input_extra, max(room - len(middle), 0))
    bos = [vocab.bos] if vocab.add_bos and vocab.bos >= 0 else []
    return Prompt((*bos, *extra, *middle, vocab.fim["mid"]))


def tokenize_part(vocab: Vocab, text: str, is_end: bool) -> list[int]:
    """Tokens of the end (or the beginning) of a text. Text that can't fit into the context anyway is not tokenized."""
    n = vocab.max_bytes // (2 * MAX_LETTER)
    return vocab.tokenize(text[-n:] if is_end else text[:n], False, False, must_fit=False)


def tokenize_extra(vocab: Vocab, files: object, room: int) -> list[int]:
    """Tokens of the other files; if more than `room`, the last ones. Files begin with repository tokens if the
    vocabulary has them, else with `--- snippet ---`. ApiError 400 if `files` is invalid."""
    if not isinstance(files, (list, tuple)):
        raise ApiError(400, "input_extra: a list of objects with filename and text is required")
    for file in files:
        if not isinstance(file, dict) or not isinstance(file.get("text"), str):
            raise ApiError(400, "input_extra: every item needs a text")
        if not isinstance(file.get("filename", ""), str):
            raise ApiError(400, "input_extra: filename is not a string")
    is_repository = "rep" in vocab.fim and "sep" in vocab.fim
    parts = [[vocab.fim["sep"], *vocab.tokenize("filename\n", False, False)]] if is_repository and files else []
    n_tokens = sum(map(len, parts))
    for file in reversed(files):
        if n_tokens >= room:
            break
        if is_repository:
            head = [vocab.fim["sep"], *vocab.tokenize(file.get("filename", "tmp") + "\n", False, False)]
        else:
            head = vocab.tokenize("\n\n--- snippet ---\n\n", False, False)
        parts.append(head + tokenize_part(vocab, file["text"], is_end=True))
        n_tokens += len(parts[-1])
    if is_repository and files:
        parts.append([vocab.fim["rep"], *vocab.tokenize("myproject\n", False, False)])
    tokens = [token for part in reversed(parts) for token in part]
    return tokens[max(len(tokens) - room, 0) :]


def fit(prefix: list[int], suffix: list[int], room: int) -> tuple[list[int], list[int]]:
    """The end of the prefix and the beginning of the suffix that fit into `room` tokens. If both are long, the prefix
    gets three quarters."""
    if len(prefix) + len(suffix) <= room:
        return prefix, suffix
    n_suffix = min(len(suffix), max(room // 4, room - len(prefix)))
    n_prefix = min(len(prefix), room - n_suffix)
    return prefix[len(prefix) - n_prefix :], suffix[:n_suffix]


DIALECT = Dialect(read_infill, NativeReply, waiting=WAITING)
