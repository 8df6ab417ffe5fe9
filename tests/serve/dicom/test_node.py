"""The node from end to end: images in, results at an archive, and what its operator can do."""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest

from dicom_archives import Archive
from dicom_modality import SECRETS, radiograph, send
from dicom_peers import running_node, until, write_config
from log_scan import SCAN

SR = "1.2.840.10008.5.1.4.1.1.88.34"
SC = "1.2.840.10008.5.1.4.1.1.7"
KOS = "1.2.840.10008.5.1.4.1.1.88.59"


def config_of(folder: Path, tiny, archive: Archive, **settings) -> Path:
    live = {"mode": "live", "destinations": [archive.destination()]}
    return write_config(folder, tiny.path, **(live | settings))


@pytest.fixture
def archive():
    with Archive() as archive:
        yield archive


@pytest.fixture(scope="module")
def system(tmp_path_factory, tiny):
    """A node and its archive, shared: each test sends images of its own."""
    folder = tmp_path_factory.mktemp("node")
    with (
        Archive() as archive,
        running_node(config_of(folder, tiny, archive, log_level="debug"), folder / "log") as node,
    ):
        yield node, archive


def reported(archive: Archive, study: int, sop_class: str = "") -> list:
    """Return what the archive has of a study of `radiograph`."""
    objects = list(archive.stored.values())
    return [
        one
        for one in objects
        if one.StudyInstanceUID.endswith(f".1.{study}") and one.SOPClassUID.startswith(sop_class)
    ]


WITHOUT_LOCKS = """
import sys

sys.modules["fcntl"] = None
from pneumoscope.cli import main

main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["serve", "rebuild"])
def test_a_system_without_locks_is_named(tmp_path, tiny, command):
    """Windows has no fcntl."""
    words = ["dicom", command, "--config", str(write_config(tmp_path, tiny.path))]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("error: the DICOM node runs on Linux and macOS")
    assert "Traceback" not in done.stderr


def test_images_become_results_in_their_study(system):
    """Two images of one study, one of another, and one of them once more."""
    node, archive = system
    before = node.metrics()
    images = [radiograph(101, study=1), radiograph(102, study=1), radiograph(103, study=3)]
    assert send(node.port, images) == [0, 0, 0]
    until(lambda: len(reported(archive, 1)) == 3 and len(reported(archive, 3)) == 2)
    assert send(node.port, images[:1]) == [0]
    time.sleep(0.5)
    assert len(reported(archive, 1, SR)) == 1
    assert len(reported(archive, 1, SC)) == 2
    assert set(archive.attempts.values()) == {1}
    sources = archive.sources()
    assert [sources[f"1.2.826.0.1.3680043.10.5.1.{one}"] for one in ("1.101", "1.102", "3.103")] == [1] * 3
    for one in reported(archive, 1):
        assert str(one.PatientName) == "Zauberbaum^Ottokar"
        assert one.AccessionNumber == "ACC-1"
    metrics = node.metrics()

    def more(name: str) -> float:
        return metrics[f"pneumoscope_node_{name}"] - before.get(f"pneumoscope_node_{name}", 0)

    assert more('received_total{how="new",via="store"}') == 3
    assert more('received_total{how="duplicate",via="store"}') == 1
    assert more("study_seconds_count") == 2
    assert metrics["pneumoscope_node_queue_length"] == 0
    assert metrics["pneumoscope_node_disk_free_bytes"] > 0


def test_every_metric_of_an_alert_is_exported(system):
    """By a node that runs, not only by its parts."""
    node, _ = system
    exported = {name.split("{")[0] for name in node.metrics()}
    alerts = (Path(__file__).parents[3] / "deploy" / "alerts.yaml").read_text()
    named = set(re.findall(r"pneumoscope_node_\w+", alerts))
    assert len(named) >= 8
    assert named <= exported


def test_two_patients_under_one_study_have_results_of_their_own(system):
    """And an image without a series, which no result can be filed with, holds up neither."""
    node, archive = system
    same = {"study": 41}
    images = [
        radiograph(42, **same),
        radiograph(43, **same, PatientID="PID-78-4711"),
        radiograph(44, **same, SeriesInstanceUID=None),
    ]
    assert send(node.port, images) == [0, 0, 0]
    reports = until(lambda: len(reported(archive, 41)) == 4 and reported(archive, 41, SR))
    found = {}
    for one in reports:
        (source,) = (
            one.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
        )
        found[one.PatientID] = source.ReferencedSOPInstanceUID[-2:]
    assert found == {"PID-77-4711": "42", "PID-78-4711": "43"}
    until(lambda: node.status().instances.get("unreportable") == 1)


def test_another_image_under_a_known_uid_is_kept_apart(system):
    node, archive = system
    assert send(node.port, [radiograph(5), radiograph(5, seed=6)]) == [0, 0]
    until(lambda: len(reported(archive, 5)) == 2)
    done = node.command("status", "--json")
    (conflict,) = json.loads(done.out)["conflicts"]
    assert done.code == 3, "it needs a person"
    assert (node.folder / conflict["file"]).is_file()


def test_a_retracted_result_is_taken_back_and_made_again(system):
    node, archive = system
    send(node.port, [radiograph(7)])
    before = until(lambda: len(reported(archive, 7)) == 2 and reported(archive, 7))
    uids = {str(one.SOPInstanceUID) for one in before}
    done = node.command("retract", str(before[0].StudyInstanceUID), "--reason", "wrong side", "--again")
    assert done == (0, "1 result retracted\n", "")
    until(lambda: len(reported(archive, 7, KOS)) == 1 and len(reported(archive, 7, SR)) == 2)
    text = str(reported(archive, 7, KOS)[0])
    assert all(uid in text for uid in uids)
    assert node.command("retract", "1.2.3", "--reason", "x").code == 4
    assert set(archive.attempts.values()) == {1}


def test_a_second_node_does_not_start_on_the_same_folder(system):
    node, _ = system
    second = node.command("serve")
    assert second.code == 4
    assert "another node uses this folder" in second.err
    assert len(second.err.splitlines()) == 1
    assert node.command("rebuild").code == 4


def test_no_attribute_of_the_patient_in_any_log(system, tmp_path):
    """Odd images as well: libraries quote what they cannot read."""
    node, _ = system
    odd = [
        radiograph(12, PatientBirthDate="12.06.1943"),
        radiograph(13, Rows=9),
        radiograph(14, PatientAge="Zauberbaum"),
        radiograph(15, SpecificCharacterSet="ISO_IR 999"),
    ]
    assert send(node.port, odd) == [0] * 4
    until(lambda: node.metrics()["pneumoscope_node_queue_length"] == 0)
    until(lambda: node.metrics()["pneumoscope_node_unsent_oldest_seconds"] == 0)
    log = "".join(node.log)
    assert "accepted" in log
    assert set(node.log) <= set(SCAN.lines), "what nodes log is scanned"
    texts = [log, node.command("audit").out, node.command("status").out, node.command("status", "--json").out]
    node.command("export", "--out", str(tmp_path / "out"))
    texts.append((tmp_path / "out" / "images.csv").read_text())
    texts.append(node.command("report", "--month", time.strftime("%Y-%m")).out)
    for text in texts:
        assert text
        assert not [secret for secret in SECRETS if secret in text]


def check_export(out: Path, study: str) -> None:
    """Every exported file is in one of the tables, with its UID, and each result names its images."""
    images, objects = (table(out / name) for name in ("images.csv", "objects.csv"))
    uids = [f"{study}.21", f"{study}.23"]
    assert [one["sop_instance"] for one in images] == uids
    for one in images:
        assert pydicom.dcmread(out / one["file"]).SOPInstanceUID == one["sop_instance"]
        received = datetime.datetime.fromisoformat(one["received"])
        assert received.utcoffset() == datetime.timedelta(0)
        assert 0 < time.time() - received.timestamp() < 600
    sources = {SC: [], SR: []}
    for one in objects:
        dataset = pydicom.dcmread(out / one["file"])
        assert (dataset.SOPInstanceUID, dataset.SOPClassUID) == (one["sop_instance"], one["sop_class"])
        assert dataset.StudyInstanceUID == one["study_uid"] == study
        sources[one["sop_class"]].append(one["source_images"])
    assert (sorted(sources[SC]), sources[SR]) == (uids, [" ".join(uids)])
    named = {one["file"] for one in [*images, *objects]}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.dcm")} == named
    assert {path.parent.name for path in out.rglob("*.dcm")} == {"images", "results"}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_report_export_purge_and_audit(system, tmp_path):
    """The last test with this node: it removes everything."""
    node, archive = system
    send(node.port, [radiograph(21), radiograph(23, study=21), radiograph(22, Modality="CT")])
    until(lambda: len(reported(archive, 21)) == 3 and len(reported(archive, 22)) == 2)
    until(lambda: not {"pending", "sending"} & set(node.status().deliveries["pacs"]))
    assert not node.status().dead
    month = time.strftime("%Y-%m")
    report = json.loads(node.command("report", "--month", month, "--json").out)
    assert report["images"] == sum(node.status().instances.values())
    assert report["reasons"]["not_a_chest_radiograph"] >= 1
    study = "1.2.826.0.1.3680043.10.5.1.21"
    out = tmp_path / "out"
    exported = node.command("export", "--out", str(out), "--study", study, "--images", "--json")
    assert json.loads(exported.out) == {
        "images": 2, "table": str(out / "images.csv"), "objects_table": str(out / "objects.csv")
    }  # fmt: skip
    check_export(out, study)
    assert node.command("purge", "--older-than", "1h").out.startswith("0 images")
    assert node.command("purge", "--older-than", "soon").code == 2
    time.sleep(1.1)
    removed = json.loads(node.command("purge", "--older-than", "0h", "--json").out)
    assert removed["images"]
    assert removed["bytes"] > removed["objects"] > removed["images"]
    assert not list((node.folder / "results").rglob("*.dcm"))
    assert not list((node.folder / "images").rglob("*.dcm"))
    node.command("export", "--out", str(tmp_path / "after"), "--images", "--study", study)
    left = [*table(tmp_path / "after" / "images.csv"), *table(tmp_path / "after" / "objects.csv")]
    assert [one["file"] for one in left] == [""] * 5
    assert left[-1]["source_images"] == f"{study}.21 {study}.23"
    again = send(node.port, [radiograph(21)])
    time.sleep(0.5)
    assert again == [0], "what was processed and purged is accepted, and not reported twice"
    assert set(archive.attempts.values()) == {1}
    log = [json.loads(line) for line in node.command("audit").out.splitlines()]
    events = [one["event"] for one in log]
    assert events[0] == "started"
    assert {"received", "predicted", "built", "sent", "purged"} <= set(events)
    checked = node.command("audit", "--verify", "--head", log[3]["hash"], "--json")
    assert checked.code == 0
    assert json.loads(checked.out) == {"entries": len(log), "head": log[-1]["hash"], "fault": ""}
    assert node.command("audit", "--head", "0" * 63 + "1").code == 4


def test_shadow_sends_nothing_until_it_is_told(tmp_path, tiny, archive):
    shadow = config_of(tmp_path, tiny, archive, mode="shadow")
    with running_node(shadow) as node:
        assert send(node.port, [radiograph(1)]) == [0]
        until(lambda: node.status().instances == {"reported": 1})
        assert node.status().deliveries == {"pacs": {"held": 2}}
        running = node.status().running
        assert (running.mode, running.ready) == ("shadow", True)
        assert node.command("retry", "--held").code == 2
    assert not archive.stored
    stray = node.folder / "results" / "ab" / "stray.dcm"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"of a process that was killed")
    os.utime(stray, (time.time() - 3700,) * 2)
    live = config_of(tmp_path, tiny, archive)
    with running_node(live) as node:
        assert not stray.exists()
        assert node.events("starting")[0]["swept"] == 1
        time.sleep(1)
        assert not archive.stored, "a switch to live sends new results only"
        assert node.command("status").out.splitlines()[0].endswith("(mode live)")
        assert node.command("retry", "--held").out == "2 held\n"
        until(lambda: len(archive.stored) == 2)


def test_a_stop_finishes_what_is_in_hand(tmp_path, tiny, archive, monkeypatch):
    """And systemd is told of start, life and stop (sd_notify)."""
    archive.delay = 0.2
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "notify"))
    notices.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with running_node(config_of(tmp_path, tiny, archive)) as node:
        assert notices.recv(100) == b"READY=1"
        assert notices.recv(100) == b"WATCHDOG=1"
        assert send(node.port, [radiograph(number) for number in range(5)]) == [0] * 5
        until(lambda: archive.stored)
    notices.settimeout(0.1)
    with suppress(TimeoutError):
        while (last := notices.recv(100)) == b"WATCHDOG=1":
            pass
    assert last == b"STOPPING=1"
    notices.close()
    monkeypatch.delenv("NOTIFY_SOCKET")
    left = node.status()
    assert left.running is None
    assert sum(left.instances.values()) == 5
    assert set(left.deliveries["pacs"]) == {"sent"}, "what was built was sent as well"
    with running_node(node.config):
        until(lambda: len(archive.stored) == 10)
    assert set(archive.attempts.values()) == {1}
