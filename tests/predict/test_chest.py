"""The frontal-chest classifier: its features, and what it does in the pipeline."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.domain import Radiograph
from pneumoscope.errors import Reason
from pneumoscope.evaluation.non_chest import KINDS_OF_DRAWINGS, non_chests
from pneumoscope.image.lungs import LungField
from pneumoscope.model.bundle import load_bundle
from pneumoscope.predict.chest import NOT_A_CHEST, TEXTURES, ChestClassifier, chest_features, texture
from pneumoscope.predict.predictor import Predictor


def test_texture_of_a_flat_image_is_finite_and_without_detail():
    measures = texture(np.full((128, 128), 0.5, np.float32))
    assert measures.shape == (TEXTURES,) and np.isfinite(measures).all()
    assert measures[:4] == pytest.approx(0, abs=1e-6)
    assert measures[5] == 1  # all pixels have one grey level


def test_texture_separates_grain_from_blur():
    grain = np.random.default_rng(0).random((128, 128), dtype=np.float32)
    smooth = np.tile(np.linspace(0, 1, 128, dtype=np.float32), (128, 1))
    assert texture(grain)[1] > 0.9 > texture(smooth)[1]
    assert texture(grain)[2] > 10 * texture(smooth)[2]


def test_classifier_is_a_logistic_regression():
    two = np.array([1, 2], np.float32)
    classifier = ChestClassifier(two, two, np.array([3, -1], np.float32), 0.5)
    assert classifier(two) == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert classifier(np.array([2, 2], np.float32)) == pytest.approx(1 / (1 + np.exp(-3.5)))
    assert not classifier(np.array([np.nan, 2], np.float32)) >= 0.5


def test_features_need_the_view_of_the_segmenter():
    lungs = LungField(mask=np.zeros((4, 4), bool), box=(0, 0, 1, 1), certainty=0.9, plausible=True, view=None)
    with pytest.raises(ValueError, match="without a view"):
        chest_features(np.zeros((2, 3, 3), np.float32), lungs)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(load_bundle(), workers=2)


def test_the_shipped_gate_rejects_drawings(predictor: Predictor):
    # Another seed than those that the gate was fitted on.
    drawn = list(non_chests((), 12, seed=7))
    found = predictor.predict_radiographs(
        [Radiograph(pixels, kind, "png", *pixels.shape) for kind, pixels in drawn]
    )
    rejected = Counter(one.path for one in found if one.status == "rejected")
    for kind in KINDS_OF_DRAWINGS:
        # Of new phantoms, which are drawn to look like chests, 25 of 30 were rejected.
        assert rejected[kind] >= (8 if kind == "phantom" else 11), kind


def test_overridden_gate_keeps_the_reason(tmp_path: Path):
    import cv2

    path = tmp_path / "disc.png"
    disc = np.full((300, 300), 160, np.uint8)
    cv2.circle(disc, (150, 150), 90, 60, -1)
    cv2.imwrite(str(path), disc)
    (found,) = Predictor(load_bundle(), workers=1).predict(path)
    assert (found.status, found.reasons) == ("rejected", (Reason.NOT_A_CHEST_RADIOGRAPH,))
    (forced,) = Predictor(load_bundle(), workers=1, force=True).predict(path)
    assert forced.status == "ok" and Reason.NOT_A_CHEST_RADIOGRAPH in forced.reasons


def test_line_for_people_names_the_fix():
    assert "give a frontal chest X-ray" in NOT_A_CHEST
