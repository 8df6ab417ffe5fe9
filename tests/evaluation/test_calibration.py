from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumoscope.errors import DataError
from pneumoscope.evaluation import (
    choose_operating_points,
    conformal_thresholds,
    fit_temperature,
    fit_vector,
)
from pneumoscope.evaluation.calibration import fit_offset


def log_loss(logits, labels):
    logits = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]).mean())


def drawn(n, k, seed):
    """Logits, and labels drawn from their softmax: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits, np.array([rng.choice(k, p=row) for row in p])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(temperature):
    logits, labels = drawn(4000, 3, 0)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.06)


def test_temperature_is_the_most_likely_one():
    logits, labels = drawn(300, 3, 1)
    logits = logits * 2.3
    found = fit_temperature(logits, labels)
    best = log_loss(logits / found, labels)
    for other in (found * 0.98, found * 1.02):
        assert log_loss(logits / other, labels) > best


@pytest.mark.parametrize("prevalence", [0.02, 0.5, 0.9])
def test_an_offset_gives_the_mean(prevalence):
    odds = np.random.default_rng(0).normal(size=500) * 3
    moved = odds + fit_offset(odds, prevalence)
    assert (1 / (1 + np.exp(-moved))).mean() == pytest.approx(prevalence, abs=1e-6)


def test_separable_images_are_not_moved():
    """Any offset between the nearest two would give the same mean."""
    odds = 50 * np.array([-3.0, -2.0, 2.5, 4.0, 5.0])
    assert fit_offset(odds, 0.6) == 0


def test_temperature_stays_finite():
    right = np.eye(3)[[0, 1, 2]] * 4
    assert fit_temperature(right, np.array([0, 1, 2])) == pytest.approx(0.02)
    assert fit_temperature(right, np.array([1, 2, 0])) == pytest.approx(50)


def test_vector_undoes_scale_and_bias():
    logits, labels = drawn(6000, 3, 2)
    scale, bias = np.array([2.0, 1.0, 0.7]), np.array([1.0, -1.0, 0.0])
    found_scale, found_bias = fit_vector((logits - bias) / scale, labels)
    np.testing.assert_allclose(found_scale, scale, rtol=0.1)
    np.testing.assert_allclose(found_bias, bias, atol=0.15)
    assert found_bias.sum() == pytest.approx(0, abs=1e-9)


@given(st.integers(2, 4), st.integers(5, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_vector_is_never_less_likely_than_temperature(k, n, seed):
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.normal(size=(n, k)), rng.integers(0, k, n)
    scale, bias = fit_vector(logits, labels)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert (
        log_loss(logits * scale + bias, labels)
        <= log_loss(logits / fit_temperature(logits, labels), labels) + 1e-9
    )


@pytest.mark.parametrize("fit", [fit_temperature, fit_vector])
def test_calibrators_name_what_is_wrong(fit):
    with pytest.raises(DataError, match="needs logits"):
        fit(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(DataError, match="labels must lie"):
        fit(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(DataError, match="at least one of 3 classes"):
        fit(np.zeros((1, 3)), np.zeros((1, 3), bool))
    with pytest.raises(DataError, match="not finite"):
        fit(np.array([[np.nan, 0.0]]), np.array([0]))


@st.composite
def scores_and_truth(draw):
    n = draw(st.integers(2, 60))
    values = st.one_of(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.floats(0, 1))
    truth = draw(hnp.arrays(np.bool_, n))
    truth[:2] = True, False
    return draw(hnp.arrays(np.float64, n, elements=values)), truth


@given(scores_and_truth())
def test_operating_points_reach_what_they_state(case):
    p, truth = case
    points = choose_operating_points(p, truth, n_boot=0)
    assert [point.name for point in points] == ["screening", "balanced", "rule-in"]
    screening, balanced, rule_in = points
    assert 0 <= screening.threshold <= balanced.threshold <= rule_in.threshold <= 1
    for point in points:
        assert point.sensitivity.value == pytest.approx((p[truth] >= point.threshold).mean())
        assert point.specificity.value == pytest.approx((p[~truth] < point.threshold).mean())
    assert screening.sensitivity.value >= 0.98
    best = max((p[truth] >= t).mean() + (p[~truth] < t).mean() for t in [0.0, *p])
    assert balanced.sensitivity.value + balanced.specificity.value >= best - 0.01 - 1e-6
    if rule_in.specificity.value < 0.98:  # only where no threshold up to 1 can do it
        assert (p[~truth] == 1).mean() > 0.02


def test_operating_points_lie_in_the_middle_of_a_gap():
    p = np.array([0.1, 0.2, 0.8, 0.9])
    for point in choose_operating_points(p, p > 0.5):
        assert point.threshold == pytest.approx(0.5)
        assert (point.sensitivity.value, point.specificity.value) == (1, 1)


def test_balanced_lies_in_the_middle_of_what_is_as_good():
    """One mistake more or less among 2,000 must not throw the threshold from one end to the other."""
    normal = np.r_[np.linspace(0.01, 0.1, 999), 0.85]
    sick = np.r_[np.linspace(0.9, 0.99, 999), 0.15]
    truth = np.arange(2000) >= 1000
    for moved in (0.14, 0.2, 0.8):  # the greatest sum lies at one end, at the other, or at both
        p = np.r_[normal[:-1], moved, sick]
        balanced = choose_operating_points(p, truth)[1]
        assert 0.4 < balanced.threshold < 0.6


def test_operating_points_trade_sensitivity_for_specificity():
    rng = np.random.default_rng(0)
    truth = np.arange(2000) % 2 == 0
    p = 1 / (1 + np.exp(-rng.normal(np.where(truth, 1.5, -1.5), 1.5)))
    screening, balanced, rule_in = choose_operating_points(p, truth)
    assert screening.sensitivity.value == pytest.approx(0.98, abs=0.002)
    assert rule_in.specificity.value == pytest.approx(0.98, abs=0.002)
    assert screening.threshold < balanced.threshold < rule_in.threshold


def test_operating_points_state_their_facts_and_intervals_over_patients():
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 2 == 0
    p = 1 / (1 + np.exp(-rng.normal(np.where(truth, 1.5, -1.5), 1.5)))
    facts = {"population": "children", "chosen_on": "val split"}
    single = choose_operating_points(p, truth, patients=np.arange(400), **facts)
    fourfold = choose_operating_points(
        np.repeat(p, 4), np.repeat(truth, 4), patients=np.repeat(np.arange(400), 4), **facts
    )
    criteria = ["sensitivity at least 0.98", "near the maximum of Youden's J", "specificity at least 0.98"]
    assert [point.criterion for point in single] == criteria
    for one, other in zip(single, fourfold, strict=True):
        assert (one.population, one.chosen_on, one.patients) == ("children", "val split", 400)
        for rate in ("sensitivity", "specificity"):
            estimate = getattr(one, rate)
            assert 0 < estimate.low <= estimate.value <= estimate.high <= 1
            assert getattr(other, rate).low == pytest.approx(estimate.low)  # copies are no new evidence
    width = single[0].specificity.high - single[0].specificity.low
    share = single[0].specificity.value
    assert width == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 200), rel=0.2)


def test_operating_points_need_both_classes():
    with pytest.raises(DataError, match="with and without covid"):
        choose_operating_points(np.array([0.1, 0.2]), np.array([True, True]), target="covid")


def test_conformal_thresholds_by_hand():
    # 9 images of class 0, alpha 0.2: (9 + 1) * 0.2 = 2 may be missed, so the second smallest.
    p0 = np.linspace(0.1, 0.9, 9)
    probabilities = np.c_[np.r_[p0, 0.5], 1 - np.r_[p0, 0.5]]
    labels = np.r_[np.zeros(9, int), 1]
    assert conformal_thresholds(probabilities, labels, 0.2) == (pytest.approx(0.2), 0.0)


def test_conformal_sets_cover_each_class():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        labels = rng.integers(0, 3, 600)
        logits = rng.normal(size=(600, 3)) + 1.2 * np.eye(3)[labels]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        thresholds = np.array(conformal_thresholds(p[:300], labels[:300], 0.1))
        hit = (p >= thresholds)[np.arange(600), labels]
        covered.append([hit[300:][labels[300:] == k].mean() for k in range(3)])
    coverage = np.mean(covered, axis=0)
    assert (coverage >= 0.895).all()
    assert (coverage <= 0.92).all()


@given(st.integers(0, 2**32 - 1), st.integers(8, 60), st.floats(0.05, 0.4))
@settings(max_examples=40)
def test_a_patients_copies_are_no_new_evidence(seed, patients, alpha):
    """One row a patient and five copies of it give the same threshold; just above it more are missed."""
    rng = np.random.default_rng(seed)
    p0 = rng.uniform(size=patients)
    once = np.c_[p0, 1 - p0]
    copies = np.repeat(once, 5, axis=0)
    labels = np.zeros(patients, int)
    (plain, _), (grouped, _), (naive, _) = (
        conformal_thresholds(once, labels, alpha),
        conformal_thresholds(copies, np.repeat(labels, 5), alpha, np.repeat(np.arange(patients), 5)),
        conformal_thresholds(copies, np.repeat(labels, 5), alpha),
    )
    assert grouped == plain
    assert naive >= plain
    assert ((p0 < plain).sum() + 1) / (patients + 1) <= alpha + 1e-9 or plain == 0


def test_sets_cover_a_row_of_a_new_patient_however_many_rows_each_has():
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(400):
        rows = rng.integers(1, 9, 60)
        patients = np.repeat(np.arange(60), rows)
        # Patients differ far more than their images do; those with many images are harder.
        p = 1 / (
            1 + np.exp(-(rng.normal(2 - 0.2 * rows, 1)[patients] + 0.2 * rng.normal(size=len(patients))))
        )
        old = patients < 40
        probabilities = np.c_[p, 1 - p]
        threshold, _ = conformal_thresholds(probabilities[old], np.zeros(old.sum(), int), 0.1, patients[old])
        hits.append(np.mean([(p[patients == new] >= threshold).mean() for new in range(40, 60)]))
    assert 0.9 - 0.01 <= np.mean(hits) <= 0.94


def test_classes_without_labels_of_their_own_get_a_threshold_from_what_there_is():
    """Subtypes unknown: the set holds one of them. An absent class must be likelier than all others."""
    rng = np.random.default_rng(5)
    p = rng.dirichlet([1, 1, 1, 1], 2000)
    drawn_from = (p[:, :, None].cumsum(axis=1)[:, :, 0] > rng.random((2000, 1))).argmax(axis=1)
    named = drawn_from < 3
    possible = np.zeros((2000, 4), bool)
    possible[drawn_from == 0, 0] = True
    possible[(drawn_from == 1) | (drawn_from == 2), 1:3] = True
    new = np.arange(2000) % 2 == 1
    thresholds = np.array(conformal_thresholds(p[named & ~new], possible[named & ~new], 0.1))
    assert thresholds[1] == thresholds[2] > 0
    assert thresholds[3] == 0.5
    sets = p >= thresholds
    for classes in ([0], [1, 2]):
        own = new & possible[:, classes[0]]
        assert sets[own][:, classes].any(axis=1).mean() == pytest.approx(0.9, abs=0.04)


def test_sets_of_open_labels_hold_one_of_their_classes_where_another_has_a_threshold_of_its_own():
    """Clear-cut bacterial images give that class a high threshold, which those of open labels miss."""
    rng = np.random.default_rng(0)

    def sample(n):
        means = np.array([[2, 0, 0], [0, 2.5, 0], [0.3, 1, 0.6]])
        kinds = np.repeat(np.arange(3), n)
        logits = rng.normal(means[kinds], np.array([1, 1, 0.8])[kinds][:, None])
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return p, np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]], bool)[kinds]

    thresholds = np.array(conformal_thresholds(*sample(2000)))
    p, possible = sample(10000)
    covered = ((p >= thresholds) & possible).any(axis=1)
    for kind in range(3):
        assert covered[kind * 10000 :][:10000].mean() >= 0.89


def test_rows_of_unknown_subtype_fit_temperature_but_no_conformal_threshold():
    logits, labels = drawn(3000, 3, 4)
    possible = labels[:, None] == np.arange(3)
    hidden = (labels > 0) & (np.arange(3000) % 2 == 0)
    possible[hidden] = [False, True, True]
    assert fit_temperature(2 * logits, possible) == pytest.approx(2, rel=0.1)
    scale, bias = fit_vector(logits, possible)
    np.testing.assert_allclose(scale, 1, rtol=0.15)
    np.testing.assert_allclose(bias, 0, atol=0.2)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert conformal_thresholds(p, possible) == conformal_thresholds(p[~hidden], labels[~hidden])


@given(scores_and_truth(), st.integers(1, 4))
def test_weights_are_counts(case, often):
    p, truth = case
    weights = 1.0 + np.arange(len(p)) % often
    rows = np.repeat(np.arange(len(p)), weights.astype(int))
    for one, other in zip(
        choose_operating_points(p, truth, weights / 7, n_boot=0),
        choose_operating_points(p[rows], truth[rows], n_boot=0),
        strict=True,
    ):
        assert one.threshold == pytest.approx(other.threshold)
        assert one.sensitivity.value == pytest.approx(other.sensitivity.value)
        assert one.specificity.value == pytest.approx(other.specificity.value)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_conformal_alpha_is_checked(alpha):
    with pytest.raises(DataError, match="alpha"):
        conformal_thresholds(np.ones((1, 1)), np.array([0]), alpha)
