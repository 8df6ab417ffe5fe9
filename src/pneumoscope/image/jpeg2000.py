"""JPEG 2000: the boxes and the SIZ marker read by hand, the pixels by OpenJPEG in imagecodecs.

Plain files (JP2 or a bare codestream), strips and tiles of TIFF, and frames of DICOM all come through here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.image.limits import Limits, check_pixels, corrupt, truncated
from pneumoscope.image.raster import Raster, colour_of, decode, grey_of, unsupported

__all__ = [
    "JPEG2000_SIGNATURES",
    "Codestream",
    "decode_codestream",
    "read_codestream_header",
    "read_jpeg2000",
]

BOX = b"\0\0\0\x0cjP  \r\n\x87\n"
SIZ = b"\xff\x4f\xff\x51"
END = b"\xff\xd9"
JPEG2000_SIGNATURES = (BOX, SIZ)

KIND = "JPEG 2000"
MAX_BOXES = 1000
MAX_TILES = 65535
PADDING = 64  # bytes at the end of a codestream that hold its end marker
# Enumerated colour space of a colour specification box (ITU-T T.800 I.5.3.3): luminance comes first.
SYCC = 18


@dataclass(frozen=True, slots=True)
class Codestream:
    """The SIZ marker (ITU-T T.800 A.5.1) of a codestream, and what the boxes around it state.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    bits : int
        Bits per sample of the first component.
    components : int
        Samples per pixel.
    uniform : bool
        All components are unsigned, of the same depth, and as large as the image.
    luminance : bool
        The first component is the luminance of a colour image.
    """

    height: int
    width: int
    bits: int
    components: int
    uniform: bool
    luminance: bool = False


def read_jpeg2000(name: str, data: bytes, limits: Limits) -> Raster:
    """Read a JPEG 2000 file, JP2 or a bare codestream, of 1 to 16 unsigned bits.

    Parameters
    ----------
    name : str
        The file, for messages.
    data : bytes
        The whole file.
    limits : Limits
        Bounds on the size.

    Raises
    ------
    UnreadableImageError
        With any of the reasons for an image that cannot be read.
    """
    header = read_codestream_header(name, data, limits)
    if not header.uniform or header.bits > 16 or header.components > 4:
        raise unsupported(
            name, "a JPEG 2000 file of signed, subsampled or more than 16-bit samples, or of many channels"
        )
    samples = decode_codestream(name, data, header)
    white = (1 << header.bits) - 1
    if samples.ndim == 3 and header.components == 1:  # a palette
        white = int(np.iinfo(samples.dtype).max)
    if header.luminance and samples.ndim == 3:
        samples = np.ascontiguousarray(samples[:, :, 0])
    photometric = "grey" if samples.ndim == 2 or samples.shape[2] < 3 else "rgb"
    return Raster(grey_of(samples), white, header.bits, photometric, colour=colour_of(samples))


def decode_codestream(name: str, data: bytes, header: Codestream) -> npt.NDArray[Any]:
    """Decode to samples of shape (H, W) or (H, W, C), unsigned.

    High-throughput streams too: OpenJPH is twice as fast, but imagecodecs loses its errors, and what was
    decoded before one would pass for the whole image.
    """
    import imagecodecs

    samples = decode(name, KIND, imagecodecs.jpeg2k_decode, data)
    if samples.shape[:2] != (header.height, header.width) or samples.ndim > 3 or samples.dtype.itemsize > 2:
        raise corrupt(name, KIND, "the pixels do not match the header")
    return samples.view(np.uint8 if samples.dtype.itemsize == 1 else np.uint16)


def read_codestream_header(name: str, data: bytes, limits: Limits) -> Codestream:
    """Find the codestream, and check its size against the limits and that its end is there.

    Raises
    ------
    UnreadableImageError
        With `Reason.TRUNCATED`, `Reason.CORRUPT` or `Reason.TOO_MANY_PIXELS`.
    """
    luminance = False
    start, stop = 0, len(data)
    if data.startswith(BOX):
        start, stop, luminance = _find_codestream(name, data)
    if not data.startswith(SIZ, start):
        raise (
            truncated(name, KIND)
            if SIZ.startswith(data[start : start + 4])
            else corrupt(name, KIND, "no header")
        )
    if start + 42 > len(data):
        raise truncated(name, KIND)
    x1, y1, x0, y0, tile_width, tile_height = struct.unpack_from(">6I", data, start + 8)
    (components,) = struct.unpack_from(">H", data, start + 40)
    table = data[start + 42 : start + 42 + 3 * components]
    if components == 0:
        raise corrupt(name, KIND, "no components")
    if len(table) < 3 * components:
        raise truncated(name, KIND)
    check_pixels(name, y1 - y0, x1 - x0, limits)
    if tile_width == 0 or tile_height == 0 or -(-x1 // tile_width) * -(-y1 // tile_height) > MAX_TILES:
        raise corrupt(name, KIND, "tiles without size")
    # Each component is an image of its own.
    check_pixels(name, (y1 - y0) * max(1, components // 4), x1 - x0, limits)
    if END not in data[max(start, stop - PADDING) : stop]:  # OpenJPEG passes over missing data in silence
        raise truncated(name, KIND)
    bits = (table[0] & 0x7F) + 1
    uniform = table[0] < 0x80 and table == bytes([table[0], 1, 1]) * components
    return Codestream(y1 - y0, x1 - x0, bits, components, uniform, luminance)


def _find_codestream(name: str, data: bytes) -> tuple[int, int, bool]:
    """Walk the boxes (ITU-T T.800 annex I) to the codestream; return its start and end and if it is sYCC.

    A search for the marker would find one inside of metadata, with another size than the image's.
    """
    position, luminance = 0, False
    for _ in range(MAX_BOXES):
        if position + 8 > len(data):
            raise truncated(name, KIND)
        length, kind = struct.unpack_from(">I4s", data, position)
        body = position + 8
        if length == 1:
            if body + 8 > len(data):
                raise truncated(name, KIND)
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        if kind == b"jp2c":
            # Other boxes may follow, unless the length is 0.
            return body, min(position + length, len(data)) if length else len(data), luminance
        if kind == b"jp2h":
            place = data.find(b"colr\x01", body, position + length)
            luminance = place >= 0 and int.from_bytes(data[place + 7 : place + 11], "big") == SYCC
        if length < body - position:
            raise corrupt(name, KIND, "no codestream")
        position += length
    raise corrupt(name, KIND, "too many boxes")
