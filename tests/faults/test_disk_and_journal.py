"""A full disk, a damaged journal, a clock that is set back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_archives import Archive
from dicom_modality import radiograph, send
from dicom_peers import kill, running_node, start_node, until, write_config
from pneumoscope.serve.dicom import intake, journal, outbox, queue
from pneumoscope.serve.dicom.intake import Accepted, Intake, NotAccepted, Origin
from pneumoscope.serve.dicom.journal import Journal, JournalError
from pneumoscope.serve.dicom.queue import Queue
from pneumoscope.serve.dicom.store import Store, file_head

pytestmark = pytest.mark.slow

OUT_OF_RESOURCES = 0xA700
DX = "1.2.840.10008.5.1.4.1.1.1.1"
PAGE = 4096


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 3 MB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    ) if sys.platform == "linux" and os.geteuid() == 0 else None  # fmt: skip
    if done is None or done.returncode:
        pytest.skip("no permission to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tmp_path, tiny, small_disk):
    """What does not fit is not accepted; what was accepted is processed once there is space."""
    images = [radiograph(number) for number in range(40)]
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_900_000))
    with Archive() as archive:
        config = write_config(
            tmp_path,
            tiny.path,
            folder=str(small_disk / "node"),
            mode="live",
            destinations=[archive.destination()],
            results={"secondary_capture": False},
            process={"quiet_seconds": 3, "workers": 1},
        )
        with running_node(config) as node:
            statuses = send(node.port, images)
            assert 0 in statuses, "it began with space"
            assert OUT_OF_RESOURCES in statuses
            assert set(statuses) == {0, OUT_OF_RESOURCES}
            assert len(list((node.folder / "images").rglob("*.dcm"))) == statuses.count(0)
            assert not list((node.folder / "incoming").iterdir())
            ballast.unlink()
            subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
            rejected = [image for image, status in zip(images, statuses, strict=True) if status]
            assert set(until(lambda: send(node.port, rejected))) == {0}
            until(lambda: len(archive.sources()) == len(images), 120)
        assert set(archive.sources().values()) == {1}
        assert set(archive.attempts.values()) == {1}


def test_a_damaged_page_of_the_journal(tmp_path, tiny):
    """It is found when the node starts; a new journal is made of the images, and nothing is sent twice."""
    with Archive() as archive:
        config = write_config(tmp_path, tiny.path, mode="live", destinations=[archive.destination()])
        with running_node(config) as node:
            assert send(node.port, [radiograph(number) for number in range(4)]) == [0] * 4
            until(lambda: node.status().deliveries == {"pacs": {"sent": 8}})
        path = node.folder / "journal.sqlite"
        content = bytearray(path.read_bytes())
        for start in range(4 * PAGE, len(content), 5 * PAGE):
            content[start : start + 200] = b"\xa5" * 200
        path.write_bytes(content)
        ended = node.command("serve")
        assert ended.code == 4
        assert "journal is damaged" in ended.err
        assert "pneumoscope dicom rebuild" in ended.err
        assert len(ended.err.splitlines()) == 1
        rebuilt = node.command("rebuild")
        assert rebuilt.out.startswith("4 images taken into a new journal"), rebuilt.err
        with running_node(config) as node:
            until(lambda: node.status().deliveries == {"pacs": {"sent": 8}})
        assert set(archive.attempts.values()) == {1}, "the archive was asked before"


def test_a_journal_that_is_damaged_while_the_node_runs(tmp_path, tiny):
    """What was accepted is on disk whatever happens to the journal, and the new one has it."""
    config = write_config(tmp_path, tiny.path)
    node = start_node(config)
    try:
        assert send(node.port, [radiograph(1)]) == [0]
        for name in ("journal.sqlite", "journal.sqlite-wal"):
            with (node.folder / name).open("r+b") as file:
                file.write(b"\xa5" * 8192)
        accepted = [0, *send(node.port, [radiograph(2)])]
    finally:
        kill(node)
    with pytest.raises(JournalError, match="rebuild"):
        Journal(node.folder, check=True)
    assert node.command("rebuild").out.startswith(f"{accepted.count(0)} images taken")


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
    """Order and priority hold, and nothing waits for the time that was."""
    times = iter([1_000_000.0, 999_000.0, 990_000.0])
    clock = {"now": 1_000_000.0}
    for module in (intake, queue, outbox, journal):
        monkeypatch.setattr(module, "now", lambda: clock["now"])
    store, book = Store(tmp_path), Journal(tmp_path, create=True)
    try:
        take, waiting = Intake(store, book), Queue(book, 600)
        for number, moment in enumerate(times, start=1):
            clock["now"] = moment
            received = store.receive(file_head(DX, f"1.2.{number}", "1.2.840.10008.1.2.1"), 1000)
            received.write(b"x" * number)
            assert take.accept(received, DX, f"1.2.{number}", Origin("store", "A", "1")) is Accepted.NEW
        taken: list[int] = []
        while image := waiting.next_image(taken):
            taken.append(image.id)
        assert sorted(taken) == [1, 2, 3]
    finally:
        book.close()


def test_no_space_for_the_first_byte(tmp_path):
    """A folder that cannot be written accepts nothing and leaves nothing."""
    store, book = Store(tmp_path), Journal(tmp_path, create=True)
    try:
        received = store.receive(b"head", 1000)
        received.write(b"x" * 2000)
        with pytest.raises(NotAccepted, match="more than"):
            Intake(store, book).accept(received, DX, "1.2.3", Origin("store", "A", "1"))
        full = Intake(store, book, min_free_bytes=store.free_bytes * 2)
        received = store.receive(b"head", 1000)
        with pytest.raises(NotAccepted, match="are free on the disk"):
            full.accept(received, DX, "1.2.3", Origin("store", "A", "1"))
        assert not list(store.incoming.iterdir())
        assert book.value("SELECT count(*) FROM instances") == 0
    finally:
        book.close()
