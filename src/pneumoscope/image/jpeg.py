"""JPEG and JPEG-LS: the header read by hand, the pixels by libjpeg-turbo and CharLS.

The header is parsed here because libjpeg-turbo's own reader neither returns the orientation nor reads
images of more than 8 bits, and because the size must be known before anything is allocated. The JPEG and
JPEG-LS frames inside DICOM are parsed in the same way.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.limits import corrupt, truncated

__all__ = [
    "JPEG_LS",
    "LOSSLESS",
    "JpegHeader",
    "decode_jpeg",
    "exif_orientation",
    "has_end",
    "jpeg_thumbnail",
    "read_jpeg_header",
]

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

# Start-of-frame markers (ITU-T T.81 table B.1; 0xF7 is JPEG-LS, T.87): all of 0xC0-0xCF but DHT, JPG, DAC.
START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
START_OF_IMAGE, START_OF_SCAN, END_OF_IMAGE, JPEG_LS = b"\xff\xd8", 0xDA, 0xD9, 0xF7
# JFIF and Adobe markers settle the colour space; libjpeg needs no other application marker and no comment.
NEEDLESS = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
# Markers with a segment, or the end of the image: not fill bytes, TEM, RST0-RST7 and a repeated SOI.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
MAX_SEGMENTS = 10_000  # of 64 kB: more than a file may have bytes
LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})

# Every scan of a progressive image touches all of its pixels, so a few bytes could cost minutes of
# work. Encoders write about 10 scans, optimisers up to 64.
MAX_SCANS = 100

# Faults outside of the coded image: a decode without what is needless shows whether there are others.
OUTSIDE = re.compile(r"ICC marker|extraneous bytes before marker", re.IGNORECASE)
# Faults that leave every pixel intact; all other warnings of libjpeg mean damaged pixels.
HARMLESS = re.compile(
    r"unknown JFIF revision|Unknown Adobe color transform|Invalid SOS parameters"
    r"|extraneous bytes before marker 0xd9",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The content of the markers before the first scan.

    Parameters
    ----------
    height, width : int
        Size in pixels, as stored: before the orientation is applied.
    bits, components : int
        Bits per sample; samples per pixel.
    frame : int
        The start-of-frame marker's second byte, which names the coding process.
    jfif, adobe : bool
        Whether these application markers are there: they settle the colour space.
    orientation : int
        Exif orientation, 1 to 8; 1 where none is stated.
    scan : int
        Where the data of the first scan start.
    """

    height: int
    width: int
    bits: int
    components: int
    frame: int
    jfif: bool = False
    adobe: bool = False
    orientation: int = 1
    scan: int = 0


def has_end(data: bytes, header: JpegHeader) -> bool:
    """Return whether a JPEG or JPEG-LS stream has its end marker; anything may follow.

    Decoders other than libjpeg-turbo's pass over missing data in silence, or search for them for seconds. The
    data of a scan cannot hold the marker; the segments before it can, such as one with a thumbnail.
    """
    return data.find(b"\xff\xd9", header.scan) >= 0


def read_jpeg_header(name: str, data: bytes) -> JpegHeader:
    """Walk the markers up to the first scan.

    Parameters
    ----------
    name : str
        The file, for messages.
    data : bytes
        From the SOI marker on.

    Returns
    -------
    JpegHeader

    Raises
    ------
    UnreadableImageError
        With `Reason.TRUNCATED` or `Reason.CORRUPT`.
    """
    frame: tuple[int, int, int, int, int] | None = None
    jfif = adobe = False
    orientation = 1
    position = 2
    for _ in range(MAX_SEGMENTS):
        marker, start, end = _next_segment(name, data, position)
        if marker == END_OF_IMAGE:
            raise corrupt(name, "JPEG", "it ends before any image data")
        if marker in START_OF_FRAME and frame is None:
            if end - start < 6:
                raise corrupt(name, "JPEG", "frame header too short")
            bits, height, width, components = struct.unpack_from(">BHHB", data, start)
            frame = (marker, bits, height, width, components)
        elif marker == 0xE0:
            jfif = jfif or data.startswith(b"JFIF\0", start)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", start):
            orientation = exif_orientation(data[start + 6 : end])
        elif marker == 0xEE:
            adobe = adobe or data.startswith(b"Adobe", start)
        if marker == START_OF_SCAN:
            break
        position = end
    if frame is None:
        raise corrupt(name, "JPEG", "no frame header")
    process, bits, height, width, components = frame
    return JpegHeader(height, width, bits, components, process, jfif, adobe, orientation, end)


def _next_segment(name: str, data: bytes, position: int) -> tuple[int, int, int]:
    """Return the next marker that has a segment, with the start and end of its payload.

    Bytes before it are skipped, as libjpeg does.
    """
    found = MARKER.search(data, position)
    if found is None:
        raise truncated(name, "JPEG")
    marker, position = found[0][1], found.end()
    if marker == END_OF_IMAGE:
        return marker, position, position
    if position + 2 > len(data):
        raise truncated(name, "JPEG")
    length = int.from_bytes(data[position : position + 2], "big")
    end = position + length
    if length < 2:
        raise corrupt(name, "JPEG", f"segment of {length} bytes")
    if end > len(data):
        raise truncated(name, "JPEG")
    return marker, position + 2, end


def _without_needless(name: str, data: bytes) -> bytes:
    """Return a JPEG stream without comments, application data and bytes between its segments."""
    parts = [START_OF_IMAGE]
    position = len(START_OF_IMAGE)
    while True:
        marker, start, position = _next_segment(name, data, position)
        if marker not in NEEDLESS:
            parts.append(data[start - 4 : position])
        if marker in {START_OF_SCAN, END_OF_IMAGE}:
            return b"".join([*parts, data[position:]])


def exif_orientation(exif: bytes) -> int:
    """Return the orientation tag (0x0112) of an Exif block.

    Parameters
    ----------
    exif : bytes
        The block from its TIFF header on.

    Returns
    -------
    int
        1 to 8 (Exif 2.32, 4.6.4); 1 where the block is damaged or does not state it, because an image
        is worth more than its decoration.
    """
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (offset,) = struct.unpack_from(f"{order}I", exif, 4)
    if offset + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(f"{order}H", exif, offset)
    for entry in range(offset + 2, min(offset + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
        if tag == 0x0112 and kind == 3 and 1 <= value <= 8:
            return int(value)
    return 1


def decode_jpeg(
    name: str, data: bytes, header: JpegHeader, min_side: int | None = None, *, raw_ybr: bool = False
) -> Samples:
    """Decode to one grey sample per pixel.

    Parameters
    ----------
    name : str
        The file, for messages.
    data : bytes
        A whole JPEG stream.
    header : JpegHeader
        Of the same data; the caller has held its size against the limits.
    min_side : int or None
        The image may come out smaller, by 2, 4 or 8, as long as its shorter side keeps this many pixels.
    raw_ybr : bool
        The components of a lossless stream are YCbCr, as a DICOM header may state. libjpeg converts the
        colours of lossy streams only.

    Returns
    -------
    ndarray of uint8 or uint16, shape (h, w)
        Grey levels from 0 to ``2 ** header.bits - 1``.

    Raises
    ------
    UnreadableImageError
        With `Reason.TRUNCATED`, `Reason.CORRUPT` or `Reason.UNSUPPORTED_ENCODING`.
    """
    if header.frame in PROGRESSIVE and data.count(b"\xff\xda") > MAX_SCANS:
        detail = f"a progressive JPEG of more than {MAX_SCANS} scans; save it anew as a plain JPEG"
        raise UnreadableImageError(name, Reason.UNSUPPORTED_ENCODING, detail)
    if header.components not in {1, 3, 4}:
        detail = f"JPEG with {header.components} components per pixel; save it in grey"
        raise UnreadableImageError(name, Reason.UNSUPPORTED_ENCODING, detail)
    if header.bits != 8 or header.frame in LOSSLESS or header.frame == JPEG_LS:
        return _decode_deep(name, data, header, luminance_first=raw_ybr and header.frame in LOSSLESS)
    # Only powers of two: they have fast kernels, and the mean over whole pixels is what
    # an anti-aliased resize would start with.
    factor = 1
    if min_side is not None:
        while factor < 8 and min(header.height, header.width) // (2 * factor) >= max(min_side, 1):
            factor *= 2
    size = {"min_height": -(-header.height // factor), "min_width": -(-header.width // factor)}
    if header.components != 4:
        grey: Samples = _turbo(name, data, "GRAY", size)[:, :, 0]
        return grey
    return _grey_from_cmyk(_turbo(name, data, "CMYK", size), inverted=header.adobe)


def jpeg_thumbnail(name: str, data: bytes, header: JpegHeader) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG of 8 bits in red, green and blue at an eighth of its size; None for any other JPEG."""
    if header.components != 3 or header.bits != 8 or header.frame in LOSSLESS or header.frame == JPEG_LS:
        return None
    size = {"min_height": -(-header.height // 8), "min_width": -(-header.width // 8)}
    return _turbo(name, data, "RGB", size)


def _turbo(name: str, data: bytes, colorspace: str, size: dict[str, int]) -> npt.NDArray[np.uint8]:
    """Decode with libjpeg-turbo; its warnings become errors, unless they are harmless."""
    options: dict[str, Any] = {"colorspace": colorspace, **size}
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        message = str(error)
        if "Premature end" in message or b"\xff\xd9" not in data:
            raise truncated(name, "JPEG") from error
        if OUTSIDE.search(message) and len(plain := _without_needless(name, data)) < len(data):
            return _turbo(name, plain, colorspace, size)
        if not HARMLESS.search(message):
            raise corrupt(name, "JPEG") from error
        try:
            pixels = simplejpeg.decode_jpeg(data, strict=False, **options)
        except ValueError as second:
            raise corrupt(name, "JPEG") from second
    return pixels


def _grey_from_cmyk(cmyk: npt.NDArray[np.uint8], *, inverted: bool) -> npt.NDArray[np.uint8]:
    """Luminance of CMYK; Adobe writes it inverted (255 = no ink), others do not."""
    import cv2

    paper = cmyk if inverted else ~cmyk
    grey = cv2.cvtColor(paper, cv2.COLOR_RGBA2GRAY)  # the fourth channel plays no part in it
    result: npt.NDArray[np.uint8] = cv2.multiply(grey, cv2.extractChannel(paper, 3), scale=1 / 255)
    return result


def _decode_deep(name: str, data: bytes, header: JpegHeader, *, luminance_first: bool) -> Samples:
    """Decode JPEG-LS, lossless JPEG and JPEG of 12 or 16 bits, which simplejpeg does not support.

    The grey of three components is the first where that is the luminance, else it is mixed from all.
    """
    import imagecodecs

    if not has_end(data, header):
        raise truncated(name, "JPEG")
    try:
        if header.frame == JPEG_LS:
            pixels: npt.NDArray[Any] = imagecodecs.jpegls_decode(data)
        else:
            pixels = imagecodecs.jpeg8_decode(_without_needless(name, data))
    except (RuntimeError, ValueError) as error:
        raise corrupt(name, "JPEG") from error
    if pixels.shape[:2] != (header.height, header.width):
        raise corrupt(name, "JPEG", "size differs from the header")
    if pixels.ndim == 3:
        if pixels.shape[2] != 3:
            detail = "JPEG with four deep components per pixel; save it in grey"
            raise UnreadableImageError(name, Reason.UNSUPPORTED_ENCODING, detail)
        import cv2

        if luminance_first:
            pixels = np.ascontiguousarray(pixels[:, :, 0])
        else:
            pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise corrupt(name, "JPEG", f"samples of type {pixels.dtype}")
    return pixels
