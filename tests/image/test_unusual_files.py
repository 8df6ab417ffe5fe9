"""Sound files in unusual encodings are read, foreign ones are named, and damage is an error."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import CAUTIONS, Reason, UnreadableImageError
from pneumoscope.image.decode import IMAGE_SUFFIXES, Limits, looks_like_image, read_radiograph
from pneumoscope.image.foreign import foreign_format
from pneumoscope.image.levels import hides_image, stretch
from unusual_files import (
    GREY,
    WINDOW,
    deep,
    dicom,
    foreign_files,
    jpeg2000,
    lookup_item,
    plain_files,
    saved,
    tiff,
    unusual_dicom,
)

PLAIN, DICOM, FOREIGN = plain_files(), unusual_dicom(), foreign_files()
RESTORED = (Reason.GREY_LEVELS_RESTORED,)
# JPEG and lossy WebP: a sound file of the same quality differs as much.
LOSSY = {"jpeg-bad-profile", "jpeg-bytes-between", "jpeg-fill-between", "jpeg-rgb-both", "webp-lossy"}
NARROWER = {"jls-12-bit", "voi-12-bits-said-16", "voi-8-bits-said-16"}


def error_of(data: bytes, **options: Any) -> UnreadableImageError:
    with pytest.raises(UnreadableImageError) as caught:
        read_radiograph(data, **options)
    return caught.value


@pytest.mark.parametrize("name", sorted(PLAIN | DICOM))
def test_the_pixels_are_the_control_s(name: str) -> None:
    image = read_radiograph((PLAIN | DICOM)[name])
    assert image.pixels.dtype == np.float32
    assert (image.height, image.width) == image.pixels.shape == GREY.shape
    difference = abs(image.pixels * 255 - GREY)
    assert difference.max() <= (4 if name in LOSSY else 1)
    assert difference.mean() < 1
    guessed = "-in-16" in name or name in NARROWER
    assert image.cautions == (RESTORED if guessed else ())


@pytest.mark.parametrize(
    "marker", [b"\xff\xe0", b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda", b"\xff\xd9"]
)
@pytest.mark.parametrize("what", [b"\0\0\0", b"\xff\0text\xff", bytes(3000)])
def test_bytes_before_any_marker_of_a_jpeg(marker: bytes, what: bytes) -> None:
    sound = saved(GREY, "JPEG", quality=98)
    place = sound.index(marker)
    pixels = read_radiograph(sound[:place] + what + sound[place:]).pixels
    np.testing.assert_array_equal(pixels, read_radiograph(sound).pixels)


def test_faults_outside_of_the_coded_image_change_no_pixel() -> None:
    control = read_radiograph(saved(GREY, "JPEG", quality=98)).pixels
    for name in ("jpeg-bad-profile", "jpeg-bytes-between", "jpeg-fill-between"):
        np.testing.assert_array_equal(read_radiograph(PLAIN[name]).pixels, control)
        frame = dicom(PLAIN[name], "1.2.840.10008.1.2.4.50", bits=8, WindowCenter=128, WindowWidth=256)
        np.testing.assert_allclose(read_radiograph(frame).pixels, control, atol=1e-6)


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param({"WindowCenter": 40, "WindowWidth": 400}, id="ct"),
        pytest.param({"WindowCenter": -600, "WindowWidth": 1500}, id="ct-lung"),
        pytest.param({"WindowCenter": 128, "WindowWidth": 256}, id="8-bit"),
        pytest.param({"WindowCenter": 32768, "WindowWidth": 65536}, id="16-bit"),
        pytest.param(
            {"WindowCenter": 32768, "WindowWidth": 65536, "BitsStored": 16, "HighBit": 15}, id="all-16"
        ),
        pytest.param({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}, id="sigmoid"),
        pytest.param({"WindowCenter": 2048, "WindowWidth": 1}, id="threshold"),
        pytest.param({"WindowCenter": [40, 2048], "WindowWidth": [400, 4096]}, id="second-window-fits"),
        pytest.param({"VOILUTSequence": lookup_item([16, 5000, 8], bytes(range(16)))}, id="table-beyond"),
        pytest.param(
            {"VOILUTSequence": lookup_item([4096, 0, 16], bytes(8192)), **WINDOW}, id="table-of-zeros"
        ),
        pytest.param(
            {"VOILUTSequence": lookup_item([256, 0, 8], bytes(range(256))), **WINDOW}, id="table-of-8-bits"
        ),
        pytest.param({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095, **WINDOW}, id="all-padding"),
        pytest.param(
            {"WindowCenter": 40, "WindowWidth": 400, "PhotometricInterpretation": "MONOCHROME1"}, id="inverse"
        ),
    ],
)
def test_a_window_or_table_of_other_pixels_gives_way_with_a_caution(elements: dict[str, Any]) -> None:
    image = read_radiograph(dicom(**elements))
    expected = GREY / 255
    if elements.get("PhotometricInterpretation") == "MONOCHROME1":
        expected = 1 - expected
    assert np.corrcoef(image.pixels.ravel(), expected.ravel())[0, 1] > 0.99
    assert np.ptp(np.percentile(image.pixels, (1, 99))) > 0.7
    assert image.cautions == RESTORED
    assert set(image.cautions) <= CAUTIONS


@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (2048, 2048), (1200, 1400), (4096, 8192)])
def test_a_window_that_shows_the_image_stays(center: int, width: int) -> None:
    image = read_radiograph(dicom(WindowCenter=center, WindowWidth=width))
    expected = np.clip((deep(12) - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(image.pixels, expected, atol=1e-6)
    assert image.cautions == ()


def test_burnt_in_letters_do_not_hide_narrow_samples() -> None:
    pixels = deep(12)
    pixels[0, :8] = 65535
    expected = np.where(pixels == 65535, 255, GREY)
    for data in (saved(pixels, "PNG"), tiff(pixels)):
        image = read_radiograph(data)
        assert abs(image.pixels * 255 - expected).max() <= 1
        assert image.cautions == RESTORED
    window = {"WindowCenter": 32768, "WindowWidth": 65536}
    image = read_radiograph(dicom(pixels, bits=16, **window))
    rest = pixels != 65535
    assert np.corrcoef(image.pixels[rest], GREY[rest])[0, 1] > 0.99
    assert image.cautions == RESTORED


def test_an_offset_is_taken_off() -> None:
    """Signed samples that were saved as unsigned ones lie around the middle."""
    for offset in (32768, 61000):
        shifted = deep(12) + np.uint16(offset)
        for data in (saved(shifted, "PNG"), tiff(np.uint16(65535) - shifted, photometric="miniswhite")):
            image = read_radiograph(data)
            assert np.corrcoef(image.pixels.ravel(), GREY.ravel())[0, 1] > 0.98
            assert image.cautions == RESTORED


def test_a_dark_image_of_full_depth_stays_dark() -> None:
    for scale in (100, 257):  # of 65535: up to 39%, up to white
        image = read_radiograph(saved(GREY.astype(np.uint16) * np.uint16(scale), "PNG"))
        np.testing.assert_allclose(image.pixels, GREY / 65535 * scale, atol=1e-6)
        assert image.cautions == ()
    blank = read_radiograph(saved(np.zeros((32, 32), np.uint16), "PNG"))
    assert not blank.pixels.any()
    assert blank.cautions == ()


def test_a_flat_exposure_is_not_stretched_to_noise() -> None:
    noise = np.random.default_rng(0).integers(2000, 2030, (32, 32)).astype(np.uint16)
    image = read_radiograph(dicom(noise, **WINDOW))
    assert np.ptp(image.pixels) < 0.01
    assert image.cautions == ()


def test_hidden_and_shown_images() -> None:
    values, counts = np.arange(256.0), np.ones(256)
    assert not hides_image(values, values / 255, counts)
    assert hides_image(values, values / 2550, counts)
    assert hides_image(values, (values > 128).astype(float), counts)
    assert not hides_image(values, np.zeros(256), np.zeros(256))
    assert not hides_image(values, np.zeros(256), (values < 2).astype(float))
    assert not stretch(values, np.zeros(256)).any()
    np.testing.assert_allclose(stretch(values, counts)[[0, 255]], [0, 1])


def test_lossy_overshoot_is_cut_off_and_does_not_wrap_around() -> None:
    pixels = deep(12)
    pixels[8:14, 8:24] = 4090
    pixels[10, 10:20] = 4100  # a codec's error, beyond 12 bits
    image = read_radiograph(dicom(jpeg2000(pixels, 16), "1.2.840.10008.1.2.4.91", **WINDOW))
    assert (image.pixels[10, 10:20] == 1).all()


def test_palettes() -> None:
    def palette(data: bytes | None, bits: int = 16, stem: str = "") -> dict[str, Any]:
        elements: dict[str, Any] = {}
        for color in ("Red", "Green", "Blue"):
            elements[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
            elements[f"{stem}{color}PaletteColorLookupTableData"] = data
        return elements | {"PhotometricInterpretation": "PALETTE COLOR"}

    words = (np.arange(256) * 257).astype("<u2").tobytes()
    narrow = np.arange(256).astype("<u2").tobytes()
    for elements in (palette(words), palette(narrow), palette(bytes(range(256)), 8)):
        image = read_radiograph(dicom(GREY, bits=8, **elements))
        np.testing.assert_allclose(image.pixels * 255, GREY, atol=1e-3)
    segmented = struct.pack("<6H", 0, 1, 0, 1, 255, 65535)
    error = error_of(dicom(GREY, bits=8, **palette(segmented, stem="Segmented")))
    assert error.reason is Reason.UNSUPPORTED_ENCODING
    assert "segmented palette" in error.detail
    assert error_of(dicom(GREY, bits=8, **palette(None))).reason is Reason.CORRUPT


def test_a_modality_table_of_signed_values() -> None:
    """Its first input is negative, and the descriptor is read as unsigned."""
    signed = (deep(12).astype(int) - 2048).astype(np.int16)
    item = lookup_item([4096, 65536 - 2048, 16], np.arange(4096).astype("<u2").tobytes())
    image = read_radiograph(dicom(signed, bits=16, PixelRepresentation=1, ModalityLUTSequence=item, **WINDOW))
    assert abs(image.pixels * 255 - GREY).max() <= 1


def test_a_modality_table_of_other_pixels_is_left_out() -> None:
    item = lookup_item([256, 60000, 16], np.arange(256).astype("<u2").tobytes())
    image = read_radiograph(dicom(ModalityLUTSequence=item, **WINDOW))
    assert abs(image.pixels * 255 - GREY).max() <= 1


@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_foreign_formats_are_named(name: str, tmp_path: Path) -> None:
    data, word = FOREIGN[name]
    error = error_of(data, name="case")
    assert error.reason in {Reason.UNSUPPORTED_ENCODING, Reason.NOT_AN_IMAGE}
    assert word in error.detail
    assert "; " in error.detail, "what to do about it"
    assert len(str(error).splitlines()) == 1
    assert foreign_format(data[:512]) == foreign_format(data)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert not looks_like_image(path)


def test_what_is_read_is_not_foreign(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (PLAIN | DICOM).values():
        assert foreign_format(data) is None
        path.write_bytes(data[:200])
        assert looks_like_image(path)
    assert {".webp", ".gif", ".jls", ".jp2", ".j2k"} <= IMAGE_SUFFIXES


@pytest.mark.parametrize("compression", ["jpegxr", "jpegxl", "png"])
def test_a_tiff_compression_that_is_not_read_is_unsupported(compression: str) -> None:
    error = error_of(tiff(GREY, compression=compression))
    assert error.reason is Reason.UNSUPPORTED_ENCODING
    assert "compression" in error.detail


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_animations_are_multi_frame_and_a_single_frame_is_not(kind: str) -> None:
    pages = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    assert (
        error_of(saved(pages[0], kind, save_all=True, append_images=pages[1:])).reason is Reason.MULTI_FRAME
    )
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    image = read_radiograph(saved(pages[0], kind, save_all=True, **options))
    assert abs(image.pixels * 255 - GREY).max() <= 1


def test_transparent_is_black_and_the_orientation_is_applied() -> None:
    opaque = GREY > 120
    alpha = Image.fromarray(GREY).convert("RGBA")
    alpha.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_radiograph(saved(alpha, "WEBP", lossless=True, exact=True, exif=exif))
    np.testing.assert_allclose(image.pixels * 255, np.rot90(np.where(opaque, GREY, 0), -1), atol=1)
    clear = int(GREY[0, 0])
    image = read_radiograph(saved(GREY, "GIF", transparency=clear))
    np.testing.assert_allclose(image.pixels * 255, np.where(clear == GREY, 0, GREY), atol=1)


def test_a_gif_without_trailer_or_size_of_its_screen_is_whole() -> None:
    whole = PLAIN["gif"]
    assert whole.endswith(b";")
    for data in (whole[:-1], whole[:6] + bytes(4) + whole[10:]):
        np.testing.assert_array_equal(read_radiograph(data).pixels, read_radiograph(whole).pixels)


@pytest.mark.parametrize(
    "name", ["webp-lossless", "webp-lossy", "gif", "jp2", "j2k", "jls", "tiff-jpeg-2000"]
)
def test_limits_come_before_decoding(name: str) -> None:
    data, pixels = PLAIN[name], GREY.size
    assert read_radiograph(data, limits=Limits(max_pixels=pixels)).width == GREY.shape[1]
    assert error_of(data, limits=Limits(max_pixels=pixels - 1)).reason is Reason.TOO_MANY_PIXELS


def test_a_size_in_metadata_does_not_stand_for_the_codestream_s() -> None:
    """A text box with a tiny header goes before the codestream of the image."""
    data = PLAIN["jp2"]
    tiny = jpeg2000(np.zeros((2, 2), np.uint8), 8)
    box = struct.pack(">I4s", 8 + len(tiny), b"xml ") + tiny
    place = data.index(b"jp2c") - 4
    read = read_radiograph(data[:place] + box + data[place:])
    np.testing.assert_allclose(read.pixels * 255, GREY, atol=1e-3)
    limits = Limits(max_pixels=100)
    assert error_of(data[:place] + box + data[place:], limits=limits).reason is Reason.TOO_MANY_PIXELS


def test_what_follows_a_whole_image_does_not_matter() -> None:
    box = struct.pack(">I4s", 8 + 400, b"xml ") + b"x" * 400
    lossless = imagecodecs.jpeg8_encode(GREY, lossless=True)
    thumbnail = b"\xff\xe1" + struct.pack(">H", 4) + b"\xff\xd9"
    for data, rest in ((PLAIN["jp2"], box), (imagecodecs.jpegls_encode(GREY), box), (lossless, box)):
        np.testing.assert_array_equal(read_radiograph(data + rest).pixels, read_radiograph(data).pixels)
        assert error_of(data[:-70]).reason is Reason.TRUNCATED
    assert error_of(lossless[:2] + thumbnail + lossless[2:-70]).reason is Reason.TRUNCATED
    assert error_of(PLAIN["jp2"][:-70] + box).reason is Reason.TRUNCATED


def test_a_jpeg_2000_palette() -> None:
    """The codestream holds indices; two boxes in the header give their colours."""

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    data = saved(255 - GREY, "JPEG2000")
    start = data.index(b"jp2h") - 4
    end = start + int.from_bytes(data[start : start + 4], "big")
    colors = np.repeat(np.arange(256, dtype=np.uint8)[::-1], 3).tobytes()
    palette = box(b"pclr", struct.pack(">HB", 256, 3) + bytes([7] * 3) + colors)
    mapping = box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, channel) for channel in range(3)))
    image = read_radiograph(
        data[:start] + box(b"jp2h", data[start + 8 : end] + palette + mapping) + data[end:]
    )
    np.testing.assert_allclose(image.pixels * 255, GREY, atol=1e-3)


def test_jpeg_2000_that_is_not_understood_is_unsupported() -> None:
    signed = imagecodecs.jpeg2k_encode(deep(12).astype(np.int16) - 2048, level=0, codecformat="j2k")
    five = imagecodecs.jpeg2k_encode(np.stack([GREY] * 5, -1), level=0, codecformat="j2k", mct=False)
    for data in (signed, five):
        assert error_of(data).reason is Reason.UNSUPPORTED_ENCODING


# Small files of every new kind, for what follows.
TWELVE = {
    name: (PLAIN | DICOM)[name]
    for name in (
        "png-12-in-16",
        "tiff-jpeg-2000-strips",
        "jpeg-bad-profile",
        "jpeg-bytes-between",
        "jls-16-bit",
        "jp2",
        "webp-lossless",
        "webp-lossy",
        "gif",
        "overlay-jpeg-2000",
        "j2k-12-bit",
        "voi-descriptor-empty",
    )
}
LIMITS = Limits(max_pixels=1_000_000)


def outcome(data: bytes) -> np.ndarray | None:
    """Read, and hold the result to the contract: an image, or one line that quotes no exception."""
    start = time.process_time()
    try:
        image = read_radiograph(data, limits=LIMITS, name="case")
    except UnreadableImageError as error:
        assert isinstance(error.reason, Reason)
        assert len(str(error).splitlines()) == 1
        cause = str(error.__cause__ or "")
        assert not cause or cause not in str(error)
        return None
    finally:
        assert time.process_time() - start < 10
    assert image.pixels.shape == (image.height, image.width)
    assert 0 <= image.pixels.min() <= image.pixels.max() <= 1
    return image.pixels


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TWELVE))
def test_every_truncation(name: str) -> None:
    data = TWELVE[name]
    whole = outcome(data)
    for length in range(len(data)):
        pixels = outcome(data[:length])
        if pixels is not None:  # only padding, or an end mark, is missing
            np.testing.assert_array_equal(pixels, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TWELVE))
def test_changed_bytes(name: str) -> None:
    data, draw = TWELVE[name], random.Random(name)
    read = 0
    for _ in range(500):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        read += outcome(bytes(changed)) is not None
    assert read < 500
