from __future__ import annotations

import numpy as np

from pneumoscope.predict.occlusion import blurred, occlusion_evidence

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
