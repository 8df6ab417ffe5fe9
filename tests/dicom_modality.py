"""A modality: X-rays as DICOM files, and sending them to a node."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import _config
from pynetdicom.sop_class import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation

from images import grey_levels
from log_scan import SCAN
from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.serve.dicom.outgoing import OutgoingAE

__all__ = ["DX", "PATIENT", "SECRETS", "radiograph", "send"]

_config.STORE_SEND_CHUNKED_DATASET = True  # files are sent without decoding them

DX = "1.2.840.10008.5.1.4.1.1.1.1"
ROOT = "1.2.826.0.1.3680043.10.5"

PATIENT = {"PatientName": "Zauberbaum^Ottokar", "PatientID": "PID-77-4711", "PatientBirthDate": "19430612"}
"""Of every image that these tests send: no log may have any of it."""

SECRETS = ("Zauberbaum", "Ottokar", "PID-7", "19430612", "12.06.1943", "Wagenknecht", "ACC-")
"""Parts of what names the patient, the visit or the physician in those images."""


def radiograph(
    number: int = 0, *, study: int | None = None, seed: int | None = None, **elements: Any
) -> bytes:
    """Return a DX image as a DICOM file; its UIDs follow from the numbers.

    Parameters
    ----------
    number : int
        Of the image.
    study : int, optional
        Of the study; one of its own if not given.
    seed : int, optional
        Of the grey levels; the number of the image if not given.
    **elements
        Further or other elements; None leaves one out.
    """
    study = number if study is None else study
    pixels = grey_levels(number if seed is None else seed).astype(np.uint16) << 4
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": DX,
        "SOPInstanceUID": f"{ROOT}.1.{study}.{number}",
        "StudyInstanceUID": f"{ROOT}.1.{study}",
        "SeriesInstanceUID": f"{ROOT}.1.{study}.0",
        "StudyDate": "20260301",
        "StudyTime": "101112",
        "AccessionNumber": f"ACC-{study}",
        "ReferringPhysicianName": "Wagenknecht^Ilse",
        "PatientSex": "M",
        "StudyID": str(study),
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "Manufacturer": "Example",
        "ManufacturerModelName": "Model 1",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelIntensityRelationship": "LOG",
        **PATIENT,
    } | elements
    dataset = Dataset()
    with pydicom.config.disable_value_validation():
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
    SCAN.sent(dataset)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    with lenient_pydicom():
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def send(
    port: int, images: Sequence[bytes], *, aet: str = "MODALITY", host: str = "127.0.0.1"
) -> list[int | None]:
    """Send images over one association; return the status of each, None where there was no response."""
    ae = OutgoingAE(aet, 30)
    ae.add_requested_context(DigitalXRayImageStorageForPresentation, [ExplicitVRLittleEndian])
    ae.add_requested_context(ComputedRadiographyImageStorage, [ExplicitVRLittleEndian])
    statuses: list[int | None] = []
    association = ae.associate(host, port, ae_title="PNEUMOSCOPE")
    if not association.is_established:
        return [None] * len(images)
    for image in images:
        if not association.is_established:
            statuses.append(None)
            continue
        try:
            # As a file, which is sent as it is: to decode it takes `lenient_pydicom`, whose lock an archive
            # in this process needs to store an object.
            with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
                file.write(image)
                file.flush()
                status = association.send_c_store(file.name)
        except (RuntimeError, ValueError):
            status = Dataset()
        statuses.append(int(status.Status) if "Status" in status else None)
    if association.is_established:
        association.release()
    return statuses
