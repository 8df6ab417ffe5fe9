"""Secondary Captures: what a reader sees of a result in any viewer."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from pydicom.dataset import Dataset

from pneumoscope.image.dicom_header import text
from pneumoscope.report.capture import Capture, draw_capture
from pneumoscope.report.statements import RESEARCH_USE, conclusion
from pneumoscope.serve.dicom.codes import SOURCE, plain
from pneumoscope.serve.dicom.composition import Composition, ReportedImage

__all__ = ["capture_dataset", "secondary_capture"]


def secondary_capture(composition: Composition, one: ReportedImage, number: int, instance: int) -> Dataset:
    """Make the Secondary Capture of one image: X-ray with overlay beside the result in words.

    Parameters
    ----------
    composition : Composition
    one : ReportedImage
        With a prediction, or rejected.
    number, instance : int
        Series Number and Instance Number.
    """
    prediction = one.image.prediction
    pixels = draw_capture(
        Capture(
            prediction=prediction,
            radiograph=one.radiograph,
            explanation=one.image.explanation,
            region=one.region,
            point=None if prediction.p_target is None else composition.point_of(one),
            validated=composition.manifest.validated,
            caption=f"Source: {one.caption}",
            model=composition.model,
            side=one.side,
        )
    )
    dataset = capture_dataset(
        pixels,
        study_uid=composition.study.study_uid,
        series_uid=composition.uid("series", "SC"),
        sop_uid=composition.uid("SC", one.image.sop_instance),
        number=number,
        instance=instance,
        made=composition.study.made,
        equipment=composition.equipment(),
    )
    dataset.ImageComments = plain(f"{RESEARCH_USE}. {conclusion(prediction)}.")
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = (
        one.image.sop_class,
        one.image.sop_instance,
    )
    source.PurposeOfReferenceCodeSequence = [SOURCE]
    dataset.SourceImageSequence = [source]
    if one.radiograph is not None:  # it shows what is burned into the X-ray
        stated = text(one.header, "BurnedInAnnotation")
        if stated in {"YES", "NO"}:
            dataset.BurnedInAnnotation = stated
        else:
            del dataset.BurnedInAnnotation  # optional (PS3.3 C.7.6.1), and not known
    return composition.finish(dataset, one)


def capture_dataset(
    pixels: npt.NDArray[np.uint8],
    *,
    study_uid: str,
    series_uid: str,
    sop_uid: str,
    number: int,
    instance: int,
    made: datetime.datetime,
    equipment: dict[str, Any],
) -> Dataset:
    """Make a Secondary Capture, uncompressed RGB, without patient and study.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)
        Red, green, blue.
    study_uid, series_uid, sop_uid : str
    number, instance : int
        Series Number and Instance Number.
    made : datetime
        When the result was composed.
    equipment : dict
        Arguments of highdicom that say what made it and when.
    """
    dataset: Dataset = SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=study_uid,
        series_instance_uid=series_uid,
        series_number=number,
        sop_instance_uid=sop_uid,
        instance_number=instance,
        patient_orientation=("L", "F"),
        series_description=plain(RESEARCH_USE, 64),
        **equipment,
    )
    # Derived from an image, with text beside it: no direction in it is one of the patient.
    dataset.PatientOrientation, dataset.Laterality = "", ""
    dataset.ConversionType = "WSD"
    dataset.DateOfSecondaryCapture = made.strftime("%Y%m%d")
    dataset.TimeOfSecondaryCapture = made.strftime("%H%M%S")
    dataset.SecondaryCaptureDeviceManufacturer = dataset.Manufacturer
    dataset.SecondaryCaptureDeviceManufacturerModelName = dataset.ManufacturerModelName
    dataset.SecondaryCaptureDeviceSoftwareVersions = equipment["software_versions"]
    dataset.BurnedInAnnotation = "NO"
    dataset.RecognizableVisualFeatures = "NO"
    dataset["PixelData"].VR = "OB"
    return dataset
