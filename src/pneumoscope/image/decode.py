"""From bytes or a file to a radiograph; the format is recognised by content, not by name.

`read_radiograph` is safe to call from several threads.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Radiograph
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.jpeg import decode_jpeg, read_jpeg_header
from pneumoscope.image.limits import DEFAULT_LIMITS, Limits, check_bytes, check_pixels
from pneumoscope.image.raster import PNG_SIGNATURE, Raster, read_bmp, read_png

__all__ = [
    "DEFAULT_LIMITS",
    "IMAGE_SUFFIXES",
    "Limits",
    "decodable_formats",
    "looks_like_image",
    "read_radiograph",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".dcm", ".dicom", ".jpeg", ".jpg", ".png", ".tif", ".tiff"})
"""Suffixes, in lower case, that a scan of a folder picks up; other files are recognised by content."""

# Enough for the DICOM prefix behind its preamble of 128 bytes.
HEAD_BYTES = 132
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")

# Formats that are recognised only for the error message.
FOREIGN = {
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"n+1\0": "NIfTI",
    b"NRRD": "NRRD",
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
        data = _read_file(label, source, limits)
    kind = _format_of(data)
    if kind == "jpeg":
        return _read_jpeg(label, data, min_side, limits)
    if kind == "dicom":
        from pneumoscope.image.dicom import read_dicom

        return read_dicom(label, data, limits)
    if kind == "png":
        raster = read_png(label, data, limits)
    elif kind == "bmp":
        raster = read_bmp(label, data, limits)
    elif kind == "tiff":
        from pneumoscope.image.tiff import read_tiff

        raster = read_tiff(label, data, limits)
    else:
        raise _not_an_image(label, data)
    pixels = _upright(_scaled(raster.samples, raster.white), raster.orientation)
    return _radiograph(label, kind, pixels, pixels.shape, raster)


def looks_like_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's first bytes are of a supported format; False where it cannot be opened."""
    try:
        with Path(path).open("rb") as file:
            return _format_of(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


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
    }
    return formats | {
        f"DICOM {syntax.name}": versions[syntax.library] for syntax in TRANSFER_SYNTAXES.values()
    }


def _read_file(label: str, path: str | os.PathLike[str], limits: Limits) -> bytes:
    """Read a whole file, its size checked before."""
    try:
        with FileIO(path) as file:
            size = os.fstat(file.fileno()).st_size
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
    except (OSError, ValueError) as error:  # a failing disk; a path with a null character
        raise UnreadableImageError(label, Reason.NOT_FOUND, f"the file cannot be opened ({error})") from error
    check_bytes(label, len(data), limits)
    return data


def _read_exactly(file: FileIO, size: int) -> bytes:
    """Read `size` bytes, or all there are; a network file system may return them in parts."""
    data = file.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    while size > (have := sum(map(len, parts))) and (part := file.read(size - have)):
        parts.append(part)
    return b"".join(parts)


def _format_of(data: bytes) -> str | None:
    """Return the format by its first bytes; None if it is not supported.

    DICOM comes first: its preamble may hold the header of another format, TIFF as a rule (PS3.10 7.1).
    """
    if data[128:132] == b"DICM" or _starts_like_dicom(data):
        return "dicom"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(PNG_SIGNATURE):
        return "png"
    if data.startswith(TIFF_SIGNATURES):
        return "tiff"
    if data.startswith(b"BM") and data[6:10] == b"\0\0\0\0":
        return "bmp"
    return None


def _starts_like_dicom(data: bytes) -> bool:
    """Recognise a data set without preamble: it opens with a low element of group 0002 or 0008."""
    if len(data) < 16 or data[:2] not in {b"\x02\0", b"\x08\0"} or data[3] != 0:
        return False
    if data[4:6].isalpha() and data[4:6].isupper():  # explicit value representation
        return True
    return int.from_bytes(data[4:8], "little") <= 1024


def _not_an_image(label: str, data: bytes) -> UnreadableImageError:
    for signature, what in FOREIGN.items():
        if data.startswith(signature):
            detail = f"{what} files are not supported; save it as PNG, JPEG or DICOM"
            return UnreadableImageError(label, Reason.UNSUPPORTED_ENCODING, detail)
    signatures = (b"\xff\xd8\xff", PNG_SIGNATURE, *TIFF_SIGNATURES)
    if any(signature.startswith(data) for signature in signatures):
        detail = f"the file ends after {len(data)} bytes; copy it again from its source"
        return UnreadableImageError(label, Reason.TRUNCATED, detail)
    detail = "this is not an image; give a JPEG, PNG, TIFF, BMP or DICOM file"
    return UnreadableImageError(label, Reason.NOT_AN_IMAGE, detail)


def _read_jpeg(label: str, data: bytes, min_side: int | None, limits: Limits) -> Radiograph:
    header = read_jpeg_header(label, data)
    check_pixels(label, header.height, header.width, limits)
    # A scaled decode reaches beyond the image by part of a pixel, which must stay at its right and bottom.
    samples = decode_jpeg(label, data, header, min_side if header.orientation == 1 else None)
    white = (1 << header.bits) - 1
    photometric = {1: "grey", 3: "rgb", 4: "cmyk"}[header.components]
    raster = Raster(samples, white, header.bits, photometric, header.orientation)
    size = (header.height, header.width)
    if header.orientation >= 5:
        size = size[::-1]
    pixels = _upright(_scaled(samples, white), header.orientation)
    return _radiograph(label, "jpeg", pixels, size, raster)


def _radiograph(
    label: str, kind: str, pixels: npt.NDArray[np.float32], size: tuple[int, ...], raster: Raster
) -> Radiograph:
    return Radiograph(
        pixels=pixels,
        source=label,
        format=kind,
        height=size[0],
        width=size[1],
        bits=raster.bits,
        photometric=raster.photometric,
    )


def _scaled(samples: npt.NDArray[Any], white: int) -> npt.NDArray[np.float32]:
    """Map 0..white to [0, 1]."""
    pixels: npt.NDArray[np.float32] = np.multiply(samples, np.float32(1 / white), dtype=np.float32)
    # Lossy deep JPEG may overshoot its own range; 8 and 16-bit samples cannot.
    if white not in {255, 65535}:
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
