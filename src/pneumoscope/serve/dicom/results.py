"""From the result of a study to the DICOM objects that are filed with it."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)

from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.image.limits import DEFAULT_LIMITS, Limits
from pneumoscope.serve.dicom.composition import MANUFACTURER, Composition
from pneumoscope.serve.dicom.contracts import ResultOptions, StudyResult
from pneumoscope.serve.dicom.presentation import presentation_states
from pneumoscope.serve.dicom.secondary_capture import secondary_capture
from pneumoscope.serve.dicom.structured_report import structured_report

__all__ = ["build_results", "is_own_object"]

RADIOGRAPHS = frozenset(
    {
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        DigitalXRayImageStorageForProcessing,
    }
)
"""Classes of which no result object ever is, whatever its header says."""


def build_results(
    study: StudyResult, options: ResultOptions, limits: Limits = DEFAULT_LIMITS
) -> list[Dataset]:
    """Make the objects of a result.

    Nothing but the headers of the images is read, and nothing depends on the clock: the same result gives the
    same objects with the same UIDs. Write them with `pneumoscope.serve.dicom.header.encode`, which keeps the
    texts of the patient as they are.

    Parameters
    ----------
    study : StudyResult
    options : ResultOptions
        Which objects are made.
    limits : Limits
        On the file of an image.

    Returns
    -------
    list of Dataset
        Secondary Captures, the structured report, presentation states; referenced objects come before those
        that refer to them. May be empty.

    Raises
    ------
    PneumoscopeError
        If the header of an image cannot be read, or lacks a UID that its result needs, or if the images are
        not all of one patient.
    """
    with lenient_pydicom():  # values of the images go into the objects as they are, right or wrong
        return _built(Composition(study, options, limits), options)


def is_own_object(dataset: Dataset) -> bool:
    """Return whether an object is a result made here: an archive that forwards everything sends it back.

    An X-ray is none, even one that names the same manufacturer, such as the sample that ships.
    """
    with lenient_pydicom():
        made_here = str(dataset.get("Manufacturer") or "") == MANUFACTURER
        return made_here and str(dataset.get("SOPClassUID") or "") not in RADIOGRAPHS


def _built(composition: Composition, options: ResultOptions) -> list[Dataset]:
    captured = composition.predicted if options.secondary_capture else []
    reported = composition.predicted if options.structured_report else []
    if options.rejections in {"secondary_capture", "both"}:
        captured = [*captured, *composition.rejected]
    if options.rejections in {"structured_report", "both"}:
        reported = [*reported, *composition.rejected]
    first = options.series_number
    objects = [
        secondary_capture(composition, one, first + 1, instance) for instance, one in enumerate(captured, 1)
    ]
    if reported:
        objects.append(structured_report(composition, reported, tuple(objects), first))
    if options.presentation_state:
        objects += presentation_states(composition, first + 2)
    return objects
