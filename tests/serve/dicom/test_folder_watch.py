from __future__ import annotations

import errno
import os
import re

import pytest

from dicom_modality import radiograph
from pneumoscope.serve.dicom import folder_watch
from pneumoscope.serve.dicom.config import FolderConfig
from pneumoscope.serve.dicom.folder_watch import FolderWatch
from receiving import origins, uid


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
    assert origins(journal) == [(uid(2), "folder", "INBOX"), (uid(3), "folder", "INBOX")]
    (inbox / "a.dcm").write_bytes(radiograph(1))
    loop.run(watch.look())
    assert loop.run(watch.look()) == 1
    assert [row[0] for row in origins(journal)] == [uid(1), uid(2), uid(3)]
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
    assert origins(journal) == [(uid(1), "folder", "FOLDER")]


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
    assert sorted(row[0] for row in origins(journal)) == [uid(1), uid(2)]
    assert not list(inbox.iterdir())


def test_a_file_that_cannot_be_moved_holds_up_no_other(tmp_path, loop, files, journal, monkeypatch):
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.dcm").write_bytes(b"<html>")
    (inbox / "b.dcm").write_bytes(radiograph(1))
    (inbox / "c.dcm").write_bytes(radiograph(2))
    move = folder_watch._move

    def stuck(path, folder):
        if path.name in {"a.dcm", "b.dcm"}:
            raise PermissionError(13, "Permission denied")
        move(path, folder)

    monkeypatch.setattr(folder_watch, "_move", stuck)
    watch = FolderWatch(FolderConfig(path=inbox, done=tmp_path / "done", bad=tmp_path / "bad"), files)
    loop.run(watch.look())
    assert loop.run(watch.look()) == 2
    assert loop.run(watch.look()) == 0
    assert [row[0] for row in origins(journal)] == [uid(1), uid(2)]
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
    folder_watch._move(source, tmp_path / "done")
    assert (tmp_path / "done" / "a.dcm").read_bytes() == radiograph(1)
    assert not source.exists()


def test_names_in_logs_are_hashes(caplog, tmp_path, loop, files):
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "Zauberbaum.dcm").write_bytes(b"<html>")
    watch = FolderWatch(FolderConfig(path=inbox, bad=tmp_path / "bad"), files)
    with caplog.at_level("DEBUG"):
        loop.run(watch.look())
        loop.run(watch.look())
    assert not re.search("Zauberbaum", str([vars(record) for record in caplog.records]))
