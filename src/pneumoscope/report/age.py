"""Ages as people outside may see them."""

from __future__ import annotations

import math

__all__ = ["AGE_BANDS", "age_band"]

AGE_BANDS = (
    (1.0, "under 1 year"),
    (6.0, "1 to 5 years"),
    (18.0, "6 to 17 years"),
    (65.0, "18 to 64 years"),
    (math.inf, "65 years or more"),
)


def age_band(age: float) -> str:
    """Return the band that an age in years falls into: an exact age would tell more than is needed."""
    return next(name for end, name in AGE_BANDS if age < end)
