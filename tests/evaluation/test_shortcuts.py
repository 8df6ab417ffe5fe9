from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.evaluation.corruptions import SHORTCUTS, write_text

BY_NAME = {one.name: one for one in SHORTCUTS}
GREY = np.full((200, 240), 0.4, np.float32)


def changed(name, strength):
    return BY_NAME[name].corrupt(GREY, strength, key="a.png")


@pytest.mark.parametrize("name", BY_NAME)
def test_five_strengths_each_change_more(name):
    assert len(BY_NAME[name].settings) == 5
    touched = []
    for strength in range(1, 6):
        after = changed(name, strength)
        assert after.dtype == np.float32
        assert after.min() >= 0
        assert after.max() <= 1
        touched.append(np.abs(after - 0.4).sum())
    assert touched == sorted(touched)
    assert touched[0] > 0
    np.testing.assert_array_equal(GREY, np.float32(0.4))


@pytest.mark.parametrize(("name", "rows", "columns"), [
    ("letter", slice(0, 40), slice(0, 60)),
    ("exposure_text", slice(0, 50), slice(160, 240)),
    ("tube", slice(0, 185), slice(110, 140)),
])  # fmt: skip
def test_what_is_burnt_in_is_bright_and_stands_where_it_belongs(name, rows, columns):
    after = changed(name, 5)
    ink = np.abs(after - 0.4) > 1e-6
    assert after[ink].min() >= 0.4
    assert after.max() == pytest.approx(0.95, abs=0.06)
    assert ink[rows, columns].sum() == ink.sum()


def test_a_border_makes_the_image_larger_and_leaves_all_of_it():
    after = changed("black_border", 5)
    assert after.shape == (240, 288)
    assert (after[20:-20, 24:-24] == GREY).all()
    assert after.sum() == pytest.approx(GREY.sum(), rel=1e-5)


def test_an_erased_edge_takes_a_letter_with_it():
    lettered = changed("letter", 1)
    erase = BY_NAME["edge_erased"].apply
    rng = np.random.default_rng(0)
    assert np.array_equal(erase(lettered, 0.2, rng), erase(GREY, 0.2, rng))
    assert (erase(GREY, 0.02, rng)[4:-4, 5:-5] == GREY[4:-4, 5:-5]).all()


def test_capitals_have_the_height_asked_for():
    ink = write_text(np.zeros((400, 400), np.float32), "R", left=0.2, bottom=0.6, tall=0.1, level=1.0) > 0.5
    rows = np.flatnonzero(ink.any(axis=1))
    assert rows[-1] - rows[0] + 1 == pytest.approx(40, abs=6)
    assert abs(rows[-1] - 240) <= 4
