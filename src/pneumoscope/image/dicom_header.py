"""Attributes of a DICOM header: age of the patient, view, spacing, and the UIDs of the image.

Nothing that names a patient is kept; Patient ID becomes a keyed hash.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import re
import secrets
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import pydicom

from pneumoscope.domain import ViewPosition
from pneumoscope.image.stated import MAX_AGE, age_in_years, view_in

__all__ = [
    "CUT_OFF",
    "DAMAGED",
    "PATIENT_TAGS",
    "Patient",
    "describe",
    "describe_patient",
    "element_value",
    "is_uid",
    "number",
    "numbers",
    "text",
]

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

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

# Values, without digits and signs, that stand for nothing.
ABSENT = frozenset({"", "UNKNOWN", "UNSPECIFIED", "NOTSPECIFIED", "UNDEFINED", "OTHER", "NONE", "NULL", "NA"})
STUDY_DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
# Dates that anonymisers write.
PLACEHOLDERS = frozenset({datetime.date(1, 1, 1), datetime.date(1900, 1, 1)})

SALT_VARIABLE = "PNEUMOSCOPE_SALT"
"""Environment variable with the salt of patient keys, for keys that stay the same between runs."""

# Without that variable keys are of no use outside this process, which is the safe default.
_process_salt = secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Patient:
    """What a header states about the patient, and the view.

    Parameters
    ----------
    key : str or None
        Salted hash of the Patient ID, equal within this process; None where there is none.
    age : float or None
        In years.
    sex : {"F", "M", "O", ""}
    view : ViewPosition
    study_uid : str or None
        Study Instance UID.
    """

    key: str | None
    age: float | None
    sex: str
    view: ViewPosition
    study_uid: str | None = None

    @property
    def identity(self) -> str | None:
        """Equal for images of one patient: the key; of one study, where there is none."""
        return self.key or self.study_uid


PATIENT_TAGS = (
    *("PatientID", "PatientAge", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("ViewPosition", "ViewCodeSequence", *STUDY_DATES),
)
"""The elements that `describe_patient` reads."""


def describe_patient(dataset: pydicom.Dataset) -> Patient:
    """Return what the header states about the patient."""
    sex = text(dataset, "PatientSex")
    key = _patient_key(text(dataset, "PatientID"))
    sex = sex if sex in {"F", "M", "O"} else ""
    return Patient(key, _age(dataset), sex, _view(dataset), _uid(dataset, "StudyInstanceUID"))


def describe(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Return the fields of `pneumoscope.domain.Radiograph` that the header gives, None where it has none."""
    patient = describe_patient(dataset)
    return {
        "spacing": _spacing(dataset),
        "view": patient.view,
        "modality": _stated(dataset, "Modality") or None,
        "body_part": _stated(dataset, "BodyPartExamined") or None,
        "age": patient.age,
        "patient_key": patient.key,
        "study_uid": patient.study_uid,
        "series_uid": _uid(dataset, "SeriesInstanceUID"),
        "sop_uid": _uid(dataset, "SOPInstanceUID"),
        "sop_class": _uid(dataset, "SOPClassUID"),
    }


def _patient_key(identity: str) -> str | None:
    """Return the salted hash of a patient's identity; None where it is empty."""
    if not identity:
        return None
    salt = os.environ.get(SALT_VARIABLE) or _process_salt
    return hashlib.blake2b(
        identity.encode(errors="replace"), digest_size=12, key=hashlib.blake2b(salt.encode()).digest()
    ).hexdigest()


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """Return the first number of an element; None where it has none that is finite."""
    found = numbers(dataset, keyword)
    return found[0] if found else None


def text(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return the first text of an element, upper case, stripped; empty where there is none.

    Control characters become spaces: what a header states reaches terminals.
    """
    value = element_value(dataset, keyword)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else ""
    return CONTROL.sub(" ", value).strip().upper() if isinstance(value, str) else ""


def element_value(dataset: pydicom.Dataset, keyword: str) -> Any:
    """Return an element's value, or None where there is none or it cannot be parsed."""
    try:
        return dataset.get(keyword)
    except (*CUT_OFF, *DAMAGED):
        return None


def numbers(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """Return the numbers of an element; none where one of them is not finite."""
    value = element_value(dataset, keyword)
    if value is None or isinstance(value, bytes):
        return []
    values = [value] if isinstance(value, str | int | float) else value
    try:
        found = [float(one) for one in values]
    except (TypeError, ValueError, OverflowError):
        return []
    return found if all(map(math.isfinite, found)) else []


def is_uid(value: str) -> bool:
    """Return whether a text has the length and the characters of a UID (PS3.5 9.1)."""
    return re.fullmatch(r"[0-9.]{1,64}", value) is not None


def _uid(dataset: pydicom.Dataset, keyword: str) -> str | None:
    """Return a UID; None where it is absent or has other characters than it may have."""
    uid = text(dataset, keyword)
    return uid if is_uid(uid) else None


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Return mm between rows and columns: in the patient if calibrated, else at the detector."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = numbers(dataset, keyword)
        if len(spacing) == 2 and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None


def _view(dataset: pydicom.Dataset) -> ViewPosition:
    """Return the view of View Position, else of the meaning of View Code Sequence."""
    stated = _stated(dataset, "ViewPosition")
    if stated:
        return view_in(stated)
    codes = element_value(dataset, "ViewCodeSequence")
    meaning = text(codes[0], "CodeMeaning") if isinstance(codes, pydicom.Sequence) and codes else ""
    view = view_in(meaning)
    return ViewPosition.UNKNOWN if view is ViewPosition.OTHER else view


def _stated(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return a text with single spaces; empty where it only states that nothing is known."""
    stated = " ".join(text(dataset, keyword).split())
    return "" if re.sub(r"[^A-Z]", "", stated) in ABSENT and not re.search(r"\d", stated) else stated


def _age(dataset: pydicom.Dataset) -> float | None:
    """Return the patient's age in years: of Patient's Age, else between birth and study.

    Patient's Age is an Age String (PS3.5 6.2), such as ``036Y`` or ``010M``; a number alone are years.
    """
    stated = text(dataset, "PatientAge")
    if years := age_in_years(stated):
        return years
    since_birth = _age_since_birth(dataset)
    # Zero stands for nothing where the birth date tells the age, and where it is not in a newborn's unit.
    newborn = 0.0 if years is not None and re.search("[DWM]", stated) else None
    return newborn if since_birth is None else since_birth


def _age_since_birth(dataset: pydicom.Dataset) -> float | None:
    born = _date(dataset, "PatientBirthDate")
    taken = next(filter(None, (_date(dataset, keyword) for keyword in STUDY_DATES)), None)
    if born is None or taken is None or born in PLACEHOLDERS or not born <= taken:
        return None
    months = 12 * (taken.year - born.year) + taken.month - born.month - (taken.day < born.day)
    # No more exact than an Age String.
    age = months / 12 if months < 24 else float(months // 12)
    return age if age <= MAX_AGE else None


def _date(dataset: pydicom.Dataset, keyword: str) -> datetime.date | None:
    """Return a date (PS3.5 6.2), such as ``20260131``, ``2026.01.31`` or ``2026-01-31``."""
    match = re.match(r"(\d{4})([.-]?)(\d{2})\2(\d{2})(?!\d)", text(dataset, keyword))
    if not match:
        return None
    try:
        return datetime.date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return None
