"""TIFF: the tags read by hand, the pixels by libtiff in imagecodecs, JPEG 2000 inside by OpenJPEG."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.jpeg2000 import decode_codestream, read_codestream_header
from pneumoscope.image.limits import Limits, check_pixels, corrupt, truncated
from pneumoscope.image.raster import (
    COLOUR_SIDE,
    Raster,
    colour_of,
    decode,
    grey_of,
    unsupported,
)

__all__ = ["TIFF_SIGNATURES", "read_tiff"]

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")

# TIFF 6.0: tags, field types (as struct codes) and photometric interpretations.
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIPS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 320, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339
READ = frozenset({SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, ORIENTATION, SAMPLES})
READ |= {ROWS_PER_STRIP, STRIP_BYTES, PLANAR, COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES}
READ |= {EXTRA_SAMPLES, SAMPLE_FORMAT}
FIELD_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
FIELD_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
FIELD_BYTES |= {16: 8, 17: 8, 18: 8}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
PHOTOMETRICS = {WHITE_IS_ZERO: "grey", BLACK_IS_ZERO: "grey", RGB: "rgb", PALETTE: "palette"}
PHOTOMETRICS |= {CMYK: "cmyk", YCBCR: "rgb"}

# What the build of libtiff in imagecodecs decodes: CCITT, LZW, JPEG, deflate, PackBits, ThunderScan, LogLuv,
# LERC, LZMA, Zstandard, WebP.
LIBTIFF = frozenset(
    {1, 2, 3, 4, 5, 6, 7, 8, 32766, 32771, 32773, 32809, 32946, 34676, 34677, 34887, 34925, 50000, 50001}
)
# JPEG 2000, also of Aperio (33003 in YCbCr); libtiff does not know it.
APERIO_YCBCR = 33003
JPEG_2000 = frozenset({APERIO_YCBCR, 33004, 33005, 34712})
JPEG = frozenset({6, 7})
# What libtiff applies of an orientation where it renders the pixels: which axes it reverses.
FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}

MAX_PAGES = 1000
MAX_CODESTREAMS = 10_000
# Tags of a file and the values read from them: an image of 50 million pixels in tiles of 16 x 16, a plane for
# each of its colours, has 1.2 million. Tags may share their bytes, so the size of a file bounds neither.
MAX_VALUES = 2_000_000


@dataclass(frozen=True, slots=True)
class _Directory:
    """One image file directory: its tags, where the next one lies, and how many more values may be read."""

    tags: dict[int, tuple[int, ...]]
    following: int
    room: int

    def first(self, tag: int, default: int = 0) -> int:
        values = self.tags.get(tag)
        return values[0] if values else default


def read_tiff(name: str, data: bytes, limits: Limits) -> Raster:
    """Read a TIFF of one page: 1 to 16 bits; grey, RGB, CMYK or palette; strips or tiles.

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
    number, page = _only_page(name, data)
    bits, photometric = page.first(BITS, 1), page.first(PHOTOMETRIC, -1)
    height, width, channels = page.first(HEIGHT), page.first(WIDTH), page.first(SAMPLES, 1)
    check_pixels(name, height, width, limits)
    # libtiff allocates whole tiles, so a tile counts as an image too.
    if TILE_WIDTH in page.tags:
        check_pixels(name, page.first(TILE_HEIGHT), page.first(TILE_WIDTH), limits)
    if photometric not in PHOTOMETRICS:
        raise unsupported(name, f"a TIFF of photometric interpretation {photometric}")
    if not 1 <= channels <= 5 or not 1 <= bits <= 16 or page.first(SAMPLE_FORMAT, 1) != 1:
        raise unsupported(name, f"a TIFF of {channels} x {bits} bits, or of signed or floating-point samples")
    compression = page.first(COMPRESSION, 1)
    if compression not in LIBTIFF | JPEG_2000:
        raise unsupported(name, f"a TIFF of compression {compression}")
    _check_data(name, data, page)
    if compression in JPEG_2000:
        samples = _jpeg2000(name, data, page, limits)
    else:
        samples = _libtiff(name, data, number, page)
    if channels > 1 and page.first(PLANAR, 1) == 2 and samples.ndim == 3 and samples.shape[0] == channels:
        samples = np.moveaxis(samples, 0, -1)
    if samples.shape[:2] != (height, width) or samples.dtype not in (np.bool_, np.uint8, np.uint16):
        raise corrupt(name, "TIFF", "the pixels do not match the header")
    samples = _full_range(samples, page, bits)
    grey, white = _to_grey(name, samples, page, bits)
    orientation = page.first(ORIENTATION, 1)
    return Raster(
        samples=grey,
        white=white,
        bits=bits,
        photometric=PHOTOMETRICS[photometric],
        orientation=orientation if 1 <= orientation <= 8 else 1,
        inverse=photometric == WHITE_IS_ZERO,
        colour=_colour(samples, page),
    )


def _libtiff(name: str, data: bytes, number: int, page: _Directory) -> npt.NDArray[Any]:
    """Decode a page as it is stored: of some kinds libtiff has applied orientation and polarity already."""
    import imagecodecs

    samples = decode(name, "TIFF", partial(imagecodecs.tiff_decode, index=number), data)
    photometric = page.first(PHOTOMETRIC)
    if photometric in {CMYK, YCBCR} or page.first(COMPRESSION) in JPEG:
        samples = np.flip(samples, FLIPS.get(page.first(ORIENTATION, 1), ()))
        samples = ~samples if photometric == WHITE_IS_ZERO else samples
    return np.ascontiguousarray(samples)


def _jpeg2000(name: str, data: bytes, page: _Directory, limits: Limits) -> npt.NDArray[Any]:
    """Put the strips or tiles together; each is a codestream of its own."""
    height, width = page.first(HEIGHT), page.first(WIDTH)
    rows, columns = page.first(TILE_HEIGHT), page.first(TILE_WIDTH)
    if TILE_WIDTH not in page.tags:
        rows, columns = min(page.first(ROWS_PER_STRIP, height) or height, height), width
    across, down = -(-width // max(columns, 1)), -(-height // max(rows, 1))
    places, sizes = _segments(page)
    if rows == 0 or columns == 0 or not len(places) == len(sizes) == across * down:
        raise unsupported(name, "a TIFF whose JPEG 2000 parts do not form one plane")
    if across * down > MAX_CODESTREAMS:
        raise unsupported(name, f"a TIFF of {across * down} JPEG 2000 parts")
    channels = page.first(SAMPLES, 1) if page.first(COMPRESSION) != APERIO_YCBCR else 1
    dtype = np.uint8 if page.first(BITS, 1) <= 8 else np.uint16
    result = np.zeros((height, width, channels)[: 2 + (channels > 1)], dtype)
    for number, (place, size) in enumerate(zip(places, sizes, strict=True)):
        stream = data[place : place + size]
        header = read_codestream_header(name, stream, limits)
        top, left = number // across * rows, number % across * columns
        if header.height > rows or header.width > columns or header.components > 4:
            raise corrupt(name, "TIFF", "a JPEG 2000 part does not match the header")
        part = decode_codestream(name, stream, header)
        if page.first(COMPRESSION) == APERIO_YCBCR and part.ndim == 3:
            part = part[:, :, 0]
        target = result[top : top + rows, left : left + columns]
        part = part[: target.shape[0], : target.shape[1]]
        if part.shape != target.shape or part.dtype != target.dtype:
            raise corrupt(name, "TIFF", "a JPEG 2000 part does not match the header")
        target[...] = part
    return result


def _full_range(samples: npt.NDArray[Any], page: _Directory, bits: int) -> npt.NDArray[Any]:
    """Return channels of fewer bits than their words have, such as 1 or 12, in the whole range of these.

    Grey levels and places in a palette stay as they are; libtiff renders CMYK and YCbCr in 8 bits.
    """
    if samples.dtype == np.bool_:
        samples = samples.view(np.uint8)
    full, largest = int(np.iinfo(samples.dtype).max), (1 << bits) - 1
    rendered = page.first(PHOTOMETRIC) in {PALETTE, CMYK, YCBCR}
    if samples.ndim == 2 or rendered or largest >= full or int(samples.max()) > largest:
        return samples
    whole: npt.NDArray[Any] = np.rint(samples * (full / largest)).astype(samples.dtype)
    return whole


def _to_grey(
    name: str, samples: npt.NDArray[Any], page: _Directory, bits: int
) -> tuple[npt.NDArray[Any], int]:
    """Return grey samples and the largest value that they can have."""
    photometric = page.first(PHOTOMETRIC)
    if photometric == PALETTE:
        table = np.asarray(page.tags.get(COLOR_MAP, ()), dtype=np.uint16)
        if table.size != 3 << bits or samples.ndim != 2 or int(samples.max()) >= 1 << bits:
            raise corrupt(name, "TIFF", "the colour map does not fit")
        return grey_of(table.reshape(3, 1, -1).transpose(1, 2, 0).copy())[0][samples], 65535
    # libtiff hands out CMYK as RGB.
    if photometric == CMYK:
        samples = samples[:, :, :3] if samples.ndim == 3 else samples
    white = (1 << bits) - 1 if samples.ndim == 2 else int(np.iinfo(samples.dtype).max)
    grey = grey_of(samples, premultiplied=page.first(EXTRA_SAMPLES) != 2)
    return grey, white


def _colour(samples: npt.NDArray[Any], page: _Directory) -> float:
    """Return `colour_of` an image whose samples were checked."""
    if page.first(PHOTOMETRIC) == PALETTE:
        table = np.asarray(page.tags[COLOR_MAP], dtype=np.uint16).reshape(3, -1).T
        down, across = (-(-side // COLOUR_SIDE) for side in samples.shape)
        samples = table[samples[::down, ::across].astype(np.uint16)]
    return colour_of(samples) if samples.ndim == 3 else 0.0


def _only_page(name: str, data: bytes) -> tuple[int, _Directory]:
    """Return number and directory of the one full image; reduced-resolution copies do not count."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in {b"\x2b\0", b"\0\x2b"}
    if len(data) < (16 if big else 8):
        raise truncated(name, "TIFF")
    (offset,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    pages: list[tuple[int, _Directory]] = []
    seen: set[int] = set()
    room = MAX_VALUES
    while offset and len(seen) < MAX_PAGES:
        if offset in seen:
            raise corrupt(name, "TIFF", "its directories form a loop")
        seen.add(offset)
        directory = _read_directory(name, data, offset, order, big, room)
        if not directory.first(SUBFILE) & 1:
            pages.append((len(seen) - 1, directory))
        offset, room = directory.following, directory.room
    if not pages:
        raise UnreadableImageError(name, Reason.NO_PIXELS, "the TIFF holds no image; export it again")
    if len(pages) > 1:
        detail = f"the TIFF holds {len(pages)} images; save the right one alone"
        raise UnreadableImageError(name, Reason.MULTI_FRAME, detail)
    return pages[0]


def _read_directory(name: str, data: bytes, offset: int, order: str, big: bool, room: int) -> _Directory:
    """Read the tags in `READ`; of the others only check that they are complete."""
    count_code, pointer, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    start = offset + struct.calcsize(count_code)
    if start > len(data):
        raise truncated(name, "TIFF")
    (count,) = struct.unpack_from(f"{order}{count_code}", data, offset)
    end = start + entry * count
    if end + struct.calcsize(pointer) > len(data):
        raise truncated(name, "TIFF")
    room = _less(name, room, count)
    tags: dict[int, tuple[int, ...]] = {}
    total = 0
    for position in range(start, end, entry):
        tag, kind, number = struct.unpack_from(f"{order}HH{pointer}", data, position)
        known = tag in READ
        # libtiff takes signed numbers too; what it reads must be what was held against the limits.
        if known and kind not in FIELD_TYPES:
            raise unsupported(name, f"a TIFF whose tag {tag} has values of type {kind}")
        if kind not in FIELD_BYTES or number == 0:
            continue
        place = position + 4 + struct.calcsize(pointer)
        size = number * FIELD_BYTES[kind]
        if size > struct.calcsize(pointer):
            (place,) = struct.unpack_from(f"{order}{pointer}", data, place)
        if place + size > len(data):
            raise truncated(name, "TIFF")
        total += size
        if known and tag not in tags:  # of a repeated tag libtiff takes the first
            room = _less(name, room, number)
            tags[tag] = struct.unpack_from(f"{order}{number}{FIELD_TYPES[kind]}", data, place)
    # libtiff copies the values of every tag, known or not.
    if total > len(data):
        raise corrupt(name, "TIFF", "its tags hold more than the file")
    (following,) = struct.unpack_from(f"{order}{pointer}", data, end)
    return _Directory(tags, following, room)


def _less(name: str, room: int, number: int) -> int:
    """Return how many more values may be read after so many."""
    if number > room:
        raise corrupt(name, "TIFF", f"more than {MAX_VALUES} tags and values")
    return room - number


def _segments(page: _Directory) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the offsets and sizes of the strips or tiles."""
    offsets = page.tags.get(STRIPS) or page.tags.get(TILES) or ()
    return offsets, page.tags.get(STRIP_BYTES) or page.tags.get(TILE_BYTES) or ()


def _check_data(name: str, data: bytes, page: _Directory) -> None:
    """Make sure that every strip or tile lies within the file."""
    offsets, sizes = _segments(page)
    if not offsets:
        raise UnreadableImageError(name, Reason.NO_PIXELS, "the TIFF holds no image data; export it again")
    if any(offset + size > len(data) for offset, size in zip(offsets, sizes, strict=False)):
        raise truncated(name, "TIFF")
