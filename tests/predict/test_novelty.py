from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pneumoscope.domain import Radiograph
from pneumoscope.errors import CAUTIONS, Reason
from pneumoscope.image.lungs import WHOLE, LungField, lung_field
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.manifest import GateLimits
from pneumoscope.predict.gate import (
    check_header,
    check_lungs,
    check_pixels,
    is_negative,
    may_be_negative,
    negative,
    rejects,
)
from pneumoscope.predict.novelty import DIMENSIONS, Novelty, describe


def lungs(certainty: float = 0.97, seed: int = 0) -> LungField:
    probability = np.zeros((128, 128), np.float32)
    probability[30:100, 20:58] = probability[30:100, 70:108] = certainty
    view = np.random.default_rng(seed).random((128, 128), np.float32) * 0.1 + (1 - probability) * 0.5
    return lung_field(probability, view=view.astype(np.float32))


def standardised(field: LungField) -> Standardised:
    return Standardised(np.zeros((1, 32, 32), np.float32), WHOLE, WHOLE, field)


def known() -> Novelty:
    mean = np.mean([describe(lungs(seed=seed)) for seed in range(20)], axis=0)
    return Novelty(mean.astype(np.float32), np.eye(DIMENSIONS, dtype=np.float32) * 5)


LIMITS = GateLimits(max_novelty=1.0)


def test_a_description_has_fixed_size_and_does_not_know_brightness_or_contrast():
    field = lungs()
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


def test_a_known_chest_passes_and_strange_surroundings_do_not():
    assert check_lungs(standardised(lungs()), LIMITS, known()) == []
    field = lungs()
    strange = LungField(field.mask, field.box, True, field.certainty, np.eye(128, dtype=np.float32))
    assert check_lungs(standardised(strange), LIMITS, known()) == [Reason.NOT_A_CHEST_RADIOGRAPH]


def test_one_field_of_lung_is_rejected_as_lateral():
    for columns in (slice(20, 110), slice(30, 75), slice(60, 120)):
        probability = np.zeros((128, 128), np.float32)
        probability[20:110, columns] = 0.97
        assert lung_field(probability).bridge == 1
        assert check_lungs(standardised(lung_field(probability)), GateLimits()) == [Reason.LATERAL_VIEW]
    assert lungs().bridge == 0


def test_without_what_the_segmenter_saw_there_is_no_description():
    with pytest.raises(ValueError, match="view"):
        describe(lung_field(lungs().mask.astype(np.float32)))


def test_a_negative_is_told_by_its_turned_lungs():
    good, poor = standardised(lungs(0.97)), standardised(lungs(0.92))
    assert may_be_negative(poor, LIMITS)
    assert not may_be_negative(good, LIMITS)
    assert is_negative(poor, good, [], [])
    assert is_negative(poor, good, [Reason.NOT_A_CHEST_RADIOGRAPH], [])
    assert not is_negative(poor, good, [], [Reason.NOT_A_CHEST_RADIOGRAPH])
    assert not is_negative(good, poor, [], [])


def test_cautions_do_not_reject_and_everything_else_does():
    assert not rejects(CAUTIONS)
    assert all(rejects([reason, *CAUTIONS]) for reason in Reason if reason not in CAUTIONS)


@pytest.mark.parametrize(
    ("age", "said"), [(None, False), (0.5, False), (17.9, False), (18.0, True), (80, True)]
)
def test_an_adult_is_a_caution(age, said):
    adult = Radiograph(np.zeros((90, 90), np.float32), "x", "dicom", 90, 90, age=age)
    assert (check_header(adult, GateLimits()) == [Reason.ADULT_UNVALIDATED]) is said
    assert check_header(adult, GateLimits(validated_ages=(0, 120))) == []


grey = st_numpy.arrays(
    np.float32, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=48), elements=st.floats(0, 1, width=32)
)


@settings(max_examples=60, deadline=None)
@given(grey, st.integers(0, 2**32 - 1))
def test_any_image_and_any_lungs_end_in_a_decision(pixels, seed):
    radiograph = Radiograph(pixels, "x.png", "png", *pixels.shape)
    probability = np.random.default_rng(seed).random((16, 16), np.float32)
    view = np.resize(pixels, (16, 16)).astype(np.float32)
    field = lung_field(probability, view=view)
    for reasons in (
        check_header(radiograph, LIMITS),
        check_pixels(radiograph, LIMITS),
        check_pixels(negative(radiograph), LIMITS),
        check_lungs(standardised(field), LIMITS, known()),
    ):
        assert all(isinstance(reason, Reason) for reason in reasons)
    assert np.isfinite(describe(field)).all()
    assert 0 <= field.bridge <= 1
