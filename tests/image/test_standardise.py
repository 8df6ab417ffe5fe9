from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pneumoscope.data.phantom import draw_phantom
from pneumoscope.domain import Radiograph
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.lungs import lung_field
from pneumoscope.image.resample import resample
from pneumoscope.image.standardise import (
    InputSpec,
    crop,
    lung_view,
    rotated_box,
    standardise,
    standardise_with_lungs,
)

DENOISERS = ("median", "gaussian", "bilateral", "nlm")


def radiograph(pixels):
    pixels = np.asarray(pixels, dtype=np.float32)
    return Radiograph(pixels, "made.png", "png", *pixels.shape)


def two_lungs(pixels):
    """A segmenter that always finds two lungs, top and bottom at 0.2 and 0.7, sides at 0.15 and 0.85."""
    probability = np.zeros((100, 100), np.float32)
    probability[20:70, 15:45] = probability[20:70, 55:85] = 0.9
    return probability


def no_lungs(pixels):
    return np.zeros((100, 100), np.float32)


@pytest.fixture(scope="module")
def image():
    return draw_phantom("normal", 0, 200).astype(np.float32) / 255


# Any image, any shape


@pytest.mark.parametrize("shape", [(1, 1), (5000, 20), (20, 5000), (2, 3), (1, 4000)])
@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("resampling", ["area", "linear", "cubic"])
def test_any_size_is_taken(shape, fit, resampling):
    spec = InputSpec(size=64, fit=fit, resampling=resampling)
    result = standardise(radiograph(np.full(shape, 0.5)), spec)
    assert result.pixels.shape == (1, 64, 64)
    top, left, bottom, right = (round(side * 64) for side in result.content)
    np.testing.assert_allclose(result.pixels[0, top:bottom, left:right], 0.5, atol=1e-5)


def test_pad_keeps_the_aspect_ratio_and_returns_where_the_image_is():
    result = standardise(radiograph(np.ones((100, 200))), InputSpec(size=64, fit="pad"))
    assert result.content == (0.25, 0.0, 0.75, 1.0)
    np.testing.assert_allclose(result.pixels[0, 16:48], 1, atol=1e-6)
    assert not result.pixels[0, :16].any()
    assert not result.pixels[0, 48:].any()


def test_squash_fills_the_input():
    result = standardise(radiograph(np.ones((100, 200))), InputSpec(size=64))
    assert result.content == result.region == (0.0, 0.0, 1.0, 1.0)
    np.testing.assert_allclose(result.pixels, 1, atol=1e-6)


def test_the_radiograph_is_not_changed(image):
    before = image.copy()
    spec = InputSpec(size=200, contrast="clahe", window="lungs", lungs="mask")
    standardise(radiograph(image), spec, two_lungs)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("name", "value"), [("size", 8), ("denoise", "wavelet"), ("sise", 64)])
def test_a_wrong_spec_is_rejected(name, value):
    with pytest.raises(ValidationError, match=name):
        InputSpec.model_validate({name: value})


# Denoising and contrast


@pytest.mark.parametrize("method", DENOISERS)
def test_denoising_takes_noise_away_and_keeps_an_edge(method):
    rng = np.random.default_rng(0)
    clean = np.full((96, 96), 0.3, np.float32)
    clean[:, 48:] = 0.7
    noisy = np.clip(clean + rng.normal(0, 0.02, clean.shape), 0, 1)
    quiet = standardise(radiograph(noisy), InputSpec(size=96, denoise=method)).pixels[0]
    flat = np.s_[8:-8, 8:40]
    assert quiet[flat].std() < 0.7 * noisy[flat].std()
    assert quiet[:, 60:].mean() - quiet[:, :36].mean() == pytest.approx(0.4, abs=0.02)
    assert quiet.min() >= 0
    assert quiet.max() <= 1


def test_the_median_removes_single_hot_pixels():
    pixels = np.full((64, 64), 0.4, np.float32)
    pixels[10::9, 10::9] = 1
    quiet = standardise(radiograph(pixels), InputSpec(size=64, denoise="median")).pixels
    np.testing.assert_allclose(quiet, 0.4, atol=1e-6)


@pytest.mark.parametrize("method", ["equalize", "clahe"])
def test_contrast_spreads_a_dull_image(image, method):
    dull = 0.45 + 0.1 * image
    sharp = standardise(radiograph(dull), InputSpec(size=200, contrast=method)).pixels
    assert sharp.std() > 1.5 * dull.std()
    assert sharp.min() >= 0
    assert sharp.max() <= 1


def test_equalisation_gives_an_even_histogram(image):
    even = standardise(radiograph(image), InputSpec(size=200, contrast="equalize")).pixels
    shares = np.histogram(even, bins=4, range=(0, 1))[0] / even.size
    np.testing.assert_allclose(shares, 0.25, atol=0.05)


# Grey-level windows


def test_the_image_window_puts_the_percentiles_at_black_and_white():
    levels = np.linspace(0.2, 0.8, 100 * 100, dtype=np.float32).reshape(100, 100)
    found = standardise(radiograph(levels), InputSpec(size=100, window="image")).pixels[0]
    low, high = np.percentile(levels, [1, 99], method="nearest")
    np.testing.assert_allclose(found, np.clip((levels - low) / (high - low), 0, 1), atol=1e-5)


def test_the_lung_window_looks_at_the_lungs_alone():
    pixels = np.full((100, 100), 1.0, np.float32)
    pixels[20:70] = np.linspace(0.1, 0.5, 100, dtype=np.float32)
    found = standardise(radiograph(pixels), InputSpec(size=100, window="lungs"), two_lungs).pixels[0]
    inside = np.concatenate([pixels[20:70, 15:45].ravel(), pixels[20:70, 55:85].ravel()])
    low, high = np.percentile(inside, [1, 99], method="nearest")
    np.testing.assert_allclose(found, np.clip((pixels - low) / (high - low), 0, 1), atol=1e-5)


def test_the_window_leaves_borders_out_of_its_percentiles():
    levels = np.tile(np.linspace(0.4, 0.6, 128, dtype=np.float32), (32, 1))
    found = standardise(radiograph(levels), InputSpec(size=128, fit="pad", window="image")).pixels[0]
    assert found[64, 64] == pytest.approx(0.5, abs=0.02)


def test_without_plausible_lungs_the_window_is_that_of_the_image(image):
    lungs = standardise(radiograph(image), InputSpec(size=64, window="lungs"), no_lungs).pixels
    whole = standardise(radiograph(image), InputSpec(size=64, window="image")).pixels
    np.testing.assert_array_equal(lungs, whole)


def test_a_flat_image_stays_unchanged():
    found = standardise(radiograph(np.full((50, 50), 0.3)), InputSpec(size=32, window="image")).pixels
    np.testing.assert_allclose(found, 0.3, atol=1e-6)


# Lungs


def test_lungs_cannot_be_used_without_a_segmenter(image):
    with pytest.raises(ValueError, match="needs a lung segmenter"):
        standardise(radiograph(image), InputSpec(lungs="crop"))


def test_the_segmenter_runs_only_where_it_is_needed(image):
    def never(pixels):
        raise AssertionError("called")

    assert standardise(radiograph(image), InputSpec(size=32), never).lungs is None


def test_crop_shows_the_lung_box_and_returns_where_it_was():
    pixels = np.zeros((300, 200), np.float32)
    pixels[60:210, 30:170] = 1
    result = standardise(radiograph(pixels), InputSpec(size=64, lungs="crop", lung_margin=0), two_lungs)
    assert result.region == pytest.approx((0.2, 0.15, 0.7, 0.85))
    np.testing.assert_allclose(result.pixels, 1, atol=1e-6)


def test_the_margin_widens_the_crop_and_stays_inside_the_image(image):
    spec = InputSpec(size=64, lungs="crop", lung_margin=0.1)
    assert standardise(radiograph(image), spec, two_lungs).region == pytest.approx((0.15, 0.08, 0.75, 0.92))
    wide = spec.model_copy(update={"lung_margin": 0.5})
    assert standardise(radiograph(image), wide, two_lungs).region == pytest.approx((0, 0, 0.95, 1))


def test_mask_blackens_everything_but_the_lungs():
    result = standardise(radiograph(np.ones((200, 200))), InputSpec(size=100, lungs="mask"), two_lungs)
    np.testing.assert_array_equal(result.pixels[0] > 0, two_lungs(None) > 0.5)


def test_crop_and_mask_does_both():
    spec = InputSpec(size=70, lungs="crop_and_mask", lung_margin=0)
    shown = standardise(radiograph(np.ones((400, 400))), spec, two_lungs).pixels[0] > 0
    assert shown[:, :29].all()
    assert shown[:, 41:].all()
    assert not shown[:, 31:39].any()


@pytest.mark.parametrize("lungs", ["crop", "mask", "crop_and_mask"])
def test_without_plausible_lungs_the_whole_image_is_shown(image, lungs):
    spec = InputSpec(size=64, lungs=lungs)
    result = standardise(radiograph(image), spec, no_lungs)
    assert result.lungs is not None
    assert not result.lungs.plausible
    np.testing.assert_array_equal(result.pixels, standardise(radiograph(image), InputSpec(size=64)).pixels)


def test_a_squashed_copy_gives_nearly_the_same_crop(image):
    tall = cv2.resize(image, (800, 1100), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    squashed = resample(tall, 224, 224)

    def dark_is_lung(pixels):
        assert pixels.shape == (128, 128)
        return 1 - pixels

    spec = InputSpec(size=64, lungs="crop")
    original, copy = (standardise(radiograph(p), spec, dark_is_lung) for p in (tall, squashed))
    assert original.region == pytest.approx(copy.region, abs=0.02)
    assert np.abs(original.pixels - copy.pixels).mean() < 0.02


def test_a_crop_is_never_empty():
    assert crop(np.ones((3, 3), np.float32), (0.99, 0.99, 1.0, 1.0)).shape == (1, 1)


# The whole, on any image

images = st.builds(
    lambda height, width, seed, low, high: (
        np.random.default_rng(seed)
        .uniform(min(low, high), max(low, high), (height, width))
        .astype(np.float32)
    ),
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
specs = st.builds(
    InputSpec,
    size=st.sampled_from([16, 33, 64]),
    fit=st.sampled_from(["squash", "pad"]),
    resampling=st.sampled_from(["area", "linear", "cubic"]),
    denoise=st.sampled_from(["none", *DENOISERS]),
    contrast=st.sampled_from(["none", "equalize", "clahe"]),
    lungs=st.sampled_from(["none", "crop", "mask", "crop_and_mask"]),
    lung_margin=st.sampled_from([0.0, 0.05, 0.5]),
    window=st.sampled_from(["full", "image", "lungs"]),
)


@settings(max_examples=120)
@given(images, specs, st.sampled_from([two_lungs, no_lungs, lambda pixels: pixels, lambda p: 1 - p]))
def test_any_image_gives_finite_grey_levels_of_the_right_shape(pixels, spec, segment):
    result = standardise(radiograph(pixels), spec, segment)
    assert result.pixels.shape == (1, spec.size, spec.size)
    assert result.pixels.dtype == np.float32
    assert result.pixels.flags.c_contiguous
    assert np.isfinite(result.pixels).all()
    assert result.pixels.min() >= 0
    assert result.pixels.max() <= 1


# Decoding no more than is needed


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(size=224),
        InputSpec(size=128),
        InputSpec(size=64),
        InputSpec(size=128, fit="pad"),
    ],
    ids=lambda spec: f"{spec.size}-{spec.fit}",
)
def test_scaled_decoding_is_within_one_grey_level_of_the_full_image(shared_data, spec):
    paths = sorted((shared_data / "kermany-original").rglob("*.jpeg"))[::8]
    assert paths
    scaled = 0
    for path in paths:
        full, reduced = read_radiograph(path), read_radiograph(path, min_side=spec.decode_side)
        scaled += reduced.pixels.shape != full.pixels.shape
        difference = standardise(full, spec).pixels - standardise(reduced, spec).pixels
        assert np.abs(difference).mean() * 255 < 1, path.name
    assert scaled or spec.size == 224


def test_scaled_decoding_of_a_lung_crop_is_within_one_grey_level(shared_data):
    spec = InputSpec(size=112, lungs="crop")
    for path in sorted((shared_data / "kermany-original").rglob("*.jpeg"))[::8]:
        full, reduced = read_radiograph(path), read_radiograph(path, min_side=spec.decode_side)
        shown = (standardise(image, spec, two_lungs).pixels for image in (full, reduced))
        assert np.abs(next(shown) - next(shown)).mean() * 255 < 1, path.name


def test_a_crop_begins_within_a_pixel():
    """A ramp shows where its crop begins and ends: at 0.2 of 63 columns, not at one of them."""
    ramp = np.tile((np.arange(63, dtype=np.float32) + 0.5) / 63, (63, 1))
    spec = InputSpec(size=32, lungs="crop", lung_margin=0)
    found = standardise(radiograph(ramp), spec, two_lungs).pixels[0]
    np.testing.assert_allclose(found[16], 0.15 + 0.7 * (np.arange(32) + 0.5) / 32, atol=1e-3)


def test_the_last_part_of_a_pixel_of_a_scaled_image_is_not_shown():
    """A ramp over 1201 columns, decoded at an eighth: the last of 151 columns is one eighth image."""
    ramp = np.minimum((np.arange(151) + 0.5) * 8 / 1201, 1)
    scaled = np.tile(ramp.astype(np.float32), (150, 1))
    found = standardise(Radiograph(scaled, "r.jpeg", "jpeg", 1200, 1201), InputSpec(size=32)).pixels[0]
    np.testing.assert_allclose(found[16, 1:-1], ((np.arange(32) + 0.5) / 32)[1:-1], atol=5e-4)


def test_borders_follow_the_original_and_not_its_scaled_pixels():
    scaled = Radiograph(np.ones((154, 181), np.float32), "r.jpeg", "jpeg", 1229, 1442)
    full = radiograph(np.ones((1229, 1442)))
    spec = InputSpec(size=64, fit="pad")
    assert standardise(scaled, spec).content == standardise(full, spec).content


def test_lungs_that_are_known_give_the_same_input(image):
    spec = InputSpec(size=64, lungs="crop", window="lungs")
    one = radiograph(image)
    known = standardise_with_lungs(one, spec, lung_field(two_lungs(lung_view(one))))
    np.testing.assert_array_equal(known.pixels, standardise(one, spec, two_lungs).pixels)


@given(
    corner=st.tuples(st.integers(0, 19), st.integers(0, 29)),
    opposite=st.tuples(st.integers(1, 20), st.integers(1, 30)),
    turns=st.integers(-4, 4),
)
def test_a_box_is_rotated_as_the_image_is(corner, opposite, turns):
    (top, bottom), (left, right) = (sorted(edges) for edges in zip(corner, opposite, strict=True))
    image = np.zeros((20, 30), bool)
    image[top:bottom, left:right] = True
    expected = np.rot90(image, turns)
    drawn = np.zeros(expected.shape, bool)
    box = rotated_box((top / 20, left / 30, bottom / 20, right / 30), turns)
    top, left, bottom, right = (round(edge * side) for edge, side in zip(box, drawn.shape * 2, strict=True))
    drawn[top:bottom, left:right] = True
    assert np.array_equal(drawn, expected)
