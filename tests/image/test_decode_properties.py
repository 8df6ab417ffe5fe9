"""Hostile input: any bytes give an image or one typed error, in little time."""

from __future__ import annotations

import io
import resource
import time
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian

import dicom_files
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.decode import Limits, read_radiograph

# Seconds of CPU for one file. A damaged near-lossless JPEG-LS stream can keep CharLS busy for 4, not more.
SLOW = 15.0
LIMITS = Limits(max_pixels=4_000_000)


def scene() -> np.ndarray:
    y, x = np.mgrid[0:32, 0:32]
    return (np.sin(x / 3) * 40 + y * 5 + 60).astype(np.uint8)


def saved(kind: str, mode: str = "L", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene()).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(syntax: str, frame: bytes | np.ndarray, bits: int = 12) -> bytes:
    return dicom_files.dicom(
        frame,
        syntax,
        bits=bits,
        Rows=32,
        Columns=32,
        PatientID="P",
        PatientAge="010Y",
        PixelSpacing=[0.2, 0.2],
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=1 << bits >> 1,
        WindowWidth=1 << bits,
    )


DEEP = scene().astype(np.uint16) << 4
JPEG_LS = "1.2.840.10008.1.2.4.80"
SEEDS = {
    "jpeg": saved("JPEG"),
    "jpeg-progressive": saved("JPEG", "RGB", progressive=True),
    "jpeg-cmyk": saved("JPEG", "CMYK"),
    "jpeg-12-bit": imagecodecs.jpeg8_encode(DEEP, bitspersample=12),
    "png": saved("PNG"),
    "png-palette": saved("PNG", "P"),
    "bmp": saved("BMP"),
    "tiff": saved("TIFF"),
    "tiff-lzw": saved("TIFF", compression="tiff_lzw"),
    "tiff-jpeg": saved("TIFF", compression="jpeg"),
    "tiff-palette": saved("TIFF", "P"),
    "jpeg-ls": imagecodecs.jpegls_encode(DEEP),
    "jpeg-2000": saved("JPEG2000"),
    "webp": saved("WEBP", "RGB"),
    "webp-lossless": saved("WEBP", "RGBA", lossless=True),
    "gif": saved("GIF"),
    "dicom": dicom(ExplicitVRLittleEndian, DEEP),
    "dicom-jpeg": dicom("1.2.840.10008.1.2.4.50", saved("JPEG"), bits=8),
    "dicom-jpeg-extended": dicom("1.2.840.10008.1.2.4.51", imagecodecs.jpeg8_encode(DEEP, bitspersample=12)),
    "dicom-jpeg-lossless": dicom(
        "1.2.840.10008.1.2.4.70", imagecodecs.jpeg8_encode(DEEP, bitspersample=12, lossless=True)
    ),
    "dicom-jpeg-ls": dicom(JPEG_LS, imagecodecs.jpegls_encode(DEEP)),
    "dicom-jpeg-2000": dicom("1.2.840.10008.1.2.4.90", imagecodecs.jpeg2k_encode(DEEP, level=0)),
    "dicom-htj2k": dicom("1.2.840.10008.1.2.4.201", imagecodecs.htj2k_encode(DEEP)),
    "dicom-rle": dicom(
        "1.2.840.10008.1.2.5", pydicom.pixels.encoders.RLELosslessEncoder.encode(
            DEEP, rows=32, columns=32, samples_per_pixel=1, number_of_frames=1, bits_allocated=16,
            bits_stored=12, pixel_representation=0, photometric_interpretation="MONOCHROME2",
        )
    ),
}  # fmt: skip


def predict(data: bytes, limits: Limits = LIMITS) -> UnreadableImageError | None:
    """Read, and hold the outcome to the contract."""
    start = time.process_time()
    outcome = None
    try:
        image = read_radiograph(data, limits=limits, name="case")
    except UnreadableImageError as error:
        outcome = error
        assert isinstance(error.reason, Reason)
        assert str(error).startswith("case: ")
        assert len(str(error).splitlines()) == 1
    else:
        pixels = image.pixels
        assert pixels.dtype == np.float32
        assert pixels.shape == (image.height, image.width)
        assert 0 <= pixels.min() <= pixels.max() <= 1
    assert time.process_time() - start < SLOW
    return outcome


def test_seeds_are_sound() -> None:
    """Mutating a seed that cannot be read would prove nothing."""
    for name, data in SEEDS.items():
        assert predict(data) is None, name


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound file with a few bytes changed, cut out or put in, more often near the front."""
    data = bytearray(SEEDS[draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(draw(st.integers(1, 6))):
        reach = draw(st.sampled_from([64, 400, len(data)]))
        place = draw(st.integers(0, min(reach, len(data)) - 1))
        change = draw(st.sampled_from(["set", "flip", "delete", "insert"]))
        if change == "set":
            data[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
        elif change == "flip":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "delete" and len(data) > 16:
            del data[place : place + draw(st.integers(1, 8))]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_mutated_files(data: bytes) -> None:
    predict(data)


MAGIC = [
    b"",
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xc0\x00\x0b\x08",
    b"\x89PNG\r\n\x1a\n",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0",
    b"BM",
    b"\xff\xd8\xff\xf7\x00\x0b\x08",
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"RIFF\xff\0\0\0WEBPVP8X\n\0\0\0",
    b"RIFF\xff\0\0\0WEBPVP8L",
    b"GIF89a\x10\0\x10\0\0\0\0,",
    b"\0\0\0\x18ftyp",
    b"\x1f\x8b\x08\0",
    bytes(128) + b"DICM",
    bytes(128) + b"DICM\x02\0\0\0UL\x04\0",
    b"\x08\0\x05\0CS",
    b"\x08\0\0\0\x04\0\0\0",
]


@settings(max_examples=400)
@given(st.sampled_from(MAGIC), st.binary(max_size=400))
def test_random_bytes(magic: bytes, rest: bytes) -> None:
    predict(magic + rest)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_every_truncation(name: str) -> None:
    """Whatever is cut off: an error, or the whole image where only padding is missing."""
    data = SEEDS[name]
    whole = read_radiograph(data).pixels
    for length in range(len(data)):
        error = predict(data[:length])
        if error is None:
            np.testing.assert_array_equal(read_radiograph(data[:length]).pixels, whole)
        elif length > 200 and not name.startswith("dicom"):
            assert error.reason is Reason.TRUNCATED, length


def test_every_truncation_of_real_files(shared_data: Path) -> None:
    """A DICOM file without pixels, a radiograph as it is shared, and one reduced to a thumbnail."""
    photo = next(iter(sorted((shared_data / "kermany-224" / "NORMAL").glob("*.jpeg")))).read_bytes()
    thumbnail = cv2.resize(
        cv2.imdecode(np.frombuffer(photo, np.uint8), 0), (48, 48), interpolation=cv2.INTER_AREA
    )
    files = [
        (shared_data / "dicom" / "chrJapMulti.dcm").read_bytes(),
        photo,
        cv2.imencode(".png", thumbnail)[1].tobytes(),
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in files:
        for length in range(len(data)):
            assert predict(data[:length]) is not None, length
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, "MB of memory more than before"


@pytest.mark.parametrize(("name", "padding"), [("MR_small.dcm", 138), ("MR_small_RLE.dcm", 142)])
def test_truncations_of_real_dicom_files_with_pixels(name: str, padding: int) -> None:
    """An error up to the end of the pixels, then the whole image: behind them is a padding element only."""
    data = Path(str(get_testdata_file(name, download=False))).read_bytes()
    whole = read_radiograph(data).pixels
    end = len(data) - padding
    # Every length of the header and of the end; between them there are pixels only.
    for length in (*range(1700), *range(1700, end - 100, 11), *range(end - 100, len(data))):
        error = predict(data[:length])
        if error is None:
            assert length >= end
            np.testing.assert_array_equal(read_radiograph(data[:length]).pixels, whole)
        elif length:
            assert error.reason in {Reason.TRUNCATED, Reason.NO_PIXELS}, length


@pytest.mark.slow
def test_every_truncation_of_a_compressed_dicom_file(shared_data: Path) -> None:
    data = (shared_data / "dicom" / "MR1_J2KI.dcm").read_bytes()
    # Every length of the header and of the end; between them the decoder reads one stream.
    between = range(3000, len(data) - 500, 7)
    for length in (*range(3000), *between, *range(len(data) - 500, len(data) - 2)):
        error = predict(data[:length])
        assert error is not None or length > len(data) - 64
