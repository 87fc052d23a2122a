"""GET /metrics: figures of engines, log and refusals in Prometheus' format 0.0.4. Runs on a connection thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from server.api.context import Context
from server.engine.seam.task import HISTOGRAM_BOUNDS, Snapshot
from server.errors import ApiError
from server.log import count_lost
from server.metrics import REASONS
from server.web.message import Request, Response

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "llamacpp:"
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

HISTOGRAM_HELP = {
    "queue_wait_seconds": "Time a task waited for a slot.",
    "time_to_first_token_seconds": "Time from a request's arrival to its first token.",
    "time_between_tokens_seconds": "Time between two tokens of one answer.",
    "step_seconds": "Time of one step of the engine.",
    "prompt_throughput_tokens_per_second": "Prefill speed of one task.",
    "predicted_throughput_tokens_per_second": "Generation speed of one task.",
}


class MetricsHandler:
    """`handle` answers 501 unless the server was started with `--metrics`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def handle(self, request: Request) -> Response:
        if not self._context.options.metrics:
            raise ApiError(501, "This server does not support metrics endpoint. Start it with `--metrics`")
        models, name = self._context.models, request.query.get("model")
        if models.lone is not None:
            snapshots = {"": models.get_known(name, request.key_id).engine.snapshot}
        else:
            named = models.find(name, request.key_id) if name else None
            mine = [entry for entry in models.list_seen_by(request.key_id) if named in (None, entry)]
            snapshots = {entry.name: entry.model.engine.snapshot for entry in mine if entry.model is not None}
        text = "".join((*render(snapshots), *format_refused(self._context.refusals.get_numbers())))
        return Response(
            200, text.encode(), {"Content-Type": CONTENT_TYPE, "Process-Start-Time-Unix": str(self._context.started)}
        )


def render(snapshots: Mapping[str, Snapshot]) -> Iterable[str]:
    """The lines for snapshots by model name. A server with one model has it under "" and writes no label."""
    rows = {name: list_scalars(snapshot) for name, snapshot in snapshots.items()}
    for i, (kind, metric, help, _) in enumerate(list_scalars(Snapshot())):
        yield f"# HELP {PREFIX}{metric} {help}\n# TYPE {PREFIX}{metric} {kind}\n"
        for name, row in rows.items():
            yield f"{PREFIX}{metric}{format_labels(name)} {row[i][3]:.10g}\n"
    for metric, bounds in HISTOGRAM_BOUNDS.items():
        yield f"# HELP {PREFIX}{metric} {HISTOGRAM_HELP[metric]}\n# TYPE {PREFIX}{metric} histogram\n"
        for name, snapshot in snapshots.items():
            values = snapshot.histograms.get(metric) or (0,) * (len(bounds) + 2)
            counts = list(accumulate(values[:-1]))
            for bound, count in zip((*map("{:g}".format, bounds), "+Inf"), counts):
                yield f"{PREFIX}{metric}_bucket{format_labels(name, le=bound)} {count:.10g}\n"
            yield f"{PREFIX}{metric}_sum{format_labels(name)} {values[-1]:.10g}\n"
            yield f"{PREFIX}{metric}_count{format_labels(name)} {counts[-1]:.10g}\n"


def format_labels(model: str, **others: str) -> str:
    """The labels of a sample; an empty `model` gets none."""
    named = {**({"model": model} if model else {}), **others}
    escaped = (f'{name}="{value.translate(ESCAPES)}"' for name, value in named.items())
    return f"{{{','.join(escaped)}}}" if named else ""


def format_refused(numbers: dict[str, int]) -> Iterable[str]:
    name = f"{PREFIX}requests_refused_total"
    yield f"# HELP {name} Requests that were refused, by reason.\n# TYPE {name} counter\n"
    for reason in REASONS:
        yield f'{name}{{reason="{reason}"}} {numbers[reason]}\n'


def list_scalars(s: Snapshot) -> list[tuple[str, str, str, float]]:
    """Rows of (type, name, help text, value)."""
    return [
        ("counter", "prompt_tokens_total", "Prompt tokens processed.", s.n_prompt_tokens),
        ("counter", "prompt_seconds_total", "Time spent on prefill in seconds.", s.prompt_ms / 1e3),
        ("counter", "tokens_predicted_total", "Tokens generated.", s.n_predicted_tokens),
        ("counter", "tokens_predicted_seconds_total", "Time spent on generation in seconds.", s.predicted_ms / 1e3),
        (
            "counter",
            "sampler_seconds_total",
            "Time spent on sampling in seconds, grammars included.",
            s.sampler_ms / 1e3,
        ),
        ("counter", "prompt_tokens_reused_total", "Prompt tokens found in the cache.", s.n_reused_tokens),
        ("counter", "n_decode_total", "Steps of the engine.", s.n_steps),
        ("counter", "stalls_total", "Steps that held up running streams for long.", s.n_stalls),
        ("counter", "requests_set_aside_total", "Times a task was paused to make room in the KV cache.", s.n_asides),
        ("counter", "spec_decode_num_drafts_total", "Steps that verified drafted tokens.", s.n_drafts),
        ("counter", "spec_decode_num_draft_tokens_total", "Tokens drafted by speculative decoding.", s.n_draft_tokens),
        ("counter", "spec_decode_num_accepted_tokens_total", "Drafted tokens that were accepted.", s.n_draft_accepted),
        ("counter", "engine_restarts_total", "Restarts of the engine's process after it died.", s.n_restarts),
        ("counter", "engine_replays_total", "Tasks continued by a new engine.", s.n_replays),
        ("counter", "engine_suspects_total", "Tasks given up because they made the engine die.", s.n_suspects),
        ("counter", "log_lines_lost_total", "Log lines dropped because the output was too slow or full.", count_lost()),
        (
            "gauge",
            "prompt_tokens_seconds",
            "Average prompt throughput in tokens/s.",
            compute_rate(s.n_prompt_tokens, s.prompt_ms),
        ),
        (
            "gauge",
            "predicted_tokens_seconds",
            "Average generation throughput in tokens/s.",
            compute_rate(s.n_timed_tokens, s.predicted_ms),
        ),
        (
            "gauge",
            "kv_cache_usage_ratio",
            "Used part of the KV cache, from 0 to 1.",
            s.kv_used / s.n_ctx if s.n_ctx else 0.0,
        ),
        ("gauge", "kv_cache_tokens", "KV-cache tokens.", s.kv_used),
        ("gauge", "requests_processing", "Tasks in slots.", s.n_processing),
        ("gauge", "requests_deferred", "Tasks waiting for a slot.", s.n_deferred),
    ]


def compute_rate(n: float, ms: float) -> float:
    """`n` per second over `ms` milliseconds; 0 when no time has passed."""
    return n / ms * 1e3 if ms > 0 else 0.0
