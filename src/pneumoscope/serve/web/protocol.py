"""HTTP on one connection, with limits that uvicorn does not have.

uvicorn limits idle connections between requests. Time and size of a request's head, time in which a client
reads each part of its response, and number of connections are limited here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.problems import PROBLEM_TYPE, Problem

__all__ = ["bounded_protocol"]

MAX_HEAD = 65_536  # bytes


class _BoundedProtocol(HttpToolsProtocol):
    """Closes connections with a late or large head, or whose client reads the response too slowly."""

    limits = WebLimits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Writing is paused while anything is unsent, so that a small response that is not read is timed too.
        transport.set_write_buffer_limits(high=1, low=0)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # The parser keeps a header until it is complete: raw bytes are counted, up to the next callback for a
        # whole head, a piece of a body or the end of a request.
        self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        between = self._between_requests()
        if between:
            # A body that is still arriving after its response was sent gets as much time as a head.
            self._await_head()
        if self._head_bytes <= MAX_HEAD:
            return
        if between and not self._in_body:
            self._reject(431, "Request Header Fields Too Large", "the head of this request is too large")
        else:  # another response is under way, or was sent
            self.transport.abort()

    def on_headers_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._head_bytes, self._in_body = 0, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes, self._in_body = 0, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            if self.cycle.waiting_for_100_continue:  # the client will not send the body that is expected
                self.transport.close()
            else:
                self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._reject(400, "Bad Request", msg)

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_timeout, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._head_bytes and not self._in_body:
            self._reject(408, "Request Timeout", "the head of this request came too slowly")
        else:
            self.transport.close()

    def _reject(self, status: int, title: str, detail: str) -> None:
        """Send an error without the application, and close."""
        body = Problem(title=title, status=status, detail=detail, instance="").model_dump_json().encode()
        head = (
            f"HTTP/1.1 {status} {title}\r\ncontent-type: {PROBLEM_TYPE}\r\n"
            f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode("ascii") + body)
            self.transport.close()


def bounded_protocol(limits: WebLimits) -> type[asyncio.Protocol]:
    """Return the protocol class with these limits; uvicorn makes one instance per connection."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"limits": limits})
