"""Bundles of format 1 still load: the manifest of a bundle that shipped in that format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles import make_bundle
from pneumoscope.domain import CodedConcept, Estimate, Target
from pneumoscope.errors import BundleError, Reason
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.upgrade import upgrade_format_1
from pneumoscope.predict.predictor import Predictor

STORED = json.loads((Path(__file__).parent / "format-1" / "bundle.json").read_text(encoding="utf-8"))
CODE = CodedConcept("233604007", "SCT", "Pneumonia")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> tuple[Path, Path]:
    """One small network, once under the manifest that shipped in format 1 and once under it in format 2."""
    place = tmp_path_factory.mktemp("formats")
    stored = STORED | {
        "gate": {name: value for name, value in STORED["gate"].items() if name != "max_novelty"}
    }
    upgraded = upgrade_format_1(stored)
    kept = {
        name: getattr(upgraded, name)
        for name in ("calibrations", "gate", "validated", "default_operating_point")
    }
    new = make_bundle(place / "new", input=upgraded.input, **kept)
    old = place / "old"
    shutil.copytree(new.path, old)
    (old / "bundle.json").write_text(json.dumps(stored | {"files": new.manifest.files}))
    return old, new.path


def test_classes_target_calibration_and_limits_are_kept():
    manifest = upgrade_format_1(STORED)
    assert manifest.format_version == 2
    assert manifest.state == "evaluated"
    assert manifest.classes == ("normal", "bacterial", "viral")
    assert manifest.target == Target("pneumonia", ("bacterial", "viral"), CODE)
    (calibration,) = manifest.calibrations
    assert calibration.calibrator.model_dump(exclude={"prior_shift"}) == STORED["calibrator"] | {
        "scale": tuple(STORED["calibrator"]["scale"]),
        "bias": tuple(STORED["calibrator"]["bias"]),
    }
    assert calibration.conformal == tuple(STORED["conformal"])
    for point, old in zip(calibration.operating_points, STORED["operating_points"], strict=True):
        assert (point.name, point.threshold) == (old["name"], old["threshold"])
        assert point.sensitivity == Estimate(old["sensitivity"])
    assert manifest.gate.max_novelty == STORED["gate"]["max_novelty"]
    assert manifest.validated[0].ages == (0, 17)
    names = [data.description.name for data in manifest.provenance.data]
    assert names == ["kermany-224", "360 pictures of nih-adult"]
    assert [data.additional for data in manifest.provenance.data] == [False, True]


def test_results_are_kept_in_the_names_of_format_2():
    old, new = STORED["results"], upgrade_format_1(STORED).results
    assert new.evaluation.detection.auroc.value == old["pneumonia"]["auroc"]["value"]
    assert new.evaluation.images_by_class == old["pictures_by_class"]
    subtypes = new.evaluation.subtypes["bacterial vs viral"]
    assert subtypes.auroc.value == old["bacterial_vs_viral"]["auroc"]["value"]
    assert new.evaluation.by_subtype["viral"].positive == old["by_kind"]["viral"]["pneumonia"]
    predicted = [row.predicted for row in new.evaluation.reliability]
    assert predicted == [row["said"] for row in old["reliability"]]
    ((name, external),) = new.external.items()
    assert name in old["elsewhere"]
    assert external.detection.auroc.value == old["elsewhere"][name]["pneumonia"]["auroc"]["value"]


def test_external_results_of_other_decisions_are_left_out():
    changed = json.loads(json.dumps(STORED))
    changed["operating_points"][1]["threshold"] = 0.5
    assert upgrade_format_1(changed).results.external == {}


def test_it_predicts_as_the_same_network_in_format_2_does(bundles, shared_data):
    paths = sorted((shared_data / "kermany-original").rglob("*.jpeg"))[::9]
    paths.append(shared_data / "dicom" / "CT1_UNC.dcm")
    old, new = (Predictor.load(bundle).predict(paths) for bundle in bundles)
    assert {one.status for one in old} == {"ok", "rejected"}
    assert [one.probabilities for one in old] == [one.probabilities for one in new]
    assert [one.decision for one in old] == [one.decision for one in new]
    assert [one.reasons for one in old] == [one.reasons for one in new]


def test_adults_get_a_caution_as_in_format_1(bundles):
    adults = Predictor.load(bundles[0]).bundle.manifest.validated
    assert adults[0].includes_age(17.9)
    assert not adults[0].includes_age(18.0)
    assert Reason.POPULATION_NOT_VALIDATED == "population_not_validated"


def test_an_unfinished_bundle_becomes_a_draft():
    kept = ("format_version", "name", "findings", "input", "files")
    manifest = upgrade_format_1({name: STORED[name] for name in kept})
    assert manifest.state == "draft"
    assert manifest.operating_point().threshold == 0.5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100)
@given(key=st.sampled_from(sorted(STORED)), value=JSON)
def test_a_damaged_manifest_is_one_clear_line(tmp_path_factory, key, value):
    folder = tmp_path_factory.getbasetemp() / "damaged-format-1"
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(STORED | {key: value}))
    with pytest.raises(BundleError, match="damaged-format-1") as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)
