"""`engine.supervise_ledger`: the tasks that a new engine gets, and which task is blamed for the old engine's death."""

from __future__ import annotations

import dataclasses

import pytest

from server.engine.client.ledger import Ledger
from server.engine.seam.task import (
    Cancel,
    Command,
    Embed,
    Embedded,
    Failure,
    Final,
    Frame,
    Piece,
    Reply,
    SlotState,
    Snapshot,
    Starting,
    Task,
    Tasks,
    Timings,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def slot(id_task: int, is_processing: bool = True) -> SlotState:
    return SlotState(0, id_task, is_processing, 64, 0, 0, 0, 0, -1, True, "none", "", False)


def at_work(*ids: int) -> Snapshot:
    return Snapshot(slots=tuple(map(slot, ids)))


def final(id_task: int) -> Final:
    return Final(id_task, 0, "", "eos", "", 1, 1, 0, False, Timings(0, 1, 1.0, 1, 1.0))


class Book:
    """A ledger with a ready engine, and everything that was sent to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ledger = Ledger(clock=self.clock)
        self.sent: list[object] = []
        self.seen: list[object] = []
        self.sent += self.ledger.note_ready()

    def post(self, *messages: object) -> None:
        for message in messages:
            self.sent += self.ledger.post(message)

    def hear(self, *events: object, snapshot: Snapshot | None = None) -> Frame:
        frame, to_send = self.ledger.take(Frame(events, snapshot))
        self.seen += frame.events
        self.sent += to_send
        return frame

    def work(self, *ids: int) -> None:
        self.hear(snapshot=at_work(*ids))

    def die(self) -> list[object]:
        """A death and a new engine; what the clients were told, and `sent` is what the new one was told."""
        events = self.ledger.note_death("signal SIGSEGV")
        self.sent = list(self.ledger.note_ready())
        return events

    @property
    def sent_tasks(self) -> list[int]:
        return [message.id for message in self.sent if isinstance(message, Task)]


@pytest.fixture
def book() -> Book:
    return Book()


# ---- going on -------------------------------------------------------------------------------------------------------


def test_a_task_goes_on_with_the_tokens_that_were_delivered(book):
    task = Task(1, (5, 6), stop=("x",))
    book.post(task)
    assert book.sent == [task]
    book.hear(Starting(1), snapshot=at_work(1))
    book.hear(Piece(1, (10,), "a"))
    book.clock.now += 2.0
    book.hear(Piece(1, (11, 12), ""))
    assert book.seen == [Piece(1, (10,), "a"), Piece(1, (11, 12), "")]
    assert book.die() == []
    assert book.sent == [dataclasses.replace(task, resume=(10, 11, 12), resume_ms=2000.0, lora=())]
    book.clock.now += 5.0
    book.hear(Piece(1, (13,), "b"))
    book.clock.now += 1.0
    book.hear(Piece(1, (14,), "c"))
    book.die()
    assert book.sent[0].resume == (10, 11, 12, 13, 14) and book.sent[0].resume_ms == 3000.0


def test_a_task_s_time_never_goes_back_behind_what_its_client_was_told(book):
    """Pieces that were held up on their way seem to have taken no time."""
    book.post(Task(1, (5, 6), timings=True))
    book.hear(Starting(1), snapshot=at_work(1))
    book.hear(*(Piece(1, (10 + i,), "a", timings=Timings(0, 2, 1.0, 1 + i, 90.0 * i)) for i in range(2)))
    book.die()
    assert book.sent[0].resume_ms == 90.0


def test_a_task_without_a_token_is_simply_asked_again(book):
    task = Task(1, (5, 6))
    book.post(task)
    book.work(1)
    book.die()
    assert book.sent == [task]
    assert book.ledger.n_replays == 0


def test_what_has_ended_or_was_cancelled_is_not_replayed(book):
    book.post(Task(1, (5,)), Task(2, (5,)), Task(3, (5,)), Cancel(2))
    assert book.sent[-1] == Cancel(2)
    book.hear(Piece(1, (9,), "x"), final(1))
    book.hear(Failure(3, 400, "no"))
    book.die()
    assert book.sent == []


def test_what_arrives_while_there_is_no_engine_waits_and_can_be_cancelled(book):
    book.ledger.note_death("exit code 1")
    book.sent = []
    book.post(Task(4, (1,)), Task(5, (1,)), Command(6, "erase", {"id_slot": 0}), Cancel(4))
    assert book.sent == []
    assert [message.id for message in book.ledger.note_ready()] == [5, 6]


def test_tasks_of_one_request_are_sent_together_and_each_goes_on_by_itself(book):
    tasks = tuple(Task(i, (5, i)) for i in range(3))
    book.post(Tasks(tasks))
    assert book.sent == [Tasks(tasks)]
    book.hear(Starting(0), Starting(1), Piece(0, (10,), "a"), final(1))
    book.post(Cancel(2))
    assert book.sent[-1] == Cancel(2)
    book.die()
    assert book.sent_tasks == [0] and book.sent[0].resume == (10,)


def test_tasks_of_one_request_that_wait_for_an_engine_keep_their_order(book):
    book.ledger.note_death("exit code 1")
    assert book.ledger.post(Tasks((Task(4, (1,)), Task(5, (1,))))) == []
    assert [message.id for message in book.ledger.note_ready()] == [4, 5]


def test_tasks_keep_their_order(book):
    book.post(*(Task(i, (1,)) for i in range(5)))
    book.hear(Piece(3, (7,), "x"))
    book.die()
    book.post(Task(9, (1,)))
    assert book.sent_tasks == [0, 1, 2, 3, 4, 9]


def test_a_time_limit_runs_on_while_there_is_no_engine(book):
    book.post(Task(1, (1,), t_max_ms=5000))
    assert book.sent[0].t_max_ms == 5000
    book.clock.now += 3.0
    book.die()
    assert book.sent[0].t_max_ms == 2000
    book.clock.now += 30.0
    book.die()
    assert book.sent[0].t_max_ms == 1, "0 would be no limit"


def test_an_end_that_was_asked_for_is_asked_for_again(book):
    book.post(Task(1, (1,)))
    book.hear(Piece(1, (7,), "x"))
    book.post(Cancel(1, True))
    book.die()
    assert book.sent == [Task(1, (1,), resume=(7,), lora=()), Cancel(1, True)]


def test_the_engine_starts_a_task_and_the_clients_are_not_told(book):
    book.post(Task(1, (1,)))
    assert book.hear(Starting(1)).events == ()


# ---- commands and settings -----------------------------------------------------------------------------------------


def test_a_slot_that_was_being_saved_is_not_saved_again_when_it_is_empty(book):
    book.post(Command(1, "save", {"id_slot": 0}))
    (reply,) = book.die()
    assert reply.id == 1 and reply.error[0] == 500 and "'save'" in reply.error[1] and "lost" in reply.error[1]
    assert book.sent == []


@pytest.mark.parametrize("name", ["get_lora", "set_lora", "system_prompt", "erase", "restore"])
def test_a_command_that_may_be_done_twice_is_asked_of_the_next_engine_but_not_of_a_third(book, name):
    command = Command(1, name, {"scales": (), "tokens": ()})
    book.post(command)
    assert book.die() == [] and book.sent == [command]
    (reply,) = book.die()
    assert reply.id == 1 and reply.error[0] == 500 and f"'{name}'" in reply.error[1] and "2 times" in reply.error[1]
    assert book.sent == []


def test_repeated_commands_keep_their_order_and_are_answered_once(book):
    first, second = Command(1, "erase", {"id_slot": 0}), Command(2, "set_lora", {"scales": ((0, 0.5),)})
    book.post(first, second)
    assert book.die() == [] and book.sent == [first, second]
    book.hear(Reply(1, {}), Reply(2, {}))
    assert [reply.id for reply in book.seen] == [1, 2]
    book.die()
    assert [(message.name, message.args) for message in book.sent] == [("set_lora", {"scales": ((0, 0.5),)})], (
        "a setting"
    )


def test_a_command_that_nobody_waits_for_is_not_sent_or_withdrawn(book):
    book.post(Command(1, "erase", {"id_slot": 0}))
    book.post(Cancel(1))
    assert book.sent[-1] == Cancel(1), "the engine may have it waiting for a busy slot"
    book.ledger.note_death("exit code 1")
    book.sent = []
    book.post(Command(2, "erase", {"id_slot": 0}), Cancel(2))
    assert book.sent == [] and book.ledger.note_ready() == []


def test_settings_outlive_the_engine_and_come_before_the_tasks(book):
    scales, prompt = Command(1, "set_lora", {"scales": ((0, 0.5),)}), Command(2, "system_prompt", {"tokens": (1, 2)})
    book.post(scales, prompt)
    book.hear(Reply(1, {}), Reply(2, {}))
    book.post(Task(3, (5,)))
    book.hear(Piece(3, (6,), "x"))
    book.die()
    assert [(message.name, message.args) for message in book.sent] == [
        ("set_lora", {"scales": ((0, 0.5),)}),
        ("system_prompt", {"tokens": (1, 2)}),
    ]
    first, second = book.sent
    book.sent, book.seen = [], []
    book.hear(Reply(second.id, {}))
    assert book.sent == []
    book.hear(Reply(first.id, {}))
    assert book.sent_tasks == [3] and book.sent[0].lora == ((0, 0.5),)
    assert book.seen == [], "nobody has asked for these answers"


def test_a_refused_setting_is_not_repeated(book):
    book.post(Command(1, "system_prompt", {"tokens": (1, 2)}))
    book.hear(Reply(1, {}, (400, "too long")))
    book.die()
    assert book.sent == []


def test_a_task_goes_on_with_the_adapters_it_was_begun_with(book):
    book.post(Task(1, (5,)), Task(2, (5,), lora=((1, 2.0),)))
    book.hear(Piece(1, (6,), "x"), Piece(2, (6,), "x"))
    book.post(Command(3, "set_lora", {"scales": ((0, 0.5),)}))
    book.hear(Reply(3, {}))
    book.die()
    book.hear(Reply(book.sent[0].id, {}))
    assert [task.lora for task in book.sent if isinstance(task, Task)] == [(), ((1, 2.0),)]


def test_commands_wait_until_the_replayed_tasks_are_on_their_slots(book):
    book.post(Task(1, (5,)), Task(2, (5,)))
    book.hear(Piece(1, (6,), "x"), Piece(2, (6,), "x"))
    book.ledger.note_death("exit code 1")
    book.post(Command(3, "system_prompt", {"tokens": ()}))
    book.sent = list(book.ledger.note_ready())
    book.post(Command(4, "get_lora", {}))
    assert [message.id for message in book.sent] == [1, 2]
    book.hear(Starting(1))
    assert len(book.sent) == 2
    book.post(Cancel(2))
    assert [message.id for message in book.sent] == [1, 2, 2, 3, 4]


def test_the_end_of_the_thinking_that_was_asked_for_has_its_place_in_the_next_engine(book):
    book.post(Task(1, (5,)), Task(2, (5,)), Command(3, "end_thinking", {"id_task": 1}))
    book.hear(Piece(1, (6, 7), "xy"), Reply(3, {"at": 2}), Piece(1, (8,), "z"))
    book.die()
    assert [(task.resume, task.ends_thinking) for task in book.sent] == [((6, 7, 8), 2), ((), -1)]
    book.post(Command(4, "end_thinking", {"id_task": 9}), Command(5, "end_thinking", {"id_task": 2}))
    book.hear(Starting(1))
    book.hear(Reply(4, {"at": -1}), Reply(5, {}, (500, "no")), final(1))
    book.die()
    assert [task.ends_thinking for task in book.sent] == [-1]


def test_embeddings_are_asked_for_again_until_they_are_answered(book):
    first, second = Embed(1, ((5, 6),)), Embed(2, ((7,),))
    book.post(first, second, Embed(3, ((8,),)))
    book.hear(Starting(1), Embedded(1, "mean", 1, (1,), b"\0" * 4))
    book.post(Cancel(3))
    assert book.die() == [] and book.sent == [second]
    book.hear(Embedded(2, "mean", 1, (1,), b"\0" * 4))
    assert book.die() == [] and book.sent == []


def test_embeddings_that_bring_the_engine_down_twice_fail(book):
    book.post(Embed(1, ((5, 6),)), Task(2, (5,)))
    for _ in range(2):
        book.hear(Starting(1))
        events = book.die()
    assert [(event.id, event.status) for event in events] == [(1, 500)] and book.sent_tasks == [2]


def test_commands_wait_for_suspects_that_have_not_had_their_turn(book):
    book.post(Task(1, (5,)), Task(2, (5,)))
    book.hear(Piece(1, (6,), "x"), Piece(2, (6,), "x"))
    for _ in range(2):
        book.work(1, 2)
        book.die()
    book.post(Command(3, "system_prompt", {"tokens": ()}))
    book.hear(Starting(1))
    assert [message.id for message in book.sent] == [1]
    book.hear(Piece(1, (7,), "x"))
    book.hear(Starting(2))
    assert [message.id for message in book.sent] == [1, 2]
    book.hear(Piece(2, (7,), "x"))
    assert [message.id for message in book.sent] == [1, 2, 3]


# ---- blame ---------------------------------------------------------------------------------------------------------


def test_a_task_that_dies_twice_alone_without_progress_fails(book):
    book.post(Task(1, (5,)), Task(2, (5,)))
    book.work(1)
    assert book.die() == []
    book.work(1)
    (failure,) = book.die()
    assert (failure.id, failure.status) == (1, 500) and "SIGSEGV" in failure.message
    assert book.sent_tasks == [2] and book.ledger.n_suspects == 1


def test_progress_between_two_deaths_clears_a_task(book):
    book.post(Task(1, (5,)))
    for token in range(20):
        book.work(1)
        book.hear(Piece(1, (token,), "x"))
        book.work(1)
        assert book.die() == []
    assert book.sent[0].resume == tuple(range(20))


def test_several_suspects_are_tried_one_at_a_time_while_all_others_wait(book):
    book.post(*(Task(i, (5,)) for i in range(4)))
    for _ in range(2):
        book.work(0, 1, 2)
        assert book.die() == []
    assert book.sent_tasks == [0]
    book.post(Task(9, (5,)))
    book.work(0)
    assert book.sent_tasks == [0]
    book.hear(Piece(0, (7,), "x"))  # 0 is innocent
    assert book.sent_tasks == [0, 1]
    book.work(0, 1)
    book.hear(Starting(1))
    book.hear(final(0))
    book.work(1)
    assert book.die() == [] and book.sent_tasks == [1]  # it may have been chance
    book.hear(Starting(1))
    (failure,) = book.die()  # 1 has done it
    assert failure.id == 1
    assert book.sent_tasks == [2]
    book.hear(Piece(2, (7,), "x"))
    assert book.sent_tasks == [2, 3, 9]
    assert book.ledger.n_suspects == 1


def test_a_task_that_kills_the_engine_while_it_is_started_is_found(book):
    book.post(Task(1, (5,)))
    book.hear(Starting(1))
    assert book.die() == []
    book.hear(Starting(1))
    assert [failure.id for failure in book.die()] == [1]


def test_a_suspect_that_is_cancelled_makes_way(book):
    book.post(*(Task(i, (5,)) for i in range(3)))
    for _ in range(2):
        book.work(0, 1)
        book.die()
    book.post(Cancel(0))
    assert book.sent_tasks == [0, 1] and Cancel(0) in book.sent
    book.post(Cancel(1))
    assert book.sent_tasks == [0, 1, 2]


def die_by_chance(book: Book, id_task: int, n: int) -> None:
    """Deaths with a token between them, and one after the last."""
    for token in range(n):
        book.work(id_task)
        assert book.die() == []
        book.hear(Piece(id_task, (token,), "x"))


def alone_until_it_fails(book: Book, id_task: int) -> int:
    """How often it takes."""
    for n in range(1, 9):
        book.work(id_task)
        if book.die():
            return n
    raise AssertionError("never")


def test_where_engines_die_by_chance_a_suspect_gets_one_try_more(book):
    book.post(Task(1, (5,)), Task(2, (5,)))
    die_by_chance(book, 1, 2)
    book.work(1, 2)
    book.die()
    book.work(1, 2)
    book.die()
    book.work(1)
    assert book.die() == [] and book.sent_tasks == [1]
    book.work(1)
    assert book.die() == [] and book.sent_tasks == [1], "it may have been chance again"
    book.hear(Piece(1, (7,), "x"))
    assert book.sent_tasks == [1, 2]


def test_chance_is_forgotten_after_a_minute(book):
    book.post(Task(1, (5,)))
    die_by_chance(book, 1, 9)
    book.clock.now += 61.0
    assert alone_until_it_fails(book, 1) == 2


def test_deaths_that_a_culprit_explains_are_no_chance(book):
    for id_task in range(9):
        book.post(Task(id_task, (5,)))
        assert alone_until_it_fails(book, id_task) == 2
    book.post(Task(10, (5,)))
    die_by_chance(book, 10, 9)
    assert alone_until_it_fails(book, 10) == 3


def test_a_death_without_work_is_nobodys_fault(book):
    book.post(Task(1, (5,)))
    for _ in range(9):
        assert book.die() == []
    assert book.sent_tasks == [1] and not book.ledger.has_progressed


def test_progress_is_a_token_an_end_or_a_verdict(book):
    book.post(Task(1, (5,)), Task(2, (5,)))
    assert not book.ledger.has_progressed
    book.hear(Piece(1, (7,), "x"))
    assert book.ledger.has_progressed
    book.work(2)
    book.die()
    assert not book.ledger.has_progressed
    book.work(2)
    book.die()
    assert book.ledger.has_progressed, "one culprit less"


# ---- counters ------------------------------------------------------------------------------------------------------


def test_counters_only_grow_over_the_lives_of_engines(book):
    first = Snapshot(
        n_steps=5,
        n_predicted_tokens=7,
        kv_used=3,
        n_ctx=64,
        predicted_ms=1.5,
        histograms={"step_seconds": (1.0, 2.0, 0.5)},
    )
    assert book.hear(snapshot=first).snapshot is first
    book.post(Task(1, (5,)))
    book.hear(Piece(1, (7,), "x"), snapshot=first)
    book.ledger.n_restarts = 1
    book.die()
    now = book.hear(snapshot=dataclasses.replace(first, n_steps=1, kv_used=2)).snapshot
    assert (now.n_steps, now.n_predicted_tokens, now.predicted_ms) == (6, 14, 3.0)
    assert (now.kv_used, now.n_ctx, now.histograms["step_seconds"]) == (2, 64, (2.0, 4.0, 1.0))
    assert (now.n_restarts, now.n_replays, now.n_suspects) == (1, 1, 0)


def test_a_task_whose_files_bring_the_engine_down_is_found_beside_one_that_runs():
    book = Book()
    book.post(Task(1, (1,)), Task(2, (-1,)))
    for _ in range(2):
        book.hear(Starting(1), Starting(2), snapshot=dataclasses.replace(at_work(1), preparing=2))
        assert book.die() == []
    assert [message.id for message in book.sent] == [1], "both are suspected, one at a time"
    book.work(1)
    book.hear(final(1))
    deaths = []
    for _ in range(2):
        book.hear(Starting(2), snapshot=Snapshot(preparing=2))
        deaths.append(book.die())
    assert deaths[0] == [] and isinstance(deaths[1][0], Failure) and deaths[1][0].id == 2
