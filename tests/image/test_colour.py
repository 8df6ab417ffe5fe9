"""How much colour an image has, and that the gate rejects an image in colours."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from images import grey_levels
from pneumoscope.errors import Reason
from pneumoscope.image.decode import read_radiograph
from pneumoscope.model.limits import GateLimits
from pneumoscope.predict.gate import advice, check_pixels

LIMITS = GateLimits()


def in_file(pixels: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_a_colour_map_is_rejected_and_the_line_says_why(suffix):
    mapped = cv2.applyColorMap(grey_levels(1, 240, 240), cv2.COLORMAP_JET)
    image = read_radiograph(in_file(mapped, suffix))
    assert image.colour > 0.25
    assert check_pixels(image, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]
    assert "colour map" in advice([Reason.NOT_A_CHEST_RADIOGRAPH], image, LIMITS)


@pytest.mark.parametrize("name", ["VIRIDIS", "PLASMA", "INFERNO", "MAGMA", "HOT", "COOL", "AUTUMN", "WINTER"])
def test_a_colour_map_from_dark_to_bright_is_rejected_for_its_hues(name):
    mapped = cv2.applyColorMap(grey_levels(1, 240, 240), getattr(cv2, f"COLORMAP_{name}"))
    image = read_radiograph(in_file(mapped, ".png"))
    assert image.colour > 0.11
    assert check_pixels(image, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]


def test_a_film_that_is_blue_in_the_shadows_and_warm_in_the_lights_passes():
    grey = grey_levels(2, 240, 240)[:, :, None].astype(np.float64)
    tinted = grey * [0.75, 0.92, 1.0] + (255 - grey) * [0.18, 0.08, 0.05]  # blue, green, red
    image = read_radiograph(in_file(np.rint(tinted).astype(np.uint8), ".png"))
    assert image.colour < 0.02
    assert check_pixels(image, LIMITS) == []


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grey_stored_as_colour_and_a_tinted_film_pass(suffix):
    grey = np.repeat(grey_levels(2, 240, 240)[:, :, None], 3, axis=2)
    tinted = np.rint(grey * np.array([0.75, 0.9, 1.0])).astype(np.uint8)
    for pixels in (grey, tinted):
        image = read_radiograph(in_file(pixels, suffix))
        assert image.colour < 0.02
        assert check_pixels(image, LIMITS) == []


def test_a_tiff_with_a_palette_in_colours_is_rejected(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    levels = np.arange(256, dtype=np.uint8)[None]
    for name, table, reasons in (
        ("jet", cv2.applyColorMap(levels, cv2.COLORMAP_JET)[0, :, ::-1], [Reason.NOT_A_CHEST_RADIOGRAPH]),
        ("grey", np.repeat(levels.T, 3, axis=1), []),
    ):
        path = tmp_path / f"{name}.tif"
        colormap = np.ascontiguousarray(table.T.astype(np.uint16) * 257)
        tifffile.imwrite(path, grey_levels(1, 240, 240), photometric="palette", colormap=colormap)
        assert check_pixels(read_radiograph(path), LIMITS) == reasons


def test_a_grey_file_has_no_colour():
    assert read_radiograph(in_file(grey_levels(3, 120, 120), ".png")).colour == 0
    assert read_radiograph(in_file(grey_levels(3, 120, 120), ".jpg")).colour == 0


def test_coloured_letters_on_a_radiograph_pass():
    marked = np.repeat(grey_levels(4, 400, 400)[:, :, None], 3, axis=2)
    cv2.putText(marked, "AP", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (0, 255, 255), 3)
    image = read_radiograph(in_file(marked, ".png"))
    assert 0 < image.colour <= LIMITS.max_colour
    assert check_pixels(image, LIMITS) == []
