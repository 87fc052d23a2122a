"""POST /embedding, /embeddings and /v1/embeddings: vectors of texts. Runs on connection and `batch` threads.

The routes differ in the answer's shape. `/embedding` answers one string with an object (as llama-server did in 2024),
other input with a list. `/embeddings` always answers with that list, `/v1/embeddings` in OpenAI's shape. Vectors are
cut and normalised here, not on the engine's thread.
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
from server.api.request.prompt import Prompt, check_token_id, with_files, with_files_in, with_images
from server.engine.seam.task import Embed, Embedded
from server.errors import ApiError
from server.models.model import Model, Vocab
from server.web.message import Items, Request, Response

MAX_INPUTS = 2048  # OpenAI's limit
MAX_INT16 = 32760.0  # with embd_normalize 0, vectors are scaled to this largest absolute value, as in llama.cpp
EUCLIDEAN = 2  # embd_normalize for vectors of length 1
NUMBER_BYTES = 32  # bytes of memory for one number in three forms: received, normalised, and in the answer
MAX_BYTES = 512 << 20  # bytes of memory for the vectors of one request
FORMATS = ("float", "base64")
FORMS = "give a string, a list of strings, a list of token ids, or a list of lists of token ids"


class EmbeddingHandlers:
    def __init__(self, context: Context) -> None:
        self._context = context

    def answer_native(self, request: Request) -> Response:
        """Answers one string with `{"embedding": [...]}`, other input as `list` does."""
        model, body = self._read(request)
        if not isinstance(body.get("input", body.get("content")), str):
            return EMBEDDING.reply(self._answer(request, model, body), body)
        (rows,), _ = self.compute_vectors(request, model, read_embedding_fields(model, body))
        embedding = Items(map(list_of, rows)) if model.info.pooling == "none" else list_of(rows[0])
        return EMBEDDING.reply({"embedding": embedding}, body)

    def list(self, request: Request) -> Response:
        """Answers `[{"index", "embedding": [[...]]}, ...]`. Each input has a list of vectors: one if the model pools,
        else one per token."""
        model, body = self._read(request)
        return EMBEDDING.reply(self._answer(request, model, body), body)

    def answer_openai(self, request: Request) -> Response:
        """Answers `input` in OpenAI's shape, `content` as `list` does."""
        model, body = self._read(request)
        if body.get("input") is None and body.get("content") is not None:
            return EMBEDDING.reply(self._answer(request, model, body), body)
        if model.info.pooling == "none":
            raise ApiError(400, "this route needs one vector per text, but the server runs with --pooling none")
        values = read_embedding_fields(model, body)
        found, n_tokens = self.compute_vectors(request, model, values)
        vectors = [rows[0] for rows in found]
        encode = to_base64 if values["encoding_format"] == "base64" else list_of
        return EMBEDDING.reply(
            {
                "object": "list",
                "data": Items(
                    {"object": "embedding", "index": i, "embedding": encode(vector)} for i, vector in enumerate(vectors)
                ),
                "model": model.choose_name(values["model"]),
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            },
            body,
        )

    def _read(self, request: Request) -> tuple[Model, dict[str, Any]]:
        body = request.read_json_object()
        return self._context.models.get(body.get("model"), request), body

    def _answer(self, request: Request, model: Model, body: dict[str, Any]) -> Items:
        found, _ = self.compute_vectors(request, model, read_embedding_fields(model, body))
        return Items({"index": i, "embedding": [list_of(row) for row in rows]} for i, rows in enumerate(found))

    def compute_vectors(
        self, request: Request, model: Model, values: dict[str, Any]
    ) -> tuple[Sequence[Sequence[array]], int]:
        """Compute each input's vectors, cut and normalised; also returns the number of tokens of all inputs. Vectors of
        tokens (without pooling) and a reranker's scores aren't normalised."""
        files = Files(model, request)
        inputs = read_inputs(values["input"], model.vocab, files, values["image_data"])
        if files.media and model.info.pooling == "rank":
            raise ApiError(400, f"{files.media[0].where}: this model scores texts only, not files")
        n_rows = sum(len(one.tokens) for one in inputs) if model.info.pooling == "none" else len(inputs)
        hold_vectors(n_rows, model.info.n_embd)
        result = embed(self._context, model, request, inputs)
        n = values["dimensions"] or result.width
        if n > result.width:
            raise ApiError(400, f"dimensions: {n} is too many, this model's vectors have {result.width}")
        kind = values["embd_normalize"] if result.pooling not in ("none", "rank") else -1
        found = rows_of(result)
        if files.media and result.pooling == "mean":
            found = [[compute_mean(rows)] for rows in found]
        return (
            [[normalise(row[:n], kind) for row in rows] for rows in found],
            result.n_tokens or sum(len(one.tokens) for one in inputs),
        )


def hold_vectors(n_rows: int, width: int) -> None:
    """Reserve memory for `n_rows` vectors. ApiError 400 if they are too many for one request."""
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
    values = EMBEDDING.read(body, model.defaults)
    if values["encoding_format"] not in FORMATS:
        raise ApiError(400, f"encoding_format: {values['encoding_format'][:40]!r} is neither float nor base64")
    return values


def embed(context: Context, model: Model, request: Request, inputs: Sequence[Prompt]) -> Embedded:
    """Let the engine compute the vectors, and wait. A client that disconnects cancels this."""
    request.require_client()
    task = Embed(
        model.engine.make_id(),
        number_inputs(inputs),
        request.owner,
        tuple(media for prompt in inputs for media in prompt.media),
        request.in_background,
    )
    with (
        model.engine.submit(task, stream=False) as results,
        request.on_disconnect(results.cancel),
        context.running.keep_entry((request.id,), request.key_id, results.abort),
    ):
        return next(iter(results))


def read_inputs(value: Any, vocab: Vocab, files: Files, image_data: Any = None) -> list[Prompt]:
    """Read all inputs as tokens. ApiError 400 for a wrong type, too many inputs, or an input without tokens."""
    if value is None:
        raise ApiError(400, "input: this field (or content) is required")
    if image_data:
        if not isinstance(value, str):
            raise ApiError(400, "image_data needs a `content` that is one string")
        return [with_files_in(with_images(value, image_data, files, "content"), vocab, True, files)]
    is_one = not isinstance(value, list) or any(type(part) is int for part in value)
    parts = [value] if is_one else value
    if len(parts) > MAX_INPUTS:
        raise ApiError(400, f"input: {len(parts)} texts are too many, at most {MAX_INPUTS} are allowed")
    if not parts:
        raise ApiError(400, "input: the list is empty")
    names = ["input"] if is_one else [f"input[{i}]" for i in range(len(parts))]
    inputs = [_read_input(name, part, vocab, files) for name, part in zip(names, parts)]
    for name, one in zip(names, inputs):
        if not one.tokens:
            raise ApiError(400, f"{name}: the text is empty")
    return inputs


def _read_input(name: str, value: Any, vocab: Vocab, files: Files) -> Prompt:
    """Read one input: a text, a list of token ids and texts, or a text with files. An empty text becomes the special
    tokens that the model adds to every text, such as BOS, or CLS and SEP."""
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
            tokens.append(check_token_id(name, part, vocab))
    return Prompt(tuple(tokens))


def number_inputs(inputs: Sequence[Prompt]) -> tuple[tuple[int, ...], ...]:
    """The token ids of each input. Negative ids stand for files; they are made unique among all inputs."""
    n_media, found = 0, []
    for prompt in inputs:
        found.append(
            tuple(token if token >= 0 else token - n_media for token in prompt.tokens)
            if prompt.media
            else prompt.tokens
        )
        n_media += len(prompt.media)
    return tuple(found)


def compute_mean(rows: Sequence[array]) -> array:
    return array("f", [sum(column) / len(rows) for column in zip(*rows)])


def rows_of(result: Embedded) -> list[list[array]]:
    """The engine's bytes as a list of vectors for each input. ApiError 500 for numbers that aren't finite."""
    numbers = array("f", result.vectors)
    if not math.isfinite(sum(numbers)):
        raise ApiError(500, "the model computed numbers that are not finite")
    n, rows, at = result.width, [], 0
    for n_rows in result.n_rows:
        rows.append([numbers[i : i + n] for i in range(at, at + n_rows * n, n)])
        at += n_rows * n
    return rows


def normalise(row: array, kind: int) -> array:
    """Scale a vector. `kind` is a value of `embd_normalize`. A zero vector stays as it is."""
    if kind < 0:
        return row
    if kind == 0:
        length = max(map(abs, row)) / MAX_INT16
    elif kind == EUCLIDEAN:
        length = math.sqrt(sum(map(mul, row, row)))
    else:
        length = _compute_p_norm(row, kind)
    scale = 1.0 / length if length else 0.0
    return array("f", [number * scale for number in row])


def _compute_p_norm(row: array, p: int) -> float:
    """The largest number is factored out, so that high powers stay finite."""
    largest = max(map(abs, row))
    return largest * sum((abs(number) / largest) ** p for number in row) ** (1.0 / p) if largest else 0.0


def list_of(row: array) -> list[float]:
    return row.tolist()


def to_base64(row: array) -> str:
    """A vector as base64 of little-endian float32, OpenAI's form."""
    if sys.byteorder == "big":
        row = array("f", row)
        row.byteswap()
    return base64.b64encode(row.tobytes()).decode("ascii")
