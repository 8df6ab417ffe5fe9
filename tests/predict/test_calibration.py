from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pneumoscope.domain import OperatingPoint, Target
from pneumoscope.errors import BundleError
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.manifest import BundleManifest, Calibration, Calibrator
from pneumoscope.predict.calibration import (
    assumed_prevalence,
    at_prevalence,
    calibrate,
    calibrated_logits,
    decide,
    is_uncertain,
    log_odds,
    prediction_set,
)

# Normal, bacterial, viral.
MASK = np.array([False, True, True])
TARGET = Target("pneumonia", ("bacterial", "viral"))
LOGITS = arrays(np.float32, (4, 3), elements=st.floats(-1e4, 1e4, width=32))


@given(LOGITS)
def test_probabilities_add_up_to_one_for_any_logits(logits):
    probabilities = calibrate(logits, Calibrator(), MASK)
    assert probabilities.shape == logits.shape
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1)


def test_no_calibrator_is_the_plain_softmax():
    logits = np.log([0.2, 0.3, 0.5])
    np.testing.assert_allclose(calibrate(logits, Calibrator(), MASK), [0.2, 0.3, 0.5])


def test_a_temperature_above_one_draws_probabilities_together():
    cooled = calibrate([0.0, 2.0], Calibrator(method="temperature", scale=(0.5,)), MASK[:2])
    assert cooled[1] == pytest.approx(1 / (1 + np.exp(-1.0)))


def test_vector_scaling_has_a_scale_and_a_bias_for_each_class():
    calibrator = Calibrator(method="vector", scale=(1.0, 2.0), bias=(0.5, -0.5))
    expected = np.exp([1.5, 3.5]) / np.exp([1.5, 3.5]).sum()
    np.testing.assert_allclose(calibrate([1.0, 2.0], calibrator, MASK[:2]), expected)


@pytest.mark.parametrize("mask", [MASK, ~MASK, np.array([True, False, True])])
@given(LOGITS, st.floats(0.05, 20), st.floats(-10, 10))
def test_log_odds_are_calibrated_and_shares_within_and_outside_the_target_stay(mask, logits, scale, bias):
    base = Calibrator(method="vector", scale=(1.0, 2.0, 0.5), bias=(0.5, -0.5, 0.0))
    moved = base.model_copy(update={"odds_scale": scale, "odds_bias": bias})
    before, after = calibrated_logits(logits, base, mask), calibrated_logits(logits, moved, mask)
    np.testing.assert_allclose(
        log_odds(after, mask), scale * log_odds(before, mask) + bias, rtol=1e-9, atol=1e-6
    )
    np.testing.assert_array_equal(after[..., mask], before[..., mask])
    outside = after[..., ~mask] - before[..., ~mask]
    np.testing.assert_allclose(outside, np.broadcast_to(outside[..., :1], outside.shape), atol=1e-6)


def test_the_threshold_itself_counts_as_pneumonia():
    point = OperatingPoint("screening", 0.25)
    assert decide(0.25, point, TARGET) == "pneumonia"
    assert decide(np.nextafter(0.25, 0), point, TARGET) == "no pneumonia"


def test_prediction_set_holds_the_classes_that_reach_their_own_threshold():
    assert prediction_set([0.2, 0.5, 0.3], (0.1, 0.6, 0.3)) == (0, 2)
    assert prediction_set([0.2, 0.5, 0.3], (0.9, 0.9, 0.9)) == ()
    assert prediction_set([0.2, 0.5, 0.3], None) == ()


def test_a_set_is_uncertain_with_classes_for_and_against_the_target_or_none_at_all():
    thresholds = (0.1, 0.2, 0.3)
    assert is_uncertain((0, 2), MASK, thresholds)
    assert is_uncertain((), MASK, thresholds)
    assert not is_uncertain((1, 2), MASK, thresholds)
    assert not is_uncertain((0,), MASK, thresholds)
    assert not is_uncertain((), MASK, None)


def of_prevalence(prevalence, threshold=0.6):
    points = (OperatingPoint("balanced", threshold), OperatingPoint("all", 0.0), OperatingPoint("none", 1.0))
    return BundleManifest(
        name="tiny",
        classes=("normal", "bacterial", "viral"),
        target=TARGET,
        input=InputSpec(size=64),
        calibrations=(Calibration(prevalence=prevalence, operating_points=points),),
    )


SHARES = st.floats(0.001, 0.999)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), SHARES, SHARES, SHARES)
def test_another_prevalence_moves_probabilities_and_thresholds_by_the_rule_of_bayes(
    logits, fitted, site, threshold
):
    manifest = of_prevalence(fitted, threshold)
    moved = at_prevalence(manifest, site)
    before, after = (calibrate(logits, one.calibrations[0].calibrator, MASK) for one in (manifest, moved))
    p, q = before[MASK].sum(), after[MASK].sum()
    likelihood_ratio = p / (1 - p) / (fitted / (1 - fitted)) if p < 1 else np.inf
    odds = likelihood_ratio * site / (1 - site)
    assert q == pytest.approx(1.0 if np.isinf(odds) else odds / (1 + odds), rel=1e-6)
    np.testing.assert_allclose(after[MASK] / q, before[MASK] / p, rtol=1e-6)
    if abs(p - threshold) > 1e-6:
        points = [one.operating_point("balanced") for one in (manifest, moved)]
        assert decide(float(p), points[0], TARGET) == decide(float(q), points[1], TARGET)


def test_the_prevalence_that_probabilities_are_for_is_known_and_may_be_set_again():
    manifest = of_prevalence(0.7)
    once = at_prevalence(manifest, 0.05)
    assert assumed_prevalence(manifest.calibrations[0]) == 0.7
    assert assumed_prevalence(once.calibrations[0]) == pytest.approx(0.05)
    again, direct = at_prevalence(once, 0.2), at_prevalence(manifest, 0.2)
    assert again.operating_point("balanced").threshold == pytest.approx(direct.operating_point().threshold)
    assert at_prevalence(once, 0.05) == once
    back = at_prevalence(once, 0.7)
    assert back.operating_point("balanced").threshold == pytest.approx(0.6)
    assert [once.operating_point(name).threshold for name in ("all", "none")] == [0, 1]


@pytest.mark.parametrize("fitted", [None, 0.0, 1.0])
def test_a_bundle_that_does_not_state_its_prevalence_cannot_be_shifted(fitted):
    with pytest.raises(BundleError, match="tiny: does not state the prevalence"):
        at_prevalence(of_prevalence(fitted), 0.05)


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, 5, 1e-320, float("nan")])
def test_a_prevalence_is_above_0_and_below_1(prevalence):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        at_prevalence(of_prevalence(0.5), prevalence)
