from __future__ import annotations

import numpy as np
import pytest

from images import drawn_lungs
from pneumoscope.image.lungs import LungField, lung_field
from pneumoscope.predict.novelty import DIMENSIONS, Novelty, describe


def test_a_description_has_fixed_size_and_does_not_know_brightness_or_contrast():
    field = drawn_lungs()
    dimmed = LungField(field.mask, field.box, True, field.certainty, field.view * np.float32(0.8) + 0.1)
    assert describe(field).shape == (DIMENSIONS,)
    np.testing.assert_allclose(describe(field), describe(dimmed), atol=0.25)


def test_novelty_is_the_mahalanobis_distance_over_the_dimensions():
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    whitener = np.linalg.cholesky(np.linalg.inv(covariance)).T.astype(np.float32)
    novelty = Novelty(np.array([1.0, 2.0], np.float32), whitener)
    away = np.array([3.0, -1.0])
    expected = away @ np.linalg.inv(covariance) @ away / 2
    assert novelty((away + np.array([1, 2])).astype(np.float32)) == pytest.approx(expected, rel=1e-5)


def test_a_lung_field_without_view_has_no_description():
    with pytest.raises(ValueError, match="view"):
        describe(lung_field(drawn_lungs().mask.astype(np.float32)))
