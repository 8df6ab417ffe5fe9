"""How much colour an image has, and that the gate rejects an image in colours."""

from __future__ import annotations

import struct

import cv2
import imagecodecs
import numpy as np
import pytest

from dicom_files import dicom
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


def coloured_dicom(rgb: np.ndarray, photometric: str, **elements: object) -> bytes:
    """Write a colour frame of 8 bits as DICOM; luminance and chromaticities are full range."""
    pixels = rgb
    if photometric.startswith("YBR"):
        pixels = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[:, :, [0, 2, 1]]
    if photometric == "YBR_FULL_422":
        pixels = np.concatenate([pixels[:, ::2, :1], pixels[:, 1::2, :1], pixels[:, ::2, 1:]], axis=2)
    if elements.get("PlanarConfiguration") == 1:
        pixels = np.moveaxis(pixels, -1, 0)
    header = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    size = {"Rows": rgb.shape[0], "Columns": rgb.shape[1]}
    return dicom(np.ascontiguousarray(pixels), bits=8, **(header | size | elements))


MAPPED = cv2.applyColorMap(grey_levels(1, 240, 240), cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
GREY = np.repeat(grey_levels(2, 240, 240)[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("photometric", "elements"),
    [
        ("RGB", {}),
        ("RGB", {"PlanarConfiguration": 1}),
        ("YBR_FULL", {}),
        ("YBR_FULL_422", {}),
    ],
)
def test_a_dicom_frame_in_colours_is_rejected_and_one_in_grey_passes(photometric, elements):
    image = read_radiograph(coloured_dicom(MAPPED, photometric, **elements))
    expected = read_radiograph(in_file(MAPPED[:, :, ::-1], ".png")).colour
    assert image.colour == pytest.approx(expected, rel=0.1)
    assert check_pixels(image, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]
    grey = read_radiograph(coloured_dicom(GREY, photometric, **elements))
    assert grey.colour < 0.01 and check_pixels(grey, LIMITS) == []


@pytest.mark.parametrize(
    ("syntax", "photometric"),
    [
        ("1.2.840.10008.1.2.4.50", "YBR_FULL_422"),
        ("1.2.840.10008.1.2.4.50", "RGB"),
        ("1.2.840.10008.1.2.4.80", "RGB"),
        ("1.2.840.10008.1.2.4.90", "YBR_RCT"),
    ],
)
def test_a_compressed_dicom_frame_in_colours_is_rejected(syntax, photometric):
    encoders = {"50": jpeg_of, "80": imagecodecs.jpegls_encode, "90": imagecodecs.jpeg2k_encode}
    stream = encoders[syntax[-2:]](np.ascontiguousarray(MAPPED))
    header = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    image = read_radiograph(dicom(stream, syntax, bits=8, Rows=240, Columns=240, **header))
    assert check_pixels(image, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]


def jpeg_of(rgb: np.ndarray) -> bytes:
    return in_file(rgb[:, :, ::-1], ".jpg")


def test_a_dicom_frame_of_12_bits_in_colours_is_rejected():
    deep = MAPPED.astype(np.uint16) * 16
    header = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    image = read_radiograph(dicom(np.ascontiguousarray(deep), bits=12, Rows=240, Columns=240, **header))
    assert check_pixels(image, LIMITS) == [Reason.NOT_A_CHEST_RADIOGRAPH]


def test_a_dicom_palette_in_colours_is_rejected_and_one_in_grey_passes():
    levels = np.arange(256, dtype=np.uint8)[None]
    for table, reasons in (
        (cv2.applyColorMap(levels, cv2.COLORMAP_JET)[0, :, ::-1], [Reason.NOT_A_CHEST_RADIOGRAPH]),
        (np.repeat(levels.T, 3, axis=1), []),
    ):
        header: dict[str, object] = {
            "PhotometricInterpretation": "PALETTE COLOR",
            "Rows": 240,
            "Columns": 240,
        }
        for name, entries in zip(("Red", "Green", "Blue"), table.T, strict=True):
            header[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
            header[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
        image = read_radiograph(dicom(grey_levels(1, 240, 240), bits=8, **header))
        assert check_pixels(image, LIMITS) == reasons


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 12])
def test_a_tiff_in_colours_of_any_number_of_bits_is_bright_and_in_colours(bits):
    rgb = np.random.default_rng(0).integers(0, 1 << bits, (40, 48, 3))
    pixels = np.packbits((rgb.reshape(40, -1, 1) >> np.arange(bits)[::-1]) & 1, axis=None).tobytes()
    tags = [
        (256, 48),
        (257, 40),
        (258, 0),
        (259, 1),
        (262, 2),
        (273, 0),
        (277, 3),
        (278, 40),
        (279, len(pixels)),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    file = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, value in tags:
        place = {258: start, 273: start + 6}.get(tag, value)
        file += struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, place)
    image = read_radiograph(file + bytes(4) + struct.pack("<3H", bits, bits, bits) + pixels)
    expected = rgb / ((1 << bits) - 1) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(image.pixels, expected, atol=0.005)
    assert image.colour > 0.25
