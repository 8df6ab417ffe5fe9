"""Malicious clients, over a real connection: a clear response, the server running, nothing left on disk."""

from __future__ import annotations

import importlib.util
import io
import time
import zipfile
import zlib
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from web_server import BOUNDARY, multipart_body, read_all

PREDICTIONS = "/v1/predictions"
HEAD = (
    f"POST {PREDICTIONS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
).encode()


def _reader_tests():
    """Load the property tests of the reader: their files go through HTTP here."""
    path = Path(__file__).parents[2] / "image" / "test_decode_properties.py"
    spec = importlib.util.spec_from_file_location("reader_properties", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


READER = _reader_tests()


@pytest.fixture(autouse=True)
def sound(server, png):
    """After each attack the server responds as before, with the same processes or new ones."""
    yield
    with server.client() as client:
        response = client.post(PREDICTIONS, files={"files": ("a.png", png)})
        assert response.json()["predictions"][0]["status"] == "ok"
        metrics = client.get("/metrics").text.splitlines()
    assert "pneumoscope_held_bytes 0.0" in metrics
    assert server.process.poll() is None
    assert server.files() == []


def status_of(raw):
    assert raw.startswith(b"HTTP/1.1 "), raw[:200]
    assert b"application/problem+json" in raw or raw.startswith(b"HTTP/1.1 200")
    return int(raw.split(b" ", 2)[1])


def send(server, name, data):
    headers, body = multipart_body([(name, data)])
    return httpx.post(server.url + PREDICTIONS, content=body, headers=headers, timeout=60)


def row_of(response):
    assert response.status_code == 200
    return response.json()["predictions"][0]


def test_a_truncated_form(server, png):
    _, body = multipart_body([("a.png", png)])
    for keep in (0, 1, 20, 90, 200, len(body) // 2, len(body) - 10):
        raw = server.send(HEAD + f"Content-Length: {keep}\r\n\r\n".encode() + body[:keep])
        assert status_of(raw) == 422


def test_a_length_that_is_too_long_ends_in_408(server, png):
    _, body = multipart_body([("a.png", png)])
    raw = server.send(HEAD + f"Content-Length: {len(body) + 50}\r\n\r\n".encode() + body)
    assert status_of(raw) == 408


def test_a_client_that_leaves_in_the_middle(server, png):
    _, body = multipart_body([("a.png", png)])
    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + body[:500])


@pytest.mark.parametrize(
    "length",
    [b"-1", b"1e3", b"0x10", b"", b"5\r\nContent-Length: 6", b"5\r\nTransfer-Encoding: chunked", b"9" * 40],
)
def test_lengths_that_are_none(server, length):
    assert status_of(server.send(HEAD + b"Content-Length: " + length + b"\r\n\r\nhello")) in {400, 413}


def test_a_stated_length_beyond_the_limit_is_rejected_before_the_body(server):
    began = time.monotonic()
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 5000001\r\n\r\n")
        assert connection.recv(20).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < 2  # no wait for the idle timeout


def test_chunks_without_end_are_cut_off_at_the_limit(server):
    """6 MB against a limit of 5; the whole stream would never end."""
    start = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'.encode()
    with server.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(f"{len(start):x}\r\n".encode() + start + b"\r\n")
        try:
            for _ in range(96):
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert status_of(read_all(connection)) == 413


def test_chunks_that_are_none(server):
    assert status_of(server.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")) == 400


def test_a_head_that_drips(server):
    began = time.monotonic()
    with server.connect() as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for letter in HEAD * 10:
            connection.sendall(bytes([letter]))
            time.sleep(0.05)
    assert time.monotonic() - began < 20


def test_silent_connections_do_not_hold_others(server, png):
    """As many as the server takes, and some more; all are gone soon."""
    began = time.monotonic()
    silent = [server.connect() for _ in range(80)]
    try:
        response = None
        while response is None:
            try:
                response = send(server, "a.png", png)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                assert time.monotonic() - began < 20
                time.sleep(0.2)
        assert row_of(response)["status"] == "ok"
        assert all(read_all(connection) == b"" for connection in silent)
    finally:
        for connection in silent:
            connection.close()


def test_slow_bodies_do_not_hold_others(server, png):
    slow = [server.connect() for _ in range(30)]
    try:
        for connection in slow:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n--")
        began = time.monotonic()
        assert row_of(send(server, "a.png", png))["status"] == "ok"
        quick = time.monotonic() - began
        assert all(status_of(read_all(connection)) == 408 for connection in slow)
        assert quick < time.monotonic() - began - quick, "those were waited for after it"
    finally:
        for connection in slow:
            connection.close()


def test_a_large_head(server):
    raw = server.send(b"GET / HTTP/1.1\r\n" + b"X-A: " + b"y" * 2_000_000)
    assert raw == b"" or status_of(raw) == 431
    many = b"".join(b"X-%d: y\r\n" % number for number in range(50_000))
    raw = server.send(b"GET / HTTP/1.1\r\n" + many)
    assert raw == b"" or status_of(raw) == 431


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 500,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http(server, raw):
    assert status_of(server.send(raw)) == 400


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\windows\\win.ini", "win.ini"),
        ("/dev/null", "null"),
        ("a\0.png", "a.png"),
        ("x" * 3000, "x" * 255),
        ("\u202egnp.exe", "gnp.exe"),
        ("<img src=x onerror=alert(1)>.png", "<img src=x onerror=alert(1)>.png"),
    ],
)
def test_names_like_paths_are_names_alone(server, png, name, shown):
    assert row_of(send(server, name, png))["path"] == shown


def test_ten_thousand_small_parts(server):
    headers, body = multipart_body([(str(number), b"x") for number in range(10_000)])
    response = httpx.post(server.url + PREDICTIONS, content=body, headers=headers, timeout=60)
    assert response.status_code == 413


def test_ten_thousand_headers_in_a_part(server):
    part = "\r\n".join(f"X-{number}: y" for number in range(10_000))
    body = f"--{BOUNDARY}\r\n{part}\r\n\r\n\r\n--{BOUNDARY}--".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    assert httpx.post(server.url + PREDICTIONS, content=body, headers=headers, timeout=60).status_code == 413


def test_a_zip_bomb_is_no_image(server):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50_000_000))
    assert row_of(send(server, "bomb.zip", packed.getvalue()))["reasons"] == ["not_an_image"]


def chunk(name, data):
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def png_file(width, height, depth, colour, data):
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_png_bombs(server):
    """A header that promises too much; many megapixels in a few kilobytes; data that unpacks on and on."""
    huge = png_file(2**31 - 1, 2**31 - 1, 8, 0, zlib.compress(bytes(1000)))
    assert row_of(send(server, "huge.png", huge))["reasons"] == ["too_many_pixels"]
    flat = png_file(7000, 7000, 1, 0, zlib.compress(bytes(7000 * 876)))
    assert len(flat) < 20_000
    assert row_of(send(server, "flat.png", flat))["status"] != "ok"
    overflowing = png_file(10, 10, 8, 0, zlib.compress(bytes(100_000_000)))
    assert row_of(send(server, "overflowing.png", overflowing))["status"] != "ok"


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(READER.mutated())
def test_damaged_images(server, data):
    row = row_of(send(server, "case", data))
    assert row["status"] in {"ok", "rejected", "unreadable"}
    assert (row["status"] == "ok") == (row["p_target"] is not None)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(READER.MAGIC), st.binary(max_size=400))
def test_bytes_that_begin_like_images(server, magic, rest):
    row = row_of(send(server, "case", magic + rest))
    assert (row["status"] == "ok") == (row["p_target"] is not None)
    assert (row["status"] == "ok") or row["reasons"]


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.booleans())
def test_bytes_that_are_no_form(server, data, begins_well):
    body = f"--{BOUNDARY}\r\n".encode() + data if begins_well else data
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    response = httpx.post(server.url + PREDICTIONS, content=body, headers=headers, timeout=60)
    assert response.status_code in {200, 413, 422}


def test_the_log_names_no_file(server, png):
    send(server, "very-private-name.png", png)
    send(server, "very-private-name.png", b"broken")
    assert not any("very-private-name" in line for line in server.log)
