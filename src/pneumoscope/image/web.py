"""WebP and GIF: chunks and blocks read by hand, pixels by libwebp and giflib in imagecodecs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.jpeg import exif_orientation
from pneumoscope.image.limits import Limits, check_pixels, corrupt, truncated
from pneumoscope.image.raster import Raster, colour_of, decode, grey_of

__all__ = ["GIF_SIGNATURES", "read_gif", "read_webp"]

GIF_SIGNATURES = (b"GIF87a", b"GIF89a")

MAX_CHUNKS = 10_000
MAX_BLOCKS = 1_000_000  # of 255 bytes: more than a file may have


def read_webp(name: str, data: bytes, limits: Limits) -> Raster:
    """Read a WebP image, lossy or lossless.

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
    orientation, frames, images = 1, 0, 0
    for kind, body in _webp_chunks(name, data):
        if kind in {b"VP8 ", b"VP8L", b"VP8X", b"ANMF"}:
            check_pixels(name, *_webp_size(name, kind, body), limits)
        frames += kind == b"ANMF"
        images += kind in {b"VP8 ", b"VP8L", b"ANMF"}
        if kind == b"EXIF":
            orientation = exif_orientation(body.removeprefix(b"Exif\0\0"))
    if frames > 1:
        raise _animated(name, "WebP")
    if not images:
        raise UnreadableImageError(name, Reason.NO_PIXELS, "the WebP file holds no image; export it again")
    import imagecodecs

    samples = decode(name, "WebP", imagecodecs.webp_decode, data)
    return Raster(grey_of(samples), 255, 8, "rgb", orientation, colour=colour_of(samples))


def _webp_chunks(name: str, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Walk the chunks of the RIFF container; their bodies are cut where only the start is needed."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated(name, "WebP")
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > end:
            return
        kind, size = struct.unpack_from("<4sI", data, position)
        if position + 8 + size > end:
            raise corrupt(name, "WebP", "a chunk reaches beyond the end")
        yield kind, data[position + 8 : position + 8 + min(size, 65536)]
        position += 8 + size + size % 2
    raise corrupt(name, "WebP", "too many chunks")


def _webp_size(name: str, kind: bytes, body: bytes) -> tuple[int, int]:
    """Return height and width from the start of a chunk that has them."""
    place, count = {b"VP8 ": (6, 4), b"VP8L": (1, 4), b"VP8X": (4, 6), b"ANMF": (6, 6)}[kind]
    if len(body) < place + count:
        raise corrupt(name, "WebP", "a chunk is too short")
    value = int.from_bytes(body[place : place + count], "little")
    if kind == b"VP8 ":
        return value >> 16 & 0x3FFF, value & 0x3FFF
    bits = 14 if kind == b"VP8L" else 24
    mask = (1 << bits) - 1
    return (value >> bits & mask) + 1, (value & mask) + 1


def read_gif(name: str, data: bytes, limits: Limits) -> Raster:
    """Read a GIF of one image; arguments and errors as for `read_webp`."""
    if len(data) < 13:
        raise truncated(name, "GIF")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _color_table(flags)
    images = 0
    for _ in range(MAX_CHUNKS):
        block = data[position : position + 1]
        if block == b";" or (not block and images):
            break
        if block == b",":
            if position + 10 > len(data):
                raise truncated(name, "GIF")
            left, top, across, down, flags = struct.unpack_from("<HHHHB", data, position + 1)
            check_pixels(name, down, across, limits)
            width, height = max(width, left + across), max(height, top + down)
            images += 1
            position = _end_of_blocks(name, data, position + 11 + _color_table(flags))
        elif block == b"!":
            position = _end_of_blocks(name, data, position + 2)
        else:
            raise corrupt(name, "GIF", "unknown block") if block else truncated(name, "GIF")
    if images > 1:
        raise _animated(name, "GIF")
    if not images:
        raise UnreadableImageError(name, Reason.NO_PIXELS, "the GIF holds no image; export it again")
    check_pixels(name, height, width, limits)
    import imagecodecs

    # Some state a screen without size, and some lack the trailer; giflib needs both.
    whole = data[:6] + struct.pack("<HH", width, height) + data[10:position] + b";"
    samples = decode(name, "GIF", imagecodecs.gif_decode, whole)
    if samples.shape[:2] != (height, width):
        raise corrupt(name, "GIF", "the pixels do not match the header")
    return Raster(grey_of(samples), 255, 8, "palette", colour=colour_of(samples))


def _color_table(flags: int) -> int:
    """Return the bytes of the colour table that follows a descriptor with these flags."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_blocks(name: str, data: bytes, position: int) -> int:
    """Return where a chain of data blocks ends; each starts with its length, the last has none."""
    for _ in range(MAX_BLOCKS):
        if position >= len(data):
            break
        length = data[position]
        position += 1 + length
        if length == 0:
            return position
    raise truncated(name, "GIF")


def _animated(name: str, kind: str) -> UnreadableImageError:
    detail = f"an animated {kind} holds several images; save the right one alone"
    return UnreadableImageError(name, Reason.MULTI_FRAME, detail)
