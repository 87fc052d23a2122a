"""The table of the fields of a completion, and the check of single fields. /props, /slots and docs/api.md use the
table.

Pure; any thread. A value of a wrong type or out of range is an `ApiError` 400 that names the field, the value and what
is allowed. The tables of all other fields, and the warnings about unknown ones, are in `fields`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from server.engine.seam.task import SamplingParams
from server.errors import ApiError
from server.records import record

INT_MAX = 2**31 - 1
INF = math.inf


@record(frozen=True)
class Field:
    """One request field. `kind` is int, float, bool, str, dict, list or object. `aliases` are read if `name` is absent.

    Values of the kinds list and object come in several forms, which the code that uses them checks. `convert`, if there
    is one, gets each value before the check, and replaces values that only some clients send.
    """

    name: str
    kind: type
    default: object
    help: str
    low: float = -INF
    high: float = INF
    aliases: tuple[str, ...] = ()
    convert: Callable[[object], object] | None = None


_DEFAULTS = SamplingParams()


def _define(name: str, kind: type, help: str, low: float = -INF, high: float = INF,
              aliases: tuple[str, ...] = ()) -> Field:
    return Field(name, kind, getattr(_DEFAULTS, name), help, low, high, aliases)


# Fields that become the fields of SamplingParams with the same names.
SAMPLING_FIELDS: tuple[Field, ...] = (
    _define("temperature", float, "randomness; 0 or less always takes the most likely token", -100, 100),
    _define("dynatemp_range", float, "range of the dynamic temperature, which follows the entropy; 0 is off", 0, 100),
    _define("dynatemp_exponent", float, "exponent of the dynamic temperature", 0, 100),
    _define("top_k", int, "keep the K most likely tokens; 0 is off", -1, INT_MAX),
    _define("top_p", float, "keep the most likely tokens whose probabilities add up to P; 1 is off", 0, 1),
    _define("min_p", float, "keep tokens at least P times as likely as the most likely one; 0 is off", 0, 1),
    _define("tfs_z", float, "tail-free sampling; 1 is off", 0, 100),
    _define("typical_p", float, "locally typical sampling; 1 is off", 0, 100, ("typ_p",)),
    _define("top_n_sigma", float, "keep tokens whose logits are within N standard deviations of the highest; "
              "negative is off", -INF, 1e6),
    _define("xtc_probability", float, "probability that XTC removes the most likely tokens; 0 is off", 0, 1),
    _define("xtc_threshold", float, "XTC removes only tokens with at least this probability", 0, 1),
    _define("repeat_penalty", float, "penalty for tokens that have occurred; 1 is off", 1e-6, 1e6),
    _define("repeat_last_n", int, "how many of the last tokens get penalties; -1 for the whole context, 0 is off",
              -1, INT_MAX),
    _define("penalize_nl", bool, "whether the repeat penalty applies to line breaks too"),
    _define("presence_penalty", float, "penalty for tokens that have occurred; 0 is off", -1e6, 1e6),
    _define("frequency_penalty", float, "penalty for each occurrence of a token; 0 is off", -1e6, 1e6),
    _define("dry_multiplier", float, "strength of the DRY repetition penalty; 0 is off", 0, 1e6),
    _define("dry_base", float, "base of the DRY penalty", 0, 1e6),
    _define("dry_allowed_length", int, "longest repetition, in tokens, without a DRY penalty", 0, INT_MAX),
    _define("dry_penalty_last_n", int, "how many of the last tokens DRY searches; -1 for the whole context, 0 is off",
              -1, INT_MAX),
    _define("mirostat", int, "0 off, 1 Mirostat, 2 Mirostat 2.0", 0, 2),
    _define("mirostat_tau", float, "target entropy of Mirostat", 0, 1e6),
    _define("mirostat_eta", float, "learning rate of Mirostat", 0, 1e6),
    _define("adaptive_target", float, "target probability of adaptive_p; negative is off", -INF, 1),
    _define("adaptive_decay", float, "decay of adaptive_p's running average", 0, 0.99),
    _define("min_keep", int, "fewest tokens that a truncating sampler may keep", 0, INT_MAX),
    _define("n_probs", int, "report the N most likely tokens with each token", 0, 10_000, ("logprobs",)),
    _define("ignore_eos", bool, "never generate an end-of-text token"),
    _define("grammar", str, "GBNF grammar that the text must match"),
)

# All other fields: more of sampling, settings of a task, the format of the answer.
COMPLETION_FIELDS: tuple[Field, ...] = (
    Field("n_predict", int, -1, "most tokens to generate; -1 for no limit; with 0 the prompt is only computed and "
          "cached; of several of these names, the first one counts", -1, INT_MAX,
          ("max_completion_tokens", "max_tokens")),
    Field("n_keep", int, 0, "first tokens of the prompt to keep when the context is full; -1 for all", -1, INT_MAX),
    Field("n_discard", int, 0, "tokens to drop when the context is full; 0 for half of those that aren't kept", 0,
          INT_MAX),
    Field("seed", int, -1, "seed of the random numbers; -1 for a random one", -1, 2**32 - 1),
    Field("stream", bool, False, "send the text as it is generated"),
    Field("cache_prompt", bool, True, "reuse the cached prefix of earlier prompts"),
    Field("id_slot", int, -1, "slot to run on; -1 for any", -1, INT_MAX, ("slot_id",)),
    Field("priority", int, 0, "of the waiting requests, those with a higher priority start first", -100, 100),
    Field("stop", list, (), "texts that end the answer; they aren't part of it"),
    Field("samplers", list, _DEFAULTS.samplers, "samplers to apply, in order"),
    Field("logit_bias", list, (), "`[[token or text, bias or false], ...]` or `{token: bias}`"),
    Field("dry_sequence_breakers", list, _DEFAULTS.dry_sequence_breakers, "texts that end a repetition for DRY"),
    Field("penalty_prompt", list, None, "text or token ids that get penalties instead of those of the prompt"),
    Field("lora", list, None, "`[{\"id\", \"scale\"}, ...]`: adapters for this request; all others are off"),
    Field("n_cmpl", int, 1, "number of answers to each prompt", 1, 128, ("n",)),
    Field("n_indent", int, 0, "end before a line that is indented by fewer blanks", 0, INT_MAX),
    Field("t_max_prompt_ms", int, 0, "end if prefill takes longer, in ms; 0 for no limit", -1, INT_MAX),
    Field("t_max_predict_ms", int, 0, "end after this time, in ms, as soon as the text has a line break; 0 for no "
          "limit", -1, INT_MAX),
    Field("t_max_ms", int, 0, "end this many ms after the engine received the request; 0 for no limit", -1, INT_MAX),
    Field("speculative.n_max", int, -1, "most tokens of a draft; 0 for no drafts, -1 for the server's setting", -1,
          1024),
    Field("speculative.n_min", int, -1, "don't use shorter drafts; -1 for the server's setting", -1, 1024),
    Field("speculative.p_min", float, -1.0, "end a draft at a token that the draft model finds less likely than this; "
          "-1 for the server's setting", -1, 1),
    Field("response_fields", list, None, "fields to answer with; a slash selects a field inside an object"),
    Field("post_sampling_probs", bool, False, "report probabilities after sampling instead of logprobs"),
    Field("return_tokens", bool, False, "return the ids of the generated tokens in `tokens`"),
    Field("return_progress", bool, False, "report the progress of prefill in a stream"),
    Field("timings_per_token", bool, False, "include `timings` in each chunk of a stream"),
    Field("verbose", bool, False, "show the rendered prompt, and in OpenAI's answers also the answer of POST "
          "/completion"),
    Field("sse_ping_interval", int, None, "seconds of silence after which the server sends a comment in the stream; "
          "-1 for never (default: the server's setting)", -1, 86400),
)

_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", list: "a list",
               dict: "an object"}


def read(body: Mapping[str, Any], fields: Iterable[Field], defaults: Mapping[str, Any] = MappingProxyType({}),
         where: str = "") -> dict[str, Any]:
    """The checked values of `fields` in a JSON object. Errors put `where` before the names of fields.

    A value that is absent or null is taken from `defaults`, or else from the field.
    """
    return {field.name: _read_value(body, field, defaults, where) for field in fields}


def _read_value(body: Mapping[str, Any], field: Field, defaults: Mapping[str, Any], where: str) -> Any:
    name, value = field.name, body.get(field.name)
    if value is None:
        for alias in field.aliases:
            if body.get(alias) is not None:
                name, value = alias, body[alias]
                break
    if field.convert is not None and value is not None:
        value = field.convert(value)
    if value is None:
        return defaults.get(field.name, field.default)
    if field.kind in (list, object):  # checked where it is used
        return value
    if field.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if field.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = as_float(name, value)
    if not isinstance(value, field.kind) or isinstance(value, bool) and field.kind is not bool:
        raise ApiError(400, f"{where}{name}: {shorten(body[name])} is not {_KIND_NAMES[field.kind]}")
    if field.kind in (int, float) and not field.low <= value <= field.high:  # type: ignore[operator]
        limits = _describe_limits(field)
        raise ApiError(400, f"{where}{name}: {shorten(body[name])} is out of range, allowed is {limits}")
    return value


def as_float(name: str, value: int | float) -> float:
    """`value` as a float; ApiError 400 naming `name` for a whole number that is too large for one."""
    try:
        return float(value)
    except OverflowError:
        raise ApiError(400, f"{name}: the number is too large") from None


def _describe_limits(field: Field) -> str:
    if field.high == INF:
        return f"at least {field.low:.10g}"
    return f"at most {field.high:.10g}" if field.low == -INF else f"{field.low:.10g} to {field.high:.10g}"


def shorten(value: object) -> str:
    """A value as an error shows it, in 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
