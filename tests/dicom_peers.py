"""The DICOM node as its own process, and systems that it talks to: modalities, archives, Orthanc."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from images import grey_levels
from log_scan import SCAN
from pneumoscope.cli import main
from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.outgoing import OutgoingAE
from pneumoscope.serve.dicom.status import NodeStatus, read_status

__all__ = [
    "PATIENT",
    "SECRETS",
    "Archive",
    "Ended",
    "Orthanc",
    "RunningNode",
    "free_port",
    "kill",
    "radiograph",
    "running_node",
    "running_orthanc",
    "send",
    "start_node",
    "until",
    "write_config",
]

_config.STORE_SEND_CHUNKED_DATASET = True  # files are sent without decoding them

DX = "1.2.840.10008.5.1.4.1.1.1.1"
ROOT = "1.2.826.0.1.3680043.10.5"

PATIENT = {"PatientName": "Zauberbaum^Ottokar", "PatientID": "PID-77-4711", "PatientBirthDate": "19430612"}
"""Of every image that these tests send: no log may have any of it."""

SECRETS = ("Zauberbaum", "Ottokar", "PID-7", "19430612", "12.06.1943", "Wagenknecht", "ACC-")
"""Parts of what names the patient, the visit or the physician in those images."""

RESULT_CLASSES = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage, KeyObjectSelectionDocumentStorage)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = 60.0, every: float = 0.05) -> Any:
    """Wait until something is true and return it; fail after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(every)


def radiograph(
    number: int = 0, *, study: int | None = None, seed: int | None = None, **elements: Any
) -> bytes:
    """Return a DX image as a DICOM file; its UIDs follow from the numbers.

    Parameters
    ----------
    number : int
        Of the image.
    study : int, optional
        Of the study; one of its own if not given.
    seed : int, optional
        Of the grey levels; the number of the image if not given.
    **elements
        Further or other elements; None leaves one out.
    """
    study = number if study is None else study
    pixels = grey_levels(number if seed is None else seed).astype(np.uint16) << 4
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": DX,
        "SOPInstanceUID": f"{ROOT}.1.{study}.{number}",
        "StudyInstanceUID": f"{ROOT}.1.{study}",
        "SeriesInstanceUID": f"{ROOT}.1.{study}.0",
        "StudyDate": "20260301",
        "StudyTime": "101112",
        "AccessionNumber": f"ACC-{study}",
        "ReferringPhysicianName": "Wagenknecht^Ilse",
        "PatientSex": "M",
        "StudyID": str(study),
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "Manufacturer": "Example",
        "ManufacturerModelName": "Model 1",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelIntensityRelationship": "LOG",
        **PATIENT,
    } | elements
    dataset = Dataset()
    with pydicom.config.disable_value_validation():
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
    SCAN.sent(dataset)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    with lenient_pydicom():
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def send(
    port: int, images: Sequence[bytes], *, aet: str = "MODALITY", host: str = "127.0.0.1"
) -> list[int | None]:
    """Send images over one association; return the status of each, None where there was no response."""
    ae = OutgoingAE(aet, 30)
    ae.add_requested_context(DigitalXRayImageStorageForPresentation, [ExplicitVRLittleEndian])
    ae.add_requested_context(ComputedRadiographyImageStorage, [ExplicitVRLittleEndian])
    statuses: list[int | None] = []
    association = ae.associate(host, port, ae_title="PNEUMOSCOPE")
    if not association.is_established:
        return [None] * len(images)
    for image in images:
        if not association.is_established:
            statuses.append(None)
            continue
        try:
            # As a file, which is sent as it is: to decode it takes `lenient_pydicom`, whose lock an archive
            # in this process needs to store an object.
            with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
                file.write(image)
                file.flush()
                status = association.send_c_store(file.name)
        except (RuntimeError, ValueError):
            status = Dataset()
        statuses.append(int(status.Status) if "Status" in status else None)
    if association.is_established:
        association.release()
    return statuses


def write_config(folder: Path, bundle: Path, /, **settings: Any) -> Path:
    """Write node.yaml for a node on this machine; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "folder": str(folder / "node"),
        "bundle": str(bundle),
        "listen": {"port": 0},
        "metrics": {"port": 0},
        "process": {"workers": 1, "quiet_seconds": 0.1, "seconds": 20},
        "retry": {"first_seconds": 0.2, "longest_seconds": 1, "settle_seconds": 0.3},
        "limits": {"min_free_mb": 0},
    }
    for name, value in settings.items():
        both = isinstance(value, dict) and isinstance(content.get(name), dict)
        content[name] = content[name] | value if both else value
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@dataclass
class RunningNode:
    """A node in its own process.

    Parameters
    ----------
    process : Popen
    config : Path
        node.yaml.
    port, metrics_port : int
    log : list of str
        Lines so far.
    """

    process: subprocess.Popen[str]
    config: Path
    port: int = 0
    metrics_port: int = 0
    log: list[str] = field(default_factory=list)
    reader: threading.Thread = field(default_factory=threading.Thread)

    @property
    def folder(self) -> Path:
        """Of journal and files."""
        return Path(yaml.safe_load(self.config.read_text())["folder"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log records of an event."""
        found = [json.loads(line) for line in self.log if line.startswith("{")]
        return [one for one in found if one["event"] == name]

    def metrics(self) -> dict[str, float]:
        """Return all metrics by name and labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }

    def command(self, *words: str) -> Ended:
        """Run ``pneumoscope dicom`` with this configuration, in this process."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main(["dicom", *words, "--config", str(self.config)])
            except SystemExit as end:
                code = int(end.code or 0)
        return Ended(code, out.getvalue(), err.getvalue())

    def status(self) -> NodeStatus:
        """Return what the journal says now."""
        journal = Journal(self.folder)
        try:
            return read_status(journal, 3600)
        finally:
            journal.close()

    def end(self) -> None:
        """Wait until the process has ended, and read the rest of its log, which names no patient."""
        self.process.wait(60)
        self.reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        assert SCAN.leaks() == []


def start_node(config: Path, log: Path | None = None, **environment: str) -> RunningNode:
    """Start a node and wait until it listens; its log goes to a file as well if one is given."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pneumoscope", "dicom", "serve", "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )
    node = RunningNode(process, config)
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            node.log.append(line)
            SCAN.log(line)
            if log is not None:
                with log.open("a", encoding="utf-8") as file:
                    file.write(line)
            if line.startswith("PNEUMOSCOPE@"):
                head, _, rest = line.partition("  (")
                node.port = int(head.rsplit(":", 1)[1])
                if "metrics http://" in rest:
                    node.metrics_port = int(rest.split("/metrics")[0].rsplit(":", 1)[1])
                ready.set()
        ready.set()

    node.reader = threading.Thread(target=read, daemon=True)
    node.reader.start()
    ready.wait(120)
    if not node.port:
        process.kill()
        node.end()
        raise RuntimeError(f"the node did not start: {node.log}")
    return node


def kill(node: RunningNode) -> None:
    """End a node at once, as a power cut would end it."""
    node.process.send_signal(signal.SIGKILL)
    node.end()


@contextmanager
def running_node(config: Path, log: Path | None = None) -> Iterator[RunningNode]:
    """Run a node for as long as the context lasts; at its end it must stop within a minute."""
    node = start_node(config, log)
    try:
        yield node
        node.process.terminate()
        assert node.process.wait(90) == 0, node.log[-5:]
    finally:
        node.process.kill()
        node.end()


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
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Run Orthanc with its DICOMweb plug-in, or skip where it is not installed."""
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    program = next(
        (path for path in map(Path, ("/usr/sbin/Orthanc", "/usr/bin/Orthanc")) if path.exists()), None
    )
    if program is None or not plugin.exists():
        pytest.skip("Orthanc is absent: apt-get install orthanc orthanc-dicomweb")
    folder.mkdir(parents=True, exist_ok=True)
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
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    orthanc = Orthanc(f"http://127.0.0.1:{http}", dicom)

    def responds() -> bool:
        assert process.poll() is None, (folder / "orthanc.log").read_text()[-500:]
        try:
            return bool(orthanc.get("/system"))
        except OSError:
            return False

    try:
        until(responds, 60)
        yield orthanc
    finally:
        process.terminate()
        process.wait(30)
