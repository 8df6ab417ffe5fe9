"""A new journal of the stored images: what it takes, what it skips, and how it ends on a full disk."""

from __future__ import annotations

import os

import pydicom
import pytest
from pydicom.filebase import DicomBytesIO

from dicom_modality import radiograph
from pneumoscope.errors import DataError
from pneumoscope.serve.dicom import audit, maintenance
from pneumoscope.serve.dicom.intake import Accepted, Intake, Origin
from pneumoscope.serve.dicom.journal import Journal, JournalError
from pneumoscope.serve.dicom.maintenance import Rebuilt, rebuild
from pneumoscope.serve.dicom.store import IMPLEMENTATION_UID, Store, dataset_offset, file_head

DX = "1.2.840.10008.5.1.4.1.1.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "node")


def take(store: Store, number: int, caller: str = "ER1") -> str:
    """Take an image in, as the node does; return where it is stored."""
    data, uid = radiograph(number), f"1.2.{number}"
    journal = Journal(store.folder, create=True)
    try:
        received = store.receive(file_head(DX, uid, EXPLICIT, caller), 10**7)
        received.write(data[dataset_offset(data) :])
        how = Intake(store, journal).accept(received, DX, uid, Origin("store", caller, "1"))
    finally:
        journal.close()
    assert how is Accepted.NEW
    return store.image_name(uid)


def journalled(store: Store) -> list[tuple]:
    journal = Journal(store.folder)
    try:
        found = journal.rows("SELECT sop_instance, sha256, caller, via FROM instances ORDER BY sop_instance")
        return [tuple(row) for row in found]
    finally:
        journal.close()


def test_the_file_meta_information_is_that_of_this_program():
    head = file_head(DX, "1.2.3", EXPLICIT, "ER1")
    meta = pydicom.dcmread(DicomBytesIO(head)).file_meta
    assert meta.ImplementationClassUID == IMPLEMENTATION_UID
    assert meta.ImplementationVersionName == "PNEUMOSCOPE"
    assert meta.SourceApplicationEntityTitle == "ER1"
    assert dataset_offset(head) == dataset_offset(head[:144]) == len(head)
    for caller in ("", "A" * 17, "A\\B", "Ä"):
        assert file_head(DX, "1.2.3", EXPLICIT, caller) == file_head(DX, "1.2.3", EXPLICIT)


def test_images_keep_their_sender(store):
    take(store, 1, "ER1")
    take(store, 2, "WARD")
    before = journalled(store)
    done = rebuild(store.folder, store)
    assert (done.images, done.skipped) == (2, 0)
    assert done.aside is not None and (done.aside / "journal.sqlite").exists()
    assert journalled(store) == [(*row[:3], "rebuild") for row in before]


def test_images_are_taken_as_they_came_with_a_link_for_those_that_came_together(store, monkeypatch):
    """So that a study is composed of the same images as before; and by the next rebuild too."""
    monkeypatch.setattr(maintenance, "MANY_TOGETHER", 3)
    times = {3: 1000.0, 1: 1030.0, 5: 1100.0, 2: 1100.5, 6: 1101.0, 4: 1103.0}
    for number, at in times.items():
        os.utime(store.folder / take(store, number), (at, at))
    for _ in range(2):
        rebuild(store.folder, store)
        journal = Journal(store.folder)
        found = [tuple(row) for row in journal.rows("SELECT sop_instance, link FROM instances ORDER BY id")]
        journal.close()
        assert [uid for uid, _ in found] == [f"1.2.{number}" for number in times]
        # A pause of a minute ends what is together, and a short one where it is many images.
        assert [link for _, link in found] == [f"rebuild-{number}" for number in (1, 1, 2, 2, 2, 3)]


def test_files_that_another_version_wrote_are_taken(store):
    """Their file meta information is of another length, and names no sender."""
    path = store.folder / take(store, 1)
    content = path.read_bytes()
    (before,) = journalled(store)
    meta = pydicom.filereader.read_file_meta_info(path)
    del meta.SourceApplicationEntityTitle
    meta.ImplementationClassUID, meta.ImplementationVersionName = (
        "1.2.826.0.1.3680043.9.3811.3.0.4",
        "OTHER_3",
    )
    buffer = DicomBytesIO()
    pydicom.filewriter.write_file_meta_info(buffer, meta)
    path.write_bytes(bytes(128) + b"DICM" + buffer.getvalue() + content[dataset_offset(content) :])
    assert rebuild(store.folder, store).images == 1
    assert journalled(store) == [(*before[:2], "REBUILD", "rebuild")]


def test_what_is_no_image_is_counted(store):
    take(store, 1)
    for number, content in enumerate([b"", b"<html>", file_head(DX, "1.2.9", EXPLICIT)]):
        (store.folder / "images" / "aa").mkdir(exist_ok=True)
        (store.folder / "images" / "aa" / f"{number}.dcm").write_bytes(content)
    done = rebuild(store.folder, store)
    assert (done.images, done.skipped) == (1, 3)


def test_a_folder_without_a_journal(store):
    assert rebuild(store.folder, store) == Rebuilt(None, 0, 0)


def test_a_full_disk_ends_in_one_line(store, monkeypatch):
    take(store, 1)

    class Full(Intake):
        def __init__(self, store: Store, journal: Journal) -> None:
            super().__init__(store, journal, min_free_bytes=store.free_bytes * 2)

    monkeypatch.setattr(maintenance, "Intake", Full)
    with pytest.raises(DataError, match=r"after 0 images .* free on the disk\); free space") as caught:
        rebuild(store.folder, store)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert rebuild(store.folder, store).images == 1, "and it can be run again"


def test_a_journal_that_cannot_be_written_costs_no_image(store, monkeypatch):
    """The file of an image that was accepted stays, although its new copy was not journalled."""
    name = take(store, 1)
    content = (store.folder / name).read_bytes()
    record = audit.record

    def full(connection, event, **detail):
        if event == "received":
            raise JournalError("database or disk is full", passing=True)
        record(connection, event, **detail)

    monkeypatch.setattr(audit, "record", full)
    with pytest.raises(DataError, match=r"after 0 images .* disk is full"):
        rebuild(store.folder, store)
    assert (store.folder / name).read_bytes() == content
    monkeypatch.undo()
    assert rebuild(store.folder, store).images == 1
