"""The lock of a node's folder, and what others learn from it."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from dicom_peers import RunningNode, write_config
from pneumoscope.data.drafts import locked
from pneumoscope.errors import DataError
from pneumoscope.serve.dicom import audit, running
from pneumoscope.serve.dicom import node as node_module
from pneumoscope.serve.dicom.config import load_config
from pneumoscope.serve.dicom.journal import JournalError
from pneumoscope.serve.dicom.maintenance import REBUILD_BEGUN, REBUILD_ENDED
from pneumoscope.serve.dicom.running import lock_folder, mark_ready, read_running


def record(journal, event: str, **detail: object) -> str:
    """Enter an event; return its time as the audit log has it."""
    with journal.change() as connection:
        audit.record(connection, event, **detail)
    return journal.value("SELECT at FROM audit ORDER BY seq DESC LIMIT 1")


def test_a_node_starts_and_then_takes_images(tmp_path, journal):
    assert read_running(journal) is None
    with lock_folder(tmp_path, "live") as lock:
        starting = read_running(journal)
        assert (starting.mode, starting.ready) == ("live", False)
        mark_ready(lock)
        assert read_running(journal) == running.Running(starting.since, "live", True)
    assert read_running(journal) is None
    with lock_folder(tmp_path, "shadow"):
        again = read_running(journal)
        assert (again.mode, again.ready) == ("shadow", False), "nothing is left of the process before"


def test_a_node_is_shown_while_it_opens_its_journal(tmp_path, tiny, journal, monkeypatch):
    """The check of a large journal, and the removal of files that nothing refers to, take long."""
    seen = []

    def opened(_store):
        seen.append(read_running(journal))
        raise JournalError("enough")

    monkeypatch.setattr(node_module, "_opened_journal", opened)
    config = load_config(write_config(tmp_path, tiny.path, folder=str(tmp_path)))
    with pytest.raises(JournalError, match="enough"):
        node_module.run_node(config)
    assert [(one.mode, one.ready) for one in seen] == [("shadow", False)]
    assert read_running(journal) is None


def test_a_node_of_an_earlier_version(tmp_path, journal):
    """It wrote only its number into the file; when it started and in which mode is in the audit log."""
    with locked(tmp_path / "lock", "taken", "use a folder"):
        assert read_running(journal) is None, "it may be a rebuild"
        at = record(journal, "started", mode="live")
        assert read_running(journal) == running.Running(at, "live", True)
        record(journal, REBUILD_BEGUN, aside="")
        assert read_running(journal) is None, "it is a rebuild"
        record(journal, REBUILD_ENDED)
        assert read_running(journal) is None
    record(journal, "started", mode="live")
    assert read_running(journal) is None


def test_a_rebuild_is_no_node(tmp_path, journal):
    record(journal, "started", mode="live")
    with lock_folder(tmp_path):
        assert read_running(journal) is None


def test_a_test_of_the_lock_holds_up_no_node_that_starts(tmp_path, monkeypatch):
    lock_folder(tmp_path, "live").close()
    test, pauses = (tmp_path / "lock").open(), []
    fcntl.flock(test, fcntl.LOCK_SH)

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            test.close()

    monkeypatch.setattr(running, "sleep", pause)
    lock_folder(tmp_path, "live").close()
    assert len(pauses) == 2, "it waits for the end of the test, and no longer"


def test_a_folder_that_a_node_uses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LONGEST_TEST", 0.05)
    with lock_folder(tmp_path, "live"), pytest.raises(DataError) as error:
        lock_folder(tmp_path, "live")
    assert str(error.value).startswith(f"{tmp_path}: another node uses this folder (process {os.getpid()}); ")


def test_where_files_cannot_be_locked(tmp_path, journal, monkeypatch):
    (tmp_path / "lock").write_text('1\n{"since": "2026", "mode": "live"}\n')

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert read_running(journal) is None
    with pytest.raises(DataError, match=r"files cannot be locked there \(No locks available\); use a folder"):
        lock_folder(tmp_path)


def test_the_command_says_that_it_starts(tmp_path, tiny):
    node = RunningNode(None, write_config(tmp_path, tiny.path))
    assert node.command("rebuild").code == 0
    with lock_folder(node.folder, "shadow") as lock:
        shown = node.command("status")
        assert (shown.code, shown.out.split(" since ")[0]) == (0, "node: starting")
        assert shown.out.splitlines()[0].endswith(" (mode shadow)")
        mark_ready(lock)
        assert node.command("status").out.startswith("node: running since ")
    assert node.command("status").out.startswith("node: not running\n")
