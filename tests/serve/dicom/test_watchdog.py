"""The watchdog: every part that hangs or has ended stops the signs of life; all parts stop together."""

from __future__ import annotations

import asyncio
import configparser
import socket
import threading
import time
from pathlib import Path

import pytest

from dicom_peers import until
from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.dicom import background, commitment, node
from pneumoscope.serve.dicom.background import Background, stop_together
from pneumoscope.serve.dicom.commitment import Committer
from pneumoscope.serve.dicom.config import FolderConfig, NodeConfig, PullConfig, load_config
from pneumoscope.serve.dicom.file_intake import FileIntake
from pneumoscope.serve.dicom.folder_watch import FolderWatch
from pneumoscope.serve.dicom.intake import Intake
from pneumoscope.serve.dicom.processor import Processor
from pneumoscope.serve.dicom.queue import Queue
from pneumoscope.serve.dicom.scp import Receiver
from pneumoscope.serve.dicom.store import Store
from pneumoscope.serve.dicom.watchdog import Watchdog
from pneumoscope.serve.dicom.web_pull import WebPull

UNIT = Path(__file__).parents[3] / "deploy" / "pneumoscope-node.service"


class Clock:
    """In place of `time`, for signs of life."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(background, "time", clock)
    return clock


@pytest.fixture
def notices(tmp_path, monkeypatch):
    """The socket that systemd gives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(0.2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


class Waiting(Background):
    """A thread that does something for so long, and ends as it is told."""

    def __init__(self, name: str = "waiting", seconds: float = 0.0) -> None:
        super().__init__(name, 60.0)
        self.seconds = seconds
        self.fails = False

    def _work(self) -> None:
        while not self._stopping:
            self._wake.wait(10)
            if self.fails:
                raise ZeroDivisionError
        time.sleep(self.seconds)


def test_one_part_that_hangs_stops_the_signs_of_life(notices, clock, caplog):
    parts = [Waiting("a"), Waiting("b")]
    for one in parts:
        one.start()
    watchdog = Watchdog(parts)
    assert watchdog.look() == []
    assert notices.recv(100) == b"WATCHDOG=1"
    clock.ahead = 61.0
    parts[0].pulse.beat()
    for _ in range(3):
        assert watchdog.look() == ["b"]
    with pytest.raises(TimeoutError):
        notices.recv(100)
    assert len(caplog.records) == 1, "it is logged once"
    parts[1].pulse.beat()
    assert watchdog.look() == []
    stop_together(parts, 10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_seen(clock):
    one = Waiting()
    assert one.stuck, "it was not started"
    one.start()
    assert not one.stuck
    one.fails = True
    one.wake()
    until(lambda: one.stuck, 10)
    assert isinstance(one.failure, PneumoscopeError) and str(one.failure) == "waiting: ZeroDivisionError"


def test_all_are_stopped_against_one_time_limit(caplog):
    parts = [Waiting(f"{number}", seconds=0.5) for number in range(8)]
    for one in parts:
        one.start()
    began = time.monotonic()
    stop_together(parts, 30)
    assert time.monotonic() - began < 2.0, "not one after the other"
    assert not any(one._thread.is_alive() for one in parts)
    slow = [Waiting(f"slow {number}", seconds=3) for number in range(4)]
    for one in slow:
        one.start()
    began = time.monotonic()
    stop_together(slow, 0.3)
    assert time.monotonic() - began < 1.0
    assert caplog.records[-1].parts == [one.name for one in slow]


def test_the_committer_that_hangs_is_seen(tmp_path, journal, clock):
    committer = Committer(NodeConfig(folder=tmp_path), journal)
    committer.start()
    assert not committer.stuck
    clock.ahead = commitment.LONGEST + 1
    until(lambda: not committer.stuck, 20, every=0.5)  # it goes on
    release = threading.Event()
    committer._journal = type("Hanging", (), {"rows": lambda *_: release.wait(60) and []})()
    committer.wake()
    time.sleep(0.2)
    clock.ahead *= 3
    assert committer.stuck
    release.set()
    committer.stop(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_listener_that_hangs_or_ends_is_seen(tmp_path, journal, clock):
    receiver = Receiver(
        NodeConfig(folder=tmp_path, listen={"port": 0}), Intake(Store(tmp_path), journal), journal
    )
    assert receiver.stuck, "it does not listen yet"
    receiver.start()
    assert not receiver.stuck
    clock.ahead = 1000.0
    until(lambda: not receiver.stuck, 5)
    server = receiver._server
    held = threading.Event()
    server.service_actions = lambda: held.wait(30)
    time.sleep(0.5)
    clock.ahead = 2000.0
    assert receiver.stuck
    server.service_actions = lambda: 1 / 0
    held.set()
    until(lambda: receiver.failure, 5)
    assert str(receiver.failure) == "listening for associations: ZeroDivisionError"
    assert receiver.stuck
    server.server_close()


def test_folders_and_servers_that_hang_are_seen(tmp_path, journal, clock):
    """Such as a folder on a network that is gone."""
    (tmp_path / "in").mkdir()
    files = FileIntake(Intake(Store(tmp_path), journal), None, NodeConfig(folder=tmp_path).limits)
    folder = FolderWatch(FolderConfig(path=tmp_path / "in", bad=tmp_path / "bad", every_seconds=0.01), files)
    pull = WebPull(PullConfig(name="x", url="http://127.0.0.1:1", every_seconds=0.01), files, journal)
    release = threading.Event()

    async def run() -> None:
        tasks = [asyncio.create_task(one.run()) for one in (folder, pull)]
        await asyncio.sleep(0.2)
        clock.ahead = 10_000.0
        await asyncio.sleep(0.2)
        assert not folder.stuck and not pull.stuck, "both go on"
        folder._settled = lambda: release.wait(30) and []
        pull._new_instances = lambda: release.wait(30) and []
        await asyncio.sleep(0.2)
        clock.ahead = 20_000.0
        assert folder.stuck and pull.stuck
        release.set()
        await asyncio.sleep(0.2)
        assert not folder.stuck and not pull.stuck
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_an_image_that_stays_in_hand_is_seen(tmp_path, tiny, journal, monkeypatch):
    config = NodeConfig(folder=tmp_path, process={"seconds": 5})

    async def run() -> None:
        processor = Processor(config, tiny, Queue(journal, 60), Store(tmp_path), None, open_links=frozenset)
        assert not processor.stuck
        release = asyncio.Event()
        processor._begin(release.wait())
        await asyncio.sleep(0)
        real = time.monotonic
        monkeypatch.setattr("pneumoscope.serve.dicom.processor.time.monotonic", lambda: real() + 400)
        processor._pulse.beat()
        assert processor.stuck
        release.set()
        await asyncio.sleep(0.01)
        assert not processor.stuck

    asyncio.run(run())


def test_the_watchdog_of_a_node_looks_at_every_part(tmp_path, tiny, journal):
    (tmp_path / "in").mkdir()
    path = tmp_path / "node.yaml"
    path.write_text(
        f"folder: {tmp_path}\nbundle: {tiny.path}\nmode: live\n"
        "destinations: [{name: a, host: x}, {name: b, host: y}]\n"
        f"folders: [{{path: {tmp_path / 'in'}, bad: {tmp_path / 'bad'}}}]\n"
        "pull: [{name: web, url: 'http://127.0.0.1:1'}]\n"
    )

    async def run() -> list[str]:
        return [
            part.name
            for part in node._Node(load_config(path), tiny, Store(tmp_path), journal)._watchdog._parts
        ]

    assert asyncio.run(run()) == [
        *("dicom-listen", "commitment", "send-a", "send-b", "processor", "folder-FOLDER", "pull-web")
    ]


def test_the_service_file_fits():
    """A stop has the time that it may take, and the watchdog several signs of life."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    unit.optionxform = str
    unit.read(UNIT)
    service = unit["Service"]
    assert int(service["TimeoutStopSec"]) >= 2 * node.STOP_SECONDS + 20
    assert int(service["TimeoutStopSec"]) <= 2 * node.STOP_SECONDS + 60
    assert int(service["WatchdogSec"]) >= 3 * node.BEAT
