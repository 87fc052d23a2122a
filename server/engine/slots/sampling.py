"""Turns `SamplingParams` into the list of sampler stages that the backend builds in C.

Pure functions. Most stages that would change nothing are left out, so a plain greedy request costs one argmax. The
rules follow llama.cpp's server, but not in all cases:

- Logit bias comes first, then the stages of `samplers` in their order, with repeats. `adaptive_p` always comes last.
- With a temperature <= 0, the most likely token after bias, penalties and DRY is taken.
- With mirostat, only bias, penalties and temperature come before it, and it picks the token itself.
- The grammar isn't a stage. The backend checks the picked token against it, which is much cheaper.

Not taken: one C struct of sampling parameters. It is in llama.cpp's C++ `common`, which has no stable C ABI.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from server.engine.seam.task import SamplingParams
from server.records import record

# C computes in 32-bit floats: with these limits, a bias and one temperature stage can't make a logit infinite.
MAX_BIAS = 1e9
MIN_TEMPERATURE = 1e-6


@record(frozen=True)
class Stage:
    """One sampler of the chain, by a name that `Backend.make_sampler` knows."""

    name: str
    args: tuple


@record(frozen=True)
class VocabFacts:
    """What a chain depends on besides its parameters."""

    eog_tokens: tuple[int, ...]  # tokens that end a text
    suppress_tokens: tuple[int, ...]  # tokens that are never drawn
    n_ctx: int  # tokens; a `last_n` of -1 means as many


def make_chain(params: SamplingParams, facts: VocabFacts) -> list[Stage]:
    """The stages for `params`; the last one picks the token."""
    stages = _make_bias(params, facts)
    if params.temperature <= 0:
        stages += _make_stages((name for name in params.samplers if name in ("penalties", "dry")), params, facts)
        return [*stages, Stage("greedy", ())]
    if params.mirostat:
        stages += _make_stages((name for name in params.samplers if name == "penalties"), params, facts)
        stages.append(Stage("temperature", (max(params.temperature, MIN_TEMPERATURE), 0.0, 1.0)))
        name = "mirostat" if params.mirostat == 1 else "mirostat_v2"
        return [*stages, Stage(name, (params.seed, params.mirostat_tau, params.mirostat_eta))]
    stages += _make_stages(params.samplers, params, facts)
    if "adaptive_p" in params.samplers and params.adaptive_target >= 0:
        return [*stages, Stage("adaptive_p", (params.adaptive_target, params.adaptive_decay, params.seed))]
    return [*stages, Stage("dist", (params.seed,))]


def compute_history_length(params: SamplingParams, n_ctx: int) -> int:
    """How many of the latest prompt tokens the chain must accept before the first draw."""
    return max(
        _compute_reach(params.repeat_last_n, n_ctx),
        _compute_reach(params.dry_penalty_last_n, n_ctx) if params.dry_multiplier else 0,
    )


def _compute_reach(last_n: int, n_ctx: int) -> int:
    """How many tokens back a penalty looks. -1 means the whole context. More is cut to that, because C reserves memory
    for it."""
    return n_ctx if last_n < 0 else min(last_n, n_ctx)


def _make_bias(params: SamplingParams, facts: VocabFacts) -> list[Stage]:
    bias = [
        (token, amount if amount == -math.inf else min(max(amount, -MAX_BIAS), MAX_BIAS))
        for token, amount in params.logit_bias
    ]
    if params.ignore_eos:
        bias += [(token, -math.inf) for token in facts.eog_tokens]
    bias += [(token, -math.inf) for token in facts.suppress_tokens]
    return [Stage("logit_bias", (tuple(bias),))] if bias else []


def _make_stages(names: Iterable[str], params: SamplingParams, facts: VocabFacts) -> list[Stage]:
    made = (_STAGES[name](params, facts) for name in names if name in _STAGES)
    return [stage for stage in made if stage is not None]


def _make_penalties(p: SamplingParams, facts: VocabFacts) -> Stage | None:
    last_n = _compute_reach(p.repeat_last_n, facts.n_ctx)
    if last_n == 0 or (p.repeat_penalty == 1.0 and p.frequency_penalty == 0.0 and p.presence_penalty == 0.0):
        return None
    return Stage("penalties", (last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty, p.penalize_nl))


def _make_dry(p: SamplingParams, facts: VocabFacts) -> Stage | None:
    last_n = _compute_reach(p.dry_penalty_last_n, facts.n_ctx)
    if p.dry_multiplier == 0.0 or last_n == 0:
        return None
    return Stage("dry", (p.dry_multiplier, p.dry_base, p.dry_allowed_length, last_n, p.dry_sequence_breakers))


def _make_temperature(p: SamplingParams, facts: VocabFacts) -> Stage | None:
    if p.temperature == 1.0 and p.dynatemp_range <= 0.0:
        return None
    return Stage("temperature", (max(p.temperature, MIN_TEMPERATURE), max(p.dynatemp_range, 0.0), p.dynatemp_exponent))


_STAGES = {
    "penalties": _make_penalties,
    "dry": _make_dry,
    "temperature": _make_temperature,
    "top_k": lambda p, _: Stage("top_k", (max(p.top_k, p.min_keep),)) if p.top_k > 0 else None,
    "top_p": lambda p, _: Stage("top_p", (p.top_p, p.min_keep)) if p.top_p < 1.0 else None,
    "min_p": lambda p, _: Stage("min_p", (p.min_p, p.min_keep)) if p.min_p > 0.0 else None,
    "typical_p": lambda p, _: Stage("typical_p", (p.typical_p, p.min_keep)) if p.typical_p < 1.0 else None,
    "tfs_z": lambda p, _: Stage("tfs_z", (p.tfs_z, p.min_keep)) if p.tfs_z < 1.0 else None,
    "top_n_sigma": lambda p, _: Stage("top_n_sigma", (p.top_n_sigma,)) if p.top_n_sigma >= 0.0 else None,
    "xtc": lambda p, _: (
        Stage("xtc", (p.xtc_probability, p.xtc_threshold, p.min_keep, p.seed)) if p.xtc_probability > 0.0 else None
    ),
    "infill": lambda p, _: Stage("infill", ()),
}
