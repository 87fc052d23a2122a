"""The table that maps URLs to handlers. Built at the start."""

from __future__ import annotations

from collections.abc import Iterable

from server.api import transcription
from server.api.admin.debug import DebugHandler
from server.api.admin.library import LibraryHandlers
from server.api.admin.lora import LoraHandlers
from server.api.admin.metrics import MetricsHandler
from server.api.admin.models import ModelHandlers
from server.api.admin.slots import SlotHandlers
from server.api.admin.status import StatusHandlers
from server.api.admin.timeline import TimelineHandler
from server.api.attribute import AttributeHandler
from server.api.context import Context
from server.api.dialects import anthropic, infill, native, ollama, ollama_generate, openai_chat, openai_text, responses
from server.api.embeddings import EmbeddingHandlers
from server.api.generation import TextHandler
from server.api.ollama import OllamaHandlers
from server.api.rerank import RerankHandler
from server.api.running import RunningHandlers
from server.api.stored.background import ResponseHandler, Runs
from server.api.stored.conversations import ConversationHandlers
from server.api.stored.recordings import StreamHandlers
from server.api.stored.responses import ResponseHandlers
from server.api.tokens import TokenHandlers
from server.api.vertex import PredictHandler
from server.errors import ApiError, StartError
from server.web.message import Request, Response
from server.web.router import Route

OLLAMA_PUBLIC = ("version", "tags")  # need no API key, like OpenAI's list of models


def make_routes(context: Context) -> list[Route]:
    status, tokens, lora = StatusHandlers(context), TokenHandlers(context.models), LoraHandlers(context.models)
    embeddings, rerank = EmbeddingHandlers(context), RerankHandler(context)
    running, models, library = RunningHandlers(context.running), ModelHandlers(context), LibraryHandlers(context)
    streams = StreamHandlers(context.recordings)
    ollamas = OllamaHandlers(context, embeddings)
    runs, conversations = Runs(context), ConversationHandlers(context)
    stored, making = ResponseHandlers(context, runs), ResponseHandler(context, runs, responses.DIALECT)
    table = [
        *(Route("GET", path, status.check_health, public=True) for path in ("/health", "/v1/health")),
        Route("GET", "/health/live", status.check_live, public=True),
        Route("GET", "/health/ready", status.check_ready, public=True),
        Route("GET", "/props", status.show_props),
        Route("POST", "/props", status.set_props),
        Route("GET", "/slots", status.show_slots),
        Route("POST", "/slots/{id_slot}", SlotHandlers(context).act, body_optional=True),
        Route("GET", "/metrics", MetricsHandler(context).handle),
        Route("GET", "/lora-adapters", lora.list),
        Route("POST", "/lora-adapters", lora.set),
        Route("GET", "/models", models.list, public=True),
        Route("GET", "/models/sse", models.stream_events),
        Route("POST", "/models", library.fetch),
        Route("DELETE", "/models", library.remove),
        Route("POST", "/models/load", models.load),
        Route("POST", "/models/unload", models.unload),
        Route("GET", "/v1/models", models.list, public=True),
        Route("GET", "/v1/models/{name...}", models.get, public=True),
        *(
            Route("POST", path, TextHandler(context, dialect).handle, error_shape=dialect.error)
            for path, dialect in (
                ("/completion", native.DIALECT),
                ("/completions", native.DIALECT),
                ("/infill", infill.DIALECT),
                ("/chat/completions", openai_chat.DIALECT),
                ("/v1/chat/completions", openai_chat.DIALECT),
                ("/v1/completions", openai_text.DIALECT),
                ("/api/chat", ollama.DIALECT),
                ("/api/generate", ollama_generate.DIALECT),
                ("/v1/messages", anthropic.DIALECT),
            )
        ),
        *(
            Route("POST", prefix + path, TextHandler(context, dialect).handle, takes_form=True)
            for prefix in ("", "/v1")
            for path, dialect in (
                ("/audio/transcriptions", transcription.TRANSCRIBE),
                ("/audio/translations", transcription.TRANSLATE),
            )
        ),
        *(Route("POST", prefix + "/chat/completions/input_tokens", tokens.count) for prefix in ("", "/v1")),
        Route("POST", "/v1/messages/count_tokens", tokens.count_messages, error_shape=anthropic.make_error_json),
        *(
            Route(
                method,
                prefix + "/responses" + path,
                handler,
                body_optional=(is_cancel := path == "/{id}/cancel"),
                is_free=is_cancel,
            )
            for prefix in ("", "/v1")
            for method, path, handler in (
                ("POST", "", making.handle),
                ("POST", "/input_tokens", stored.count),
                ("GET", "/{id}", stored.get),
                ("DELETE", "/{id}", stored.delete),
                ("POST", "/{id}/cancel", stored.cancel),
                ("GET", "/{id}/input_items", stored.list_input_items),
            )
        ),
        *(
            Route(method, "/v1/conversations" + path, handler, body_optional=not path)
            for method, path, handler in (
                ("POST", "", conversations.create),
                ("GET", "/{id}", conversations.get),
                ("POST", "/{id}", conversations.update),
                ("DELETE", "/{id}", conversations.delete),
                ("GET", "/{id}/items", conversations.list_items),
                ("POST", "/{id}/items", conversations.add_items),
                ("GET", "/{id}/items/{item}", conversations.get_item),
                ("DELETE", "/{id}/items/{item}", conversations.delete_item),
            )
        ),
        Route("POST", "/apply-template", tokens.apply_template),
        *(Route("POST", prefix + "/abort", running.abort, is_free=True) for prefix in ("", "/v1")),
        *(Route("POST", prefix + "/chat/completions/control", running.control, is_free=True) for prefix in ("", "/v1")),
        Route("GET", "/slots/timeline", TimelineHandler(context).show),
        Route("GET", "/v1/stream", streams.read),
        Route("DELETE", "/v1/stream", streams.stop),
        Route("POST", "/v1/streams/lookup", streams.look_up, is_free=True),
        Route("POST", "/debug/stacks", DebugHandler(context).show_stacks, body_optional=True),
        Route("GET", "/debug/cache", DebugHandler(context).show_cache),
        Route("POST", "/embedding", embeddings.answer_native),
        Route("POST", "/embeddings", embeddings.list),
        Route("POST", "/v1/embeddings", embeddings.answer_openai),
        *(Route("POST", prefix + path, rerank.handle) for prefix in ("", "/v1") for path in ("/rerank", "/reranking")),
        Route("POST", "/v1/attribute", AttributeHandler(context).handle),
        Route("POST", "/tokenize", tokens.tokenize),
        Route("POST", "/detokenize", tokens.detokenize),
        Route("GET", "/tokenizer_info", tokens.show_info),
        *(
            Route(method, "/api/" + name, handler, name in OLLAMA_PUBLIC, error_shape=ollama.make_error_json)
            for method, name, handler in (
                ("GET", "version", ollamas.show_version),
                ("GET", "tags", ollamas.list_tags),
                ("GET", "ps", ollamas.list_running),
                ("POST", "show", ollamas.show),
                ("POST", "embed", ollamas.embed),
                ("POST", "embeddings", ollamas.embed_prompt),
                ("POST", "pull", library.pull),
                ("DELETE", "delete", library.delete),
                *(("POST", name, ollamas.refuse) for name in ("push", "create", "copy")),
            )
        ),
    ]
    table += batch_routes(context)
    if context.batches is not None:
        context.batches.use(table)
    return [*table, *make_vertex_routes(context, table, status)]


def batch_routes(context: Context) -> list[Route]:
    """Routes of files and batches. Without --store-dir they answer 501."""
    parts: dict[str, object] = {}
    if context.batches is not None:
        from server.api.stored.batches import BatchHandlers
        from server.api.stored.files import FileHandlers  # imported here: most servers have no --store-dir

        parts = {"files": FileHandlers(context, context.batches), "batches": BatchHandlers(context, context.batches)}
    return [
        Route(
            method,
            f"/v1/{part}{path}",
            getattr(parts[part], name) if parts else refuse_without_folder,
            body_optional=name == "cancel" or not parts,
            is_free=name == "cancel",
            takes_form=name == "upload" and bool(parts),
        )
        for part, method, path, name in (
            ("files", "POST", "", "upload"),
            ("files", "GET", "", "list"),
            ("files", "GET", "/{id}", "get"),
            ("files", "GET", "/{id}/content", "content"),
            ("files", "DELETE", "/{id}", "delete"),
            ("batches", "POST", "", "create"),
            ("batches", "GET", "", "list"),
            ("batches", "GET", "/{id}", "get"),
            ("batches", "POST", "/{id}/cancel", "cancel"),
        )
    ]


def refuse_without_folder(request: Request) -> Response:
    raise ApiError(501, "this server keeps no files or batches: start it with --store-dir FOLDER")


def make_vertex_routes(context: Context, table: list[Route], status: StatusHandlers) -> list[Route]:
    """The health and prediction routes that Vertex AI sets in the environment. StartError if the latter is taken."""
    health, predict = context.options.health_route, context.options.predict_route
    taken = {(route.method, route.path) for route in table}
    if ("POST", predict) in taken:
        raise StartError(f"AIP_PREDICT_ROUTE: {predict} is already a route of this server")
    return [
        *([Route("GET", health, status.check_health, public=True)] if health and ("GET", health) not in taken else []),
        *([Route("POST", predict, PredictHandler(context.models, table).handle)] if predict else []),
    ]


def make_hints(table: Iterable[Route]) -> dict[str, str]:
    """The text that the 404 of an unknown path adds, by the path's beginning (see `Router`)."""
    known = sorted({route.path.removeprefix("/v1/") for route in table if route.path.startswith("/v1/")})
    ours = sorted({route.path.removeprefix("/api/") for route in table if route.path.startswith("/api/")})
    base = "base URL {prefix}/v1"
    return {
        "/v1": f"Give a client of OpenAI's API the {base}. The routes below it are {', '.join(known)}.",
        "/api": f"Of Ollama's API this server has {', '.join(ours)}. Give a client of OpenAI's API the {base}.",
    }
