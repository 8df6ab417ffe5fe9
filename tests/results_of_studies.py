"""Results of made-up studies, for tests of the objects that are made of them."""

from __future__ import annotations

import datetime
import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from pneumoscope.domain import Explanation, Prediction
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.predictor import ExplainedPrediction, Predictor
from pneumoscope.serve.dicom.contracts import SourceImage, StudyResult

__all__ = ["CR", "DX", "MADE", "explained", "header", "predicted", "rejected", "source", "study", "wrap"]

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
MADE = datetime.datetime(2026, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)
STUDY = "1.2.826.0.1.3680043.10.1"


def header(**elements: Any) -> Dataset:
    """Return the header of a radiograph; an element given as None is left out."""
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": CR,
        "SOPInstanceUID": f"{STUDY}.1.1",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": f"{STUDY}.1",
        "StudyDate": "20260301",
        "StudyTime": "101112",
        "AccessionNumber": "A-7",
        "Modality": "CR",
        "ReferringPhysicianName": "Ward^Anna",
        "PatientName": "M\u00fcller^J\u00fcrgen",
        "PatientID": "P-17",
        "PatientBirthDate": "19610203",
        "PatientSex": "M",
        "PatientAge": "065Y",
        "StudyID": "S-3",
        "SeriesNumber": 2,
        "InstanceNumber": 1,
        "PatientOrientation": ["L", "F"],
        "ViewPosition": "PA",
        "BodyPartExamined": "CHEST",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 400,
        "Columns": 500,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowCenter": 2048,
        "WindowWidth": 4096,
    } | elements
    dataset = Dataset()
    with lenient_pydicom(), pydicom.config.disable_value_validation():
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
    return dataset


def as_file(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return a data set as a DICOM file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    with lenient_pydicom(), pydicom.config.disable_value_validation():
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def predicted(p_target: float = 0.8, **fields: Any) -> Prediction:
    """Return a prediction of the tiny bundle."""
    rest = 1 - p_target
    values: dict[str, Any] = {
        "probabilities": {"normal": rest, "bacterial": p_target * 0.75, "viral": p_target * 0.25},
        "target": "pneumonia",
        "p_target": p_target,
        "finding": "bacterial" if p_target > 0.5 else "normal",
        "decision": "pneumonia" if p_target >= 0.5 else "no pneumonia",
        "operating_point": "balanced",
        "population": "any",
        "prediction_set": ("bacterial",) if p_target > 0.5 else ("normal",),
        "bundle": "tiny@0",
        "set_coverage": 0.9,
    }
    return Prediction("image.dcm", "ok", **(values | fields))


def rejected(*reasons: str, message: str = "Not a frontal view: give a frontal chest X-ray.") -> Prediction:
    """Return the prediction of an image that was rejected."""
    return Prediction(
        "image.dcm",
        "rejected",
        reasons or ("lateral_view",),
        target="pneumonia",
        bundle="tiny@0",
        message=message,
    )


def hot_spot(row: float = 0.3, column: float = 0.25, *, peak: float = 1.0, side: int = 64) -> Explanation:
    """Return a heat map with one spot, at a place in shares of the map."""
    y, x = np.mgrid[:side, :side] / side
    heat = peak * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 0.02)
    return Explanation("pneumonia", heat.astype(np.float32), (0.1, 0.2, 0.9, 0.8))


def source(
    folder: Path,
    dataset: Dataset,
    prediction: Prediction,
    *,
    syntax: str = ExplicitVRLittleEndian,
    **fields: Any,
) -> SourceImage:
    """Store the header of an image as a file, with what was found in it."""
    data = as_file(dataset, syntax)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.dcm"
    path.write_bytes(data)
    values: dict[str, Any] = {"height": dataset.get("Rows"), "width": dataset.get("Columns")}
    if prediction.p_target is not None:
        values["explanation"] = hot_spot()
        values["preview"] = np.tile(np.linspace(30, 220, 250, dtype=np.uint8), (200, 1))
    return SourceImage(
        path=path,
        sop_class=str(dataset.SOPClassUID),
        sop_instance=str(dataset.SOPInstanceUID),
        sha256=hashlib.sha256(data).hexdigest(),
        prediction=prediction,
        **(values | fields),
    )


def study(bundle: Bundle, *images: SourceImage, **fields: Any) -> StudyResult:
    """Return the result of a study."""
    with lenient_pydicom():
        uid = pydicom.dcmread(images[0].path, stop_before_pixels=True, force=True).get("StudyInstanceUID")
    return StudyResult(**({"study_uid": uid, "images": images, "bundle": bundle, "made": MADE} | fields))


def explained(predictor: Predictor, path: Path) -> tuple[ExplainedPrediction, dict[str, Any]]:
    """Predict on a file; return the prediction, and the fields of `SourceImage` that follow from it."""
    result = predictor.explain(path.read_bytes())
    if result.radiograph is None:
        return result, {"height": None, "width": None}
    pixels = result.radiograph.pixels
    scale = min(1.0, 1024 / max(pixels.shape))
    size = [max(1, round(side * scale)) for side in pixels.shape[::-1]]
    grey = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return result, {
        "height": result.radiograph.height,
        "width": result.radiograph.width,
        "preview": np.rint(grey * 255).astype(np.uint8),
        "explanation": result.explanation,
    }


def wrap(image: Path, number: int = 1, **elements: Any) -> Dataset:
    """Return a JPEG as a DX image for presentation, uncompressed."""
    grey = read_radiograph(image.read_bytes()).pixels
    pixels = np.rint(grey * 255).astype(np.uint8)
    rows, columns = pixels.shape
    values: dict[str, Any] = {
        "SOPClassUID": DX,
        "SOPInstanceUID": f"{STUDY}.9.{number}",
        "SeriesInstanceUID": f"{STUDY}.9",
        "Modality": "DX",
        "PresentationIntentType": "FOR PRESENTATION",
        "PatientAge": "003Y",
        "ViewPosition": "AP",
        "InstanceNumber": number,
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "WindowCenter": None,
        "WindowWidth": None,
        "PresentationLUTShape": "IDENTITY",
        "PixelData": pixels.tobytes() + b"\0" * (pixels.size % 2),
    } | elements
    dataset = header(**values)
    dataset["PixelData"].VR = "OB"
    return dataset


def with_revision(result: StudyResult, revision: int) -> StudyResult:
    """Return a result as it is made again after a retraction."""
    return replace(result, revision=revision)
