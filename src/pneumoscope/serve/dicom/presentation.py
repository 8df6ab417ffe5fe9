"""Grayscale Softcopy Presentation States: the outlined region and the result over the image itself."""

from __future__ import annotations

import logging
from fractions import Fraction

import highdicom as hd
import numpy as np
from highdicom.pr import (
    AnnotationUnitsValues,
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GrayscaleSoftcopyPresentationState,
    TextJustificationValues,
    TextObject,
)
from pydicom.dataset import Dataset

from pneumoscope.image.dicom_header import DAMAGED, number, numbers, text
from pneumoscope.report.rows import percent_text
from pneumoscope.report.statements import RESEARCH_USE, conclusion
from pneumoscope.serve.dicom.codes import plain
from pneumoscope.serve.dicom.composition import Composition, ReportedImage

__all__ = ["presentation_states"]

LAYER = "AI RESULT"
# The size of a pixel, or the ratio of its height to its width, in the order in which they count.
PIXEL_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
MOST_ELONGATED = 100  # a pixel that is longer than so many times its other side is a mistake

logger = logging.getLogger(__name__)


def presentation_states(composition: Composition, number: int) -> list[Dataset]:
    """Make a presentation state for each predicted image that has one grey sample a pixel.

    An image whose header does not give what a presentation state needs is left out with a warning: the result
    itself is in the other objects.
    """
    states: list[Dataset] = []
    for one in composition.predicted:
        try:
            state = _state(composition, one, number, len(states) + 1)
        except DAMAGED as error:
            logger.warning("no presentation state: %s in the header of the image", type(error).__name__)
            continue
        states.append(state)
    return states


def _state(composition: Composition, one: ReportedImage, series: int, instance: int) -> Dataset:
    image = _displayed(one)
    layer = GraphicLayer(LAYER, order=1, description=RESEARCH_USE)
    prediction = one.image.prediction
    assert prediction.p_target is not None
    note = f"{RESEARCH_USE}\r\n{conclusion(prediction)}, probability {percent_text(prediction.p_target)}"
    texts = [
        TextObject(
            plain(note.replace("\r\n", ": ")),
            AnnotationUnitsValues.DISPLAY,
            bounding_box=(0.02, 0.02, 0.98, 0.08),
            text_justification=TextJustificationValues.LEFT,
        )
    ]
    outlines = []
    if one.region is not None:
        outline = one.region.outline.astype(np.float32)
        outlines.append(GraphicObject(hd.pr.GraphicTypeValues.POLYLINE, outline, AnnotationUnitsValues.PIXEL))
    equipment = composition.equipment()
    date, time = equipment.pop("content_date"), equipment.pop("content_time")
    inverse = text(one.header, "PhotometricInterpretation") == "MONOCHROME1"
    shape = "INVERSE" if inverse else "IDENTITY"
    state = GrayscaleSoftcopyPresentationState(
        referenced_images=[image],
        series_instance_uid=composition.uid("series", "PR"),
        series_number=series,
        sop_instance_uid=composition.uid("PR", one.image.sop_instance),
        instance_number=instance,
        content_label="AI_RESULT",
        content_description=RESEARCH_USE,
        graphic_layers=[layer],
        graphic_annotations=[
            GraphicAnnotation([image], layer, graphic_objects=outlines or None, text_objects=texts)
        ],
        presentation_lut_transformation=hd.PresentationLUTTransformation(presentation_lut_shape=shape),
        series_description=plain(RESEARCH_USE, 64),
        **equipment,
    )
    state.DisplayedAreaSelectionSequence[0].PresentationPixelAspectRatio = _aspect_ratio(one.header)
    state.Laterality = ""  # of a paired body part, which this one may be
    state.PresentationCreationDate, state.PresentationCreationTime = f"{date:%Y%m%d}", f"{time:%H%M%S}"
    return composition.finish(state, one)


def _aspect_ratio(header: Dataset) -> list[int]:
    """Return height and width of a pixel in whole numbers: highdicom takes pixels for square."""
    for keyword in PIXEL_SIZES:
        sizes = numbers(header, keyword)
        if len(sizes) == 2 and min(sizes) > 0 and MOST_ELONGATED > sizes[0] / sizes[1] > 1 / MOST_ELONGATED:
            ratio = Fraction(sizes[0] / sizes[1]).limit_denominator(1000)
            return [ratio.numerator, ratio.denominator]
    return [1, 1]


def _displayed(one: ReportedImage) -> Dataset:
    """Return what a presentation state repeats of an image, in the form highdicom takes.

    Raises
    ------
    ValueError
        If the image has more samples, or no size.
    """
    header, image = one.header, Dataset()
    image.update(one.reference)
    rows, columns = (number(header, name) for name in ("Rows", "Columns"))
    if number(header, "SamplesPerPixel") != 1 or not rows or not columns:
        raise ValueError("not one grey sample a pixel")
    image.Rows, image.Columns, image.SamplesPerPixel = int(rows), int(columns), 1
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if "ModalityLUTSequence" in header:
        image.ModalityLUTSequence = header.ModalityLUTSequence
    elif slope is not None and intercept is not None:
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        image.RescaleType = text(header, "RescaleType") or "US"
    centers, widths = numbers(header, "WindowCenter"), numbers(header, "WindowWidth")
    if centers and widths and widths[0] >= 1:
        image.WindowCenter, image.WindowWidth = centers[0], widths[0]
        if function := text(header, "VOILUTFunction"):
            image.VOILUTFunction = function
    elif "VOILUTSequence" in header:
        image.VOILUTSequence = header.VOILUTSequence[:1]
    return image
