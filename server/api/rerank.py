"""POST /rerank and its aliases: scores how well documents answer a query. Runs on a connection thread.

Each document becomes one input of the embedding context. The model's classification head computes its score; without
one, the score is the probability of the word "yes" rather than "no". Encoders read query and document with separators
between them. Generative rerankers have a template with `{query}` and `{document}` in their metadata. Documents in
`texts` get answers in the shape of Hugging Face's server; those in `documents` get Jina's and Cohere's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from server import memory
from server.api.context import Context
from server.api.embeddings import MAX_INPUTS, embed, rows_of
from server.api.request.fields import RERANK
from server.api.request.prompt import Prompt, tokenize_segments
from server.errors import ApiError
from server.model_files.rerankers import TEMPLATE_KEY
from server.models.model import Model, Vocab
from server.web.message import Request, Response

TOKEN_BYTES = 8  # bytes of memory for each token of a repeated head: a reference to an existing int
PLACES = re.compile(r"(\{query\}|\{document\})")


class RerankHandler:
    def __init__(self, context: Context) -> None:
        self._context = context

    def handle(self, request: Request) -> Response:
        """Scores, best first. ApiError 501 unless the model is a reranker."""
        body = request.read_json_object()
        model = self._context.models.get(body.get("model"), request)
        if model.info.pooling != "rank":
            raise ApiError(
                501,
                "this model can't rerank: start the server with a reranking model, and with --reranking if the "
                "model's file doesn't mark it as one",
            )
        values = RERANK.read(body)
        if not values["query"]:
            raise ApiError(400, "query: this field is required, and must not be empty")
        texts = read_document_texts(values["documents"])
        is_tei = body.get("documents") is None
        prompts = rank_prompts(model, values["query"], texts)
        found = rows_of(embed(self._context, model, request, prompts))
        scores = [[row.tolist() for row in rows][0] for rows in found]
        results = [
            make_result_json(model, i, scores[i], texts[i] if values["return_documents"] else None, is_tei)
            for i in sorted(range(len(texts)), key=lambda i: -scores[i][0])[: values["top_n"]]
        ]
        if is_tei:
            return RERANK.reply(results, body)
        n_tokens = sum(len(prompt.tokens) for prompt in prompts)
        return RERANK.reply(
            {
                "model": model.choose_name(values["model"]),
                "object": "list",
                "results": results,
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            },
            body,
        )


def make_result_json(model: Model, index: int, scores: list[float], text: str | None, is_tei: bool) -> dict[str, Any]:
    """The result of one document, with all classes' scores if the model names its classes."""
    result: dict[str, Any] = {"index": index, "score" if is_tei else "relevance_score": scores[0]}
    if text is not None:
        result |= {"text": text} if is_tei else {"document": {"text": text}}
    if model.info.classes:
        result["scores"] = dict(zip(model.info.classes, scores))
    return result


def read_document_texts(documents: object) -> list[str]:
    """The texts of the documents, which are strings or objects with a `text`. ApiError 400."""
    if not isinstance(documents, list) or not documents:
        raise ApiError(400, "documents: give a non-empty list of strings")
    if len(documents) > MAX_INPUTS:
        raise ApiError(400, f"documents: {len(documents)} are too many, at most {MAX_INPUTS} are allowed")
    texts: list[Any] = [document.get("text") if isinstance(document, dict) else document for document in documents]
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ApiError(400, f"documents[{i}]: this is neither a string nor an object with a `text`")
    return texts


def rank_prompts(model: Model, query: str, texts: Sequence[str]) -> list[Prompt]:
    """One prompt per text: by the model's template, else `[BOS] query [EOS] [SEP] text [EOS]`, without the special
    tokens that the model doesn't use."""
    vocab = model.vocab
    template = model.info.meta.get(TEMPLATE_KEY)
    if template:
        return [Prompt(tuple(render_tokens(vocab, template, query, text))) for text in texts]
    end = _keep_when(vocab.add_eos, _end(vocab))
    head = (
        *_keep_when(vocab.add_bos, vocab.bos),
        *vocab.tokenize(query, False, False),
        *end,
        *_keep_when(vocab.add_sep, vocab.sep),
    )
    memory.hold(TOKEN_BYTES * len(head) * len(texts))
    return [Prompt((*head, *vocab.tokenize(text, False, False), *end)) for text in texts]


def render_tokens(vocab: Vocab, template: str, query: str, text: str) -> list[int]:
    texts = {"{query}": (query, True), "{document}": (text, True)}
    segments = [texts.get(part, (part, False)) for part in PLACES.split(template) if part]
    return tokenize_segments(vocab, segments, "", wants_bos=False)


def _keep_when(is_wanted: bool, token: int) -> tuple[int, ...]:
    return (token,) if is_wanted and token >= 0 else ()


def _end(vocab: Vocab) -> int:
    return vocab.eos if vocab.eos >= 0 else vocab.sep
