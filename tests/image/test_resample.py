from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pneumoscope.data.phantom import draw_phantom
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.resample import resample


@pytest.fixture(scope="module")
def image():
    return draw_phantom("normal", 0, 200).astype(np.float32) / 255


def shares(inputs, outputs, low=0.0, high=1.0):
    """How much of each input pixel lies in each output pixel, rows summing to 1."""
    edges = (low + (high - low) * np.arange(outputs + 1) / outputs) * inputs
    at = np.arange(inputs)[None]
    overlap = np.clip(np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at), 0, None)
    return (overlap / (edges[1] - edges[0])).astype(np.float32)


def exact(image, height, width, region=(0, 0, 1, 1)):
    rows, columns = image.shape
    top, left, bottom, right = region
    return shares(rows, height, top, bottom) @ image @ shares(columns, width, left, right).T


@pytest.mark.parametrize(("height", "width"), [(100, 100), (50, 100), (200, 50), (100, 200), (25, 10)])
def test_area_is_exact_for_whole_factors(image, height, width):
    np.testing.assert_allclose(resample(image, height, width), exact(image, height, width), atol=2e-3)


@pytest.mark.parametrize("region", [(0, 0, 1, 1), (0.113, 0.207, 0.911, 0.874), (0.0, 0.31, 0.5, 0.9)])
@pytest.mark.parametrize("side", [224, 112, 64])
def test_area_is_nearly_the_mean_over_what_each_pixel_covers(shared_data, region, side):
    for path in sorted((shared_data / "kermany-original").rglob("*.jpeg"))[::20]:
        pixels = read_radiograph(path, min_side=2 * side).pixels
        difference = np.abs(resample(pixels, side, side, region=region) - exact(pixels, side, side, region))
        assert difference.mean() * 255 < 0.5, path.name


def test_eight_bits_and_floats_give_the_same(image):
    grey = np.rint(image * 255).astype(np.uint8)
    region = (0.1, 0.2, 0.83, 0.91)
    found = resample(grey, 64, 64, region=region)
    np.testing.assert_allclose(found, resample(grey / np.float32(255), 64, 64, region=region), atol=1 / 255)


def test_a_ramp_shows_that_a_region_is_met_within_a_pixel():
    ramp = np.tile((np.arange(300, dtype=np.float32) + 0.5) / 300, (300, 1))
    for left, right in [(0.1005, 0.8), (0.2, 0.5333), (0.05, 0.11)]:
        found = resample(ramp, 60, 60, region=(0.1, left, 0.9, right))
        np.testing.assert_allclose(found[30], left + (right - left) * (np.arange(60) + 0.5) / 60, atol=5e-4)


def test_what_lies_beyond_the_extent_is_not_shown():
    ramp = np.tile(np.minimum((np.arange(151) + 0.5) / 150.125, 1).astype(np.float32), (150, 1))
    found = resample(ramp, 40, 40, extent=(150.0, 150.125))
    np.testing.assert_allclose(found[20, 1:-1], ((np.arange(40) + 0.5) / 40)[1:-1], atol=5e-4)


def test_linear_agrees_with_pillow(image):
    # Pillow widens the triangle with the scale; here a Gaussian comes first.
    triangle = Image.fromarray(image).resize((50, 50), Image.Resampling.BILINEAR)
    assert np.abs(resample(image, 50, 50, resampling="linear") - np.asarray(triangle)).mean() < 2 / 255


@pytest.mark.parametrize("resampling", ["area", "linear", "cubic"])
@pytest.mark.parametrize("shape", [(512, 512), (512, 40), (40, 512)])
def test_a_grating_finer_than_the_output_turns_grey(resampling, shape):
    """Without a filter its frequency would come back as a coarse, false pattern."""
    rows, columns = np.indices(shape)
    along = rows if shape[0] > shape[1] else columns
    grating = (0.5 + 0.5 * np.cos(2 * np.pi * along * 0.47)).astype(np.float32)
    small = resample(grating, 64, 64, resampling=resampling)[4:-4, 4:-4]
    assert small.std() < 0.05
    assert small.mean() == pytest.approx(0.5, abs=0.02)


def test_two_points_a_pixel_leave_a_quarter_of_such_a_grating():
    """At the worst scale, between whole ones; the exact mean leaves a fifth."""
    grating = np.tile(0.5 + 0.5 * np.cos(2 * np.pi * np.arange(160) * 0.47), (160, 1)).astype(np.float32)
    assert resample(grating, 64, 64).std() < 0.25 * grating.std()
    assert exact(grating, 64, 64).std() == pytest.approx(0.19 * grating.std(), rel=0.05)


@pytest.mark.parametrize("resampling", ["area", "linear", "cubic"])
def test_a_slow_ramp_keeps_its_shape(resampling):
    ramp = np.tile(np.linspace(0, 1, 300, dtype=np.float32), (300, 1))
    small = resample(ramp, 60, 60, resampling=resampling)
    np.testing.assert_allclose(small[30, 4:-4], np.linspace(0, 1, 60)[4:-4], atol=0.02)


def test_the_same_size_is_left_alone(image):
    assert resample(image, 200, 200) is image
