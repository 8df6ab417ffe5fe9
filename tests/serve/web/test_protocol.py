"""Limits on one connection, with applications whose responses are large or small."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from pneumoscope.serve.web.guard import Guard
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.protocol import bounded_protocol
from web_server import read_all

SIZE = 3_000_000
BUFFER = 32_768  # small, so that the response waits in the server and not in the system
HEAD_TIMEOUT = WRITE_TIMEOUT = 0.5
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKS = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
LINES = (b"X: " + b"y" * 1_000 + b"\r\n") * 60


async def respond(send: Any, size: int) -> None:
    length = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": bytes(size)})


async def large(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await respond(send, SIZE)


async def small(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """More than the system takes, and less than one part."""
    await respond(send, 65_000)


async def early(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """As where a token is missing: the body is not read."""
    await respond(send, 2)


async def unfinished(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive())["more_body"]:
        pass
    await respond(send, 2)


@contextmanager
def serving(
    app: Any = large,
    *,
    buffer: int = BUFFER,
    sent: bytes = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """Run the server in a thread; give it and a connection on which a request was sent."""
    protocol = bounded_protocol(WebLimits(head_timeout=HEAD_TIMEOUT, write_timeout=WRITE_TIMEOUT))
    guarded = Guard(app, None, lambda _route, _status: None)
    config = uvicorn.Config(
        guarded, http=protocol, ws="none", loop="asyncio", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(60)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            client.connect(listener.getsockname())
            client.sendall(sent)
            yield server, client
        finally:
            server.should_exit = True
            client.close()
            thread.join(60)


def test_a_client_that_reads_slowly_gets_the_whole_response() -> None:
    began = time.monotonic()
    received = 0
    with serving() as (_, client):
        while part := client.recv(10_000):
            received += len(part)
            time.sleep(0.004)
    assert received > SIZE  # the head as well
    assert time.monotonic() - began > 2 * WRITE_TIMEOUT, "that was not slow"


def test_a_large_body_is_sent_in_parts() -> None:
    """The server waits for the client before each; a single one would be taken at once under TLS."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(Guard(large, None, lambda _route, _status: None)(scope, receive, send))
    start, *parts = sent
    assert start["type"] == "http.response.start"
    assert max(len(part["body"]) for part in parts) <= 65_536
    assert b"".join(part["body"] for part in parts) == bytes(SIZE)
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]


def until_closed(server: uvicorn.Server) -> None:
    end = time.monotonic() + 30
    while server.server_state.connections:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_client_that_stops_reading_is_cut_off() -> None:
    with serving() as (server, client):
        assert client.recv(10_000)
        until_closed(server)
        assert len(read_all(client)) < SIZE // 2


def test_a_client_that_reads_in_drips_is_cut_off() -> None:
    """Each drip is progress; without a bound on a part it would hold the connection for hours."""
    with serving(buffer=2_048) as (server, client):
        assert client.recv(10_000)
        end = time.monotonic() + 30
        while server.server_state.connections:
            assert time.monotonic() < end
            client.recv(2_000)
            time.sleep(0.2)


def test_a_small_response_that_is_not_read_is_cut_off() -> None:
    with serving(small, buffer=2_048) as (server, client):
        assert client.recv(100)
        until_closed(server)


@pytest.mark.parametrize(
    ("app", "sent", "more"),
    [
        pytest.param(early, CHUNKS + b"0\r\n", LINES, id="trailers after chunks"),
        pytest.param(unfinished, GET + b"GET / HTTP/1.1\r\n", LINES, id="headers of the next"),
        pytest.param(unfinished, GET + b"GET / HTTP/1.1\r\nX: ", b"y" * 60_000, id="one header of the next"),
    ],
)
def test_headers_without_end_are_cut_off(app: Any, sent: bytes, more: bytes) -> None:
    """Any client can send them, with or without a token."""
    with serving(app, sent=sent) as (server, client):
        with pytest.raises(OSError):
            for _ in range(400):
                client.sendall(more)
        until_closed(server)


def test_many_small_chunks_are_a_body() -> None:
    with serving(whole, sent=CHUNKS) as (_, client):
        for _ in range(300):
            client.sendall(b"1\r\na\r\n" * 200)
        client.sendall(b"0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_a_late_body_gets_no_second_response() -> None:
    with serving(early, sent=CHUNKS) as (_, client):
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.sendall(b"5")
        assert b"HTTP/1.1" not in read_all(client)
