"""The node between real peers: storescu, and Orthanc as archive, as STOW-RS destination and as source."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from dicom_peers import radiograph, running_node, running_orthanc, until, write_config
from dicom_tools import errors_of, require_tools, sr_tree, tool
from images import write_image
from pneumoscope.model.bundle import default_bundle_path

pytestmark = pytest.mark.slow

SR, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"
STUDY = "1.2.826.0.1.3680043.10.5.1.{0}"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


def test_real_images_by_storescu(tmp_path, orthanc, dicom_files):
    """A chest, a hip and an extremity: their results are in their study in the archive, and valid."""
    require_tools("storescu", "dciodvfy", "dsrdump")
    names = {"RG1_J2KI.dcm": "-xw", "RG2_JPLL.dcm": "-xs", "RG3_JLSL.dcm": "-xt"}
    files = [path for path in dicom_files if path.name in names]
    destination = {"name": "orthanc", "aet": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port}
    config = write_config(tmp_path, default_bundle_path(), mode="live", destinations=[destination])
    with running_node(config) as node:
        for path in files:
            command = [
                str(tool("storescu")),
                "-aec",
                "PNEUMOSCOPE",
                "-R",
                names[path.name],
                "127.0.0.1",
                str(node.port),
            ]
            subprocess.run([*command, str(path)], check=True, timeout=60)
        until(lambda: node.status().deliveries == {"orthanc": {"sent": 6}})
    for path in files:
        source = pydicom.dcmread(path, stop_before_pixels=True)
        stored = {str(one.SOPClassUID): one for one in orthanc.files(str(source.StudyInstanceUID))}
        assert set(stored) == {SR, SC}
        for one in stored.values():
            assert one.PatientID == source.PatientID
            assert str(one.PatientName) == str(source.PatientName)
            copy = tmp_path / f"{one.SOPInstanceUID}.dcm"
            one.save_as(copy)
            assert errors_of(copy) == set()
        tree = "\n".join(sr_tree(tmp_path / f"{stored[SR].SOPInstanceUID}.dcm"))
        assert ("Pneumonia" in tree) or ("rejected" in tree.lower())


def test_dicomweb_in_and_out(tmp_path, orthanc):
    """Images that the archive has are fetched (WADO-RS), and their results stored there (STOW-RS)."""
    require_tools("storescu")
    today = f"{datetime.datetime.now().astimezone():%Y%m%d}"
    for number in (31, 32):
        orthanc.upload(radiograph(number, StudyDate=today))
    url = f"{orthanc.url}/dicom-web"
    config = write_config(
        tmp_path,
        default_bundle_path(),
        mode="live",
        destinations=[{"name": "web", "kind": "dicomweb", "url": url}],
        pull=[{"name": "ARCHIVE", "url": url, "modalities": ["DX"], "every_seconds": 1}],
        rules=[{"calling_aet": ["ARCHIVE"], "priority": "high"}],
    )
    with running_node(config) as node:
        until(lambda: node.status().deliveries == {"web": {"sent": 4}})
        assert node.status().instances == {"reported": 2}
        assert node.command("echo").out == "web: responds\n"
    for number in (31, 32):
        classes = sorted(str(one.SOPClassUID) for one in orthanc.files(STUDY.format(number)))
        assert classes == sorted([SR, SC, "1.2.840.10008.5.1.4.1.1.1.1"])


def test_the_demonstration(tmp_path):
    """`make node-demo`, with two images."""
    require_tools("storescu")
    for number in range(2):
        write_image(tmp_path / f"{number}.png", number)
    script = Path(__file__).parents[3] / "deploy" / "node_demo.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("/preview") == 2
    assert "All results are in the archive" in done.stdout
