"""The life cycle of several models in one server: fake engines, real threads."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.errors import ApiError, StartError
from server.models import loads, register
from server.models.entry import FAILED, LOADED, LOADING, SLEEPING, UNLOADED, Entry
from server.models.models import Models
from tests.support import wait_until
from tests.unit.models.fakes import FakeRequest, House

PATIENCE = 30.0


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waiting threads look up often, so tests take no longer than they must."""
    monkeypatch.setattr(loads, "POLL_S", 0.005)


def ask(models, name: str, request: FakeRequest | None = None):
    """A thread's `get`; a future."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(lambda: models.get(name, request or FakeRequest()))
    pool.shutdown(wait=False)
    return future


def states(models) -> dict[str, str]:
    return {entry.name: models.status(entry) for entry in models.entries}


def until(models, **wanted: str) -> None:
    wait_until(
        lambda: wanted.items() <= states(models).items(), f"{wanted}, not {states(models)}", PATIENCE, every=0.002
    )


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("D02")
def test_a_request_chooses_by_name_and_gets_the_first_without_one():
    models = House(b=1, a=1).models()
    for name, expected in (("a", "a"), ("b", "b"), (None, "b"), ("", "b"), ("a:latest", "a")):
        with FakeRequest() as request:
            assert models.get(name, request).name == expected


def test_an_alias_is_a_name_as_well():
    house = House(a=1, b=1)
    models = house.models()
    models.register.put([Entry("a", "a", ("x", "y"), size=1), Entry("b", "b", ("z",), size=1)])
    with FakeRequest() as request:
        assert models.get("z", request).name == "b" and models.get("y:latest", request).name == "a"
    assert house.started == ["b", "a"]


def test_an_unknown_name_is_404_with_names_like_it():
    models = House(**{"Qwen3-8B": 1, "smol": 1}).models()
    with pytest.raises(ApiError, match="did you mean 'Qwen3-8B'") as caught:
        models.get("qwen3-8b-q4", FakeRequest())
    assert caught.value.status == 404
    with pytest.raises(ApiError, match="did you mean 'Qwen3-8B'"):
        models.get("qwen", FakeRequest())
    with pytest.raises(ApiError, match="GET /v1/models"):
        models.get("zzzzzz", FakeRequest())
    with pytest.raises(ApiError) as caught:
        models.get(["a"], FakeRequest())
    assert caught.value.status == 400


def test_a_key_sees_and_uses_its_models_alone():
    models = House(mine=1, yours=1).models(may_use=lambda key_id, names: key_id in names)
    assert [entry.name for entry in models.list_seen_by("yours")] == ["yours"]
    with FakeRequest("yours") as request:
        assert models.get(None, request).name == "yours"
    with pytest.raises(ApiError, match=r"there is no model 'mine'(?!.*mean)") as caught:
        models.get("mine", FakeRequest("yours"))
    assert caught.value.status == 404


# ---- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("D03")
def test_requests_for_one_model_share_one_load():
    house = House(is_quick=False, a=1)
    models = house.models()
    asked = [ask(models, "a") for _ in range(8)]
    wait_until(lambda: "a" in house.engines, "a load", PATIENCE)
    until(models, a=LOADING)
    wait_until(lambda: models.entries[0].load and len(models.entries[0].load.tickets) == 8, "all to wait", PATIENCE)
    house.engines["a"].load()
    assert len({id(one.result(PATIENCE)) for one in asked}) == 1
    assert house.started == ["a"] and models.entries[0].n_leases == 8


def test_a_load_that_fails_tells_all_that_wait_why_and_who_comes_later_at_once():
    house = House(is_quick=False, a=1, b=1)
    clock = Clock()
    models = house.models(clock=clock)
    asked = [ask(models, "a") for _ in range(3)]
    wait_until(lambda: "a" in house.engines, "a load", PATIENCE)
    house.engines["a"].load(error="it is broken")
    for one in asked:
        with pytest.raises(ApiError, match="could not be loaded: it is broken"):
            one.result(PATIENCE)
    until(models, a=FAILED)
    assert models.entries[0].reason == "the model could not be loaded: it is broken"
    with pytest.raises(ApiError, match="it is broken") as caught:
        models.get("a", FakeRequest())
    assert caught.value.status == 500 and house.started == ["a"]
    house.is_quick = True
    with FakeRequest() as request:
        assert models.get("b", request), "its failure is its own"
    clock.now += register.RETRY_S
    with FakeRequest() as request:
        assert models.get("a", request), "it is tried again after a while"
    assert house.started == ["a", "b", "a"]
    wait_until(lambda: len(house.alive) == 2, "the end of the engine that failed", PATIENCE)


def test_the_starter_is_told_of_the_end_of_each_load_so_that_the_next_one_has_a_spare_process():
    house = House(a=1, b=1, c=1)
    models = house.models()
    house.faults["a"] = StartError("it is broken")
    with pytest.raises(ApiError, match="it is broken"):
        models.get("a", FakeRequest())
    wait_until(lambda: house.n_ended == 1, "the end of a load without an engine", PATIENCE)
    models.get("b", FakeRequest())
    wait_until(lambda: house.n_ended == 2, "the end of a load", PATIENCE)
    house.is_quick = False
    asked = ask(models, "c")
    wait_until(lambda: "c" in house.engines, "an engine", PATIENCE)
    house.engines["c"].load(error="it is too new")
    with pytest.raises(ApiError, match="it is too new"):
        asked.result(PATIENCE)
    wait_until(lambda: house.n_ended == 3, "the end of a load whose engine failed", PATIENCE)


def test_an_engine_that_is_killed_while_it_loads_is_started_once_more():
    house = House(is_quick=False, a=1)
    models = house.models()
    asked = ask(models, "a")
    for n in (1, 2):
        wait_until(lambda n=n: len(house.started) == n and house.engines["a"].state == "loading model", "it", PATIENCE)
        house.engines["a"].load(error="it was killed" if n == 1 else "", is_refused=False)
    assert asked.result(PATIENCE).name == "a"
    assert house.started == ["a", "a"]


def test_a_file_that_is_no_model_fails_without_an_engine():
    house = House(a=1)
    house.faults["a"] = StartError("a.gguf: no GGUF file")
    models = house.models()
    with pytest.raises(ApiError, match=r"a\.gguf: no GGUF file") as caught:
        models.get("a", FakeRequest())
    assert caught.value.status == 500 and not house.started
    house.faults.clear()
    models.load("a", "")
    until(models, a=LOADED)


def test_who_leaves_while_a_model_loads_leaves_the_others_waiting():
    house = House(is_quick=False, a=1)
    models = house.models()
    gone, stays = FakeRequest(), FakeRequest()
    first, second = ask(models, "a", gone), ask(models, "a", stays)
    wait_until(lambda: gone.leave and stays.leave and "a" in house.engines, "both to wait", PATIENCE)
    gone.leave()
    with pytest.raises(ApiError) as caught:
        first.result(PATIENCE)
    assert caught.value.status == 499
    gone.end()
    house.engines["a"].load()
    assert second.result(PATIENCE).name == "a" and models.entries[0].n_leases == 1


def test_a_load_that_nobody_waits_for_any_more_isnt_begun():
    house = House(room=1, a=1, b=1)
    models = house.models()
    busy = FakeRequest()
    models.get("a", busy)
    waiting = FakeRequest()
    asked = ask(models, "b", waiting)
    wait_until(lambda: waiting.leave, "b to wait for room", PATIENCE)
    waiting.leave()
    with pytest.raises(ApiError):
        asked.result(PATIENCE)
    until(models, a=LOADED, b=UNLOADED)
    assert house.started == ["a"]


def test_without_autoload_only_an_order_loads():
    house = House(a=1)
    models = house.models(autoload=False)
    with pytest.raises(ApiError, match="POST /models/load") as caught:
        models.get("a", FakeRequest())
    assert caught.value.status == 400
    models.load("a", "")
    until(models, a=LOADED)
    with FakeRequest() as request:
        assert models.get("a", request)


def test_a_load_that_a_request_waits_for_leaves_the_warming_up_to_that():
    house = House(a=1, b=1)
    models = house.models()
    models.load("a", "")
    until(models, a=LOADED)
    with FakeRequest() as request:
        models.get("b", request)
    assert house.awaited == {"a": False, "b": True}


# ---- room --------------------------------------------------------------------------------------------------------


@pytest.mark.covers("D09")
def test_the_idle_model_that_was_used_least_recently_leaves():
    house = House(room=2, a=1, b=1, c=1)
    clock = Clock()
    models = house.models(clock=clock)
    for name in ("a", "b", "a", "c"):
        clock.now += 1
        with FakeRequest() as request:
            models.get(name, request)
    assert states(models) == {"a": LOADED, "b": UNLOADED, "c": LOADED} and house.most <= 2


def test_a_model_is_loaded_while_another_ends_if_there_is_room_for_both():
    house = House(room=2, a=1, b=1)
    models = house.models(n_most=1)
    with FakeRequest() as request:
        engine = models.get("a", request).engine
    engine.may_end.clear()
    with FakeRequest() as request:
        assert models.get("b", request).name == "b" and engine.n_closed == 0
    engine.may_end.set()


def test_nobody_else_leaves_because_the_end_of_a_model_takes_long():
    house = House(room=2, a=1, b=1, c=1)
    clock = Clock()
    models = house.models(clock=clock)
    for name in ("a", "b"):
        clock.now += 1
        with FakeRequest() as request:
            engine = models.get(name, request).engine
            if name == "a":
                slow = engine
    slow.may_end.clear()
    asked = ask(models, "c")
    until(models, a=UNLOADED)
    n_looked = house.n_measured
    wait_until(lambda: house.n_measured > n_looked + 3, "the load to look again", PATIENCE)
    assert states(models)["b"] == LOADED and not asked.done()
    slow.may_end.set()
    assert asked.result(PATIENCE).name == "c" and states(models)["b"] == LOADED and house.most == 2


def test_a_model_that_could_have_more_waits_for_the_end_of_another():
    house = House(room=4, a=3, b=3)
    house.least["b"] = 1
    models = house.models()
    with FakeRequest() as request:
        engine = models.get("a", request).engine
    engine.may_end.clear()
    models.unload("a", "")
    asked = ask(models, "b")
    n_looked = house.n_measured
    wait_until(lambda: house.n_measured > n_looked + 3, "the load to look again", PATIENCE)
    assert house.started == ["a"]
    engine.may_end.set()
    assert asked.result(PATIENCE) and models.find("b", "").takes == {"memory": 3}


@pytest.mark.covers("D09")
def test_no_model_with_work_leaves():
    house = House(room=1, a=1, b=1)
    models = house.models()
    request = FakeRequest()
    engine = models.get("a", request).engine
    asked = ask(models, "b")
    until(models, b=LOADING)
    engine.is_busy = True
    request.end()  # its answer goes on without it
    assert not asked.done() and engine.n_closed == 0
    engine.is_busy = False
    assert asked.result(PATIENCE).name == "b"
    assert engine.n_closed == 1 and house.most == 1


@pytest.mark.covers("D10")
def test_what_can_never_fit_is_refused_at_once_with_the_numbers():
    house = House(room=10, a=5, huge=11)
    models = house.models()
    request = FakeRequest()
    models.get("a", request)
    with pytest.raises(ApiError, match="huge needs 11 bytes, and 10 are free") as caught:
        models.get("huge", FakeRequest())
    assert caught.value.status == 503
    assert states(models) == {"a": LOADED, "huge": FAILED}, "nobody left for it"
    house.bytes, house.sizes["huge"] = 100, 11
    request.end()


def test_memory_that_others_take_counts():
    house = House(room=10, a=5, b=5)
    models = house.models()
    with FakeRequest() as request:
        models.get("a", request)
    house.bytes = 7  # another program
    with FakeRequest() as request:
        models.get("b", request)
    assert states(models) == {"a": UNLOADED, "b": LOADED} and house.most <= 7


@pytest.mark.covers("D10")
def test_waiting_loads_come_in_their_order_and_nobody_starves():
    house = House(room=1, a=1, b=1, c=1)
    clock = Clock()
    models = house.models(clock=clock)
    first = FakeRequest()
    models.get("a", first)
    requests = {name: FakeRequest() for name in "bc"}
    asked_b = ask(models, "b", requests["b"])
    wait_until(lambda: models.entries[1].load and models.entries[1].load.t_turn, "b to have its turn", PATIENCE)
    asked_c = ask(models, "c", requests["c"])
    until(models, c=LOADING)
    second = FakeRequest()
    assert models.get("a", second).name == "a", "for a while who is loaded goes on"
    clock.now += loads.TURN_S
    wait_until(lambda: models.entries[0].leaves_for, "a to be asked to leave", PATIENCE)
    third = FakeRequest()
    asked_a = ask(models, "a", third)  # waits behind the others
    wait_until(lambda: models.entries[0].load, "a to be waited for", PATIENCE)
    first.end()
    assert not asked_b.done()
    second.end()
    assert asked_b.result(PATIENCE).name == "b" and not asked_c.done() and not asked_a.done()
    requests["b"].end()
    assert asked_c.result(PATIENCE).name == "c" and not asked_a.done()
    requests["c"].end()
    assert asked_a.result(PATIENCE).name == "a"
    assert house.started == ["a", "b", "c", "a"] and house.most == 1


def test_who_was_asked_to_leave_stays_if_nobody_needs_the_room_any_more():
    house = House(room=1, a=1, b=1)
    clock = Clock()
    models = house.models(clock=clock)
    first, waiting, second = FakeRequest(), FakeRequest(), FakeRequest()
    models.get("a", first)
    asked_b = ask(models, "b", waiting)
    wait_until(lambda: models.entries[1].load and models.entries[1].load.t_turn, "b to have its turn", PATIENCE)
    clock.now += loads.TURN_S
    wait_until(lambda: models.entries[0].leaves_for, "a to be asked to leave", PATIENCE)
    asked_a = ask(models, "a", second)
    wait_until(lambda: models.entries[0].load, "a to be waited for", PATIENCE)
    waiting.leave()
    assert asked_a.result(PATIENCE).name == "a"
    with pytest.raises(ApiError):
        asked_b.result(PATIENCE)
    assert house.started == ["a"]


def test_an_engine_that_takes_long_to_end_keeps_its_room_until_then():
    house = House(room=1, a=1, b=1)
    models = house.models()
    with FakeRequest() as request:
        engine = models.get("a", request).engine
    engine.may_end.clear()
    asked = ask(models, "b")
    until(models, a=UNLOADED)
    assert house.started == ["a"] and not asked.done()
    engine.may_end.set()
    assert asked.result(PATIENCE).name == "b" and house.most == 1


def test_a_model_whose_engine_falls_idle_while_it_is_awaited_again_has_one_engine_at_a_time():
    """The load itself ends the old engine then. With both at once, the room of one was free for others."""
    house = House(room=2, a=1)
    models = house.models()
    with FakeRequest() as request:
        engine = models.get("a", request).engine
    engine.is_busy = True
    engine.may_end.clear()
    models.unload("a", "")
    asked = ask(models, "a")
    n_looked = house.n_measured
    wait_until(lambda: house.n_measured > n_looked + 1, "the load to look", PATIENCE)
    engine.is_busy = False
    until(models, a=LOADING)
    engine.may_end.set()
    assert asked.result(PATIENCE).name == "a" and house.most == 1 and house.started == ["a", "a"]


@pytest.mark.parametrize("room", [1, 100])
def test_a_lone_model_that_is_unloaded_during_a_request_has_one_engine_at_a_time(room):
    """Nobody has planned the memory of its first engine, so its entry has none."""
    house = House(room=room, a=1)
    models = Models.from_one(house.read("a", None).start(False), house)
    models.lone.source = "a"
    first = FakeRequest()
    engine = models.get("a", first).engine
    models.unload("a", "")
    asked = ask(models, "a")
    wait_until(lambda: asked.done() or house.n_measured > 2, "the load to look", PATIENCE)
    assert not asked.done() and house.started == ["a"] and not engine.n_closed
    first.end()
    assert asked.result(PATIENCE).engine is not engine
    assert engine.n_closed == 1 and house.most == 1 and house.started == ["a", "a"]


def test_a_model_comes_back_once_its_last_engine_is_gone_and_others_dont_wait_for_that():
    """What that leaves on disk is there for the next one."""
    house = House(room=9, a=1, b=1)
    models = house.models()
    with FakeRequest() as request:
        engine = models.get("a", request).engine
    engine.may_end.clear()
    models.unload("a", "")
    again = ask(models, "a")
    wait_until(lambda: models.entries[0].load and models.entries[0].load.prepared, "a to be asked for", PATIENCE)
    with FakeRequest() as request:
        assert models.get("b", request).name == "b"
    assert not again.done() and house.started == ["a", "b"]
    engine.may_end.set()
    assert again.result(PATIENCE).name == "a"


def test_a_hanging_load_keeps_only_its_own_model_waiting():
    house = House(is_quick=False, a=1, b=1)
    models = house.models()
    hanging = ask(models, "a")
    wait_until(lambda: "a" in house.engines, "a load", PATIENCE)
    house.is_quick = True
    with FakeRequest() as request:
        assert models.get("b", request).name == "b"
    assert not hanging.done()
    house.engines["a"].load()
    hanging.result(PATIENCE)


# ---- ending ------------------------------------------------------------------------------------------------------


def test_an_idle_model_falls_asleep_and_the_next_request_wakes_it():
    house = House(a=1)
    clock = Clock()
    models = house.models(clock=clock)
    models.entries[0].idle_s = 60.0
    with FakeRequest() as request:
        model = models.get("a", request)
        clock.now += 100
        models.tick()
        assert states(models) == {"a": LOADED}, "it has work"
    models.tick()
    clock.now += 59
    models.tick()
    assert states(models) == {"a": LOADED}
    clock.now += 1
    models.tick()
    assert states(models) == {"a": SLEEPING}
    wait_until(lambda: not house.alive, "the end of its engine", PATIENCE)
    assert models.get_known("a", "") is model and models.spell("a", FakeRequest()) is model, "without waking it"
    assert house.started == ["a"]
    with FakeRequest() as request:
        assert models.get("a", request) is not model
    assert house.started == ["a", "a"]


def test_a_model_kept_for_no_time_is_unloaded_with_its_last_request():
    house = House(a=1)
    models = house.models()
    first, second = FakeRequest(), FakeRequest()
    models.get("a", first).keep(0)
    models.get("a", second)
    first.end()
    assert states(models) == {"a": LOADED}
    second.end()
    assert states(models) == {"a": UNLOADED}


def test_unloading_waits_for_work_and_requests_that_come_meanwhile_load_again():
    house = House(a=1)
    models = house.models()
    request = FakeRequest()
    models.get("a", request)
    models.unload("a", "")
    late = ask(models, "a")
    wait_until(lambda: models.entries[0].load, "the late one to wait", PATIENCE)
    assert len(house.alive) == 1
    request.end()
    assert late.result(PATIENCE).name == "a"
    assert house.started == ["a", "a"]


def test_unloading_a_model_that_is_loading_ends_that():
    house = House(is_quick=False, a=1)
    models = house.models()
    asked = ask(models, "a")
    wait_until(lambda: "a" in house.engines, "a load", PATIENCE)
    models.unload("a", "")
    with pytest.raises(ApiError, match="unloaded before it was loaded") as caught:
        asked.result(PATIENCE)
    assert caught.value.status == 503
    until(models, a=UNLOADED)
    wait_until(lambda: not house.alive, "the end of its engine", PATIENCE)


def test_an_engine_that_died_for_good_is_its_models_failure_alone():
    house = House(a=1, b=1)
    clock = Clock()
    models = house.models(clock=clock)
    with FakeRequest() as request:
        models.get("b", request)
        models.get("a", request).engine.load(error="it died 5 times")
    models.tick()
    assert states(models) == {"a": FAILED, "b": LOADED}
    with pytest.raises(ApiError, match="it died 5 times"):
        models.get("a", FakeRequest())
    clock.now += register.RETRY_S
    with FakeRequest() as request:
        assert models.get("a", request)


def test_closing_ends_all_engines_and_fails_who_waits():
    house = House(is_quick=False, a=1, b=1, c=1)
    models = house.models(n_most=2)
    asked = [ask(models, name) for name in "ab"]
    wait_until(lambda: len(house.engines) == 2, "two loads", PATIENCE)
    house.engines["a"].load()
    asked[0].result(PATIENCE)
    third = ask(models, "c")
    until(models, c=LOADING)
    models.close()
    for one in (asked[1], third):
        with pytest.raises(ApiError, match="shutting down"):
            one.result(PATIENCE)
    assert not house.alive
    with pytest.raises(ApiError, match="shutting down"):
        models.get("a", FakeRequest())


def test_all_changes_are_told():
    house = House(a=1)
    models = house.models()
    with models.news.read() as news:
        with FakeRequest() as request:
            models.get("a", request)
        models.unload("a", "")
        told = [news.get(timeout=PATIENCE) for _ in range(3)]
        assert [(entry.name, state) for entry, state, _ in told] == [("a", LOADING), ("a", LOADED), ("a", UNLOADED)]
        models.close()
        assert news.get(timeout=PATIENCE) is None


# ---- many at once ------------------------------------------------------------------------------------------------


def test_a_loaded_model_whose_file_is_replaced_by_another_is_listed_as_the_new_one():
    models = House(a=1).models()
    with FakeRequest() as request:
        models.get("a", request)
    models.renew([Entry("a", "a", path="new.gguf", size=2)])
    entry = models.find("a", "")
    assert (entry.path, entry.size, entry.state) == ("new.gguf", 2, LOADED)
    models.unload("a", "")
    until(models, a=UNLOADED)
    assert entry.info is None, "that of the old file"
    models.renew([Entry("a", "a", path="new.gguf", size=2)])
    assert models.find("a", "") is entry, "nothing has changed since"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_many_threads_do_no_engine_ends_under_a_request(seed):
    """Requests, loads, unloads, sleep, clients that leave: every request gets its model alive, and room is kept."""
    house = House(room=3, a=1, b=1, c=1, d=2, e=3)
    clock = Clock()
    models = house.models(clock=clock, n_most=seed % 3)
    for entry in models.entries[:2]:
        entry.idle_s = 1.0
    faults: list[str] = []
    n_served = [0]

    def work(worker: int) -> None:
        rng = random.Random(f"{seed}/{worker}")
        for _ in range(60):
            name = rng.choice("abcde")
            what = rng.random()
            if what < 0.05:
                models.unload(name, "")
            elif what < 0.1:
                models.load(name, "")
            elif what < 0.2:
                clock.now += rng.random()
                models.tick()
            else:
                with FakeRequest() as request:
                    try:
                        model = models.get(name, request)
                    except ApiError as error:
                        if "unloaded before" not in error.message:
                            faults.append(error.message)
                        continue
                    n_served[0] += 1
                    for _ in range(rng.randrange(3)):
                        clock.now += 0.1
                        if model.engine.state != "ok" or model.engine.n_closed or model.name != name:
                            faults.append(f"{name} had {model.engine.state}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "somebody waits for ever"
    assert faults == [] and n_served[0] > 100
    assert house.most <= 3
    assert all(entry.n_leases == 0 for entry in models.entries)
    models.close()
    wait_until(lambda: not house.alive, "the end of all engines", PATIENCE)
