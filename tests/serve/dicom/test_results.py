"""Which objects are made of a result, their UIDs, and what they say about the patient's image."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundles import make_bundle
from pneumoscope.data.samples import samples_folder
from pneumoscope.errors import PneumoscopeError
from pneumoscope.model.bundle import Bundle
from pneumoscope.serve.dicom.composition import Composition
from pneumoscope.serve.dicom.contracts import ResultOptions
from pneumoscope.serve.dicom.header import encode
from pneumoscope.serve.dicom.results import build_results, is_own_object
from results_of_studies import MADE, STUDY, header, hot_spot, predicted, rejected, source, study

ALL = ResultOptions(presentation_state=True)


def made(result, options=ALL):
    """Return the objects of a result, written and read again."""
    return [pydicom.dcmread(io.BytesIO(encode(one))) for one in build_results(result, options)]


def texts(report) -> str:
    """Return all texts of a report."""
    (measurements,) = [one for one in report.ContentSequence if one.ValueType == "CONTAINER"][1:]
    return " ".join(
        item.TextValue
        for group in measurements.ContentSequence
        for item in group.ContentSequence
        if item.ValueType == "TEXT"
    )


def kinds(result, options) -> list[str]:
    return [one.Modality for one in build_results(result, options)]


def uids(result, options=ALL) -> dict[str, str]:
    return {one.Modality: one.SOPInstanceUID for one in build_results(result, options)}


def test_the_same_result_gives_the_same_bytes(tiny: Bundle, tmp_path: Path):
    result = study(tiny, source(tmp_path, header(), predicted()))
    once, again = ([encode(one) for one in build_results(result, ALL)] for _ in range(2))
    assert once == again and len(once) == 3


def test_every_object_belongs_to_the_study_as_a_series_of_its_own(tiny, tmp_path):
    objects = made(study(tiny, source(tmp_path, header(), predicted())))
    assert {one.StudyInstanceUID for one in objects} == {STUDY}
    series = [one.SeriesInstanceUID for one in objects]
    assert len({*series, f"{STUDY}.1"}) == len(series) + 1
    assert [(one.Modality, one.SeriesNumber) for one in objects] == [("OT", 9001), ("SR", 9000), ("PR", 9002)]
    for one in objects:
        assert str(one.PatientName) == "M\u00fcller^J\u00fcrgen" and one.SpecificCharacterSet == "ISO_IR 100"
        assert one.SeriesDescription == "AI result, research use, not verified"
        assert one.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert one.InstanceCreationDate == "20260304"


def test_another_result_has_other_uids(tiny, tmp_path):
    image = source(tmp_path, header(), predicted(0.8))
    first = uids(study(tiny, image))
    other_bundle = make_bundle(tmp_path / "other", seed=1)
    changed = {
        "probability": study(tiny, replace(image, prediction=predicted(0.81))),
        "decision": study(tiny, replace(image, prediction=predicted(0.8, decision="no pneumonia"))),
        "content": study(tiny, replace(image, sha256="0" * 64)),
        "bundle": study(other_bundle, image),
        "revision": study(tiny, image, revision=1),
        "study": study(tiny, image, study_uid="1.2.3"),
    }
    seen = [first, *(uids(one) for one in changed.values())]
    for kind in first:
        assert len({one[kind] for one in seen}) == len(seen)
    for option in ({"institution": "Elsewhere"}, {"rejections": "none"}, {"secondary_capture": False}):
        others = uids(study(tiny, image), replace(ALL, **option))
        assert others["SR"] != first["SR"], "its content refers to other objects, or may do so"


def test_the_place_of_the_file_and_its_name_are_no_part_of_a_uid(tiny, tmp_path):
    image = source(tmp_path, header(), predicted())
    (tmp_path / "b").mkdir()
    moved = (tmp_path / "b" / "other.dcm").absolute()
    moved.write_bytes(image.path.read_bytes())
    renamed = replace(image.prediction, path="elsewhere.dcm")
    assert uids(study(tiny, replace(image, path=moved, prediction=renamed))) == uids(study(tiny, image))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=st.floats(0, 1), other=st.floats(0, 1))
def test_uids_follow_the_probability_to_six_decimals(tiny, tmp_path, one, other):
    image = source(tmp_path, header(), predicted(), explanation=None, preview=None)
    results = [study(tiny, replace(image, prediction=predicted(p))) for p in (one, other)]
    rounded = [[round(p, 6) for p in predicted(value).probabilities.values()] for value in (one, other)]
    decisions = [predicted(value).decision for value in (one, other)]
    same = rounded[0] == rounded[1] and decisions[0] == decisions[1] and round(one, 6) == round(other, 6)
    same = same and predicted(one).prediction_set == predicted(other).prediction_set
    found = [Composition(result, ALL).uid("SR") for result in results]
    assert (found[0] == found[1]) == same


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ResultOptions(), ["OT", "OT", "SR"]),
        (ResultOptions(secondary_capture=False, rejections="none"), ["SR"]),
        (ResultOptions(structured_report=False, rejections="none"), ["OT"]),
        (ResultOptions(structured_report=False), ["OT", "OT", "SR"]),
        (ResultOptions(secondary_capture=False, structured_report=False, rejections="none"), []),
        (ResultOptions(rejections="structured_report"), ["OT", "SR"]),
        (ResultOptions(rejections="secondary_capture"), ["OT", "OT", "SR"]),
        (ResultOptions(presentation_state=True, rejections="none"), ["OT", "SR", "PR"]),
    ],
)
def test_options_choose_the_objects(tiny, tmp_path, options, expected):
    images = [
        source(tmp_path, header(), predicted()),
        source(tmp_path, header(SOPInstanceUID=f"{STUDY}.1.2", ViewPosition="LL"), rejected()),
    ]
    assert kinds(study(tiny, *images), options) == expected


def test_a_report_of_rejections_alone_names_the_rejected_only(tiny, tmp_path):
    images = [
        source(tmp_path, header(), predicted()),
        source(tmp_path, header(SOPInstanceUID=f"{STUDY}.1.2"), rejected()),
    ]
    options = ResultOptions(structured_report=False, secondary_capture=False, rejections="structured_report")
    (report,) = made(study(tiny, *images), options)
    assert "image rejected" in texts(report) and "suspected" not in texts(report)
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in evidence.ReferencedSOPSequence] == [f"{STUDY}.1.2"]


def test_several_images_are_several_captures_and_groups(tiny, tmp_path):
    images = [
        source(
            tmp_path,
            header(
                SOPInstanceUID=f"{STUDY}.{series}.1",
                SeriesInstanceUID=f"{STUDY}.{series}",
                SeriesNumber=series,
            ),
            predicted(0.3 + series / 10),
        )
        for series in (1, 2, 3)
    ]
    objects = made(study(tiny, *images))
    captures = [one for one in objects if one.Modality == "OT"]
    assert [one.InstanceNumber for one in captures] == [1, 2, 3]
    assert len({one.SeriesInstanceUID for one in captures}) == 1
    sources = [one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in captures]
    assert sources == [one.sop_instance for one in images]
    report = next(one for one in objects if one.Modality == "SR")
    assert len(report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence) == 4


def test_a_capture_is_uncompressed_rgb_without_identifiers(tiny, tmp_path):
    (capture,) = made(
        study(tiny, source(tmp_path, header(), predicted())), ResultOptions(structured_report=False)
    )
    assert capture.PhotometricInterpretation == "RGB" and capture.SamplesPerPixel == 3
    assert capture.PlanarConfiguration == 0 and capture.BitsAllocated == 8
    assert "BurnedInAnnotation" not in capture and capture.ConversionType == "WSD"
    assert capture.ImageType[:2] == ["DERIVED", "SECONDARY"]
    pixels = np.frombuffer(capture.PixelData[: capture.Rows * capture.Columns * 3], np.uint8)
    pixels = pixels.reshape(capture.Rows, capture.Columns, 3)
    assert (pixels[0, 0] == (92, 62, 24)).all(), "the banner is amber: red, green, blue in this order"


def test_the_pixels_do_not_depend_on_the_patient(tiny, tmp_path):
    names = [
        {"PatientName": "A^B", "PatientID": "1"},
        {"PatientName": "C^D", "PatientID": "2", "PatientAge": "091Y"},
    ]
    drawn = [
        made(
            study(tiny, source(tmp_path, header(**one), predicted())), ResultOptions(structured_report=False)
        )
        for one in names
    ]
    assert drawn[0][0].PixelData == drawn[1][0].PixelData


def test_burned_in_annotation_of_the_image_is_stated(tiny, tmp_path):
    options = ResultOptions(structured_report=False)
    marked = source(tmp_path, header(BurnedInAnnotation="YES"), predicted())
    assert made(study(tiny, marked), options)[0].BurnedInAnnotation == "YES"
    assert made(study(tiny, replace(marked, preview=None)), options)[0].BurnedInAnnotation == "NO"
    clean = source(tmp_path, header(BurnedInAnnotation="NO"), predicted())
    assert made(study(tiny, clean), options)[0].BurnedInAnnotation == "NO"
    unknown = source(tmp_path, header(BurnedInAnnotation=None), predicted())
    assert "BurnedInAnnotation" not in made(study(tiny, unknown), options)[0]


def test_an_image_without_a_preview_is_reported_in_words(tiny, tmp_path):
    image = source(
        tmp_path, header(), rejected("truncated", message="the file ends too early; send it again")
    )
    (capture, report) = made(study(tiny, replace(image, height=None, width=None)), ResultOptions())
    assert capture.Columns < 700 and "too early" in texts(report)


def test_weak_evidence_has_no_region(tiny, tmp_path):
    faint = source(tmp_path, header(), predicted(0.2), explanation=hot_spot(peak=0.3))
    assert "SCOORD" not in str(made(study(tiny, faint), ResultOptions(secondary_capture=False))[0])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_presentation_state_outlines_the_region_and_keeps_the_grey_levels(tiny, tmp_path, photometric):
    image = source(tmp_path, header(PhotometricInterpretation=photometric), predicted())
    state = made(study(tiny, image))[-1]
    assert state.PresentationLUTShape == ("INVERSE" if photometric == "MONOCHROME1" else "IDENTITY")
    (voi,) = state.SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth) == (2048, 4096)
    (annotation,) = state.GraphicAnnotationSequence
    (outline,) = annotation.GraphicObjectSequence
    assert outline.GraphicAnnotationUnits == "PIXEL" and outline.GraphicType == "POLYLINE"
    assert "AI result, research use, not verified" in annotation.TextObjectSequence[0].UnformattedTextValue
    (area,) = state.DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaBottomRightHandCorner) == [500, 400]


@pytest.mark.parametrize(
    ("elements", "ratio"),
    [
        ({}, [1, 1]),
        ({"PixelAspectRatio": [4, 3]}, [4, 3]),
        ({"PixelAspectRatio": [1, 1], "ImagerPixelSpacing": ["0.2", "0.1"]}, [2, 1]),
        ({"PixelSpacing": ["0.139", "0.139"]}, [1, 1]),
        ({"PixelSpacing": ["0", "0.1"], "PixelAspectRatio": [1, 2]}, [1, 2]),
        ({"PixelSpacing": ["1e9", "1e-9"]}, [1, 1]),
    ],
)
def test_a_presentation_state_keeps_the_shape_of_the_pixels(tiny, tmp_path, elements, ratio):
    """Otherwise a viewer would stretch the X-ray."""
    nothing = dict.fromkeys(("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"))
    state = made(study(tiny, source(tmp_path, header(**(nothing | elements)), predicted())))[-1]
    (area,) = state.DisplayedAreaSelectionSequence
    assert list(area.PresentationPixelAspectRatio) == ratio


@pytest.mark.parametrize(
    "elements",
    [
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
        {"Rows": None},
        {"WindowWidth": 0},
        {"WindowCenter": None},
        {"VOILUTFunction": "NONSENSE"},
    ],
)
def test_headers_that_a_presentation_state_cannot_follow_do_not_cost_the_result(tiny, tmp_path, elements):
    image = source(tmp_path, header(**elements), predicted(), height=400, width=500)
    assert [one.Modality for one in made(study(tiny, image))][:2] == ["OT", "SR"]


HOSTILE = {
    "long": {"PatientName": "N" * 500, "PatientID": "I" * 300, "StudyDescription": "D" * 300},
    "several values": {"PatientName": ["A^B", "C^D"], "AccessionNumber": ["1", "2"], "StudyID": ["a", "b"]},
    "empty": {"PatientName": "", "PatientSex": "", "PatientBirthDate": ""},
    "wrong values": {"PatientSex": "unknown", "PatientBirthDate": "31.12.1999", "StudyTime": "noon"},
    "wrong numbers": {"SeriesNumber": None, "InstanceNumber": None, "ViewPosition": "AP SUPINE"},
    "several of one": {"BurnedInAnnotation": ["NO", "NO"], "ViewPosition": ["PA", "AP"]},
    "without orientation": {"PatientOrientation": None},
    "odd orientation": {"PatientOrientation": ["H"]},
    "another modality": {"Modality": "ZZ"},
    "character set": {"SpecificCharacterSet": "NO SUCH SET", "PatientName": "A^B"},
    "no character set": {"SpecificCharacterSet": None, "PatientName": "A^B"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_odd_headers_are_reported_all_the_same(tiny, tmp_path, name):
    image = source(tmp_path, header(**HOSTILE[name]), predicted())
    objects = build_results(study(tiny, image), ALL)
    for one in objects:
        for keyword, value in HOSTILE[name].items():
            if keyword.startswith("Patient") and keyword != "PatientOrientation" and value:
                raw = one.get_item(keyword).value.rstrip(b" \0")
                assert raw == ("\\".join(value) if isinstance(value, list) else value).encode()
        assert encode(one)
    assert [one.Modality for one in objects][:2] == ["OT", "SR"]


def test_a_number_that_is_none_is_left_out_of_the_caption(tiny, tmp_path):
    image = source(tmp_path, header(InstanceNumber=12345), predicted())
    image.path.write_bytes(image.path.read_bytes().replace(b"12345 ", b"1e400 "))
    assert "12345" not in texts(made(study(tiny, image))[1])


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_header_without_a_uid_is_one_line(tiny, tmp_path, missing):
    image = source(tmp_path, header(**{missing: None}), predicted())
    with pytest.raises(PneumoscopeError, match=f"image 1 of the study: no valid {missing}") as error:
        build_results(study(tiny, image, study_uid=STUDY), ALL)
    assert "\n" not in str(error.value) and "ller" not in str(error.value)


@pytest.mark.parametrize(
    "other",
    [
        {"PatientID": "2"},
        {"IssuerOfPatientID": "Ward"},
        {"PatientID": None},
        {"PatientID": None, "PatientName": "B"},
    ],
)
def test_images_of_two_patients_are_no_result(tiny, tmp_path, other):
    first = header(SOPInstanceUID="1.2.1", **({"PatientID": None} if "PatientName" in other else {}))
    second = header(SOPInstanceUID="1.2.2", **other)
    images = [source(tmp_path, one, predicted()) for one in (first, second)]
    for image in images:
        assert build_results(study(tiny, image), ALL)
    with pytest.raises(PneumoscopeError, match="name different patients") as error:
        build_results(study(tiny, *images), ALL)
    assert "ller" not in str(error.value)


def test_names_of_the_bundle_in_any_script_are_written_in_ascii(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", name="Mod\u00e8le \u80ba\u708e")
    image = source(tmp_path, header(SpecificCharacterSet="ISO_IR 13", PatientName="A^B"), predicted())
    for one in made(study(bundle, image)):
        assert one.ManufacturerModelName == "Pneumoscope Modele"


def test_own_objects_are_recognised(tiny, tmp_path):
    for one in made(study(tiny, source(tmp_path, header(), predicted()))):
        assert is_own_object(one)
    assert not is_own_object(header()) and not is_own_object(header(Manufacturer="Pneumoscope Imaging Ltd"))
    sample = pydicom.dcmread(samples_folder() / "child.dcm", stop_before_pixels=True)
    assert sample.Manufacturer == "Pneumoscope" and not is_own_object(sample), "an X-ray"


def test_times_are_those_of_the_result(tiny, tmp_path):
    for one in made(
        study(tiny, source(tmp_path, header(), predicted()), made=MADE.replace(hour=23, microsecond=7))
    ):
        assert one.InstanceCreationTime == "230607"
        for keyword in ("ContentTime", "PresentationCreationTime", "TimeOfSecondaryCapture"):
            assert str(one.get(keyword, "230607")) == "230607"
