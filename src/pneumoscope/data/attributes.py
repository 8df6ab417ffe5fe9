"""What tables say of a patient and a view, in the words of DICOM; what cannot be made out is unknown."""

from __future__ import annotations

import math
import re

__all__ = ["parse_age", "parse_sex", "parse_view"]

# DICOM's age string (PS3.5 6.2): a number, and days, weeks, months or years; tables often leave out the unit.
_AGE = re.compile(r"(\d+(?:\.\d+)?)([DWMY]?)", re.IGNORECASE)
_PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0, "": 1.0}
MAX_AGE = 130
_SEX = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "O": "O", "OTHER": "O"}
_VIEW = {"AP": "AP", "PA": "PA", "LL": "LL", "RL": "LL", "LAT": "LL", "LATERAL": "LL"}


def parse_age(text: object) -> float | None:
    """Return an age in years from ``42``, ``042Y`` or ``6M``; None where it is none, or above 130."""
    found = _AGE.fullmatch(str("" if text is None else text).strip())
    if not found:
        return None
    years = float(found[1]) / _PER_YEAR[found[2].upper()]
    return years if math.isfinite(years) and years <= MAX_AGE else None


def parse_sex(text: object) -> str:
    """Return ``F``, ``M`` or ``O``, or an empty text."""
    return _SEX.get(str(text).strip().upper(), "")


def parse_view(text: object) -> str:
    """Return the view position, ``AP``, ``PA`` or ``LL``, or an empty text."""
    return _VIEW.get(str(text).strip().upper(), "")
