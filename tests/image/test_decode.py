"""Reading images other than DICOM: every format, every reason, the limits, the orientation."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.decode import (
    FORMATS,
    IMAGE_SUFFIXES,
    Limits,
    decodable_formats,
    looks_like_image,
    read_radiograph,
)


def scene(height: int = 48, width: int = 64) -> np.ndarray:
    """Draw a smooth image whose corners all differ, so that flips and inversions show."""
    y, x = np.mgrid[0:height, 0:width]
    return (40 + 100 * x / width + 100 * y / height).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason_of(source: bytes | Path, **options: object) -> Reason:
    with pytest.raises(UnreadableImageError) as caught:
        read_radiograph(source, **options)
    assert "\n" not in str(caught.value)
    return caught.value.reason


GREY = Image.fromarray(scene())
ALPHA = GREY.convert("RGBA")
ALPHA.putalpha(Image.fromarray(np.where(scene() > 120, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize(
    ("data", "kind", "photometric", "tolerance"),
    [
        pytest.param(encode(GREY, "JPEG", quality=95), "jpeg", "grey", 1.5, id="jpeg-grey"),
        pytest.param(encode(GREY.convert("RGB"), "JPEG", quality=95), "jpeg", "rgb", 1.5, id="jpeg-rgb"),
        pytest.param(encode(GREY, "JPEG", progressive=True, quality=95), "jpeg", "grey", 1.5, id="jpeg-prog"),
        pytest.param(encode(GREY.convert("CMYK"), "JPEG", quality=95), "jpeg", "cmyk", 2, id="jpeg-cmyk"),
        pytest.param(encode(GREY, "PNG"), "png", "grey", 0, id="png-grey"),
        pytest.param(encode(GREY.convert("P"), "PNG"), "png", "palette", 1, id="png-palette"),
        pytest.param(encode(GREY.convert("LA"), "PNG"), "png", "grey", 0, id="png-grey-alpha"),
        pytest.param(encode(GREY.convert("RGBA"), "PNG"), "png", "rgb", 1, id="png-rgba"),
        pytest.param(encode(GREY, "BMP"), "bmp", "palette", 0, id="bmp-grey"),
        pytest.param(encode(GREY.convert("RGB"), "BMP"), "bmp", "rgb", 1, id="bmp-rgb"),
        pytest.param(encode(GREY, "TIFF"), "tiff", "grey", 0, id="tiff-grey"),
        pytest.param(encode(GREY, "TIFF", compression="tiff_lzw"), "tiff", "grey", 0, id="tiff-lzw"),
        pytest.param(encode(GREY, "TIFF", compression="tiff_deflate"), "tiff", "grey", 0, id="tiff-deflate"),
        pytest.param(encode(GREY, "TIFF", compression="packbits"), "tiff", "grey", 0, id="tiff-packbits"),
        pytest.param(encode(GREY.convert("RGB"), "TIFF"), "tiff", "rgb", 1, id="tiff-rgb"),
        pytest.param(encode(GREY.convert("CMYK"), "TIFF"), "tiff", "cmyk", 1, id="tiff-cmyk"),
        pytest.param(encode(GREY.convert("P"), "TIFF"), "tiff", "palette", 1, id="tiff-palette"),
    ],
)
def test_every_format_gives_the_same_image(
    data: bytes, kind: str, photometric: str, tolerance: float
) -> None:
    image = read_radiograph(data)
    assert (image.format, image.photometric, image.bits) == (kind, photometric, 8)
    assert image.pixels.dtype == np.float32
    assert image.pixels.flags.c_contiguous
    assert (image.height, image.width) == image.pixels.shape == (48, 64)
    np.testing.assert_allclose(image.pixels * 255, scene(), atol=max(2 * tolerance, 1e-3))
    assert abs(image.pixels * 255 - scene()).mean() <= max(tolerance, 1e-4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_depth(kind: str) -> None:
    deep = (scene().astype(np.uint16) << 8) + 7
    image = read_radiograph(encode(deep, kind))
    assert image.bits == 16
    np.testing.assert_allclose(image.pixels, deep / 65535, atol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit(kind: str) -> None:
    mask = scene() > 120
    image = read_radiograph(encode(Image.fromarray(mask), kind))
    np.testing.assert_array_equal(image.pixels, mask.astype(np.float32))


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits(bits: int) -> None:
    """A PNG of 2 or 4 bits per sample spans black to white all the same."""
    colors = np.linspace(0, 255, 1 << bits).astype(np.uint8)
    image = Image.fromarray((np.arange(48 * 64) % (1 << bits)).astype(np.uint8).reshape(48, 64))
    palette = image.convert("P")
    palette.putpalette(np.repeat(colors, 3).tobytes())
    read = read_radiograph(encode(palette, "PNG", bits=bits))
    expected = np.asarray(palette.convert("L")) / 255
    assert read.bits == bits
    np.testing.assert_allclose(read.pixels, expected, atol=0.006)


def test_a_bitmap_of_three_masks_has_no_alpha() -> None:
    pixels = np.dstack([scene()] * 3 + [np.zeros_like(scene())])[::-1].tobytes()
    info = struct.pack("<IiiHHIIiiII", 40, 64, 48, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    data = b"BM" + struct.pack("<IHHI", 66 + len(pixels), 0, 0, 66) + info + masks + pixels
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("L"))
    np.testing.assert_allclose(read_radiograph(data).pixels * 255, expected, atol=1)


def test_transparent_is_black() -> None:
    image = read_radiograph(encode(ALPHA, "PNG"))
    expected = np.where(scene() > 120, scene(), 0) / 255
    np.testing.assert_allclose(image.pixels, expected, atol=0.01)


def test_white_is_zero_is_inverted(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "film.tif"
    tifffile.imwrite(path, 255 - scene(), photometric="miniswhite")
    np.testing.assert_allclose(read_radiograph(path).pixels, scene() / 255, atol=1e-6)


def test_tiled_planar_and_big_tiff(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "image"
    planes = np.stack([scene()] * 3)
    for options in (
        {"data": scene(), "tile": (16, 16)},
        {"data": scene(), "bigtiff": True},
        {"data": scene().astype(">u2") * 257, "byteorder": ">"},
        {"data": planes, "photometric": "rgb", "planarconfig": "separate"},
    ):
        tifffile.imwrite(path, **options)
        np.testing.assert_allclose(read_radiograph(path).pixels, scene() / 255, atol=0.005)


def test_signed_and_float_tiff_are_not_guessed_at(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "image.tif"
    for dtype in (np.float32, np.int16, np.uint32):
        tifffile.imwrite(path, scene().astype(dtype))
        assert reason_of(path) is Reason.UNSUPPORTED_ENCODING


def test_thumbnail_is_no_second_image_but_a_page_is(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(scene())
        writer.write(scene()[::4, ::4], subfiletype=1)
    assert read_radiograph(path).pixels.shape == (48, 64)
    with tifffile.TiffWriter(path) as writer:
        writer.write(scene()[::4, ::4], subfiletype=1)
        writer.write(scene())
    np.testing.assert_allclose(read_radiograph(path).pixels, scene() / 255, atol=1e-6)
    with tifffile.TiffWriter(path) as writer:
        writer.write(scene())
        writer.write(scene())
    assert reason_of(path) is Reason.MULTI_FRAME


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_orientation_matches_pillow(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(GREY, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    image = read_radiograph(data)
    assert (image.height, image.width) == image.pixels.shape == expected.shape
    np.testing.assert_allclose(image.pixels * 255, expected, atol=2.5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["ycbcr-jpeg", "cmyk", "grey-jpeg", "white-is-zero-jpeg"])
def test_orientation_is_applied_once_to_a_tiff_that_libtiff_renders(kind: str, orientation: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "white-is-zero-jpeg":
        buffer = io.BytesIO()
        options = {"photometric": "miniswhite", "compression": "jpeg"}
        tifffile.imwrite(buffer, 255 - scene(), extratags=[(274, "H", 1, orientation, True)], **options)
        data = buffer.getvalue()
    else:
        mode, compression = {
            "cmyk": ("CMYK", "tiff_lzw"),
            "grey-jpeg": ("L", "jpeg"),
            "ycbcr-jpeg": ("YCbCr", "jpeg"),
        }[kind]
        data = encode(GREY.convert(mode), "TIFF", compression=compression, exif=exif)
    expected = read_radiograph(encode(GREY, "PNG", exif=exif)).pixels
    np.testing.assert_allclose(read_radiograph(data).pixels, expected, atol=0.02)


def test_plain_cmyk_without_adobe_marker_is_not_inverted() -> None:
    data = encode(GREY.convert("CMYK"), "JPEG", quality=95)
    start = data.index(b"\xff\xee")
    plain = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    adobe, bare = read_radiograph(data).pixels, read_radiograph(plain).pixels
    # The same stored bytes, read as ink instead of as light: full black ink everywhere but for K.
    assert bare.mean() < 0.05 < adobe.mean()


def test_deep_jpeg() -> None:
    for options in ({"lossless": True, "bitspersample": 16}, {"bitspersample": 12, "level": 98}):
        bits = options["bitspersample"]
        deep = scene().astype(np.uint16) << (bits - 8)
        data = imagecodecs.jpeg8_encode(deep, **options)
        image = read_radiograph(data)
        assert image.bits == bits
        np.testing.assert_allclose(image.pixels, deep / ((1 << bits) - 1), atol=0.01)
        assert reason_of(data[: len(data) // 2]) is Reason.TRUNCATED


@pytest.mark.parametrize("min_side", [1, 100, 128, 250, 320, 1000])
def test_scaled_jpeg_keeps_the_requested_size_and_the_image(min_side: int) -> None:
    large = cv2.resize(scene(), (1300, 1000), interpolation=cv2.INTER_CUBIC)
    data = encode(large, "JPEG", quality=95)
    full, small = read_radiograph(data), read_radiograph(data, min_side=min_side)
    assert (small.height, small.width) == (1000, 1300)
    assert min(small.pixels.shape) >= min(min_side, 1000)
    size = small.pixels.shape[::-1]
    expected = cv2.resize(full.pixels, size, interpolation=cv2.INTER_AREA)
    assert abs(expected - small.pixels).mean() * 255 < 1


def test_scaled_real_radiographs_within_one_grey_level(shared_data: Path) -> None:
    for path in sorted((shared_data / "kermany-original").rglob("*.jpeg"))[::20]:
        full, small = read_radiograph(path), read_radiograph(path, min_side=320)
        assert min(small.pixels.shape) >= 320
        size = (224, 224)
        reduced = [cv2.resize(p.pixels, size, interpolation=cv2.INTER_AREA) for p in (full, small)]
        assert abs(reduced[0] - reduced[1]).mean() * 255 < 1, path.name


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(encode(GREY, "PNG"))
    assert read_radiograph(path).format == "png"
    assert read_radiograph(str(path)).source == str(path)
    assert looks_like_image(path)


def test_reasons_of_files(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "absent.png") is Reason.NOT_FOUND
    assert reason_of(tmp_path) is Reason.NOT_AN_IMAGE
    empty = tmp_path / "empty.png"
    empty.touch()
    assert reason_of(empty) is Reason.EMPTY_FILE
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(100_000_001)
    assert reason_of(large) is Reason.FILE_TOO_LARGE
    assert not looks_like_image(tmp_path / "absent.png")
    assert not looks_like_image(large)


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are POSIX")
def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    for special in (path, Path("/dev/zero")):
        assert reason_of(special) is Reason.NOT_AN_IMAGE
        assert not looks_like_image(special)


def test_a_path_that_cannot_be_one() -> None:
    for path in ("nul\0l.png", "n" * 300 + ".png"):
        with pytest.raises(UnreadableImageError, match="; check the path") as caught:
            read_radiograph(path)
        assert "Errno" not in str(caught.value)
        assert not looks_like_image(path)


@pytest.mark.skipif(sys.platform == "win32", reason="file modes are POSIX")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(GREY, "PNG"))
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        assert reason_of(path) is Reason.NO_PERMISSION
    else:
        pytest.skip("this user may read every file")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY_FILE),
        (b"<!DOCTYPE html><html>", Reason.NOT_AN_IMAGE),
        (b"\0\0\0\x18ftypheic" + bytes(100), Reason.UNSUPPORTED_ENCODING),
        (b"GIF89a" + bytes(100), Reason.CORRUPT),
        (b"\xff\xd8", Reason.TRUNCATED),
        (b"\x89PN", Reason.TRUNCATED),
        (encode(GREY, "JPEG")[:-400], Reason.TRUNCATED),
        (encode(GREY, "PNG")[:-1], Reason.TRUNCATED),
        (encode(GREY, "BMP")[:-1], Reason.TRUNCATED),
        (encode(GREY, "TIFF")[:-1], Reason.TRUNCATED),
    ],
)
def test_reasons_of_bytes(data: bytes, reason: Reason) -> None:
    assert reason_of(data, name="case") is reason


def test_damaged_png_is_seen_by_its_checksum() -> None:
    data = bytearray(encode(GREY, "PNG"))
    data[data.index(b"IDAT") + 20] ^= 0x10
    assert reason_of(bytes(data)) is Reason.CORRUPT


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_pixel_limit_comes_before_decoding(kind: str) -> None:
    data = encode(GREY, kind)
    assert read_radiograph(data, limits=Limits(max_pixels=48 * 64)).height == 48
    assert reason_of(data, limits=Limits(max_pixels=48 * 64 - 1)) is Reason.TOO_MANY_PIXELS
    assert reason_of(data, limits=Limits(max_bytes=len(data) - 1)) is Reason.FILE_TOO_LARGE


def test_bombs_are_rejected_by_their_headers() -> None:
    """A header that promises 4 gigapixels costs nothing, though no data stand behind it."""
    png = bytearray(encode(GREY, "PNG"))
    png[16:24] = (65535).to_bytes(4, "big") * 2
    assert reason_of(bytes(png)) is Reason.TOO_MANY_PIXELS
    jpeg = bytearray(encode(GREY, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    assert reason_of(bytes(jpeg)) is Reason.TOO_MANY_PIXELS


def test_progressive_jpeg_with_endless_scans_is_rejected() -> None:
    data = encode(GREY, "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff", start + 12)]
    assert reason_of(data[:start] + scan * 200 + data[start:]) is Reason.UNSUPPORTED_ENCODING


def test_animated_png_is_multi_frame() -> None:
    pages = [Image.fromarray(scene()), Image.fromarray(255 - scene())]
    assert reason_of(encode(pages[0], "PNG", save_all=True, append_images=pages[1:])) is Reason.MULTI_FRAME


def test_threads_read_the_same() -> None:
    files = [encode(GREY, kind) for kind in ("JPEG", "PNG", "TIFF", "BMP")] * 8
    expected = [read_radiograph(data).pixels for data in files]
    with ThreadPoolExecutor(4) as pool:
        for image, pixels in zip(pool.map(read_radiograph, files), expected, strict=True):
            np.testing.assert_array_equal(image.pixels, pixels)


def test_import_is_light() -> None:
    """A JPEG must not pay for DICOM and TIFF."""
    data = encode(GREY, "JPEG")
    program = (
        "import sys; from pneumoscope.image.decode import read_radiograph;"
        "read_radiograph(sys.stdin.buffer.read());"
        "print([m for m in ('pydicom', 'imagecodecs', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_nothing_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """Native libraries like to print; a batch of a million files must stay quiet."""
    for kind in ("JPEG", "PNG", "TIFF", "BMP"):
        data = encode(GREY, kind)
        for cut in (9, 40, len(data) // 2, len(data) - 5):
            reason_of(data[:cut])
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_the_formats_in_words_are_those_that_can_be_decoded() -> None:
    # Encodings of DICOM, and of JPEG, are of one format.
    families = {re.sub(r"^(DICOM|JPEG(?! 2000)).*", r"\1", name) for name in decodable_formats()}
    assert set(re.split(r", | or ", FORMATS)) == families
    with pytest.raises(UnreadableImageError, match=f"; give a {FORMATS} file$"):
        read_radiograph(b"neither of them, and long enough to be one")


def test_formats_and_suffixes() -> None:
    formats = decodable_formats()
    assert {"JPEG", "PNG", "TIFF", "BMP", "DICOM JPEG Extended, 8 and 12 bits"} <= formats.keys()
    assert formats["JPEG"].startswith("simplejpeg ")
    assert {".jpeg", ".dcm"} <= IMAGE_SUFFIXES
