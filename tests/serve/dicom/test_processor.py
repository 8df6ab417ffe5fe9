"""When a study is complete, and what the processor keeps about links."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

from pneumoscope.serve.dicom.config import NodeConfig, ProcessConfig
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.processor import LOOK_AGAIN, Processor
from pneumoscope.serve.dicom.queue import Queue
from pneumoscope.serve.dicom.store import Store

DX = "1.2.840.10008.5.1.4.1.1.1.1"


def add(
    journal: Journal, number: int, link: str, state: str = "predicted", *, via: str = "store", study: str = ""
) -> None:
    """Add an image, of a study of its own if none is given."""
    with journal.change() as connection:
        connection.execute(
            "INSERT INTO instances (sop_instance, sop_class, sha256, bytes, file, via, caller, link,"
            " received, state, study_uid, destinations, positive)"
            " VALUES (?, ?, '0', 1, 'f', ?, 'A', ?, 0, ?, ?, '[]', 0)",
            (f"1.2.{number}", DX, via, link, state, study or f"9.{number}"),
        )


def test_a_study_waits_for_its_links_and_others_are_forgotten(tmp_path):
    journal = Journal(Store(tmp_path).folder, create=True)
    links: set[str] = set()
    config = NodeConfig(folder=tmp_path, process=ProcessConfig(quiet_seconds=0, longest_open_seconds=3600))

    async def run() -> None:
        processor = Processor(
            config, SimpleNamespace(identity="b@1"), Queue(journal, 3600), Store(tmp_path), SimpleNamespace(),
            open_links=lambda: frozenset(links),
        )  # fmt: skip
        links.update({"of the study", *(str(number) for number in range(50))})
        add(journal, 1, "of the study")
        assert processor._compose(), "its link is open"
        links.difference_update({str(number) for number in range(50)})
        assert processor._compose()
        assert not processor._link_closed, "links that brought nothing are not kept"
        links.clear()
        while processor._compose():
            await asyncio.sleep(0.01)
        assert journal.value("SELECT count(*) FROM results") == 1

    try:
        asyncio.run(run())
    finally:
        journal.close()


def test_a_rebuild_composes_a_study_when_all_that_came_with_it_is_predicted(tmp_path):
    """Otherwise it would be reported in parts, beside the whole result that the archive has."""
    journal = Journal(Store(tmp_path).folder, create=True)
    config = NodeConfig(folder=tmp_path, process=ProcessConfig(quiet_seconds=0, longest_open_seconds=0))
    results = "SELECT study_uid, count(*) FROM results JOIN result_images ON result = id GROUP BY 1"

    async def run() -> None:
        processor = Processor(
            config, SimpleNamespace(identity="b@1"), Queue(journal, 3600), Store(tmp_path), SimpleNamespace(),
            open_links=frozenset,
        )  # fmt: skip
        add(journal, 1, "rebuild-1", via="rebuild", study="9")
        add(journal, 2, "rebuild-1", "received", via="rebuild")
        add(journal, 3, "rebuild-2", via="rebuild", study="8")
        add(journal, 4, "A-1", study="7")
        add(journal, 5, "A-1", "received")
        assert processor._compose(), "study 9 waits"
        assert [tuple(row) for row in journal.rows(results)] == [("7", 1), ("8", 1)]
        with journal.change() as connection:
            connection.execute(
                "UPDATE instances SET state = 'predicted', study_uid = '9' WHERE sop_instance = '1.2.2'"
            )
        assert not processor._compose()
        assert [tuple(row) for row in journal.rows(results)] == [("7", 1), ("8", 1), ("9", 2)]
        # An image that crashes is tried after all others, and holds up no study.
        add(journal, 6, "rebuild-3", via="rebuild", study="6")
        add(journal, 7, "rebuild-3", "received", via="rebuild")
        assert processor._compose()
        with journal.change() as connection:
            connection.execute("UPDATE instances SET tries = 1 WHERE sop_instance = '1.2.7'")
        assert not processor._compose()

    try:
        asyncio.run(run())
    finally:
        journal.close()


class _Pool:
    """One worker that takes no time."""

    workers = 1

    async def run(self, job, data):
        return {"facts": {}, "ignore": "nothing to do"}, []


def test_the_next_image_follows_at_once(tmp_path):
    store = Store(tmp_path)
    journal = Journal(store.folder, create=True)
    (store.folder / "f").write_bytes(b"")

    async def run() -> float:
        bundle, queue = SimpleNamespace(identity="b@1"), Queue(journal, 3600)
        processor = Processor(
            NodeConfig(folder=tmp_path), bundle, queue, store, _Pool(), open_links=frozenset
        )
        for number in range(20):
            add(journal, number, "link", "received")
        began = time.monotonic()
        running = asyncio.create_task(processor.run())
        while journal.value("SELECT count(*) FROM instances WHERE state = 'received'"):
            await asyncio.sleep(0.01)
        seconds = time.monotonic() - began
        processor.stop()
        await running
        return seconds

    try:
        assert asyncio.run(run()) < 20 * LOOK_AGAIN / 4, "no wait between two images"
        assert journal.value("SELECT count(*) FROM instances WHERE state = 'ignored'") == 20
    finally:
        journal.close()
