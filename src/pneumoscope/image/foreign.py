"""Formats that are not read, recognised by content, so that the message names them and a way out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from pneumoscope.errors import Reason, UnreadableImageError

__all__ = ["Foreign", "foreign_error", "foreign_format"]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A format that is not read.

    Parameters
    ----------
    name : str
        With its article, as the subject of a sentence.
    advice : str
        What to do with such a file, as an imperative.
    image : bool
        Such a file holds an image or a volume.
    """

    name: str
    advice: str
    image: bool = True


EXPORT = "save it as PNG, JPEG or DICOM"
PHONE = "convert it to JPEG or PNG, or set the telephone's camera to the most compatible format"
ORIGINAL = "give the original DICOM image, or the slice as 16-bit PNG"
UNPACK = "unpack it and give the images in it"
IMAGE = "give the image file itself"

NIFTI = Foreign("a NIfTI volume", ORIGINAL)
# The first bytes; longer signatures before their beginnings.
SIGNATURES: dict[bytes, Foreign] = {
    b"\xff\x0a": Foreign("a JPEG XL image", EXPORT),
    b"\0\0\0\x0cJXL \r\n\x87\n": Foreign("a JPEG XL image", EXPORT),
    b"II\xbc": Foreign("a JPEG XR image", EXPORT),
    b"8BPS": Foreign("a Photoshop document", EXPORT),
    b"gimp xcf": Foreign("a GIMP image", EXPORT),
    b"v/1\x01": Foreign("an OpenEXR image", EXPORT),
    b"DDS ": Foreign("a DDS texture", EXPORT),
    b"qoif": Foreign("a QOI image", EXPORT),
    b"\0\0\x01\0": Foreign("an icon", EXPORT),
    b"AT&TFORM": Foreign("a DjVu document", EXPORT),
    b"%PDF": Foreign("a PDF document", "export the image in it as PNG, JPEG or DICOM"),
    b"%!PS": Foreign("a PostScript document", "export the image in it as PNG, JPEG or DICOM"),
    b"NRRD": Foreign("an NRRD volume", ORIGINAL),
    b"ObjectType": Foreign("a MetaImage header", ORIGINAL),
    b"\x89HDF\r\n\x1a\n": Foreign("an HDF5 file", ORIGINAL),
    b"\x93NUMPY": Foreign("a NumPy array", "save it as 8 or 16-bit grey PNG"),
    b"PK\x03\x04": Foreign("a ZIP archive or an office document", UNPACK, image=False),
    b"PK\x05\x06": Foreign("an empty ZIP archive", IMAGE, image=False),
    b"PK\x07\x08": Foreign("a part of a ZIP archive", UNPACK, image=False),
    b"Rar!\x1a\x07": Foreign("a RAR archive", UNPACK, image=False),
    b"7z\xbc\xaf\x27\x1c": Foreign("a 7-Zip archive", UNPACK, image=False),
    b"\x1f\x8b": Foreign("a gzip-compressed file", UNPACK, image=False),
    b"BZh": Foreign("a bzip2-compressed file", UNPACK, image=False),
    b"\xfd7zXZ\0": Foreign("an xz-compressed file", UNPACK, image=False),
    b"\x28\xb5\x2f\xfd": Foreign("a Zstandard-compressed file", UNPACK, image=False),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": Foreign("an office document", IMAGE, image=False),
    b"{\\rtf": Foreign("a text document", IMAGE, image=False),
    b"ID3": Foreign("an MP3 recording", IMAGE, image=False),
    b"OggS": Foreign("an Ogg recording", IMAGE, image=False),
    b"fLaC": Foreign("a FLAC recording", IMAGE, image=False),
    b"\x1a\x45\xdf\xa3": Foreign("a Matroska or WebM video", "save one frame as PNG", image=False),
    b"\0\0\x01\xba": Foreign("an MPEG video", "save one frame as PNG", image=False),
    b"SQLite format 3\0": Foreign("an SQLite database", IMAGE, image=False),
    b"\x7fELF": Foreign("a program", IMAGE, image=False),
    b"MZ": Foreign("a program", IMAGE, image=False),
    b"version https://git-lfs": Foreign("a Git LFS pointer", "fetch the image with git lfs", image=False),
}
# Contents of a RIFF container; WebP, which is read, is another.
RIFF = {
    b"WAVE": Foreign("a WAV recording", IMAGE, image=False),
    b"AVI ": Foreign("an AVI video", "save one frame as PNG", image=False),
}
# Major and compatible brands of an ISO base media file.
BRANDS = {
    b"avif": Foreign("an AVIF image", EXPORT),
    b"avis": Foreign("an AVIF sequence", EXPORT),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        Foreign("a HEIC image", PHONE),
    ),
    b"crx ": Foreign("a Canon raw image", EXPORT),
}
VIDEO = Foreign("an MP4 or QuickTime video", "save one frame as PNG", image=False)
# Beginnings of text, in lower case and without white space before them.
TEXT = {
    b"<!doctype html": Foreign("a web page", "download the image itself", image=False),
    b"<html": Foreign("a web page", "download the image itself", image=False),
    b"<svg": Foreign("an SVG drawing", EXPORT),
    b"<?xml": Foreign("an XML document", IMAGE, image=False),
    b"{": Foreign("a JSON document", IMAGE, image=False),
}


def foreign_format(data: bytes) -> Foreign | None:
    """Return the format of a file that is not read, by its first bytes; None where it is not known.

    Parameters
    ----------
    data : bytes
        The file, or at least its first 512 bytes.
    """
    if data[4:8] == b"ftyp":
        return _media(data)
    if data.startswith(b"RIFF"):
        return RIFF.get(data[8:12])
    if _is_nifti(data):
        return NIFTI
    if data.startswith(b"\x1f\x8b") and _is_nifti(_inflated(data)):
        return Foreign("a gzip-compressed NIfTI volume", ORIGINAL)
    if data[257:262] == b"ustar":
        return Foreign("a tar archive", UNPACK, image=False)
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return Foreign("a PNM image", EXPORT)
    for signature, found in SIGNATURES.items():
        if data.startswith(signature):
            return found
    text = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((found for start, found in TEXT.items() if text.startswith(start)), None)


def foreign_error(name: str, found: Foreign) -> UnreadableImageError:
    """Return the error for a file of a format that is not read."""
    reason = Reason.UNSUPPORTED_ENCODING if found.image else Reason.NOT_AN_IMAGE
    return UnreadableImageError(name, reason, f"this is {found.name}, which is not supported; {found.advice}")


def _media(data: bytes) -> Foreign:
    """Return the format of an ISO base media file (ISO/IEC 14496-12) by its brands, the major one first."""
    size = min(int.from_bytes(data[:4], "big"), 512, len(data))
    brands = [data[8:12], *(data[place : place + 4] for place in range(16, size - 3, 4))]
    # The general image brands stand beside a more specific one.
    brands.sort(key=lambda brand: brand in {b"mif1", b"msf1"})
    return next((BRANDS[brand] for brand in brands if brand in BRANDS), VIDEO)


def _is_nifti(data: bytes) -> bool:
    """Recognise NIfTI-1, NIfTI-2 and Analyze, by the size of their header in either byte order."""
    if data[:4] in {b"\x5c\x01\0\0", b"\0\0\x01\x5c"}:
        return True
    return data[:4] in {b"\x1c\x02\0\0", b"\0\0\x02\x1c"} and data[4:6] == b"n+"


def _inflated(data: bytes) -> bytes:
    """Return the first bytes of gzip-compressed data; empty where they are damaged."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data[:4096], 348)
    except zlib.error:
        return b""
