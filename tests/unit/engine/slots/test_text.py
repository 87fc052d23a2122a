"""`engine.text`: the text doesn't depend on how its bytes are split, and no part of a stop string is ever shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.slots.text import TextStream, find_first_stop, measure_partial_stop


def feed(pieces: Iterable[bytes], stops: Iterable[str] = (), n_indent: int = 0) -> tuple[str, str]:
    """The text shown for `pieces` and the word that ended it, as the engine does it: no piece after the end."""
    stream = TextStream(tuple(stops), n_indent)
    shown = []
    for piece in pieces:
        shown.append(stream.feed(piece))
        if stream.stopping_word or stream.is_outdented:
            break
    shown.append(stream.finish())
    return "".join(shown), stream.stopping_word


def ways_to_cut(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, in two at every place, in three with an empty piece."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for cut in range(len(data) + 1):
        yield [data[:cut], data[cut:]]
        yield [data[:cut], b"", data[cut:]]


def ending(text: str, stops: Iterable[str]) -> tuple[str, str]:
    """The rule said slowly: read letter by letter; the longest stop that ends at this letter ends the text."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, ""


CASES = [
    ("no stop, plain", b"one two", (), "one two", ""),
    ("no stop, all widths", "aé€😀z".encode(), (), "aé€😀z", ""),
    ("a stop at the end", b"one STOP", ("STOP",), "one ", "STOP"),
    ("a stop in the middle", b"one STOP two", ("STOP",), "one ", "STOP"),
    ("a stop at once", b"STOP", ("STOP",), "", "STOP"),
    ("a beginning of a stop that comes to nothing", b"one STOx", ("STOP",), "one STOx", ""),
    ("a beginning of a stop at the very end", b"one STO", ("STOP",), "one STO", ""),
    ("a false start before the stop", b"SSTOP", ("STOP",), "S", "STOP"),
    ("a stop that overlaps itself", b"abababc", ("ababc",), "ab", "ababc"),
    ("a prefix of the other: the shorter is complete first", b"xSTOPS", ("STOPS", "STOP"), "x", "STOP"),
    ("both complete at once: the one that began first", b"x a b c", ("c", "b c"), "x a ", "b c"),
    ("overlapping stops: the one complete first", b"xabcd", ("bcd", "abc"), "x", "abc"),
    ("a stop of multibyte letters", "aé世界b".encode(), ("世界",), "aé", "世界"),
    ("half of a multibyte stop", "a世".encode(), ("世界",), "a世", ""),
    ("a line break", b"a\n\nb", ("\n\n",), "a", "\n\n"),
    ("an empty stop is no stop", b"abc", ("",), "abc", ""),
    ("bytes that are no UTF-8", b"a\xffb", (), "a\ufffdb", ""),
    ("a character that never ends", b"a\xe2\x82", (), "a\ufffd", ""),
    ("a character broken by the next", b"a\xe2\x82b", (), "a\ufffdb", ""),
    ("a lone continuation byte", b"\x80a", (), "\ufffda", ""),
    ("an overlong form", b"\xc0\xafa", (), "\ufffd\ufffda", ""),
    ("a surrogate as bytes", b"\xed\xa0\x80", (), "\ufffd\ufffd\ufffd", ""),
    ("a stop, and a broken character in the tail", b"one STOP\xe2\x82", ("STOP",), "one ", "STOP"),
]


@pytest.mark.parametrize(("data", "stops", "text", "word"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_text_ends_where_it_should_however_it_is_cut(data, stops, text, word):
    for pieces in ways_to_cut(data):
        assert feed(pieces, stops) == (text, word), pieces


@pytest.mark.covers("B13")
def test_a_character_is_shown_with_its_last_byte_and_never_in_parts():
    stream = TextStream()
    shown = [stream.feed(bytes([byte])) for byte in "aé€😀".encode()]
    assert shown == ["a", "", "é", "", "", "€", "", "", "", "😀"]


def test_being_inside_a_character_is_known():
    stream = TextStream()
    states = []
    for byte in "a€b".encode():
        stream.feed(bytes([byte]))
        states.append(stream.is_inside_character)
    assert states == [False, True, True, False, False]


def test_after_the_stop_nothing_more_comes_out():
    stream = TextStream(("end",))
    assert stream.feed(b"the end of it\xe2") == "the "
    assert stream.finish() == ""


def test_the_beginning_of_a_stop_is_held_until_it_is_none():
    stream = TextStream(("</end>",))
    assert [stream.feed(piece) for piece in (b"a <", b"/en", b"t", b">")] == ["a ", "", "</ent", ">"]


def test_text_without_stops_is_never_held():
    stream = TextStream()
    assert [stream.feed(piece) for piece in (b"a", b" b")] == ["a", " b"]


SMALL_TEXT = st.text(alphabet="ab€\n", max_size=12)
STOPS = st.lists(st.text(alphabet="ab€\n", min_size=1, max_size=4), max_size=4)


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces between the given places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in zip(places, places[1:])]


@given(text=SMALL_TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 99), max_size=8))
def test_the_cuts_do_not_matter(text, stops, cuts):
    assert feed(cut_at(text.encode(), cuts), stops) == ending(text, stops)


BROKEN_TEXT = st.lists(
    st.sampled_from([b"a", b"b", b"\n", b"\xe2", b"\x82", b"\xac", b"\xf0", b"\xff"]), max_size=12
).map(b"".join)


@given(data=BROKEN_TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 99), max_size=8))
def test_the_cuts_do_not_matter_for_any_bytes(data, stops, cuts):
    assert feed(cut_at(data, cuts), stops) == ending(data.decode("utf-8", "replace"), stops)


@given(text=SMALL_TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 99), max_size=8))
def test_at_no_time_is_more_shown_than_the_text_or_less_than_is_safe(text, stops, cuts):
    end, word = ending(text, stops)
    stream = TextStream(tuple(stops))
    shown, fed = "", b""
    for piece in cut_at(text.encode(), cuts):
        shown += stream.feed(piece)
        fed += piece
        assert end.startswith(shown)
        if stream.stopping_word:
            assert stream.stopping_word == word
            break
        so_far = fed.decode("utf-8", "ignore")
        longest = max(
            (n for n in range(len(so_far) + 1) if any(stop.startswith(so_far[len(so_far) - n :]) for stop in stops)),
            default=0,
        )
        assert shown == so_far[: len(so_far) - longest], "held back too much or too little"


@given(text=SMALL_TEXT, stops=STOPS)
def test_the_first_stop_is_the_one_the_slow_rule_finds(text, stops):
    end, word = ending(text, stops)
    assert find_first_stop(text, stops) == ((len(end), word) if word else None)


@given(text=SMALL_TEXT, stops=STOPS)
def test_the_partial_stop_is_the_longest_real_beginning(text, stops):
    n = measure_partial_stop(text, stops)
    possible = [
        k for k in range(len(text) + 1) if any(k < len(stop) and text[len(text) - k :] == stop[:k] for stop in stops)
    ]
    assert n == max(possible, default=0)


@pytest.mark.parametrize(
    ("text", "n_indent", "expected"),
    [
        ("  a\n  b\nc", 2, "  a\n  b\n"),
        ("a\n    b\n  c\n d", 2, "a\n    b\n  c\n "),
        ("a\n\n  b\nc", 2, "a\n\n  b\n"),
        ("a\nb", 0, "a\nb"),
        ("no line break at all", 4, "no line break at all"),
    ],
)
def test_with_an_indent_the_text_ends_before_an_outdented_line(text, n_indent, expected):
    for pieces in ways_to_cut(text.encode()):
        assert feed(pieces, (), n_indent) == (expected, ""), pieces
