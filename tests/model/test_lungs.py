"""Lungs of images of which only they are left."""

from __future__ import annotations

import numpy as np

from pneumoscope.image.lungs import lung_field
from pneumoscope.model.lungs import LungsOnBlack


def masked(levels):
    """Two lungs with grey levels on black, and a speck."""
    image = np.zeros((128, 128), np.float32)
    for left in (20, 72):
        image[24:104, left : left + 36] = levels
    image[4, 4] = 1
    return image


def test_what_is_not_black_is_lung():
    (found,) = LungsOnBlack().batch(masked(0.5)[None])
    field = lung_field(found)
    assert field.plausible
    assert field.certainty == 1
    assert field.box == (24 / 128, 20 / 128, 104 / 128, 108 / 128)


def test_inverted_grey_levels_are_corrected_inside_the_lungs_only():
    shades = np.linspace(0.3, 0.9, 36, dtype=np.float32)[None].repeat(80, axis=0)
    image = masked(shades)
    corrected = LungsOnBlack(inverted=True).corrected(image)
    assert corrected[0].max() == 0
    inside = corrected[64, 24:52]
    np.testing.assert_allclose(inside, 1 - image[64, 24:52])
    same = LungsOnBlack().corrected(image)
    np.testing.assert_allclose(same[64, 24:52], image[64, 24:52])


def test_the_two_have_different_identities():
    assert LungsOnBlack().identity != LungsOnBlack(inverted=True).identity
