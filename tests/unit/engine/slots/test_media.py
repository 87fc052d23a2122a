"""Files in prompts: prepared separately, evaluated in steps of their own, reused by content, freed when unused."""

from __future__ import annotations

import threading
import zlib
from dataclasses import replace

import pytest

from server.engine.seam.task import Close, Media, Task
from server.engine.slots.media import Chunk, Layout, Prepared, make_placeholders, write_out
from tests.fake_media import CLOSING, OPENING, FakeMedia, media, picture_bytes, written_out
from tests.fakes import PATIENCE_S, FakeBackend
from tests.media_files import png_of
from tests.unit.engine.driving import GREEDY, Driver, alone

CAT, DOG = media(picture_bytes(1)), media(picture_bytes(2, n_cells=6))


def driver(n_slots: int = 2, n_batch: int = 64, n_ctx: int = 256, **config) -> Driver:
    backend = FakeBackend(n_ctx=n_ctx * n_slots, n_slots=n_slots, n_batch=n_batch)
    FakeMedia(backend)
    return Driver(backend, **config)


def look(*files, before: str = "see ", after: str = " what is it?") -> dict[str, object]:
    """Fields of a task about files."""
    tokens = [*before.encode(), *(-1 - i for i in range(len(files))), *after.encode()]
    return {"prompt": tokens, "media": files}


def post(d: Driver, *files, n_predict: int = 8, before: str = "see ", after: str = " what is it?", **fields) -> int:
    return d.post(n_predict=n_predict, **look(*files, before=before, after=after), **fields)


def right_text(*files, n: int = 8, before: str = "see ", after: str = " what is it?") -> str:
    prompt = look(*files, before=before, after=after)["prompt"]
    return alone(written_out(prompt, list(files)), n)


def is_clean(d: Driver) -> bool:
    return d.is_clean() and d.backend.media.n_open == 0 and not d.scheduler._state.media._layouts


# ---- what stands for a file ------------------------------------------------------------------------------------------


def test_placeholders_are_negative_32_bit_ids_that_depend_on_the_content_alone():
    ids = make_placeholders(b"cat", 1000)
    assert ids == make_placeholders(b"cat", 1000)
    assert all(-(2**31) <= token < 0 for token in ids)
    assert len(set(ids)) > 990 and not set(ids) & set(make_placeholders(b"dog", 1000))


def test_a_layout_knows_where_chunks_begin_and_what_can_be_reused():
    layout = Layout({3: Chunk((-1, -2), 6), 8: Chunk((-3, -4), 2)})
    assert [layout.find_next_start(at, 10) for at in (0, 3, 4, 8, 9)] == [3, 3, 8, 8, 10]
    assert layout.count_reusable(20) == 19, "all but the last token"
    assert layout.count_reusable(10) == 8, "all but the chunk it ends with"
    assert Layout().count_reusable(0) == 0
    assert (layout.count_extra(), layout.count_extra(4)) == (4, 0)
    assert list(layout.make_shifted(5).chunks) == [8, 13]


def test_a_position_leads_back_to_the_prompt_as_it_was_sent():
    files = (Prepared(([7], Chunk((-1, -2), 6), [8]), None), Prepared((), None), Prepared((Chunk((-3,), 1),), None))
    task, layout = write_out(Task(1, (50, -1, 51, -2, -3, 52, -1)), files)
    assert [layout.as_sent(at) for at in range(len(task.prompt))] == [0, 1, 1, 1, 1, 2, 4, 5, 6, 6, 6, 6]
    assert layout.make_shifted(3).as_sent(3 + 5) == 3 + 2


@pytest.mark.parametrize(
    ("files", "after", "at"), [((DOG,), " what is it?", 4), ((CAT, DOG), "!", 5), ((CAT,), " what is that?", 14)]
)
def test_a_difference_in_a_file_or_behind_it_is_told(files, after, at):
    d = driver()
    tasks = []
    for one in ({}, {"files": files, "after": after}):
        tasks.append(
            post(d, *one.get("files", (CAT,)), after=one.get("after", " what is it?"), n_predict=1, owner="me")
        )
        d.finish()
    assert d.outcomes[tasks[1]].final.cache.first_difference.at == at


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, before, after",
    [
        ((CAT,), "see ", " what is it?"),
        ((CAT, DOG), "", "!"),
        ((CAT,), "last: ", ""),
        ((DOG, DOG, CAT), "x", "y"),
        ((media(picture_bytes(3, 5, n_chunks=4)),), "tiles ", " ?"),
    ],
)
def test_text_depends_on_all_cells_of_all_files_in_order(files, before, after):
    d = driver()
    task = post(d, *files, before=before, after=after)
    d.finish()
    assert d.text(task) == right_text(*files, before=before, after=after)
    assert is_clean(d)


def test_each_chunk_is_encoded_once_and_in_steps_of_its_own():
    d = driver(n_slots=3)
    other = d.post("somebody else", n_predict=40)
    d.step(2)
    task = post(d, CAT, DOG)
    said = len(d.outcomes[other].tokens)
    n_steps = 0
    while not d.outcomes[task].pieces:
        d.step()
        n_steps += 1
        assert len(d.outcomes[other].tokens) >= said + n_steps // 2, "more than every second step was left out"
        assert len(d.backend.media.encoded) + len(d.backend.media.decoded) <= n_steps
    assert len(d.backend.media.encoded) == 2
    d.finish()
    assert d.text(task) == right_text(CAT, DOG) and d.text(other) == alone("somebody else", 40)


def test_a_stream_gets_a_token_between_any_two_pieces_of_work_on_files():
    d = driver(n_slots=3)
    stream = d.post("hello", n_predict=60)
    d.step(3)
    pieces: list[int] = []
    eyes = d.backend.media
    encode, decode = eyes.encode, eyes.decode

    def noted(work):
        return lambda *args: (pieces.append(d.scheduler._state.meter.n_predicted), work(*args))[1]

    eyes.encode, eyes.decode = noted(encode), noted(decode)
    other = post(d, CAT, DOG, CAT)
    vectors = d.embed([-1, -2, 5], media=(DOG, CAT))
    d.step_until(lambda: d.outcomes[other].ends and d.outcomes[vectors].ends)
    assert len(pieces) >= 8 and not d.outcomes[stream].ends
    assert all(pieces.count(n) <= 2 for n in pieces), f"at most one for a slot and one for vectors: {pieces}"
    d.finish()
    assert d.text(stream) == alone("hello", 60)


def test_an_image_that_keeps_streams_waiting_for_long_counts_as_a_stall():
    d = driver(n_slots=2)
    encode = d.backend.media.encode

    def slowly(chunk):
        d.clock.now += 0.5
        encode(chunk)

    d.backend.media.encode = slowly
    post(d, CAT)
    d.finish()
    assert d.scheduler.snapshot().n_stalls == 0, "nobody waited"
    stream = d.post("hello", n_predict=30)
    d.step(3)
    post(d, DOG, n_predict=1)
    d.step_until(lambda: d.backend.media.encoded[-1].ids != d.backend.media.encoded[0].ids)
    assert d.scheduler.snapshot().n_stalls == 1
    d.finish()
    assert d.text(stream) == alone("hello", 30)


def test_many_tasks_with_files_at_once_all_get_their_own_text():
    d = driver(n_slots=4)
    tasks = {post(d, *files): files for files in ((CAT,), (DOG,), (CAT, DOG), (DOG, CAT), (CAT, CAT), (DOG,)) * 2}
    plain = d.post("no files", n_predict=9)
    d.finish()
    for task, files in tasks.items():
        assert d.text(task) == right_text(*files)
    assert d.text(plain) == alone("no files", 9)
    assert is_clean(d)


def test_a_system_prompt_stands_before_the_files():
    d = driver()
    d.answer("system_prompt", tokens=tuple(b"be brief. "))
    task = post(d, CAT)
    d.finish()
    assert d.text(task) == right_text(CAT, before="be brief. see ")


def test_penalties_are_not_told_of_placeholders():
    d = driver()
    task = post(d, CAT, n_predict=2, sampling=replace(GREEDY, repeat_penalty=1.5, repeat_last_n=64))
    d.finish()
    assert d.outcomes[task].final
    assert d.backend.samplers[0].accepted[:-2] == [*b"see ", OPENING, CLOSING, *b" what is it?"]


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_question_about_the_same_file_evaluates_only_what_is_new():
    d = driver()
    post(d, CAT)
    d.finish()
    task = post(d, CAT, after=" what is it? And why")
    d.finish()
    assert len(d.backend.media.encoded) == 1
    assert d.outcomes[task].final.timings.prompt_n == len(" And why")
    assert d.text(task) == right_text(CAT, after=" what is it? And why")


def test_another_file_at_the_same_place_is_not_taken_for_the_first():
    d = driver(n_slots=1)
    for file in (CAT, media(picture_bytes(9)), CAT):
        task = post(d, file)
        d.finish()
        assert d.text(task) == right_text(file)
    assert len(d.backend.media.encoded) == 3


def test_a_prompt_that_ends_with_a_cached_chunk_evaluates_all_of_it_again():
    d = driver(n_slots=1)
    file = media(b"FAKE\x08\x00\x01\x00\x00\x00\x00\x00")
    desk = d.scheduler._state.media
    desk._prepare = lambda media, prepare=desk._prepare: _without_closing(prepare(media))
    for n_encoded in (1, 2):
        task = post(d, file, after="")
        d.finish()
        assert len(d.backend.media.encoded) == n_encoded
    assert d.outcomes[task].final.timings.cache_n == len("see <")


def _without_closing(prepared):
    return Prepared(prepared.parts[:-1], prepared.owner)


def test_a_file_in_another_slot_is_shared_not_computed_again():
    d = driver(n_slots=2)
    big = media(picture_bytes(5, n_cells=40))
    post(d, big, id_slot=0)
    d.finish()
    task = post(d, big, after=" and now?", id_slot=1)
    d.finish()
    assert len(d.backend.media.encoded) == 1
    assert d.text(task) == right_text(big, after=" and now?")


def test_a_slot_with_a_file_can_be_saved_and_restored(tmp_path):
    d = driver(n_slots=1)
    post(d, CAT)
    d.finish()
    d.answer("save", id_slot=0, path=str(tmp_path / "slot"))
    d.answer("erase", id_slot=0)
    d.answer("restore", id_slot=0, path=str(tmp_path / "slot"))
    task = post(d, CAT)
    d.finish()
    assert d.outcomes[task].final.timings.prompt_n == 1 and len(d.backend.media.encoded) == 1


def test_a_file_that_does_not_fit_the_context_is_refused_and_files_stop_context_shift():
    d = driver(n_slots=1, n_ctx=64, shift_context=True)
    task = post(d, media(picture_bytes(1, n_cells=80)))
    d.finish()
    assert d.outcomes[task].failure.type == "exceed_context_size_error"
    task = post(d, CAT, n_predict=100)
    d.finish()
    assert d.outcomes[task].final.stop == "limit" and d.outcomes[task].final.truncated
    assert is_clean(d)


def test_cells_beyond_one_per_position_count_for_the_context_and_the_usage():
    backend = FakeBackend(n_ctx=64, n_slots=1, n_batch=16)
    FakeMedia(backend, n_pos_factor=2)
    d = Driver(backend)
    task = d.post([65, -1, 66], n_predict=100, media=(media(picture_bytes(1, n_cells=40)),))
    d.finish()
    final = d.outcomes[task].final
    assert final.n_prompt == 44 and final.timings.prompt_n == 44
    assert final.stop == "limit" and final.n_predicted == 64 - 44 + 1
    task = d.post([65, -1], media=(media(picture_bytes(1, n_cells=64)),))
    d.finish()
    assert d.outcomes[task].failure.extra == {"n_prompt_tokens": 67, "n_ctx": 64}


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["encode", "decode", -1, -3])
def test_a_chunk_that_cant_be_evaluated_fails_its_task_alone(fault):
    d = driver(n_slots=2)
    if fault == "encode":
        d.backend.media.fail_encode_at[1] = RuntimeError("out of memory")
    else:
        d.backend.media.fail_at[1] = RuntimeError("broken") if fault == "decode" else fault
    other = d.post("somebody else", n_predict=30)
    task, same = post(d, CAT), post(d, CAT)
    d.finish()
    assert d.outcomes[task].failure.status == 500
    assert d.text(same) == right_text(CAT) and d.text(other) == alone("somebody else", 30)
    assert is_clean(d)


def test_a_chunk_waits_for_room_that_an_idle_slot_gives_up():
    d = driver(n_slots=2)
    d.post("x" * 50, id_slot=0)
    d.finish()
    d.backend.media.fail_at[1] = 1
    task = post(d, CAT, id_slot=1)
    d.finish()
    assert d.text(task) == right_text(CAT)
    assert d.backend.history(0) == []


def test_an_aborted_chunk_is_evaluated_again():
    d = driver(n_slots=1)
    d.backend.media.fail_at[1] = 2
    task = post(d, CAT)
    d.finish()
    assert d.text(task) == right_text(CAT)


def test_a_file_that_cant_be_read_is_told_with_its_place():
    d = driver()
    good, bad = post(d, CAT), post(d, CAT, media(b"nonsense", where="messages[1].content[0]"))
    d.finish()
    assert d.text(good) == right_text(CAT)
    failure = d.outcomes[bad].failure
    assert failure.status == 400 and failure.message.startswith("messages[1].content[0]: ")
    assert is_clean(d)


def test_an_engine_without_a_projector_says_what_to_do():
    d = Driver(FakeBackend())
    task = post(d, CAT)
    d.finish()
    assert d.outcomes[task].failure.status == 400 and "--mmproj" in d.outcomes[task].failure.message


@pytest.mark.parametrize("n_steps", range(8))
def test_a_task_with_files_can_be_cancelled_at_any_step(n_steps):
    d = driver(n_slots=1)
    task = post(d, CAT, DOG, n_predict=50)
    d.step(n_steps)
    d.cancel(task)
    d.step()
    assert not d.outcomes[task].ends and is_clean(d)
    again = post(d, CAT, DOG)
    d.step_until(lambda: d.outcomes[again].ends)
    assert d.text(again) == right_text(CAT, DOG)


def test_a_task_cancelled_while_its_file_is_prepared_leaves_nothing():
    d = driver()
    desk = d.scheduler._state.media
    held = []
    desk._begin = held.append
    task = post(d, CAT)
    d.step()
    assert d.snapshot.n_deferred == 1
    d.cancel(task)
    d.step()
    desk._prepare_files(held[0])  # it was at it already
    d.step()
    assert not d.outcomes[task].ends and is_clean(d)


def test_the_end_of_the_engine_ends_the_media_thread_and_frees_its_files():
    d = driver()
    desk = d.scheduler._state.media
    del desk._begin
    going, at_work = threading.Event(), threading.Event()
    prepare = desk._prepare

    def slow(media):
        at_work.set()
        assert going.wait(PATIENCE_S)
        return prepare(media)

    desk._prepare = slow
    task = post(d, CAT)
    thread = threading.Thread(target=d.scheduler.run, daemon=True)
    thread.start()
    assert at_work.wait(PATIENCE_S)
    d.scheduler.post(Close(0.0))
    going.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and not desk._thread.is_alive()
    assert d.outcomes[task].failure.status == 503 and d.backend.media.n_open == 0


def test_files_of_too_many_tasks_are_not_collected():
    d = driver(max_queue=2)
    d.scheduler._state.media._begin = lambda task: None
    tasks = [post(d, CAT) for _ in range(5)]
    d.step()
    assert [task for task in tasks if d.outcomes[task].failure] == tasks[3:]
    assert d.outcomes[tasks[4]].failure.status == 503


def prepared_by(d: Driver) -> list[str]:
    """The places of the files that are decoded from now on."""
    desk, places = d.scheduler._state.media, []
    desk._prepare = lambda media, prepare=desk._prepare: (places.append(media.where), prepare(media))[1]
    return places


def pictures(owner: str, n: int, n_bytes: int = 1000) -> list[Media]:
    return [
        replace(media(picture_bytes(zlib.crc32(f"{owner}{i}".encode()))), where=owner, n_bytes=n_bytes)
        for i in range(n)
    ]


def hold_turns(d: Driver) -> list:
    """Have the media thread's turns wait in a list."""
    held: list = []
    d.scheduler._state.media._begin = held.append
    return held


def take_turn(d: Driver, held: list) -> None:
    d.scheduler._state.media._prepare_files(held.pop(0))
    d.step()


def test_owners_take_turns_file_by_file_and_a_newcomer_waits_for_one_file_at_most():
    d = driver(n_slots=4, n_ctx=2048)
    places, held = prepared_by(d), hold_turns(d)
    many = [post(d, *pictures(f"many{i}", 10), owner="many") for i in range(3)]
    few = post(d, *pictures("few", 3), owner="few")
    d.step()
    while held:
        take_turn(d, held)
    assert [place[:4] for place in places[:8]] == ["many", "few"] * 3 + ["many"] * 2
    d.finish()
    assert d.text(few) == right_text(*pictures("few", 3))
    for i, task in enumerate(many):
        assert d.text(task) == right_text(*pictures(f"many{i}", 10))
    assert is_clean(d)


def test_who_sends_large_files_has_fewer_turns():
    d = driver(n_slots=4, n_ctx=2048)
    places, held = prepared_by(d), hold_turns(d)
    post(d, *pictures("large", 4, n_bytes=5000), owner="large")
    post(d, *pictures("small", 12), owner="small")
    d.step()
    while held:
        take_turn(d, held)
    assert places == ["large"] + ["small"] * 5 + ["large"] + ["small"] * 5 + ["large"] + ["small"] * 2 + ["large"]
    d.finish()
    assert is_clean(d)


def test_a_task_that_is_cancelled_between_two_turns_gives_its_files_back():
    d = driver(n_slots=2, n_ctx=2048)
    places, held = prepared_by(d), hold_turns(d)
    many = post(d, *pictures("many", 30), owner="many")
    few = post(d, *pictures("few", 3), owner="few")
    d.step()
    for _ in range(3):
        take_turn(d, held)
    assert d.backend.media.n_open == 3
    d.cancel(many)
    d.step()
    while held:
        take_turn(d, held)
    d.step_until(lambda: d.outcomes[few].ends)
    assert places.count("many") == 2 and d.text(few) == right_text(*pictures("few", 3)) and not d.outcomes[many].ends
    assert is_clean(d)


def test_no_file_of_a_cancelled_task_is_begun():
    d = driver(n_slots=2, n_ctx=2048)
    held, places = hold_turns(d), []
    task = post(d, *pictures("many", 30))
    d.step()
    desk = d.scheduler._state.media

    def leave(media, prepare=desk._prepare):
        places.append(media.where)
        if len(places) == 3:
            d.cancel(task)
            d.step()
        return prepare(media)

    desk._prepare = leave
    take_turn(d, held)
    assert len(places) == 3 and is_clean(d)


def test_a_file_is_decoded_once_for_all_who_look_at_it():
    d = driver(n_slots=4)
    places = prepared_by(d)
    tasks = [post(d, CAT, DOG, CAT, n_predict=30) for _ in range(3)]
    vectors = d.embed([-1, 5], [-2], media=(DOG, CAT))
    d.finish()
    assert len(places) == 2
    for task in tasks:
        assert d.text(task) == right_text(CAT, DOG, CAT, n=30)
    assert d.outcomes[vectors].ends and is_clean(d)


def test_what_files_take_at_least_is_known_before_they_are_decoded():
    d = driver(n_slots=1, n_ctx=64)
    places = prepared_by(d)
    big = replace(CAT, width=20, height=4)
    task = post(d, DOG, big)
    d.finish()
    failure = d.outcomes[task].failure
    assert failure.type == "exceed_context_size_error" and "or more" in failure.message and not places
    assert failure.extra == {"n_prompt_tokens": len("see  what is it?") + 80, "n_ctx": 64}
    assert is_clean(d)


def test_no_more_files_are_decoded_than_the_context_holds():
    d = driver(n_slots=1, n_ctx=64)
    places = prepared_by(d)
    task = post(d, *pictures("many", 50))
    d.finish()
    assert d.outcomes[task].failure.type == "exceed_context_size_error" and len(places) < 10
    assert is_clean(d)


def test_a_png_that_is_no_good_is_found_before_its_decoder_has_it():
    d = driver()
    places = prepared_by(d)
    bomb = png_of(8, 8, zlib.compress(bytes(1 << 22)))
    task = post(d, replace(media(bomb), n_bytes=600))
    d.finish()
    assert d.outcomes[task].failure.status == 400 and "far more data" in d.outcomes[task].failure.message
    assert not places and is_clean(d)


def test_files_are_prepared_one_task_at_a_time_and_it_is_told_whose(monkeypatch):
    d = driver()
    desk, announced, held = d.scheduler._state.media, [], []
    monkeypatch.setattr(desk, "_announce", announced.append)
    monkeypatch.setattr(desk, "_begin", held.append)
    first, second = post(d, CAT), post(d, DOG)
    d.step()
    assert announced == [first] and d.snapshot.preparing == first and d.snapshot.working == {first}
    desk._prepare_files(held[0])
    d.step()
    assert announced == [first, second] and d.snapshot.working == {first, second}
    desk._prepare_files(held[1])
    d.finish()
    assert d.text(first) == right_text(CAT) and d.text(second) == right_text(DOG)
    assert d.snapshot.preparing is None and is_clean(d)


def test_the_time_limit_of_a_task_counts_while_its_files_are_prepared():
    d = driver()
    d.scheduler._state.media._begin = lambda task: None
    task = post(d, CAT, t_max_ms=100)
    d.step()
    d.clock.now += 1
    d.step()
    assert d.outcomes[task].failure.status == 504


def test_patience_with_a_chunk_is_that_with_many_rows_of_text():
    d = driver()
    post(d, DOG)
    rows = []
    while not d.backend.media.decoded:
        d.step()
        rows.append(d.scheduler.pulse()[1])
    assert 16 * 6 in rows
