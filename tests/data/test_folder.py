"""Whose image it is, where files lie in class folders."""

from __future__ import annotations

from dicom_files import dicom, ramp
from pneumoscope.data.folder import load


def test_images_whose_headers_name_one_patient_are_one_patients(tmp_path):
    for name, patient in (("a.dcm", "X1"), ("b.dcm", "X2"), ("c.dcm", "X1"), ("d.dcm", None)):
        path = tmp_path / ("normal" if name < "c" else "pneumonia") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dicom(ramp(), PatientID=patient))
    found = {record.path: record.patient_id for record in load(tmp_path).records}
    assert found == {
        "normal/a.dcm": "normal/a.dcm",
        "normal/b.dcm": "normal/b.dcm",
        "pneumonia/c.dcm": "normal/a.dcm",
        "pneumonia/d.dcm": "pneumonia/d.dcm",
    }


def test_a_folder_for_each_patient_comes_before_the_header(tmp_path):
    for place in ("normal/p1/a.dcm", "normal/p2/b.dcm"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(dicom(ramp(), PatientID="anonymous"))
    assert [record.patient_id for record in load(tmp_path).records] == ["p1", "p2"]
