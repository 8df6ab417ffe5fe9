"""Recalibration and what it rests on: observed images, weights, cross-fitting."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.errors import BundleError, DataError
from pneumoscope.evaluation.bundles import calibrate_bundle, sign_bundle
from pneumoscope.evaluation.calibration import fit_calibration, refit_against_normal
from pneumoscope.evaluation.observe import MeanFeatures, Observed, observe
from pneumoscope.evaluation.recalibrate import recalibrate_bundle
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.manifest import Calibrator
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.predictor import Predictor

KINDS = ("normal", "bacterial", "viral")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Manifest:
    """Brighter and darker images, two a patient, that the network for tests tells apart in part."""
    folder = tmp_path_factory.mktemp("site")
    records = []
    for number in range(90):
        label = KINDS[number // 2 % 3]
        path = f"{label}/{number}.png"
        write_image(folder / path, seed=number)
        image = cv2.imread(str(folder / path), cv2.IMREAD_GRAYSCALE).astype(np.float32)
        factor = {"normal": 0.7, "bacterial": 0.85, "viral": 1.0}[label]
        cv2.imwrite(str(folder / path), (image * factor).astype(np.uint8))
        records.append(Record(path, label, f"patient{number // 2}"))
    return Manifest(tuple(records), folder)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return make_bundle(
        tmp_path_factory.mktemp("parent"),
        calibrator={
            "method": "temperature",
            "scale": (0.5,) * 3,
            "bias": (0.0,) * 3,
            "fitted_on": "elsewhere",
        },
        conformal=(0.3, 0.2, 0.1),
        conformal_alpha=0.1,
        results={
            "evaluated_on": "elsewhere",
            "pneumonia": {"auroc": {"value": 0.9, "low": 0.8, "high": 1.0}},
        },
    )


@pytest.fixture(scope="module")
def child(parent, site, tmp_path_factory):
    out = tmp_path_factory.mktemp("child") / "bundle"
    return recalibrate_bundle(parent, site, out, described_as="our ward", n_boot=100)


def two_class(manifest: Manifest) -> Manifest:
    return manifest.with_records(
        [replace(one, label="normal" if one.label == "normal" else "pneumonia") for one in manifest]
    )


def drawn(n=400, seed=0, *, kinds=True) -> Observed:
    """Logits, and labels drawn from their softmax with the normal logit moved by one."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, 3))
    true = logits + np.array([1.0, 0, 0])
    p = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in p])
    possible = labels[:, None] == np.arange(3)
    if not kinds:
        possible[labels > 0] = [False, True, True]
    records = tuple(Record(f"{i}.png", KINDS[label], f"p{i}") for i, label in enumerate(labels))
    return Observed(logits, KINDS, possible, np.arange(n), records)


def test_views_weigh_as_one_image_and_share_its_label(parent, site):
    few = site.with_records(site.records[:7])
    observed = observe(Predictor.load(parent.path), few, views=3)
    assert len(observed.logits) == 7 * 4
    assert observed.weights.sum() == pytest.approx(7)
    assert observed.as_it_is.sum() == 7
    np.testing.assert_array_equal(observed.patients[::4], [0, 0, 1, 1, 2, 2, 3])
    plain = observe(Predictor.load(parent.path), few)
    np.testing.assert_allclose(observed.logits[observed.as_it_is], plain.logits, rtol=1e-4, atol=1e-4)
    assert np.ptp(observed.logits[:4], axis=0).max() > 1e-3  # the views are others
    again = observe(Predictor.load(parent.path), few, views=3)
    np.testing.assert_allclose(again.logits, observed.logits, atol=1e-4)


def test_what_is_not_evaluated_is_counted_and_left_out(parent, site, tmp_path):
    write_image(tmp_path / "small.png", height=20, width=20)
    (tmp_path / "broken.png").write_bytes(b"no image")
    write_image(tmp_path / "good.png", seed=1)
    records = [Record(f"{name}.png", "normal", name) for name in ("small", "good", "broken")]
    background = MeanFeatures()
    manifest = Manifest(tuple(records), tmp_path)
    observed = observe(Predictor.load(parent.path), manifest, views=1, collectors=(background,))
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
        KINDS,
        np.repeat(once.possible, 3, axis=0),
        np.repeat(once.images, 3),
        once.records,
    )
    one, other = (fit_calibration(part, method, fitted_on="x") for part in (once, thrice))
    np.testing.assert_allclose(one.calibrator.scale, other.calibrator.scale, rtol=1e-4)
    assert one.conformal == pytest.approx(other.conformal, rel=1e-3)
    for left, right in zip(one.operating_points, other.operating_points, strict=True):
        assert (left.sensitivity, left.specificity) == pytest.approx((right.sensitivity, right.specificity))


def test_labels_without_kinds_find_the_bias_of_normal_and_keep_the_kinds(parent):
    observed = drawn(4000, kinds=False)
    flat = parent.manifest.model_copy(update={"calibrator": Calibrator(fitted_on="elsewhere")})
    fitted = refit_against_normal(observed, "vector", fitted_on="here", parent=flat)
    assert fitted.calibrator.odds_scale == pytest.approx(1, rel=0.1)
    assert fitted.calibrator.odds_bias == pytest.approx(-1, abs=0.15)
    assert "here" in fitted.calibrator.fitted_on
    assert "elsewhere" in fitted.calibrator.fitted_on
    before, after = (calibrate(observed.logits, one) for one in (flat.calibrator, fitted.calibrator))
    np.testing.assert_allclose(after[:, 1] / after[:, 2], before[:, 1] / before[:, 2], rtol=1e-9)
    assert fitted.conformal is not None
    assert fitted.conformal[1:] == flat.conformal[1:]
    assert fitted.conformal[0] != flat.conformal[0]
    kept = refit_against_normal(observed, "none", fitted_on="here", parent=flat)
    assert kept.calibrator == flat.calibrator


def test_the_child_has_the_parents_network_and_says_whose_child_it_is(child, parent):
    bundle = load_bundle(child.bundle.path)
    for name in ("model.onnx", "head.npz"):
        assert bundle.manifest.files[name] == parent.manifest.files[name]
    assert bundle.manifest.provenance.parent == parent.identity
    assert bundle.identity != parent.identity
    (answer,) = Predictor.load(bundle.path).predict(parent.path / "none.png")
    assert answer.bundle == bundle.identity
    assert bundle.manifest.calibrator.fitted_on == "our ward"
    assert load_bundle(parent.path).manifest == parent.manifest


def test_the_card_tells_whose_figures_are_whose(child, parent):
    card = child.bundle.card
    assert "## Recalibrated" in card
    assert f"Figures of the parent\n\n{parent.identity} was measured on elsewhere" in card
    assert "## How well it reads" not in card
    results = child.bundle.manifest.results
    assert "pneumonia" not in results
    assert results["parent"]["results"]["pneumonia"]["auroc"]["value"] == 0.9


def test_the_figures_are_cross_fitted(child, parent, site):
    """By hand: each image as it is, evaluated with what was fitted on the other folds' patients."""
    from pneumoscope.data.split import folds

    observed = observe(Predictor.load(parent.path), site)
    p = np.zeros(len(site))
    called = np.zeros(len(site), bool)
    for held_out in folds(site, 5, 0):
        kept = np.setdiff1d(np.arange(len(site)), held_out)
        fitted = fit_calibration(observed.of_images(kept), "vector", fitted_on="")
        p[held_out] = 1 - calibrate(observed.logits[held_out], fitted.calibrator)[:, 0]
        called[held_out] = p[held_out] >= fitted.operating_points[1].threshold
    truth = observed.is_pneumonia
    own = child.results["recalibrated"]
    assert own["brier"]["value"] == pytest.approx(((p - truth) ** 2).mean(), abs=1e-6)
    balanced = own["operating_points"]["balanced"]
    assert balanced["sensitivity"]["value"] == pytest.approx(called[truth].mean())
    assert child.bundle.manifest.operating_point("balanced").sensitivity == balanced["sensitivity"]["value"]
    before = 1 - calibrate(observed.logits, parent.manifest.calibrator)[:, 0]
    assert child.results["parent"]["brier"]["value"] == pytest.approx(
        ((before - truth) ** 2).mean(), abs=1e-6
    )
    assert set(own["prediction_sets"]) == {"holds_normal", "holds_bacterial", "holds_viral", "uncertain"}
    for figure in (own["ece"], own["brier"], balanced["specificity"]):
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_few_images_are_warned_of(child):
    assert any("30 normal, 30 bacterial, 30 viral" in line for line in child.warnings)


def test_two_classes_are_enough_for_a_bundle_of_three(parent, site, tmp_path):
    done = recalibrate_bundle(
        parent, two_class(site), tmp_path / "new", described_as="ward", n_boot=100, views=1
    )
    manifest = done.bundle.manifest
    assert done.results["against_normal_only"]
    assert done.results["images_by_class"]["pneumonia"] == 60
    assert manifest.conformal is not None
    assert manifest.conformal[1:] == parent.manifest.conformal[1:]
    assert manifest.calibrator.scale == parent.manifest.calibrator.scale
    assert any("its kinds stay the parent's" in line for line in done.warnings)
    assert "which promise nothing here" in done.bundle.card


def test_a_signed_child_keeps_what_it_is(parent, site, tmp_path):
    from pneumoscope.evaluation.bundles import evaluate_bundle

    done = recalibrate_bundle(parent, site, tmp_path / "new", described_as="ward", n_boot=100)
    evaluated = evaluate_bundle(
        done.bundle, site, tmp_path / "evaluated", evaluated_on="test", about={}, n_boot=100
    )
    signed = sign_bundle(done.bundle, evaluated.metrics, "test")
    assert signed.identity == done.bundle.identity
    assert {"recalibration", "parent", "pneumonia"} <= set(signed.manifest.results)
    assert "## Recalibrated" in signed.card
    assert "## How well it reads" in signed.card


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda parent, site, out: (site, parent.path), BundleError, "is the bundle itself"),
        (
            lambda parent, site, out: (site, make_bundle(out / "b").path),
            BundleError,
            "holds a bundle already",
        ),
        (lambda parent, site, out: (site.with_records(site.records[:30]), out), DataError, "too few"),
        (lambda parent, site, out: (site, out / "a file"), DataError, "is a file"),
    ],
)
def test_what_cannot_be_done_is_said(parent, site, tmp_path, make, error, said):
    (tmp_path / "a file").write_text("")
    manifest, out = make(parent, site, tmp_path)
    with pytest.raises(error, match=said):
        recalibrate_bundle(parent, manifest, out, described_as="ward", n_boot=100)


def test_calibrating_with_views_is_repeatable_and_says_so(site, tmp_path):
    bundle = make_bundle(tmp_path)
    once = calibrate_bundle(bundle, site, method="temperature", described_as="val", views=2)
    again = calibrate_bundle(bundle, site, method="temperature", described_as="val", views=2)
    assert once.manifest.conformal == pytest.approx(again.manifest.conformal, rel=1e-3)
    assert "2 disturbed views" in once.manifest.calibrator.fitted_on
    plain = calibrate_bundle(bundle, site, method="temperature", described_as="val")
    assert plain.manifest.conformal != once.manifest.conformal
