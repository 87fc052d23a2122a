"""The filters for single values, and the table of all filters.

Run on the thread that renders the template. Each filter is `call(run, value, *args, **kwargs)` with the parameter names
of jinja2. `tojson` follows Hugging Face's transformers. jinja2's `filesizeformat`, `pprint`, `random`, `urlize` and
`xmlattr` are left out. Not taken: registering filters by decorator, which hides the list.
"""

from __future__ import annotations

import html
import json
import math
import re
import textwrap
import urllib.parse
from collections.abc import Callable, Iterable
from types import GeneratorType
from typing import Any

from .attributes import find_type_attribute, join_text, replace_text
from .errors import TemplateLimitError
from .formatting import format_percent
from .limits import Run
from .marked import Marked, build, concat, escape, is_safe, mark, mark_if, spans_of
from .sequences import FILTERS as SEQUENCE_FILTERS
from .sequences import do_list
from .text import JsonStyle, to_json, to_soft_text, to_text
from .values import Undefined

MAX_PRECISION = 400  # most decimal places for `round`; more would change no float
MAX_DIGITS = 4300  # most characters of a string that is converted to an integer; Python's own limit
WORD_STARTS = re.compile(r"([-\s({\[<]+)")
WORDS = re.compile(r"\w+")


def do_default(run: Run, value: Any, /, default_value: Any = "", boolean: bool = False) -> Any:
    """The value, or `default_value` if the value is undefined (with `boolean`: if it is false)."""
    return default_value if type(value) is Undefined or (boolean and not value) else value


def do_trim(run: Run, value: Any, /, chars: str | None = None) -> str:
    return to_soft_text(run, value).strip(chars)


def do_tojson(
    run: Run,
    value: Any,
    /,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> str:
    """The value as JSON, not escaped for HTML. Unless the template is strict, the lazy result of a filter is written as
    a list, as in llama.cpp."""
    if run.mutable and isinstance(value, GeneratorType):
        value = do_list(run, value)
    return to_json(run, value, JsonStyle(ensure_ascii, indent, separators, sort_keys))


def do_from_json(run: Run, value: Any, /) -> Any:
    result = json.loads(value)
    return mark(result) if spans_of(value) else result


def do_string(run: Run, value: Any, /) -> str:
    return to_soft_text(run, value)


def do_safe(run: Run, value: Any, /) -> str:
    """The text as a safe string."""
    text = to_soft_text(run, value)
    return build(text, spans_of(text), True)


def do_escape(run: Run, value: Any, /) -> str:
    """The text with HTML's special characters escaped, unless it is safe."""
    text = to_soft_text(run, value)
    run.count_text(6 * len(text))
    return escape(text)


def do_forceescape(run: Run, value: Any, /) -> str:
    """The text with HTML's special characters escaped, even if it is safe."""
    return do_escape(run, to_text(run, value))


def _make_text_filter(name: str) -> Callable[..., str]:
    """A filter that is a method of strings without arguments."""
    plain, marked = getattr(str, name), getattr(Marked, name)

    def filter_text(run: Run, value: Any, /) -> str:
        text = to_soft_text(run, value)
        run.count_text(len(text))
        return plain(text) if type(text) is str else marked(text)

    return filter_text


def do_title(run: Run, value: Any, /) -> str:
    text = to_text(run, value)
    words = WORD_STARTS.split(str.__str__(text))
    titled = "".join(word[0].upper() + word[1:].lower() for word in words if word)
    if len(titled) == len(text):
        return build(titled, spans_of(text))
    return mark_if(titled, text)


def do_replace(run: Run, value: Any, /, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = to_text(run, value), to_text(run, old), to_text(run, new)
    return replace_text(run, text, old, new, -1 if count is None else count)


def do_center(run: Run, value: Any, /, width: int = 80) -> str:
    run.count_text(width)
    return to_soft_text(run, value).center(width)


def do_indent(run: Run, value: Any, /, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if type(value) is Undefined:
        value.fail()
    if not isinstance(value, str):
        raise TypeError("indent() needs a string")
    run.count_text((len(width) if isinstance(width, str) else width) * (value.count("\n") + 1) + len(value))
    margin = width if isinstance(width, str) else " " * width
    pieces = [margin] if first else []
    for number, line in enumerate(concat([value, "\n"]).splitlines()):
        pieces += ["\n" if number else "", margin if number and (blank or line) else "", line]
    text = concat(pieces)
    return build(text, spans_of(text), is_safe(value))


def do_truncate(
    run: Run, value: Any, /, length: int = 255, killwords: bool = False, end: str = "...", leeway: int | None = None
) -> str:
    leeway = 5 if leeway is None else leeway
    if length < len(end) or leeway < 0:
        raise ValueError(f"truncate() needs a length of at least {len(end)} and no negative leeway")
    if len(value) <= length + leeway:
        return value
    kept = value[: length - len(end)]
    return kept + end if killwords else kept.rsplit(" ", 1)[0] + end


def do_wordwrap(
    run: Run,
    value: Any,
    /,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> str:
    newline = "\n" if wrapstring is None else wrapstring
    run.count_text(len(value) * (1 + len(newline)))
    lines = [
        textwrap.wrap(
            line,
            width=width,
            expand_tabs=False,
            replace_whitespace=False,
            break_long_words=break_long_words,
            break_on_hyphens=break_on_hyphens,
        )
        for line in str.splitlines(value)
    ]
    return mark_if(newline.join(newline.join(parts) for parts in lines), value, newline)


def do_wordcount(run: Run, value: Any, /) -> int:
    return len(WORDS.findall(to_soft_text(run, value)))


def do_striptags(run: Run, value: Any, /) -> str:
    """The text without HTML tags and comments, with HTML entities as characters, and with single spaces."""
    text = to_text(run, value)
    parts, position = [], 0
    while (start := text.find("<", position)) >= 0:
        closing = "-->" if text.startswith("<!--", start) else ">"
        end = text.find(closing, start + (4 if closing == "-->" else 0))
        if end < 0:
            break
        parts.append(str.__getitem__(text, slice(position, start)))
        position = end + len(closing)
    kept = "".join(parts) + str.__getitem__(text, slice(position, None))
    return mark_if(html.unescape(" ".join(kept.split())), text)


def do_urlencode(run: Run, value: Any, /) -> str:
    """The text, or the pairs of a dictionary or list, encoded for a URL."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return _quote(run, value, "/")
    pairs = value.items() if type(value) is dict else value
    return join_text(
        run,
        "&",
        [
            concat([_quote(run, key, "").replace("%20", "+"), "=", _quote(run, item, "").replace("%20", "+")])
            for key, item in pairs
        ],
    )


def _quote(run: Run, value: Any, keep: str) -> str:
    text = to_text(run, value)
    return mark_if(urllib.parse.quote(text.encode(), keep), text)


def do_int(run: Run, value: Any, /, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, str) and len(value) > MAX_DIGITS:
        raise TemplateLimitError(f"a number has more than {MAX_DIGITS} digits")
    try:
        return int(value, base) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        try:
            return int(float(value))
        except (TypeError, ValueError, OverflowError):
            return default


def do_float(run: Run, value: Any, /, default: Any = 0.0) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def do_abs(run: Run, value: Any, /) -> Any:
    return abs(value)


def do_round(run: Run, value: Any, /, precision: int = 0, method: str = "common") -> Any:
    if method not in ("common", "ceil", "floor"):
        raise ValueError("method must be common, ceil or floor")
    if abs(precision) > MAX_PRECISION:
        raise TemplateLimitError(f"round() takes at most {MAX_PRECISION} decimal places")
    if method == "common":
        return round(value, precision)
    rounded = math.ceil(value * 10**precision) if method == "ceil" else math.floor(value * 10**precision)
    return rounded / 10**precision


def do_format(run: Run, value: Any, /, *args: Any, **kwargs: Any) -> str:
    """`value % args`."""
    if args and kwargs:
        raise TypeError("can't handle positional and keyword arguments at the same time")
    return format_percent(run, to_soft_text(run, value), kwargs or args)


def do_attr(run: Run, value: Any, /, name: Any) -> Any:
    """The attribute of that name, never an item."""
    found = find_type_attribute(run, value, name)
    return found[0] if found is not None else Undefined(owner=value, name=name)


FILTERS: dict[str, Callable[..., Any]] = {
    **SEQUENCE_FILTERS,
    "abs": do_abs,
    "attr": do_attr,
    "capitalize": _make_text_filter("capitalize"),
    "center": do_center,
    "d": do_default,
    "default": do_default,
    "e": do_escape,
    "escape": do_escape,
    "float": do_float,
    "forceescape": do_forceescape,
    "format": do_format,
    "indent": do_indent,
    "int": do_int,
    "lower": _make_text_filter("lower"),
    "replace": do_replace,
    "round": do_round,
    "safe": do_safe,
    "string": do_string,
    "striptags": do_striptags,
    "title": do_title,
    "tojson": do_tojson,
    "trim": do_trim,
    "truncate": do_truncate,
    "upper": _make_text_filter("upper"),
    "urlencode": do_urlencode,
    "wordcount": do_wordcount,
    "wordwrap": do_wordwrap,
}

# filters that transformers doesn't have, but published templates use
EXTRA_FILTERS: dict[str, Callable[..., Any]] = {"from_json": do_from_json}
