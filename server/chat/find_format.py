"""Finds the `CallFormat` of a chat template by rendering made-up calls with it.

The words in these calls occur in no template, so the text around the words is the format. It counts only if calls
written in it are in the rendered text, white space aside. `named_formats` has formats that can't be found like this.
Pure, any thread.

Not taken: a table of all known models. Users edit templates, and new models appear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

from server.chat.adapt import adapt
from server.chat.find_calls import MARK, Found, cut_left, find_calls, find_common_end, find_common_start
from server.chat.named_formats import (
    END_MARKS,
    QUOTES,
    family_of,
    find_named_details,
    find_named_format,
    guess_reasoning,
)
from server.chat.output.formats import GENERIC, CallFormat, IdForm, NamedCall, ParameterCall, Tags
from server.chat.output.write_calls import WrittenCall, write_calls
from server.chat.probe import CALL_ID, NAME, OTHER, SECOND_ID, WORD, Probe
from server.chat.probe import KEY as FIRST_KEY
from server.records import replace

QUESTION, RESULT = "b9f1probe", "b9f2probe"
SECOND_KEY, SECOND_NAME = "b9f3probe", "b9f4probe"
NUMBER = 70197
CALLS = (
    WrittenCall(NAME, {FIRST_KEY: WORD, SECOND_KEY: NUMBER}, CALL_ID, 0),
    WrittenCall(SECOND_NAME, {FIRST_KEY: OTHER, SECOND_KEY: NUMBER}, SECOND_ID, 1),
)
VALUES = (True, None, {FIRST_KEY: 1}, [1])  # neither text nor number
PARAMETERS = {
    "type": "object",
    "properties": {
        FIRST_KEY: {"type": "string", "description": "x"},
        SECOND_KEY: {"type": "integer", "description": "x"},
    },
    "required": [FIRST_KEY],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "x", "parameters": PARAMETERS}}
    for name in (NAME, SECOND_NAME)
]
USER = {"role": "user", "content": QUESTION}
ANSWER = "~b9f6probe"  # no mark and no name begins with ~, so calls differ from it in their first character
PLAIN = {"role": "assistant", "content": ANSWER}


def find_format(probe: Probe) -> CallFormat:
    """The format of a template's calls and reasoning; based on `GENERIC` if no format of calls is found."""
    details = {"reasoning": find_reasoning(probe), **find_named_details(probe.source)}
    found = find_named_format(probe.source) or probe_format(probe, details["reasoning"]) or GENERIC
    missing = {name: value for name, value in details.items() if not getattr(found, name)}
    return replace(found, **missing, ids=find_ids(probe, found))


def find_reasoning(probe: Probe) -> Tags | None:
    """The tags around reasoning; None if the template has none."""
    for calls in ((), CALLS[:1]) if probe.reasoning_key else ():
        text = _render(probe, _make_conversation(calls, OTHER, WORD))
        before, word, after = (text or "").partition(WORD)
        opens = [match.start() for match in MARK.finditer(before)]
        close = re.match(rf"\s*({MARK.pattern})\s*", after)
        if word and opens and close:
            return Tags(before[opens[-1] :], close[0])
    return guess_reasoning(probe.source, probe.render([USER]) or "")


def find_ids(probe: Probe, found: CallFormat) -> IdForm:
    """The form of call ids that a template requires or renders; else the default form."""
    if found.ids != IdForm():
        return found.ids
    call = found.call
    if isinstance(call, NamedCall) and call.before_index and "functions." in found.before_call + call.before_name:
        return IdForm(pattern="functions.{name}:{index}")
    return IdForm("", 9) if found.is_native and probe.wants_short_ids else IdForm()


def probe_format(probe: Probe, reasoning: Tags | None) -> CallFormat | None:
    """The format in which the template renders calls; None if it renders none, or in an unknown format."""
    if probe.call_form is None:
        return None
    calls = CALLS if probe.reads_many_calls else CALLS[:1]
    text = _remove_reasoning(_turn(probe, calls) or "", reasoning)
    found = find_calls(text, calls)
    if found is None:
        return None
    made = split_marks(text, found, _find_stops(probe))
    if isinstance(made.call, ParameterCall):
        made = replace(made, call=_add_details(probe, made.call))
    if not made.before_all + made.before_call + getattr(made.call, "before_name", ""):
        made = replace(made, at_start=True, also_before=("<|python_tag|>",) if "ipython" in probe.source else ())
    written = write_calls(made, calls)
    return replace(made, family=family_of(written)) if _remove_space(written) in _remove_space(text) else None


def _add_details(probe: Probe, call: ParameterCall) -> ParameterCall:
    """Add the marks of values that are neither string nor number, if any is new, and the quotes that may be around
    strings."""
    call = replace(call, quotes=next((quotes for quotes in QUOTES if quotes[0] in probe.source), ()))
    marks = list(call.string_mark)
    for value in VALUES if marks else ():
        text = _turn(probe, [replace(CALLS[0], arguments={FIRST_KEY: value})]) or ""
        marks.append(text.partition(FIRST_KEY + call.after_key)[2].partition(call.after_mark)[0] or marks[1])
    return replace(call, string_mark=tuple(marks)) if len(set(marks)) > 2 else call


# parts of a rendered turn


def _turn(probe: Probe, calls: Sequence[WrittenCall]) -> str | None:
    """The assistant's turn with these calls as rendered. It begins where an answer without calls differs, and usually
    ends where a conversation without results differs. None if the template refuses the conversation."""
    text = _render(probe, _make_conversation(calls))
    plain = _render(probe, [USER, PLAIN])
    if text is None or plain is None:
        return None
    start = cut_left(text, len(commonprefix([text, plain])))
    end = cut_left(text, len(commonprefix([text, _render(probe, _make_conversation(calls)[:2]) or ""])))
    if str(NUMBER) in text[end:]:  # without results the template renders the calls differently
        end = text.find(RESULT)
    return text[start:end]


def _make_conversation(calls: Sequence[WrittenCall], content: str = "", reasoning: str = "") -> list[dict[str, Any]]:
    """A question, the assistant's answer and calls, and the results of the calls."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in calls
        ]
    if reasoning:
        message["reasoning_content"] = reasoning
    results = [{"role": "tool", "tool_call_id": call.id, "name": call.name, "content": RESULT} for call in calls]
    return [USER, message, *results]


def _render(probe: Probe, messages: list[dict[str, Any]]) -> str | None:
    """The rendered text after the last question. None if the template refuses the messages or omits the question."""
    text = probe.render(adapt(messages, probe), TOOLS)
    return None if text is None or QUESTION not in text else text.rpartition(QUESTION)[2]


def _remove_reasoning(text: str, reasoning: Tags | None) -> str:
    """Remove everything up to the end of the (empty) reasoning that some templates write before calls."""
    close = reasoning.close.strip() if reasoning else ""
    return text.rpartition(close)[2].lstrip() if close else text


def _find_stops(probe: Probe) -> list[str]:
    """Texts that end an answer: the first mark or word after an answer without calls, the marks before the answer
    (another turn may begin with them), and `END_MARKS`."""
    text = _render(probe, [USER, PLAIN, {"role": "user", "content": "x"}]) or ""
    header, _, behind = text.partition(ANSWER)
    end = re.match(rf"\s*({MARK.pattern}|\S+)", behind)
    return [*(match[0] for match in MARK.finditer(header)), *([end[1]] if end else []), *END_MARKS]


def _remove_space(text: str) -> str:
    return re.sub(r"\s+", "", text)


# from spans to a format


def split_marks(text: str, found: Found, stops: Sequence[str]) -> CallFormat:
    """The format of the calls at `found.spans`, from the text around and between them."""
    before, after = text[: found.spans[0][0]], text[found.spans[-1][1] :]
    after = after[: min((at for at in map(after.find, stops) if at >= 0), default=len(after))]
    if len(found.spans) == 1:
        made = CallFormat("", found.call, before_call=before, after_call=after, can_be_many=False)
    else:
        middle = text[found.spans[0][1] : found.spans[1][0]]
        before_call = find_common_end(before, middle)
        rest = middle[: len(middle) - len(before_call)]
        after_call = find_common_start(rest, after)
        made = CallFormat(
            "",
            found.call,
            before[: len(before) - len(before_call)],
            after[len(after_call) :],
            before_call,
            after_call,
            rest[len(after_call) :],
        )
    return move_name_marks(move_space(made))


def move_space(made: CallFormat) -> CallFormat:
    """Move white space from the outer edges of each call to the texts around it, and remove it at the edges of the
    whole text."""
    before_call, after_call = made.before_call.lstrip(), made.after_call.rstrip()
    space = made.before_call[: len(made.before_call) - len(before_call)]
    behind = made.after_call[len(after_call) :]
    return replace(
        made,
        before_all=made.before_all.lstrip() + (space if made.before_all.strip() else ""),
        before_call=before_call,
        between=behind + made.between + space if made.can_be_many else "",
        after_call=after_call,
        after_all=((behind if made.after_all.strip() else "") + made.after_all).rstrip(),
    )


def move_name_marks(made: CallFormat) -> CallFormat:
    """If two marks precede a name and text precedes the last mark of `after_call`, the second mark becomes
    `before_name`, that text `after_arguments`."""
    call = made.call
    at = made.before_call.rfind("<")
    to = max((match.start() for match in MARK.finditer(made.after_call)), default=0)
    if (
        not isinstance(call, (NamedCall, ParameterCall))
        or to <= 0
        or not made.before_call[: max(at, 0)].strip().endswith(">")
    ):
        return made
    call = replace(call, before_name=made.before_call[at:], after_arguments=made.after_call[:to])
    return replace(made, call=call, before_call=made.before_call[:at], after_call=made.after_call[to:])
