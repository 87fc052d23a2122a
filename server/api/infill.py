"""POST /infill: the text that belongs between a prefix and a suffix. Connection thread.

Builds the model's fill-in-the-middle prompt from its own tokens and goes on as a completion. Other files of the
project (`input_extra`) come first, with repository tokens where the vocabulary has them. It streams unless `stream`
is given, as the 2024 documents say.
"""

from __future__ import annotations

from server.api.completion import Completion, answer
from server.api.context import Context
from server.api.fields import INFILL, INFILL_FIELDS
from server.api.schema import read
from server.errors import ApiError
from server.web.message import EventStream, Request, Response

RESERVE = 16


class InfillHandler:
    """`handle` answers one request."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def handle(self, request: Request) -> Response | EventStream:
        """501 when the model has no fill-in-the-middle tokens."""
        self._context.engine.require_ready()
        body = request.json()
        values = read(body, INFILL_FIELDS)
        if body.get("stream") is None:
            body = {**body, "stream": True}
        completion = Completion(self._context, body, [self.prompt(values, body)])
        return answer(completion, request, INFILL.unread(body))

    def prompt(self, values: dict[str, object], body: dict[str, object]) -> tuple[int, ...]:
        """The tokens of the fill-in-the-middle prompt for checked INFILL_FIELDS. ApiError 501 as for `handle`."""
        vocab, options = self._context.engine.vocab, self._context.options
        missing = [name for name in ("pre", "suf", "mid") if name not in vocab.fim]
        if missing:
            raise ApiError(
                501,
                "Infill is not supported by this model: its vocabulary has no "
                f"{', '.join(missing)} token for filling in the middle",
            )
        values = read(values, INFILL_FIELDS)
        prefix = vocab.tokenize(values["input_prefix"], False, False) + vocab.tokenize(values["prompt"], False, False)
        suffix = vocab.tokenize(values["input_suffix"], False, False)
        n_predict = body.get("n_predict")
        room = (
            self._context.engine.info.n_ctx_slot
            - RESERVE
            - (n_predict if type(n_predict) is int and n_predict > 0 else 0)
        )
        prefix, suffix = fit(prefix, suffix, max(room, RESERVE))
        before, after = [vocab.fim["pre"], *prefix], [vocab.fim["suf"], *suffix]
        middle = [*after, *before] if options.spm_infill else [*before, *after]
        extra = self._extra(values["input_extra"])[-max(room - len(middle), 0) :] if room > len(middle) else []
        bos = [vocab.bos] if vocab.add_bos and vocab.bos >= 0 else []
        return (*bos, *extra, *middle, vocab.fim["mid"])

    def _extra(self, files: object) -> list[int]:
        """The other files: repository form where the vocabulary has its tokens, plain snippets else."""
        if not isinstance(files, (list, tuple)):
            raise ApiError(400, "input_extra: give a list of objects with filename and text")
        vocab = self._context.engine.vocab
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
