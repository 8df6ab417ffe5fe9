from __future__ import annotations

import datetime
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dicom_modality import radiograph
from pneumoscope.serve.dicom.config import PullConfig
from pneumoscope.serve.dicom.dicomweb import WebError
from pneumoscope.serve.dicom.journal import JournalError
from pneumoscope.serve.dicom.web_pull import WebPull
from pneumoscope.serve.workers.pool import JobStopped
from receiving import origins, uid


class _Server(ThreadingHTTPServer):
    """A DICOMweb server with a few images."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.images = {uid(number): radiograph(number) for number in (1, 2)}
        self.asked: list[str] = []
        self.status = 200
        self.page = 1000
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/dicom-web"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        kind, body = "application/dicom+json", b""
        if self.server.status != 200:
            pass
        elif self.path.startswith("/dicom-web/instances?"):
            rows = [
                {
                    "0020000D": {"vr": "UI", "Value": [one.rsplit(".", 1)[0]]},
                    "0020000E": {"vr": "UI", "Value": [one.rsplit(".", 1)[0] + ".0"]},
                    "00080018": {"vr": "UI", "Value": [one]},
                }
                for one in self.server.images
            ]
            if "Modality=DX" not in self.path:
                rows = []
            offset = int(self.path.rsplit("offset=", 1)[1])
            rows = rows[offset : offset + self.server.page]
            if offset == 0 and self.server.page > len(rows):
                rows += [{"00080018": {"Value": ["../../etc"]}}, "x", {}]
            body = json.dumps(rows).encode()
        else:
            one = self.path.rsplit("/", 1)[1]
            if one not in self.server.images or not self.server.images[one]:
                self.send_error(404)
                return
            kind = 'multipart/related; type="application/dicom"; boundary="xx"'
            body = (
                b"--xx\r\nContent-Type: application/dicom\r\n\r\n" + self.server.images[one] + b"\r\n--xx--"
            )
        self.send_response(self.server.status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    server = _Server()
    yield server
    server.shutdown()
    server.server_close()


def test_images_of_a_server(loop, files, journal, server):
    server.images["1.2.826.5"] = b"<html>no image</html>"
    server.images = {"1.2.826.4": b"", **server.images}  # listed, and not there
    pull = WebPull(PullConfig(name="PACS", url=server.url, modalities=("DX", "CR"), days=3), files, journal)
    assert loop.run(pull.look()) == 2
    assert origins(journal) == [(uid(1), "web", "PACS"), (uid(2), "web", "PACS")]
    today = datetime.datetime.now().astimezone().date()
    first = today - datetime.timedelta(days=2)
    assert f"StudyDate={first:%Y%m%d}-{today:%Y%m%d}" in server.asked[0]
    server.asked.clear()
    assert loop.run(pull.look()) == 0
    fetched = [path for path in server.asked if "/studies/" in path and not path.endswith("1.2.826.4")]
    assert not fetched, "what is known is not fetched again"
    server.images[uid(3)] = radiograph(3)
    assert loop.run(pull.look()) == 1
    pull.close()


def test_a_server_that_lists_fewer_than_it_is_asked_for(loop, files, journal, server):
    server.images = {uid(number): radiograph(number) for number in range(1, 6)}
    server.page = 2
    pull = WebPull(PullConfig(name="PACS", url=server.url, modalities=("DX",)), files, journal)
    assert loop.run(pull.look()) == 5
    pull.close()


def test_images_of_a_study_come_by_one_link(loop, files, journal, server):
    """It is open until the last of them is there, so that they are reported together."""
    images = [radiograph(number, study=9) for number in (1, 2)]
    server.images = {f"{uid(9)[:-2]}.{number}": image for number, image in zip((1, 2), images, strict=True)}
    server.images |= {uid(3): radiograph(3)}
    open_links = []
    take = files.take

    async def watched(data, origin):
        open_links.append((origin.link, files.open_links))
        await take(data, origin)

    files.take = watched
    pull = WebPull(PullConfig(name="PACS", url=server.url, modalities=("DX",)), files, journal)
    assert loop.run(pull.look()) == 3
    assert all(links == {link} for link, links in open_links)
    assert files.open_links == frozenset()
    links = dict(journal.rows("SELECT sop_instance, link FROM instances"))
    assert len(links) == 3
    assert len({link for one, link in links.items() if one != uid(3)}) == 1
    assert len(set(links.values())) == 2
    pull.close()


def test_an_image_that_crashes_the_worker_is_recorded(loop, files, journal, server):
    left = []
    files._on_left_out = left.append

    async def crashing(_data, _origin):
        raise JobStopped("the worker crashed")

    take, files.take = files.take, crashing
    pull = WebPull(PullConfig(name="PACS", url=server.url, modalities=("DX",)), files, journal)
    for _ in range(2):
        assert loop.run(pull.look()) == 0
    assert not left, "it is tried again"
    loop.run(pull.look())
    assert [(one.via, one.caller) for one in left] == [("web", "PACS")] * 2
    details = [
        json.loads(row[0]) for row in journal.rows("SELECT detail FROM audit WHERE event = 'left out'")
    ]
    assert [(one["instance"], one["why"]) for one in details] == [
        (uid(1), "the worker crashed"), (uid(2), "the worker crashed"),
    ]  # fmt: skip
    files.take = take
    assert loop.run(pull.look()) == 0
    pull.close()


@pytest.mark.parametrize("size", [1_000_001, 3_000_000])
def test_an_image_beyond_the_limit_is_fetched_once(loop, files, journal, server, size):
    server.images = {uid(1): bytes(size), uid(2): radiograph(2)}
    pull = WebPull(PullConfig(name="PACS", url=server.url, modalities=("DX",)), files, journal)
    assert loop.run(pull.look()) == 1
    why = [
        json.loads(row[0])["why"] for row in journal.rows("SELECT detail FROM audit WHERE event = 'left out'")
    ]
    assert why == ["it is larger than the limit"]
    server.asked.clear()
    assert loop.run(pull.look()) == 0
    assert not [path for path in server.asked if "/studies/" in path]
    pull.close()


def test_only_a_damaged_journal_ends_the_looking(loop, files, journal, server, monkeypatch):
    """On a full disk even reading may fail; the other parts of the node wait for space as well."""
    asked = []

    def failing(*_):
        asked.append(True)
        raise JournalError("disk", passing=len(asked) < 3)

    monkeypatch.setattr(journal, "value", failing)
    config = PullConfig(name="PACS", url=server.url, modalities=("DX",), every_seconds=0.01)
    with pytest.raises(JournalError):
        loop.run(WebPull(config, files, journal).run())
    assert len(asked) == 3


def test_a_server_that_fails(loop, files, journal, server):
    pull = WebPull(PullConfig(name="PACS", url=server.url), files, journal)
    server.status = 500
    with pytest.raises(WebError, match="HTTP status 500"):
        loop.run(pull.look())
    server.shutdown()
    server.server_close()
    other = WebPull(PullConfig(name="PACS", url=server.url, timeout=2), files, journal)
    with pytest.raises(WebError):
        loop.run(other.look())
    pull.close()
