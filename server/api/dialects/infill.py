"""POST /infill: the text that belongs between a prefix and a suffix. Connection thread.

Builds the model's fill-in-the-middle prompt from its own tokens and goes on as a completion. Other files of the
project (`input_extra`) come first, with repository tokens where the vocabulary has them. It streams unless `stream`
is given, as the 2024 documents say.
"""

from __future__ import annotations

from server.api.dialects.dialect import Dialect
from server.api.dialects.native import NativeReply, default_ping_s
from server.api.request.fields import INFILL
from server.api.request.text_request import Incoming, TextRequest, text_request
from server.api.request.tokenization import Prompt
from server.errors import ApiError
from server.models.model import Model, Vocab

RESERVE = 16


def read_infill(incoming: Incoming) -> TextRequest:
    """POST /infill. ApiError 501 when the model has no fill-in-the-middle tokens."""
    model, body = incoming.model, incoming.body
    values, unread = INFILL.read(body, {**model.defaults, "stream": True}), INFILL.unread(body)
    prompt = infill_prompt(
        model,
        values["input_prefix"],
        values["input_suffix"],
        values["n_predict"],
        values["prompt"],
        values["input_extra"],
    )
    return text_request(
        incoming, values, [prompt], values["prompt"], default_ping_s=default_ping_s(incoming.context), warnings=unread
    )


def infill_prompt(
    model: Model, input_prefix: str, input_suffix: str, n_predict: int, begin: str = "", input_extra: object = ()
) -> Prompt:
    """The fill-in-the-middle prompt. `begin` is what the answer must begin with. ApiError 501 as above."""
    vocab = model.vocab
    missing = [name for name in ("pre", "suf", "mid") if name not in vocab.fim]
    if missing:
        raise ApiError(
            501,
            "Infill is not supported by this model: its vocabulary has no "
            f"{', '.join(missing)} token for filling in the middle",
        )
    prefix = vocab.tokenize(input_prefix, False, False) + vocab.tokenize(begin, False, False)
    suffix = vocab.tokenize(input_suffix, False, False)
    room = model.info.n_ctx_slot - RESERVE - max(n_predict, 0)
    prefix, suffix = fit(prefix, suffix, max(room, RESERVE))
    before, after = [vocab.fim["pre"], *prefix], [vocab.fim["suf"], *suffix]
    middle = [*after, *before] if model.options.spm_infill else [*before, *after]
    extra = extra_tokens(vocab, input_extra)[-max(room - len(middle), 0) :] if room > len(middle) else []
    bos = [vocab.bos] if vocab.add_bos and vocab.bos >= 0 else []
    return Prompt((*bos, *extra, *middle, vocab.fim["mid"]))


def extra_tokens(vocab: Vocab, files: object) -> list[int]:
    """The other files: repository form where the vocabulary has its tokens, plain snippets else."""
    if not isinstance(files, (list, tuple)):
        raise ApiError(400, "input_extra: give a list of objects with filename and text")
    tokens: list[int] = []
    for file in files:
        if not isinstance(file, dict) or not isinstance(file.get("text"), str):
            raise ApiError(400, "input_extra: every item needs a text")
        name = file.get("filename", "tmp")
        if not isinstance(name, str):
            raise ApiError(400, "input_extra: filename is not a string")
        if "rep" in vocab.fim and "sep" in vocab.fim:
            head = [vocab.fim["sep"], *vocab.tokenize(name + "\n", False, False)]
        else:
            head = vocab.tokenize("\n\n--- snippet ---\n\n", False, False)
        tokens += head + vocab.tokenize(file["text"], False, False)
    if "rep" in vocab.fim and "sep" in vocab.fim and tokens:
        repository = [vocab.fim["rep"], *vocab.tokenize("myproject\n", False, False)]
        return [*repository, *tokens, vocab.fim["sep"], *vocab.tokenize("filename\n", False, False)]
    return tokens


def fit(prefix: list[int], suffix: list[int], room: int) -> tuple[list[int], list[int]]:
    """The end of the prefix and the beginning of the suffix that fit into `room`: three parts to one if both are
    long."""
    if len(prefix) + len(suffix) <= room:
        return prefix, suffix
    n_suffix = min(len(suffix), max(room // 4, room - len(prefix)))
    n_prefix = min(len(prefix), room - n_suffix)
    return prefix[len(prefix) - n_prefix :], suffix[:n_suffix]


DIALECT = Dialect(read_infill, NativeReply)
