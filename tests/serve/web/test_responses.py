"""Memory of responses that their clients have not read."""

from __future__ import annotations

import asyncio

import pytest
from starlette.exceptions import HTTPException

from pneumoscope.serve.web.admission import Admission
from pneumoscope.serve.web.app import create_app
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.rest import _CountedResponse
from pneumoscope.serve.workers.pool import WorkerPool
from pneumoscope.serve.workers.rows import prediction_row, stopped
from web_server import multipart_body

PREVIEW = 600_000  # bytes; as text a third more
SCOPE = {"type": "http", "method": "POST", "path": "/v1/predictions", "query_string": b"preview=inline"}


@pytest.fixture
def app(web_bundle, monkeypatch):
    row = prediction_row(stopped("a", web_bundle, "no reader here"))

    async def run(self, job, *pieces):
        return {"row": row, "facts": None, "heatmap": None}, [b"", bytes(PREVIEW)]

    monkeypatch.setattr(WorkerPool, "run", run)
    return create_app(web_bundle, workers=1, limits=WebLimits(max_held_bytes=1_000_000))


class Client:
    """Sends an image, and reads the response once `reads` is set."""

    def __init__(self, app):
        headers, body = multipart_body([("a.png", b"x")])
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._left = [{"type": "http.request", "body": body, "more_body": False}]
        self.reads = asyncio.Event()
        self.started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(app({**SCOPE, "headers": raw}, self._receive, self._send))

    async def _receive(self):
        if not self._left:
            await asyncio.Event().wait()
        return self._left.pop()

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.started.set_result(message["status"])
        else:
            await self.reads.wait()


def test_a_response_counts_until_it_is_read_or_its_client_has_left(app):
    admission = app.state.context.admission

    async def run():
        for gone in (False, True):
            first = Client(app)
            assert await first.started == 200
            assert admission.held_bytes > PREVIEW
            assert (admission.receiving, admission.waiting) == (0, 0)
            second = Client(app)
            assert await second.started == 429
            second.reads.set()
            await second.task
            if gone:
                first.task.cancel()
            first.reads.set()
            await asyncio.wait([first.task])
            assert admission.held_bytes == 0

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_response_without_room_is_not_kept():
    """The error's traceback has the response, and may stay while a slow client reads about the error."""
    response = _CountedResponse("{}", Admission(WebLimits(max_held_bytes=1)))
    with pytest.raises(HTTPException):
        asyncio.run(response({}, None, None))
    assert response.body == b""
