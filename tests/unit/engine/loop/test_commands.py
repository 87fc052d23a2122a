"""The engine's commands between steps: slot files, erasing, adapters, the shared system prompt."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from server.engine.seam.task import Cancel
from server.model_files import identity
from server.model_files.identity import Identity, make_source, settings_of
from tests.fakes import BOS, PATIENCE_S, FakeBackend, letters
from tests.unit.engine.driving import Driver, alone

PROMPT = "a prompt of some length to be saved"


def driver(n_slots: int = 2, n_ctx_slot: int = 256, n_batch: int = 64, **config) -> Driver:
    return Driver(FakeBackend(letters, n_ctx_slot * n_slots, n_slots, n_batch=n_batch), **config)


def run(d: Driver, prompt, n_predict: int = 8, **fields) -> int:
    """A task run to its end, whose text must be right; how many tokens of the prompt were evaluated."""
    task = d.post(prompt, n_predict=n_predict, **fields)
    d.step_until(lambda: d.outcomes[task].ends)
    assert d.text(task) == alone(prompt, n_predict)
    return d.outcomes[task].final.timings.prompt_n


# ---- save, restore, erase ----------------------------------------------------------------------------------------


def test_a_saved_slot_can_be_restored_into_any_slot_and_saves_its_evaluation(tmp_path):
    d, path = driver(), tmp_path / "slot"
    run(d, PROMPT, id_slot=0)
    saved = d.answer("save", id_slot=0, path=str(path))
    n_tokens = len(PROMPT) + 7
    assert (saved["n_saved"], saved["n_written"]) == (n_tokens, path.stat().st_size) and saved["ms"] >= 0
    assert d.answer("erase", id_slot=0) == {"n_erased": n_tokens}
    assert d.backend.n_used == 0 and run(d, PROMPT, id_slot=0) == len(PROMPT)
    d.answer("erase", id_slot=0)
    restored = d.answer("restore", id_slot=1, path=str(path))
    assert (restored["n_restored"], restored["n_read"]) == (n_tokens, path.stat().st_size)
    assert run(d, PROMPT, id_slot=1) == 1


def test_a_slot_survives_the_engine(tmp_path):
    first, second = driver(), driver()
    run(first, PROMPT, id_slot=0)
    first.answer("save", id_slot=0, path=str(tmp_path / "slot"))
    second.answer("restore", id_slot=0, path=str(tmp_path / "slot"))
    assert run(second, PROMPT + " and more") == len(" and more")


def test_a_slot_saved_with_another_rope_is_refused(tmp_path):
    first, second = driver(), driver()
    first.backend.identity = Identity(about={"model": "fake", "settings": settings_of({"rope_freq_base": 5e4}, {})})
    run(first, PROMPT, id_slot=0)
    first.answer("save", id_slot=0, path=str(tmp_path / "slot"))
    status, message = second.refusal("restore", id_slot=0, path=str(tmp_path / "slot"))
    assert status == 400 and "--rope-freq-base" in message


def test_a_command_that_waits_can_be_withdrawn():
    d = driver()
    running = d.post("running", n_predict=6, id_slot=0)
    d.step()
    erase = d.command("erase", id_slot=0)
    d.step()
    d.scheduler.post(Cancel(erase))
    d.finish()
    assert erase not in d.replies and d.outcomes[running].final
    assert d.scheduler.slots[0].tokens, "it was not done"


def test_an_empty_slot_can_be_saved_and_restored(tmp_path):
    d = driver()
    assert d.answer("save", id_slot=0, path=str(tmp_path / "slot"))["n_saved"] == 0
    run(d, PROMPT, id_slot=1)
    assert d.answer("restore", id_slot=1, path=str(tmp_path / "slot"))["n_restored"] == 0
    assert run(d, PROMPT, id_slot=1) == len(PROMPT)


def test_what_cannot_be_restored_is_refused_and_nothing_is_believed_to_be_there(tmp_path):
    large, small = driver(n_ctx_slot=256), driver(n_ctx_slot=32)
    run(large, "x" * 60, id_slot=0)
    large.answer("save", id_slot=0, path=str(tmp_path / "slot"))
    status, message = small.refusal("restore", id_slot=0, path=str(tmp_path / "slot"))
    assert status == 400 and "67" in message and "32" in message
    assert small.refusal("restore", id_slot=0, path=str(tmp_path / "nothing"))[0] == 400
    large.backend.takes_states = False
    assert large.refusal("restore", id_slot=1, path=str(tmp_path / "slot"))[0] == 400
    assert run(large, "x" * 60, id_slot=1) > 0


@pytest.mark.parametrize("name", ["save", "restore", "erase"])
def test_a_slot_that_does_not_exist_is_refused(name, tmp_path):
    args = {} if name == "erase" else {"path": str(tmp_path / "slot")}
    for id_slot in (2, -1):
        status, message = driver().refusal(name, id_slot=id_slot, **args)
        assert status == 400 and str(id_slot) in message


def test_a_command_for_a_busy_slot_waits_and_the_slot_takes_no_other_task():
    d = driver()
    running = d.post("running", n_predict=10, id_slot=0)
    d.step()
    erase = d.command("erase", id_slot=0)
    late = d.post("late", n_predict=2, id_slot=0)
    free = d.post("free", n_predict=2)
    d.step_until(lambda: d.outcomes[running].ends)
    assert erase not in d.replies and not d.outcomes[late].pieces and d.outcomes[free].final.id_slot == 1
    d.finish()
    assert d.replies[erase].result == {"n_erased": len("running") + 9}
    assert d.text(late) == alone("late", 2)


def test_an_unknown_command_is_refused():
    assert driver().refusal("dance") == (501, "this engine has no command 'dance'")


def test_a_command_with_wrong_arguments_is_answered(caplog):
    caplog.set_level("CRITICAL", "llama_srv")
    assert driver().refusal("erase", slot=1)[0] == 500


def test_a_command_does_not_wait_for_tasks_that_it_does_not_concern():
    d = driver()
    task = d.post("running", n_predict=50)
    d.step()
    erase = d.command("erase", id_slot=1)
    d.step()
    assert erase in d.replies and not d.outcomes[task].ends


# ---- adapters ----------------------------------------------------------------------------------------------------


def with_adapters(**config) -> Driver:
    d = driver(n_slots=3, lora=(("first.gguf", 1.0), ("second.gguf", 0.0)), **config)
    d.backend.adapters = ("first.gguf", "second.gguf")
    return d


def test_the_adapters_of_the_command_line_are_used_by_everybody():
    d = with_adapters()
    run(d, PROMPT)
    assert d.backend.lora == ((0, 1.0),)
    assert d.answer("get_lora") == {
        "adapters": [{"id": 0, "path": "first.gguf", "scale": 1.0}, {"id": 1, "path": "second.gguf", "scale": 0.0}]
    }


def test_other_scales_hold_from_the_next_task_on():
    d = with_adapters()
    running = d.post("running", n_predict=20)
    d.step(3)
    assert d.answer("set_lora", scales=((1, 0.5),))["adapters"][1]["scale"] == 0.5
    after = d.post("after", n_predict=5)
    d.finish()
    assert d.text(running) == alone("running", 20) and d.text(after) == alone("after", 5)
    assert {cell.lora for cell in d.backend.cells[d.outcomes[running].final.id_slot]} == {((0, 1.0),)}
    assert {cell.lora for cell in d.backend.cells[d.outcomes[after].final.id_slot]} == {((1, 0.5),)}


def test_what_was_computed_with_other_adapters_is_not_reused():
    d = with_adapters()
    run(d, PROMPT, id_slot=0)
    assert run(d, PROMPT, id_slot=0, lora=((1, 1.0),)) == len(PROMPT)
    assert run(d, PROMPT, id_slot=1, lora=()) == len(PROMPT), "nor shared from another slot"
    assert run(d, PROMPT, id_slot=1, lora=()) == 1


def test_tasks_with_different_adapters_take_turns_and_all_finish():
    d = with_adapters()
    tasks = [d.post(f"task {i}", n_predict=12, lora=lora) for i, lora in enumerate([(), ((0, 1.0),), ((0, 0.5),)])]
    d.step(6)
    said = [len(d.outcomes[task].pieces) for task in tasks]
    assert max(said) - min(said) <= 1
    d.finish()
    assert [d.text(task) for task in tasks] == [alone(f"task {i}", 12) for i in range(3)]


# ---- the shared system prompt ------------------------------------------------------------------------------------

SYSTEM = [BOS, *b"you are a helpful assistant of few words. "]


def answer_of(d: Driver, prompt: str, n: int = 6, **fields) -> int:
    """A task behind the system prompt, whose text must be right; how many tokens were evaluated for its prompt."""
    task = d.post(prompt, n_predict=n, **fields)
    d.step_until(lambda: d.outcomes[task].ends)
    assert d.text(task) == alone([*SYSTEM, *prompt.encode()], n)
    return d.outcomes[task].final.timings.prompt_n


@pytest.mark.parametrize("cache_prompt", [True, False])
def test_the_system_prompt_is_computed_once_and_shared_by_all_slots(cache_prompt):
    d = driver(n_slots=3, n_batch=16)
    assert d.answer("system_prompt", tokens=tuple(SYSTEM)) == {"n_tokens": len(SYSTEM)}
    used = d.backend.n_used
    assert used == len(SYSTEM)
    for id_slot in range(3):
        assert answer_of(d, f"{id_slot}. question", id_slot=id_slot, cache_prompt=cache_prompt) == 11
    assert d.backend.n_used == used + 3 * (11 + 5)
    assert d.scheduler.snapshot().kv_used == d.backend.n_used


def test_equal_tokens_that_are_not_shared_are_counted_each():
    d = driver()
    d.answer("system_prompt", tokens=tuple(SYSTEM))
    for id_slot in range(2):
        answer_of(d, "question", id_slot=id_slot, cache_prompt=False)
    assert d.backend.n_used == len(SYSTEM) + 2 * (8 + 5)
    assert d.scheduler.snapshot().kv_used == d.backend.n_used


def test_another_system_prompt_starts_all_slots_anew():
    d = driver()
    d.answer("system_prompt", tokens=(BOS, *b"something else entirely"))
    run_first = d.post("x", n_predict=3)
    d.finish()
    assert d.outcomes[run_first].final
    d.answer("system_prompt", tokens=tuple(SYSTEM))
    assert d.backend.n_used == len(SYSTEM)
    assert answer_of(d, "question") == 8
    d.answer("system_prompt", tokens=())
    assert d.backend.n_used == 0 and run(d, "question") == 8


def test_a_new_system_prompt_waits_for_running_tasks_and_holds_back_new_ones():
    d = driver()
    running = d.post("running", n_predict=10)
    d.step()
    command = d.command("system_prompt", tokens=tuple(SYSTEM))
    later = d.post("later", n_predict=3)
    d.step_until(lambda: d.outcomes[running].ends)
    assert command not in d.replies and not d.outcomes[later].pieces
    d.finish()
    assert d.text(running) == alone("running", 10)
    assert d.text(later) == alone([*SYSTEM, *b"later"], 3)


def test_a_shift_keeps_the_system_prompt_for_all():
    d = driver(n_ctx_slot=80, shift_context=True)
    d.answer("system_prompt", tokens=tuple(SYSTEM))
    task = d.post("question", n_predict=100, id_slot=0)
    d.finish()
    assert d.outcomes[task].final.truncated
    assert d.backend.history(0)[: len(SYSTEM)] == SYSTEM
    assert answer_of(d, "another", id_slot=1) == 7


def test_a_system_prompt_that_does_not_fit_or_cannot_be_computed_is_refused():
    d = driver(n_ctx_slot=32)
    status, message = d.refusal("system_prompt", tokens=tuple(SYSTEM))
    assert status == 400 and str(len(SYSTEM)) in message and "32" in message
    d.backend.refuse = lambda spans: -1 if spans[0].seq == 2 else 0
    assert d.refusal("system_prompt", tokens=tuple(SYSTEM[:20]))[0] == 500
    assert d.backend.n_used == 0 and run(d, "question") == 8


# ---- while it isn't known what saved slots depend on -------------------------------------------------------------


class SlowFiles:
    """A backend whose files are read when the test says so."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMA_SRV_CACHE", str(folder / "cache"))
        self.path = folder / "model"
        self.path.write_bytes(b"weights")
        self.go, digest = threading.Event(), identity._compute_digest

        def slow(one, is_busy):
            assert self.go.wait(PATIENCE_S)
            return digest(one, is_busy)

        monkeypatch.setattr(identity, "_compute_digest", slow)

    def driver(self, **config: object) -> Driver:
        backend = FakeBackend(letters, 512, 2)
        backend.identity = Identity({"model": [make_source(self.path)]})
        return Driver(backend, **config)

    def finish(self, d: Driver) -> None:
        """Let them be read, and the engine hear of it."""
        self.go.set()
        d.scheduler._identifying.join(PATIENCE_S)
        d.step()


@pytest.fixture
def slow_files(tmp_path, monkeypatch) -> SlowFiles:
    return SlowFiles(tmp_path, monkeypatch)


@pytest.mark.parametrize("is_told", [True, False], ids=["read from the start on", "read when first needed"])
def test_slot_files_wait_until_the_model_s_files_are_read_and_nobody_else_does(slow_files, tmp_path, is_told):
    d = slow_files.driver(slot_files=is_told)
    run(d, PROMPT, id_slot=0)
    path = str(tmp_path / "slot")
    save = d.command("save", id_slot=0, path=path)
    restore = d.command("restore", id_slot=1, path=path)
    d.step(3)
    assert not d.replies and not d.scheduler._is_busy(), "the loop sleeps"
    run(d, PROMPT, id_slot=0)
    run(d, PROMPT, id_slot=1)
    d.answer("erase", id_slot=1)
    slow_files.finish(d)
    assert d.replies[save].error is None and d.replies[restore].error is None
    assert run(d, PROMPT, id_slot=1) == 1


def test_a_command_that_waits_for_files_can_be_withdrawn(slow_files, tmp_path):
    d = slow_files.driver()
    waiting = d.command("save", id_slot=0, path=str(tmp_path / "slot"))
    d.step()
    d.scheduler.post(Cancel(waiting))
    slow_files.finish(d)
    assert waiting not in d.replies and not (tmp_path / "slot").exists()


def test_files_that_changed_since_they_were_loaded_are_told_and_nothing_is_written(slow_files, tmp_path):
    d = slow_files.driver(slot_files=True, cache_disk=str(tmp_path / "disk"))
    save = d.command("save", id_slot=0, path=str(tmp_path / "slot"))
    slow_files.path.write_bytes(b"other weights")
    slow_files.finish(d)
    status, message = d.replies[save].error
    assert status == 500 and "model has changed since it was loaded" in message
    assert d.refusal("restore", id_slot=0, path=str(tmp_path / "slot"))[0] == 500
    run(d, PROMPT * 5)
    d.scheduler._prefixes.close()
    assert not (tmp_path / "slot").exists() and not list((tmp_path / "disk").iterdir())


def test_a_shifted_slot_stays_one_in_a_file(tmp_path):
    d = driver(n_ctx_slot=64, shift_context=True)
    d.post(PROMPT, n_predict=60, n_keep=20, id_slot=0)
    d.finish()
    held, shifted_at = list(d.scheduler.slots[0].tokens), d.scheduler.slots[0].shifted_at
    assert shifted_at == 20
    d.answer("save", id_slot=0, path=str(tmp_path / "slot"))
    assert d.answer("restore", id_slot=1, path=str(tmp_path / "slot"))["n_restored"] == len(held)
    assert (d.scheduler.slots[1].tokens, d.scheduler.slots[1].shifted_at) == (held, 20)
    d.answer("erase", id_slot=0)
    assert run(d, held, n_predict=3, id_slot=1) == len(held) - 20
