"""How to ask a reranker that is an ordinary text model what it thinks of a document: the template of its question.

Pure; used by the web process, which looks at files before they are loaded, and by the engine. Only metadata decides:
a model that has a template brings it as `tokenizer.chat_template.rerank`, as llama.cpp's converter writes it. Older
conversions of Qwen's rerankers lack it, and are known by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HEADS = ("cls.weight", "cls.output.weight")
TEMPLATE_KEY = "tokenizer.chat_template.rerank"
QWEN_ARCHITECTURES = ("qwen3", "qwen3vl")
QWEN_NAMES = ("qwen3-reranker", "qwen3-vl-reranker")
NAME_KEYS = ("general.name", "general.basename")
# what llama.cpp's converter writes for them, after the models' documentation
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
    """The template, with `{query}` and `{document}` in it; "" if the metadata says nothing."""
    template = meta.get(TEMPLATE_KEY)
    if isinstance(template, str) and template:
        return template
    names = [str(meta.get(key, "")).lower().replace(" ", "-") for key in NAME_KEYS]
    is_qwen = meta.get("general.architecture") in QWEN_ARCHITECTURES
    return QWEN_TEMPLATE if is_qwen and any(known in name for known in QWEN_NAMES for name in names) else ""


def with_template(meta: dict[str, str]) -> dict[str, str]:
    """Metadata that has the template, where there is one."""
    template = template_of(meta)
    return {**meta, TEMPLATE_KEY: template} if template else meta
