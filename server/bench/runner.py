"""Runs workloads on servers in turns, and collects the results.

Main thread of the measuring process. Imports the standard library and this package. Each repetition of a workload runs
on all servers and begins with another server, so that a throttling machine or other programs affect all alike. Way not
taken: one server after the other.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bench.client import Ask, BenchError
from server.bench.report import Outcome
from server.bench.servers import BARE, Setup, read_cpu_seconds
from server.bench.workloads import WORKLOADS, Plan, Workload

PAUSE_S = 0.3
WARM_UP = Ask("Once upon a time", 8, {"temperature": 0.0})


@dataclass(frozen=True)
class Settings:
    model: Path
    threads: int
    repeat: int = 5
    scale: float = 1.0
    """Factor for all sizes."""
    seed: int = 0
    patience_s: float = 600.0
    """Time limit for the start of a server."""
    one_at_a_time: bool = False
    """Whether only one server is loaded at a time."""
    extra: tuple = ()
    """Words for the command line of every server."""


class Bench:
    def __init__(self, specs: list, settings: Settings, folder: Path, show: Callable[[str], None]) -> None:
        self.specs = specs
        self.names = [spec.name for spec in specs]
        self._settings, self._folder, self._show = settings, folder, show
        if len(set(self.names)) < len(self.names):
            raise BenchError(f"two servers have the same name ({', '.join(self.names)}): give them different names")

    def run(self, workloads: list, tell: Callable[[Outcome], None]) -> list:
        """Run the workloads and return an Outcome for each; `tell` gets each as soon as it is complete."""
        outcomes = []
        for _, group in itertools.groupby(workloads, key=lambda row: (self._make_setup(row), self._is_fresh(row))):
            rows = list(group)
            with contextlib.ExitStack() as stack:
                peers, troubles = {}, {}
                if not self._is_fresh(rows[0]):
                    peers, troubles = self._start_all(rows, stack)
                for workload in rows:
                    outcomes.append(self._measure(workload, peers, dict(troubles)))
                    tell(outcomes[-1])
        return outcomes

    def _is_fresh(self, workload: Workload) -> bool:
        return workload.fresh or self._settings.one_at_a_time

    def _make_setup(self, workload: Workload) -> Setup:
        return Setup(
            self._settings.model,
            self._settings.threads,
            workload.slots,
            workload.slots * workload.slot_ctx,
            (*self._settings.extra, *workload.extra),
        )

    def _start_all(self, rows: list, stack: contextlib.ExitStack) -> tuple:
        """Start the servers that `rows` need. Returns the running ones by name, and the reasons why others failed."""
        peers, troubles = {}, {}
        for spec in self.specs:
            if spec.name == BARE and not any(row.bare for row in rows):
                continue
            try:
                peers[spec.name] = stack.enter_context(self._start(spec, rows[0]))
                if rows[0].warms:
                    peers[spec.name].generate([WARM_UP])
            except BenchError as failure:
                troubles[spec.name] = str(failure)
        return peers, troubles

    def _start(self, spec: Any, workload: Workload) -> contextlib.AbstractContextManager:
        self._show(f"{workload.name}: starting {spec.name}")
        return spec.run(self._make_setup(workload), self._folder, self._settings.patience_s)

    def _measure(self, workload: Workload, peers: dict, troubles: dict) -> Outcome:
        """Run all repetitions. A peer that fails once has no results for this workload."""
        runs: dict = {}
        before = read_cpu_seconds()
        for repetition in range(self._settings.repeat):
            turn = repetition % len(self.specs)
            for spec in [*self.specs[turn:], *self.specs[:turn]]:
                if spec.name in troubles or (spec.name == BARE and not workload.bare):
                    continue
                self._show(f"{workload.name}: run {repetition + 1} of {self._settings.repeat}, {spec.name}")
                plan = Plan(self._settings.seed + repetition, self._settings.scale)
                try:
                    runs.setdefault(spec.name, []).append(self._run_once(workload, spec, peers.get(spec.name), plan))
                except BenchError as failure:
                    troubles[spec.name] = str(failure)
                    runs.pop(spec.name, None)
        return Outcome(workload, runs, troubles, compute_foreign_share(before, read_cpu_seconds()))

    def _run_once(self, workload: Workload, spec: Any, peer: Any, plan: Plan) -> tuple:
        time.sleep(PAUSE_S)  # the previous server's compute threads spin for a while, then sleep
        if peer is not None:
            return workload.run(peer, plan)
        with self._start(spec, workload) as fresh:
            if not workload.fresh and workload.warms:
                fresh.generate([WARM_UP])
            return workload.run(fresh, plan)


def choose(names: str | None) -> list:
    """The workloads `a,b,c` in the table's order; for None all but special ones. BenchError lists the known ones."""
    usual = [row.name for row in WORKLOADS if not row.is_special]
    wanted = [name.strip() for name in names.split(",")] if names else usual
    known = [row.name for row in WORKLOADS]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise BenchError(f"--workloads: {', '.join(unknown)} is unknown; use one of {', '.join(known)}")
    return [row for row in WORKLOADS if row.name in wanted]


def compute_foreign_share(before: tuple | None, after: tuple | None) -> float | None:
    """The share of other programs in the processor time between two `read_cpu_seconds`; None if unknown."""
    if before is None or after is None or after[0] <= before[0]:
        return None
    return max(1 - (after[1] - before[1]) / (after[0] - before[0]), 0.0)
