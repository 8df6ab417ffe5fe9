"""The content tree against the templates of PS3.16: TID 1500, 1501, 1600 and 4019, row by row.

Tools that check objects hardly know templates, so the rows are written down here, apart from the code that
makes the tree: relationship, value type, how often, and which concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from bundles import make_bundle
from pneumoscope.domain import Target
from pneumoscope.model.bundle import Bundle
from pneumoscope.serve.dicom.contracts import ResultOptions
from pneumoscope.serve.dicom.results import build_results
from results_of_studies import header, predicted, rejected, source, study

SR = "1.2.840.10008.5.1.4.1.1.88.34"
OWN = "99PNEUMOSCOPE"
ANY = None


@dataclass(frozen=True)
class Row:
    """A row of a template: what an item may be, and how often it is there."""

    relationship: str
    value_type: str
    concepts: tuple[tuple[str, str], ...] | None
    least: int = 0
    most: float = float("inf")


def dcm(*values: str) -> tuple[tuple[str, str], ...]:
    return tuple((value, "DCM") for value in values)


ROOT = (
    Row("HAS CONCEPT MOD", "CODE", dcm("121049"), 1, 1),  # TID 1204
    Row("HAS OBS CONTEXT", "CODE", dcm("121005"), 1, 1),  # TID 1001 to 1004, a device
    Row("HAS OBS CONTEXT", "UIDREF", dcm("121012"), 1, 1),
    Row("HAS OBS CONTEXT", "TEXT", dcm("121013", "121014", "121015", "121016"), 0, 4),
    Row("HAS CONCEPT MOD", "CODE", dcm("121058"), 1),
    Row("CONTAINS", "CONTAINER", dcm("111028"), 0, 1),  # TID 1600
    Row("CONTAINS", "CONTAINER", dcm("126010"), 1, 1),
)
LIBRARY = (Row("CONTAINS", "CONTAINER", dcm("126200"), 1),)
LIBRARY_GROUP = (Row("CONTAINS", "IMAGE", ANY, 1),)
LIBRARY_ENTRY = (  # TID 1602
    Row("HAS ACQ CONTEXT", "CODE", dcm("121139"), 0, 1),
    Row("HAS ACQ CONTEXT", "NUM", dcm("110910"), 0, 1),
    Row("HAS ACQ CONTEXT", "NUM", dcm("110911"), 0, 1),
)
GROUP = (  # TID 1501, with TID 4108 and TID 4019
    Row("HAS OBS CONTEXT", "TEXT", dcm("112039"), 1, 1),
    Row("HAS OBS CONTEXT", "UIDREF", dcm("112040"), 1, 1),
    Row("CONTAINS", "CODE", dcm("121071"), 0, 1),
    Row("HAS CONCEPT MOD", "TEXT", dcm("111001"), 1, 1),
    Row("HAS CONCEPT MOD", "TEXT", dcm("111003"), 1, 1),
    Row("HAS CONCEPT MOD", "TEXT", dcm("122405"), 0, 1),
    Row("HAS CONCEPT MOD", "TEXT", dcm("111002"), 0),
    Row("HAS CONCEPT MOD", "CODE", dcm("111000"), 0, 1),
    Row("CONTAINS", "IMAGE", dcm("130401"), 0),
    Row("CONTAINS", "NUM", ANY, 0),
    Row("CONTAINS", "IMAGE", dcm("121112"), 0),
    Row("CONTAINS", "SCOORD", dcm("130401"), 0),
    Row("CONTAINS", "CODE", ANY, 0),
    Row("CONTAINS", "TEXT", ANY, 0),
)
NUMBER = (Row("HAS CONCEPT MOD", "CODE", ANY, 0),)  # TID 300
COORDINATES = (Row("SELECTED FROM", "IMAGE", ANY, 1, 1),)


def concept(item: Dataset) -> tuple[str, str]:
    code = item.ConceptNameCodeSequence[0]
    return code.get("CodeValue") or code.LongCodeValue, code.CodingSchemeDesignator


def follows(items: Sequence[Dataset], rows: Sequence[Row]) -> None:
    """Check that items follow rows in their order, each as often as the row says."""
    position, counts = 0, [0] * len(rows)
    for item in items:
        fits = [
            number
            for number, row in enumerate(rows)
            if number >= position
            and (item.RelationshipType, item.ValueType) == (row.relationship, row.value_type)
            and (row.concepts is None or concept(item) in row.concepts)
        ]
        assert fits, f"{item.RelationshipType} {item.ValueType} {concept(item)} fits no row from {position}"
        position = fits[0]
        counts[position] += 1
    for count, row in zip(counts, rows, strict=True):
        assert row.least <= count <= row.most, f"{count} items of {row}"


def children(item: Dataset) -> Sequence[Dataset]:
    return item.get("ContentSequence", [])


def named(item: Dataset, value: str) -> list[Dataset]:
    return [child for child in children(item) if concept(child)[0] == value]


def all_codes(dataset: Dataset) -> list[Dataset]:
    found: list[Dataset] = []

    def visit(_: Dataset, element: pydicom.DataElement) -> None:
        if element.VR == "SQ" and element.keyword.endswith("CodeSequence"):
            found.extend(element.value)

    dataset.walk(visit)
    return found


@pytest.fixture(scope="module")
def report(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The report of a study with an image with the finding, one without, an uncertain and a rejected one."""
    folder = tmp_path_factory.mktemp("images")
    uid = "1.2.826.0.1.3680043.10.1.1."
    cautioned = predicted(0.9, reasons=("population_not_validated",))
    uncertain = predicted(0.6, prediction_set=("normal", "bacterial"), uncertain=True)
    images = [
        source(folder, header(SOPInstanceUID=uid + str(number), InstanceNumber=number), prediction)
        for number, prediction in enumerate([cautioned, predicted(0.1), uncertain, rejected()], 1)
    ]
    objects = build_results(study(tiny, *images), ResultOptions())
    return next(one for one in objects if one.SOPClassUID == SR)


@pytest.fixture(scope="module")
def groups(report: Dataset) -> list[Dataset]:
    (measurements,) = named(report, "126010")
    return list(measurements.ContentSequence)


def test_the_root_is_a_measurement_report(report):
    assert report.ValueType == "CONTAINER" and concept(report) == ("126000", "DCM")
    (template,) = report.ContentTemplateSequence
    assert (template.MappingResource, template.TemplateIdentifier) == ("DCMR", "1500")
    follows(children(report), ROOT)


def test_the_image_library_has_every_image(report):
    (library,) = named(report, "111028")
    follows(children(library), LIBRARY)
    (group,) = library.ContentSequence
    follows(group.ContentSequence, LIBRARY_GROUP)
    assert len(group.ContentSequence) == 4
    for entry in group.ContentSequence:
        follows(children(entry), LIBRARY_ENTRY)


def test_every_group_follows_its_template(groups):
    assert len(groups) == 4
    for group in groups:
        assert concept(group) == ("125007", "DCM")
        assert group.ContentTemplateSequence[0].TemplateIdentifier == "1501"
        follows(children(group), GROUP)
        for item in children(group):
            if item.ValueType == "NUM":
                follows(children(item), NUMBER)
                (unit,) = item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence
                assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("1", "UCUM")
            elif item.ValueType == "SCOORD":
                follows(children(item), COORDINATES)
            else:
                assert not children(item)


def test_codes_have_the_meanings_of_their_terminologies(report):
    known = {("233604007", "SCT"): {"pneumonia"}}  # of the bundle; DICOM itself does not use it
    for scheme, collection in (("DCM", codes.DCM), ("SCT", codes.SCT)):
        for code in (getattr(collection, name) for name in collection.dir()):
            known.setdefault((code.value, scheme), set()).add(code.meaning.lower().split(" (")[0])
    checked = 0
    for code in all_codes(report):
        value, scheme = code.get("CodeValue") or code.LongCodeValue, code.CodingSchemeDesignator
        assert len(code.CodeMeaning) <= 64
        if scheme in {"DCM", "SCT"}:
            assert code.CodeMeaning.lower() in known[value, scheme], (value, code.CodeMeaning)
            checked += 1
        else:
            assert scheme in {"UCUM", "LN", "RFC5646", OWN}, (value, scheme)
    assert checked > 50


def test_the_private_scheme_is_identified(report):
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == OWN and scheme.CodingSchemeName == "Pneumoscope"


def value_of(group: Dataset, name: str) -> float:
    item = named(group, name)[0]
    return float(item.MeasuredValueSequence[0].NumericValue)


def coded_value(item: Dataset) -> str:
    code = item.ConceptCodeSequence[0]
    return code.get("CodeValue") or code.LongCodeValue


def test_a_finding_has_probability_decision_set_population_and_region(groups):
    group = groups[0]
    (finding,) = named(group, "121071")
    assert coded_value(finding) == "233604007"
    assert value_of(group, "122157") == pytest.approx(0.9)
    assert value_of(group, "threshold") == pytest.approx(0.5)
    assert value_of(group, "coverage") == pytest.approx(0.9)
    assert [coded_value(one) for one in named(group, "121052")] == ["52101004"]
    assert [coded_value(one) for one in named(group, "not_ruled_out")] == ["bacterial"]
    assert [coded_value(one) for one in named(group, "caution")] == ["population_not_validated"]
    by_class = {
        children(one)[0].ConceptCodeSequence[0].CodeValue: float(one.MeasuredValueSequence[0].NumericValue)
        for one in named(group, "p_class")
    }
    assert by_class == pytest.approx({"normal": 0.1, "bacterial": 0.675, "viral": 0.225})
    texts = " ".join(one.TextValue for one in children(group) if one.ValueType == "TEXT")
    assert "Sensitivity 93.0%, specificity 91.0%" in texts
    assert "Hopital d'enfants" in named(group, "121405")[0].TextValue
    assert "AI result, research use, not verified." in texts


@pytest.mark.parametrize(
    ("number", "presence", "says"),
    [
        (0, "52101004", "Pneumonia suspected"),
        (1, "272519000", "No pneumonia detected"),
        (2, "373068000", "Uncertain, leaning towards pneumonia"),
        (3, "373121007", "Not predicted: image rejected"),
    ],
)
def test_the_decision_is_coded_and_in_words(groups, number, presence, says):
    assert [coded_value(one) for one in named(groups[number], "121052")] == [presence]
    assert [one.TextValue for one in named(groups[number], "121077")] == [says]


def test_a_rejected_image_says_why_and_claims_nothing(groups):
    group = groups[3]
    assert not named(group, "121071") and not named(group, "122157")
    assert [coded_value(one) for one in named(group, "reason")] == ["lateral_view"]
    comments = [one.TextValue for one in named(group, "121106")]
    assert any("give a frontal chest X-ray" in one and "lateral view" in one for one in comments)


def test_the_model_is_identified_with_its_hash(groups, tiny):
    (name,), (version,) = (named(groups[0], code) for code in ("111001", "111003"))
    assert name.TextValue == "Pneumoscope tiny" and version.TextValue
    parameters = {one.TextValue for one in named(groups[0], "111002")}
    assert f"bundle_sha256={tiny.manifest.decision_sha256}" in parameters
    assert f"network_sha256={tiny.manifest.files['model.onnx']}" in parameters
    assert "operating_point=balanced" in parameters


def test_the_region_is_in_pixels_of_the_source_image(groups):
    (region,) = [one for one in children(groups[0]) if one.ValueType == "SCOORD"]
    points = np.array(region.GraphicData).reshape(-1, 2)
    assert region.GraphicType == "POLYLINE" and (points[0] == points[-1]).all() and len(points) > 6
    # The spot: 25% and 30% of a map over 20 to 80% of 500 columns and 10 to 90% of 400 rows.
    assert points[:-1].mean(axis=0) == pytest.approx(
        [500 * (0.2 + 0.6 * 0.25), 400 * (0.1 + 0.8 * 0.3)], abs=4
    )
    (image,) = children(region)
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.826.0.1.3680043.10.1.1.1"
    texts = " ".join(one.TextValue for one in children(groups[0]) if one.ValueType == "TEXT")
    assert (
        "left half of the image, upper third (right side of the patient)" in texts or "middle third" in texts
    )


def test_every_reference_is_listed_as_evidence(report):
    listed = {
        sop.ReferencedSOPInstanceUID
        for one in report.CurrentRequestedProcedureEvidenceSequence
        for series in one.ReferencedSeriesSequence
        for sop in series.ReferencedSOPSequence
    }
    referenced: set[str] = set()

    def visit(_: Dataset, element: pydicom.DataElement) -> None:
        if element.keyword == "ReferencedSOPInstanceUID":
            referenced.add(element.value)

    for item in report.ContentSequence:
        item.walk(visit)
    assert referenced == listed and len(listed) == 8


def test_the_document_is_unverified_preliminary_and_complete(report):
    assert (report.VerificationFlag, report.CompletionFlag, report.PreliminaryFlag) == (
        "UNVERIFIED",
        "COMPLETE",
        "PRELIMINARY",
    )
    for keyword in ("PerformedProcedureCodeSequence", "ReferencedPerformedProcedureStepSequence"):
        assert keyword in report
    assert report.Manufacturer == "Pneumoscope" and "tiny@" in report.SoftwareVersions[1]


def test_a_finding_without_a_code_gets_a_private_one(tmp_path: Path):
    bundle = make_bundle(tmp_path / "bundle", target=Target("infiltrate", ("bacterial", "viral")))
    image = source(tmp_path, header(), predicted(target="infiltrate", decision="infiltrate"))
    report = next(
        one for one in build_results(study(bundle, image), ResultOptions()) if one.SOPClassUID == SR
    )
    (group,) = named(report, "126010")[0].ContentSequence
    (code,) = named(group, "121071")[0].ConceptCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == (
        "infiltrate",
        OWN,
        "infiltrate",
    )
