"""From bytes or a file to a radiograph; the format is recognised by content, not by name.

`read_radiograph` is safe to call from several threads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Radiograph
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.foreign import foreign_error, foreign_format
from pneumoscope.image.jpeg import JPEG_LS, decode_jpeg, jpeg_thumbnail, read_jpeg_header
from pneumoscope.image.jpeg2000 import JPEG2000_SIGNATURES, read_jpeg2000
from pneumoscope.image.levels import white_of
from pneumoscope.image.limits import DEFAULT_LIMITS, Limits, check_bytes, check_pixels
from pneumoscope.image.raster import PNG_SIGNATURE, Raster, colour_of, read_bmp, read_png
from pneumoscope.image.tiff import TIFF_SIGNATURES, read_tiff
from pneumoscope.image.web import GIF_SIGNATURES, read_gif, read_webp

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "HEAD_BYTES",
    "IMAGE_SUFFIXES",
    "Limits",
    "decodable_formats",
    "format_of",
    "looks_like_image",
    "read_file",
    "read_head",
    "read_radiograph",
]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"),
        *(".webp", ".gif", ".jls", ".jp2", ".jpx", ".j2k", ".j2c"),
    }
)
"""Suffixes, in lower case, that a scan of a folder picks up; other files are recognised by content."""

FORMATS = "JPEG, PNG, TIFF, BMP, WebP, GIF, JPEG 2000 or DICOM"
"""What can be read, in words; `decodable_formats` has the encodings of each."""

HEAD_BYTES = 132
"""Enough for `format_of`: the DICOM prefix lies behind a preamble of 128 bytes."""

# The bytes that files of each format begin with.
SIGNATURES = {
    "jpeg": (b"\xff\xd8",),
    "png": (PNG_SIGNATURE,),
    "tiff": TIFF_SIGNATURES,
    "jpeg-2000": JPEG2000_SIGNATURES,
    "gif": GIF_SIGNATURES,
}
READERS: dict[str, Callable[[str, bytes, Limits], Raster]] = {
    "png": read_png,
    "tiff": read_tiff,
    "jpeg-2000": read_jpeg2000,
    "gif": read_gif,
    "bmp": read_bmp,
    "webp": read_webp,
}


def read_radiograph(
    source: str | os.PathLike[str] | bytes,
    *,
    min_side: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
) -> Radiograph:
    """Read one X-ray.

    Parameters
    ----------
    source : path or bytes
        A file, or its content.
    min_side : int or None
        The caller needs no more than this many pixels on the shorter side. A JPEG may then come out
        smaller by 2, 4 or 8, which is faster; everything else comes out whole.
    limits : Limits
        Bounds on file size and pixel count, checked before anything is decoded.
    name : str or None
        Name of the image in messages; by default the path, or ``"<bytes>"``.

    Returns
    -------
    Radiograph
        With float32 pixels in [0, 1]; bright means dense.

    Raises
    ------
    UnreadableImageError
        If there is no file, or no image in it; `reason` is the code.
    """
    if isinstance(source, bytes):
        data, label = source, name or "<bytes>"
        check_bytes(label, len(data), limits)
    else:
        label = name or os.fspath(source)
        data = read_file(source, limits, name=label)
    kind = format_of(data)
    if kind == "jpeg":
        return _read_jpeg(label, data, min_side, limits)
    if kind == "dicom":
        from pneumoscope.image.dicom import read_dicom

        return read_dicom(label, data, limits)
    if kind is None:
        raise _not_an_image(label, data)
    return _radiograph(label, kind, READERS[kind](label, data, limits))


def looks_like_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's first bytes are of a supported format; False where it cannot be opened."""
    return format_of(read_head(path, HEAD_BYTES)) is not None


def read_head(path: str | os.PathLike[str], count: int) -> bytes:
    """Return the first bytes of a file; none of a pipe or a device, or where it cannot be opened."""
    try:
        with FileIO(path, opener=_without_waiting) as file:
            return file.read(count) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except (OSError, ValueError):
        return b""


def decodable_formats() -> dict[str, str]:
    """Return the decodable formats and DICOM transfer syntaxes, each with the library that decodes it."""
    from importlib.metadata import version

    from pneumoscope.image.frames import TRANSFER_SYNTAXES

    versions = {name: f"{name} {version(name)}" for name in ("simplejpeg", "imagecodecs", "numpy")}
    formats = {
        "JPEG": versions["simplejpeg"],
        "JPEG, 12 bits or lossless": versions["imagecodecs"],
        "PNG": versions["imagecodecs"],
        "TIFF": versions["imagecodecs"],
        "BMP": versions["imagecodecs"],
        "WebP": versions["imagecodecs"],
        "GIF": versions["imagecodecs"],
        "JPEG 2000": versions["imagecodecs"],
        "JPEG-LS": versions["imagecodecs"],
    }
    return formats | {
        f"DICOM {syntax.name}": versions[syntax.library] for syntax in TRANSFER_SYNTAXES.values()
    }


def read_file(
    path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, *, name: str | None = None
) -> bytes:
    """Read a whole file, its size checked before.

    Parameters
    ----------
    path : path-like
        Of the file.
    limits : Limits
        Bound on its size.
    name : str, optional
        What to call it in messages; the path if not given.

    Raises
    ------
    UnreadableImageError
        If there is no file, or it cannot be read.
    """
    label = name or os.fspath(path)
    try:
        with FileIO(path, opener=_without_waiting) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                detail = "this is a pipe, a socket or a device, not a file; give a file"
                raise UnreadableImageError(label, Reason.NOT_AN_IMAGE, detail)
            size = facts.st_size
            check_bytes(label, size, limits)
            # No more than was checked: a file that grows while it is read must not get past the limit.
            data = _read_exactly(file, size)
    except FileNotFoundError as error:
        raise UnreadableImageError(
            label, Reason.NOT_FOUND, "there is no such file; check the path"
        ) from error
    except IsADirectoryError as error:
        detail = "this is a folder, not a file; name a file in it"
        raise UnreadableImageError(label, Reason.NOT_AN_IMAGE, detail) from error
    except PermissionError as error:
        detail = "no permission to read the file; change its mode or its owner"
        raise UnreadableImageError(label, Reason.NO_PERMISSION, detail) from error
    except OSError as error:  # a failing disk, or a name that is too long
        detail = f"the file cannot be opened ({error.strerror or 'input or output error'}); check the path"
        raise UnreadableImageError(label, Reason.NOT_FOUND, detail) from error
    except ValueError as error:
        detail = "the path holds a null character; check the path"
        raise UnreadableImageError(label, Reason.NOT_FOUND, detail) from error
    check_bytes(label, len(data), limits)
    return data


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer would keep an ordinary open waiting."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_exactly(file: FileIO, size: int) -> bytes:
    """Read `size` bytes, or all there are; a network file system may return them in parts."""
    data = file.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    while size > (have := sum(map(len, parts))) and (part := file.read(size - have)):
        parts.append(part)
    return b"".join(parts)


def format_of(data: bytes) -> str | None:
    """Return the format by the first bytes of a file; None if it is not supported.

    DICOM comes first: its preamble may hold the header of another format, TIFF as a rule (PS3.10 7.1).
    """
    if data[128:132] == b"DICM" or _starts_like_dicom(data):
        return "dicom"
    for kind, signatures in SIGNATURES.items():
        if data.startswith(signatures):
            return kind
    if data.startswith(b"BM") and data[6:10] == b"\0\0\0\0":
        return "bmp"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return None


def _starts_like_dicom(data: bytes) -> bool:
    """Recognise a data set without preamble: it opens with a low element of group 0002 or 0008."""
    if len(data) < 16 or data[:2] not in {b"\x02\0", b"\x08\0"} or data[3] != 0:
        return False
    if data[4:6].isalpha() and data[4:6].isupper():  # explicit value representation
        return True
    return int.from_bytes(data[4:8], "little") <= 1024


def _not_an_image(label: str, data: bytes) -> UnreadableImageError:
    found = foreign_format(data)
    if found is not None:
        return foreign_error(label, found)
    if any(signature.startswith(data) for group in SIGNATURES.values() for signature in group):
        detail = f"the file ends after {len(data)} bytes; copy it again from its source"
        return UnreadableImageError(label, Reason.TRUNCATED, detail)
    detail = f"this is not an image; give a {FORMATS} file"
    return UnreadableImageError(label, Reason.NOT_AN_IMAGE, detail)


def _read_jpeg(label: str, data: bytes, min_side: int | None, limits: Limits) -> Radiograph:
    header = read_jpeg_header(label, data)
    check_pixels(label, header.height, header.width, limits)
    # A scaled decode reaches beyond the image by part of a pixel, which must stay at its right and bottom.
    samples = decode_jpeg(label, data, header, min_side if header.orientation == 1 else None)
    photometric = {1: "grey", 3: "rgb", 4: "cmyk"}[header.components]
    thumbnail = jpeg_thumbnail(label, data, header)
    colour = 0.0 if thumbnail is None else colour_of(thumbnail)
    raster = Raster(
        samples, (1 << header.bits) - 1, header.bits, photometric, header.orientation, colour=colour
    )
    size = (header.height, header.width)
    kind = "jpeg-ls" if header.frame == JPEG_LS else "jpeg"
    return _radiograph(label, kind, raster, size if header.orientation < 5 else size[::-1])


def _radiograph(label: str, kind: str, raster: Raster, size: tuple[int, ...] | None = None) -> Radiograph:
    """Scale the samples to [0, 1] and turn them upright; `size` is the original's, where they are scaled."""
    black, white, restored = white_of(raster.samples, raster.white)
    samples = raster.samples
    if raster.inverse:
        samples = white - (np.clip(samples, black, white) - black)
    pixels = _upright(_scaled(samples, black, white), raster.orientation)
    height, width = size or pixels.shape
    return Radiograph(
        pixels=pixels,
        source=label,
        format=kind,
        height=height,
        width=width,
        bits=raster.bits,
        photometric=raster.photometric,
        colour=raster.colour,
        cautions=(Reason.GREY_LEVELS_RESTORED,) if restored else (),
    )


def _scaled(samples: npt.NDArray[Any], black: int, white: int) -> npt.NDArray[np.float32]:
    """Map black..white to [0, 1]."""
    if black:
        samples = np.maximum(samples, black) - black
    pixels: npt.NDArray[np.float32] = np.multiply(samples, np.float32(1 / (white - black)), dtype=np.float32)
    # Lossy deep JPEG may overshoot its own range, as letters do a restored one.
    if black or white < np.iinfo(samples.dtype).max:
        np.minimum(pixels, 1, out=pixels)
    return pixels


def _upright(pixels: npt.NDArray[np.float32], orientation: int) -> npt.NDArray[np.float32]:
    """Undo an Exif orientation: 2-4 are flips, 5-8 swap rows and columns as well."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.T
    vertical, horizontal = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(
        orientation, (1, 1)
    )
    return np.ascontiguousarray(pixels[::vertical, ::horizontal])
