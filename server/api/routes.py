"""The table of all routes: the one place that says which URL is answered by what."""

from __future__ import annotations

from server.api.completion import CompletionHandler
from server.api.context import Context
from server.api.debug import DebugHandler
from server.api.embeddings import EmbeddingHandlers
from server.api.infill import InfillHandler
from server.api.lora import LoraHandlers
from server.api.metrics import MetricsHandler
from server.api.openai import OpenAiHandlers
from server.api.rerank import RerankHandler
from server.api.running import AbortHandler
from server.api.slots import SlotHandlers
from server.api.status import StatusHandlers
from server.api.tokens import TokenHandlers
from server.web.router import Route


def routes(context: Context) -> list[Route]:
    """Rows of (method, path, handler); public ones need no API key."""
    status, tokens, completion = StatusHandlers(context), TokenHandlers(context), CompletionHandler(context)
    lora, openai = LoraHandlers(context), OpenAiHandlers(context)
    embeddings, rerank = EmbeddingHandlers(context), RerankHandler(context)
    return [
        Route("GET", "/health", status.health, public=True),
        Route("GET", "/health/live", status.live, public=True),
        Route("GET", "/health/ready", status.ready, public=True),
        Route("GET", "/props", status.props),
        Route("POST", "/props", status.set_props),
        Route("GET", "/slots", status.slots),
        Route("POST", "/slots/{id_slot}", SlotHandlers(context).act, body_optional=True),
        Route("GET", "/metrics", MetricsHandler(context).handle),
        Route("GET", "/lora-adapters", lora.list),
        Route("POST", "/lora-adapters", lora.set),
        Route("GET", "/models", status.models, public=True),
        Route("GET", "/v1/models", status.models, public=True),
        Route("POST", "/completion", completion.handle),
        Route("POST", "/completions", completion.handle),
        *(
            Route("POST", prefix + path, handler)
            for prefix in ("", "/v1")
            for path, handler in (
                ("/chat/completions", openai.chat),
                ("/chat/completions/input_tokens", openai.count_tokens),
            )
        ),
        Route("POST", "/v1/completions", openai.complete),
        Route("POST", "/apply-template", openai.apply_template),
        Route("POST", "/infill", InfillHandler(context).handle),
        *(Route("POST", path, AbortHandler(context.running).handle, is_free=True) for path in ("/abort", "/v1/abort")),
        Route("POST", "/debug/stacks", DebugHandler(context).stacks, body_optional=True),
        Route("POST", "/embedding", embeddings.native),
        Route("POST", "/embeddings", embeddings.list),
        Route("POST", "/v1/embeddings", embeddings.openai),
        *(Route("POST", prefix + path, rerank.handle) for prefix in ("", "/v1") for path in ("/rerank", "/reranking")),
        Route("POST", "/tokenize", tokens.tokenize),
        Route("POST", "/detokenize", tokens.detokenize),
    ]
