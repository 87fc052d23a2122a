"""`engine.client.child.Outbox`: frames that wait for the pipe to the engine, and frames that may pass them."""

from __future__ import annotations

import random
import threading

from server.engine.client.child import LARGE_BYTES, Outbox
from server.engine.seam.task import Cancel, Embed, Task, Tasks
from tests.fake_media import media
from tests.fakes import PATIENCE_S

LARGE = media(bytes(LARGE_BYTES + 1))
SMALL = media(b"x")


def test_large_files_let_everything_else_pass():
    outbox = Outbox()
    outbox.put(Task(1, (5,), media=(LARGE,)))
    outbox.put(Task(2, (5,), media=(SMALL,)))
    outbox.put(Embed(3, ((5,),), media=(LARGE,)))
    outbox.put(Task(4, (5,)))
    found = [outbox.get() for _ in range(4)]
    assert [message.id for message in found] == [2, 4, 1, 3]


def test_a_cancel_does_not_overtake_what_it_cancels():
    outbox = Outbox()
    outbox.put(Tasks((Task(1, (5,), media=(LARGE,)), Task(2, (5,), media=(LARGE,)))))
    outbox.put(Cancel(2))
    outbox.put(Cancel(7))
    outbox.put(Task(3, (5,)))
    assert [outbox.get().id for _ in range(2)] == [7, 3]
    assert isinstance(outbox.get(), Tasks) and outbox.get() == Cancel(2)
    outbox.put(Cancel(1))
    assert outbox.get() == Cancel(1)


def test_nothing_is_lost_and_what_is_alike_keeps_its_order():
    rng = random.Random(5)
    for _ in range(100):
        outbox, put = Outbox(), []
        got: list[object] = []
        for i in range(1, 20):
            put.append(Task(i, (5,), media=(LARGE,) if rng.random() < 0.4 else ()))
            outbox.put(put[-1])
            if rng.random() < 0.4:
                got.append(outbox.get())
        got += [outbox.get() for _ in range(len(put) - len(got))]
        assert sorted(task.id for task in got) == list(range(1, 20))
        for is_large in (False, True):
            alike = [task.id for task in got if bool(task.media) == is_large]
            assert alike == sorted(alike)


def test_who_waits_is_woken_by_either():
    outbox = Outbox()
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.extend(outbox.get() for _ in range(2)), daemon=True)
    thread.start()
    outbox.put(Task(1, (5,), media=(LARGE,)))
    outbox.put(Task(2, (5,)))
    thread.join(PATIENCE_S)
    assert sorted(task.id for task in got) == [1, 2]
