"""The strongest region: where its outline lies, to the part of a pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.domain import Explanation
from pneumoscope.report.overlay import CONTOUR_AT
from pneumoscope.report.region import strongest_region


def with_block(top: int, left: int, bottom: int, right: int, side: int = 32) -> np.ndarray:
    heat = np.zeros((side, side), np.float32)
    heat[top:bottom, left:right] = 1
    return heat


def test_a_block_of_evidence_is_outlined_where_it_lies():
    region = strongest_region(Explanation("pneumonia", with_block(8, 4, 16, 12), (0, 0, 1, 1)), 320, 640)
    (left, top), (right, bottom) = region.outline.min(axis=0), region.outline.max(axis=0)
    # One pixel of the map is 10 rows and 20 columns.
    assert (top, bottom) == pytest.approx((80, 160), abs=2)
    assert (left, right) == pytest.approx((80, 240), abs=4)
    assert (region.outline[0] == region.outline[-1]).all()


def test_the_region_of_the_map_is_taken_into_account():
    heat = with_block(0, 0, 32, 32)
    region = strongest_region(Explanation("pneumonia", heat, (0.25, 0.5, 0.75, 1.0)), 400, 200)
    assert region.outline.min(axis=0) == pytest.approx([100, 100], abs=1)
    assert region.outline.max(axis=0) == pytest.approx([200, 300], abs=1)


def test_coordinates_count_from_the_corner_of_the_first_pixel():
    heat = np.zeros((512, 512), np.float32)  # as fine as the map that is outlined: one of its pixels
    heat[100, 200] = 1
    region = strongest_region(Explanation("pneumonia", heat, (0, 0, 1, 1)), 512, 512)
    assert region.peak == (200.5, 100.5), "the centre of the pixel with the index 200, 100"
    assert region.outline.min(axis=0).tolist() == [200, 100]
    assert region.outline.max(axis=0).tolist() == [201, 101]


def test_weak_evidence_is_no_region():
    heat = with_block(8, 4, 16, 12) * (CONTOUR_AT - 0.01)
    assert strongest_region(Explanation("pneumonia", heat, (0, 0, 1, 1)), 100, 100) is None


def test_of_two_regions_the_one_with_the_strongest_evidence_counts():
    heat = np.maximum(with_block(2, 2, 20, 14) * 0.8, with_block(24, 24, 28, 28))
    region = strongest_region(Explanation("pneumonia", heat, (0, 0, 1, 1)), 320, 320)
    assert region.outline.min() > 200 and region.place == "right half of the image, lower third"


@pytest.mark.parametrize(
    ("row", "column", "place"),
    [
        (2, 2, "left half of the image, upper third"),
        (15, 28, "right half of the image, middle third"),
        (28, 2, "left half of the image, lower third"),
    ],
)
def test_the_place_in_words(row, column, place):
    heat = with_block(row, column, row + 2, column + 2)
    assert strongest_region(Explanation("pneumonia", heat, (0, 0, 1, 1)), 100, 100).place == place


@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    image=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    edges=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45), st.floats(0.55, 1), st.floats(0.55, 1)),
)
def test_any_map_gives_a_closed_outline_in_the_image_around_its_peak(seed, size, image, edges):
    heat = np.random.default_rng(seed).random(size, np.float32)
    region = strongest_region(Explanation("pneumonia", heat, edges), *image)
    if region is None:
        return
    outline = region.outline
    assert len(outline) >= 4 and (outline[0] == outline[-1]).all() and np.isfinite(outline).all()
    assert (outline >= 0).all() and (outline <= (image[1], image[0])).all()
    scale = 512 / np.array((image[1], image[0]))
    points = (outline * scale).astype(np.float32)[:, None]
    distance = cv2.pointPolygonTest(points, tuple(float(x) for x in np.array(region.peak) * scale), True)
    assert distance > -4, "the peak is within, up to the simplification of the outline"
