"""Rotated images: the shipped gate recognises them; results are in the orientation of the file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest

from pneumoscope.errors import Reason
from pneumoscope.image.decode import read_radiograph
from pneumoscope.predict.predictor import Predictor
from pneumoscope.predict.rotation import QUARTER_TURNS, rotated

SAMPLES = Path(str(resources.files("pneumoscope") / "samples"))
CHESTS = ("normal.jpeg", "bacterial.jpeg", "viral.jpeg", "subtle.jpeg", "child.dcm")


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load(workers=1)


@pytest.fixture(scope="module")
def upright():
    return [read_radiograph(str(SAMPLES / name)) for name in CHESTS]


def test_an_upright_image_is_left_as_it_is(predictor, upright):
    assert not any(Reason.ROTATED in one.reasons for one in predictor.predict_radiographs(upright))


@pytest.mark.parametrize("turns", QUARTER_TURNS)
def test_a_rotated_image_is_predicted_upright(predictor, upright, turns):
    before = predictor.predict_radiographs(upright)
    after = predictor.predict_radiographs([rotated(one, turns) for one in upright])
    for one, other in zip(before, after, strict=True):
        assert (other.status, other.reasons) == ("ok", (Reason.ROTATED,))
        assert "predicted upright" in other.message
        assert other.p_target == pytest.approx(one.p_target, abs=1e-3)


@pytest.mark.parametrize("turns", QUARTER_TURNS)
def test_the_heat_map_lies_on_the_image_as_it_was_given(predictor, tmp_path, turns):
    pixels = cv2.imread(str(SAMPLES / "bacterial.jpeg"), cv2.IMREAD_GRAYSCALE)
    maps = []
    for name, image in (("given", pixels), ("rotated", np.rot90(pixels, turns))):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), image)
        explained = predictor.explain(path)
        assert explained.radiograph.pixels.shape == image.shape
        edges = zip(explained.explanation.region, image.shape * 2, strict=True)
        top, left, bottom, right = (round(edge * side) for edge, side in edges)
        whole = np.zeros(image.shape, np.float32)
        size = (right - left, bottom - top)
        whole[top:bottom, left:right] = cv2.resize(explained.explanation.heatmap, size)
        maps.append(whole)
    expected = np.rot90(maps[0], turns)
    assert np.abs(maps[1] - expected).mean() < 0.01
    assert np.abs(maps[1] - maps[0].reshape(maps[1].shape)).mean() > 0.05, "it did rotate"


def test_what_is_no_chest_is_none_after_a_rotation(predictor):
    images = [read_radiograph(str(SAMPLES / name)) for name in ("hand.jpeg", "shoulder.jpeg")]
    for turns in (0, *QUARTER_TURNS):
        found = predictor.predict_radiographs([rotated(one, turns) for one in images])
        assert [one.status for one in found] == ["rejected"] * 2


def test_without_statistics_of_chests_nothing_is_rotated(upright):
    bundle = Predictor.load(workers=1)
    bundle._pipeline._novelty = None
    (one,) = bundle.predict_radiographs([rotated(upright[0], 2)])
    assert Reason.ROTATED not in one.reasons
