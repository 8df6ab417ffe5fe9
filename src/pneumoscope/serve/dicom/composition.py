"""One result in the making: what its objects share, and what identifies each of them."""

from __future__ import annotations

import dataclasses
import datetime
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from pneumoscope import __version__
from pneumoscope.domain import OperatingPoint, Radiograph
from pneumoscope.errors import DataError
from pneumoscope.image.dicom import read_header
from pneumoscope.image.dicom_header import element_value, text
from pneumoscope.image.limits import DEFAULT_LIMITS, Limits
from pneumoscope.model.manifest import HEAD_FILE
from pneumoscope.report.region import Region, strongest_region
from pneumoscope.serve.dicom.codes import plain
from pneumoscope.serve.dicom.contracts import ResultOptions, SourceImage, StudyResult
from pneumoscope.serve.dicom.header import TYPE_2, copy_header, patient_of, required_uid
from pneumoscope.serve.dicom.store import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from pneumoscope.serve.dicom.uids import derived_uid
from pneumoscope.serve.workers.rows import prediction_row

__all__ = ["MANUFACTURER", "Composition", "ReportedImage", "finish", "moment", "reference_to"]

MANUFACTURER = "Pneumoscope"
"""Manufacturer (0008,0070) of every object of ours."""


@dataclass(frozen=True, eq=False)
class ReportedImage:
    """One image of a result with its header.

    Parameters
    ----------
    image : SourceImage
        What was found in it.
    header : Dataset
        Its header.
    reference : Dataset
        What objects refer to: its UIDs, and Type 2 attributes without a value. highdicom reads it in place of
        the header, which may hold values that it does not take.
    """

    image: SourceImage
    header: Dataset
    reference: Dataset

    @cached_property
    def region(self) -> Region | None:
        """The strongest region, in pixels of the image."""
        one = self.image
        if one.explanation is None or one.height is None or one.width is None:
            return None
        return strongest_region(one.explanation, one.height, one.width)

    @cached_property
    def radiograph(self) -> Radiograph | None:
        """The image for drawing."""
        one = self.image
        if one.preview is None or one.height is None or one.width is None:
            return None
        pixels = (one.preview / 255).astype("float32")
        return Radiograph(pixels, source="", format="dicom", height=one.height, width=one.width)

    @property
    def side(self) -> str:
        """The side of the patient that the region lies on; empty where the header does not tell."""
        orientation = self.header.get("PatientOrientation")
        if self.region is None or not orientation or self.image.width is None:
            return ""
        towards = str(orientation[0])[:1]  # along a row, from its first column
        if towards not in {"L", "R"}:
            return ""
        is_left = (towards == "L") == (self.region.peak[0] > self.image.width / 2)
        return f"{'left' if is_left else 'right'} side of the patient"

    @property
    def caption(self) -> str:
        """Which image of the study this is, by what viewers show: numbers of series and image, and view."""
        numbers = [element_value(self.header, name) for name in ("SeriesNumber", "InstanceNumber")]
        view = text(self.header, "ViewPosition")
        named = [
            f"{name} {number}"
            for name, number in zip(("series", "image"), numbers, strict=True)
            if number is not None and str(number).lstrip("-").isdigit()
        ]
        if view in {"PA", "AP", "LL", "RL"}:
            named.append(f"{view} view")
        return ", ".join(named) or "see the referenced image"


class Composition:
    """A result with the headers of its images; to be used within `lenient_pydicom`.

    Parameters
    ----------
    study : StudyResult
    options : ResultOptions
    limits : Limits
        On the file of an image.

    Raises
    ------
    PneumoscopeError
        If the header of an image cannot be read, or has no UID of its own, its series or its study, or if the
        images are not all of one patient.
    """

    def __init__(self, study: StudyResult, options: ResultOptions, limits: Limits = DEFAULT_LIMITS) -> None:
        self.study, self.options = study, options
        self.manifest = study.bundle.manifest
        self.images = [_reported(number, one, limits) for number, one in enumerate(study.images, 1)]
        # A mistake at the modality may file two patients under one study; a result names one of them.
        if len({patient_of(one.header) for one in self.images}) > 1:
            raise DataError(
                "the images of this study name different patients, so no result can be of them all"
            )
        self.predicted = [one for one in self.images if one.image.prediction.p_target is not None]
        self.rejected = [one for one in self.images if one.image.prediction.p_target is None]

    @cached_property
    def _identity(self) -> str:
        """Everything that the objects are made of, as text."""
        bundle = self.study.bundle
        images = [(one.sop_instance, one.sha256, _row(one.prediction)) for one in self.study.images]
        parts = {
            "study": self.study.study_uid,
            "images": sorted(images, key=lambda one: one[0]),
            "bundle": [bundle.identity, self.manifest.decision_sha256, self.manifest.files.get(HEAD_FILE)],
            "version": __version__,
            "options": dataclasses.asdict(self.options),
            "revision": self.study.revision,
        }
        return json.dumps(parts, sort_keys=True)

    def uid(self, *purpose: str) -> str:
        """Return the UID of an object or series of this result."""
        return derived_uid(*purpose, self._identity)

    def point_of(self, one: ReportedImage) -> OperatingPoint:
        """Return the operating point that the prediction of an image used."""
        prediction = one.image.prediction
        return self.manifest.operating_point(prediction.operating_point, prediction.population)

    @property
    def model(self) -> str:
        """Model and program, for people."""
        return f"Model {plain(self.study.bundle.identity)}, Pneumoscope {__version__}"

    def equipment(self) -> dict[str, Any]:
        """Return the arguments of highdicom that say what made the objects and when."""
        date, time = moment(self.study.made)
        return {
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": plain(f"Pneumoscope {self.manifest.name}", 64),
            "device_serial_number": plain(self.study.bundle.identity, 64),
            "software_versions": [f"Pneumoscope {__version__}", plain(self.study.bundle.identity, 64)],
            "institution_name": plain(self.options.institution, 64) or None,
            "content_date": date,
            "content_time": time,
        }

    def finish(self, dataset: Dataset, one: ReportedImage) -> Dataset:
        """Complete an object that highdicom made with patient and study of an image."""
        return finish(dataset, one.header, self.study.made)


def moment(made: datetime.datetime) -> tuple[datetime.date, datetime.time]:
    """Return date and time of day in the zone of `made`, without fractions of a second.

    Timezone Offset From UTC is not set: it would change what the copied Study Time means.
    """
    return made.date(), made.time().replace(microsecond=0, tzinfo=None)


def finish(dataset: Dataset, header: Dataset, made: datetime.datetime) -> Dataset:
    """Complete an object that highdicom made: patient and study, times, and its file meta information."""
    copy_header(header, dataset)
    date, time = moment(made)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date.strftime("%Y%m%d"), f"{time:%H%M%S}"
    for item in dataset.get("ContributingEquipmentSequence", []):  # highdicom, with the time of the clock
        item.ContributionDateTime = f"{date:%Y%m%d}{time:%H%M%S}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    dataset.file_meta = meta
    return dataset


def reference_to(dataset: Dataset) -> Dataset:
    """Return what one object refers to another by: its UIDs, without anything about the patient."""
    reference = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(reference, keyword, str(dataset.get(keyword)))
    for keyword in TYPE_2:
        setattr(reference, keyword, "")
    return reference


def _reported(number: int, one: SourceImage, limits: Limits) -> ReportedImage:
    name = f"image {number} of the study"
    header = read_header(name, one.path, limits)
    required_uid(header, "StudyInstanceUID", name)
    required_uid(header, "SeriesInstanceUID", name)
    reference = reference_to(header)
    reference.SOPClassUID, reference.SOPInstanceUID = one.sop_class, one.sop_instance
    return ReportedImage(one, header, reference)


def _row(prediction: Any) -> dict[str, Any]:
    row = prediction_row(prediction)
    del row["path"]
    return row
