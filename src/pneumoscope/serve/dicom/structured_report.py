"""The Comprehensive 3D SR of a result: a Measurement Report, TID 1500 (PS3.16), with one group an image.

What a group says is said of the image as a whole, so it is a TID 1501 group and not a planar region of TID
1410: the region explains the probability, it is no lesion that was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import highdicom as hd
import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    ScoordContentItem,
    TextContentItem,
    TrackingIdentifier,
)
from highdicom.sr.value_types import ContentItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from pneumoscope import __version__
from pneumoscope.domain import Prediction
from pneumoscope.errors import CAUTIONS
from pneumoscope.report.statements import (
    RESEARCH_USE,
    caution_statements,
    conclusion,
    operating_point_statement,
    population_statement,
    probability_statement,
    rejection_statement,
    set_statement,
)
from pneumoscope.serve.dicom.codes import (
    ABSENT,
    ARTIFICIAL_INTELLIGENCE,
    CAUTION,
    CLASS_NOT_RULED_OUT,
    CLASS_PROBABILITY,
    COMMENT,
    CONCLUSION,
    COVERAGE,
    MODEL_CLASS,
    NO_UNITS,
    NOT_EVALUATED,
    OPERATING_POINT,
    POPULATION,
    PRESENCE,
    PRESENT,
    PROBABILITY,
    PROCEDURE,
    REASON,
    SOURCE,
    SOURCE_OF_MEASUREMENT,
    THRESHOLD,
    UNDETERMINED,
    VISUAL_EXPLANATION,
    coded,
    coding_schemes,
    plain,
    private,
)
from pneumoscope.serve.dicom.composition import MANUFACTURER, Composition, ReportedImage, reference_to
from pneumoscope.serve.dicom.uids import derived_uid

__all__ = ["device_observer", "structured_report"]

CONTAINS = RelationshipTypeValues.CONTAINS
DECIMALS = 6
PIXELS = CodedConcept("{pixels}", "UCUM", "Pixels")


def structured_report(
    composition: Composition,
    images: Sequence[ReportedImage],
    captures: Sequence[Dataset],
    number: int,
) -> Dataset:
    """Make the structured report of a result.

    Parameters
    ----------
    composition : Composition
    images : sequence of ReportedImage
        Those that are reported: with a prediction, or rejected. One or more.
    captures : sequence of Dataset
        The Secondary Captures of the result, which the report refers to.
    number : int
        Series Number.
    """
    shown = {one.SourceImageSequence[0].ReferencedSOPInstanceUID: one for one in captures}
    groups = [_group(composition, one, shown.get(one.image.sop_instance)) for one in images]
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=device_observer(composition)),
        procedure_reported=PROCEDURE,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            CodedConcept("en", "RFC5646", "English")
        ),
    )
    content = report[0].ContentSequence
    content.insert(len(content) - 1, _image_library(images))
    referenced = [one.reference for one in images]
    referenced += [
        reference_to(shown[one.image.sop_instance]) for one in images if one.image.sop_instance in shown
    ]
    document = Comprehensive3DSR(
        evidence=referenced,
        content=report[0],
        series_instance_uid=composition.uid("series", "SR"),
        series_number=number,
        sop_instance_uid=composition.uid("SR"),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=plain(RESEARCH_USE, 64),
        coding_schemes=coding_schemes(),
        **composition.equipment(),
    )
    return composition.finish(document, images[0])


def device_observer(composition: Composition) -> ObserverContext:
    """Return the program as the observer of a document, TID 1002 and 1004."""
    identity = plain(composition.study.bundle.identity, 64)
    attributes = DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", composition.study.bundle.identity, composition.manifest.decision_sha256),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=plain(composition.manifest.name) or "unnamed",
        serial_number=identity,
    )
    return ObserverContext(codes.DCM.Device, attributes)


def _image_library(images: Sequence[ReportedImage]) -> ContainerContentItem:
    """Return the image library, TID 1600, with what every image has of TID 1602."""
    group = ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=CONTAINS)
    group.ContentSequence = ContentSequence([_library_entry(one) for one in images])
    library = ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=CONTAINS)
    library.ContentSequence = ContentSequence([group])
    return library


def _library_entry(one: ReportedImage) -> ImageContentItem:
    entry = _image(one.reference, SOURCE)
    context = RelationshipTypeValues.HAS_ACQ_CONTEXT
    modality = str(one.header.get("Modality") or "")
    known = {code.value: code for code in (getattr(codes.cid29, name) for name in codes.cid29.dir())}
    items: list[ContentItem] = []
    if modality in known:
        items.append(CodeContentItem(codes.DCM.Modality, known[modality], context))
    if one.image.height is not None and one.image.width is not None:
        items.append(
            NumContentItem(codes.DCM.PixelDataRows, one.image.height, PIXELS, relationship_type=context)
        )
        items.append(
            NumContentItem(codes.DCM.PixelDataColumns, one.image.width, PIXELS, relationship_type=context)
        )
    if items:
        entry.ContentSequence = ContentSequence(items)
    return entry


def _group(
    composition: Composition, one: ReportedImage, capture: Dataset | None
) -> MeasurementsAndQualitativeEvaluations:
    """Return the group of one image, TID 1501, its items in the order of the template."""
    prediction, manifest = one.image.prediction, composition.manifest
    predicted = prediction.p_target is not None
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=derived_uid("tracking", manifest.target.name, one.image.sop_instance),
            identifier=plain(f"{manifest.target.name}: {one.caption}"),
        ),
        finding_type=coded(manifest.target.code, manifest.target.name) if predicted else None,
        algorithm_id=_algorithm(composition, prediction),
    )
    content = group[0].ContentSequence
    if capture is not None:
        content.append(_image(reference_to(capture), VISUAL_EXPLANATION))
    if predicted:
        content.extend(_numbers(composition, one))
    content.append(_image(one.reference, SOURCE_OF_MEASUREMENT))
    if one.region is not None:
        content.append(_region(one))
    content.extend(_evaluations(prediction))
    content.extend(
        TextContentItem(name, plain(text), CONTAINS) for name, text in _texts(composition, one) if plain(text)
    )
    return group


def _algorithm(composition: Composition, prediction: Prediction) -> AlgorithmIdentification:
    """Return the identification of the model, TID 4019."""
    bundle, manifest = composition.study.bundle, composition.manifest
    parameters = [
        f"bundle={bundle.identity}",
        f"bundle_sha256={manifest.decision_sha256}",
        f"network_sha256={manifest.files['model.onnx']}",
    ]
    if prediction.operating_point:
        parameters.append(f"operating_point={prediction.operating_point}")
    return AlgorithmIdentification(
        name=plain(f"Pneumoscope {manifest.name}"),
        version=__version__,
        parameters=[plain(one) for one in parameters],
        family=ARTIFICIAL_INTELLIGENCE,
        manufacturer="The Pneumoscope authors",
    )


def _numbers(composition: Composition, one: ReportedImage) -> Iterator[ContentItem]:
    """Yield the numbers of a prediction, TID 300; the probability of the target is the first."""
    prediction = one.image.prediction
    assert prediction.p_target is not None
    yield _number(PROBABILITY, prediction.p_target)
    for name, value in prediction.probabilities.items():
        item = _number(CLASS_PROBABILITY, value)
        modifier = CodeContentItem(MODEL_CLASS, private(name), RelationshipTypeValues.HAS_CONCEPT_MOD)
        item.ContentSequence = ContentSequence([modifier])
        yield item
    yield _number(THRESHOLD, composition.point_of(one).threshold)
    if prediction.set_coverage is not None:
        yield _number(COVERAGE, prediction.set_coverage)


def _number(name: CodedConcept, value: float) -> ContentItem:
    return NumContentItem(name, round(value, DECIMALS), NO_UNITS, relationship_type=CONTAINS)


def _image(reference: Dataset, name: CodedConcept) -> ImageContentItem:
    return ImageContentItem(name, reference.SOPClassUID, reference.SOPInstanceUID, relationship_type=CONTAINS)


def _region(one: ReportedImage) -> ScoordContentItem:
    """Return the outline of the strongest region in the source image."""
    assert one.region is not None
    item = ScoordContentItem(
        VISUAL_EXPLANATION,
        hd.sr.GraphicTypeValues.POLYLINE,
        one.region.outline.astype(np.float32),
        relationship_type=CONTAINS,
    )
    source = _image(one.reference, SOURCE)
    source.RelationshipType = RelationshipTypeValues.SELECTED_FROM.value
    item.ContentSequence = ContentSequence([source])
    return item


def _evaluations(prediction: Prediction) -> Iterator[CodeContentItem]:
    """Yield the coded results: decision, prediction set, reasons and cautions."""
    if prediction.p_target is None:
        yield CodeContentItem(PRESENCE, NOT_EVALUATED, CONTAINS)
    elif prediction.uncertain or prediction.positive is None:
        yield CodeContentItem(PRESENCE, UNDETERMINED, CONTAINS)
    else:
        yield CodeContentItem(PRESENCE, PRESENT if prediction.positive else ABSENT, CONTAINS)
    for name in prediction.prediction_set:
        yield CodeContentItem(CLASS_NOT_RULED_OUT, private(name), CONTAINS)
    for reason in prediction.reasons:
        yield CodeContentItem(CAUTION if reason in CAUTIONS else REASON, private(str(reason)), CONTAINS)


def _texts(composition: Composition, one: ReportedImage) -> Iterator[tuple[CodedConcept, str]]:
    """Yield the result in words."""
    prediction = one.image.prediction
    yield CONCLUSION, conclusion(prediction)
    if prediction.p_target is None:
        yield COMMENT, rejection_statement(prediction)
    else:
        point = composition.point_of(one)
        yield OPERATING_POINT, operating_point_statement(point, prediction.target)
        yield POPULATION, population_statement(prediction, composition.manifest.validated)
        yield COMMENT, probability_statement(prediction)
        yield COMMENT, set_statement(prediction)
        for text in caution_statements(prediction):
            yield COMMENT, text
        if one.region is not None:
            side = f" ({one.side})" if one.side else ""
            yield (
                COMMENT,
                f"Strongest evidence: {one.region.place}{side}. The region explains the number; it is no "
                "segmentation.",
            )
    yield COMMENT, f"{RESEARCH_USE}."
