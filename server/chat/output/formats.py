"""How a model writes tool calls and reasoning, as plain descriptions: from one `CallFormat` come the parser that finds
calls in a text (`parser`) and the grammar that makes them certain (`call_grammar`).

Pure data. Which format a model speaks is found from its chat template (`find_format`). All texts are what the model
writes, with special tokens spelled out. White space at the edges of these texts is advice: the grammar writes it as it
stands here, the parser reads calls with more or less of it, too.
"""

from __future__ import annotations

from server.records import record

NAME, KEY = "{name}", "{key}"


@record(frozen=True)
class Tags:
    """The texts around reasoning. `is_opened` where the template's generation prompt already ends with `open`.
    `ends_at` is what a call begins with, where a call ends the reasoning, too, and `close` stands before text only."""

    open: str
    close: str
    is_opened: bool = False
    ends_at: str = ""


@record(frozen=True)
class JsonCall:
    """An object that holds all: {"name": "f", "arguments": {...}}. `id_key` is "" where calls have no id; `id_first`
    where the id stands before the name, not behind the arguments; `id_is_number` where it is only the call's number as
    a text ("0"), no id for a client."""

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
    """The name between texts, then the arguments as a JSON object.

    `before_id` is "" where calls have no id. The id stands behind the name (name, `before_id`, id, `after_name`,
    arguments), with `id_first` before it (`before_id`, id, `before_name`, name, `after_name`, arguments). Where
    `before_index` isn't "", the call's number in digits stands behind it, between the name and `after_name`; the first
    one's is `first_index`.
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
    """The name, then each argument with a tag of its own. Texts stand for themselves, other values are JSON.

    `string_mark` are the texts that say which of both a value is, between `after_key` and `after_mark`: the first one
    for texts, any other for JSON (("true", "false"), or one for each of text, number, boolean, null, object and list);
    () where the schema alone says it. `KEY` in `after_value` stands for the argument's name once more. `quotes` are two
    texts that may stand around a text (as CDATA). `before_index` and `first_index` as in `NamedCall`. `NAME` in
    `after_name` stands for the function's name once more.
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
    """A call as Python writes it, f(a="x", b=1)."""


@record(frozen=True)
class QuotelessCall:
    """The name, then an object whose keys have no quotation marks and whose texts have `quote` around them."""

    before_name: str
    after_name: str = ""
    quote: str = '"'


@record(frozen=True)
class ChannelCall:
    """Harmony: an answer is a row of messages, each with a head that says what it is, from `start` to `message`. A head
    that is addressed to functions.f makes the message a call of f, whose text is the arguments as JSON; the channel
    `analysis` is reasoning, any other is visible text. Heads vary, so the parser reads them word by word; one of
    `ends`, or the next `start`, ends a message. `call_head` is what the grammar writes, around the name."""

    start: str = "<|start|>assistant"
    channel: str = "<|channel|>"
    message: str = "<|message|>"
    ends: tuple[str, ...] = ("<|end|>", "<|call|>", "<|return|>")
    call_head: tuple[str, str] = ("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>")


Call = JsonCall | KeyedCall | NamedCall | ParameterCall | PythonCall | QuotelessCall | ChannelCall


@record(frozen=True)
class IdForm:
    """How ids of calls look, for those that this server makes: "call_" and 24 letters where a template has no wish.
    Where `pattern` isn't "", it is the whole id, with `{name}` and `{index}` (the number that was written)."""

    prefix: str = "call_"
    n_letters: int = 24
    pattern: str = ""


@record(frozen=True)
class CallFormat:
    """One family's way.

    `family` names it in documents and in /props. A call stands between `before_call` and `after_call`, all calls of an
    answer between `before_all` and `after_all`, with `between` from one to the next; `can_be_many` is False where an
    answer has one call at most. `at_start` is True where a call is only one at the beginning of the answer (behind the
    reasoning), because it has no mark of its own. `content` are the tags around visible text where a family has such
    (Command-R's <|START_RESPONSE|>). `silent` are further texts that say nothing, left out wherever they stand in
    visible text. `opening` is what the prompt has already written of the first mark: all marks, also
    those of reasoning and content, are written as if an answer began with it. `also_before` are further texts that a
    model may write before a call. `is_native` is False for the generic form, of which the template knows nothing and
    which a system message explains.
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
