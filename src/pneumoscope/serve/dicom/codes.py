"""The coded concepts of result objects, and the texts that may go into them."""

from __future__ import annotations

import re
import unicodedata

import highdicom as hd
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from pneumoscope.domain import CodedConcept as DomainConcept

__all__ = [
    "ABSENT",
    "ARTIFICIAL_INTELLIGENCE",
    "CAUTION",
    "CLASS_NOT_RULED_OUT",
    "CLASS_PROBABILITY",
    "COMMENT",
    "CONCLUSION",
    "COVERAGE",
    "MODEL_CLASS",
    "NOT_EVALUATED",
    "NO_UNITS",
    "OPERATING_POINT",
    "POPULATION",
    "PRESENCE",
    "PRESENT",
    "PROBABILITY",
    "PROCEDURE",
    "REASON",
    "REJECTED_FOR_QUALITY",
    "SCHEME",
    "SOURCE",
    "SOURCE_OF_MEASUREMENT",
    "THRESHOLD",
    "UNDETERMINED",
    "VISUAL_EXPLANATION",
    "coded",
    "coding_schemes",
    "plain",
    "private",
]

SCHEME = "99PNEUMOSCOPE"
"""Designator of the concepts that no terminology has."""

PROBABILITY = CodedConcept("122157", "DCM", "Probability")
PRESENCE = CodedConcept("121052", "DCM", "Presence of property")
PRESENT = CodedConcept("52101004", "SCT", "Present")
ABSENT = CodedConcept("272519000", "SCT", "Absent")
UNDETERMINED = CodedConcept("373068000", "SCT", "Undetermined")
NOT_EVALUATED = CodedConcept("373121007", "SCT", "Not Evaluated")
OPERATING_POINT = CodedConcept("111081", "DCM", "CAD Operating Point Description")
POPULATION = CodedConcept("121405", "DCM", "Population description")
CONCLUSION = CodedConcept("121077", "DCM", "Conclusion")
COMMENT = CodedConcept("121106", "DCM", "Comment")
SOURCE = CodedConcept("260753009", "SCT", "Source")
SOURCE_OF_MEASUREMENT = CodedConcept("121112", "DCM", "Source of Measurement")
VISUAL_EXPLANATION = CodedConcept("130401", "DCM", "Visual explanation")
NO_UNITS = CodedConcept("1", "UCUM", "no units")
ARTIFICIAL_INTELLIGENCE = codes.cid7162.ArtificialIntelligence
PROCEDURE = CodedConcept("43468-8", "LN", "XR unspecified body region")
REJECTED_FOR_QUALITY = CodedConcept("113001", "DCM", "Rejected for Quality Reasons")

THRESHOLD = CodedConcept("threshold", SCHEME, "Threshold of the operating point")
CLASS_PROBABILITY = CodedConcept("p_class", SCHEME, "Probability of a class")
MODEL_CLASS = CodedConcept("class", SCHEME, "Class of the model")
CLASS_NOT_RULED_OUT = CodedConcept("not_ruled_out", SCHEME, "Class that is not ruled out")
COVERAGE = CodedConcept("coverage", SCHEME, "Coverage of the prediction set")
REASON = CodedConcept("reason", SCHEME, "Reason why the image was not predicted")
CAUTION = CodedConcept("caution", SCHEME, "Caution about the prediction")

MAX_MEANING = 64


def coding_schemes() -> list[CodingSchemeIdentificationItem]:
    """Return what identifies the private scheme in an object (PS3.3 C.12.1)."""
    return [
        hd.coding_schemes.CodingSchemeIdentificationItem(
            SCHEME, name="Pneumoscope", version="1", responsible_organization="The Pneumoscope authors"
        )
    ]


def plain(text: str, length: int | None = None) -> str:
    """Return a text in ASCII, which every character set contains, without the characters DICOM reserves.

    Parameters
    ----------
    text : str
        Such as the name of a model or hospital.
    length : int, optional
        The most characters that its value representation allows.
    """
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    # Backslash and tilde are other characters in ISO-IR 13; a backslash also separates values.
    letters = re.sub(r"[\\~\x00-\x1f\x7f]", " ", letters).strip()
    return letters[:length].strip() if length else letters


def private(value: str) -> CodedConcept:
    """Return a concept of the private scheme for a class of the model, or for the code of a reason."""
    meaning = plain(value.replace("_", " "), MAX_MEANING) or "unnamed"
    code = re.sub(r"[^A-Za-z0-9]+", "_", meaning).strip("_").lower() or "unnamed"
    return CodedConcept(code, SCHEME, meaning)


def coded(concept: DomainConcept | None, name: str) -> CodedConcept:
    """Return the concept of a target: its own code, or a private one where the model states none."""
    if concept is None:
        return private(name)
    return CodedConcept(concept.value, concept.scheme, plain(concept.meaning, MAX_MEANING))
