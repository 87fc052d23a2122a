"""Whether a client is still there: the one watch of a request, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.web.presence import Presence


class Watching:
    """A watch whose client leaves when told to."""

    def __init__(self) -> None:
        self.n_begun = self.n_ended = 0
        self.leave: Callable[[], None] = lambda: None

    @contextmanager
    def __call__(self, callback: Callable[[], None]) -> Iterator[None]:
        self.n_begun += 1
        self.leave = callback
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
