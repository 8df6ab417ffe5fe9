"""The one frame of a DICOM file, as stored words, by transfer syntax.

pydicom has no plugin for imagecodecs, so the encapsulated frame is handed to it here. The words come out
as the file stores them, unsigned; `pneumoscope.image.greys` interprets them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.jpeg import (
    LOSSLESS,
    JpegHeader,
    decode_jpeg,
    has_end,
    jpeg_thumbnail,
    read_jpeg_header,
)
from pneumoscope.image.jpeg2000 import JPEG2000_SIGNATURES, decode_codestream, read_codestream_header
from pneumoscope.image.limits import Limits, check_pixels
from pneumoscope.image.raster import COLOUR_SIDE, colour_of, grey_of

__all__ = ["TRANSFER_SYNTAXES", "Frame", "Layout", "Syntax", "decode_frame"]

# Beyond an RLE plane some writers pad a segment; more than this is no padding.
RLE_PADDING = 1 << 16

# From luminance and chromaticities, all from 0 to 1, to red, green and blue (PS3.3 C.7.6.3.1.2).
FROM_YBR = np.array([[1, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]])

Words = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Syntax:
    """A transfer syntax that is read: its name, the codec's family and the library behind it."""

    name: str
    codec: str
    library: str = "imagecodecs"


TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": Syntax("Implicit VR Little Endian", "native", "numpy"),
    "1.2.840.10008.1.2.1": Syntax("Explicit VR Little Endian", "native", "numpy"),
    "1.2.840.10008.1.2.1.99": Syntax("Deflated Explicit VR Little Endian", "native", "numpy"),
    "1.2.840.10008.1.2.2": Syntax("Explicit VR Big Endian", "native", "numpy"),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG Baseline", "jpeg", "simplejpeg"),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG Extended, 8 and 12 bits", "jpeg"),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG Lossless", "jpeg"),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG Lossless, first-order prediction", "jpeg"),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS Lossless", "jpegls"),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS Near-Lossless", "jpegls"),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 Lossless", "jpeg2k"),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", "jpeg2k"),
    "1.2.840.10008.1.2.4.201": Syntax("High-Throughput JPEG 2000 Lossless", "jpeg2k"),
    "1.2.840.10008.1.2.4.202": Syntax("High-Throughput JPEG 2000 Lossless, RPCL", "jpeg2k"),
    "1.2.840.10008.1.2.4.203": Syntax("High-Throughput JPEG 2000", "jpeg2k"),
    "1.2.840.10008.1.2.5": Syntax("RLE Lossless", "rle"),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The Image Pixel module (PS3.3 C.7.6.3), as far as decoding needs it."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    planar: bool
    photometric: str
    big_endian: bool = False
    swapped: bool = False  # bytes of 8-bit pixels, in big-endian words of two


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """Decoded words.

    Parameters
    ----------
    words : ndarray of uint8 or uint16, shape (rows, columns)
        Grey samples as stored, or the luminance of a colour frame.
    bits : int
        How many bits of a word are the sample: Bits Stored, or the codestream's own count where its words
        need more, since lossy coding may overshoot and headers are at times wrong.
    shift : int
        How far the sample lies above the lowest bit.
    colour : float
        From `pneumoscope.image.raster.colour_of`; 0 for grey samples.
    """

    words: Words
    bits: int
    shift: int = 0
    colour: float = 0.0


def decode_frame(name: str, data: bytes, syntax: Syntax, layout: Layout, limits: Limits) -> Frame:
    """Decode one frame.

    Parameters
    ----------
    name : str
        The file, for messages.
    data : bytes
        The frame: native pixel data, or the joined fragments of an encapsulated one.
    syntax : Syntax
        How it is coded.
    layout : Layout
        Size and coding, from the header; the size was checked against the limits.
    limits : Limits
        Bounds for the size that the codestream itself states.

    Raises
    ------
    UnreadableImageError
        With `Reason.TRUNCATED`, `Reason.CORRUPT`, `Reason.TOO_MANY_PIXELS` or `Reason.UNSUPPORTED_ENCODING`.
    """
    if syntax.codec == "native":
        frame = _native(name, data, layout)
    elif syntax.codec == "rle":
        frame = _rle(name, data, layout)
    else:
        readers = {"jpeg": _jpeg, "jpegls": _jpegls, "jpeg2k": _jpeg2k}
        frame = readers[syntax.codec](name, data, layout, limits)
    if frame.words.shape != (layout.rows, layout.columns):
        raise _corrupt(name, "the frame's size differs from the header")
    return frame


def _truncated(name: str) -> UnreadableImageError:
    return UnreadableImageError(
        name, Reason.TRUNCATED, "the DICOM pixel data end too early; send the image again"
    )


def _corrupt(name: str, what: str = "") -> UnreadableImageError:
    detail = f"damaged DICOM pixel data ({what})" if what else "damaged DICOM pixel data"
    return UnreadableImageError(name, Reason.CORRUPT, f"{detail}; send the image again")


def _native(name: str, data: bytes, layout: Layout) -> Frame:
    """Uncompressed words, interleaved or by plane."""
    dtype = np.dtype(np.uint8 if layout.allocated == 8 else ">u2" if layout.big_endian else "<u2")
    pixels = layout.rows * layout.columns
    subsampled = layout.photometric in {"YBR_FULL_422", "YBR_PARTIAL_422"}
    count = 2 * pixels if subsampled else layout.samples * pixels
    if len(data) < count * dtype.itemsize:
        raise _truncated(name)
    if layout.swapped:
        data = np.frombuffer(data + bytes(len(data) % 2), np.uint16).byteswap().tobytes()
    words = np.frombuffer(data, dtype, count)
    if subsampled:
        if layout.columns % 2:
            raise _corrupt(name, "an odd number of columns, with subsampled colour")
        # Two luminances, then one pair of chromaticities: for grey only the luminance is needed.
        pairs: npt.NDArray[Any] = words.reshape(layout.rows, -1, 4)
        grey: npt.NDArray[Any] = pairs[:, :, :2].reshape(layout.rows, layout.columns)
        return Frame(grey, layout.stored, colour=_colour(pairs[:, :, [0, 2, 3]], layout, layout.stored))
    if layout.samples == 1:
        words = words.reshape(layout.rows, layout.columns)
    elif layout.planar:
        words = np.moveaxis(words.reshape(layout.samples, layout.rows, layout.columns), 0, -1)
    else:
        words = words.reshape(layout.rows, layout.columns, layout.samples)
    return _stored(words.astype(dtype.newbyteorder("="), copy=False), layout)


def _stored(words: npt.NDArray[Any], layout: Layout) -> Frame:
    """Return the frame of words that are as the header states."""
    shift = layout.high_bit + 1 - layout.stored
    colour = _colour(words, layout, layout.stored, shift)
    return Frame(_luminance(words, layout), layout.stored, shift, colour)


def _colour(words: npt.NDArray[Any], layout: Layout, bits: int, shift: int = 0) -> float:
    """Return `colour_of` a frame of any number of bits, also in luminance and chromaticities."""
    if words.ndim == 2 or words.shape[2] < 3:
        return 0.0
    down, across = (-(-side // COLOUR_SIDE) for side in words.shape[:2])
    white = (1 << bits) - 1
    shares = ((words[::down, ::across, :3].astype(np.int64) >> shift) & white) / white
    if layout.photometric.startswith(("YBR_FULL", "YBR_PARTIAL")):
        shares = (shares - [0, 0.5, 0.5]) @ FROM_YBR
    return colour_of(np.rint(shares.clip(0, 1) * 65535).astype(np.uint16))


def _luminance(words: npt.NDArray[Any], layout: Layout) -> Words:
    """Reduce a colour frame to grey; the first channel of YBR is that already."""
    if words.ndim == 3 and layout.photometric.startswith("YBR_FULL"):
        return np.ascontiguousarray(words[:, :, 0])
    return grey_of(words)


def _rle(name: str, data: bytes, layout: Layout) -> Frame:
    """PackBits by byte plane, most significant first (PS3.5 annex G)."""
    import imagecodecs

    planes = layout.samples * layout.allocated // 8
    if len(data) < 64:
        raise _truncated(name)
    count, *offsets = struct.unpack_from("<16I", data)
    if count != planes or any(offset < 64 for offset in offsets[:count]):
        raise _corrupt(name, f"{count} RLE segments where {planes} are due")
    bounds = [*offsets[:count], len(data)]
    size = layout.rows * layout.columns
    # A run of two bytes makes at most 128: a segment that is too short for the plane was cut. A longer one
    # could make 64 times its bytes, so the decoder gets no room for more than the plane.
    result = np.empty((planes, size), np.uint8)
    for plane in range(planes):
        segment = data[bounds[plane] : bounds[plane + 1]]
        if 64 * len(segment) < size:
            raise _truncated(name)
        try:
            decoded = imagecodecs.packbits_decode(segment, out=size + RLE_PADDING)
        except (RuntimeError, ValueError) as error:
            raise _corrupt(name) from error
        if len(decoded) < size:
            raise _truncated(name)
        result[plane] = np.frombuffer(decoded, np.uint8, size)
    shape = (layout.rows, layout.columns)
    if layout.allocated == 8:
        words: npt.NDArray[Any] = result.reshape(layout.samples, *shape)
    else:
        high, low = result[0::2].astype(np.uint16), result[1::2]
        words = ((high << 8) | low).reshape(layout.samples, *shape)
    return _stored(words[0] if layout.samples == 1 else np.moveaxis(words, 0, -1), layout)


def _jpeg(name: str, data: bytes, layout: Layout, limits: Limits) -> Frame:
    """JPEG of any process: baseline, extended with 8 or 12 bits, lossless."""
    header = _jpeg_header(name, data, limits)
    if header.components == 3 and layout.photometric == "RGB" and not (header.jfif or header.adobe):
        # Nothing in the stream marks these as RGB, so libjpeg would decode them as YCbCr.
        import imagecodecs

        if header.frame in LOSSLESS or header.bits != 8:
            options: dict[str, Any] = {}
        else:
            options = {"colorspace": "RGB", "outcolorspace": "RGB"}
        if not has_end(data, header):
            raise _truncated(name)
        words = _decode(name, imagecodecs.jpeg8_decode, data, **options)
        return Frame(grey_of(words), header.bits, colour=_colour(words, layout, header.bits))
    ybr = layout.photometric.startswith("YBR_FULL")
    grey = decode_jpeg(name, data, header, raw_ybr=ybr)
    thumbnail = jpeg_thumbnail(name, data, header)
    return _sampled(grey, header.bits, layout, 0.0 if thumbnail is None else colour_of(thumbnail))


def _jpegls(name: str, data: bytes, layout: Layout, limits: Limits) -> Frame:
    import imagecodecs

    header = _jpeg_header(name, data, limits)
    if not has_end(data, header):
        raise _truncated(name)
    return _coded(_decode(name, imagecodecs.jpegls_decode, data), header.bits, layout)


def _jpeg_header(name: str, data: bytes, limits: Limits) -> JpegHeader:
    if not data.startswith(b"\xff\xd8"):
        raise _corrupt(name, "no JPEG stream")
    header = read_jpeg_header(name, data)
    check_pixels(name, header.height, header.width, limits)
    return header


def _jpeg2k(name: str, data: bytes, layout: Layout, limits: Limits) -> Frame:
    if not data.startswith(JPEG2000_SIGNATURES):
        raise _corrupt(name, "no JPEG 2000 codestream")
    header = read_codestream_header(name, data, limits)
    return _coded(decode_codestream(name, data, header), header.bits, layout)


def _coded(words: npt.NDArray[Any], bits: int, layout: Layout) -> Frame:
    return _sampled(_luminance(words, layout), bits, layout, _colour(words, layout, bits))


def _sampled(words: Words, bits: int, layout: Layout, colour: float) -> Frame:
    """Return the frame of a codestream whose words may have more bits than Bits Stored, or fewer.

    Where no bit above is set, the sign of signed values is the highest of Bits Stored. Bits above are an
    overlay, or repeat the sign, where the image is as smooth or smoother without them. Where a lossy codec
    overshot the range, or the header states too few bits, values would wrap around.
    """
    size = 8 * words.dtype.itemsize
    shift = layout.high_bit + 1 - layout.stored
    mask = (1 << layout.stored) - 1
    if layout.samples > 1 or layout.stored > size:
        return Frame(words, bits, colour=colour)
    if bits <= layout.stored or int(words.max()) <= mask:
        return Frame(words, layout.stored)
    masked = ((words >> shift) & mask).astype(words.dtype)
    if (shift > 0 and bits > layout.high_bit) or _variation(masked) <= _variation(words):
        return Frame(words, layout.stored, shift)
    return Frame(words, bits)


def _variation(words: npt.NDArray[Any]) -> float:
    """Return the sum of the differences between neighbours in a row and in a column."""
    import cv2

    wide = words.astype(np.float32)
    pairs = ((wide[1:], wide[:-1]), (wide[:, 1:], wide[:, :-1]))
    return sum(cv2.norm(here, there, cv2.NORM_L1) for here, there in pairs if here.size)


def _decode(
    name: str, decoder: Callable[..., npt.NDArray[Any]], data: bytes, **options: Any
) -> npt.NDArray[Any]:
    """Run a decoder and return its words as unsigned; imagecodecs' errors derive from RuntimeError."""
    try:
        words = decoder(data, **options)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise _corrupt(name) from error
    if words.dtype not in (np.uint8, np.int8, np.uint16, np.int16) or words.ndim not in {2, 3}:
        raise _corrupt(name, f"samples of type {words.dtype}")
    return words.view(np.uint8 if words.dtype.itemsize == 1 else np.uint16)
