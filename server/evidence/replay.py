"""`replay FILE`: runs the requests of a record again, one by one with `--exact`, and compares the tokens.

Main thread; `server/commands/records.py` starts an engine for each model of the record. An answer that was cut short
(the client left, or a time limit) is compared as far as it goes. Requests with images or sound are skipped: the record
has only their hashes.
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
from server.model_files.identity import describe_difference
from server.models.model import Engine, Vocab
from server.records import record, replace

N_SHOWN = 8  # tokens of a difference that are printed
CUT_SHORT = (None, STOP_ABORT, STOP_LIMIT)

Content = dict[str, Any]


@record
class Verdicts:
    """How many answers were identical, different, and skipped."""

    n_same: int = 0
    n_other: int = 0
    n_left_out: int = 0

    def __str__(self) -> str:
        left_out = f"; {self.n_left_out} can't be run again" if self.n_left_out else ""
        n = self.n_same + self.n_other
        return f"{n} answers: {self.n_same} identical, {self.n_other} not{left_out}"


def read(path: Path) -> list[tuple[Content, list[Content]]]:
    """Each recorded model's identity and requests. RecordError if the record was changed or has no requests."""
    abouts: dict[str, Content] = {}
    requests: dict[str, list[Content]] = {}
    for line in read_lines(path):
        kind, name = line.content.get("kind"), str(line.content.get("model"))
        if kind == "model" and "config" in line.content:
            abouts[name] = line.content
        elif kind == "request" and name in abouts:
            requests.setdefault(name, []).append(line.content)
    if not requests:
        raise RecordError(f"{path} has no requests to replay")
    return [(abouts[name], some) for name, some in requests.items()]


def config_of(about: Content) -> EngineConfig:
    """The recorded configuration, reduced to what an exact replay needs. RecordError if it can't be read."""
    try:
        config = from_plain(EngineConfig, about["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"the recorded model can't be used: {error}") from None
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


def describe_other_model(recorded: Content, ours: Content) -> str:
    """How our engine differs from the recorded one; "" if both compute the same."""
    if hash_of(recorded) == hash_of(ours):
        return ""
    found = describe_difference(recorded["facts"], ours["facts"])
    return found or f"another CPU build ({recorded['variant']}; this one is {ours['variant']})"


def run(engine: Engine, requests: list[Content], verdicts: Verdicts) -> Iterator[str]:
    """Run the requests and count the verdicts. Yields a line for each answer that differs or fails."""
    for request in requests:
        for i, answer in enumerate(request["answers"]):
            where = f"{request['n']}: {request['path']} {request['id']}" + (f", answer {i}" if i else "")
            prompt = request["prompts"][answer["prompt"]]
            if prompt["files"] or not answer["tokens"]:
                verdicts.n_left_out += 1
                continue
            try:
                tokens = _generate_tokens(engine, _make_task(engine, request, answer, prompt["tokens"]))
            except (ApiError, ValueError, TypeError, KeyError) as error:
                verdicts.n_left_out += 1
                yield f"{where}: can't be run again: {error}"
                continue
            verdicts.n_same += tokens == answer["tokens"]
            verdicts.n_other += tokens != answer["tokens"]
            if tokens != answer["tokens"]:
                yield f"{where}: {_describe_difference(answer['tokens'], tokens, engine.vocab)}"


def _make_task(engine: Engine, request: Content, answer: Mapping[str, Any], prompt: list[int]) -> Task:
    settings = request["settings"][answer["settings"]]
    system = engine.vocab.tokenize(request["system_prompt"], True, True) if request["system_prompt"] else []
    task = from_plain(
        Task,
        {
            **settings,
            "sampling": {**settings["sampling"], "seed": answer["seed"]},
            "id": engine.make_id(),
            "prompt": [*system, *prompt],
            "ends_thinking": answer.get("ends_thinking", -1),
            **dict.fromkeys(("t_max_prompt_ms", "t_max_predict_ms", "t_max_ms"), 0),
        },
    )
    if task.n_keep >= 0:
        task = replace(task, n_keep=task.n_keep + len(system))
    return replace(task, n_predict=len(answer["tokens"])) if answer["stop"] in CUT_SHORT else task


def _generate_tokens(engine: Engine, task: Task) -> list[int]:
    with engine.submit(task, stream=False) as results:
        return [token for message in results if type(message) is Piece for token in message.tokens]


def _describe_difference(recorded: list[int], ours: list[int], vocab: Vocab) -> str:
    n = next((i for i, pair in enumerate(zip(recorded, ours)) if pair[0] != pair[1]), min(len(recorded), len(ours)))
    was, now = (vocab.detokenize(tokens[n : n + N_SHOWN]).decode("utf-8", "replace") for tokens in (recorded, ours))
    return f"token {n} of {len(recorded)} differs: recorded {was!r}, now {now!r}"
