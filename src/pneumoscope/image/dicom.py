"""DICOM: from a data set to a radiograph.

pydicom reads the header into plain values (`pneumoscope.image.dicom_header`); then
`pneumoscope.image.frames` decodes the frame, and `pneumoscope.image.greys` maps stored values to grey levels.
"""

from __future__ import annotations

import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
import pydicom.config
from pydicom.encaps import get_frame
from pydicom.filereader import _at_pixel_data, _read_file_meta_info, read_dataset, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pneumoscope.domain import Radiograph
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.dicom_header import (
    CUT_OFF,
    DAMAGED,
    PATIENT_TAGS,
    Patient,
    describe,
    describe_patient,
    number,
    numbers,
    text,
)
from pneumoscope.image.frames import TRANSFER_SYNTAXES, Layout, Syntax, decode_frame
from pneumoscope.image.greys import GreyPipeline, Window, palette_colour, to_grey
from pneumoscope.image.limits import DEFAULT_LIMITS, Limits, check_bytes, check_pixels
from pneumoscope.image.lookup import optional_table, read_palette

__all__ = ["lenient_pydicom", "read_dicom", "read_header", "read_patient", "transfer_syntax"]

CHUNK_BYTES = 1 << 14  # of a deflated data set, inflated at a time: at most 17 MB come out
PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
COLOR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"}
GREY = {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}

_lock = threading.RLock()


@contextmanager
def lenient_pydicom() -> Iterator[None]:
    """Read what is readable, without pydicom's warnings about values that break the standard.

    Both settings are global to the process, hence the lock; only the header is read under it. pydicom
    still writes its remarks to the ``pydicom`` logger.
    """
    with _lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\b")
        settings = pydicom.config.settings
        before = settings.reading_validation_mode
        settings.reading_validation_mode = pydicom.config.IGNORE
        try:
            yield
        finally:
            settings.reading_validation_mode = before


@dataclass(frozen=True, slots=True)
class _Header:
    """A data set as plain values: nothing of pydicom is touched after this."""

    layout: Layout
    syntax: Syntax
    frame: bytes
    greys: GreyPipeline
    described: dict[str, Any]


@contextmanager
def _reading_header(name: str) -> Iterator[None]:
    """Read leniently; what pydicom raises for a file that is cut off or damaged becomes the error of it."""
    with lenient_pydicom():
        try:
            yield
        except CUT_OFF as error:
            detail = "the DICOM file ends too early; send the image again"
            raise UnreadableImageError(name, Reason.TRUNCATED, detail) from error
        except DAMAGED as error:
            detail = "damaged DICOM header; send the image again"
            raise UnreadableImageError(name, Reason.CORRUPT, detail) from error


def read_dicom(name: str, data: bytes, limits: Limits) -> Radiograph:
    """Read a DICOM file with one frame.

    Parameters
    ----------
    name : str
        The file, for messages.
    data : bytes
        The whole file, with or without preamble.
    limits : Limits
        Bounds on the size.

    Returns
    -------
    Radiograph
        Bright means dense, whatever the photometric interpretation.

    Raises
    ------
    UnreadableImageError
        With any of the reasons for an image that cannot be read.
    """
    with _reading_header(name):
        header = _read_header(name, data, limits)
    frame = decode_frame(name, header.frame, header.syntax, header.layout, limits)
    try:
        pixels, restored = to_grey(frame, header.greys)
    except ValueError as error:
        raise _damaged(name, "its rescale or window values lead to no grey levels") from error
    return Radiograph(
        pixels=pixels,
        source=name,
        format="dicom",
        height=header.layout.rows,
        width=header.layout.columns,
        bits=header.layout.stored,
        photometric=header.layout.photometric,
        colour=palette_colour(frame, header.greys) if header.greys.palette else frame.colour,
        cautions=(Reason.GREY_LEVELS_RESTORED,) if restored else (),
        **header.described,
    )


def read_header(name: str, source: Path | bytes, limits: Limits) -> pydicom.Dataset:
    """Read a DICOM file up to its pixel data; values are parsed when they are asked for.

    Parameters
    ----------
    name : str
        What to call the file in messages.
    source : Path or bytes
        The file, with or without preamble, or its content.
    limits : Limits
        Bounds on the size once inflated.

    Raises
    ------
    UnreadableImageError
        If it is no DICOM data set, or inflates to more than the limit.
    """
    with (
        _reading_header(name),
        BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
    ):
        return _read_data_set(name, file, limits, stop_before_pixels=True)


def read_patient(path: Path, limits: Limits = DEFAULT_LIMITS) -> Patient | None:
    """Return what a file's header states about the patient; None where it cannot be read."""
    tags = list(PATIENT_TAGS)
    with lenient_pydicom():
        try:
            with path.open("rb") as file:
                dataset = _read_data_set(path.name, file, limits, stop_before_pixels=True, specific_tags=tags)
                return describe_patient(dataset)
        except (UnreadableImageError, *CUT_OFF, *DAMAGED):
            return None  # reading the image reports what is wrong


def _read_data_set(
    name: str, file: BinaryIO, limits: Limits, *, stop_before_pixels: bool = False, **options: Any
) -> pydicom.FileDataset:
    """Read as `pydicom.dcmread` does with the same options, but inflate no more than the limit.

    A deflated data set is parsed here from its inflated bytes. Were they a file for pydicom again, they
    could state once more that they are deflated.
    """
    preamble = read_preamble(file, force=True)
    meta = _read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        file.seek(0)
        return pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels, **options)
    inflated = _inflated(name, file, limits)
    implicit, little = False, True
    stop_when = _at_pixel_data if stop_before_pixels else None
    dataset = read_dataset(inflated, implicit, little, stop_when=stop_when)
    whole = pydicom.FileDataset(inflated, dataset, preamble, meta, implicit, little)
    whole.set_original_encoding(implicit, little, dataset.original_character_set)
    return whole


def _inflated(name: str, file: BinaryIO, limits: Limits) -> BytesIO:
    """Inflate the rest of a file, which pydicom would do with all of it at once."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = BytesIO()
    room = limits.max_bytes + 1  # one byte beyond the limit shows that there are more
    while room > 0 and not inflater.eof and (deflated := file.read(CHUNK_BYTES)):
        room -= inflated.write(inflater.decompress(deflated, room))
    if room > 0 and not inflater.eof:
        raise EOFError("the deflated data set is cut off")
    check_bytes(name, inflated.tell(), limits)
    inflated.seek(0)
    return inflated


def _damaged(name: str, what: str) -> UnreadableImageError:
    detail = f"damaged DICOM header ({what}); send the image again"
    return UnreadableImageError(name, Reason.CORRUPT, detail)


def _read_header(name: str, data: bytes, limits: Limits) -> _Header:
    dataset = _read_data_set(name, BytesIO(data), limits)
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise _unsupported(name, "floating-point pixels")
        if PIXEL_DATA_TAG in data[-8:] or (PIXEL_DATA_TAG in data and "Rows" in dataset):
            raise UnreadableImageError(
                name, Reason.TRUNCATED, "the DICOM file ends within its pixel data; send the image again"
            )
        detail = (
            "the DICOM object holds no image, or was cut off before it; give the image object of the series"
        )
        raise UnreadableImageError(name, Reason.NO_PIXELS, detail)
    frames = number(dataset, "NumberOfFrames") or 1
    if frames > 1:
        detail = (
            f"{frames:.0f} frames in one DICOM object; a radiograph has one: export the right frame alone"
        )
        raise UnreadableImageError(name, Reason.MULTI_FRAME, detail)
    syntax_uid = transfer_syntax(dataset)
    syntax = TRANSFER_SYNTAXES.get(syntax_uid)
    if syntax is None:
        raise _unsupported(name, f"transfer syntax {pydicom.uid.UID(syntax_uid).name or 'unknown'}")
    layout = _read_layout(name, dataset, big_endian=syntax_uid == "1.2.840.10008.1.2.2")
    check_pixels(name, layout.rows, layout.columns, limits)
    pixel_data = dataset["PixelData"].value
    if not isinstance(pixel_data, bytes) or not pixel_data:
        raise UnreadableImageError(
            name, Reason.TRUNCATED, "the DICOM pixel data are empty; send the image again"
        )
    encapsulated = syntax.codec != "native"
    frame = get_frame(pixel_data, 0, number_of_frames=1) if encapsulated else pixel_data
    return _Header(layout, syntax, frame, _read_greys(name, dataset, layout), describe(dataset))


def _unsupported(name: str, what: str) -> UnreadableImageError:
    detail = f"DICOM with {what} is not supported; export it uncompressed, with 8 to 16 bits"
    return UnreadableImageError(name, Reason.UNSUPPORTED_ENCODING, detail)


def transfer_syntax(dataset: pydicom.Dataset) -> str:
    """Return the UID that the file states, or the one that its encoding shows."""
    stated = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if stated:
        return str(stated)
    implicit, little = dataset.original_encoding
    if implicit:
        return "1.2.840.10008.1.2"
    return "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


def _read_layout(name: str, dataset: pydicom.Dataset, *, big_endian: bool) -> Layout:
    """Read and check the Image Pixel module."""

    def whole(keyword: str, default: int | None = None) -> int:
        value = number(dataset, keyword)
        if value is None and default is None:
            raise _damaged(name, f"{keyword} is missing")
        return default if value is None else int(value)  # type: ignore[return-value]

    allocated, samples = whole("BitsAllocated"), whole("SamplesPerPixel", 1)
    stored = whole("BitsStored", allocated)
    photometric = (text(dataset, "PhotometricInterpretation") or "MONOCHROME2").upper()
    if allocated not in {8, 16}:
        raise _unsupported(name, f"{allocated} bits allocated")
    if samples not in {1, 3} or photometric not in (GREY if samples == 1 else COLOR):
        raise _unsupported(name, f"{samples} samples per pixel, {photometric}")
    if not 1 <= stored <= allocated:
        raise _damaged(name, f"{stored} bits stored in {allocated}")
    high_bit = whole("HighBit", stored - 1)
    if not stored - 1 <= high_bit < allocated:
        high_bit = stored - 1
    return Layout(
        rows=whole("Rows"),
        columns=whole("Columns"),
        samples=samples,
        allocated=allocated,
        stored=stored,
        high_bit=high_bit,
        planar=whole("PlanarConfiguration", 0) == 1,
        photometric=photometric,
        big_endian=big_endian,
        # PS3.5 8.2: the words of OW are swapped although the pixels are bytes.
        swapped=big_endian and allocated == 8 and dataset["PixelData"].VR == "OW",
    )


def _read_greys(name: str, dataset: pydicom.Dataset, layout: Layout) -> GreyPipeline:
    """Read the steps from stored values to grey levels: PS3.3 C.11.1, C.11.2, C.7.5.1.1.2 and C.11.6."""
    signed = number(dataset, "PixelRepresentation") == 1
    if layout.samples > 1:
        return GreyPipeline(color=True)
    if layout.photometric == "PALETTE COLOR":
        palette = read_palette(name, dataset, big_endian=layout.big_endian)
        return GreyPipeline(signed=signed, palette=palette)
    shape = text(dataset, "PresentationLUTShape")
    # The presentation LUT shape decides where it is stated, else the photometric interpretation.
    inverse = shape == "INVERSE" if shape in {"IDENTITY", "INVERSE"} else layout.photometric == "MONOCHROME1"
    return GreyPipeline(
        signed=signed,
        slope=number(dataset, "RescaleSlope") or 1.0,
        intercept=number(dataset, "RescaleIntercept") or 0.0,
        modality=optional_table(dataset, "ModalityLUTSequence", big_endian=layout.big_endian),
        voi=optional_table(dataset, "VOILUTSequence", big_endian=layout.big_endian),
        windows=_windows(dataset),
        padding=_padding(dataset, layout, signed),
        inverse=inverse,
    )


def _windows(dataset: pydicom.Dataset) -> tuple[Window, ...]:
    """Return the windows that have a width."""
    function = text(dataset, "VOILUTFunction") or "LINEAR"
    # Pairs are complete as far as both lists go.
    pairs = zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False)
    return tuple(Window(center, width, function) for center, width in pairs if width > 0)


def _padding(dataset: pydicom.Dataset, layout: Layout, signed: bool) -> tuple[int, int] | None:
    """Return the range of stored values that mark pixels outside the image."""
    ends = [number(dataset, "PixelPaddingValue"), number(dataset, "PixelPaddingRangeLimit")]
    values = [int(end) for end in ends if end is not None]
    if ends[0] is None:
        return None
    # Writers state it with the wrong sign at times.
    turn = 1 << layout.allocated
    if signed:
        values = [value - turn if value >= turn // 2 else value for value in values]
    else:
        values = [value + turn if value < 0 else value for value in values]
    return min(values), max(values)
