"""The scenarios in `scenarios/*.feature`: the server's behaviour in plain sentences.

Each sentence is a step below; pytest-bdd matches them. They run against the real program with models that the tests
write. Behaviour that doesn't fit in one sentence is tested elsewhere.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from pytest_bdd import given, parsers, scenarios, then, when

from tests.support import ServerProcess, wait_until

pytestmark = pytest.mark.covers("F09")
scenarios("scenarios")

ENDINGS = {"the model ended it": "eos", "the limit was reached": "limit", "a stop word came": "word"}


@dataclass(slots=True)
class World:
    """What the sentences of one scenario talk about. The server starts with the first one that needs it."""

    serve: object
    folder: Path
    arguments: list[object] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    running: ServerProcess | None = None
    response: requests.Response | None = None
    texts: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def server(self) -> ServerProcess:
        if self.running is None:
            self.running = self.serve("-t", 1, *self.arguments)
        return self.running

    def ask(self, path: str, body: object = None, **headers: str) -> None:
        """POST, and remember the answer."""
        self.response = self.server.post(path, body, headers={**self.headers, **headers})

    def go_on(self, prompt: str, **fields: object) -> None:
        """Have a prompt continued greedily."""
        self.ask("/completion", {"prompt": prompt, "temperature": 0, **fields})

    @property
    def answer(self) -> dict:
        assert self.response.status_code == 200, self.response.text
        return self.response.json()

    @property
    def text(self) -> str:
        if self.pieces:
            return "".join(self.pieces)
        return self.answer["choices"][0]["message"]["content"] if "choices" in self.answer else self.answer["content"]


@pytest.fixture
def world(serve, tmp_path: Path) -> World:
    return World(serve, tmp_path)


# ---- given -------------------------------------------------------------------------------------------------------


@given("a server on the recite model")
def recite(world: World, recite_model: Path):
    world.arguments += ["-m", recite_model]


@given("a server on the tiny model")
def tiny(world: World, tiny_spm_model: Path):
    world.arguments += ["-m", tiny_spm_model]


@given(parsers.re(r"it has (?P<n>\d+) slots? and (?P<n_ctx>\d+) tokens of context for each"))
def slots(world: World, n: str, n_ctx: str):
    world.arguments += ["-np", n, "-c", int(n) * int(n_ctx)]


@given(parsers.parse('its key is "{key}"'))
def key(world: World, key: str):
    world.arguments += ["--api-key", key]


@given(parsers.parse('its alias is "{name}"'))
def alias(world: World, name: str):
    world.arguments += ["--alias", name]


@given("it keeps slots in a folder")
def keeps_slots(world: World):
    world.arguments += ["--slot-save-path", world.folder]


@given(parsers.parse('"{prompt}" was continued'))
@when(parsers.parse('"{prompt}" is continued'))
def go_on(world: World, prompt: str):
    world.go_on(prompt)


@given(parsers.re(r'"(?P<prompt>[^"]+)" was continued by at most 1 token in slot (?P<slot>\d+)'))
def go_on_in_slot(world: World, prompt: str, slot: str):
    world.go_on(prompt, n_predict=1, id_slot=int(slot))


# ---- when --------------------------------------------------------------------------------------------------------


@when(parsers.parse('"{prompt}" is continued by at most {n:d} tokens'))
def go_on_so_far(world: World, prompt: str, n: int):
    world.go_on(prompt, n_predict=n)


@when(parsers.parse('"{prompt}" is continued until "{word}"'))
def go_on_until(world: World, prompt: str, word: str):
    world.go_on(prompt, stop=[word])


@when(parsers.parse('"{prompt}" is continued in slot {slot:d}'))
def go_on_in(world: World, prompt: str, slot: int):
    world.go_on(prompt, n_predict=1, id_slot=slot)


@when(parsers.parse('"{prompt}" is continued with the header "{name}: {value}"'))
def go_on_with_header(world: World, prompt: str, name: str, value: str):
    world.headers[name] = value
    world.go_on(prompt, n_predict=1)


@when(parsers.parse('"{prompt}" is streamed'))
def stream(world: World, prompt: str):
    events = world.server.stream("/completion", {"prompt": prompt, "temperature": 0})
    world.pieces = [event["content"] for event in events]


@when(parsers.parse('{n:d} clients ask for "{prompt}" at once'))
def at_once(world: World, n: int, prompt: str):
    server = world.server
    with ThreadPoolExecutor(n) as pool:
        answers = pool.map(
            lambda _: requests.post(server.url + "/completion", json={"prompt": prompt, "temperature": 0}, timeout=120),
            range(n),
        )
        world.texts = [answer.json()["content"] for answer in answers]


@when("a client asks for endless text and hangs up after the first piece")
def hang_up(world: World):
    events = world.server.stream("/completion", {"prompt": "the cat", "n_predict": -1, "ignore_eos": True})
    next(events)
    events.close()


@when(parsers.parse('"{path}" is asked for without a key'))
def without_key(world: World, path: str):
    world.response = world.server.get(path)


@when(parsers.parse('slot {slot:d} is saved as "{name}"'))
def save(world: World, slot: int, name: str):
    world.ask(f"/slots/{slot}?action=save", {"filename": name})


@when(parsers.parse('slot {slot:d} is restored from "{name}"'))
def restore(world: World, slot: int, name: str):
    world.ask(f"/slots/{slot}?action=restore", {"filename": name})


@when(parsers.parse("slot {slot:d} is erased"))
def erase(world: World, slot: int):
    world.ask(f"/slots/{slot}?action=erase")


@when(parsers.parse('the user says "{text}"'))
def say(world: World, text: str):
    world.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "max_tokens": 8})


@when(parsers.parse('the user says "{text}" and the answer has to match {rule}'))
def say_bound(world: World, text: str, rule: str):
    world.ask(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "temperature": 0, **json.loads(rule)}
    )


@when("a message without a role is sent")
def no_role(world: World):
    world.ask("/v1/chat/completions", {"messages": [{"content": "hello"}]})


# ---- then --------------------------------------------------------------------------------------------------------


@then(parsers.parse('the answer is "{text}"'))
def answer_is(world: World, text: str):
    assert world.text.strip() == text.strip()


@then(parsers.parse("it ends because {reason}"))
def ends_because(world: World, reason: str):
    assert world.answer["stop_type"] == ENDINGS[reason]


@then("no piece of it held half a character")
def whole_characters(world: World):
    assert len(world.pieces) > 1 and not any("\ufffd" in piece for piece in world.pieces)


@then(parsers.parse("only {n:d} token of the prompt was evaluated"))
def evaluated(world: World, n: int):
    assert world.answer["timings"]["prompt_n"] == n


@then(parsers.parse('each of them gets "{text}"'))
def each_gets(world: World, text: str):
    assert set(world.texts) == {text}


@then("in the end all slots are free")
def all_free(world: World):
    wait_until(lambda: world.server.get("/health").json()["slots_processing"] == 0, "the slots to be free")


@then(parsers.parse("the status is {status:d}"))
def status_is(world: World, status: int):
    assert world.response.status_code == status, world.response.text


@then(parsers.parse('the error is of type "{name}"'))
def error_type(world: World, name: str):
    assert world.response.json()["error"]["type"] == name


@then(parsers.parse('the answer comes from the assistant and names the model "{name}"'))
def from_assistant(world: World, name: str):
    assert world.answer["choices"][0]["message"]["role"] == "assistant" and world.answer["model"] == name


@then("its usage counts prompt and answer")
def usage(world: World):
    counts = world.answer["usage"]
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"] > 2
