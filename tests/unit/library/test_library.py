"""Downloads by request: shared, reported, stopped when no request waits, and never from an address in a request."""

from __future__ import annotations

import threading

import pytest

from server.errors import ApiError
from server.library import library as library_module
from server.library.library import FAILED, FINISHED, STOPPED, Download, Library
from tests.support import wait_until
from tests.unit.download.fake_site import no_proxy  # noqa: F401
from tests.unit.download.test_download_hub import REPO, FakeHub, model


@pytest.fixture
def hub(monkeypatch):
    """The hub that the environment names."""
    hub = FakeHub()
    monkeypatch.setenv("MODEL_ENDPOINT", hub.url)
    yield hub
    hub.stop()


class News:
    """What a library has told."""

    def __init__(self) -> None:
        self.n_changed = 0
        self.told: list[tuple[str, int, int]] = []

    def changed(self) -> None:
        self.n_changed += 1

    def tell(self, download: Download) -> None:
        self.told.append((download.state, download.done, download.total))


@pytest.fixture
def news() -> News:
    return News()


@pytest.fixture
def library(tmp_path, news):
    library = Library(tmp_path / "cache", news.changed, news.tell)
    yield library
    library.close()
    wait_until(lambda: not library.list_running(), "the end of all downloads")


def finish(library: Library, download: Download) -> None:
    for _ in library.watch(download, 1.0):
        pass


@pytest.mark.covers("D08")
def test_a_download_is_watched_to_its_end(hub, library, news, tmp_path):
    hub.publish("m-Q4_K_M.gguf", "mmproj-m.gguf")
    download = library.download(f"hf.co/{REPO}")
    finish(library, download)
    assert (download.name, download.state, news.n_changed) == (REPO, FINISHED, 1)
    assert news.told[-1][0] == FINISHED and len(model("m-Q4_K_M.gguf")) in {done for _, done, _ in news.told}
    names = {path.name for path in (tmp_path / "cache").rglob("*.gguf")}
    assert names == {"m-Q4_K_M.gguf", "mmproj-m.gguf"} and library.list_running() == []
    finish(library, library.download(REPO))  # it is there already
    assert len(hub.requests(f"/{REPO}/resolve/main/m-Q4_K_M.gguf")) == 1


def held(hub: FakeHub, name: str) -> threading.Event:
    """The hub gives this file only once the event is set."""
    event = threading.Event()
    hub.things[f"/{REPO}/resolve/main/{name}"].on_request = lambda thing: event.wait(30)
    return event


def test_two_who_want_a_model_share_its_download(hub, library):
    hub.publish("m-Q4_K_M.gguf")
    event = held(hub, "m-Q4_K_M.gguf")
    first, second = library.download(REPO), library.download(f"https://huggingface.co/{REPO}")
    assert first is second and library.list_running() == [first]
    watches = [library.watch(download, 1.0) for download in (first, second)]
    for watch in watches:
        next(watch)
    watches[0].close()
    assert not first.must_stop.is_set()
    event.set()
    for _ in watches[1]:
        pass
    assert first.state == FINISHED


@pytest.mark.covers("D08")
def test_what_nobody_waits_for_stops_and_goes_on_the_next_time(hub, library):
    hub.publish("m-Q4_K_M.gguf")
    event = held(hub, "m-Q4_K_M.gguf")
    download = library.download(REPO)
    watch = library.watch(download, 1.0)
    next(watch)
    watch.close()
    assert download.must_stop.is_set()
    again = library.download(REPO)
    assert again is not download
    event.set()
    finish(library, again)
    wait_until(lambda: download.has_ended, "the end of the first")
    assert (download.state, again.state) == (STOPPED, FINISHED)


def test_what_is_kept_goes_on_without_anybody_until_it_is_stopped(hub, library):
    hub.publish("m-Q4_K_M.gguf")
    event = held(hub, "m-Q4_K_M.gguf")
    download = library.download(REPO, is_kept=True)
    watch = library.watch(download, 1.0)
    next(watch)
    watch.close()
    assert not download.must_stop.is_set()
    assert library.stop(REPO) and not library.stop("other/model")
    event.set()
    wait_until(lambda: download.has_ended, "its end")
    assert download.state == STOPPED and "kept" in download.reason


def test_a_failure_is_told_in_one_line(hub, library, news):
    download = library.download("nobody/nothing")
    finish(library, download)
    assert download.state == FAILED and "nobody/nothing" in download.reason and "\n" not in download.reason
    assert news.n_changed == 0


@pytest.mark.parametrize(
    "name",
    [
        "",
        "llama3",
        "http://127.0.0.1/x.gguf",
        "https://example.org/u/m",
        "file:///etc/passwd",
        "../x",
        "a/b/c",
        "/etc/passwd",
        "u/m:../x",
        "u/m:",
        "u/" + "m" * 300,
        "u/m\n",
        "hf.co/u",
    ],
)
def test_only_repositories_can_be_named(hub, library, name):
    with pytest.raises(ApiError) as error:
        library.download(name)
    assert error.value.status == 400 and hub.seen == []


def test_too_many_at_a_time_are_refused(hub, library, monkeypatch):
    monkeypatch.setattr(library_module, "MAX_RUNNING", 1)
    hub.publish("m-Q4_K_M.gguf")
    event = held(hub, "m-Q4_K_M.gguf")
    library.download(REPO)
    with pytest.raises(ApiError) as error:
        library.download("other/model")
    assert error.value.status == 503
    event.set()
