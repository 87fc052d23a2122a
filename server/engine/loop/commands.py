"""Commands to the engine: save, restore or erase a slot, read or set the adapters' scales, set the shared system
prompt, tell the model's identity, end a task's reasoning.

Engine thread only, between two batches. A command for a busy slot waits until the slot is idle, and the slot takes no
new task meanwhile. Commands about slot files or the identity first wait until the identity's hashing ends, and reserve
no slot until then. A reply reports the command's error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.engine.cache import prompt_cache, slot_files
from server.engine.loop.prefixes import Prefixes
from server.engine.loop.state import EngineState
from server.engine.seam.plain import to_plain
from server.engine.seam.task import Command, Reply
from server.engine.slots.backend import DECODE_OK
from server.engine.slots.planner import Span
from server.engine.slots.slot import Checkpoint, Slot
from server.errors import ApiError
from server.log import get_logger

WITH_FILES = ("save", "restore", "identity")

log = get_logger("engine")


class Commands:
    """One engine's commands, and their queue."""

    def __init__(self, state: EngineState, prefixes: Prefixes) -> None:
        self._state = state
        self._prefixes = prefixes
        self._backend = state.backend
        self._slots = state.slots
        self._waiting: deque[Command] = deque()
        self._table: dict[str, Callable[..., dict[str, Any]]] = {
            "save": self._save,
            "restore": self._restore,
            "erase": self._erase,
            "get_lora": self._get_lora,
            "set_lora": self._set_lora,
            "system_prompt": self._set_system_prompt,
            "end_thinking": self._end_thinking,
            "identity": self._tell_identity,
        }

    def __bool__(self) -> bool:
        """Whether a command waits for anything but the model's identity."""
        return any(not self._is_early(command) for command in self._waiting)

    def post(self, command: Command) -> None:
        self._waiting.append(command)

    def withdraw(self, id_command: int) -> bool:
        """Drop a waiting command whose client has left; False if there is none with this id."""
        found = next((command for command in self._waiting if command.id == id_command), None)
        if found is not None:
            self._waiting.remove(found)
        return found is not None

    def list_reserved(self) -> set[int]:
        """The ids of the slots that waiting commands need, which must take no new task."""
        return {
            slot.id for command in self._waiting if not self._is_early(command) for slot in self._list_needed(command)
        }

    def run_ready(self) -> list[Reply]:
        """Run the commands that can run now; return their replies."""
        replies: list[Reply] = []
        for _ in range(len(self._waiting)):
            command = self._waiting.popleft()
            if self._is_early(command) or any(slot.run is not None for slot in self._list_needed(command)):
                self._waiting.append(command)
            else:
                replies.append(self._answer(command))
        return replies

    def _is_early(self, command: Command) -> bool:
        return command.name in WITH_FILES and self._backend.identity.is_open

    def _require_identity(self) -> dict[str, Any]:
        """The facts that saved slots depend on. ApiError 500 if they couldn't be found."""
        identity = self._backend.identity
        if identity.facts is None:
            raise ApiError(500, f"the model's files could not be identified: {identity.fault}")
        return identity.facts

    def _tell_identity(self) -> dict[str, Any]:
        """What all results depend on: the identity and the engine's configuration."""
        return {"facts": self._require_identity(), "config": to_plain(self._state.config, ("shape",))}

    def _list_needed(self, command: Command) -> list[Slot]:
        if command.name == "system_prompt":
            return self._slots
        id_slot = command.args.get("id_slot")
        return [self._slots[id_slot]] if isinstance(id_slot, int) and 0 <= id_slot < len(self._slots) else []

    def _answer(self, command: Command) -> Reply:
        method = self._table.get(command.name)
        try:
            if method is None:
                raise ApiError(501, f"this engine has no command '{command.name}'")
            return Reply(command.id, method(**command.args))
        except ApiError as error:
            return Reply(command.id, {}, (error.status, error.message))
        except Exception:
            log.exception("command %s failed", command.name)
            return Reply(command.id, {}, (500, f"'{command.name}' failed in the engine; see the server's log"))

    def _get_slot(self, id_slot: int) -> Slot:
        if not 0 <= id_slot < len(self._slots):
            raise ApiError(400, f"there is no slot {id_slot}; the last slot is number {len(self._slots) - 1}")
        return self._slots[id_slot]

    def _save(self, id_slot: int, path: str) -> dict[str, Any]:
        slot = self._get_slot(id_slot)
        if slot.positions is not None:
            raise ApiError(400, "a slot with self-extend can't be saved")
        started = time.perf_counter()
        self._prefixes.unpark(slot)
        state = self._backend.read_state(slot.seq) if slot.tokens else memoryview(b"")
        n_written = slot_files.write(
            Path(path),
            self._require_identity(),
            slot.tokens,
            [list(pair) for pair in slot.lora],
            state,
            checkpoints=[(one.n, memoryview(one.state)) for one in slot.checkpoints],
            shifted_at=slot.shifted_at,
        )
        return {"n_saved": len(slot.tokens), "n_written": n_written, "ms": (time.perf_counter() - started) * 1e3}

    def _restore(self, id_slot: int, path: str) -> dict[str, Any]:
        slot = self._get_slot(id_slot)
        started = time.perf_counter()
        saved = slot_files.read(Path(path), self._require_identity())
        n = len(saved.tokens)
        if n > slot.n_ctx:
            raise ApiError(400, f"the saved slot has {n} tokens; slot {id_slot} holds at most {slot.n_ctx}")
        prompt_cache.trim(self._backend, slot, 0)
        if n and not self._backend.set_state(slot.seq, saved.state):
            self._backend.seq_rm(slot.seq, -1, -1)
            raise ApiError(400, "the saved slot doesn't fit this server's context (KV types or sizes differ)")
        slot.tokens[:] = saved.tokens
        slot.owner = None
        slot.lora, slot.shifted_at = tuple((int(i), float(scale)) for i, scale in saved.lora), saved.shifted_at
        slot.checkpoints = [Checkpoint(at, state) for at, state in saved.checkpoints if 0 < at <= n]
        return {"n_restored": n, "n_read": saved.size, "ms": (time.perf_counter() - started) * 1e3}

    def _erase(self, id_slot: int) -> dict[str, Any]:
        slot = self._get_slot(id_slot)
        n = len(slot.tokens or slot.parked)
        prompt_cache.trim(self._backend, slot, 0)
        return {"n_erased": n}

    def _get_lora(self) -> dict[str, Any]:
        scales = dict(self._state.lora)
        return {
            "adapters": [
                {"id": i, "path": path, "scale": scales.get(i, 0.0)} for i, path in enumerate(self._backend.adapters)
            ]
        }

    def _set_lora(self, scales: tuple[tuple[int, float], ...]) -> dict[str, Any]:
        self._state.lora = tuple(sorted((i, scale) for i, scale in scales if scale))
        return self._get_lora()

    def _end_thinking(self, id_task: int) -> dict[str, Any]:
        """Make the model end its reasoning. The reply has the number of tokens after which it ends, -1 if there is none
        to end."""
        run = next((slot.run for slot in self._state.busy if slot.run.task.id == id_task), None)
        if run is None or run.phases is None:
            return {"at": -1}
        return {"at": run.phases.end_thinking(max(run.n_decoded, len(run.task.resume)))}

    def _set_system_prompt(self, tokens: tuple[int, ...]) -> dict[str, Any]:
        """Compute the shared system prompt. All slots lose their caches; all later prompts begin with it."""
        info, system, is_split = self._backend.info, self._state.system, self._backend.is_split
        most = min(info.n_ctx_slot, info.n_ctx // info.n_slots)
        if len(tokens) >= most:
            raise ApiError(400, f"the system prompt has {len(tokens)} tokens; it must have fewer than {most}")
        for slot in self._slots if is_split else (*self._slots, system):
            prompt_cache.trim(self._backend, slot, 0)
        system.tokens, system.state_copy = [], None
        place = self._slots[0] if is_split else system
        place.lora = system.lora = self._state.lora
        self._backend.set_lora(self._state.lora)
        self._evaluate(place, tokens)
        if is_split:
            system.tokens = list(tokens)
            system.state_copy = self._backend.read_state(place.seq)
        n_left = info.n_ctx - len(tokens)
        if not is_split and (info.n_slots > 1 or self._state.config.shift_context):
            for slot in self._slots:  # leaves room for a shifted or restored slot's copy of the prompt
                slot.n_ctx = min(info.n_ctx_slot, n_left if n_left > len(tokens) else info.n_ctx)
        return {"n_tokens": len(tokens)}

    def _evaluate(self, slot: Slot, tokens: tuple[int, ...]) -> None:
        n_batch = self._backend.info.n_batch
        for start in range(0, len(tokens), n_batch):
            part = list(tokens[start : start + n_batch])
            if self._backend.decode([Span(slot.id, slot.seq, start, part, False)]) != DECODE_OK:
                prompt_cache.trim(self._backend, slot, 0)
                raise ApiError(500, "the system prompt could not be evaluated")
            slot.tokens += part
