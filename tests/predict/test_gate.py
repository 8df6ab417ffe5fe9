from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from images import drawn_lungs, grey_levels
from pneumoscope.domain import Population, Radiograph, ViewPosition
from pneumoscope.errors import CAUTIONS, Reason
from pneumoscope.image.lungs import WHOLE, LungField, lung_field
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.limits import GateLimits
from pneumoscope.predict.gate import (
    advice,
    check_edges,
    check_header,
    check_lungs,
    check_pixels,
    inverted,
    is_inverted,
    may_be_inverted,
    population_advice,
    rejects,
)
from pneumoscope.predict.novelty import DIMENSIONS, Novelty, describe

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
def test_the_header_rejects_the_image(fields, reason):
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


@pytest.mark.parametrize(
    "part",
    [
        *("TORAX", "TÓRAX", "LUNGS", "CXR", "CHESTPA", "CHESTABDOMEN", "CHEST_TO_PELVIS", "PORTABLE CHEST"),
        *("THORAX AP", "UNKNOWN", "OTHER", " ", "RIBS", "PULMON", "胸部", "흉부", "chest"),
    ],
)
def test_words_for_a_chest_and_for_nothing_pass(part):
    given = radiograph(modality="DX", body_part=part)
    assert check_header(given, LIMITS) == check_header(given, LIMITS, finds_lungs=True) == []


@pytest.mark.parametrize("part", ["KNEE", "ABDOMEN", "THORACIC SPINE", "CARIBBEAN"])
def test_a_wrong_body_part_is_a_caution_where_the_lungs_are_checked_and_rejects_elsewhere(part):
    given = radiograph(modality="DX", body_part=part)
    assert check_header(given, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]
    assert check_header(given, LIMITS, finds_lungs=True) == [Reason.BODY_PART_MISMATCH]
    line = advice([Reason.BODY_PART_MISMATCH], given, LIMITS)
    assert line.startswith("Caution: ")
    assert part in line
    both = advice([Reason.BODY_PART_MISMATCH, Reason.NOT_A_CHEST_RADIOGRAPH], given, LIMITS)
    assert "Caution" not in both
    assert part in both


@pytest.mark.parametrize(
    ("modality", "without_lungs", "with_lungs"),
    [
        *((name, True, True) for name in ("DX", "CR", "RG", "RF", "DR", "XR", "", "UNKNOWN")),
        *((name, False, True) for name in ("SC", "OT")),
        *((name, False, False) for name in ("CT", "MR", "US", "MG", "PX", "XA", "NM")),
    ],
)
def test_modalities(modality, without_lungs, with_lungs):
    given = radiograph(modality=modality)
    assert (check_header(given, LIMITS) == []) is without_lungs
    assert (check_header(given, LIMITS, finds_lungs=True) == []) is with_lungs


def test_other_names_of_modalities_follow_the_limits_of_the_bundle():
    limits = GateLimits(modalities=("CR",))
    assert check_header(radiograph(modality="XR"), limits) == [Reason.NOT_A_CHEST_RADIOGRAPH]


def test_all_reasons_are_given_at_once():
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


def test_an_image_in_black_and_white_is_rejected_and_the_line_says_why():
    levels = np.where(grey_levels(0, 240, 240) > 110, 1.0, 0.0)
    assert 0.2 < levels.mean() < 0.8
    image = radiograph(levels)
    assert check_pixels(image, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]
    assert "pure black and white" in advice([Reason.NOT_A_CHEST_RADIOGRAPH], image, LIMITS)


@pytest.mark.parametrize("turns", range(4))
def test_lungs_along_an_edge_are_a_caution(turns):
    for top, expected in ((20, []), (0, [Reason.LUNGS_CUT_OFF])):
        probability = np.zeros((128, 128), np.float32)
        for left in (24, 72):
            probability[top : top + 80, left : left + 32] = 1
        found = lung_field(np.ascontiguousarray(np.rot90(probability, turns)))
        assert found.plausible
        assert check_edges(standardised(found)) == expected
    assert "give the uncropped image" in advice([Reason.LUNGS_CUT_OFF], radiograph(), LIMITS)


def test_black_borders_of_a_padded_image_pass():
    padded = np.zeros((120, 240))
    padded[:, 60:180] = grey_levels(0, 120, 120) / 255
    assert check_pixels(radiograph(padded), LIMITS) == []


def test_lungs_must_be_plausible_and_certain_where_there_is_a_segmenter():
    nothing = lung_field(np.zeros((128, 128), np.float32))
    lungless = Standardised(np.zeros((1, 64, 64), np.float32), WHOLE, WHOLE, nothing)
    assert check_lungs(replace(lungless, lungs=None), LIMITS) == []
    assert check_lungs(lungless, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]
    assert "lung fields not detected" in advice([Reason.NOT_A_CHEST_RADIOGRAPH], radiograph(), LIMITS)
    chest = np.zeros((128, 128), np.float32)
    chest[30:100, 20:60] = chest[30:100, 70:110] = 1
    assert check_lungs(replace(lungless, lungs=lung_field(chest)), LIMITS) == []
    doubtful = lung_field(chest * np.float32(0.8))
    assert doubtful.plausible
    assert check_lungs(replace(lungless, lungs=doubtful), LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]


def standardised(field: LungField) -> Standardised:
    return Standardised(np.zeros((1, 32, 32), np.float32), WHOLE, WHOLE, field)


def known() -> Novelty:
    mean = np.mean([describe(drawn_lungs(seed=seed)) for seed in range(20)], axis=0)
    return Novelty(mean.astype(np.float32), np.eye(DIMENSIONS, dtype=np.float32) * 5)


NOVELTY_LIMITS = GateLimits(max_novelty=1.0)


def test_a_known_chest_passes_and_strange_surroundings_do_not():
    assert check_lungs(standardised(drawn_lungs()), NOVELTY_LIMITS, known()) == []
    field = drawn_lungs()
    strange = LungField(field.mask, field.box, True, field.certainty, np.eye(128, dtype=np.float32))
    assert check_lungs(standardised(strange), NOVELTY_LIMITS, known()) == [Reason.NOT_A_CHEST_RADIOGRAPH]


def test_a_single_lung_field_is_rejected_as_lateral():
    for columns in (slice(20, 110), slice(30, 75), slice(60, 120)):
        probability = np.zeros((128, 128), np.float32)
        probability[20:110, columns] = 0.97
        assert lung_field(probability).bridge == 1
        assert check_lungs(standardised(lung_field(probability)), GateLimits()) == [Reason.LATERAL_VIEW]
    assert drawn_lungs().bridge == 0


def test_inverted_grayscale_is_found_by_lungs_that_are_more_certain_when_corrected():
    good, poor = standardised(drawn_lungs(0.97)), standardised(drawn_lungs(0.92))
    assert may_be_inverted(poor, NOVELTY_LIMITS)
    assert not may_be_inverted(good, NOVELTY_LIMITS)
    assert is_inverted(poor, good, [])
    assert is_inverted(poor, good, [Reason.NOT_A_CHEST_RADIOGRAPH])
    assert is_inverted(good, poor, [Reason.NOT_A_CHEST_RADIOGRAPH])
    assert not is_inverted(good, poor, [Reason.NOT_A_CHEST_RADIOGRAPH], NOVELTY_LIMITS.sure_lung_certainty)
    assert not is_inverted(good, poor, [])


def test_cautions_do_not_reject_and_everything_else_does():
    assert not rejects(CAUTIONS)
    assert all(rejects([reason, *CAUTIONS]) for reason in Reason if reason not in CAUTIONS)


CHILDREN = (Population("children", (1, 5), ("AP",), "Guangzhou"),)


@pytest.mark.parametrize(
    ("age", "view", "caution"),
    [
        (None, "unknown", False),
        (1.0, "unknown", False),
        (5.9, "AP", False),
        (None, "AP", False),
        (0.5, "unknown", True),
        (6.0, "unknown", True),
        (17.0, "AP", True),
        (80, "PA", True),
        (3.0, "PA", True),
    ],
)
def test_a_patient_outside_the_validated_populations_is_a_caution(age, view, caution):
    line = population_advice(age, view, CHILDREN)
    assert bool(line) is caution
    if caution:
        assert "1 to 5 years" in line
        assert "\n" not in line


def test_no_caution_where_some_population_includes_the_patient_or_none_is_stated():
    adults = Population("adults", (18, None), ("AP", "PA"))
    assert population_advice(40, "PA", (*CHILDREN, adults)) == ""
    assert population_advice(40, "PA", ()) == ""
    assert population_advice(10, "PA", (*CHILDREN, adults)) != ""


grey = st_numpy.arrays(
    np.float32, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=48), elements=st.floats(0, 1, width=32)
)


@settings(max_examples=60)
@given(grey, st.integers(0, 2**32 - 1))
def test_any_image_and_any_lungs_end_in_a_decision(pixels, seed):
    radiograph = Radiograph(pixels, "x.png", "png", *pixels.shape)
    probability = np.random.default_rng(seed).random((16, 16), np.float32)
    view = np.resize(pixels, (16, 16)).astype(np.float32)
    field = lung_field(probability, view=view)
    for reasons in (
        check_header(radiograph, NOVELTY_LIMITS),
        check_pixels(radiograph, NOVELTY_LIMITS),
        check_pixels(inverted(radiograph), NOVELTY_LIMITS),
        check_lungs(standardised(field), NOVELTY_LIMITS, known()),
    ):
        assert all(isinstance(reason, Reason) for reason in reasons)
    assert np.isfinite(describe(field)).all()
    assert 0 <= field.bridge <= 1


def test_the_line_says_what_was_checked():
    capture = radiograph(modality="SC")
    reasons = check_header(capture, LIMITS)
    assert "its modality is SC" in advice(reasons, capture, LIMITS, finds_lungs=False)
    assert "lung fields not detected" in advice(reasons, capture, LIMITS)
