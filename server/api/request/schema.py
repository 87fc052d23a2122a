"""The fields of a completion: one table, read by validation, by `/props` and `/slots`, and by the documents.

Pure functions on the connection's thread. A field that is absent or null takes its default; a wrong type or a value
out of range is an `ApiError` 400 that names the field, the value and what is allowed. Tables of the other fields, and
what becomes of unknown ones, are in `fields`.
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
    """One request field: `kind` is int, float, bool, str, dict, list or object; `aliases` are read when `name` is
    absent.

    Lists and objects of any kind come in several forms, and are looked at by whoever reads them. `convert` turns what
    clients are known to send into what is checked.
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


def _sampling(name: str, kind: type, help: str, low: float = -INF, high: float = INF,
              aliases: tuple[str, ...] = ()) -> Field:
    return Field(name, kind, getattr(_DEFAULTS, name), help, low, high, aliases)


# Fields that go into SamplingParams under the same name.
SAMPLING_FIELDS: tuple[Field, ...] = (
    _sampling("temperature", float, "randomness; 0 or less always takes the most likely token", -100, 100),
    _sampling("dynatemp_range", float, "temperature varies by this much with the entropy; 0 is off", 0, 100),
    _sampling("dynatemp_exponent", float, "how entropy maps to temperature", 0, 100),
    _sampling("top_k", int, "only the K most likely tokens; 0 is off", -1, INT_MAX),
    _sampling("top_p", float, "only the likeliest tokens that sum up to P; 1 is off", 0, 1),
    _sampling("min_p", float, "only tokens at least P times as likely as the best one; 0 is off", 0, 1),
    _sampling("tfs_z", float, "tail-free sampling; 1 is off", 0, 100),
    _sampling("typical_p", float, "locally typical sampling; 1 is off", 0, 100, ("typ_p",)),
    _sampling("top_n_sigma", float, "only logits within N standard deviations of the best; negative is off", -INF, 1e6),
    _sampling("xtc_probability", float, "chance of removing the top choices; 0 is off", 0, 1),
    _sampling("xtc_threshold", float, "how likely a token must be for XTC to remove it", 0, 1),
    _sampling("repeat_penalty", float, "penalty for tokens that occurred; 1 is off", 1e-6, 1e6),
    _sampling("repeat_last_n", int, "how many tokens back penalties look; -1 is the context, 0 off", -1, INT_MAX),
    _sampling("penalize_nl", bool, "whether the repeat penalty applies to line breaks too"),
    _sampling("presence_penalty", float, "penalty for having occurred; 0 is off", -1e6, 1e6),
    _sampling("frequency_penalty", float, "penalty for each occurrence; 0 is off", -1e6, 1e6),
    _sampling("dry_multiplier", float, "strength of the DRY repetition penalty; 0 is off", 0, 1e6),
    _sampling("dry_base", float, "base of the DRY penalty", 0, 1e6),
    _sampling("dry_allowed_length", int, "longest repetition that DRY leaves alone", 0, INT_MAX),
    _sampling("dry_penalty_last_n", int, "how many tokens back DRY looks; -1 is the context, 0 off", -1, INT_MAX),
    _sampling("mirostat", int, "0 off, 1 Mirostat, 2 Mirostat 2.0", 0, 2),
    _sampling("mirostat_tau", float, "target entropy of Mirostat", 0, 1e6),
    _sampling("mirostat_eta", float, "learning rate of Mirostat", 0, 1e6),
    _sampling("adaptive_target", float, "probability that adaptive_p aims at; negative is off", -INF, 1),
    _sampling("adaptive_decay", float, "how slowly adaptive_p forgets", 0, 0.99),
    _sampling("min_keep", int, "tokens that every truncation leaves at least", 0, INT_MAX),
    _sampling("n_probs", int, "report the N likeliest tokens with each token", 0, 10_000, ("logprobs",)),
    _sampling("ignore_eos", bool, "never end the text by an end-of-text token"),
    _sampling("grammar", str, "GBNF grammar that the text must follow"),
)

# Fields that go into Task or shape the answer.
COMPLETION_FIELDS: tuple[Field, ...] = (
    Field("n_predict", int, -1, "most tokens to generate; -1 no limit, 0 only reads the prompt into the cache; the "
          "first given of these names counts", -1, INT_MAX, ("max_completion_tokens", "max_tokens")),
    Field("n_keep", int, 0, "prompt tokens to keep when the context overflows; -1 all", -1, INT_MAX),
    Field("n_discard", int, 0, "tokens to drop when the context overflows; 0 half of the rest", 0, INT_MAX),
    Field("seed", int, -1, "seed of the random numbers; -1 draws one", -1, 2**32 - 1),
    Field("stream", bool, False, "send the text as it is generated"),
    Field("cache_prompt", bool, True, "reuse what the prompt shares with an earlier one"),
    Field("id_slot", int, -1, "slot to run on; -1 any", -1, INT_MAX, ("slot_id",)),
    Field("priority", int, 0, "of the requests that wait for a slot, those of higher priority go first", -100, 100),
    Field("stop", list, (), "texts that end the answer; not part of it"),
    Field("samplers", list, _DEFAULTS.samplers, "which truncations to apply, in order"),
    Field("logit_bias", list, (), "[[token or text, bias or false], ...] or {token: bias}"),
    Field("dry_sequence_breakers", list, _DEFAULTS.dry_sequence_breakers, "texts over which DRY does not look"),
    Field("penalty_prompt", list, None, "text or token ids that penalties look at instead of the prompt"),
    Field("lora", list, None, "[{\"id\", \"scale\"}, ...]: adapters for this request; others are off"),
    Field("n_cmpl", int, 1, "how many answers to each prompt", 1, 128, ("n",)),
    Field("n_indent", int, 0, "end before a line that is indented by fewer blanks", 0, INT_MAX),
    Field("t_max_prompt_ms", int, 0, "end when reading the prompt takes longer; 0 no limit", -1, INT_MAX),
    Field("t_max_predict_ms", int, 0, "end after this time, once there is a line break; 0 no limit", -1, INT_MAX),
    Field("t_max_ms", int, 0, "end this many ms after the request came to the engine, in whatever phase; 0 no limit",
          -1, INT_MAX),
    Field("speculative.n_max", int, -1, "most tokens of a draft (speculative decoding); 0 no drafts, -1 the server's",
          -1, 1024),
    Field("speculative.n_min", int, -1, "shorter drafts are not used; -1 the server's", -1, 1024),
    Field("speculative.p_min", float, -1.0, "a draft ends where the draft model is less sure; -1 the server's", -1, 1),
    Field("response_fields", list, None, "fields to answer with; a slash reaches into objects"),
    Field("post_sampling_probs", bool, False, "report probabilities after sampling instead of logprobs"),
    Field("return_tokens", bool, False, "give the ids of the generated tokens in `tokens`"),
    Field("return_progress", bool, False, "report the reading of the prompt in a stream"),
    Field("timings_per_token", bool, False, "put `timings` into every chunk of a stream"),
    Field("verbose", bool, False, "show the prompt as the model gets it, and in OpenAI's answers what POST /completion "
          "would say"),
    Field("sse_ping_interval", int, None, "seconds of silence after which a stream carries a comment; -1 never "
          "(default: the server's)", -1, 86400),
)

_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", list: "a list",
               dict: "an object"}


def read(body: Mapping[str, Any], fields: Iterable[Field], defaults: Mapping[str, Any] = MappingProxyType({}),
         where: str = "") -> dict[str, Any]:
    """The values of `fields` in a JSON object, checked; `where` is what its fields' names begin with in errors.

    What is absent or null is taken from `defaults`, else from the field.
    """
    return {field.name: _value(body, field, defaults, where) for field in fields}


def _value(body: Mapping[str, Any], field: Field, defaults: Mapping[str, Any], where: str) -> Any:
    name, value = next(((name, body[name]) for name in (field.name, *field.aliases) if body.get(name) is not None),
                       (field.name, None))
    if field.convert is not None and value is not None:
        value = field.convert(value)
    if value is None:
        return defaults.get(field.name, field.default)
    if field.kind in (list, object):  # in several forms
        return value
    if field.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if field.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = as_float(name, value)
    if not isinstance(value, field.kind) or isinstance(value, bool) and field.kind is not bool:
        raise ApiError(400, f"{where}{name}: {shorten(body[name])} is not {_KIND_NAMES[field.kind]}")
    if field.kind in (int, float) and not field.low <= value <= field.high:  # type: ignore[operator]
        raise ApiError(400, f"{where}{name}: {shorten(body[name])} is out of range, allowed is {_limits(field)}")
    return value


def as_float(name: str, value: int | float) -> float:
    """`value` as a float; ApiError 400 naming `name` for a whole number that is too large for one."""
    try:
        return float(value)
    except OverflowError:
        raise ApiError(400, f"{name}: the number is too large") from None


def _limits(field: Field) -> str:
    if field.high == INF:
        return f"at least {field.low:.10g}"
    return f"at most {field.high:.10g}" if field.low == -INF else f"{field.low:.10g} to {field.high:.10g}"


def shorten(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
