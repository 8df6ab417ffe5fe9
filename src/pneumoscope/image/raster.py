"""PNG and BMP: headers read by hand, pixels by the libraries in imagecodecs.

Each reader checks the size against the limits and that the data are complete, and only then decodes.
imagecodecs serves them because it raises where OpenCV prints to stderr and returns nothing; it is
imported on first use, since most X-rays come as JPEG or DICOM.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.jpeg import exif_orientation
from pneumoscope.image.limits import Limits, check_pixels, corrupt, truncated

__all__ = [
    "COLOUR_SIDE",
    "PNG_SIGNATURE",
    "Raster",
    "colour_of",
    "decode",
    "grey_of",
    "read_bmp",
    "read_png",
    "unsupported",
]


@dataclass(frozen=True, eq=False, slots=True)
class Raster:
    """Decoded samples and how to interpret them.

    Parameters
    ----------
    samples : ndarray of uint8 or uint16, shape (H, W)
        Grey levels.
    white : int
        The largest sample value: full brightness; zero is black.
    bits : int
        Bits per sample in the file.
    photometric : str
        ``grey``, ``rgb``, ``palette`` or ``cmyk``, as the file has it.
    orientation : int
        Exif orientation, 1 to 8, still to be applied.
    inverse : bool
        Zero is white and `white` is black.
    colour : float
        From `colour_of`.
    """

    samples: npt.NDArray[Any]
    white: int
    bits: int
    photometric: str
    orientation: int = 1
    inverse: bool = False
    colour: float = 0.0


def unsupported(name: str, what: str) -> UnreadableImageError:
    """Return the error for a valid file of an unsupported format."""
    detail = f"{what} cannot be read; save it as 8 or 16-bit grey PNG"
    return UnreadableImageError(name, Reason.UNSUPPORTED_ENCODING, detail)


def decode(
    name: str, kind: str, decoder: Callable[[bytes], npt.NDArray[Any]], data: bytes
) -> npt.NDArray[Any]:
    """Run a decoder of imagecodecs; its errors derive from RuntimeError, bad shapes are ValueError."""
    try:
        return decoder(data)
    except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
        raise corrupt(name, kind) from error


def grey_of(samples: npt.NDArray[Any], *, premultiplied: bool = False) -> npt.NDArray[Any]:
    """Reduce grey, grey + alpha, RGB or RGBA to grey; transparent pixels become black.

    Parameters
    ----------
    samples : ndarray of uint8 or uint16, shape (H, W) or (H, W, 1..4)
        Channels in the order red, green, blue, alpha.
    premultiplied : bool
        The colours are already scaled by alpha.

    Returns
    -------
    ndarray, shape (H, W)
        Luminance (Rec. 601) of the same type.
    """
    if samples.ndim == 2:
        return samples
    import cv2

    channels = samples.shape[2]
    samples = np.ascontiguousarray(samples)
    grey: npt.NDArray[Any]
    if channels in {3, 4}:
        grey = cv2.cvtColor(samples, cv2.COLOR_RGB2GRAY if channels == 3 else cv2.COLOR_RGBA2GRAY)
    else:
        grey = cv2.extractChannel(samples, 0)
    if channels in {2, 4} and not premultiplied:
        alpha = cv2.extractChannel(samples, channels - 1)
        opaque = np.iinfo(samples.dtype).max
        if int(alpha.min()) < opaque:
            grey = cv2.multiply(grey, alpha, scale=1 / opaque)
    return grey


def colour_of(samples: npt.NDArray[Any]) -> float:
    """Return how much the colour of an image varies beyond what its brightness or a single tint explains.

    A film that is photographed under a warm lamp, or printed in one tint, has none; a colour map, a coloured
    overlay and a photograph have.

    Parameters
    ----------
    samples : ndarray of uint8 or uint16, shape (H, W) or (H, W, 1..4)
        Channels in the order red, green, blue, alpha.

    Returns
    -------
    float
        Of the two colour differences, with full brightness as 1, the larger of two root mean squares: of
        what a quadratic of the luminance leaves, as a photograph or an overlay does; and of what one hue
        leaves, as a colour map does that runs from dark to bright, such as viridis. 0 for grey.
    """
    if samples.ndim == 2 or samples.shape[2] < 3:
        return 0.0
    down, across = (-(-side // COLOUR_SIDE) for side in samples.shape[:2])
    rgb = samples[::down, ::across, :3].reshape(-1, 3) / np.float64(np.iinfo(samples.dtype).max)
    luminance = rgb @ LUMINANCE
    differences = rgb[:, [0, 2]] - luminance[:, None]
    if not differences.any():
        return 0.0
    terms = np.stack([np.ones_like(luminance), luminance, luminance**2], axis=1)
    weights = np.linalg.lstsq(terms, differences, rcond=None)[0]
    beyond_brightness = np.linalg.norm(differences - terms @ weights)
    beyond_one_hue = np.linalg.svd(differences, compute_uv=False)[1]
    return float(max(beyond_brightness, beyond_one_hue) / np.sqrt(len(rgb)))


# Rec. 601; colour is measured on a sample of at most this many rows and columns.
LUMINANCE = np.array([0.299, 0.587, 0.114])
COLOUR_SIDE = 128

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PHOTOMETRIC = {0: "grey", 2: "rgb", 3: "palette", 4: "grey", 6: "rgb"}


def read_png(name: str, data: bytes, limits: Limits) -> Raster:
    """Read a PNG of any bit depth and colour type.

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
    bits, color, orientation = _check_png(name, data, limits)
    import imagecodecs

    samples = decode(name, "PNG", imagecodecs.png_decode, data)
    white = 65535 if samples.dtype == np.uint16 else 255
    colour = colour_of(samples)
    return Raster(grey_of(samples), white, bits, PNG_PHOTOMETRIC[color], orientation, colour=colour)


def _check_png(name: str, data: bytes, limits: Limits) -> tuple[int, int, int]:
    """Walk all chunks to IEND with their checksums; return bit depth, colour type and orientation.

    libpng alone would accept a file without its end.
    """
    view = memoryview(data)
    position = len(PNG_SIGNATURE)
    bits = color = 0
    orientation = 1
    while True:
        if position + 12 > len(data):
            raise truncated(name, "PNG")
        length, kind = struct.unpack_from(">I4s", data, position)
        body = view[position + 8 : position + 8 + length]
        end = position + 12 + length
        if position == len(PNG_SIGNATURE):
            if kind != b"IHDR" or length != 13:
                raise corrupt(name, "PNG", "it does not start with its header")
            if len(body) == length:
                width, height, bits, color = struct.unpack_from(">IIBB", body)
                check_pixels(name, height, width, limits)
        if end > len(data):
            raise truncated(name, "PNG")
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise corrupt(name, "PNG", "wrong checksum")
        if kind == b"acTL" and length >= 4 and int.from_bytes(body[:4], "big") > 1:
            detail = "an animated PNG holds several images; save the right one alone"
            raise UnreadableImageError(name, Reason.MULTI_FRAME, detail)
        if kind == b"eXIf":
            orientation = exif_orientation(bytes(body))
        if kind == b"IEND":
            break
        position = end
    if color not in PNG_PHOTOMETRIC:
        raise corrupt(name, "PNG", f"colour type {color}")
    return bits, color, orientation


def read_bmp(name: str, data: bytes, limits: Limits) -> Raster:
    """Read an uncompressed BMP of 1 to 32 bits per pixel; arguments and errors as for `read_png`."""
    if len(data) < 54:
        raise truncated(name, "BMP")
    offset, header = struct.unpack_from("<II", data, 10)
    if header < 40:
        raise unsupported(name, "an OS/2 bitmap")
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # a negative height means that the rows run from top to bottom
    check_pixels(name, height, width, limits)
    if compression not in {0, 3}:
        raise unsupported(name, "a compressed bitmap")
    if bits not in {1, 4, 8, 16, 24, 32}:
        raise corrupt(name, "BMP", f"{bits} bits per pixel")
    if offset + height * (-(-width * bits // 32) * 4) > len(data):
        raise truncated(name, "BMP")
    import imagecodecs

    samples = decode(name, "BMP", imagecodecs.bmp_decode, data)
    # Headers below 56 bytes have three masks; imagecodecs takes what follows them, a pixel, as that of alpha.
    if bits == 32 and compression == 3 and header < 56:
        samples = np.ascontiguousarray(samples[..., :3])
    photometric = "palette" if bits <= 8 else "rgb"
    return Raster(grey_of(samples), 255, 8, photometric, colour=colour_of(samples))
