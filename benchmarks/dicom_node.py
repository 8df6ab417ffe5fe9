"""The DICOM node under load: images a minute over four associations; seconds to a result when idle.

::

    python benchmarks/dicom_node.py FOLDER [--images 200] [--idle 20]

FOLDER has X-rays (JPEG or PNG), which are sent as DX images, each a study of its own. Orthanc is the archive.
The images a minute are those from the first C-STORE to the last result in Orthanc.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dicom_archives import Orthanc, running_orthanc
from dicom_modality import radiograph, send
from dicom_peers import running_node, until, write_config
from pneumoscope.model.bundle import default_bundle_path
from pneumoscope.parallel import available_cpus

SR = "1.2.840.10008.5.1.4.1.1.88.34"
ROOT = "1.2.826.0.1.3680043.10.5.1"


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--idle", type=int, default=20)
    parser.add_argument("--associations", type=int, default=4)
    options = parser.parse_args()
    files = sorted(
        path for path in options.folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"}
    )
    if not files:
        parser.error(f"{options.folder}: no JPEG or PNG image in this folder")
    if options.idle < 2:
        parser.error("--idle: 2 or more, the first of which is not counted")
    count = options.images + options.idle
    images = [as_dx(files[number % len(files)], number) for number in range(count)]
    with tempfile.TemporaryDirectory() as name, running_orthanc(Path(name) / "orthanc") as orthanc:
        destination = {"name": "orthanc", "aet": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port}
        config = write_config(
            Path(name),
            default_bundle_path(),
            mode="live",
            destinations=[destination],
            process={"workers": available_cpus(), "quiet_seconds": 0.5},
        )
        with running_node(config) as node:
            send(node.port, images[:1])
            until(lambda: reports(orthanc) == 1)
            waits = []
            for number in range(1, options.idle):
                send(node.port, [images[number]])
                began = time.monotonic()
                until(lambda number=number: reports(orthanc) == number + 1, every=0.02)
                waits.append(time.monotonic() - began)
            before, rest = options.idle, images[options.idle :]
            began = time.monotonic()
            parts = [rest[first :: options.associations] for first in range(options.associations)]
            threads = [threading.Thread(target=send, args=(node.port, part)) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            received = time.monotonic() - began
            until(lambda: reports(orthanc) == before + len(rest), 3600, every=0.2)
            seconds = time.monotonic() - began
    result = {
        "cpus": available_cpus(),
        "images": len(rest),
        "associations": options.associations,
        "received_per_minute": round(60 * len(rest) / received),
        "reported_per_minute": round(60 * len(rest) / seconds),
        "idle_median_seconds": round(statistics.median(waits), 2),
        "idle_largest_seconds": round(max(waits), 2),
    }
    print(json.dumps(result))
    return 0


def as_dx(path: Path, number: int) -> bytes:
    """Return an image as a DX object."""
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    one = pydicom.dcmread(io.BytesIO(radiograph(number)))
    one.Rows, one.Columns = grey.shape
    one.PixelData = (grey.astype(np.uint16) << 4).tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, one, enforce_file_format=True)
    return buffer.getvalue()


def reports(orthanc: Orthanc) -> int:
    """Return how many reports Orthanc has."""
    return len(orthanc.find("Instance", SOPClassUID=SR))


if __name__ == "__main__":
    sys.exit(main())
