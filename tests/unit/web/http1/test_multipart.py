"""Forms with files, fed in every way; malformed ones are refused, and no other body is read as a form."""

from __future__ import annotations

import random

import pytest

from server.errors import ApiError
from server.web.http1.head import Headers
from server.web.http1.multipart import HEAD_BYTES, MAX_PARTS, N_HEADERS, PREAMBLE_BYTES, FormParser, Part, read_value
from tests.unit.web.feeding import ways_to_cut

TYPE = "multipart/form-data; boundary=b"
NAMED = b'Content-Disposition: form-data; name="a"\r\n'
TAILS = [b"", b"\r\n", b"an epilogue\r\n--b\r\n", b"--b--"]


def parser(content_type: str = TYPE) -> FormParser:
    return FormParser(Headers({"content-type": content_type}))


def parse(data: bytes, content_type: str = TYPE) -> list[Part]:
    return read([data], content_type)


def read(pieces: list[bytes], content_type: str = TYPE) -> list[Part]:
    form = parser(content_type)
    for piece in pieces:
        form.feed(piece)
    return form.finish()


def encode(fields: list[tuple[bytes, bytes, bytes]], boundary: bytes = b"b") -> bytes:
    """A form of (name, more of the head, value)."""
    parts = (
        b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (boundary, *field) for field in fields
    )
    return b"".join(parts) + b"--%b--\r\n" % boundary


FORMS = [
    [],
    [(b"a", b"", b"x")],
    [(b"a", b"", b"")],
    [(b"a", b"", b"\r\n")],
    [(b"a", b"", b"\r\n--\r\n--c\r\n-b\r--b\n--b")],
    [(b"a", b"", b"--b"), (b"b", b"", b"\r"), (b"c", b"", b"\n"), (b"d", b"", b"--b--")],
    [(b"a", b'; filename="x.wav"\r\nContent-Type: audio/wav', bytes(range(256))), (b"b", b"", "é😀".encode())],
    [("ü[]".encode(), b"; filename=x\r\nContent-Transfer-Encoding: BINARY\r\nX-Other: y", b"1")] * 2,
]


@pytest.mark.covers("H02")
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("fields", FORMS, ids=lambda fields: repr(fields)[:50])
def test_the_parts_are_the_same_however_the_body_arrives(fields, tail):
    expected = [(name.decode(), b"filename" in more, value) for name, more, value in fields]
    for pieces in ways_to_cut(encode(fields) + tail):
        assert [(part.name, part.is_file, bytes(part.data)) for part in read(pieces)] == expected


def test_a_preamble_and_padding_are_skipped():
    data = b"not for us\r\n--b \t\r\n" + NAMED + b"\r\nx\r\n--b--"
    for pieces in ways_to_cut(data):
        assert [bytes(part.data) for part in read(pieces)] == [b"x"]


def test_a_value_of_a_megabyte_is_whole_and_isn_t_kept_twice():
    value = random.Random(5).randbytes(1 << 20)
    data, form, n_most = encode([(b"file", b'; filename="x"', value)]), parser(), 0
    for at in range(0, len(data), 4096):
        form.feed(data[at : at + 4096])
        n_most = max(n_most, len(form._pending))
    [part] = form.finish()
    assert part.data == value and n_most < 16


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="b"',
        "Multipart/Form-Data;boundary=b",
        "multipart/form-data; charset=utf-8; BOUNDARY=b",
        'multipart/form-data; x="a;boundary=c"; boundary=b',
    ],
)
def test_the_boundary_is_found_in_the_type(content_type):
    assert [part.decode_text() for part in parse(encode([(b"a", b"", b"x")]), content_type)] == ["x"]


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/mixed; boundary=b",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "b" * 71,
        'multipart/form-data; boundary="b "',
        'multipart/form-data; boundary="\\"é"',
    ],
)
def test_a_body_that_is_no_form_is_another_type(content_type):
    with pytest.raises(ApiError) as caught:
        parser(content_type)
    assert caught.value.status == 415


def test_a_type_that_is_malformed_is_refused():
    for content_type in ("multipart/form-data; boundary=a; boundary=b", 'multipart/form-data; boundary="b'):
        with pytest.raises(ApiError) as caught:
            parser(content_type)
        assert caught.value.status == 400


WHOLE = encode([(b"a", b"", b"x")])
BAD = {
    "no end": WHOLE[:-4],
    "cut in the head": b"--b\r\nContent-Dis",
    "cut in a value": b"--b\r\n" + NAMED + b"\r\nxyz",
    "nothing": b"",
    "another boundary": WHOLE.replace(b"--b", b"--c"),
    "a longer boundary": WHOLE.replace(b"--b\r\n", b"--bc\r\n"),
    "a boundary that goes on": encode([(b"a", b"", b"\r\n--bc")]),
    "a long preamble": b"x" * (PREAMBLE_BYTES + 5) + WHOLE,
    "bare line feeds": WHOLE.replace(b"\r\n", b"\n"),
    "a bare line feed in a head": b"--b\r\n" + NAMED.replace(b"\r\n", b"\n") + b"\r\nx\r\n--b--",
    "no disposition": b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--",
    "no head": b"--b\r\n\r\nx\r\n--b--",
    "no name": b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--",
    "an empty name": WHOLE.replace(b'"a"', b'""'),
    "two names": WHOLE.replace(b'"a"', b'"a"; name="b"'),
    "another disposition": WHOLE.replace(b"form-data", b"attachment"),
    "two dispositions": b"--b\r\n" + 2 * NAMED + b"\r\nx\r\n--b--",
    "a name without an end": WHOLE.replace(b'"a"', b'"a'),
    "a name that is no UTF-8": WHOLE.replace(b'"a"', b'"\xff"'),
    "a folded line": WHOLE.replace(b"; name", b";\r\n name"),
    "a malformed header": b"--b\r\n" + NAMED + b"no colon\r\n\r\nx\r\n--b--",
    "a form in a form": b"--b\r\n" + NAMED + b"Content-Type: multipart/mixed; boundary=c\r\n\r\nx\r\n--b--",
    "base64": b"--b\r\n" + NAMED + b"Content-Transfer-Encoding: base64\r\n\r\neA==\r\n--b--",
    "many headers": b"--b\r\n" + NAMED + b"".join(b"X-%d: y\r\n" % i for i in range(N_HEADERS)) + b"\r\nx\r\n--b--",
    "a long header": b"--b\r\n" + NAMED + b"X: " + b"y" * HEAD_BYTES + b"\r\n\r\nx\r\n--b--",
    "a long line": b"--b" + b" " * (HEAD_BYTES + 1),
    "many parts": encode([(b"a", b"", b"x")] * (MAX_PARTS + 1)),
}


@pytest.mark.covers("H02")
@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_form_is_refused_however_it_arrives(data):
    cuts = ways_to_cut(data) if len(data) < 1000 else [[data], [data[i : i + 7] for i in range(0, len(data), 7)]]
    for pieces in cuts:
        with pytest.raises(ApiError) as caught:
            read(pieces)
        assert caught.value.status == 400 and "\n" not in caught.value.message


def test_as_many_parts_and_headers_as_are_allowed_are_taken():
    assert len(parse(encode([(b"a", b"", b"x")] * MAX_PARTS))) == MAX_PARTS
    head = NAMED + b"".join(b"X-%d: y\r\n" % i for i in range(N_HEADERS - 1))
    assert len(parse(b"--b\r\n" + head + b"\r\nx\r\n--b--")) == 1


def test_refusals_come_before_the_rest_of_the_body():
    form = parser()
    with pytest.raises(ApiError, match="doesn't begin"):
        for _ in range(3):
            form.feed(b"x" * PREAMBLE_BYTES)


def test_a_value_that_is_no_text_is_refused_by_its_name():
    [part] = parse(encode([(b"prompt", b"", b"\xff")]))
    with pytest.raises(ApiError, match="prompt: the value is not UTF-8"):
        part.decode_text()


def test_values_of_headers_are_read_with_their_quotes():
    assert read_value('form-data; name="a\\"b\\\\"; filename=x ;y=""') == (
        "form-data",
        {"name": 'a"b\\', "filename": "x", "y": ""},
    )
    for text in ("a;", "a; b", 'a; b="', 'a; b="x"y', "a; b=c; B=d"):
        with pytest.raises(ApiError):
            read_value(text)


def test_random_forms_come_back_and_random_damage_never_does_harm():
    rng = random.Random(20)
    pieces = [
        b"\r\n",
        b"--b",
        b"--",
        b"\r\n--b",
        b"\r\n--b--",
        b"x",
        b"\r",
        b"\n",
        NAMED,
        b"\xff\x00",
        b"; name=",
        b'"',
    ]
    n_taken = 0
    for _ in range(2000):
        values = [b"".join(rng.choices(pieces[-5:] + [b"\r\n--c", b"--b"], k=rng.randrange(5))) for _ in range(3)]
        fields = [(b"n%d" % i, b"", value) for i, value in enumerate(values) if b"\r\n--b" not in b"\r\n" + value]
        data = bytearray(encode(fields))
        assert [bytes(part.data) for part in parse(bytes(data))] == [value for _, _, value in fields]
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(4)] = rng.choice(pieces)
        cut = rng.randrange(len(data) + 1)
        outcomes = []
        for way in ([bytes(data)], [bytes(data[:cut]), bytes(data[cut:])], [bytes([byte]) for byte in data]):
            try:
                outcomes.append([(part.name, bytes(part.data)) for part in read(way)])
            except ApiError as error:
                assert error.status == 400
                outcomes.append(error.message)
        assert outcomes[0] == outcomes[1] == outcomes[2]
        n_taken += isinstance(outcomes[0], list)
    assert 200 < n_taken < 1900
