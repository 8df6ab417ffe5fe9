"""Attributes of a DICOM header: age of the patient, view, spacing, and the UIDs of the image.

Nothing that names a patient is kept; Patient ID becomes a keyed hash.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import struct
import zlib
from typing import Any

import pydicom

from pneumoscope.domain import ViewPosition

__all__ = ["CUT_OFF", "DAMAGED", "describe", "number", "patient_key", "text"]

# What pydicom raises on damaged data sets: it has no common base class for them.
CUT_OFF = (EOFError, OSError, struct.error, pydicom.errors.BytesLengthException, zlib.error)
DAMAGED = (
    pydicom.errors.InvalidDicomError,
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)

VIEWS = {
    "PA": ViewPosition.PA,
    "AP": ViewPosition.AP,
    "LL": ViewPosition.LATERAL,
    "RL": ViewPosition.LATERAL,
    "LAT": ViewPosition.LATERAL,
    "LATERAL": ViewPosition.LATERAL,
}
VIEW_MEANINGS = {
    "postero-anterior": ViewPosition.PA,
    "antero-posterior": ViewPosition.AP,
    "lateral": ViewPosition.LATERAL,
}
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

SALT_VARIABLE = "PNEUMOSCOPE_SALT"
"""Environment variable with the salt of patient keys, for keys that stay the same between runs."""

# Without that variable keys are of no use outside this process, which is the safe default.
_process_salt = secrets.token_hex(16)


def describe(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Return the fields of `pneumoscope.domain.Radiograph` that the header gives, None where it has none."""
    return {
        "spacing": _spacing(dataset),
        "view": _view(dataset),
        "modality": text(dataset, "Modality") or None,
        "body_part": text(dataset, "BodyPartExamined") or None,
        "age": _age(text(dataset, "PatientAge")),
        "patient_key": patient_key(text(dataset, "PatientID")),
        "study_uid": _uid(dataset, "StudyInstanceUID"),
        "series_uid": _uid(dataset, "SeriesInstanceUID"),
        "sop_uid": _uid(dataset, "SOPInstanceUID"),
        "sop_class": _uid(dataset, "SOPClassUID"),
    }


def patient_key(identity: str) -> str | None:
    """Return the salted hash of a patient's identity; None where it is empty."""
    if not identity:
        return None
    salt = os.environ.get(SALT_VARIABLE) or _process_salt
    return hashlib.blake2b(
        identity.encode(errors="replace"), digest_size=12, key=hashlib.blake2b(salt.encode()).digest()
    ).hexdigest()


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """Return the first number of an element; None where it has none that is finite."""
    numbers = _numbers(dataset, keyword)
    return numbers[0] if numbers else None


def text(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return the first text of an element, upper case, stripped; empty where there is none."""
    value = _value(dataset, keyword)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else ""
    return value.strip(" \0").upper() if isinstance(value, str) else ""


def _value(dataset: pydicom.Dataset, keyword: str) -> Any:
    """Return an element's value, or None where there is none or it cannot be parsed."""
    try:
        return dataset.get(keyword)
    except (*CUT_OFF, *DAMAGED):
        return None


def _numbers(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    value = _value(dataset, keyword)
    if value is None or isinstance(value, bytes):
        return []
    values = [value] if isinstance(value, str | int | float) else value
    try:
        numbers = [float(one) for one in values]
    except (TypeError, ValueError, OverflowError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _uid(dataset: pydicom.Dataset, keyword: str) -> str | None:
    """Return a UID (PS3.5 9.1); None where it is absent or has other characters than it may have."""
    uid = text(dataset, keyword)
    return uid if re.fullmatch(r"[0-9.]{1,64}", uid) else None


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Return mm between rows and columns: in the patient if calibrated, else at the detector."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        numbers = _numbers(dataset, keyword)
        if len(numbers) == 2 and min(numbers) > 0:
            return numbers[0], numbers[1]
    return None


def _view(dataset: pydicom.Dataset) -> ViewPosition:
    """Return the view of View Position, else of the meaning of View Code Sequence."""
    stated = text(dataset, "ViewPosition")
    if stated:
        return VIEWS.get(stated, ViewPosition.OTHER)
    codes = _value(dataset, "ViewCodeSequence")
    meaning = text(codes[0], "CodeMeaning").lower() if isinstance(codes, pydicom.Sequence) and codes else ""
    for words, view in VIEW_MEANINGS.items():
        if words in meaning:
            return view
    return ViewPosition.UNKNOWN


def _age(stated: str) -> float | None:
    """Return years from an Age String (PS3.5 6.2), such as ``036Y`` or ``010M``."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", stated)
    return int(match[1]) * YEARS[match[2]] if match else None
