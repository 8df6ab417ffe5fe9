"""The node between real peers: storescu, and Orthanc as archive, as STOW-RS destination and as source."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

import pydicom
import pytest

from dicom_archives import running_orthanc
from dicom_modality import radiograph
from dicom_peers import RunningNode, free_port, running_node, until, write_config
from dicom_tools import errors_of, require_tools, run_tool, sr_tree, tool
from images import write_image
from log_scan import SCAN
from pneumoscope.model.bundle import default_bundle_path

pytestmark = pytest.mark.slow

SR, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"
STUDY = "1.2.826.0.1.3680043.10.5.1.{0}"
LONG = 240.0  # seconds, for a slow machine


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


# A real file of each transfer syntax, and the option that makes storescu offer it.
FILES = {
    "CR-MONO1-10-chest.dcm": "-xi", "RG3_UNC.dcm": "-xe", "RG2_JPLY.dcm": "-xx", "RG2_JPLL.dcm": "-xs",
    "RG3_JLSL.dcm": "-xt", "RG2_JLSN.dcm": "-xu", "RG3_J2KR.dcm": "-xv", "RG1_J2KI.dcm": "-xw",
    "RG3_RLE.dcm": "-xr",
}  # fmt: skip


def request(method: str, url: str, body: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=60) as response:
        response.read()


def jobs(orthanc, *states: str) -> list:
    return [one for one in orthanc.get("/jobs?expand") if one["State"] in states]


def received(node: RunningNode) -> float:
    """Return how many datasets the node has taken since its start."""
    return sum(value for name, value in node.metrics().items() if "received_total" in name)


def storescu(port: int, path: Path, option: str) -> None:
    node = ["-aec", "PNEUMOSCOPE", "-R", option, "127.0.0.1", str(port)]
    subprocess.run([str(tool("storescu")), *node, str(path)], check=True, timeout=60)


def test_real_images_by_storescu(tmp_path, orthanc, dicom_files):
    """Of each transfer syntax one: their results are in their study in the archive, once, and valid."""
    require_tools("storescu", "dciodvfy", "dsrdump")
    files = [path for path in dicom_files if path.name in FILES]
    assert len(files) == len(FILES)
    headers = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in files]
    patients = {str(one.StudyInstanceUID): one for one in headers}
    destination = {"name": "orthanc", "aet": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port}
    config = write_config(tmp_path, default_bundle_path(), mode="live", destinations=[destination])
    for one in headers:
        SCAN.sent(one)
    with running_node(config) as node:
        for path in files:
            storescu(node.port, path, FILES[path.name])
        until(lambda: node.status().instances == {"reported": len(files)}, LONG)
        until(lambda: set(node.status().deliveries["orthanc"]) == {"sent"}, LONG)
    reported = []
    for study, source in patients.items():
        for one in orthanc.files(study):
            assert one.SOPClassUID in {SR, SC}
            assert (one.PatientID, one.PatientName) == (source.get("PatientID", ""), source.PatientName)
            copy = tmp_path / f"{one.SOPInstanceUID}.dcm"
            one.save_as(copy)
            assert errors_of(copy) == set()
            if one.SOPClassUID == SC:
                reported.append(str(one.SourceImageSequence[0].ReferencedSOPInstanceUID))
                continue
            tree = "\n".join(sr_tree(copy))
            assert ("Pneumonia" in tree) or ("rejected" in tree.lower())
    assert sorted(reported) == sorted(str(one.SOPInstanceUID) for one in headers)


def test_the_node_responds_to_echoscu(tmp_path):
    require_tools("echoscu")
    with running_node(write_config(tmp_path, default_bundle_path())) as node:
        called = ["-aec", "PNEUMOSCOPE", "127.0.0.1", str(node.port)]
        run_tool("echoscu", *called)
        assert "Rejected" in run_tool("echoscu", "-aec", "OTHER", *called[2:], check=False)


def test_dicomweb_in_and_out(tmp_path, orthanc):
    """Images that the archive has are fetched (WADO-RS), and their results stored there (STOW-RS).

    Two of one study are reported together.
    """
    require_tools("storescu")
    today = f"{datetime.datetime.now().astimezone():%Y%m%d}"
    for number, study in ((31, 31), (32, 32), (33, 32)):
        orthanc.upload(radiograph(number, study=study, StudyDate=today))
    url = f"{orthanc.url}/dicom-web"
    config = write_config(
        tmp_path,
        default_bundle_path(),
        mode="live",
        destinations=[{"name": "web", "kind": "dicomweb", "url": url}],
        pull=[{"name": "ARCHIVE", "url": url, "modalities": ["DX"], "every_seconds": 1}],
        rules=[{"calling_aet": ["ARCHIVE"], "priority": "high"}],
        process={"longest_open_seconds": 3600},
    )
    with running_node(config) as node:
        until(lambda: node.status().deliveries == {"web": {"sent": 5}}, LONG)
        assert node.status().instances == {"reported": 3}
        assert node.command("echo").out == "web: responds\n"
    for number, images in ((31, 1), (32, 2)):
        classes = sorted(str(one.SOPClassUID) for one in orthanc.files(STUDY.format(number)))
        assert classes == sorted([SR, *[SC, "1.2.840.10008.5.1.4.1.1.1.1"] * images])


def test_the_script_of_orthanc_forwards_x_rays_and_no_results(tmp_path):
    """`deploy/container/forward.lua`: and the node sees each image once, two of a study together."""
    script = Path(__file__).parents[3] / "deploy" / "container" / "forward.lua"
    film = {"SOPClassUID": SC, "Modality": "RG", "ConversionType": "DF"}
    capture = {
        "SOPClassUID": SC,
        "Modality": "OT",
        "ConversionType": "WSD",
        "SeriesInstanceUID": STUDY.format(51) + ".9",
    }
    images = [radiograph(51, study=51), radiograph(52, study=51), radiograph(53, study=51, **film)]
    with running_orthanc(tmp_path / "orthanc", LuaScripts=[str(script)]) as orthanc:

        def node_with(**process: float) -> AbstractContextManager[RunningNode]:
            archive = {"name": "orthanc", "aet": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port}
            settings = {"mode": "live", "destinations": [archive], "listen": {"port": port}}
            config = write_config(tmp_path, default_bundle_path(), process=process, **settings)
            return running_node(config)

        port = free_port()
        known = json.dumps({"AET": "PNEUMOSCOPE", "Host": "127.0.0.1", "Port": port}).encode()
        request("PUT", f"{orthanc.url}/modalities/pneumoscope", known)
        # However long the archive takes from one image to the next, the study is not complete meanwhile.
        with node_with(quiet_seconds=3600, longest_open_seconds=3600) as node:
            for one in (radiograph(54, study=51, **capture), *images):
                orthanc.upload(one)
            until(lambda: node.status().instances == {"predicted": 3}, LONG)
            until(lambda: not jobs(orthanc, "Pending", "Running"), LONG)
            assert received(node) == 3
            assert node.status().results == {}
        with node_with(quiet_seconds=0.1) as node:
            until(lambda: node.status().instances == {"reported": 3}, LONG)
            until(lambda: set(node.status().deliveries["orthanc"]) == {"sent"}, LONG)
            classes = {str(one.SOPClassUID) for one in orthanc.files(STUDY.format(51))}
            assert classes == {SR, SC, "1.2.840.10008.5.1.4.1.1.1.1"}
            until(lambda: not jobs(orthanc, "Pending", "Running"), LONG)
            assert received(node) == 0, "the archive sends no result back"
            assert node.status().results == {"built": 1}
            # By hand, as docs/how-to/containers.md has it; the node takes no results.
            (image,) = orthanc.find("Instance", SOPInstanceUID=STUDY.format(51) + ".51")
            store = f"{orthanc.url}/modalities/pneumoscope/store"
            request("POST", store, image["ID"].encode())
            request("POST", store, image["ParentSeries"].encode())
            assert node.status().instances == {"reported": 3}
            (study,) = orthanc.find("Study", StudyInstanceUID=STUDY.format(51))
            with pytest.raises(urllib.error.HTTPError, match="500"):
                request("POST", store, study["ID"].encode())


def test_the_demonstration(tmp_path, monkeypatch):
    """`make node-demo`, with two images, where storescu on the path is another program.

    In a virtual environment it is one of pynetdicom.
    """
    require_tools("storescu")
    for number in range(2):
        write_image(tmp_path / f"{number}.png", number)
    other = tmp_path / "bin" / "storescu"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\nexit 7\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}{os.pathsep}{os.environ['PATH']}")
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
