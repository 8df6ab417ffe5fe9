from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from images import grey_levels
from pneumoscope.domain import Radiograph, ViewPosition
from pneumoscope.errors import Reason
from pneumoscope.image.lungs import WHOLE, lung_field
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.manifest import GateLimits
from pneumoscope.predict.gate import advice, check_header, check_lungs, check_pixels

LIMITS = GateLimits()


def radiograph(pixels: np.ndarray | None = None, **fields: object) -> Radiograph:
    grey = grey_levels() / np.float32(255) if pixels is None else pixels.astype(np.float32)
    return replace(Radiograph(grey, "x.png", "png", *grey.shape), **fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"modality": "CT"}, Reason.NOT_A_CHEST_RADIOGRAPH),
        ({"modality": "DX", "body_part": "KNEE"}, Reason.NOT_A_CHEST_RADIOGRAPH),
        ({"view": ViewPosition.LATERAL}, Reason.LATERAL_VIEW),
        ({"height": 63, "width": 63}, Reason.TOO_SMALL),
        ({"height": 100, "width": 251}, Reason.CROPPED),
    ],
)
def test_header_speaks_against_the_image(fields, reason):
    given = radiograph(**fields)
    assert check_header(given, LIMITS) == [reason]
    assert advice([reason], given, LIMITS).endswith((".", "!"))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"modality": "DX", "body_part": "CHEST", "view": ViewPosition.PA},
        {"modality": "CR", "body_part": "CHEST 2 VIEWS", "view": ViewPosition.AP},
        {"modality": "CR", "body_part": ""},
        {"height": 64, "width": 160},
    ],
)
def test_header_of_a_frontal_chest_passes(fields):
    assert check_header(radiograph(**fields), LIMITS) == []


def test_every_reason_is_told_at_once():
    given = radiograph(modality="MR", view=ViewPosition.LATERAL, height=10, width=10)
    reasons = check_header(given, LIMITS)
    assert reasons == [Reason.NOT_A_CHEST_RADIOGRAPH, Reason.LATERAL_VIEW, Reason.TOO_SMALL]
    line = advice(reasons, given, LIMITS)
    assert "MR" in line
    assert "10x10" in line
    assert "\n" not in line


def test_ordinary_grey_levels_pass():
    assert check_pixels(radiograph(), LIMITS) == []


def test_blank_and_clipped_images_are_told_by_their_tone():
    black, white = np.zeros((90, 90)), np.ones((90, 90))
    assert check_pixels(radiograph(black), LIMITS) == [Reason.OVER_EXPOSED]
    assert check_pixels(radiograph(white), LIMITS) == [Reason.UNDER_EXPOSED]
    assert check_pixels(radiograph(black + 0.4), LIMITS) == [Reason.OVER_EXPOSED]
    mostly_white = white.copy()
    mostly_white[:30] = np.linspace(0, 1, 90)
    assert check_pixels(radiograph(mostly_white), LIMITS) == [Reason.UNDER_EXPOSED]


def test_black_borders_of_a_padded_image_pass():
    padded = np.zeros((120, 240))
    padded[:, 60:180] = grey_levels(0, 120, 120) / 255
    assert check_pixels(radiograph(padded), LIMITS) == []


def test_lungs_must_be_plausible_and_certain_where_the_bundle_looks_for_them():
    nothing = lung_field(np.zeros((128, 128), np.float32))
    lungless = Standardised(np.zeros((1, 64, 64), np.float32), WHOLE, WHOLE, nothing)
    assert check_lungs(replace(lungless, lungs=None), LIMITS) == []
    assert check_lungs(lungless, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]
    assert "two lungs" in advice([Reason.NOT_A_CHEST_RADIOGRAPH], radiograph(), LIMITS)
    chest = np.zeros((128, 128), np.float32)
    chest[30:100, 20:60] = chest[30:100, 70:110] = 1
    assert check_lungs(replace(lungless, lungs=lung_field(chest)), LIMITS) == []
    doubtful = lung_field(chest * np.float32(0.8))
    assert doubtful.plausible
    assert check_lungs(replace(lungless, lungs=doubtful), LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]
