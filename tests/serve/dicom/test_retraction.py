"""What tells archives and readers that a result no longer counts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from pneumoscope.errors import DataError
from pneumoscope.serve.dicom.contracts import PublishedObject, ResultOptions
from pneumoscope.serve.dicom.header import encode
from pneumoscope.serve.dicom.results import build_results, is_own_object
from pneumoscope.serve.dicom.retraction import build_retraction
from results_of_studies import MADE, STUDY, header, predicted, source, study

REASON = "The radiologist found no pneumonia."


@pytest.fixture(scope="module")
def objects(tiny, tmp_path_factory) -> list[PublishedObject]:
    folder = tmp_path_factory.mktemp("sent")
    found = []
    for one in build_results(study(tiny, source(folder, header(), predicted())), ResultOptions()):
        path = folder / f"{one.Modality}.dcm"
        path.write_bytes(encode(one))
        uids = (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPClassUID, one.SOPInstanceUID)
        found.append(PublishedObject(path, *map(str, uids)))
    return found


def made(objects, reason: str = REASON, when=MADE):
    """Return the objects of a retraction, written and read again."""
    return [pydicom.dcmread(io.BytesIO(encode(one))) for one in build_retraction(objects, reason, when)]


def test_the_key_object_selection_refers_to_every_object(objects):
    selection, _ = made(objects)
    assert selection.Modality == "KO"
    (title,) = selection.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodeMeaning) == ("113001", "Rejected for Quality Reasons")
    assert selection.ContentTemplateSequence[0].TemplateIdentifier == "2010"
    types = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: item.ValueType
        for item in selection.ContentSequence
        if "ReferencedSOPSequence" in item
    }
    assert types == {objects[0].sop_instance: "IMAGE", objects[1].sop_instance: "COMPOSITE"}
    (evidence,) = selection.CurrentRequestedProcedureEvidenceSequence
    assert evidence.StudyInstanceUID == STUDY and len(evidence.ReferencedSeriesSequence) == 2
    texts = [item.TextValue for item in selection.ContentSequence if item.ValueType == "TEXT"]
    assert f"AI result retracted: {REASON}" in texts


def test_both_objects_belong_to_the_study_and_the_patient(objects):
    for one in made(objects):
        assert one.StudyInstanceUID == STUDY and str(one.PatientName) == "M\u00fcller^J\u00fcrgen"
        assert one.SeriesDescription == "AI result retracted" and is_own_object(one)
        assert one.SeriesNumber in {9002, 9003}
        assert one.InstanceCreationDate == "20260304"


def test_the_capture_says_so_in_words(objects, monkeypatch):
    drawn = []
    original = build_retraction.__globals__["draw_notice"]

    def draw(title, sentences):
        drawn.extend([title, *sentences])
        return original(title, sentences)

    monkeypatch.setitem(build_retraction.__globals__, "draw_notice", draw)
    _, capture = made(objects)
    assert capture.Modality == "OT" and capture.BurnedInAnnotation == "NO"
    text = " ".join(drawn)
    assert "AI result retracted" in text and REASON in text and "series 9000, 9001" in text
    assert "ller" not in text


def test_the_same_retraction_gives_the_same_bytes_and_another_one_other_uids(objects):
    once, again = ([encode(one) for one in build_retraction(objects, REASON, MADE)] for _ in range(2))
    assert once == again
    others = [
        made(objects),
        made(objects, "Another reason."),
        made(objects, when=MADE.replace(minute=59)),
        made(objects[:1]),
    ]
    for position in (0, 1):
        assert len({pair[position].SOPInstanceUID for pair in others}) == len(others)


@pytest.mark.parametrize("reason", ["", "  \\ ", "\u80ba"])
def test_a_retraction_without_a_reason_is_an_error(objects, reason):
    with pytest.raises(DataError, match="objects of one study and a reason"):
        build_retraction(objects, reason, MADE)


def test_a_retraction_of_nothing_or_of_two_studies_is_an_error(objects):
    with pytest.raises(DataError):
        build_retraction([], REASON, MADE)
    with pytest.raises(DataError):
        build_retraction([objects[0], replace(objects[1], study_uid="1.2")], REASON, MADE)


def test_a_reason_in_any_characters_is_written_in_ascii(objects, tmp_path: Path):
    selection, capture = made(objects, "D\u00e9j\u00e0 vu \\ ~ \u80ba")
    assert capture.ImageComments == "AI result retracted: Deja vu"
    assert any(item.get("TextValue") == "AI result retracted: Deja vu" for item in selection.ContentSequence)
