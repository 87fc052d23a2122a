"""The reranking template of a model: the prompt that asks a text model whether a document fits a query.

Pure; used by the web process before it loads a model, and by the engine. The template is in the model's metadata as
`tokenizer.chat_template.rerank`, where llama.cpp's converter writes it. Older conversions of Qwen's rerankers lack it
and are recognised by architecture and name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HEADS = ("cls.weight", "cls.output.weight")
TEMPLATE_KEY = "tokenizer.chat_template.rerank"
QWEN_ARCHITECTURES = ("qwen3", "qwen3vl")
QWEN_NAMES = ("qwen3-reranker", "qwen3-vl-reranker")
NAME_KEYS = ("general.name", "general.basename")
# what llama.cpp's converter writes for Qwen's rerankers
QWEN_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def has_head(tensors: Iterable[str]) -> bool:
    """Whether a model with these tensors has a classification head."""
    return any(name.startswith(HEADS) for name in tensors)


def template_of(meta: Mapping[str, Any]) -> str:
    """The template, with `{query}` and `{document}` in it; "" if there is none."""
    template = meta.get(TEMPLATE_KEY)
    if isinstance(template, str) and template:
        return template
    names = [str(meta.get(key, "")).lower().replace(" ", "-") for key in NAME_KEYS]
    is_qwen = meta.get("general.architecture") in QWEN_ARCHITECTURES
    return QWEN_TEMPLATE if is_qwen and any(known in name for known in QWEN_NAMES for name in names) else ""


def with_template(meta: dict[str, str]) -> dict[str, str]:
    """Metadata with the template added, if there is one."""
    template = template_of(meta)
    return {**meta, TEMPLATE_KEY: template} if template else meta
