from __future__ import annotations

import numpy as np
import pytest

from images import grey_levels
from pneumoscope.domain import Radiograph
from pneumoscope.evaluation.copies import CHANGES, augmented_copies


def radiograph(name="a/x.png", height=200, width=260, reduced=1) -> Radiograph:
    pixels = (grey_levels(3, height // reduced, width // reduced) / 255).astype(np.float32)
    return Radiograph(pixels, name, "png", height, width)


def test_a_seed_and_a_name_draw_the_same_copies_in_any_folder():
    one, other = augmented_copies(radiograph(), 4), augmented_copies(radiograph("other/x.png"), 6)
    for left, right in zip(one, other, strict=False):
        np.testing.assert_array_equal(left.pixels, right.pixels)
    shapes = {copy.pixels.tobytes() for copy in other}
    assert len(shapes) == 6
    assert augmented_copies(radiograph("y.png"), 1)[0].pixels.tobytes() not in shapes
    assert augmented_copies(radiograph(), 1, seed=1)[0].pixels.tobytes() not in shapes


def test_copies_are_radiographs_and_the_original_stays():
    original = radiograph()
    before = original.pixels.copy()
    for copy in augmented_copies(original, 40):
        assert copy.pixels.dtype == np.float32
        assert copy.pixels.flags.c_contiguous
        assert copy.pixels.min() >= 0
        assert copy.pixels.max() <= 1
        assert (copy.height, copy.width) == copy.pixels.shape
        assert copy.width / copy.height == pytest.approx(1.3, rel=0.2)
    np.testing.assert_array_equal(original.pixels, before)


def test_the_size_of_the_original_follows_a_reduced_decode():
    for copy in augmented_copies(radiograph(height=400, width=520, reduced=4), 20):
        assert copy.height == pytest.approx(4 * copy.pixels.shape[0], abs=3)
        assert copy.width == pytest.approx(4 * copy.pixels.shape[1], abs=3)


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__.strip("_"))
def test_each_change_is_visible_and_mild(change):
    pixels = radiograph().pixels
    changes = []
    for seed in range(10):
        changed = np.clip(change(pixels, np.random.default_rng(seed)), 0, 1)
        if changed.shape != pixels.shape:
            assert max(abs(n / o - 1) for n, o in zip(changed.shape, pixels.shape, strict=True)) <= 0.101
            changes.append(1e-3)
        else:
            changes.append(float(np.abs(changed - pixels).mean()))
    assert max(changes) > 1e-4
    assert max(changes) < 0.12


@pytest.mark.parametrize("side", [1, 2, 7])
def test_tiny_images_do_not_stop_it(side):
    assert (
        len(augmented_copies(Radiograph(np.zeros((side, side), np.float32), "x", "png", side, side), 30))
        == 30
    )
