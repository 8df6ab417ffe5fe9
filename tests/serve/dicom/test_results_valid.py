"""Objects made of real images, checked with dicom3tools' dciodvfy and DCMTK's dsrdump."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from dicom_tools import errors_of, require_tools, run_tool, sr_tree
from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.dicom.contracts import PublishedObject, ResultOptions, SourceImage
from pneumoscope.serve.dicom.header import encode
from pneumoscope.serve.dicom.results import build_results
from pneumoscope.serve.dicom.retraction import build_retraction
from results_of_studies import MADE, as_file, explained, header, predicted, rejected, source, study, wrap

ALL = ResultOptions(presentation_state=True)


def written(folder: Path, objects) -> list[Path]:
    """Write objects as files."""
    paths = []
    for number, one in enumerate(objects):
        paths.append(folder / f"{number}-{one.Modality}.dcm")
        paths[-1].write_bytes(encode(one))
    return paths


def real(predictor: Predictor, path: Path) -> SourceImage:
    """Return a real image with the prediction of the shipped bundle."""
    with lenient_pydicom():
        read = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        uids = str(read.SOPClassUID), str(read.SOPInstanceUID)
    result, fields = explained(predictor, path)
    return SourceImage(
        path, *uids, hashlib.sha256(path.read_bytes()).hexdigest(), result.prediction, **fields
    )


def values(errors: set[str]) -> set[str]:
    """Return the wrong values that errors quote."""
    return {value for line in errors for value in re.findall(r'[<"]([^<>"]+)[>"]', line)}


@pytest.mark.slow
def test_no_object_of_a_real_image_has_an_error(dicom_files, shipped, tmp_path, monkeypatch):
    """A wrong value of the image itself, which is copied as it is, is the one thing that may be wrong."""
    require_tools("dciodvfy")
    monkeypatch.setattr("pneumoscope.report.capture.IMAGE_SIDE", 128)  # smaller files are checked faster
    predictions: Counter[str] = Counter()
    for path in dicom_files:
        image = real(shipped, path)
        predictions[image.prediction.status] += 1
        folder = tmp_path / path.stem
        folder.mkdir()
        wrong = values(errors_of(path))
        for made in written(folder, build_results(study(shipped.bundle, image), ALL)):
            found = {
                line
                for line in errors_of(made)
                if "contains invalid data values" not in line and not values({line}) & wrong
            }
            assert not found, (path.name, made.name, found)
            made.unlink()
    assert predictions["ok"] and predictions["rejected"] > 20, predictions


@pytest.fixture(scope="module")
def wrapped(
    shared_data: Path, shipped: Predictor, tmp_path_factory: pytest.TempPathFactory
) -> list[SourceImage]:
    """Three JPEGs of one study, wrapped as DX."""
    folder = tmp_path_factory.mktemp("dx")
    jpegs = sorted((shared_data / "kermany-original").rglob("*.jpeg"))[::200][:3]
    images = []
    for number, jpeg in enumerate(jpegs, 1):
        path = folder / f"{number}.dcm"
        path.write_bytes(as_file(wrap(jpeg, number)))
        images.append(real(shipped, path))
    return images


def test_no_object_of_a_wrapped_jpeg_has_an_error(wrapped, shipped, tmp_path):
    objects = build_results(study(shipped.bundle, *wrapped), ALL)
    assert any(one.Modality == "OT" for one in objects)
    for path in written(tmp_path, objects):
        assert not errors_of(path), path


@pytest.mark.parametrize(
    "elements",
    [
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Wang^XiaoDong=\u738b^\u5c0f\u6771"},
        {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Buc^J\u00e9r\u00f4me"},
        {
            "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
            "PatientName": "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce",
        },
        {
            "SpecificCharacterSet": ["ISO 2022 IR 13", "ISO 2022 IR 87"],
            "PatientName": "\uff94\uff8f\uff80\uff9e=\u5c71\u7530",
        },
        dict.fromkeys(
            ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"]
        ),
        dict.fromkeys(["AccessionNumber", "ReferringPhysicianName", "StudyID"]),
        {"PatientName": "N" * 64, "OtherPatientNames": ["A^B", "C^D"]},
        {"PhotometricInterpretation": "MONOCHROME1", "PatientAge": "003M"},
    ],
)
def test_odd_patients_and_missing_attributes_are_valid(tiny: Bundle, tmp_path, elements):
    images = [
        source(tmp_path, header(**elements), predicted()),
        source(tmp_path, header(**elements, SOPInstanceUID="1.2.826.0.1.3680043.10.1.1.2"), rejected()),
    ]
    for path in written(tmp_path, build_results(study(tiny, *images), ALL)):
        assert not errors_of(path), path


def test_a_retraction_is_valid(tiny: Bundle, tmp_path):
    objects = build_results(study(tiny, source(tmp_path, header(), predicted())), ALL)
    published = [
        PublishedObject(
            path, one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPClassUID, one.SOPInstanceUID
        )
        for path, one in zip(written(tmp_path, objects), objects, strict=True)
    ]
    (tmp_path / "out").mkdir()
    paths = written(
        tmp_path / "out", build_retraction(published, "The radiologist found no pneumonia.", MADE)
    )
    for path in paths:
        assert not errors_of(path), path
    tree = sr_tree(paths[0])
    assert any('(113001,DCM,"Rejected for Quality Reasons")' in line for line in tree)
    assert sum("<contains IMAGE" in line or "<contains COMPOSITE" in line for line in tree) == 3


def test_dsrdump_shows_the_tree_as_meant(tiny: Bundle, tmp_path):
    images = [
        source(tmp_path, header(), predicted()),
        source(tmp_path, header(SOPInstanceUID="1.2.826.0.1.3680043.10.1.1.2"), rejected()),
    ]
    objects = build_results(study(tiny, *images), ResultOptions())
    (path,) = [one for one in written(tmp_path, objects) if one.name.endswith("SR.dcm")]
    tree = [line.strip() for line in sr_tree(path)]
    for line in (
        '<CONTAINER:(126000,DCM,"Imaging Measurement Report")=CONTINUOUS>',
        '<contains CODE:(121071,DCM,"Finding")=(233604007,SCT,"Pneumonia")>',
        '<contains NUM:(122157,DCM,"Probability")="0.8" (1,UCUM,"no units")>',
        '<contains CODE:(121052,DCM,"Presence of property")=(52101004,SCT,"Present")>',
        '<contains TEXT:(121077,DCM,"Conclusion")="Pneumonia suspected">',
        '<contains TEXT:(121077,DCM,"Conclusion")="Not predicted: image rejected">',
        '<contains CODE:(reason,99PNEUMOSCOPE,"Reason why the image was not predicted")='
        '(lateral_view,99PNEUMOSCOPE,"lateral view")>',
    ):
        assert line in tree, line
    assert sum('SCOORD:(130401,DCM,"Visual explanation")=(POLYLINE' in line for line in tree) == 1
    assert "Verification Flag   : UNVERIFIED" in tree and "Completion Flag     : COMPLETE" in tree
    assert "Error" not in run_tool("dsrdump", path) and "W:" not in run_tool("dsrdump", path)
