"""A receiver without workers, and images to send to it as raw data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dicom_modality import radiograph
from dicom_peers import until
from pneumoscope.serve.dicom.config import ListenConfig, NodeConfig
from pneumoscope.serve.dicom.intake import Intake
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.scp import Receiver
from pneumoscope.serve.dicom.store import Store

__all__ = ["dataset_of", "instances", "origins", "receiving", "uid", "uid_of"]


@contextmanager
def receiving(folder: Path, **settings: Any) -> Iterator[tuple[Receiver, int, Journal]]:
    """Run a receiver without workers; gives it, its port and its journal."""
    config = NodeConfig(**({"folder": folder / "node", "listen": ListenConfig(port=0)} | settings))
    store = Store(config.folder)
    journal = Journal(config.folder, create=True)
    receiver = Receiver(config, Intake(store, journal), journal)
    port = receiver.start()
    try:
        yield receiver, port, journal
    finally:
        receiver.stop()
        until(lambda: not receiver.open_links, 10)
        journal.close()


def instances(journal: Journal) -> list[str]:
    """Return the SOP Instance UIDs of a journal, in their order."""
    return [row["sop_instance"] for row in journal.rows("SELECT sop_instance FROM instances ORDER BY id")]


def origins(journal: Journal) -> list[tuple[str, ...]]:
    """Return the SOP Instance UIDs of a journal, sorted, with the way each came by and its caller."""
    found = journal.rows("SELECT sop_instance, via, caller FROM instances ORDER BY sop_instance")
    return [tuple(row) for row in found]


def dataset_of(number: int) -> bytes:
    """Return an image without preamble and file meta information."""
    data = radiograph(number)
    return data[144 + int.from_bytes(data[140:144], "little") :]


def uid(number: int) -> str:
    """Return the SOP Instance UID of that image."""
    return f"1.2.826.0.1.3680043.10.5.1.{number}.{number}"


def uid_of(number: int) -> bytes:
    """Return the same as it is in the image."""
    return uid(number).encode()
