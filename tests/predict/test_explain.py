from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.domain import Explanation
from pneumoscope.image.lungs import WHOLE, LungField
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.manifest import Calibrator
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.explain import (
    LEAST_SCALE,
    MapStyle,
    blurred,
    explain,
    heat_map,
    occlusion_evidence,
    target_evidence,
)

RNG = np.random.default_rng(3)
FEATURES = RNG.normal(size=(5, 7, 7)).astype(np.float32)
MASK = np.array([False, True, True])
WEIGHT = RNG.normal(size=(3, 5)).astype(np.float32)


def log_odds(features: np.ndarray, calibrator: Calibrator, mask: np.ndarray) -> float:
    probabilities = calibrate(WEIGHT @ features.mean(axis=(1, 2)), calibrator, mask)
    return float(np.log(probabilities[mask].sum() / probabilities[~mask].sum()))


@pytest.mark.parametrize("mask", [MASK, ~MASK, np.array([False, True, False])])
@pytest.mark.parametrize("calibrator", [Calibrator(), Calibrator(method="vector", scale=(0.5, 1.5, 2.0))])
def test_evidence_is_how_the_log_odds_of_the_target_depend_on_each_location(calibrator, mask):
    probabilities = calibrate(WEIGHT @ FEATURES.mean(axis=(1, 2)), calibrator, mask)
    evidence = target_evidence(FEATURES, WEIGHT, probabilities, mask, calibrator.scale)
    # Make the features of one location a little stronger: the log-odds follow its evidence.
    step = 1e-2
    stronger = FEATURES.astype(np.float64)
    stronger[:, 2, 4] *= 1 + step
    before = log_odds(FEATURES.astype(np.float64), calibrator, mask)
    change = (log_odds(stronger, calibrator, mask) - before) / step
    assert change == pytest.approx(evidence[2, 4] / evidence.size, rel=1e-2)


def test_two_classes_give_the_difference_of_their_maps():
    evidence = target_evidence(FEATURES, WEIGHT[:2], np.array([0.4, 0.6]), MASK[:2])
    np.testing.assert_allclose(evidence, np.tensordot(WEIGHT[1] - WEIGHT[0], FEATURES, 1), rtol=1e-5)


def standardised(content=WHOLE, region=WHOLE) -> Standardised:
    return Standardised(np.zeros((1, 70, 70), np.float32), region, content, None)


def one_hot_spot(strength: float) -> np.ndarray:
    features = np.zeros((1, 7, 7), np.float32)
    features[0, 1, 5] = strength
    return features


HEAD = np.array([[0.0], [1.0]], np.float32)
EVEN = np.array([0.5, 0.5])


def explained(features: np.ndarray, seen: Standardised, background: np.ndarray | None = None) -> Explanation:
    return explain(
        features,
        HEAD,
        EVEN,
        seen,
        Calibrator(),
        target="pneumonia",
        target_mask=MASK[:2],
        background=background,
    )


def test_an_image_of_another_disease_is_compared_with_normal_chests_too():
    weight = np.array([[-1, 0], [1, 0], [1, 2]], np.float32)  # normal, pneumonia, other
    features = np.zeros((2, 7, 7), np.float32)
    features[0, 1, 5] = 30  # speaks for either disease
    found = [
        explain(
            features,
            weight,
            np.array([0.0, 0.4, 0.6]),
            standardised(),
            Calibrator(),
            target="pneumonia",
            target_mask=np.array([False, True, False]),
            bias=np.array([5, 0, 0], np.float32),  # without any of it a chest is normal
            background=background,
        ).heatmap
        for background in (np.zeros_like(features), None)
    ]
    assert found[0][15, 55] == pytest.approx(found[0].max())
    assert found[0].max() == pytest.approx(1)
    assert not found[1].any()


def test_the_strongest_place_is_one_and_lies_where_the_features_are():
    found = explained(one_hot_spot(30), standardised())
    assert found.heatmap.dtype == np.float32
    assert found.heatmap.min() >= 0
    assert found.heatmap.max() == pytest.approx(1)
    row, column = np.unravel_index(found.heatmap.argmax(), found.heatmap.shape)
    assert (row // 10, column // 10) == (1, 5)


def test_weak_evidence_stays_faint_and_evidence_against_is_not_shown():
    assert explained(one_hot_spot(2), standardised()).heatmap.max() < 0.3
    assert explained(one_hot_spot(-9), standardised()).heatmap.max() == 0


def test_borders_are_cut_off_and_the_region_is_kept():
    content, region = (0.2, 0.0, 0.8, 1.0), (0.1, 0.2, 0.7, 0.9)
    found = explained(one_hot_spot(9), standardised(content, region))
    assert found.heatmap.shape == (42, 70)
    assert found.region == region
    assert found.finding == "pneumonia"


def test_what_normal_chests_have_on_average_is_no_evidence():
    background = one_hot_spot(49)  # 1 on average
    level = np.ones((1, 7, 7), np.float32)
    assert not explained(level, standardised(), background).heatmap.any()
    assert explained(level, standardised()).heatmap.all()
    spot = np.zeros((1, 7, 7), np.float32)
    spot[0, 5, 1] = 30
    found = explained(level + spot, standardised(), background)
    row, column = np.unravel_index(found.heatmap.argmax(), found.heatmap.shape)
    assert (row // 10, column // 10) == (5, 1)
    assert not found.heatmap[:20].any()


def test_a_map_is_smooth_and_makes_no_evidence_of_its_own():
    rough = (np.indices((7, 7)).sum(axis=0) % 2 * 10 - 5).astype(np.float32)  # too weak to fill the scale
    steps = [
        np.abs(np.diff(heat_map(rough, standardised(), "pneumonia", MapStyle(smoothing, None)).heatmap)).max()
        for smoothing in (0.0, 0.06)
    ]
    assert steps[1] < 0.6 * steps[0]
    assert not heat_map(-np.abs(rough), standardised(), "pneumonia").heatmap.any()


def test_a_coarse_map_does_not_show_where_its_locations_end():
    rough = np.array([[0, 0, 0], [0, 30, 0], [0, 0, 0]], np.float32)
    fine = heat_map(rough, standardised(), "pneumonia", MapStyle(0.03, None)).heatmap
    plain = heat_map(rough, standardised(), "pneumonia", MapStyle(0.0, None)).heatmap
    bend = [np.abs(np.diff(one[35], n=2)).max() / one.max() for one in (fine, plain)]
    assert bend[0] < 0.2 * bend[1]


def lungs(*, second: bool = True) -> LungField:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 15:40] = True
    mask[20:80, 60:85] = second
    return LungField(mask, (0.2, 0.15, 0.8, 0.85 if second else 0.4), plausible=True)


def inside(field: LungField | None, margin: float | None = 0.03) -> np.ndarray:
    seen = Standardised(np.zeros((1, 100, 100), np.float32), WHOLE, WHOLE, field)
    return heat_map(np.full((5, 5), 50, np.float32), seen, "pneumonia", MapStyle(0.0, margin)).heatmap


def test_a_map_is_kept_to_the_lungs_and_their_margin():
    heat = inside(lungs())
    assert heat[50, 25] == heat[50, 70] == 1
    assert heat[50, 12] > 0.1  # in the margin
    assert heat[50, 5] == heat[5, 50] == 0


@pytest.mark.parametrize(
    "field", [None, lungs(second=False), LungField(lungs().mask, WHOLE, plausible=False)]
)
def test_a_map_is_not_kept_to_lungs_that_are_in_doubt(field):
    assert (inside(field) == 1).all()


def test_the_margin_can_be_left_off():
    assert (inside(lungs(), None) == 1).all()


def test_weak_evidence_by_occlusion_has_a_scale_of_its_own():
    weak = np.full((7, 7), LEAST_SCALE["occlusion"], np.float32)
    assert heat_map(weak, standardised(), "pneumonia", method="occlusion").heatmap.max() == pytest.approx(1)
    assert heat_map(weak, standardised(), "pneumonia").heatmap.max() == pytest.approx(1 / LEAST_SCALE["cam"])


SIDE = 70


def spot_finder(row: int, column: int):
    """Log-odds that rise with the grey around one place."""

    def log_odds(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32
        return images[:, 0, row - 4 : row + 5, column - 4 : column + 5].mean(axis=(1, 2)).astype(float) * 10

    return log_odds


def test_evidence_lies_where_the_network_looks_and_nowhere_else():
    pixels = np.full((1, SIDE, SIDE), 0.8, np.float32)
    evidence = occlusion_evidence(spot_finder(50, 20), pixels)
    assert evidence.shape == (SIDE, SIDE)
    row, column = np.unravel_index(evidence.argmax(), evidence.shape)
    assert abs(row - 50) <= 4
    assert abs(column - 20) <= 4
    assert evidence[:20].max() == 0
    # Covering the whole spot takes 30% of 0.8 away, times 10.
    assert 1.2 < evidence.max() <= 2.4


def test_evidence_against_is_negative():
    pixels = np.full((1, SIDE, SIDE), 0.8, np.float32)
    finder = spot_finder(50, 20)
    assert occlusion_evidence(lambda x: -finder(x), pixels).min() < -1


def test_blur_takes_detail_and_keeps_the_grey():
    rng = np.random.default_rng(0)
    pixels = rng.random((3, SIDE, SIDE)).astype(np.float32)
    blur = blurred(pixels)
    assert blur.shape == pixels.shape
    assert blur.std() < pixels.std() / 5
    np.testing.assert_allclose(blur.mean(axis=(1, 2)), pixels.mean(axis=(1, 2)), atol=0.02)
