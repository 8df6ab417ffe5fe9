from __future__ import annotations

import pytest

from pneumoscope.report.age import age_band


@pytest.mark.parametrize(
    ("age", "band"),
    [
        (0.0, "under 1 year"),
        (0.99, "under 1 year"),
        (1.0, "1 to 5 years"),
        (17.9, "6 to 17 years"),
        (18.0, "18 to 64 years"),
        (120.0, "65 years or more"),
    ],
)
def test_age_bands(age, band):
    assert age_band(age) == band
