"""Recalibration, and what it needs: observed images, weights, cross-fitting."""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import DatasetDescription, Estimate, Population, Target
from pneumoscope.errors import BundleError, DataError
from pneumoscope.evaluation.calibration import fit_calibration, refit_target
from pneumoscope.evaluation.estimation import fit_views
from pneumoscope.evaluation.observe import MeanFeatures, Observed, observe
from pneumoscope.evaluation.recalibration import recalibrate_bundle, set_prevalence
from pneumoscope.evaluation.steps import calibrate_bundle, sign_bundle
from pneumoscope.model.bundle import VIEWS_FILE, Bundle, load_bundle, write_bundle
from pneumoscope.model.manifest import Calibrator, Provenance, TrainingData
from pneumoscope.model.measures import Detection
from pneumoscope.model.results import Evaluation
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.inputs import input_items
from pneumoscope.predict.predictor import Predictor

CLASSES = ("normal", "bacterial", "viral")
TARGET = Target("pneumonia", ("bacterial", "viral"))
MASK = np.array([False, True, True])
CHILDREN = Population("children", (1, 5), hospital="Guangzhou", patients=280, images=500)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Manifest:
    """Brighter and darker images, two a patient, that the network for tests tells apart in part."""
    folder = tmp_path_factory.mktemp("site")
    records = []
    for number in range(90):
        label = CLASSES[number // 2 % 3]
        path = f"{label}/{number}.png"
        write_image(folder / path, seed=number)
        image = cv2.imread(str(folder / path), cv2.IMREAD_GRAYSCALE).astype(np.float32)
        factor = {"normal": 0.7, "bacterial": 0.85, "viral": 1.0}[label]
        cv2.imwrite(str(folder / path), (image * factor).astype(np.uint8))
        records.append(Record(path, label, f"patient{number // 2}"))
    return Manifest(tuple(records), folder)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    auroc = Estimate(0.9, 0.8, 1.0)
    evaluation = Evaluation(
        evaluated_on="another hospital", detection=Detection(auroc=auroc), population=CHILDREN
    )
    return make_bundle(
        tmp_path_factory.mktemp("parent"),
        state="evaluated",
        calibration={
            "calibrator": {
                "method": "temperature",
                "scale": (0.5,) * 3,
                "bias": (0.0,) * 3,
                "fitted_on": "another hospital",
            },
            "conformal": (0.3, 0.2, 0.1),
            "conformal_alpha": 0.1,
            "operating_points": [{"name": "balanced", "threshold": 0.5}],
        },
        validated=(CHILDREN,),
        results={"evaluation": evaluation},
    )


@pytest.fixture(scope="module")
def child(parent, site, tmp_path_factory):
    out = tmp_path_factory.mktemp("child") / "bundle"
    return recalibrate_bundle(parent, site, out, described_as="our ward", n_boot=100)


def two_class(manifest: Manifest) -> Manifest:
    return manifest.with_records(
        [replace(one, label="normal" if one.label == "normal" else "pneumonia") for one in manifest]
    )


def drawn(n=400, seed=0, *, subtypes=True) -> Observed:
    """Logits, and labels drawn from their softmax with the normal logit moved by one."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, 3))
    true = logits + np.array([1.0, 0, 0])
    p = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in p])
    possible = labels[:, None] == np.arange(3)
    if not subtypes:
        possible[labels > 0] = [False, True, True]
    records = tuple(Record(f"{i}.png", CLASSES[label], f"p{i}") for i, label in enumerate(labels))
    return Observed(logits, CLASSES, TARGET, possible, np.arange(n), records, (None,) * n)


def test_copies_weigh_as_one_image_and_share_its_label(parent, site):
    few = site.with_records(site.records[:7])
    observed = observe(Predictor.load(parent.path), few, copies=3)
    assert len(observed.logits) == 7 * 4
    assert observed.weights.sum() == pytest.approx(7)
    assert observed.is_original.sum() == 7
    np.testing.assert_array_equal(observed.patients[::4], [0, 0, 1, 1, 2, 2, 3])
    plain = observe(Predictor.load(parent.path), few)
    np.testing.assert_allclose(observed.logits[observed.is_original], plain.logits, rtol=1e-4, atol=1e-4)
    assert np.ptp(observed.logits[:4], axis=0).max() > 1e-3  # the copies differ
    again = observe(Predictor.load(parent.path), few, copies=3)
    np.testing.assert_allclose(again.logits, observed.logits, atol=1e-4)


def test_what_is_not_evaluated_is_counted_and_left_out(parent, site, tmp_path):
    write_image(tmp_path / "small.png", height=20, width=20)
    (tmp_path / "broken.png").write_bytes(b"no image")
    write_image(tmp_path / "good.png", seed=1)
    records = [Record(f"{name}.png", "normal", name) for name in ("small", "good", "broken")]
    background = MeanFeatures(TARGET)
    manifest = Manifest(tuple(records), tmp_path)
    observed = observe(Predictor.load(parent.path), manifest, copies=1, collectors=(background,))
    assert [record.path for record in observed.records] == ["good.png"]
    assert observed.not_evaluated == 2
    ((one,),) = Predictor.load(parent.path).outputs_iter(tmp_path / "good.png")
    np.testing.assert_allclose(background.mean_, one.features, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="none of its images could be evaluated"):
        observe(Predictor.load(parent.path), manifest.with_records(records[:1]))


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_copies_of_all_rows_change_nothing(method):
    once = drawn()
    thrice = Observed(
        np.repeat(once.logits, 3, axis=0),
        CLASSES,
        TARGET,
        np.repeat(once.possible, 3, axis=0),
        np.repeat(once.images, 3),
        once.records,
        once.estimated,
    )
    one, other = (fit_calibration(part, method, fitted_on="x") for part in (once, thrice))
    np.testing.assert_allclose(one.calibrator.scale, other.calibrator.scale, rtol=1e-4)
    assert one.conformal == pytest.approx(other.conformal, rel=1e-3)
    for left, right in zip(one.operating_points, other.operating_points, strict=True):
        for rate in ("sensitivity", "specificity"):
            assert getattr(left, rate).value == pytest.approx(getattr(right, rate).value)


@pytest.mark.parametrize("method", ["none", "temperature", "vector"])
def test_images_of_one_kind_are_one_line(parent, method):
    observed = drawn(60).of_images(np.flatnonzero(drawn(60).is_positive))
    with pytest.raises(DataError, match="need images with and without pneumonia"):
        fit_calibration(observed, method, fitted_on="here")
    with pytest.raises(DataError, match="need images with and without pneumonia"):
        refit_target(observed, method, fitted_on="here", parent=parent.manifest.calibrations[0])


@pytest.mark.parametrize("target_only", [False, True])
def test_a_temperature_does_not_leave_the_prevalence_of_the_training(parent, target_only):
    observed = drawn(2000)  # of a network that was trained where normal images were rarer
    own = parent.manifest.calibrations[0]
    fitted = (
        refit_target(observed, "temperature", fitted_on="here", parent=own)
        if target_only
        else fit_calibration(observed, "temperature", fitted_on="here")
    )
    p = calibrate(observed.logits, fitted.calibrator, MASK)[:, MASK].sum(axis=1)
    assert p.mean() == pytest.approx(observed.prevalence, abs=1e-6)
    assert fitted.prevalence == observed.prevalence
    assert fitted.calibrator.odds_bias < -0.5, "normal images are likelier than the network takes them for"


def test_labels_without_subtypes_find_the_bias_of_the_target_and_keep_the_subtypes(parent):
    observed = drawn(4000, subtypes=False)
    flat = parent.manifest.calibrations[0].model_copy(
        update={"calibrator": Calibrator(fitted_on="another hospital")}
    )
    fitted = refit_target(observed, "vector", fitted_on="here", parent=flat)
    assert fitted.calibrator.odds_scale == pytest.approx(1, rel=0.1)
    assert fitted.calibrator.odds_bias == pytest.approx(-1, abs=0.15)
    assert "here" in fitted.calibrator.fitted_on
    assert "another hospital" in fitted.calibrator.fitted_on
    before, after = (calibrate(observed.logits, one.calibrator, MASK) for one in (flat, fitted))
    np.testing.assert_allclose(after[:, 1] / after[:, 2], before[:, 1] / before[:, 2], rtol=1e-9)
    assert fitted.conformal is not None
    assert fitted.conformal[1:] == flat.conformal[1:]
    assert fitted.conformal[0] != flat.conformal[0]
    kept = refit_target(observed, "none", fitted_on="here", parent=flat)
    assert kept.calibrator == flat.calibrator


def test_the_child_has_the_parents_network_and_names_its_parent(child, parent):
    bundle = load_bundle(child.bundle.path)
    for name in ("model.onnx", "head.npz"):
        assert bundle.manifest.files[name] == parent.manifest.files[name]
    assert bundle.manifest.provenance.parent == parent.identity
    assert bundle.identity != parent.identity
    (prediction,) = Predictor.load(bundle.path).predict(parent.path / "none.png")
    assert prediction.bundle == bundle.identity
    assert bundle.manifest.calibrations[0].calibrator.fitted_on == "our ward"
    assert bundle.manifest.state == "evaluated"
    assert load_bundle(parent.path).manifest == parent.manifest


def test_the_card_tells_whose_results_are_whose(child, parent):
    card = child.bundle.card
    assert "## Recalibration" in card
    assert f"Results of the parent\n\n{parent.identity} was measured on another hospital" in card
    assert "## Evaluation" not in card
    files = set(re.findall(r"^\| (\S+) \| `[0-9a-f]{64}` \|$", card, re.MULTILINE))
    assert files == child.bundle.manifest.files.keys() - {"card.md"}
    results = child.bundle.manifest.results
    assert results.evaluation is None
    assert results.parent.evaluation.detection.auroc.value == 0.9


@pytest.mark.parametrize("states", ["dataset.yaml", "records", "nothing"])
def test_recalibrating_on_adults_replaces_the_validation_on_children(parent, site, tmp_path, states):
    stated = {
        "dataset.yaml": DatasetDescription(
            population=Population("adults", (18, 90), ("PA",)), hospital="Ours"
        ),
        "records": None,
        "nothing": None,
    }[states]
    ages = {"age": 44.5, "view": "AP"} if states == "records" else {}
    manifest = replace(site.with_records([replace(record, **ages) for record in site]), description=stated)
    done = recalibrate_bundle(parent, manifest, tmp_path / "new", described_as="ward", n_boot=100)
    (before,) = parent.manifest.validated
    assert before == CHILDREN
    counts = {"patients": 45, "images": 90}
    expected = {
        "dataset.yaml": (Population("adults", (18, 90), ("PA",), "Ours", **counts),),
        "records": (Population("ward", (44, 44), ("AP",), **counts),),
        "nothing": (),  # unknown ages: no claim
    }[states]
    assert load_bundle(done.bundle.path).manifest.validated == expected
    assert "children" not in done.bundle.card.partition("## Recalibration")[0]


def test_the_results_are_cross_fitted(child, parent, site):
    """By hand: each image, without copies, evaluated with what was fitted on the other folds' patients."""
    from pneumoscope.data.split import folds

    observed = observe(Predictor.load(parent.path), site)
    p = np.zeros(len(site))
    called = np.zeros(len(site), bool)
    for held_out in folds(site, 5, 0):
        kept = np.setdiff1d(np.arange(len(site)), held_out)
        fitted = fit_calibration(observed.of_images(kept), "vector", fitted_on="")
        p[held_out] = 1 - calibrate(observed.logits[held_out], fitted.calibrator, MASK)[:, 0]
        called[held_out] = p[held_out] >= fitted.operating_points[1].threshold
    truth = observed.is_positive
    own = child.results.recalibrated
    assert own.brier.value == pytest.approx(((p - truth) ** 2).mean(), abs=1e-6)
    balanced = own.operating_points["balanced"]
    assert balanced.sensitivity.value == pytest.approx(called[truth].mean())
    assert child.bundle.manifest.operating_point("balanced").sensitivity == balanced.sensitivity
    before = 1 - calibrate(observed.logits, parent.manifest.calibrations[0].calibrator, MASK)[:, 0]
    assert child.results.parent.brier.value == pytest.approx(((before - truth) ** 2).mean(), abs=1e-6)
    assert set(own.prediction_sets.coverage) == {"normal", "bacterial", "viral"}
    for one in (own.ece, own.brier, balanced.specificity, own.prediction_sets.uncertain):
        assert one.low is None or one.low <= one.value <= one.high
    assert own.brier.low < own.brier.high


def test_the_parents_side_is_what_the_parent_predicts(parent, site, tmp_path):
    """With a calibration by population, each image is measured with that of its own."""
    adults, old = Population("adult", (18, None)), parent.manifest.calibrations[0]
    own = old.model_copy(
        update={
            "population": "adult",
            "calibrator": old.calibrator.model_copy(update={"bias": (3.0, 0.0, 0.0)}),
        }
    )
    content = {"populations": (adults,), "calibrations": (old, own)}
    files = {name: parent.path / name for name in parent.manifest.files}
    both = write_bundle(tmp_path / "both", parent.manifest.model_copy(update=content), files)
    aged = site.with_records(
        replace(record, age=40.0 if number % 4 < 2 else 3.0) for number, record in enumerate(site)
    )
    found = recalibrate_bundle(both, aged, tmp_path / "own", described_as="ward", n_boot=10).results
    predicted = Predictor(both, workers=1).predict(input_items(aged))
    assert {one.population for one in predicted} == {"adult", "any"}
    ill = [one.positive for one, record in zip(predicted, aged, strict=True) if record.label != "normal"]
    sensitivity = found.parent.operating_points["balanced"].sensitivity
    assert sensitivity.value == pytest.approx(np.mean(ill))


def test_the_parents_side_follows_the_estimated_view(parent, site, tmp_path):
    """Where no view is stated, the parent decides by the calibration of the view that it estimates."""
    old = parent.manifest.calibrations[0]
    names = {"ap": (3.0, 0.0, 0.0), "pa": (-3.0, 0.0, 0.0)}
    own = [
        old.model_copy(
            update={
                "population": name,
                "calibrator": old.calibrator.model_copy(update={"bias": bias}),
            }
        )
        for name, bias in names.items()
    ]
    populations = (Population("ap", views=("AP",)), Population("pa", views=("PA",)))
    files = {name: parent.path / name for name in parent.manifest.files}
    draft = write_bundle(tmp_path / "views", parent.manifest, files)
    stated = site.with_records(
        replace(record, view=("AP", "PA")[record.label == "normal"]) for record in site
    )
    views = fit_views(draft, stated, stated)
    content = {"populations": populations, "calibrations": (old, *own)}
    both = write_bundle(draft.path, draft.manifest.model_copy(update=content), {VIEWS_FILE: views.content})
    predicted = Predictor(both, workers=1).predict(input_items(site))
    assert {one.population for one in predicted} == {"ap", "pa"}
    found = recalibrate_bundle(both, site, tmp_path / "own", described_as="ward", n_boot=10)
    ill = [one.positive for one, record in zip(predicted, site, strict=True) if record.label != "normal"]
    sensitivity = found.results.parent.operating_points["balanced"].sensitivity
    assert sensitivity.value == pytest.approx(np.mean(ill))
    assert found.results.population is None  # an estimate is no evidence of whom it was measured on


@pytest.mark.parametrize(("split", "warned"), [("", True), ("train", True), ("test", False)])
def test_images_that_the_bundle_was_trained_on_are_warned_of(parent, site, tmp_path, split, warned):
    images = site.with_records(replace(record, split=split) for record in site.records)
    provenance = Provenance(data=(TrainingData(fingerprint=images.fingerprint()),))
    trained = Bundle(parent.path, parent.manifest.model_copy(update={"provenance": provenance}))
    found = recalibrate_bundle(trained, images, tmp_path / "child", described_as="our ward", n_boot=20)
    assert any("our ward: the bundle was trained on" in one for one in found.warnings) == warned


def test_few_images_are_warned_of(child):
    assert any("30 normal, 30 bacterial, 30 viral" in line for line in child.warnings)


def test_a_class_outside_the_target_may_be_absent(site, tmp_path):
    parent = make_bundle(tmp_path / "parent", classes=(*CLASSES, "other"), target=TARGET)
    done = recalibrate_bundle(parent, site, tmp_path / "new", described_as="ward", n_boot=0)
    assert any("30 viral)" in line for line in done.warnings), "and not: 0 other"


def test_two_classes_are_enough_for_a_bundle_of_three(parent, site, tmp_path):
    done = recalibrate_bundle(
        parent, two_class(site), tmp_path / "new", described_as="ward", n_boot=100, copies=1
    )
    manifest = done.bundle.manifest
    assert done.results.target_only
    assert done.results.images_by_class["pneumonia"] == 60
    (own,), (other,) = manifest.calibrations, parent.manifest.calibrations
    assert own.conformal is not None
    assert own.conformal[1:] == other.conformal[1:]
    assert own.calibrator.scale == other.calibrator.scale
    assert any("its classes keep the parent's calibration" in line for line in done.warnings)
    assert "whose coverage is not guaranteed here" in done.bundle.card


def test_the_child_of_a_calibration_for_one_population_is_for_any(parent, site, tmp_path):
    """Its classes keep the parent's calibration, which was for adults; the child has no populations."""
    (old,) = parent.manifest.calibrations
    points = tuple(replace(point, population="adult") for point in old.operating_points)
    own = old.model_copy(update={"population": "adult", "operating_points": points})
    content = {"populations": (Population("adult", (18, None)),), "calibrations": (own,)}
    files = {name: parent.path / name for name in parent.manifest.files}
    adults = write_bundle(tmp_path / "adults", parent.manifest.model_copy(update=content), files)
    done = recalibrate_bundle(adults, two_class(site), tmp_path / "new", described_as="ward", n_boot=10)
    (calibration,) = load_bundle(done.bundle.path).manifest.calibrations
    assert {calibration.population, *(one.population for one in calibration.operating_points)} == {"any"}


def test_a_signed_child_keeps_what_it_is(parent, site, tmp_path):
    from pneumoscope.evaluation.bundles import evaluate_bundle

    done = recalibrate_bundle(parent, site, tmp_path / "new", described_as="ward", n_boot=100)
    evaluated = evaluate_bundle(
        done.bundle, site, tmp_path / "evaluated", evaluated_on="test", about={}, n_boot=100
    )
    signed = sign_bundle(done.bundle, evaluated.metrics)
    assert signed.identity == done.bundle.identity
    results = signed.manifest.results
    assert results.recalibration == done.results
    assert results.parent is not None
    assert results.evaluation == evaluated.metrics
    assert "## Recalibration" in signed.card
    assert "## Evaluation" in signed.card


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda parent, site, out: (site, parent.path), BundleError, "is the bundle itself"),
        (
            lambda parent, site, out: (site, make_bundle(out / "b").path),
            BundleError,
            "holds a bundle already",
        ),
        (lambda parent, site, out: (site.with_records(site.records[:30]), out), DataError, "too few"),
        (lambda parent, site, out: (site, out / "a file"), DataError, "is a file"),
        (lambda parent, site, out: (site, out / "a file" / "new"), DataError, "a file: is a file"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(parent, site, tmp_path, make, error, message):
    (tmp_path / "a file").write_text("")
    manifest, out = make(parent, site, tmp_path)
    with pytest.raises(error, match=message):
        recalibrate_bundle(parent, manifest, out, described_as="ward", n_boot=100)


def test_calibrating_with_copies_is_repeatable_and_recorded(site, tmp_path):
    bundle = make_bundle(tmp_path)
    once = calibrate_bundle(bundle, site, method="temperature", described_as="val", copies=2)
    again = calibrate_bundle(bundle, site, method="temperature", described_as="val", copies=2)
    assert once.manifest.calibrations[0].conformal == pytest.approx(
        again.manifest.calibrations[0].conformal, rel=1e-3
    )
    assert "2 augmented copies" in once.manifest.calibrations[0].calibrator.fitted_on
    plain = calibrate_bundle(bundle, site, method="temperature", described_as="val")
    assert plain.manifest.calibrations[0].conformal != once.manifest.calibrations[0].conformal


def test_the_card_of_a_shifted_child_tells_what_the_child_was_measured_on(child, tmp_path):
    shifted = set_prevalence(child.bundle, 0.05, tmp_path / "shifted")
    assert shifted.manifest.results.parent.recalibration == child.results
    card = (shifted.path / "card.md").read_text(encoding="utf-8")
    assert f"{child.bundle.identity} was recalibrated on our ward, cross-fitted: AUROC " in card
    assert "no results of its own" not in card
    assert "which is optimistic" not in card


def test_what_was_measured_of_gate_and_classifiers_is_kept_with_them(stated, site, tmp_path):
    measured = {
        "gate": {"limb": {"images": 9, "chest": False, "rejected": 0.9, "rejected_left_out": None}},
        "views": {"PA": {"images": 9, "correct": 0.9}},
        "populations": {"child": {"images": 9, "correct": 0.9}},
    }
    results = type(stated.manifest.results).model_validate(measured)
    full = write_bundle(stated.path, stated.manifest.model_copy(update={"results": results}))
    own = recalibrate_bundle(full, site, tmp_path / "own", described_as="our ward", n_boot=20).bundle
    assert own.manifest.results.gate == results.gate
    assert own.manifest.results.views == results.views
    assert own.manifest.results.populations == {}  # one calibration is for all
    shifted = set_prevalence(full, 0.05, tmp_path / "shifted").manifest.results
    assert (shifted.gate, shifted.views, shifted.populations) == (
        results.gate,
        results.views,
        results.populations,
    )


@pytest.fixture
def stated(parent, tmp_path):
    """The parent with the prevalence of its calibration, so that it can be shifted."""
    calibration = parent.manifest.calibrations[0].model_copy(update={"prevalence": 0.6})
    return write_bundle(
        tmp_path / "stated",
        parent.manifest.model_copy(update={"calibrations": (calibration,)}),
        {name: parent.path / name for name in parent.manifest.files},
    )


def test_prediction_sets_do_not_depend_on_a_prevalence_that_was_set_before(stated, site, tmp_path):
    shifted = set_prevalence(stated, 0.05, tmp_path / "shifted")
    plain, after = (
        recalibrate_bundle(one, site, tmp_path / name, method="none", described_as="our ward", n_boot=20)
        for one, name in ((stated, "plain"), (shifted, "after"))
    )
    conformal = [one.bundle.manifest.calibrations[0].conformal for one in (plain, after)]
    assert conformal[1] == pytest.approx(conformal[0], abs=1e-9)
    coverage = [one.results.recalibrated.prediction_sets.coverage for one in (plain, after)]
    assert coverage[0] == coverage[1]


def test_a_target_is_fitted_from_the_log_odds_of_a_prevalence_that_was_set_before(parent):
    observed = drawn(4000, subtypes=False)
    flat = parent.manifest.calibrations[0].model_copy(update={"calibrator": Calibrator()})
    shifted = flat.model_copy(update={"calibrator": Calibrator(prior_shift=-3.0)})
    plain, after = (
        calibrate(
            observed.logits,
            refit_target(observed, "vector", fitted_on="here", parent=one, n_boot=20).calibrator,
            MASK,
        )
        for one in (flat, shifted)
    )
    # What is fitted takes the shift back, so that both end on the same probabilities.
    np.testing.assert_allclose(after, plain, atol=0.01)
