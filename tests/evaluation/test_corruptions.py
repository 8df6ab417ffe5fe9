from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pneumoscope.evaluation.corruptions import CORRUPTIONS, TRANSFERS, at_aspect, shorter_side_to

EVERY = (*CORRUPTIONS, *TRANSFERS)
OF_SIZE = {"resize_nearest", "resize_bilinear", "resize_lanczos", "aspect_wide", "aspect_narrow"}


def by_name(corruption):
    return corruption.name


@pytest.fixture(scope="module")
def image():
    """Soft structures of many sizes, mid greys, no flat parts: what a radiograph is to these changes."""
    rng = np.random.default_rng(0)
    layers = [
        cv2.resize(rng.random((side, side)).astype(np.float32), (240, 200), interpolation=cv2.INTER_CUBIC)
        for side in (4, 16, 64, 180)
    ]
    mixed = sum(layer / weight for layer, weight in zip(layers, (1, 2, 4, 8), strict=True))
    low, high = mixed.min(), mixed.max()
    return (0.15 + 0.6 * (mixed - low) / (high - low)).astype(np.float32)


def test_the_corruptions_are_those_of_medmnist_c():
    assert len(CORRUPTIONS) == 13
    assert all(len(one.settings) == 5 for one in CORRUPTIONS)
    assert len({one.name for one in EVERY}) == len(EVERY)
    settings_ = {one.name: one.settings for one in CORRUPTIONS}
    assert settings_["impulse_noise"] == (0.005, 0.01, 0.013, 0.017, 0.02)
    assert settings_["contrast_down"] == (0.9, 0.8, 0.7, 0.6, 0.4)


@pytest.mark.parametrize("corruption", EVERY, ids=by_name)
def test_the_same_arguments_give_the_same_image_and_leave_the_original(corruption, image):
    before = image.copy()
    first, again = (corruption.corrupt(image, 3, key="a.png", seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, before)
    assert first.dtype == np.float32
    other = corruption.corrupt(image, 3, key="b.png", seed=1)
    assert np.array_equal(first, other) == ("noise" not in corruption.name)


@pytest.mark.parametrize("corruption", EVERY, ids=by_name)
def test_the_image_moves_away_from_clean_with_the_strength(corruption, image):
    distances = []
    for strength in range(1, 6):
        changed = corruption.corrupt(image, strength, key="x")
        if corruption.name in OF_SIZE:
            distances.append(abs(np.log(changed.shape[0] / 200)) + abs(np.log(changed.shape[1] / 240)))
        else:
            assert changed.shape == image.shape
            distances.append(float(np.sqrt(np.mean((changed - image) ** 2))))
    assert distances[0] > 0
    assert np.all(np.diff(distances) > 0), distances


@pytest.mark.parametrize("corruption", EVERY, ids=by_name)
@settings(max_examples=15)
@given(data=st.data())
def test_any_image_stays_an_image(corruption, data):
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
    pixels = data.draw(arrays(np.float32, shape, elements=st.floats(0, 1, width=32), fill=st.just(0.5)))
    for strength in (1, 5):
        changed = corruption.corrupt(pixels, strength)
        assert changed.dtype == np.float32
        assert min(changed.shape) >= 1
        assert np.isfinite(changed).all()
        assert changed.min() >= 0
        assert changed.max() <= 1
        if corruption.name not in OF_SIZE:
            assert changed.shape == pixels.shape


def test_there_are_no_other_strengths(image):
    for strength in (0, 6, -1):
        with pytest.raises(ValueError, match="strengths 1 to 5"):
            CORRUPTIONS[0].corrupt(image, strength)


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("brightness_up", 5, lambda x: np.minimum(1, 1.5 * x)),
        ("contrast_down", 5, lambda x: x.mean() + 0.4 * (x - x.mean())),
        ("gamma_corr_up", 5, lambda x: x**1.6),
    ],
)
def test_point_operations_are_their_formulas(image, name, strength, expected):
    corruption = next(one for one in CORRUPTIONS if one.name == name)
    np.testing.assert_allclose(corruption.corrupt(image, strength), expected(image), atol=1e-6)


def test_noise_has_the_spread_that_is_stated():
    flat = np.full((200, 200), 0.5, np.float32)
    found = {one.name: float(one.corrupt(flat, 5).std()) for one in CORRUPTIONS if "noise" in one.name}
    assert found["gaussian_noise"] == pytest.approx(0.08, rel=0.05)
    assert found["speckle_noise"] == pytest.approx(0.5 * 0.2, rel=0.05)
    assert found["shot_noise"] == pytest.approx(np.sqrt(0.5 / 80), rel=0.05)
    assert found["impulse_noise"] == pytest.approx(np.sqrt(0.02 * 0.25), rel=0.1)


def test_lanczos_is_that_of_pillow(image):
    pillow = pytest.importorskip("PIL.Image")
    lanczos = next(one for one in TRANSFERS if one.name == "resize_lanczos")
    expected = pillow.fromarray(image, mode=None).resize((120, 100), pillow.Resampling.LANCZOS)
    np.testing.assert_allclose(lanczos.corrupt(image, 5), np.clip(np.asarray(expected), 0, 1), atol=1e-4)


@given(height=st.integers(1, 60), width=st.integers(1, 60), aspect=st.floats(0.3, 3), side=st.integers(1, 80))
@settings(max_examples=60)
def test_sizes_and_aspects(height, width, aspect, side):
    pixels = np.full((height, width), 0.25, np.float32)
    stretched = at_aspect(pixels, aspect)
    assert stretched.shape[0] >= height
    assert stretched.shape[1] >= width
    assert abs(stretched.shape[1] - aspect * stretched.shape[0]) <= max(1.0, aspect)
    smaller = shorter_side_to(pixels, side)
    assert min(smaller.shape) == min(side, height, width)
    np.testing.assert_allclose(smaller, 0.25, atol=1e-6)
