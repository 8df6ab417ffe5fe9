"""Archives that a node sends its results to: one in the process of the tests, and Orthanc."""

from __future__ import annotations

import io
import json
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from dicom_modality import DX
from dicom_peers import free_port, until
from pneumoscope.image.dicom import lenient_pydicom

__all__ = ["Archive", "Orthanc", "running_orthanc"]

RESULT_CLASSES = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage, KeyObjectSelectionDocumentStorage)


class Archive:
    """A storage SCP that counts what it stores, and can be asked what it has.

    Parameters
    ----------
    port : int
        0 for any free one.
    """

    def __init__(self, port: int = 0, aet: str = "PACS") -> None:
        self.aet = aet
        self.port = port or free_port()
        self.stored: dict[str, Dataset] = {}
        self.times: dict[str, float] = {}
        self.attempts: Counter[str] = Counter()
        self.delay = 0.0
        self.lose = 0
        """So many of the next objects are stored, and the association is dropped before the response."""
        self.status = 0x0000
        self._lock = threading.Lock()
        self._server: Any = None

    def start(self) -> Archive:
        """Listen."""
        ae = AE(ae_title=self.aet)
        ae.maximum_associations = 50
        for sop_class in (*RESULT_CLASSES, Verification, StudyRootQueryRetrieveInformationModelFind):
            ae.add_supported_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def stop(self) -> None:
        """Close the port and all associations; what was stored stays."""
        self._server.shutdown()

    def destination(self, **settings: Any) -> dict[str, Any]:
        """Return its entry in node.yaml."""
        return {
            "name": "pacs",
            "aet": self.aet,
            "host": "127.0.0.1",
            "port": self.port,
            "timeout": 10,
        } | settings

    def of_class(self, sop_class: str) -> list[Dataset]:
        """Return what it has of a class."""
        with self._lock:
            return [one for one in self.stored.values() if one.SOPClassUID == sop_class]

    def sources(self) -> Counter[str]:
        """Return how many reports refer to each image as evidence."""
        counts: Counter[str] = Counter()
        for report in self.of_class(Comprehensive3DSRStorage):
            for study in report.get("CurrentRequestedProcedureEvidenceSequence", []):
                for series in study.ReferencedSeriesSequence:
                    for one in series.ReferencedSOPSequence:
                        if one.ReferencedSOPClassUID == DX:
                            counts[str(one.ReferencedSOPInstanceUID)] += 1
        return counts

    def __enter__(self) -> Archive:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _store(self, event: evt.Event) -> int:
        time.sleep(self.delay)
        with lenient_pydicom():
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            uid = str(dataset.SOPInstanceUID)
        if self.status:
            return self.status
        with self._lock:
            self.attempts[uid] += 1
            self.stored[uid] = dataset
            self.times.setdefault(uid, time.monotonic())
            lose, self.lose = self.lose > 0, max(0, self.lose - 1)
        if lose:
            event.assoc.abort()
        return 0x0000

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier.SOPInstanceUID
        uids = [str(asked)] if isinstance(asked, str) else [str(uid) for uid in asked]
        for uid in uids:
            with self._lock:
                found = self.stored.get(uid)
            if found is not None:
                response = Dataset()
                response.QueryRetrieveLevel = "IMAGE"
                response.SOPInstanceUID = uid
                response.StudyInstanceUID = found.StudyInstanceUID
                response.SeriesInstanceUID = found.SeriesInstanceUID
                yield 0xFF00, response


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc.

    Parameters
    ----------
    url : str
        Of its REST interface.
    port : int
        For DICOM.
    """

    url: str
    port: int

    def get(self, path: str) -> Any:
        """Return a resource of the REST interface."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            content = response.read()
        return json.loads(content) if "json" in response.headers["Content-Type"] else content

    def find(self, level: str, **query: str) -> list[dict[str, Any]]:
        """Return the resources of a level that have these values."""
        body = json.dumps({"Level": level, "Query": query, "Expand": True}).encode()
        with urllib.request.urlopen(f"{self.url}/tools/find", body, timeout=30) as response:
            return json.loads(response.read())

    def files(self, study: str) -> list[Dataset]:
        """Return the instances of a study as data sets."""
        found = self.find("Instance", StudyInstanceUID=study)
        return [pydicom.dcmread(io.BytesIO(self.get(f"/instances/{one['ID']}/file"))) for one in found]

    def upload(self, file: bytes) -> None:
        """Store a DICOM file."""
        urllib.request.urlopen(f"{self.url}/instances", file, timeout=30).read()


@contextmanager
def running_orthanc(folder: Path, **more: Any) -> Iterator[Orthanc]:
    """Run Orthanc with its DICOMweb plug-in and further settings, or skip where it is not installed."""
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    program = next(
        (path for path in map(Path, ("/usr/sbin/Orthanc", "/usr/bin/Orthanc")) if path.exists()), None
    )
    if program is None or not plugin.exists():
        pytest.skip("Orthanc is absent: apt-get install orthanc orthanc-dicomweb")
    folder.mkdir(parents=True, exist_ok=True)
    process, orthanc = _started_orthanc(program, folder, plugin, more)
    try:
        yield orthanc
    finally:
        process.terminate()
        process.wait(30)


def _started_orthanc(
    program: Path, folder: Path, plugin: Path, more: dict[str, Any], tries: int = 3
) -> tuple[subprocess.Popen[bytes], Orthanc]:
    """Start Orthanc and wait for it; with other ports where another process took one meanwhile."""
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "Archive",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomCheckModalityHost": False,
        "OverwriteInstances": False,
        "StableAge": 1,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **more,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    orthanc = Orthanc(f"http://127.0.0.1:{http}", dicom)

    def responds_or_ended() -> bool:
        try:
            return process.poll() is not None or bool(orthanc.get("/system"))
        except OSError:
            return False

    with ExitStack() as started:
        started.callback(process.terminate)
        until(responds_or_ended, 60)
        if process.poll() is None:
            started.pop_all()
            return process, orthanc
    end = (folder / "orthanc.log").read_text()[-500:]
    assert tries > 1, end
    assert "already in use" in end, end
    return _started_orthanc(program, folder, plugin, more, tries - 1)
