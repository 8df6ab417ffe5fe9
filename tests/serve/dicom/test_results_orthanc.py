"""Results in a real archive: images go into Orthanc by storescu, results are filed in their studies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicom_archives import Orthanc, running_orthanc
from dicom_tools import errors_of, require_tools, run_tool
from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.serve.dicom.config import DestinationConfig
from pneumoscope.serve.dicom.contracts import Outcome, PublishedObject, ResultOptions, SourceImage
from pneumoscope.serve.dicom.header import encode
from pneumoscope.serve.dicom.results import build_results
from pneumoscope.serve.dicom.retraction import build_retraction
from pneumoscope.serve.dicom.senders import open_sender
from results_of_studies import MADE, as_file, header, predicted, rejected, source, study

STORESCU = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}
"""Options of storescu that propose a transfer syntax."""


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def destination(orthanc: Orthanc, kind: str) -> DestinationConfig:
    if kind == "dicom":
        return DestinationConfig(name="orthanc", aet="ORTHANC", host="127.0.0.1", port=orthanc.port)
    return DestinationConfig(name="orthanc", kind="dicomweb", url=f"{orthanc.url}/dicom-web")


def published(folder: Path, objects) -> list[PublishedObject]:
    """Write objects as the node does before it sends them."""
    folder.mkdir(exist_ok=True)
    found = []
    with lenient_pydicom():
        for one in objects:
            path = folder / f"{one.SOPInstanceUID}.dcm"
            path.write_bytes(encode(one))
            uids = (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPClassUID, one.SOPInstanceUID)
            found.append(PublishedObject(path, *map(str, uids)))
    return found


def store(orthanc: Orthanc, path: Path, syntax: str) -> None:
    run_tool("storescu", STORESCU[syntax], "-aec", "ORTHANC", "127.0.0.1", str(orthanc.port), path)


def test_results_are_filed_with_images_of_every_transfer_syntax(orthanc, tiny, dicom_files, tmp_path):
    require_tools("storescu")
    syntaxes: dict[str, Path] = {}
    for path in dicom_files:
        with lenient_pydicom():
            meta = pydicom.dcmread(path, stop_before_pixels=True, force=True).file_meta
        syntaxes.setdefault(str(meta.get("TransferSyntaxUID", "")), path)
    syntaxes.pop("", None)  # one has no file meta information, which storescu needs
    assert set(syntaxes) == set(STORESCU) - {"1.2.840.10008.1.2"}
    results, expected = [], {}
    for syntax, path in syntaxes.items():
        store(orthanc, path, syntax)
        with lenient_pydicom():
            read = pydicom.dcmread(path, stop_before_pixels=True)
            uid, sop_class, study_uid = (
                str(read[name].value) for name in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID")
            )
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        image = SourceImage(path, sop_class, uid, sha256, rejected(), height=10, width=10)
        made = build_results(study(tiny, image, study_uid=study_uid), ResultOptions())
        results += published(tmp_path / "out", made)
        expected[uid] = (study_uid, [str(one.SOPInstanceUID) for one in made])
    with open_sender(destination(orthanc, "dicom"), "PNEUMOSCOPE") as sender:
        assert {one.outcome for one in sender.send(results)} == {Outcome.SENT}
    for uid, (study_uid, made_uids) in expected.items():
        (parent,) = orthanc.find("Study", StudyInstanceUID=study_uid)
        inside = {
            orthanc.get(f"/instances/{one['ID']}")["MainDicomTags"]["SOPInstanceUID"]
            for one in orthanc.get(f"/studies/{parent['ID']}/instances")
        }
        assert {uid, *made_uids} <= inside


@pytest.mark.parametrize("kind", ["dicom", "dicomweb"])
def test_objects_come_back_as_they_were_sent(orthanc, tiny, tmp_path, kind):
    uid = f"1.2.826.0.1.3680043.10.7.{len(kind)}"
    patient = {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        "PatientName": "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce",
    }
    head = header(StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.1", SOPInstanceUID=f"{uid}.1.1", **patient)
    orthanc.upload(as_file(head))
    objects = published(
        tmp_path / "out",
        build_results(
            study(tiny, source(tmp_path, head, predicted())), ResultOptions(presentation_state=True)
        ),
    )
    with open_sender(destination(orthanc, kind), "PNEUMOSCOPE") as sender:
        assert sender.echo() == ""
        assert sender.present(objects) == frozenset()
        assert [one.outcome for one in sender.send(objects)] == [Outcome.SENT] * 3
        assert sender.present(objects) == {one.sop_instance for one in objects}
        again = sender.send(objects)  # as after a crash before the outcome was journalled
        assert {one.outcome for one in again} <= {Outcome.SENT, Outcome.ALREADY_THERE}
    (parent,) = orthanc.find("Study", StudyInstanceUID=uid)
    assert len(parent["Series"]) == 4 and parent["PatientMainDicomTags"]["PatientID"] == "P-17"
    stored = {str(one.SOPInstanceUID): one for one in orthanc.files(uid)}
    assert len(stored) == 4, "a resend is no duplicate"
    for one in objects:
        original, found = pydicom.dcmread(one.path), stored[one.sop_instance]
        name = original.get_item("PatientName").value
        assert found.get_item("PatientName").value == name and b"\x1b$B" in name
        assert found == original
        path = tmp_path / "back.dcm"
        found.save_as(path)
        assert not errors_of(path)


def test_the_archive_shows_the_capture_in_its_colours(orthanc, tiny, tmp_path):
    uid = "1.2.826.0.1.3680043.10.7.9"
    head = header(StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.1", SOPInstanceUID=f"{uid}.1.1")
    options = ResultOptions(structured_report=False)
    objects = published(
        tmp_path / "out", build_results(study(tiny, source(tmp_path, head, predicted())), options)
    )
    with open_sender(destination(orthanc, "dicomweb"), "PNEUMOSCOPE") as sender:
        sender.send(objects)
    (instance,) = orthanc.find("Instance", SOPInstanceUID=objects[0].sop_instance)
    cv2 = pytest.importorskip("cv2")
    png = orthanc.get(f"/instances/{instance['ID']}/preview")
    shown = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert tuple(shown[0, 0]) == (92, 62, 24), "the banner, red, green, blue"
    assert shown.shape[:2] == (
        pydicom.dcmread(objects[0].path).Rows,
        pydicom.dcmread(objects[0].path).Columns,
    )


def test_a_retraction_is_filed_in_the_study(orthanc, tiny, tmp_path):
    uid = "1.2.826.0.1.3680043.10.7.10"
    head = header(StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.1", SOPInstanceUID=f"{uid}.1.1")
    objects = published(
        tmp_path / "out", build_results(study(tiny, source(tmp_path, head, predicted())), ResultOptions())
    )
    retraction = published(tmp_path / "out", build_retraction(objects, "Not confirmed.", MADE))
    with open_sender(destination(orthanc, "dicom"), "PNEUMOSCOPE") as sender:
        assert {one.outcome for one in sender.send([*objects, *retraction])} == {Outcome.SENT}
    stored = orthanc.files(uid)
    assert sorted(one.Modality for one in stored) == ["KO", "OT", "OT", "SR"]
    selection = next(one for one in stored if one.Modality == "KO")
    assert selection.ConceptNameCodeSequence[0].CodeValue == "113001"
