"""Age and view position, as headers and tables state them in words."""

from __future__ import annotations

import re

from pneumoscope.domain import ViewPosition

__all__ = ["MAX_AGE", "age_in_years", "view_in"]

MAX_AGE = 125
# An Age String of DICOM (PS3.5 6.2), such as ``036Y`` or ``010M``; a number alone are years.
AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([YMWD])[A-Z]*\.?)?")
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
# Words of View Position, also in Spanish, French, Italian and German.
VIEWS = {
    ViewPosition.PA: frozenset({"PA"}),
    ViewPosition.AP: frozenset({"AP"}),
    ViewPosition.LATERAL: frozenset(
        {"LL", "RL", "LAT", "LLAT", "RLAT", "LATERAL", "LATERALE", "PERFIL", "PROFIL", "PROFILO", "SEITLICH"}
    ),
}
VIEW_MEANINGS = {
    ViewPosition.PA: "POSTEROANTERIOR",
    ViewPosition.AP: "ANTEROPOSTERIOR",
    ViewPosition.LATERAL: "LATERAL",
}
# Views that are neither, although they may have such a word in their name.
OTHER_VIEWS = frozenset(
    {
        *("DECUBITUS", "DECUB", "LLD", "RLD", "LORDOTIC", "AXIAL"),
        *("OBLIQUE", "OBL", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO"),
        *("MLO", "CC", "ML", "LM"),
    }
)
# Words that leave open which of them it is: FRONTAL, AP SUPINE, CHEST 1 VIEW.
NEUTRAL = re.compile(
    "FRONTALE?|FRONT|FACE|CHEST|THORAX|VIEWS?|SUPINE|ERECT|UPRIGHT|STANDING|SITTING|RECUMBENT|SEMI|PORTABLE|PORT|"
    "MOBILE|BEDSIDE|BED|INSPIRATION|EXPIRATION"
)


def age_in_years(stated: str) -> float | None:
    """Return an age in years from ``42``, ``042Y``, ``6 months`` or ``1.5``; None for anything else."""
    match = AGE.fullmatch(stated.strip().upper())
    if not match:
        return None
    years = float(match[1]) * YEARS[match[2] or "Y"]
    return years if years <= MAX_AGE else None


def view_in(stated: str) -> ViewPosition:
    """Find the view in words, such as ``XTABLE LATERAL``, ``AP SUPINE`` or ``postero-anterior``.

    It is unknown where they say only that it is frontal, or how the patient lay.
    """
    joined = re.sub(r"[^A-Z]", "", stated).replace("BILATERAL", "")
    if joined in {"L", "R"}:  # within a longer text these are the side of the body
        return ViewPosition.LATERAL
    if not (bare := NEUTRAL.sub("", joined)):
        return ViewPosition.UNKNOWN
    words = {joined, bare, *re.split(r"[^A-Z]+", stated.replace("P.A.", "PA").replace("A.P.", "AP"))}
    if words & OTHER_VIEWS:
        return ViewPosition.OTHER
    found = {view for view, names in VIEWS.items() if words & names}
    found |= {view for view, name in VIEW_MEANINGS.items() if name in joined}
    return found.pop() if len(found) == 1 else ViewPosition.OTHER
