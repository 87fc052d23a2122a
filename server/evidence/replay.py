"""`replay FILE`: the requests of a record run again, one by one with `--exact`, and their tokens compared.

Main thread; `app` starts an engine for each model of the record and passes it on. What ended before its time (the
client left, a limit of time) is compared as far as it had got. Requests with images or sounds are left out: the record
has only their hashes. A record that doesn't hold together isn't run at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from server.engine.seam.config import EngineConfig, SpecConfig
from server.engine.seam.plain import from_plain
from server.engine.seam.task import STOP_ABORT, STOP_LIMIT, Piece, Task
from server.errors import ApiError
from server.evidence.chain import RecordError, read_lines
from server.evidence.models import hash_of
from server.model_files.identity import difference
from server.models.model import Engine, Vocab
from server.records import record, replace

N_SHOWN = 8  # tokens of a difference
CUT_SHORT = (None, STOP_ABORT, STOP_LIMIT)

Content = dict[str, Any]


@record
class Verdicts:
    """How many answers came out the same, came out otherwise, and can't be run again."""

    n_same: int = 0
    n_other: int = 0
    n_left_out: int = 0

    def __str__(self) -> str:
        left_out = f"; {self.n_left_out} can't be run again" if self.n_left_out else ""
        n = self.n_same + self.n_other
        return f"{n} answers: {self.n_same} identical, {self.n_other} not{left_out}"


def read(path: Path) -> list[tuple[Content, list[Content]]]:
    """What is recorded about each model, and the requests to it. RecordError if the record doesn't hold together."""
    abouts: dict[str, Content] = {}
    requests: dict[str, list[Content]] = {}
    for line in read_lines(path):
        kind, name = line.content.get("kind"), str(line.content.get("model"))
        if kind == "model" and "config" in line.content:
            abouts[name] = line.content
        elif kind == "request" and name in abouts:
            requests.setdefault(name, []).append(line.content)
    if not requests:
        raise RecordError(f"{path} has no requests to a known model")
    return [(abouts[name], some) for name, some in requests.items()]


def config_of(about: Content) -> EngineConfig:
    """The configuration of an engine that computes as the recorded one did, but exactly. RecordError if what is
    recorded can't be read."""
    try:
        config = from_plain(EngineConfig, about["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"the model of this record can't be read: {error}") from None
    n_slots = config.n_slots if config.exact else 1
    return replace(
        config,
        n_slots=n_slots,
        n_ctx=about["n_ctx_slot"] * n_slots,
        exact=True,
        kv_unified=None,
        cache_ram=0,
        cache_disk="",
        slot_files=False,
        embeddings=False,
        mmproj="",
        spec=SpecConfig(),
    )


def other_model(recorded: Content, ours: Content) -> str:
    """In what the engine that runs now differs from the recorded one; "" if both compute the same."""
    if hash_of(recorded) == hash_of(ours):
        return ""
    found = difference(recorded["facts"], ours["facts"])
    return found or f"another CPU build ({recorded['variant']}); this is {ours['variant']}"


def run(engine: Engine, requests: list[Content], verdicts: Verdicts) -> Iterator[str]:
    """Run the requests; a line about each answer that isn't identical."""
    for request in requests:
        for i, answer in enumerate(request["answers"]):
            where = f"{request['n']}: {request['path']} {request['id']}" + (f", answer {i}" if i else "")
            prompt = request["prompts"][answer["prompt"]]
            if prompt["files"] or not answer["tokens"]:
                verdicts.n_left_out += 1
                continue
            try:
                tokens = _tokens(engine, _task(engine, request, answer, prompt["tokens"]))
            except (ApiError, ValueError, TypeError, KeyError) as error:
                verdicts.n_left_out += 1
                yield f"{where}: can't be run again: {error}"
                continue
            verdicts.n_same += tokens == answer["tokens"]
            verdicts.n_other += tokens != answer["tokens"]
            if tokens != answer["tokens"]:
                yield f"{where}: {_difference(answer['tokens'], tokens, engine.vocab)}"


def _task(engine: Engine, request: Content, answer: Mapping[str, Any], prompt: list[int]) -> Task:
    settings = request["settings"][answer["settings"]]
    system = engine.vocab.tokenize(request["system_prompt"], True, True) if request["system_prompt"] else []
    task = from_plain(
        Task,
        {
            **settings,
            "sampling": {**settings["sampling"], "seed": answer["seed"]},
            "id": engine.new_id(),
            "prompt": [*system, *prompt],
            "ends_thinking": answer.get("ends_thinking", -1),
            **dict.fromkeys(("t_max_prompt_ms", "t_max_predict_ms", "t_max_ms"), 0),
        },
    )
    if task.n_keep >= 0:
        task = replace(task, n_keep=task.n_keep + len(system))
    return replace(task, n_predict=len(answer["tokens"])) if answer["stop"] in CUT_SHORT else task


def _tokens(engine: Engine, task: Task) -> list[int]:
    with engine.submit(task, stream=False) as results:
        return [token for message in results if type(message) is Piece for token in message.tokens]


def _difference(recorded: list[int], ours: list[int], vocab: Vocab) -> str:
    """Where two answers part, in words."""
    n = next((i for i, pair in enumerate(zip(recorded, ours)) if pair[0] != pair[1]), min(len(recorded), len(ours)))
    was, now = (vocab.detokenize(tokens[n : n + N_SHOWN]).decode("utf-8", "replace") for tokens in (recorded, ours))
    return f"token {n} of {len(recorded)} is the first that differs: recorded {was!r}, now {now!r}"
