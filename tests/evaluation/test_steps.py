"""What is written into a bundle: calibration, evaluation, external validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import DatasetDescription, Population, Target
from pneumoscope.errors import DataError
from pneumoscope.evaluation import evaluate_scores
from pneumoscope.evaluation.bundles import evaluate, evaluate_bundle
from pneumoscope.evaluation.estimation import Estimators, fit_views
from pneumoscope.evaluation.gate import Described, FittedGate, fit_novelty
from pneumoscope.evaluation.steps import (
    add_external_validation,
    calibrate_bundle,
    current_external,
    sign_bundle,
)
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.bundle import load_bundle, write_bundle
from pneumoscope.model.manifest import BundleManifest
from pneumoscope.parallel import Progress
from pneumoscope.predict.novelty import DIMENSIONS


@pytest.fixture
def metrics(draw):
    return evaluate_scores(draw(n=60), threshold=0.5, n_boot=10)


def on(metrics, evaluated_on):
    return metrics.model_copy(update={"evaluated_on": evaluated_on})


def changed(bundle, **fields):
    manifest = BundleManifest.model_validate({**bundle.manifest.model_dump(), **fields})
    return write_bundle(bundle.path, manifest)


@pytest.fixture(scope="module")
def children(tmp_path_factory) -> Manifest:
    """Eighty images of eighty patients of 1 to 4 and 30 to 33 years, half of them positive."""
    folder = tmp_path_factory.mktemp("children")
    records = []
    for number in range(80):
        label = ("clear", "lobar")[number % 2]
        path = f"{label}/{number}.png"
        write_image(folder / path, seed=number)
        age = number // 2 % 4 + (1.5 if number < 40 else 30)
        records.append(Record(path, label, f"p{number}", age=age, view="AP"))
    return Manifest(tuple(records), folder)


def test_sets_are_listed_side_by_side_and_a_name_is_replaced(tmp_path, metrics):
    bundle = add_external_validation(make_bundle(tmp_path), "adults", on(metrics, "films of one hospital"))
    bundle = add_external_validation(bundle, "another  country", on(metrics, "films of another"))
    bundle = add_external_validation(bundle, "adults", on(metrics, "films of a third"))
    sets = bundle.manifest.results.external
    assert set(sets) == {"adults", "another country"}
    assert sets["adults"].evaluated_on == "films of a third"
    assert sets["adults"].detection == metrics.detection
    assert not hasattr(sets["adults"], "mistakes")  # another hospital's file names are not for the card
    assert "| another country | 60 |" in bundle.card
    assert "## Evaluation" not in bundle.card  # its own set was not measured
    assert bundle.manifest.validated == ()


def test_results_of_other_decisions_are_removed(tmp_path, metrics):
    bundle = add_external_validation(make_bundle(tmp_path), "adults", metrics)
    assert set(current_external(bundle.manifest)) == {"adults"}
    decisions = bundle.manifest.decision_sha256
    renamed = changed(bundle, name="other", licence="another")
    assert renamed.manifest.decision_sha256 == decisions
    gate = bundle.manifest.gate.model_copy(update={"min_side": 300})
    assert current_external(changed(bundle, gate=gate.model_dump()).manifest) == {}
    calibration = {"operating_points": ({"name": "balanced", "threshold": 0.9},)}
    moved = changed(bundle, calibrations=(calibration,))
    assert current_external(moved.manifest) == {}
    assert set(add_external_validation(moved, "new", metrics).manifest.results.external) == {"new"}


def test_a_set_without_a_name_is_one_line(tmp_path, metrics):
    with pytest.raises(DataError, match="need a name"):
        add_external_validation(make_bundle(tmp_path), "  ", metrics)


CLASSES = ("lobar", "clear", "diffuse")
INFILTRATE = Target("infiltrate", ("lobar", "diffuse"))


def lung_bundle(folder, **fields):
    return make_bundle(
        folder, classes=CLASSES, target=INFILTRATE, input=InputSpec(size=64, lungs="crop"), **fields
    )


def test_each_state_is_written_once(tmp_path, children, monkeypatch):
    """Draft, calibrated with the fitted gate, evaluated: two writes, and no hash is computed for reading."""
    bundle = lung_bundle(tmp_path / "bundle", state="draft")
    rows = np.random.default_rng(0).normal(0, 1, (500, DIMENSIONS)).astype(np.float32)
    fitted = fit_novelty([Described(rows, [str(number) for number in range(500)])])
    gate = FittedGate.of(bundle, replace(fitted, max_novelty=1e9))
    writes = []

    def counted(*given, **options):
        writes.append(given[1].state)
        return write_bundle(*given, **options)

    monkeypatch.setattr("pneumoscope.evaluation.steps.write_bundle", counted)
    calibrated = calibrate_bundle(bundle, children, method="temperature", described_as="val", gate=gate)
    assert writes == ["calibrated"]
    assert calibrated.manifest.gate == gate.limits
    assert calibrated.gate_statistics is not None
    assert calibrated.background is not None
    done = evaluate_bundle(calibrated, children, tmp_path / "out", evaluated_on="test", about={}, n_boot=20)
    signed = sign_bundle(calibrated, done.metrics)
    assert writes == ["calibrated", "evaluated"]
    assert load_bundle(signed.path).manifest == signed.manifest


def test_calibration_uses_the_gate_that_is_written(tmp_path, children):
    bundle = lung_bundle(tmp_path, state="draft")
    rows = np.random.default_rng(0).normal(0, 1, (500, DIMENSIONS)).astype(np.float32)
    fitted = fit_novelty([Described(rows, [str(number) for number in range(500)])])
    nothing_passes = FittedGate.of(bundle, replace(fitted, max_novelty=0.0))
    with pytest.raises(DataError, match="none of its images could be evaluated"):
        calibrate_bundle(bundle, children, method="none", described_as="val", gate=nothing_passes)


def test_populations_get_calibrations_of_their_own(tmp_path, children):
    small, grown = Population("children", (0, 17)), Population("adults", (18, None))
    none = Population("neonates", (0, 0))
    lines = []

    class Heard(Progress):
        def message(self, line):
            lines.append(line)

    bundle = calibrate_bundle(
        lung_bundle(tmp_path / "bundle"),
        children,
        method="temperature",
        described_as="val",
        populations=(small, grown, none),
        progress=Heard(),
    )
    manifest = bundle.manifest
    assert [one.population for one in manifest.calibrations] == ["any", "children", "adults"]
    assert manifest.populations == (small, grown)
    (line,) = lines
    assert line.startswith("neonates: 0 images with")
    assert manifest.operating_point(population="adults").patients == 40
    evaluated = evaluate_bundle(bundle, children, tmp_path / "out", evaluated_on="test", about={}, n_boot=20)
    assert evaluated.metrics.threshold is None  # it depends on the population
    points = [
        manifest.operating_point(population=manifest.population_of(record.age, record.view)).threshold
        for record in children
    ]
    expected = (evaluated.scored.p_target >= points)[evaluated.scored.is_positive].mean()
    assert evaluated.metrics.detection.sensitivity.value == pytest.approx(expected)


def test_a_population_by_view_is_fitted_on_the_views_that_are_estimated(tmp_path, children):
    bundle = lung_bundle(tmp_path / "bundle", state="draft")
    stated = children.with_records(
        replace(one, age=None, view="AP" if one.label == "clear" or number % 4 == 1 else "PA")
        for number, one in enumerate(children)
    )
    views = fit_views(bundle, stated, stated)
    unstated = stated.with_records(replace(one, view="") for one in stated)
    options = {"method": "none", "described_as": "x", "populations": (Population("ap", views=("AP",)),)}
    alone = calibrate_bundle(bundle, unstated, **options)
    assert [one.population for one in alone.manifest.calibrations] == ["any"]
    always_ap = replace(views, classifier=replace(views.classifier, bias=np.float32([9e9, 0])))
    assert views.classifier.names == ("AP", "PA")
    fitted = calibrate_bundle(bundle, unstated, estimators=Estimators(views=always_ap), **options)
    assert [one.population for one in fitted.manifest.calibrations] == ["any", "ap"]
    assert fitted.manifest.operating_point(population="ap").patients == 80


def test_signing_times_the_images_that_were_evaluated(tmp_path, children):
    bundle = lung_bundle(tmp_path / "bundle")
    write_image(tmp_path / "small.png", height=20, width=20)
    paths = [str(children.resolve(one)) for one in children.records[:4]]
    paths += [str(tmp_path / "small.png"), str(tmp_path / "gone.png")]
    rows = [f"{path},{('clear', 'lobar')[number % 2]},p{number}" for number, path in enumerate(paths)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label,patient_id", *rows]))
    evaluate(tmp_path / "set.csv", tmp_path / "out", bundle=bundle.path, sign=True, n_boot=10)
    signed = load_bundle(bundle.path).manifest
    assert signed.state == "evaluated"
    assert signed.results.speed.measured_on.startswith("4 files")
    assert signed.results.evaluation.decisions == signed.decision_sha256


def test_an_evaluation_says_on_whom_a_bundle_is_validated(tmp_path, children):
    bundle = calibrate_bundle(lung_bundle(tmp_path / "bundle"), children, method="none", described_as="val")
    stated = DatasetDescription("ours", Population("toddlers", (1, 5)), "St. Anna")
    for manifest, expected in (
        (
            replace(children, description=stated),
            (Population("toddlers", (1, 5), ("AP",), "St. Anna", 80, 80),),
        ),
        (children, (Population("test", (1, 33), ("AP",), "", 80, 80),)),
        (children.with_records([replace(record, age=None) for record in children]), ()),
    ):
        done = evaluate_bundle(bundle, manifest, tmp_path / "out", evaluated_on="test", about={}, n_boot=20)
        signed = sign_bundle(bundle, done.metrics)
        assert load_bundle(bundle.path).manifest.validated == signed.manifest.validated == expected
    shown = "Validated on: not stated." if not expected else expected[0].describe()
    assert shown in signed.card


def test_labels_with_the_name_of_the_target_only(tmp_path, children):
    bundle = lung_bundle(tmp_path / "bundle")
    named = [replace(one, label="clear" if one.label == "clear" else "infiltrate") for one in children]
    done = evaluate_bundle(
        bundle, children.with_records(named), tmp_path / "out", evaluated_on="x", about={}, n_boot=20
    )
    assert done.metrics.classes == ("clear", "infiltrate")
    assert done.metrics.target.name == "infiltrate"
    assert done.metrics.subtypes == {}
    plain = evaluate_bundle(bundle, children, tmp_path / "two", evaluated_on="x", about={}, n_boot=20)
    assert done.metrics.detection.auroc == plain.metrics.detection.auroc
