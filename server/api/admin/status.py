"""/health, /props, /slots: the server's state and settings. Runs on connection threads.

Answers to GET don't wait for the engine: they use its latest snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.context import Context
from server.api.request.constraints import Constraint
from server.api.request.fields import COMPLETION, PROPS
from server.api.request.media import DEFAULT_MARKER
from server.api.request.sampling import make_sampling_params
from server.api.serialize import make_settings_json
from server.engine.seam.task import FAILED, LOADING, READY, RESTARTING, ModelInfo, SlotState, Task
from server.errors import ApiError
from server.models.entry import LOADED, SLEEPING
from server.models.model import PREPARING, Model
from server.web.message import Request, Response, make_error_body, make_json_response

BUILD_INFO = "llama_srv"
NO = ("", "0", "false", "no", "off")  # values of `strict` that switch it off
STUCK = "the engine has work but makes no progress"

COMING_BACK = "the engine died and is restarting; requests are accepted and will wait"


class StatusHandlers:
    def __init__(self, context: Context) -> None:
        self._context = context

    def check_health(self, request: Request) -> Response:
        """The health of a lone model that is loaded:

        - 200 with "ok" or "no slot available" (the latter is 503 with `fail_on_no_slot`)
        - 503 while loading, restarting or stopping
        - 500 if the engine has failed
        - with `strict`, 503 if the engine has work but makes no progress
        """
        models = self._context.models
        if models.lone is None or models.lone.state != LOADED:
            return self._health_of_many(request)
        engine = models.default.engine
        if engine.state == LOADING:
            error = ApiError(503, "Loading model", progress=round(engine.progress, 3))
            return make_json_response({"status": LOADING, **make_error_body(error)}, 503, {"Retry-After": "1"})
        if engine.state == READY and not self._context.models.is_prepared:
            error = ApiError(503, PREPARING)
            return make_json_response({"status": LOADING, **make_error_body(error)}, 503, {"Retry-After": "1"})
        if engine.state == RESTARTING:
            error = ApiError(503, COMING_BACK)
            return make_json_response({"status": RESTARTING, **make_error_body(error)}, 503, {"Retry-After": "1"})
        if engine.state != READY:
            message = engine.trouble if engine.state == FAILED else "shutting down"
            status = 500 if engine.state == FAILED else 503
            return make_json_response({"status": "error", **make_error_body(ApiError(status, message))}, status)
        if request.query.get("strict", "0") not in NO and engine.is_stuck:
            return make_json_response({"status": "error", **make_error_body(ApiError(503, STUCK))}, 503)
        snapshot = engine.snapshot
        is_full = snapshot.n_idle == 0
        body: dict[str, Any] = {
            "status": "no slot available" if is_full else "ok",
            "slots_idle": snapshot.n_idle,
            "slots_processing": snapshot.n_processing,
        }
        if "include_slots" in request.query and self._context.options.slots:
            body["slots"] = self._list_slots(models.default, request)
        return make_json_response(body, 503 if is_full and "fail_on_no_slot" in request.query else 200)

    def _health_of_many(self, request: Request) -> Response:
        """The health of several models, or of a lone one that isn't loaded. Only loaded models count."""
        models = self._context.models
        if request.query.get("strict", "0") not in NO and models.is_stuck:
            return make_json_response({"status": "error", **make_error_body(ApiError(503, STUCK))}, 503)
        running = models.list_running()
        snapshots = [model.engine.snapshot for model in running]
        n_idle, n_processing = (sum(s.n_idle for s in snapshots), sum(s.n_processing for s in snapshots))
        is_full = bool(running) and n_idle == 0
        body: dict[str, Any] = {
            "status": "no slot available" if is_full else "ok",
            "slots_idle": n_idle,
            "slots_processing": n_processing,
        }
        if "include_slots" in request.query and self._context.options.slots:
            body["slots"] = self._list_all_slots(request)
        return make_json_response(body, 503 if is_full and "fail_on_no_slot" in request.query else 200)

    def check_live(self, request: Request) -> Response:
        """Always 200: an engine's trouble is no reason to restart the server and lose running requests."""
        return make_json_response({"status": "ok"})

    def check_ready(self, request: Request) -> Response:
        """Answers 200 if a request would be served now, else 503 with the reason. For load balancers."""
        models = self._context.models
        engine = models.default.engine if models.lone is not None and models.lone.state == LOADED else None
        if engine is not None and engine.state != READY:
            messages = {LOADING: "Loading model", RESTARTING: COMING_BACK, FAILED: engine.trouble}
            raise ApiError(503, messages.get(engine.state, "shutting down"))
        if not models.is_prepared:
            raise ApiError(503, PREPARING)
        if self._context.stop.is_set():
            raise ApiError(503, "the server is stopping")
        if models.is_stuck:
            raise ApiError(503, STUCK)
        return make_json_response({"status": "ok"})

    def show_props(self, request: Request) -> Response:
        context = self._context
        models, name = context.models, request.query.get("model")
        if models.lone is None and not name:
            return self._props_of_many()
        entry = models.find(name, request.key_id)
        model = models.get_known(name, request.key_id)
        info = model.info
        defaults = make_default_settings(model)
        return make_json_response(
            {
                "assistant_name": model.system_prompt.assistant_name,
                "user_name": model.system_prompt.anti_prompt,
                "system_prompt": model.system_prompt.prompt,
                "default_generation_settings": {
                    **defaults,
                    "params": defaults,
                    "sources": list_sources(model, defaults),
                },
                "total_slots": info.n_slots,
                "model_path": info.path,
                "model_alias": model.name,
                "modalities": {"vision": info.vision, "audio": info.audio},
                "media_marker": DEFAULT_MARKER,
                "chat_template": get_template_source(model),
                "chat_template_caps": get_template_caps(model),
                "bos_token": info.bos_token,
                "eos_token": info.eos_token,
                "endpoint_slots": context.options.slots,
                "endpoint_props": context.options.props,
                "endpoint_metrics": context.options.metrics,
                "endpoint_infill": {"pre", "suf", "mid"} <= model.vocab.fim.keys(),
                "endpoint_slot_actions": bool(model.options.slot_save_path),
                "embeddings": {
                    "pooling": info.pooling,
                    "classes": list(info.classes),
                    "is_generative": info.is_generative,
                },
                "compat": context.options.compat,
                "is_sleeping": entry.state == SLEEPING,
                "build_info": f"{BUILD_INFO}, llama.cpp {info.llama_version} {info.variant}".strip(),
            }
        )

    def _props_of_many(self) -> Response:
        """The settings that all models share, in the format of llama-server's router."""
        context, models = self._context, self._context.models
        return make_json_response(
            {
                "role": "router",
                "max_instances": models.n_most,
                "models_autoload": models.autoload,
                "model_alias": BUILD_INFO,
                "model_path": "none",
                "default_generation_settings": {"params": {}, "n_ctx": 0},
                "total_slots": sum(len(model.engine.snapshot.slots) for model in models.list_running()),
                "endpoint_slots": context.options.slots,
                "endpoint_props": context.options.props,
                "endpoint_metrics": context.options.metrics,
                "compat": context.options.compat,
                "build_info": BUILD_INFO,
            }
        )

    def set_props(self, request: Request) -> Response:
        """POST /props: change the system prompt. Needs `--props`."""
        if not self._context.options.props:
            raise ApiError(501, "This server does not support changing global properties. Start it with `--props`")
        body = request.read_json_object()
        model = self._context.models.get(body.get("model") or request.query.get("model"), request)
        if body.get("system_prompt") is not None:
            model.set_system_prompt(body["system_prompt"])
        return PROPS.reply({"success": True}, body)

    def show_slots(self, request: Request) -> Response:
        """The slots and latest tasks of the named or lone model, else of all models. With `fail_on_no_slot`, answers
        503 if none of these slots is idle."""
        if not self._context.options.slots:
            raise ApiError(501, "This server does not support slots endpoint. Start it with `--slots`")
        models, name = self._context.models, request.query.get("model")
        if models.lone is None and not name:
            slots = self._list_all_slots(request)
            is_full = bool(slots) and all(slot["is_processing"] for slot in slots)
        else:
            model = models.get_known(name, request.key_id)
            slots = self._list_slots(model, request)
            is_full = model.engine.snapshot.n_idle == 0
        if is_full and "fail_on_no_slot" in request.query:
            raise ApiError(503, "no slot available")
        return make_json_response(slots)

    def _list_all_slots(self, request: Request) -> list[dict[str, Any]]:
        """The slots of the loaded models that this key may use, each with its model's name."""
        models = self._context.models
        mine = [entry.model for entry in models.list_seen_by(request.key_id)]
        return [
            {"model": model.name, **slot}
            for model in models.list_running()
            if model in mine
            for slot in self._list_slots(model, request)
        ]

    def _list_slots(self, model: Model, request: Request) -> list[dict[str, Any]]:
        return [self._make_slot_json(model, slot, request) for slot in model.engine.snapshot.slots]

    def _make_slot_json(self, model: Model, slot: SlotState, request: Request) -> dict[str, Any]:
        task = model.engine.get_task(slot.id_task)
        is_foreign = self._context.is_shared and task is not None and task.owner != request.owner
        if is_foreign:
            task = None  # another user's: hide its prompt, grammar and stop texts
        flat = make_settings_json(model, task, False) if task else make_default_settings(model)
        prompt = model.vocab.detokenize(list(task.prompt)).decode("utf-8", "replace") if task else ""
        next_token = {
            "has_next_token": slot.has_next_token,
            "n_remain": slot.n_remain,
            "n_decoded": slot.n_decoded,
            "num_tokens_predicted": slot.n_decoded,
            "stopped_eos": slot.stop == "eos",
            "stopped_limit": slot.stop == "limit",
            "stopped_word": slot.stop == "word",
            "stopping_word": "" if is_foreign else slot.stopping_word,
        }
        return {
            "id": slot.id,
            "task_id": slot.id_task,
            "id_task": slot.id_task,
            "state": int(slot.is_processing),
            "is_processing": slot.is_processing,
            "speculative": bool(model.options.spec.spec_type) and flat["speculative.n_max"] > 0,
            **flat,
            "n_ctx": slot.n_ctx,
            "prompt": prompt,
            "generated": "" if is_foreign else model.engine.get_latest_text(slot.id_task),
            "params": flat,
            "n_prompt_tokens": slot.n_prompt,
            "next_token": next_token if self._context.options.is_2024 else [next_token],
            "n_prompt_tokens_processed": slot.n_prompt_done,
            "n_prompt_tokens_cache": slot.n_cached,
            "truncated": slot.truncated,
        }


def get_template_source(model: Model) -> str:
    """The chat template in use; the one in the model's file if that template can't be compiled."""
    try:
        return model.chat_template.source
    except ApiError:
        return model.info.meta.get("tokenizer.chat_template", "")


def get_template_caps(model: Model) -> dict[str, Any]:
    """What the chat template can express, and how the model writes calls. {} if the template can't be compiled."""
    try:
        template = model.chat_template
    except ApiError:
        return {}
    return {**template.capabilities, "tool_call_format": template.call_format.family}


def list_model_capabilities(model: Model) -> list[str]:
    """What the model can do, in the terms of lists of models. Each generative model can call tools: if its template has
    no place for them, they are described in the system message."""
    info = model.info
    assert info is not None
    words = ["completion", "tools"] if info.is_generative and not model.vocab.is_none else ["embedding"]
    words += ["thinking"] if get_template_caps(model).get("supports_thinking") else []
    return [*words, *["vision"] * info.vision, *["audio"] * info.audio]


def make_default_settings(model: Model) -> dict[str, Any]:
    """`generation_settings` of a request without any fields."""
    values = COMPLETION.read({}, model.defaults)
    [params] = make_sampling_params(
        {**values, "seed": 0, "n_cmpl": 1}, model.vocab, model.defaults, Constraint(values["grammar"])
    )
    task = Task(-1, (), params, values["n_predict"], values["n_keep"], cache_prompt=values["cache_prompt"])
    return {**make_settings_json(model, task, False), "seed": values["seed"]}


def list_sources(model: Model, settings: Mapping[str, Any]) -> dict[str, str]:
    """Where defaults come from: `model` for the model's file, `option` for an option. Built-in ones are left out."""
    requests = model.options.requests
    return {name: "model" if name in requests.advised else "option" for name in requests.values if name in settings}


def list_modalities(info: ModelInfo | None) -> dict[str, list[str]]:
    taken = [] if info is None else ["image"] * info.vision + ["audio"] * info.audio
    return {"input_modalities": ["text", *taken], "output_modalities": ["text"]}
