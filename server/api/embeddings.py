"""POST /embedding, /embeddings and /v1/embeddings: vectors of texts. Connection thread.

One computation, three answers. `/embedding` with one string gives the object of the 2024 documents, with a list the
list of today; `/embeddings` always gives that list; `/v1/embeddings` is OpenAI's. The engine's numbers are cut and
normalised here, so that its thread goes on computing.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Sequence
from operator import mul
from typing import Any

from server import memory
from server.api.context import Context
from server.api.request.fields import EMBEDDING
from server.api.request.media import Files
from server.api.request.prompt import Prompt, token_id, with_files, with_files_in, with_images
from server.engine.seam.task import Embed, Embedded
from server.errors import ApiError
from server.models.model import Model, Vocab
from server.web.message import Items, Request, Response

MAX_INPUTS = 2048  # OpenAI's limit
MAX_INT16 = 32760.0  # what the largest number becomes with the normalisation 0, as llama.cpp has it
EUCLIDEAN = 2
NUMBER_BYTES = 32  # as the engine sends it, as it is normalised, and in the answer
MAX_BYTES = 512 << 20
FORMATS = ("float", "base64")
FORMS = "give a string, a list of strings, a list of token ids, or a list of those lists"


class EmbeddingHandlers:
    """The routes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def native(self, request: Request) -> Response:
        """`{"embedding": [...]}` for one string (the 2024 documents), else the list of today."""
        model, body = self._read(request)
        if not isinstance(body.get("input", body.get("content")), str):
            return EMBEDDING.reply(self._answer(request, model, body), body)
        (rows,), _ = self.vectors(request, model, read_embedding_fields(model, body))
        embedding = Items(map(list_of, rows)) if model.info.pooling == "none" else list_of(rows[0])
        return EMBEDDING.reply({"embedding": embedding}, body)

    def list(self, request: Request) -> Response:
        """`[{"index", "embedding": [[...]]}, ...]`: a list of rows for each input, one if the model pools."""
        model, body = self._read(request)
        return EMBEDDING.reply(self._answer(request, model, body), body)

    def openai(self, request: Request) -> Response:
        """OpenAI's list; texts in `content` get the native one."""
        model, body = self._read(request)
        if body.get("input") is None and body.get("content") is not None:
            return EMBEDDING.reply(self._answer(request, model, body), body)
        if model.info.pooling == "none":
            raise ApiError(400, "Pooling type 'none' is not OAI compatible. Please use a different pooling type")
        values = read_embedding_fields(model, body)
        found, n_tokens = self.vectors(request, model, values)
        vectors = [rows[0] for rows in found]
        encode = to_base64 if values["encoding_format"] == "base64" else list_of
        return EMBEDDING.reply(
            {
                "object": "list",
                "data": Items(
                    {"object": "embedding", "index": i, "embedding": encode(vector)} for i, vector in enumerate(vectors)
                ),
                "model": model.name_for(values["model"]),
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            },
            body,
        )

    def _read(self, request: Request) -> tuple[Model, dict[str, Any]]:
        body = request.json_object()
        return self._context.models.get(body.get("model"), request), body

    def _answer(self, request: Request, model: Model, body: dict[str, Any]) -> Items:
        found, _ = self.vectors(request, model, read_embedding_fields(model, body))
        return Items({"index": i, "embedding": [list_of(row) for row in rows]} for i, rows in enumerate(found))

    def vectors(self, request: Request, model: Model, values: dict[str, Any]) -> tuple[Sequence[Sequence[array]], int]:
        """The rows of each input, cut and normalised, and the tokens of all inputs. Rows of tokens and scores of
        classes keep their sizes."""
        files = Files(model, request)
        inputs = read_inputs(values["input"], model.vocab, files, values["image_data"])
        if files.media and model.info.pooling == "rank":
            raise ApiError(400, f"{files.media[0].where}: this model gives scores of texts, and none of files")
        n_rows = sum(len(one.tokens) for one in inputs) if model.info.pooling == "none" else len(inputs)
        hold_vectors(n_rows, model.info.n_embd)
        result = embed(self._context, model, request, inputs)
        n = values["dimensions"] or result.width
        if n > result.width:
            raise ApiError(400, f"dimensions: {n} is more than this model has, {result.width}")
        kind = values["embd_normalize"] if result.pooling not in ("none", "rank") else -1
        found = rows_of(result)
        if files.media and result.pooling == "mean":
            found = [[mean(rows)] for rows in found]
        return (
            [[normalise(row[:n], kind) for row in rows] for rows in found],
            result.n_tokens or sum(len(one.tokens) for one in inputs),
        )


def hold_vectors(n_rows: int, width: int) -> None:
    """Count the memory for so many rows. ApiError 400 if that is too much for one request."""
    n_bytes = NUMBER_BYTES * n_rows * width
    if n_bytes > MAX_BYTES:
        raise ApiError(
            400,
            f"input: {n_rows:,} vectors of {width:,} numbers are too many, at most "
            f"{MAX_BYTES // NUMBER_BYTES // width:,} are allowed",
            reason="too_many",
        )
    memory.hold(n_bytes)


def read_embedding_fields(model: Model, body: dict[str, Any]) -> dict[str, Any]:
    """The checked fields."""
    values = EMBEDDING.read(body, model.defaults)
    if values["encoding_format"] not in FORMATS:
        raise ApiError(400, f"encoding_format: {values['encoding_format'][:40]!r} is neither float nor base64")
    return values


def embed(context: Context, model: Model, request: Request, inputs: Sequence[Prompt]) -> Embedded:
    """Have the engine compute; a client that hangs up takes its request along."""
    request.require_client()
    task = Embed(
        model.engine.new_id(),
        numbered(inputs),
        request.owner,
        tuple(media for prompt in inputs for media in prompt.media),
        request.in_background,
    )
    with (
        model.engine.submit(task, stream=False) as results,
        request.on_disconnect(results.cancel),
        context.running.entry((request.id,), request.key_id, results.abort),
    ):
        return next(iter(results))


def read_inputs(value: Any, vocab: Vocab, files: Files, image_data: Any = None) -> list[Prompt]:
    """Every input in any of the forms. ApiError 400 for what is none of them, and for what has no token."""
    if value is None:
        raise ApiError(400, "input: this field (or content) is required")
    if image_data:
        if not isinstance(value, str):
            raise ApiError(400, "image_data goes with a content that is one string")
        return [with_files_in(with_images(value, image_data, files, "content"), vocab, True, files)]
    is_one = not isinstance(value, list) or any(type(part) is int for part in value)
    parts = [value] if is_one else value
    if len(parts) > MAX_INPUTS:
        raise ApiError(400, f"input: {len(parts)} texts are too many, at most {MAX_INPUTS} are allowed")
    if not parts:
        raise ApiError(400, "input: the list is empty")
    names = ["input"] if is_one else [f"input[{i}]" for i in range(len(parts))]
    inputs = [_input(name, part, vocab, files) for name, part in zip(names, parts)]
    for name, one in zip(names, inputs):
        if not one.tokens:
            raise ApiError(400, f"{name}: the text is empty, and to this model's texts no token is added")
    return inputs


def _input(name: str, value: Any, vocab: Vocab, files: Files) -> Prompt:
    """One input: a text, a list of ids and texts that make one, or a text with files. An empty text is what the model
    adds to every text, such as BOS, or CLS and SEP."""
    if isinstance(value, dict) and value.get("multimodal_data"):
        return with_files_in(with_files(value, name, files), vocab, True, files)
    if isinstance(value, dict):
        value = value.get("prompt_string")
    if isinstance(value, str):
        return Prompt(tuple(vocab.tokenize(value, True, True)))
    if not isinstance(value, list):
        raise ApiError(400, f"{name}: {FORMS}")
    tokens: list[int] = []
    for i, part in enumerate(value):
        if isinstance(part, str):
            tokens += vocab.tokenize(part, i == 0, True)
        else:
            tokens.append(token_id(name, part, vocab))
    return Prompt(tuple(tokens))


def numbered(inputs: Sequence[Prompt]) -> tuple[tuple[int, ...], ...]:
    """Their token ids, with files numbered through all of them."""
    n_media, found = 0, []
    for prompt in inputs:
        found.append(
            tuple(token if token >= 0 else token - n_media for token in prompt.tokens)
            if prompt.media
            else prompt.tokens
        )
        n_media += len(prompt.media)
    return tuple(found)


def mean(rows: Sequence[array]) -> array:
    """Of rows of numbers, one row."""
    return array("f", [sum(column) / len(rows) for column in zip(*rows)])


def rows_of(result: Embedded) -> list[list[array]]:
    """The engine's bytes as rows of numbers, a list of them for each input."""
    numbers = array("f", result.vectors)
    if not math.isfinite(sum(numbers)):
        raise ApiError(500, "the model has computed numbers that are not finite")
    n, rows, at = result.width, [], 0
    for n_rows in result.n_rows:
        rows.append([numbers[i : i + n] for i in range(at, at + n_rows * n, n)])
        at += n_rows * n
    return rows


def normalise(row: array, kind: int) -> array:
    """A row of length 1 in the norm `kind` (see EMBEDDING_FIELDS). What is all zeros stays so."""
    if kind < 0:
        return row
    if kind == 0:
        length = max(map(abs, row)) / MAX_INT16
    elif kind == EUCLIDEAN:
        length = math.sqrt(sum(map(mul, row, row)))
    else:
        length = _p_norm(row, kind)
    scale = 1.0 / length if length else 0.0
    return array("f", [number * scale for number in row])


def _p_norm(row: array, p: int) -> float:
    """With the largest number taken out, so that high powers stay finite."""
    largest = max(map(abs, row))
    return largest * sum((abs(number) / largest) ** p for number in row) ** (1.0 / p) if largest else 0.0


def list_of(row: array) -> list[float]:
    """Numbers for JSON."""
    return row.tolist()


def to_base64(row: array) -> str:
    """Little-endian float32 in base64, as OpenAI sends it."""
    if sys.byteorder == "big":
        row = array("f", row)
        row.byteswap()
    return base64.b64encode(row.tobytes()).decode("ascii")
