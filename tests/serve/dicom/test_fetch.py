"""Other ways in: files in a folder, and images of a DICOMweb server."""

from __future__ import annotations

import asyncio
import datetime
import errno
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_modality import radiograph
from pneumoscope.serve.dicom import fetch
from pneumoscope.serve.dicom.config import FolderConfig, Limits, PullConfig
from pneumoscope.serve.dicom.dicomweb import WebError, dicom_parts
from pneumoscope.serve.dicom.fetch import FileIntake, FolderWatch, WebPull
from pneumoscope.serve.dicom.intake import Intake
from pneumoscope.serve.dicom.journal import Journal, JournalError
from pneumoscope.serve.dicom.node import WORKER_MODULE
from pneumoscope.serve.dicom.store import Store
from pneumoscope.serve.workers.pool import JobStopped, WorkerPool


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def pool(loop, tiny):
    """One worker for all of these tests."""
    pool = loop.run(_started(tiny))
    yield pool
    loop.run(pool.stop())


async def _started(tiny) -> WorkerPool:
    pool = WorkerPool(tiny.path, workers=1, module=WORKER_MODULE)
    await pool.start()
    return pool


@pytest.fixture
def journal(tmp_path):
    journal = Journal(Store(tmp_path / "node").folder, create=True)
    yield journal
    journal.close()


@pytest.fixture
def files(tmp_path, pool, journal) -> FileIntake:
    return FileIntake(Intake(Store(tmp_path / "node"), journal), pool, Limits(max_dataset_mb=1))


def rows(journal: Journal) -> list[tuple]:
    return [
        tuple(row)
        for row in journal.rows("SELECT sop_instance, via, caller FROM instances ORDER BY sop_instance")
    ]


def uid(number: int) -> str:
    return f"1.2.826.0.1.3680043.10.5.1.{number}.{number}"


def test_files_of_a_folder(tmp_path, loop, files, journal):
    inbox = tmp_path / "in"
    config = FolderConfig(path=inbox, done=inbox / "done", bad=inbox / "bad", name="INBOX")
    (inbox / "sub").mkdir(parents=True)
    (inbox / "a.dcm").write_bytes(radiograph(1))
    (inbox / "sub" / "b").write_bytes(radiograph(2))
    (inbox / "no-preamble.dcm").write_bytes(radiograph(3)[132:])
    (inbox / "page.dcm").write_bytes(b"<html>" * 100)
    (inbox / "large.dcm").write_bytes(bytes(1_100_000))
    (inbox / "empty.dcm").write_bytes(b"")
    (inbox / ".hidden").write_bytes(radiograph(4))
    (inbox / "link.dcm").symlink_to("/etc/passwd")
    watch = FolderWatch(config, files)
    assert loop.run(watch.look()) == 0, "they may still be written to"
    (inbox / "a.dcm").write_bytes(radiograph(1) + b"\0\0")
    assert loop.run(watch.look()) == 2
    assert rows(journal) == [(uid(2), "folder", "INBOX"), (uid(3), "folder", "INBOX")]
    (inbox / "a.dcm").write_bytes(radiograph(1))
    loop.run(watch.look())
    assert loop.run(watch.look()) == 1
    assert [row[0] for row in rows(journal)] == [uid(1), uid(2), uid(3)]
    assert sorted(path.name for path in (inbox / "done").iterdir()) == ["a.dcm", "b", "no-preamble.dcm"]
    assert sorted(path.name for path in (inbox / "bad").iterdir()) == ["large.dcm", "page.dcm"]
    assert (inbox / ".hidden").exists()
    assert (inbox / "link.dcm").is_symlink()
    # A file is stored as a C-STORE of it would be: the same image by another way is a duplicate.
    stored = journal.row("SELECT sha256, bytes FROM instances WHERE sop_instance = ?", (uid(2),))
    data = radiograph(2)
    assert stored["bytes"] == len(data) - 144 - int.from_bytes(data[140:144], "little")


def test_files_are_deleted_where_nothing_else_is_said(tmp_path, loop, files, journal):
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.dcm").write_bytes(radiograph(1))
    watch = FolderWatch(FolderConfig(path=inbox, bad=tmp_path / "bad"), files)
    loop.run(watch.look())
    assert loop.run(watch.look()) == 1
    assert not list(inbox.iterdir())
    assert rows(journal) == [(uid(1), "folder", "FOLDER")]


@pytest.mark.parametrize("done", [None, "done"])
def test_a_file_that_is_replaced_while_it_is_taken_is_another_image(
    tmp_path, loop, files, journal, monkeypatch, done
):
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "same.dcm").write_bytes(radiograph(1))
    take, taken = files.take, []

    async def replacing(data, origin):
        await take(data, origin)
        taken.append(data)
        if len(taken) == 1:
            (inbox / ".next").write_bytes(radiograph(2))
            (inbox / ".next").replace(inbox / "same.dcm")

    monkeypatch.setattr(files, "take", replacing)
    watch = FolderWatch(FolderConfig(path=inbox, done=done and tmp_path / done, bad=tmp_path / "bad"), files)
    for _ in range(4):
        loop.run(watch.look())
    assert sorted(row[0] for row in rows(journal)) == [uid(1), uid(2)]
    assert not list(inbox.iterdir())


def test_a_file_that_cannot_be_moved_holds_up_no_other(tmp_path, loop, files, journal, monkeypatch):
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.dcm").write_bytes(b"<html>")
    (inbox / "b.dcm").write_bytes(radiograph(1))
    (inbox / "c.dcm").write_bytes(radiograph(2))
    move = fetch._move

    def stuck(path, folder):
        if path.name in {"a.dcm", "b.dcm"}:
            raise PermissionError(13, "Permission denied")
        move(path, folder)

    monkeypatch.setattr(fetch, "_move", stuck)
    watch = FolderWatch(FolderConfig(path=inbox, done=tmp_path / "done", bad=tmp_path / "bad"), files)
    loop.run(watch.look())
    assert loop.run(watch.look()) == 2
    assert loop.run(watch.look()) == 0
    assert [row[0] for row in rows(journal)] == [uid(1), uid(2)]
    events = [row[0] for row in journal.rows("SELECT event FROM audit")]
    assert sorted(events) == ["left out", "received", "received"], "nothing is taken again at each look"
    monkeypatch.undo()
    loop.run(watch.look())
    assert not list(inbox.iterdir())
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["a.dcm"]


def test_a_folder_on_another_file_system(tmp_path, monkeypatch):
    """It is copied there: a file cannot be renamed across file systems."""

    def across(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    source = tmp_path / "a.dcm"
    source.write_bytes(radiograph(1))
    monkeypatch.setattr(os, "rename", across)
    monkeypatch.setattr(os, "replace", across)
    fetch._move(source, tmp_path / "done")
    assert (tmp_path / "done" / "a.dcm").read_bytes() == radiograph(1)
    assert not source.exists()


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
    assert rows(journal) == [(uid(1), "web", "PACS"), (uid(2), "web", "PACS")]
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


@given(st.lists(st.binary(max_size=60).filter(lambda part: b"--b" not in part), max_size=4))
def test_the_parts_of_a_multipart_body(parts):
    body = (
        b"".join(b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + part for part in parts)
        + b"\r\n--b--\r\n"
    )
    assert dicom_parts("multipart/related; boundary=b", body) == parts
    assert dicom_parts('Multipart/Related; boundary="b"', body.removeprefix(b"\r\n")) == parts


@given(st.text(max_size=60), st.binary(max_size=100))
def test_any_body_has_parts_or_none(content_type, body):
    assert isinstance(dicom_parts(content_type, body), list)


def test_names_in_logs_are_hashes(caplog, tmp_path, loop, files):
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "Zauberbaum.dcm").write_bytes(b"<html>")
    watch = FolderWatch(FolderConfig(path=inbox, bad=tmp_path / "bad"), files)
    with caplog.at_level("DEBUG"):
        loop.run(watch.look())
        loop.run(watch.look())
    assert not re.search("Zauberbaum", str([vars(record) for record in caplog.records]))
