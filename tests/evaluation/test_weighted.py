from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from pneumoscope.evaluation import weighted

# Few levels, so that ties are the rule.
levels = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.9, 1.0])


@st.composite
def two_class(draw):
    n = draw(st.integers(2, 40))
    scores = draw(hnp.arrays(np.float64, n, elements=levels))
    truth = draw(hnp.arrays(np.bool_, n))
    truth[:2] = True, False
    counts = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 4)))
    counts[:2] += 1
    return scores, truth, counts.astype(np.float64)


@given(two_class())
def test_ranking_is_scikit_learns(case):
    scores, truth, counts = case
    weights = np.stack([np.ones_like(counts), counts])
    auroc, average_precision = weighted.ranking(scores, truth, weights)
    for row, w in enumerate(weights):
        assert auroc[row] == pytest.approx(sk.roc_auc_score(truth, scores, sample_weight=w), abs=1e-9)
        expected = sk.average_precision_score(truth, scores, sample_weight=w)
        assert average_precision[row] == pytest.approx(expected, abs=1e-9)


@given(two_class())
def test_curves_are_scikit_learns(case):
    scores, truth, counts = case
    weights = counts + 1  # scikit-learn leaves out what has no weight
    hits, alarms = weighted.cumulated(scores, truth, weights[None])
    expected = sk.roc_curve(truth, scores, sample_weight=weights, drop_intermediate=False)
    np.testing.assert_allclose(np.r_[0, alarms[0]] / alarms[0, -1], expected[0], atol=1e-9)
    np.testing.assert_allclose(np.r_[0, hits[0]] / hits[0, -1], expected[1], atol=1e-9)


@given(two_class())
def test_a_weight_is_a_repetition(case):
    scores, truth, counts = case
    again = np.repeat(np.arange(len(scores)), counts.astype(int))
    once = np.ones((1, len(again)))
    for got, expected in zip(
        weighted.ranking(scores, truth, counts[None]),
        weighted.ranking(scores[again], truth[again], once),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected)
    np.testing.assert_allclose(
        weighted.calibration_error(scores, truth, counts[None]),
        weighted.calibration_error(scores[again], truth[again], once),
        atol=1e-12,  # 0 is 0 up to rounding
    )


@given(two_class())
def test_rates_are_scikit_learns(case):
    scores, truth, w = case
    called = scores >= 0.5
    got = weighted.rates(weighted.confusion(truth.astype(int), called.astype(int), 2, w[None]), 1)
    expected = {
        "accuracy": sk.accuracy_score(truth, called, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, called, sample_weight=w),
        "sensitivity": sk.recall_score(truth, called, sample_weight=w),
        "specificity": sk.recall_score(~truth, ~called, sample_weight=w),
        "ppv": sk.precision_score(truth, called, sample_weight=w, zero_division=np.nan),
        "npv": sk.precision_score(~truth, ~called, sample_weight=w, zero_division=np.nan),
        "f1": sk.f1_score(truth, called, sample_weight=w, zero_division=np.nan),
    }
    if w[called].sum() and w[~called].sum():
        expected["mcc"] = sk.matthews_corrcoef(truth, called, sample_weight=w)
    else:
        assert np.isnan(got["mcc"][0])  # scikit-learn says 0; no value is more honest
    for name, value in expected.items():
        np.testing.assert_allclose(got[name][0], value, atol=1e-9, err_msg=name)


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_multiclass_mcc_and_brier_are_scikit_learns(k, seed):
    rng = np.random.default_rng(seed)
    truth = np.r_[np.arange(k), rng.integers(0, k, 30)]
    p = rng.dirichlet(np.ones(k), len(truth))
    w = rng.integers(1, 4, len(truth)).astype(float)
    called = p.argmax(axis=1)
    matrix = weighted.confusion(truth, called, k, w[None])
    np.testing.assert_array_equal(matrix[0], sk.confusion_matrix(truth, called, sample_weight=w))
    expected = sk.matthews_corrcoef(truth, called, sample_weight=w)
    assert weighted.multiclass_mcc(matrix)[0] == pytest.approx(expected)
    got = weighted.brier(p - (truth[:, None] == np.arange(k)), w[None])[0]
    expected = sk.brier_score_loss(truth, p, sample_weight=w, scale_by_half=False, labels=np.arange(k))
    assert got == pytest.approx(expected)


def test_one_class_only_is_undefined():
    scores, w = np.array([0.1, 0.9]), np.ones((1, 2))
    for truth in ([True, True], [False, False]):
        for values in weighted.ranking(scores, np.array(truth), w):
            assert np.isnan(values).all()
    assert all(np.isnan(v).all() for v in weighted.ranking(np.array([]), np.array([], bool), np.ones((3, 0))))


def test_calibration_error_by_hand():
    # Bin (4/15, 5/15]: mean confidence 0.3, half true. Bin (13/15, 14/15]: 0.9, all true.
    confidence = np.array([0.3, 0.3, 0.9, 0.9])
    truth = np.array([True, False, True, True])
    got = weighted.calibration_error(confidence, truth, np.ones((1, 4)))
    assert got[0] == pytest.approx((0.2 * 2 + 0.1 * 2) / 4)


def test_calibration_error_of_certainty():
    ends = np.array([0.0, 1.0, 0.0, 1.0])
    ones = np.ones((1, 4))
    assert weighted.calibration_error(ends, ends == 1, ones)[0] == 0
    assert weighted.calibration_error(ends, ends == 0, ones)[0] == 1


def test_rounding_is_no_interval():
    value = 0.09227400272558885
    agreed = weighted.estimate(np.array([value, *np.nextafter(value, [0, 1, 0, 1])]), 9)
    assert (agreed.low, agreed.reason) == (None, "no interval: every resample gives the same value")


def test_patients_are_drawn_whole():
    patients = np.array([0, 0, 0, 1, 2, 2])
    w = weighted.patient_weights(patients, 200, np.random.default_rng(0))
    assert w.shape == (200, 6)
    for patient in range(3):
        own = w[:, patients == patient]
        assert (own == own[:, :1]).all()
    np.testing.assert_array_equal(w[:, [0, 3, 4]].sum(axis=1), 3)
    assert w[:, 0].std() > 0
