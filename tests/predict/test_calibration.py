from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pneumoscope.domain import OperatingPoint
from pneumoscope.model.manifest import Calibrator
from pneumoscope.predict.calibration import calibrate, calibrated_logits, decide, log_odds, prediction_set

LOGITS = arrays(np.float32, (4, 3), elements=st.floats(-1e4, 1e4, width=32))


@given(LOGITS)
def test_probabilities_add_up_to_one_for_any_logits(logits):
    probabilities = calibrate(logits, Calibrator())
    assert probabilities.shape == logits.shape
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1)


def test_no_calibrator_is_the_plain_softmax():
    logits = np.log([0.2, 0.3, 0.5])
    np.testing.assert_allclose(calibrate(logits, Calibrator()), [0.2, 0.3, 0.5])


def test_a_temperature_above_one_draws_probabilities_together():
    cooled = calibrate([0.0, 2.0], Calibrator(method="temperature", scale=(0.5,)))
    assert cooled[1] == pytest.approx(1 / (1 + np.exp(-1.0)))


def test_vector_scaling_has_a_scale_and_a_bias_for_each_class():
    calibrator = Calibrator(method="vector", scale=(1.0, 2.0), bias=(0.5, -0.5))
    expected = np.exp([1.5, 3.5]) / np.exp([1.5, 3.5]).sum()
    np.testing.assert_allclose(calibrate([1.0, 2.0], calibrator), expected)


@given(LOGITS, st.floats(0.05, 20), st.floats(-10, 10))
def test_log_odds_are_moved_and_the_kinds_keep_their_shares(logits, scale, bias):
    base = Calibrator(method="vector", scale=(1.0, 2.0, 0.5), bias=(0.5, -0.5, 0.0))
    moved = base.model_copy(update={"odds_scale": scale, "odds_bias": bias})
    before, after = calibrated_logits(logits, base), calibrated_logits(logits, moved)
    np.testing.assert_allclose(log_odds(after), scale * log_odds(before) + bias, rtol=1e-9, atol=1e-6)
    np.testing.assert_array_equal(after[..., 1:], before[..., 1:])


def test_the_threshold_itself_counts_as_pneumonia():
    point = OperatingPoint("screening", 0.25)
    assert decide(0.25, point) == "pneumonia"
    assert decide(np.nextafter(0.25, 0), point) == "no pneumonia"


def test_prediction_set_holds_the_classes_that_reach_their_own_threshold():
    assert prediction_set([0.2, 0.5, 0.3], (0.1, 0.6, 0.3)) == (0, 2)
    assert prediction_set([0.2, 0.5, 0.3], (0.9, 0.9, 0.9)) == ()
    assert prediction_set([0.2, 0.5, 0.3], None) == ()
