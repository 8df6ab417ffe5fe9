"""Radiographs as DICOM files, made up element by element."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

ROWS, COLUMNS = 40, 56


def ramp(bits: int = 12) -> np.ndarray:
    """Draw a image that runs from 0 to the largest value of so many bits."""
    values = np.linspace(0, (1 << bits) - 1, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def dicom(
    pixels: np.ndarray | bytes,
    syntax: str = ExplicitVRLittleEndian,
    *,
    bits: int = 12,
    preamble: bool = True,
    vr: str | None = None,
    **elements: Any,
) -> bytes:
    """Write a radiograph; elements given as None are left out. `vr` is that of the pixel data."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset(io.BytesIO(), Dataset(), file_meta=meta, preamble=b"\0" * 128)
    header: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
        "SOPInstanceUID": "1.2.3",
        "Modality": "CR",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 if bits <= 8 else 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
    } | elements
    for keyword, value in header.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if isinstance(pixels, np.ndarray):
        big = syntax == ExplicitVRBigEndian and pixels.dtype.itemsize == 2
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    else:
        dataset.PixelData = encapsulate([pixels])
        dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = vr or ("OB" if bits <= 8 else "OW")
    buffer = io.BytesIO()
    implicit, little = UID(syntax).is_implicit_VR, UID(syntax).is_little_endian
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    data = buffer.getvalue()
    return data if preamble else data[data.index(b"\x08\x00\x16\x00") :]
