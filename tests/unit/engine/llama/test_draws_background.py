"""`BackgroundCall`: work on another thread, and its end."""

from __future__ import annotations

import threading

import pytest

from server.engine.llama.draws import BackgroundCall
from tests.fakes import PATIENCE_S


def test_the_result_is_that_of_another_thread():
    assert BackgroundCall(threading.current_thread).wait_for_result() is not threading.current_thread()


def test_what_the_work_raises_is_raised_where_its_result_is_wanted():
    with pytest.raises(ZeroDivisionError):
        BackgroundCall(lambda: 1 / 0).wait_for_result()


def test_the_work_is_done_after_the_block_also_when_the_block_fails():
    """It may use what is freed when the block fails."""
    may_end, done = threading.Event(), []
    with pytest.raises(OSError), BackgroundCall(lambda: (may_end.wait(PATIENCE_S), done.append(True))):
        threading.Timer(0.05, may_end.set).start()
        raise OSError
    assert done == [True]
