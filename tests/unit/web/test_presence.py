"""Whether a client is still connected: one watch per request, and the parts that are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from server.web.presence import Presence


class Watching:
    """A watch whose client leaves when told to."""

    def __init__(self) -> None:
        self.n_begun = self.n_ended = 0
        self.leave: Callable[[], None] = lambda: None
        self.end: Callable[[], None] = lambda: None

    @contextmanager
    def __call__(self, on_gone: Callable[[], None], on_end: Callable[[], None]) -> Iterator[None]:
        self.n_begun += 1
        self.leave, self.end = on_gone, on_end
        yield
        self.n_ended += 1


def test_everybody_inside_a_block_is_told_once():
    watching, calls = Watching(), []
    presence = Presence(watching)
    with presence.on_disconnect(lambda: calls.append(1)), presence.on_disconnect(lambda: calls.append(2)):
        assert not presence.is_gone
        watching.leave()
        assert presence.is_gone
    assert calls == [1, 2] and watching.n_begun == 1


def test_who_comes_too_late_is_told_at_once():
    watching, calls = Watching(), []
    presence = Presence(watching)
    presence.begin()
    watching.leave()
    with presence.on_disconnect(lambda: calls.append(1)):
        assert calls == [1]


def test_who_has_left_its_block_is_not_told():
    watching, calls = Watching(), []
    presence = Presence(watching)
    with presence.on_disconnect(lambda: calls.append(1)):
        pass
    watching.leave()
    assert presence.is_gone and not calls


def test_the_watch_begins_and_ends_once():
    watching = Watching()
    presence = Presence(watching)
    presence.end()
    assert (watching.n_begun, watching.n_ended) == (0, 0)
    presence.begin()
    presence.begin()
    assert (watching.n_begun, watching.n_ended) == (1, 0)
    presence.end()
    presence.end()
    presence.begin()
    assert (watching.n_begun, watching.n_ended) == (1, 1)


def test_without_a_watch_the_client_stays():
    presence = Presence()
    with presence.on_disconnect(lambda: 1 / 0):
        assert not presence.is_gone
    presence.end()


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
def test_an_end_means_leaving_unless_the_answer_is_a_stream_or_the_server_was_told_otherwise(half_close, is_late):
    watching, calls = Watching(), []
    presence = Presence(watching, half_close)
    presence.begin()
    if is_late:
        watching.end()
    with (
        presence.on_disconnect(lambda: calls.append("plain gone")),
        presence.on_disconnect(lambda: calls.append("stream gone"), lambda: calls.append("stream ended")),
    ):
        if not is_late:
            watching.end()
        assert calls == (["stream ended"] if half_close else ["plain gone", "stream ended"])
        assert (presence.is_lost(stream=False), presence.is_lost(stream=True)) == (not half_close, False)
        watching.leave()
        assert sorted(calls) == ["plain gone", "stream ended", "stream gone"], "each is told once"
        assert presence.is_lost(stream=True) and presence.is_lost(stream=False)


def test_who_comes_after_end_and_leave_is_told_that_the_client_has_left():
    watching, calls = Watching(), []
    presence = Presence(watching)
    presence.begin()
    watching.end()
    watching.leave()
    with presence.on_disconnect(lambda: calls.append("plain gone")):
        assert calls == ["plain gone"]
    with presence.on_disconnect(lambda: calls.append("gone"), lambda: None):
        assert calls == ["plain gone", "gone"]
