"""Describes how models write tool calls and reasoning. The parser that finds calls in text (`parser`) and the grammar
that forces valid calls (`call_grammar`) follow one `CallFormat`.

Pure data. `find_format` finds the format of a model from its chat template. The texts here are written by the model,
with special tokens as text. The parser accepts more or less white space at their edges.
"""

from __future__ import annotations

from server.records import record

NAME, KEY = "{name}", "{key}"


@record(frozen=True)
class Tags:
    """The texts around reasoning or visible text. `is_opened`: the answer begins inside the reasoning. `ends_at` is the
    beginning of a call, if a call ends the reasoning without `close`; "" otherwise."""

    open: str
    close: str
    is_opened: bool = False
    ends_at: str = ""


@record(frozen=True)
class JsonCall:
    """A JSON object: {"name": "f", "arguments": {...}}. `id_key` is "" if calls have no id. The id comes after the
    arguments, or before the name if `id_first`. `id_is_number`: the id is only the call's number as a string ("0"), so
    clients get another id."""

    name_key: str = "name"
    arguments_key: str = "arguments"
    id_key: str = ""
    id_first: bool = False
    id_is_number: bool = False


@record(frozen=True)
class KeyedCall:
    """An object whose only key is the function's name: {"f": {...}}."""


@record(frozen=True)
class NamedCall:
    """The name between two texts, then the arguments as a JSON object.

    `before_id` is "" if calls have no id. The id comes after the name (name, `before_id`, id, `after_name`, arguments),
    or before it if `id_first` (`before_id`, id, `before_name`, name, `after_name`, arguments). If `before_index` isn't
    "", it and the call's number in digits come before `after_name`. The first call's number is `first_index`.
    """

    before_name: str
    after_name: str
    after_arguments: str = ""
    before_id: str = ""
    id_first: bool = False
    before_index: str = ""
    first_index: int = 0


@record(frozen=True)
class ParameterCall:
    """The name, then each argument with a tag of its own. Strings are written as they are, other values as JSON.

    `string_mark` has the texts between `after_key` and `after_mark` that tell the type of a value: two texts, for
    strings and for all other values (DeepSeek writes string="true" or "false"), or six, for string, number, boolean,
    null, object and array. It is () if only the schema tells the type. `KEY` in `after_value` is replaced by the
    argument's name, `NAME` in `after_name` by the function's. `quotes` are two texts that may be around a string (as
    CDATA). `before_index` and `first_index` are as in `NamedCall`.
    """

    before_name: str
    after_name: str
    before_key: str
    after_key: str
    after_value: str
    after_arguments: str = ""
    string_mark: tuple[str, ...] = ()
    after_mark: str = ""
    quotes: tuple[str, ...] = ()
    before_index: str = ""
    first_index: int = 0


@record(frozen=True)
class PythonCall:
    """A call in Python's syntax: f(a="x", b=1)."""


@record(frozen=True)
class QuotelessCall:
    """The name, then an object whose keys have no quotes and whose strings have `quote` around them."""

    before_name: str
    after_name: str = ""
    quote: str = '"'


@record(frozen=True)
class ChannelCall:
    """Harmony: an answer is a sequence of messages, each with a head from `start` to `message`. If the head has
    `to=functions.f`, the message is a call of f, and its text is the arguments as JSON. The channel `analysis` is
    reasoning; other messages are visible text. A message ends with one of `ends` or with the next `start`. The parser
    accepts heads of several forms. The grammar writes only one, with the two texts of `call_head` around the name."""

    start: str = "<|start|>assistant"
    channel: str = "<|channel|>"
    message: str = "<|message|>"
    ends: tuple[str, ...] = ("<|end|>", "<|call|>", "<|return|>")
    call_head: tuple[str, str] = ("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>")


Call = JsonCall | KeyedCall | NamedCall | ParameterCall | PythonCall | QuotelessCall | ChannelCall


@record(frozen=True)
class IdForm:
    """The form of the call ids that this server makes: `prefix` and `n_letters` random letters and digits. If `pattern`
    isn't "", it is the whole id, with the call's name and number for `{name}` and `{index}`."""

    prefix: str = "call_"
    n_letters: int = 24
    pattern: str = ""


@record(frozen=True)
class CallFormat:
    """How one family of models writes calls and reasoning.

    `family` is its name in the documentation and in /props. Each call is between `before_call` and `after_call`; all
    calls of an answer are between `before_all` and `after_all`, with `between` from one call to the next.
    `can_be_many`: an answer may have several calls. `also_before` has further texts that a model may write before a
    call. `at_start`: calls have no mark of their own, so without one of these texts they are recognized only at the
    answer's beginning (after the reasoning).

    `content` has the tags around visible text, for families that have them (Command-R's <|START_RESPONSE|>). `silent`
    has further texts that are removed from visible text. `opening` is a text with which the prompt ends already, and
    with which the format's marks begin. `is_native` is False for the generic format, which no template shows.
    """

    family: str
    call: Call
    before_all: str = ""
    after_all: str = ""
    before_call: str = ""
    after_call: str = ""
    between: str = "\n"
    can_be_many: bool = True
    at_start: bool = False
    reasoning: Tags | None = None
    content: Tags | None = None
    silent: tuple[str, ...] = ()
    opening: str = ""
    also_before: tuple[str, ...] = ()
    ids: IdForm = IdForm()
    is_native: bool = True


GENERIC = CallFormat("generic", JsonCall(), before_call="<tool_call>\n", after_call="\n</tool_call>", is_native=False)
