from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pneumoscope.domain import OperatingPoint
from pneumoscope.model.bundle import Calibrator
from pneumoscope.predict.calibration import calibrate, decide, prediction_set

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


def test_the_threshold_itself_counts_as_pneumonia():
    point = OperatingPoint("screening", 0.25)
    assert decide(0.25, point) == "pneumonia"
    assert decide(np.nextafter(0.25, 0), point) == "no pneumonia"


def test_prediction_set_holds_the_classes_that_reach_their_own_threshold():
    assert prediction_set([0.2, 0.5, 0.3], (0.1, 0.6, 0.3)) == (0, 2)
    assert prediction_set([0.2, 0.5, 0.3], (0.9, 0.9, 0.9)) == ()
    assert prediction_set([0.2, 0.5, 0.3], None) == ()
