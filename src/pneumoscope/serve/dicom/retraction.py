"""Retraction of a result: what tells archives and readers that it no longer counts.

An object that an archive has stored cannot be called back by C-STORE. The standard's way is a Key Object
Selection titled "Rejected for Quality Reasons" that refers to it; archives that know IHE's Imaging Object
Change Management hide what it names. Others show the result for good, so a Secondary Capture goes with it
that says in words that the result was retracted, and why.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import highdicom as hd
from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage

from pneumoscope import __version__
from pneumoscope.errors import DataError
from pneumoscope.image.decode import DEFAULT_LIMITS
from pneumoscope.image.dicom import lenient_pydicom, read_header
from pneumoscope.image.dicom_header import number
from pneumoscope.report.capture import draw_notice
from pneumoscope.serve.dicom.codes import REJECTED_FOR_QUALITY, plain
from pneumoscope.serve.dicom.composition import MANUFACTURER, finish, moment, reference_to
from pneumoscope.serve.dicom.contracts import PublishedObject
from pneumoscope.serve.dicom.secondary_capture import capture_dataset
from pneumoscope.serve.dicom.uids import derived_uid

__all__ = ["RETRACTED", "build_retraction"]

RETRACTED = "AI result retracted"

FIRST_SERIES = 9003  # where the objects state no series number


def build_retraction(
    objects: Sequence[PublishedObject], reason: str, made: datetime.datetime
) -> list[Dataset]:
    """Make the objects that retract a result.

    Parameters
    ----------
    objects : sequence of PublishedObject
        Of one study; all that were made of the result.
    reason : str
        Why, in a sentence without any attribute of the patient: it is drawn into an image.
    made : datetime
        When the retraction was journalled; the same retraction gives the same objects.

    Returns
    -------
    list of Dataset
        The Key Object Selection, then the Secondary Capture.

    Raises
    ------
    DataError
        If there are no objects, or of several studies, or without a reason.
    UnreadableImageError
        If the copy of an object cannot be read.
    """
    why = plain(reason)
    if not objects or len({one.study_uid for one in objects}) != 1 or not why:
        raise DataError(
            "a retraction needs the objects of one study and a reason in Latin letters: give both"
        )
    with lenient_pydicom():
        return _built(objects, why, made)


def _built(objects: Sequence[PublishedObject], why: str, made: datetime.datetime) -> list[Dataset]:
    headers = [read_header("a result that was sent", one.path, DEFAULT_LIMITS) for one in objects]
    key = (*sorted(one.sop_instance for one in objects), why, made.isoformat())
    named = [int(value) for header in headers if (value := number(header, "SeriesNumber"))]
    series = max(named, default=FIRST_SERIES - 1) + 1
    selection = _selection(objects, why, made, key, series)
    notice = _notice(objects[0].study_uid, sorted(set(named)), why, made, key, series + 1)
    return [finish(selection, headers[0], made), finish(notice, headers[0], made)]


def _selection(
    objects: Sequence[PublishedObject], why: str, made: datetime.datetime, key: tuple[str, ...], series: int
) -> Dataset:
    """Make the Key Object Selection, TID 2010."""
    date, time = moment(made)
    observer = ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", __version__), name=MANUFACTURER, manufacturer_name=MANUFACTURER
        ),
    )
    referenced = [_reference(one) for one in objects]
    document: Dataset = hd.ko.KeyObjectSelectionDocument(
        evidence=referenced,
        content=hd.ko.KeyObjectSelection(
            REJECTED_FOR_QUALITY,
            referenced_objects=referenced,
            observer_device_context=observer,
            description=f"{RETRACTED}: {why}",
        ),
        series_instance_uid=derived_uid("series", "KO", *key),
        series_number=series,
        sop_instance_uid=derived_uid("KO", *key),
        instance_number=1,
        series_description=RETRACTED,
        content_date=date,
        content_time=time,
        **_equipment(),
    )
    return document


def _notice(
    study_uid: str,
    retracted: Sequence[int],
    why: str,
    made: datetime.datetime,
    key: tuple[str, ...],
    series: int,
) -> Dataset:
    """Make the Secondary Capture that says it in words."""
    date, time = moment(made)
    listed = ", ".join(map(str, retracted))
    sentences = [
        f"The AI result of this study{f' (series {listed})' if listed else ''} was retracted. Do not use it.",
        f"Reason: {why}",
        f"Pneumoscope {__version__}",
    ]
    dataset = capture_dataset(
        draw_notice(RETRACTED, sentences),
        study_uid=study_uid,
        series_uid=derived_uid("series", "retraction", *key),
        sop_uid=derived_uid("retraction", *key),
        number=series,
        instance=1,
        made=made,
        equipment=_equipment() | {"content_date": date, "content_time": time},
    )
    dataset.SeriesDescription = RETRACTED
    dataset.ImageComments = f"{RETRACTED}: {why}"
    return dataset


def _equipment() -> dict[str, Any]:
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": [f"Pneumoscope {__version__}"],
    }


def _reference(one: PublishedObject) -> Dataset:
    stated = Dataset()
    stated.SOPClassUID, stated.SOPInstanceUID = one.sop_class, one.sop_instance
    stated.StudyInstanceUID, stated.SeriesInstanceUID = one.study_uid, one.series_uid
    reference = reference_to(stated)
    if one.sop_class == SecondaryCaptureImageStorage:
        reference.Rows = reference.Columns = 1  # highdicom tells images by them
    return reference
