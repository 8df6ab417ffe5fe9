"""Destinations that are down, slow, or lose the association; workers that hang."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from dicom_archives import Archive
from dicom_modality import radiograph, send
from dicom_peers import running_node, until, write_config
from pneumoscope.serve.dicom.config import load_config
from pneumoscope.serve.dicom.intake import Intake, Origin
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.processor import Processor
from pneumoscope.serve.dicom.queue import Queue
from pneumoscope.serve.dicom.status import read_status
from pneumoscope.serve.dicom.store import Store, file_head
from pneumoscope.serve.workers.pool import WorkerLimits, WorkerPool

pytestmark = pytest.mark.slow


def test_down_slow_and_lossy(tmp_path, tiny):
    """One destination goes through all of it; another is not held up by it."""
    first, second = Archive(), Archive(aet="OTHER")
    with second:
        config = write_config(
            tmp_path,
            tiny.path,
            mode="live",
            destinations=[first.destination(), second.destination(name="other")],
        )
        with running_node(config) as node:
            assert send(node.port, [radiograph(1), radiograph(2)]) == [0, 0]
            until(lambda: len(second.stored) == 4)
            until(lambda: node.metrics()["pneumoscope_node_destinations_unreachable"] == 1)
            assert not node.status().dead, "a destination that is down is not the fault of an object"
            # It comes up, stores each object, and drops the association before the response.
            first.lose = 3
            first.start()
            until(lambda: len(first.stored) == 4)
            until(lambda: node.status().deliveries["pacs"] == {"sent": 4})
            assert set(first.attempts.values()) == {1}
            # Slow: longer than one result, not longer than the time limit.
            first.delay = 1.0
            assert send(node.port, [radiograph(3)]) == [0]
            until(lambda: len(first.stored) == 6)
            # It rejects for good: the dead-letter list, until a command sends again.
            first.delay, first.status = 0.0, 0xA900
            assert send(node.port, [radiograph(4)]) == [0]
            until(lambda: len(node.status().dead) == 2)
            first.status = 0x0000
            assert node.command("retry", "--dead").out == "2 dead\n"
            until(lambda: len(first.stored) == 8)
            until(lambda: set(node.status().deliveries["pacs"]) == {"sent"})
        assert set(first.attempts.values()) == {1}
        assert set(second.attempts.values()) == {1}
        first.stop()


@pytest.fixture
def hanging_worker(tmp_path: Path, monkeypatch) -> str:
    """A worker that hangs over images of one size, and ends over those of another."""
    (tmp_path / "hanging_worker.py").write_text(
        "import os, sys, time\n"
        "from pneumoscope.serve.dicom.worker import respond\n"
        "from pneumoscope.serve.workers import worker\n"
        "def respond_to(predictor, job, pieces):\n"
        "    if b'HANG' in pieces[0][:2000]:\n"
        "        time.sleep(1000)\n"
        "    if b'CRASH' in pieces[0][:2000]:\n"
        "        os.abort()\n"
        "    return respond(predictor, job, pieces)\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(worker.main(None, respond_to))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return "hanging_worker"


def test_a_worker_that_hangs(tmp_path, tiny, hanging_worker):
    """Three tries, then it is parked with the reason; others do not wait for it."""
    config = load_config(write_config(tmp_path, tiny.path, process={"workers": 1, "seconds": 3}))
    store = Store(config.folder)
    journal = Journal(config.folder, create=True)

    async def process() -> float:
        pool = WorkerPool(tiny.path, workers=1, limits=WorkerLimits(seconds=3.0), module=hanging_worker)
        await pool.start()
        queue = Queue(journal, 3600)
        processor = Processor(config, tiny, queue, store, pool, open_links=frozenset)
        running = asyncio.create_task(processor.run())
        began, others = time.monotonic(), 0.0
        try:
            while len(read_status(journal, 3600).parked) < 2:
                assert time.monotonic() - began < 120
                await asyncio.sleep(0.2)
                states = read_status(journal, 3600).instances
                read = any(states.get(state) for state in ("predicted", "composed", "reported"))
                others = others or (time.monotonic() - began if read else 0.0)
        finally:
            processor.stop()
            await running
            await pool.stop()
        return others

    try:
        intake = Intake(store, journal)
        for number, accession in enumerate(("HANG", "CRASH", "FINE"), start=1):
            data = radiograph(number, AccessionNumber=accession)
            uid = f"1.2.826.0.1.3680043.10.5.1.{number}.{number}"
            received = store.receive(
                file_head("1.2.840.10008.5.1.4.1.1.1.1", uid, "1.2.840.10008.1.2.1"), 10**7
            )
            received.write(data[144 + int.from_bytes(data[140:144], "little") :])
            intake.accept(received, "1.2.840.10008.5.1.4.1.1.1.1", uid, Origin("store", "A", str(number)))
        others = asyncio.run(process())
        parked = {row["instance"][-1]: row["why"] for row in read_status(journal, 3600).parked}
        assert journal.value("SELECT max(tries) FROM instances") == 3
    finally:
        journal.close()
    assert "longer than 3 s" in parked["1"]
    assert "the reader ended" in parked["2"]
    assert others, "the good image is read before the others are parked"
