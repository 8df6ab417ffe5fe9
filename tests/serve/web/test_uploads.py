from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pneumoscope.serve.web.admission import Admission
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.uploads import base_name, receive
from web_server import BOUNDARY, multipart_body

LIMITS = WebLimits(
    max_file_bytes=100, max_request_bytes=2000, max_files=3, idle_timeout=0.2, body_timeout=0.5
)
MEDIA_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def read(chunks, *, media_type=MEDIA_TYPE, limits=LIMITS, pause=0.0, end=True, **headers):
    """Give the chunks to `receive` as a server would."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if end:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    left = iter(messages)

    async def next_message():
        await asyncio.sleep(pause)
        message = next(left, None)
        return message or await asyncio.Future()

    pairs = {"content-type": media_type, **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(k.encode(), v.encode()) for k, v in pairs.items()],
    }
    admission = Admission(limits)

    async def run():
        with admission.slot("a") as slot:
            uploads = await receive(Request(scope, next_message), limits, slot)
            assert admission.held_bytes == sum(len(one.data) for one in uploads)
            return uploads

    try:
        return asyncio.run(run())
    finally:
        assert admission.held_bytes == 0


def rejection(*arguments, **options):
    with pytest.raises(HTTPException) as rejected:
        read(*arguments, **options)
    return rejected.value


@given(st.lists(st.binary(max_size=90), min_size=1, max_size=3), st.data())
def test_files_come_out_whole_however_the_body_is_cut(files, data):
    _, body = multipart_body([(f"{number}.png", content) for number, content in enumerate(files)])
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=6)))
    chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    uploads = read(chunks)
    assert [(one.name, bytes(one.data)) for one in uploads] == [
        (f"{number}.png", content) for number, content in enumerate(files)
    ]


def test_equal_files_have_equal_digests_that_are_not_their_sha256():
    import hashlib

    uploads = read([multipart_body([("a", b"x"), ("b", b"x"), ("c", b"y")])[1]])
    one, same, other = (upload.digest for upload in uploads)
    assert one == same != other
    assert one != hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ([("a", bytes(101))], 413),
        ([("a", b"")] * 4, 413),
        ([("a", bytes(99))] * 3, None),
        ([], 422),
    ],
)
def test_sizes_and_counts(files, status):
    body = multipart_body(files)[1]
    if status is None:
        assert len(read([body])) == len(files)
    else:
        assert rejection([body]).status_code == status


def test_the_whole_body_is_bounded_with_and_without_a_stated_length():
    endless = [multipart_body([("a", b"x")])[1], *[bytes(500)] * 5]
    assert rejection(endless).status_code == 413
    stated = rejection([], **{"content-length": "2001"})
    assert stated.status_code == 413
    assert "2001" not in stated.detail


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain",
        "multipart/form-data",
        "multipart/mixed; boundary=a",
        'multipart/form-data; boundary=""',
    ],
)
def test_what_is_no_form_is_rejected(media_type):
    assert rejection([b"x"], media_type=media_type).status_code == 415


def test_other_fields_are_rejected():
    assert rejection([multipart_body([("a", b"x")], field="file")[1]]).status_code == 422
    value = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--{BOUNDARY}--\r\n'
    assert rejection([value.encode()]).status_code == 422


def test_every_truncation_is_an_error():
    body = multipart_body([("a.png", b"some bytes")])[1].removesuffix(b"\r\n")
    for length in range(len(body)):
        assert rejection([body[:length]] if length else []).status_code == 422


@pytest.mark.parametrize(
    "part",
    [
        "\r\n".join(f"X-{number}: y" for number in range(20)),
        "X-Long: " + "y" * 5000,
        "X" * 5000,
    ],
)
def test_the_heads_of_parts_are_bounded(part):
    body = f"--{BOUNDARY}\r\n{part}\r\n\r\nx\r\n--{BOUNDARY}--".encode()
    assert rejection([body], limits=WebLimits()).status_code == 413


def test_a_body_that_stalls_or_drips_is_given_up():
    body = multipart_body([("a", b"x" * 50)])[1]
    assert rejection([body[:-10]], end=False).status_code == 408
    assert rejection([body[i : i + 1] for i in range(len(body))], pause=0.01).status_code == 408


@given(st.binary(max_size=300))
def test_any_bytes_give_files_or_a_rejection(data):
    try:
        read([f"--{BOUNDARY}\r\n".encode() + data])
    except HTTPException as rejected:
        assert rejected.status_code in {413, 422}


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("chest.png", "chest.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\scans\\a b.dcm", "a b.dcm"),
        ("/", "upload"),
        ("", "upload"),
        ("..", ".."),
        ("a\0b.png", "ab.png"),
        ("evil\u202egnp.exe", "evilgnp.exe"),
        ("röntgen 肺.jpeg", "röntgen 肺.jpeg"),
        ("x" * 5000, "x" * 255),
        ("\ud800.png", "\\ud800.png"),
    ],
)
def test_base_names(given_name, shown):
    assert base_name(given_name) == shown


@given(st.text())
def test_a_base_name_can_always_be_shown(name):
    shown = base_name(name)
    assert 0 < len(shown) <= 255
    assert "/" not in shown
    assert not any(ord(letter) < 32 for letter in shown)
    shown.encode("utf-8")
