"""The whole round on one machine: Orthanc as the archive, the node, ten X-rays, results listed with links.

Run by ``make node-demo``. Orthanc stays up until Enter is pressed if this runs in a terminal.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import pydicom
import yaml
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
DX = "1.2.840.10008.5.1.4.1.1.1.1"
SECONDS = 60.0


def main() -> int:
    """Run the demonstration; return 0 if every image has a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder with X-rays (JPEG or PNG)")
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    missing = [name for name in ("Orthanc", "storescu") if not _program(name)]
    if missing:
        print(f"error: {', '.join(missing)} not found; apt-get install orthanc orthanc-dicomweb dcmtk")
        return 4
    files = sorted(
        path for path in options.images.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"}
    )
    if not files:
        print(f"error: {options.images}: no JPEG or PNG in this folder")
        return 4
    chosen = random.Random(0).sample(files, min(options.count, len(files)))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pneumoscope-node-") as name:
        return _round(Path(name), chosen, began)


def _round(folder: Path, files: list[Path], began: float) -> int:
    ports = {name: _free_port() for name in ("http", "dicom", "node")}
    print(f"Sending {len(files)} X-rays as DX images, each a study of its own")
    studies = [_wrap(path, folder / f"{number}.dcm", number) for number, path in enumerate(files, start=1)]
    orthanc = _start_orthanc(folder, ports)
    node = _start_node(folder, ports)
    url = f"http://127.0.0.1:{ports['http']}"
    try:
        _wait(lambda: _get(f"{url}/system"), "Orthanc")
        _wait(lambda: _listens(ports["node"]), "the node")
        print(f"Orthanc {_get(url + '/system')['Version']} and the node are up ({_since(began)})")
        subprocess.run(
            [
                str(_program("storescu")),
                "-aec",
                "PNEUMOSCOPE",
                "127.0.0.1",
                str(ports["node"]),
                *sorted(folder.glob("*.dcm")),
            ],
            check=True,
        )
        sent = time.monotonic()
        _wait(lambda: len(_results(url, studies)) == len(studies), "results")
        print(
            f"All results are in the archive, {time.monotonic() - sent:.1f} s after the last image was sent\n"
        )
        for study, captures in sorted(
            _results(url, studies).items(), key=lambda item: studies.index(item[0])
        ):
            print(f"{files[studies.index(study)].name}: {_text(url, captures[0])}")
            print(f"  {url}/instances/{captures[0]}/preview")
        print(f"\nAll studies: {url}/app/explorer.html   (done in {_since(began)})")
        if sys.stdin.isatty():
            input("Press Enter to stop Orthanc and the node ")
        return 0
    finally:
        for process in (node, orthanc):
            process.terminate()
            process.wait(60)


def _wrap(path: Path, target: Path, number: int) -> str:
    """Write an image as a DX object of a made-up patient; return its Study Instance UID."""
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    one = Dataset()
    one.SpecificCharacterSet = "ISO_IR 100"
    one.SOPClassUID, one.SOPInstanceUID = DX, generate_uid()
    one.StudyInstanceUID, one.SeriesInstanceUID = generate_uid(), generate_uid()
    one.StudyDate, one.StudyTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S")
    one.AccessionNumber, one.StudyID = f"DEMO{number}", str(number)
    one.PatientName, one.PatientID = f"Demo^Patient {number}", f"DEMO-{number}"
    one.PatientBirthDate = one.PatientSex = one.ReferringPhysicianName = ""
    one.Modality, one.BodyPartExamined, one.ViewPosition = "DX", "CHEST", "AP"
    one.SeriesNumber = one.InstanceNumber = 1
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = grey.shape
    one.BitsAllocated = one.BitsStored = 8
    one.HighBit, one.PixelRepresentation = 7, 0
    one.PixelData = grey.tobytes() + b"\0" * (grey.size % 2)
    one["PixelData"].VR = "OB"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(target, one, enforce_file_format=True)
    return str(one.StudyInstanceUID)


def _start_orthanc(folder: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    settings = {
        "Name": "Demonstration archive",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": ports["http"],
        "DicomPort": ports["dicom"],
        "DicomAlwaysAllowFind": True,
        "RemoteAccessAllowed": False,
        "OverwriteInstances": False,
        "Plugins": [str(PLUGIN)] if PLUGIN.exists() else [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        return subprocess.Popen(
            [str(_program("Orthanc")), str(folder / "orthanc.json")], stdout=log, stderr=log
        )


def _start_node(folder: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    settings = {
        "folder": str(folder / "node"),
        "mode": "live",
        "listen": {"port": ports["node"]},
        "metrics": {"port": None},
        "destinations": [
            {"name": "archive", "aet": "ORTHANC", "host": "127.0.0.1", "port": ports["dicom"]},
        ],
        "limits": {"min_free_mb": 0},
        "log_level": "warning",
    }
    (folder / "node.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "pneumoscope", "dicom", "serve", "--config", str(folder / "node.yaml")]
    return subprocess.Popen(command)


def _results(url: str, studies: list[str]) -> dict[str, list[str]]:
    """Return the Secondary Captures and reports of each study that has both."""
    found: dict[str, list[str]] = {}
    for study in studies:
        captures, reports = (
            _find(url, {"StudyInstanceUID": study, "SOPClassUID": sop_class})
            for sop_class in ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.34")
        )
        if captures and reports:
            found[study] = captures
    return found


def _text(url: str, instance: str) -> str:
    tags = _get(f"{url}/instances/{instance}/simplified-tags")
    return str(tags.get("DerivationDescription") or tags.get("ImageComments") or "")


def _find(url: str, query: dict[str, str]) -> list[str]:
    body = json.dumps({"Level": "Instance", "Query": query}).encode()
    with urllib.request.urlopen(f"{url}/tools/find", body, timeout=10) as response:
        found: list[str] = json.loads(response.read())
    return found


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.loads(response.read())


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition: Any, what: str) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"error: no {what} within {SECONDS:g} s")


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str | None:
    return shutil.which(name, path="/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin")


if __name__ == "__main__":
    sys.exit(main())
