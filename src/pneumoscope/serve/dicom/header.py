"""Patient and study of an image, copied into a result object byte by byte.

pydicom decodes a text and encodes it again where it is set on another data set. Texts that break the rules of
their character set, which hospitals have, would change or fail on that way. So an element is copied as it is
in the file, together with Specific Character Set; sequences are copied as pydicom reads them.
"""

from __future__ import annotations

import copy
import io

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.tag import BaseTag, Tag

from pneumoscope.errors import DataError
from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.image.dicom_header import CUT_OFF, DAMAGED, is_uid

__all__ = ["COPIED", "TYPE_2", "copy_header", "encode", "patient_of", "required_uid"]

TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
"""Keywords that every object has, if without a value (PS3.3 C.7.1.1 and C.7.2.1)."""

COPIED = (
    "SpecificCharacterSet",
    *TYPE_2,
    # Patient, PS3.3 C.7.1.1
    *("ReferencedPatientSequence", "IssuerOfPatientID", "TypeOfPatientID"),
    *("IssuerOfPatientIDQualifiersSequence", "SourcePatientGroupIdentificationSequence"),
    *("GroupOfPatientsIdentificationSequence", "PatientBirthTime", "PatientBirthDateInAlternativeCalendar"),
    *("PatientDeathDateInAlternativeCalendar", "PatientAlternativeCalendar", "QualityControlSubject"),
    *("OtherPatientIDs", "OtherPatientNames", "OtherPatientIDsSequence", "ReferencedPatientPhotoSequence"),
    *("EthnicGroup", "EthnicGroupCodeSequence", "PatientSpeciesDescription", "PatientSpeciesCodeSequence"),
    *("PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence"),
    *("StrainDescription", "StrainNomenclature", "StrainCodeSequence", "StrainAdditionalInformation"),
    *("StrainStockSequence", "GeneticModificationsSequence", "ResponsiblePerson", "ResponsiblePersonRole"),
    *("ResponsibleOrganization", "PatientComments", "PatientIdentityRemoved", "DeidentificationMethod"),
    "DeidentificationMethodCodeSequence",
    # Clinical Trial Subject and Study, C.7.1.3 and C.7.2.3
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "IssuerOfClinicalTrialProtocolID"),
    *("ClinicalTrialProtocolName", "OtherClinicalTrialProtocolIDsSequence", "ClinicalTrialSiteID"),
    *("IssuerOfClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID"),
    *("IssuerOfClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
    *("IssuerOfClinicalTrialSubjectReadingID", "ClinicalTrialProtocolEthicsCommitteeName"),
    *("ClinicalTrialProtocolEthicsCommitteeApprovalNumber", "ClinicalTrialTimePointID"),
    *("IssuerOfClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"),
    *("ClinicalTrialTimePointTypeCodeSequence", "LongitudinalTemporalOffsetFromEvent"),
    *("LongitudinalTemporalEventType", "ConsentForClinicalTrialUseSequence"),
    # General Study and Patient Study, C.7.2.1 and C.7.2.2
    *("StudyInstanceUID", "IssuerOfAccessionNumberSequence", "ReferringPhysicianIdentificationSequence"),
    *("ConsultingPhysicianName", "ConsultingPhysicianIdentificationSequence", "StudyDescription"),
    *("ProcedureCodeSequence", "PhysiciansOfRecord", "PhysiciansOfRecordIdentificationSequence"),
    *("NameOfPhysiciansReadingStudy", "PhysiciansReadingStudyIdentificationSequence"),
    *("ReferencedStudySequence", "RequestingService", "RequestingServiceCodeSequence"),
    *("ReasonForPerformedProcedureCodeSequence", "AdmittingDiagnosesDescription"),
    *("AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize", "PatientSizeCodeSequence"),
    *("MeasuredAPDimension", "MeasuredLateralDimension"),
    *("PatientBodyMassIndex", "PatientWeight", "MedicalAlerts", "Allergies", "Occupation", "SmokingStatus"),
    *("AdditionalPatientHistory", "PregnancyStatus", "LastMenstrualDate", "PatientSexNeutered"),
    *("ReasonForVisit", "ReasonForVisitCodeSequence", "AdmissionID", "IssuerOfAdmissionIDSequence"),
    *("ServiceEpisodeID", "ServiceEpisodeDescription", "IssuerOfServiceEpisodeIDSequence", "PatientState"),
)
"""Keywords of the Patient, Clinical Trial, General Study and Patient Study modules, and the character set."""


NUMBERS = {"US", "FD"}  # value representations among them whose bytes have an order


def required_uid(source: Dataset, keyword: str, name: str) -> str:
    """Return a UID that a result cannot be filed without.

    Raises
    ------
    DataError
        If the image has none, or something else in its place.
    """
    with lenient_pydicom():
        value = str(source.get(keyword) or "")
    if not is_uid(value):
        raise DataError(
            f"{name}: no valid {keyword}, so no result can be filed with it; correct the image and send it "
            "again"
        )
    return value


def patient_of(source: Dataset) -> tuple[bytes, ...]:
    """Return what tells patients apart: the ID and its issuer; without an ID, name and birth date."""
    with lenient_pydicom():
        identity = _stripped(source, "PatientID")
        if identity:
            return b"id", identity, _stripped(source, "IssuerOfPatientID")
        return b"name", _stripped(source, "PatientName"), _stripped(source, "PatientBirthDate")


def copy_header(source: Dataset, target: Dataset) -> None:
    """Copy patient and study of an image into a result, and add what is missing of Type 2 without a value.

    Parameters
    ----------
    source : Dataset
        Header of the image, as `pneumoscope.image.dicom.read_header` gives it.
    target : Dataset
        The result; elements of the same tags are replaced or removed.
    """
    with lenient_pydicom():
        for keyword in COPIED:
            tag = Tag(tag_for_keyword(keyword))  # type: ignore[arg-type]
            if tag in target:
                del target[tag]
            if tag not in source:
                continue
            if keyword == "SpecificCharacterSet":  # pydicom parses it on reading
                target[tag] = copy.deepcopy(source[tag])
            elif dictionary_VR(tag) == "SQ":
                _copy_sequence(source, target, tag)
            else:
                target[tag] = _raw(source, tag)
        for keyword in TYPE_2:
            if keyword not in target:
                setattr(target, keyword, "")


def encode(dataset: Dataset) -> bytes:
    """Return a result as the content of a DICOM file, Explicit VR Little Endian, copied texts unchanged."""
    with lenient_pydicom():
        # pydicom writes raw elements as they are only where encoding and character set are the original ones.
        correct_ambiguous_vr(dataset, True)
        dataset.set_original_encoding(False, True, dataset._character_set)
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _stripped(source: Dataset, keyword: str) -> bytes:
    tag = Tag(tag_for_keyword(keyword))  # type: ignore[arg-type]
    if tag not in source:
        return b""
    value = _raw(source, tag).value or b""
    return bytes(value).strip(b" \0")


def _raw(source: Dataset, tag: BaseTag) -> RawDataElement:
    """Return an element as the bytes that the file has for it."""
    element = source.get_item(tag)
    vr = dictionary_VR(tag)
    little = element.is_little_endian if isinstance(element, RawDataElement) else True
    if isinstance(element, RawDataElement) and (little or vr not in NUMBERS):
        value = element.value or b""
    else:  # already parsed, or a number of the other byte order
        value = _encoded(source, tag)
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


def _encoded(source: Dataset, tag: BaseTag) -> bytes:
    """Return a parsed element as bytes of Explicit VR Little Endian; its texts in the source's characters."""
    holder = Dataset()
    if "SpecificCharacterSet" in source:
        holder.SpecificCharacterSet = source.SpecificCharacterSet
    holder[tag] = source[tag]
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, holder, implicit_vr=False, little_endian=True)
    holder = pydicom.dcmread(io.BytesIO(buffer.getvalue()), force=True)
    element = holder.get_item(tag)
    return (element.value if isinstance(element, RawDataElement) else b"") or b""


def _copy_sequence(source: Dataset, target: Dataset, tag: BaseTag) -> None:
    """Copy a sequence; one that cannot be parsed is left out: all that are copied are optional."""
    try:
        element = copy.deepcopy(source[tag])
        holder = Dataset()
        holder[tag] = element
        pydicom.dcmwrite(io.BytesIO(), holder, implicit_vr=False, little_endian=True)
    except (*CUT_OFF, *DAMAGED):
        return
    target[tag] = element
