"""An engine process for the tests: the server's own main function with the fake backend and faults on request.

`engine.supervise` runs it in place of `llama_srv.py --engine-process`. The faults are JSON in `EngineConfig.model` (see
`Orders`), because that reaches the child. The number of engine lives is the size of a file, which each life makes
longer by a byte.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from server.engine.entry import process
from server.engine.seam.task import Task
from server.engine.slots.planner import Span
from server.engine.slots.sampling import Stage
from server.errors import StartError
from tests.fakes import FakeBackend, FakeSampler

COMMAND = (sys.executable, str(Path(__file__).resolve()))


@dataclass(slots=True)
class Orders:
    """`do` is a key of FAULTS, done at `where` ("load", "receive", "decode", "sample", "start") in its `nth` call of a
    life, in the first `lives` lives; with `poison` whenever a row of the batch (or the grammar, or the prompt of a task
    that is received) has these bytes instead.
    It `says` that on stderr before. Each step takes `step_s` at least. From the second life on it isn't loaded before there is a file `gate`."""

    lives_file: str = ""
    n_ctx: int = 8192
    n_slots: int = 4
    do: str = ""
    where: str = "decode"
    nth: int = 1
    lives: int = 10**9
    poison: str = ""
    step_s: float = 0.0
    gate: str = ""
    says: str = ""
    n_embd: int = 0

    def text(self) -> str:
        """As the model's name."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


class Faults:
    """Decides when a fault is due, and does it."""

    def __init__(self, orders: Orders, outlet: int) -> None:
        self._orders = orders
        self._outlet = outlet
        self._calls: dict[str, int] = {}
        self.life = 1
        if orders.lives_file:
            with open(orders.lives_file, "ab") as stream:
                stream.write(b"x")
            self.life = os.path.getsize(orders.lives_file)

    def meet(self, where: str, seen: str = "") -> None:
        """The product has come to `where`, with these bytes in its hands."""
        orders = self._orders
        self._calls[where] = n = self._calls.get(where, 0) + 1
        if where != orders.where or self.life > orders.lives:
            return
        if orders.poison in seen if orders.poison else n == orders.nth:
            os.write(2, orders.says.encode())
            FAULTS[orders.do](self._outlet)


def _refuse(outlet: int) -> None:
    raise StartError("the model file is rotten")


def _raise(outlet: int) -> None:
    raise RuntimeError("out of the blue")


def _half_a_frame(outlet: int) -> None:
    os.write(outlet, b"LSV\x01\0\0")
    os._exit(0)


FAULTS = {
    "": lambda outlet: None,
    "exit": lambda outlet: os._exit(3),
    "leave": lambda outlet: os._exit(0),
    "abort": lambda outlet: os.abort(),
    "segv": lambda outlet: faulthandler._sigsegv(),
    "kill": lambda outlet: os.kill(os.getpid(), signal.SIGKILL),
    "freeze": lambda outlet: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda outlet: time.sleep(3600),
    "nonsense": lambda outlet: os.write(outlet, b"terminate called after throwing an instance of 'std::exception'\n"),
    "half": _half_a_frame,
    "print": lambda outlet: os.write(1, b"a stray line\n"),
    "refuse": _refuse,
    "raise": _raise,
}


class FaultyBackend(FakeBackend):
    """The fake backend, meeting faults."""

    def __init__(self, orders: Orders, faults: Faults) -> None:
        super().__init__(n_ctx=orders.n_ctx, n_slots=orders.n_slots)
        self._orders = orders
        self._faults = faults

    def decode(self, spans: Sequence[Span]) -> int:
        if self._orders.step_s:
            time.sleep(self._orders.step_s)
        self._faults.meet("decode", "".join(chr(token) for span in spans for token in span.tokens))
        return super().decode(spans)

    def make_sampler(self, stages: Sequence[Stage], grammar: str, waits: bool = False) -> FakeSampler:
        self._faults.meet("start", grammar)
        sampler = super().make_sampler(stages, grammar, waits)
        sample = sampler.sample

        def faulty(row: int) -> int:
            self._faults.meet("sample")
            return sample(row)

        sampler.sample = faulty
        return sampler


def main() -> None:
    """Be an engine."""
    pipes = process._take_pipes()
    process._take_pipes = lambda: pipes
    known: list[Faults] = []
    take = process.EngineProcess._take

    def take_task(engine, message):
        if isinstance(message, Task) and known:
            known[0].meet("receive", "".join(map(chr, message.prompt)))
        take(engine, message)

    process.EngineProcess._take = take_task

    def open_backend(config, on_progress):
        orders = Orders(**json.loads(config.model))
        faults = Faults(orders, pipes[1])
        known.append(faults)
        on_progress(0.5)
        faults.meet("load")
        while orders.gate and faults.life > 1 and not os.path.exists(orders.gate):
            time.sleep(0.01)
        return FaultyBackend(orders, faults)

    process.main(open_backend=open_backend)


if __name__ == "__main__":
    main()
