"""Sound files in unusual encodings, all of one drawn image, and files of foreign formats."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

import dicom_files

__all__ = [
    "GREY",
    "SIDE",
    "WINDOW",
    "deep",
    "dicom",
    "foreign_files",
    "jpeg2000",
    "lookup_item",
    "plain_files",
    "saved",
    "tiff",
    "unusual_dicom",
]

SIDE = 32
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def _drawn() -> np.ndarray:
    """Draw two dark ovals on a grey trunk, with noise: grey levels in [0, 1] of all depths."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    grey = np.where((abs(x - 0.5) < 0.42) & (y > 0.1), 0.55, 0.08)
    for middle in (0.3, 0.7):
        grey -= 0.35 * (((x - middle) / 0.15) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1)
    grey += 0.3 * (abs(x - 0.5) < 0.06) + 0.1 * y
    return np.clip(grey + np.random.default_rng(0).normal(0, 0.012, grey.shape), 0, 1)


GREY = (_drawn() * 255).round().astype(np.uint8)
"""The image, shape (SIDE, SIDE)."""


def deep(bits: int) -> np.ndarray:
    """Return the image with so many bits, uint16."""
    return (GREY / 255 * ((1 << bits) - 1)).round().astype(np.uint16)


def dicom(pixels: np.ndarray | bytes | None = None, *args: Any, **elements: Any) -> bytes:
    """Write the image as DICOM with 12 bits, or other pixels of its size."""
    size = {"Rows": SIDE, "Columns": SIDE}
    return dicom_files.dicom(deep(12) if pixels is None else pixels, *args, **size | elements)


def lookup_item(descriptor: list[int] | None, data: bytes | None, vr: str = "US") -> Sequence:
    """Return a LUT sequence of one item; a descriptor or data of None are empty or left out."""
    item = Dataset()
    item.add_new(0x00283002, vr, descriptor)
    if data is not None:
        item.add_new(0x00283006, "OW", data)
    return Sequence([item])


def saved(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    """Save with Pillow."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """Save with tifffile."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def jpeg2000(pixels: np.ndarray, bits: int, container: str = "j2k") -> bytes:
    """Encode without loss."""
    return imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=container, bitspersample=bits, mct=False)


def with_bad_profile(jpeg: bytes) -> bytes:
    """Put in a colour profile whose chunk number is beyond their count."""
    body = b"ICC_PROFILE\0" + bytes([2, 3]) + b"x" * 40
    return jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def with_bytes_between(jpeg: bytes, what: bytes = b"\0\0\0\0") -> bytes:
    """Put bytes in front of the quantisation table."""
    place = jpeg.index(b"\xff\xdb")
    return jpeg[:place] + what + jpeg[place:]


def plain_files() -> dict[str, bytes]:
    """Return files other than DICOM whose pixels are those of `GREY`."""
    jpeg = saved(GREY, "JPEG", quality=98)
    rgb = np.stack([GREY] * 3, -1)
    return {
        "png-10-in-16": saved(deep(10), "PNG"),
        "png-12-in-16": saved(deep(12), "PNG"),
        "png-14-in-16": saved(deep(14), "PNG"),
        "png-8-in-16": saved(GREY.astype(np.uint16), "PNG"),
        "tiff-12-in-16": tiff(deep(12)),
        "tiff-12-in-16-big-endian": tiff(deep(12), byteorder=">"),
        "tiff-12-in-16-white-is-zero": tiff(4095 - deep(12), photometric="miniswhite"),
        "tiff-12-in-16-rgb": tiff(np.stack([deep(12)] * 3, -1), photometric="rgb"),
        "jpeg-lossless-12-in-16": imagecodecs.ljpeg_encode(deep(12), bitspersample=16),
        "jpeg-2000-12-in-16": jpeg2000(deep(12), 16, "jp2"),
        "jpeg-bad-profile": with_bad_profile(jpeg),
        "jpeg-bytes-between": with_bytes_between(jpeg),
        "jpeg-fill-between": with_bytes_between(jpeg, b"\xff\0x\xff\xff"),
        "jpeg-rgb-both": with_bad_profile(with_bytes_between(saved(rgb, "JPEG", quality=98))),
        "tiff-jpeg-2000": tiff(GREY, compression="jpeg2000"),
        "tiff-jpeg-2000-strips": tiff(deep(16), compression="jpeg2000", rowsperstrip=10),
        "tiff-jpeg-2000-tiles": tiff(rgb, compression="jpeg2000", tile=(16, 16), photometric="rgb"),
        "jls": imagecodecs.jpegls_encode(GREY),
        "jls-12-bit": imagecodecs.jpegls_encode(deep(12)),
        "jls-16-bit": imagecodecs.jpegls_encode(deep(16)),
        "jls-rgb": imagecodecs.jpegls_encode(rgb),
        "jp2": saved(GREY, "JPEG2000"),
        "jp2-rgb": saved(rgb, "JPEG2000"),
        "j2k": jpeg2000(GREY, 8),
        "j2k-12-bit": jpeg2000(deep(12), 12),
        "webp-lossless": saved(rgb, "WEBP", lossless=True),
        "webp-lossy": saved(rgb, "WEBP", quality=100),
        "gif": saved(GREY, "GIF"),
        "gif-interlaced": saved(GREY, "GIF", interlace=1),
    }


def unusual_dicom() -> dict[str, bytes]:
    """Return DICOM files whose pixels are those of `GREY`."""
    overlay = deep(12)
    overlay[4:8, 4:28] |= 1 << 12
    lossless, words = "1.2.840.10008.1.2.4.90", (np.arange(4096) * 16).astype("<u2").tobytes()
    swapped = GREY.reshape(-1, 2)[:, ::-1]
    big = ExplicitVRBigEndian
    eight = {"bits": 8, "WindowCenter": 128, "WindowWidth": 256}
    rgb = np.stack([GREY] * 3, -1).reshape(-1, 2)[:, ::-1]
    color = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    return {
        "control": dicom(**WINDOW),
        "overlay-jpeg-2000": dicom(jpeg2000(overlay, 16), lossless, **WINDOW),
        "overlay-jpeg-2000-lossy-syntax": dicom(jpeg2000(overlay, 16), lossless[:-1] + "1", **WINDOW),
        "overlay-jpeg-ls": dicom(imagecodecs.jpegls_encode(overlay), "1.2.840.10008.1.2.4.80", **WINDOW),
        "overlay-jpeg-lossless": dicom(
            imagecodecs.ljpeg_encode(overlay, bitspersample=16), "1.2.840.10008.1.2.4.70", **WINDOW
        ),
        "overlay-below": dicom(jpeg2000(overlay << 4 | overlay >> 12, 16), lossless, HighBit=15, **WINDOW),
        "overlay-everywhere": dicom(jpeg2000(deep(12) | 0xF000, 16), lossless, **WINDOW),
        "big-endian-8-bit": dicom(swapped, big, vr="OW", **eight),
        "big-endian-8-bit-bytes": dicom(GREY, big, vr="OB", **eight),
        "big-endian-rgb": dicom(rgb, big, vr="OW", **eight, **color),
        "voi-item-empty": dicom(VOILUTSequence=Sequence([Dataset()]), **WINDOW),
        "voi-descriptor-empty": dicom(VOILUTSequence=lookup_item(None, b""), **WINDOW),
        "voi-data-empty": dicom(VOILUTSequence=lookup_item([4096, 0, 16], b""), **WINDOW),
        "voi-data-absent": dicom(VOILUTSequence=lookup_item([4096, 0, 16], None), **WINDOW),
        "voi-second-item": dicom(
            VOILUTSequence=Sequence([Dataset(), *lookup_item([4096, 0, 16], words)]), **WINDOW
        ),
        "modality-item-empty": dicom(ModalityLUTSequence=Sequence([Dataset()]), **WINDOW),
        "modality-descriptor-empty": dicom(ModalityLUTSequence=lookup_item(None, b""), **WINDOW),
        "voi-12-bits-said-16": dicom(
            VOILUTSequence=lookup_item([4096, 0, 16], np.arange(4096).astype("<u2").tobytes())
        ),
        "voi-16-bits-said-8": dicom(VOILUTSequence=lookup_item([4096, 0, 8], words)),
        "voi-8-bits-said-16": dicom(
            VOILUTSequence=lookup_item([4096, 0, 16], (np.arange(4096) >> 4).astype(np.uint8).tobytes())
        ),
        "voi-0-bits": dicom(VOILUTSequence=lookup_item([4096, 0, 0], words)),
        "voi-first-negative": dicom(
            RescaleIntercept=-1024, RescaleSlope=1, VOILUTSequence=lookup_item([4096, 64512, 16], words)
        ),
        "voi-first-negative-signed": dicom(
            RescaleIntercept=-1024, RescaleSlope=1, VOILUTSequence=lookup_item([4096, -1024, 16], words, "SS")
        ),
        "voi-first-negative-implicit": dicom(
            None,
            ImplicitVRLittleEndian,
            RescaleIntercept=-1024,
            RescaleSlope=1,
            VOILUTSequence=lookup_item([4096, -1024, 16], words, "SS"),
        ),
        "voi-big-endian": dicom(
            None,
            big,
            VOILUTSequence=lookup_item([4096, 0, 16], (np.arange(4096) * 16).astype(">u2").tobytes()),
        ),
    }


def foreign_files() -> dict[str, tuple[bytes, str]]:
    """Return files of formats that are not read, each with a word that its message holds."""
    nifti = bytearray(352)
    struct.pack_into("<i", nifti, 0, 348)
    nifti[344:348] = b"n+1\0"

    def media(brand: bytes, *others: bytes) -> bytes:
        body = b"ftyp" + brand + bytes(4) + b"".join(others)
        return struct.pack(">I", 4 + len(body)) + body + bytes(300)

    archive, packed = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", b"x")
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    return {
        "heic": (media(b"heic", b"mif1", b"heic"), "HEIC"),
        "heic-general": (media(b"mif1", b"mif1", b"heic"), "HEIC"),
        "avif": (media(b"avif", b"avif", b"mif1"), "AVIF"),
        "avif-general": (media(b"mif1", b"mif1", b"avif"), "AVIF"),
        "mp4": (media(b"isom", b"mp41"), "video"),
        "jxl": (b"\xff\x0a" + bytes(300), "JPEG XL"),
        "jxl-box": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(300), "JPEG XL"),
        "nifti": (bytes(nifti) + bytes(64), "NIfTI"),
        "nifti-gz": (gzip.compress(bytes(nifti) + bytes(64)), "NIfTI"),
        "gz": (gzip.compress(b"anything"), "gzip"),
        "zip": (archive.getvalue(), "ZIP"),
        "tar": (packed.getvalue(), "tar"),
        "wav": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "WAV"),
        "avi": (b"RIFF\x24\0\0\0AVI LIST" + bytes(40), "video"),
        "pdf": (b"%PDF-1.7\n" + bytes(40), "PDF"),
        "psd": (b"8BPS\0\1" + bytes(40), "Photoshop"),
        "pgm": (b"P5\n2 2\n255\n" + bytes(4), "PNM"),
        "npy": (b"\x93NUMPY\1\0" + bytes(40), "NumPy"),
        "html": (b"\n<!DOCTYPE html><html>", "web page"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    }
