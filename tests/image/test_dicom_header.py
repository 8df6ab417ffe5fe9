"""What the header states, in the words that hospitals use."""

from __future__ import annotations

from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_files import dicom, ramp
from pneumoscope.domain import Radiograph, ViewPosition
from pneumoscope.image.decode import read_radiograph


@pytest.fixture(autouse=True)
def _values_that_break_the_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pydicom write them without a warning."""
    for setting in ("reading_validation_mode", "writing_validation_mode"):
        monkeypatch.setattr(pydicom.config.settings, setting, pydicom.config.IGNORE)


def read(**elements: Any) -> Radiograph:
    return read_radiograph(dicom(ramp(), **elements))


LATERAL = "XTABLE LATERAL|LL|RL|L|R|LEFT LATERAL|LATERAL|LAT|LLAT|L LAT|Lateral Chest|CROSS-TABLE LAT|PERFIL"


@pytest.mark.parametrize("stated", LATERAL.split("|"))
def test_lateral_views(stated: str) -> None:
    assert read(ViewPosition=stated).view is ViewPosition.LATERAL


@pytest.mark.parametrize(
    ("stated", "view"),
    [
        ("AP SUPINE", ViewPosition.AP),
        ("PORTABLE AP", ViewPosition.AP),
        ("A.P.", ViewPosition.AP),
        ("antero-posterior", ViewPosition.AP),
        ("PA CHEST", ViewPosition.PA),
        ("P-A", ViewPosition.PA),
        ("POSTEROANTERIOR", ViewPosition.PA),
        ("PA L", ViewPosition.PA),
        ("PA/LAT", ViewPosition.OTHER),
        ("APSUPINE", ViewPosition.AP),
        ("FRONTAL", ViewPosition.UNKNOWN),
        ("FACE", ViewPosition.UNKNOWN),
        ("SEMI-ERECT PORTABLE", ViewPosition.UNKNOWN),
        ("CHEST 1 VIEW", ViewPosition.UNKNOWN),
        ("SUPINE LAT", ViewPosition.LATERAL),
        ("SKYLINE", ViewPosition.OTHER),
        ("AP BILATERAL", ViewPosition.AP),
        ("LATERAL DECUBITUS", ViewPosition.OTHER),
        ("LLD", ViewPosition.OTHER),
        ("LEFT POSTERIOR OBLIQUE", ViewPosition.OTHER),
        ("LORDOTIC", ViewPosition.OTHER),
    ],
)
def test_other_views(stated: str, view: ViewPosition) -> None:
    assert read(ViewPosition=stated).view is view


@pytest.mark.parametrize("nothing", ["UNKNOWN", "Other", "", " ", "NONE", "N/A", "-", "Not specified", None])
def test_what_stands_for_nothing_is_absent(nothing: str | None) -> None:
    image = read(BodyPartExamined=nothing, ViewPosition=nothing)
    assert (image.body_part, image.view) == (None, ViewPosition.UNKNOWN)


def test_body_part_and_modality_are_capitals_with_single_spaces() -> None:
    image = read(BodyPartExamined="Chest  2 views ", Modality="cr")
    assert (image.body_part, image.modality) == ("CHEST 2 VIEWS", "CR")


def test_control_sequences_for_a_terminal_do_not_come_through() -> None:
    image = read(BodyPartExamined="\x1b[31mHAND\x1b]0;OWNED\x07", Modality="CR\x9b2J")
    assert (image.body_part, image.modality) == ("[31MHAND ]0;OWNED", "CR 2J")


@pytest.mark.parametrize(
    ("stated", "age"),
    [
        ("045Y", 45),
        ("45", 45),
        ("45Y", 45),
        ("45 years", 45),
        ("18M", 1.5),
        ("018M", 1.5),
        ("026W", pytest.approx(0.5, abs=0.01)),
        ("003D", pytest.approx(0.008, abs=0.001)),
        ("000", None),
        ("999Y", None),
        ("old", None),
        ("", None),
    ],
)
def test_age(stated: str, age: float | None) -> None:
    assert read(PatientAge=stated).age == age


@pytest.mark.parametrize(
    ("born", "taken", "age"),
    [
        ("19700102", {"StudyDate": "20260101"}, 55),
        ("19700102", {"StudyDate": "20260102"}, 56),
        ("1970.01.02", {"SeriesDate": "2026-01-02"}, 56),
        ("20250630", {"StudyDate": "20260702", "AcquisitionDate": "20300101"}, 1),
        ("20251231", {"StudyDate": "20260701"}, 0.5),
        ("20260102", {"StudyDate": "20260101"}, None),
        ("19000101", {"StudyDate": "20100101"}, None),
        ("18500101", {"StudyDate": "20100101"}, None),
        ("19701302", {"StudyDate": "20100101"}, None),
        ("1970", {"StudyDate": "20100101"}, None),
        ("19700102", {}, None),
        (None, {"StudyDate": "20100101"}, None),
    ],
)
def test_age_between_birth_and_study(born: str | None, taken: dict[str, str], age: float | None) -> None:
    assert read(PatientBirthDate=born, **taken).age == age


def test_the_stated_age_goes_before_the_dates() -> None:
    dates = {"PatientBirthDate": "19700102", "StudyDate": "20260102"}
    assert read(PatientAge="030Y", **dates).age == 30
    assert read(PatientAge="999Y", **dates).age == 56


def test_header_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_SALT", "one")
    elements = {
        "PatientID": "HOSPITAL-0815",
        "PatientAge": "018M",
        "ViewPosition": "PA",
        "BodyPartExamined": "CHEST",
        "ImagerPixelSpacing": [0.148, 0.149],
    }
    data = dicom(ramp(), **elements)
    image = read_radiograph(data)
    assert image.view is ViewPosition.PA
    assert image.body_part == "CHEST"
    assert image.spacing == (0.148, 0.149)
    assert image.age == pytest.approx(1.5)
    key = image.patient_key
    assert key is not None
    assert "0815" not in key
    assert read_radiograph(dicom(ramp(8), bits=8, **elements)).patient_key == key
    monkeypatch.setenv("PNEUMOSCOPE_SALT", "two")
    assert read_radiograph(data).patient_key != key
    bare = read_radiograph(dicom(ramp()))
    assert (bare.patient_key, bare.age, bare.spacing, bare.view) == (None, None, None, ViewPosition.UNKNOWN)


UIDS = {
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "sop_uid": "SOPInstanceUID",
    "sop_class": "SOPClassUID",
}


def test_identifiers_that_a_report_references() -> None:
    elements = {keyword: f"1.2.840.99.{i}" for i, keyword in enumerate(UIDS.values())}
    image = read_radiograph(dicom(ramp(), **elements))
    assert {name: getattr(image, name) for name in UIDS} == {
        name: elements[keyword] for name, keyword in UIDS.items()
    }


def test_identifiers_that_are_absent_or_no_uid_are_left_out() -> None:
    image = read_radiograph(dicom(ramp()))
    assert (image.study_uid, image.series_uid) == (None, None)
    assert (image.sop_uid, image.sop_class) == ("1.2.3", "1.2.840.10008.5.1.4.1.1.1")
    data = dicom(ramp(), StudyInstanceUID="1.2.840.11", SeriesInstanceUID="1.2.12")
    image = read_radiograph(data.replace(b"1.2.840.11", b"DOE^JANE.1").replace(b"1.2.12", b"1.2.x2"))
    assert (image.study_uid, image.series_uid) == (None, None)


def test_nothing_that_names_the_patient_is_kept() -> None:
    names = {
        "PatientName": "Doe^Jane",
        "PatientID": "HOSPITAL-0815",
        "PatientBirthDate": "19700102",
        "OtherPatientIDs": "OTHER-4711",
        "AccessionNumber": "ACC-123",
        "InstitutionName": "Mercy",
        "ReferringPhysicianName": "House^Gregory",
    }
    image = read_radiograph(dicom(ramp(), **names))
    kept = " ".join(str(getattr(image, name)) for name in image.__slots__ if name != "pixels").upper()
    assert "CR" in kept
    for value in names.values():
        assert value.upper() not in kept


@pytest.mark.parametrize(
    ("stated", "meaning", "view"),
    [
        ("AP", None, ViewPosition.AP),
        ("LL", None, ViewPosition.LATERAL),
        ("MLO", None, ViewPosition.OTHER),
        ("", "postero-anterior", ViewPosition.PA),
        (None, "left lateral", ViewPosition.LATERAL),
        (None, None, ViewPosition.UNKNOWN),
    ],
)
def test_view(stated: str | None, meaning: str | None, view: ViewPosition) -> None:
    codes = None
    if meaning:
        code = Dataset()
        code.CodeMeaning = meaning
        codes = Sequence([code])
    assert read_radiograph(dicom(ramp(), ViewPosition=stated, ViewCodeSequence=codes)).view is view


@pytest.mark.parametrize("stated", ["000Y", "000M", "000", "0"])
def test_an_age_of_zero_gives_way_to_the_birth_date(stated: str) -> None:
    assert read(PatientAge=stated, PatientBirthDate="19500101", StudyDate="20200101").age == 70


@pytest.mark.parametrize(("stated", "age"), [("000D", 0), ("000W", 0), ("000M", 0), ("000Y", None)])
def test_an_age_of_zero_is_that_of_a_newborn_unless_it_is_in_years(stated: str, age: float | None) -> None:
    assert read(PatientAge=stated).age == age
