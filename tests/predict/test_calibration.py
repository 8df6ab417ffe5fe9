from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pneumoscope.domain import OperatingPoint, Target
from pneumoscope.model.manifest import Calibrator
from pneumoscope.predict.calibration import (
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
