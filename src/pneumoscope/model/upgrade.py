"""Bundles of format 1 in the terms of format 2.

Format 1 knew one finding, pneumonia: class ``normal`` first, and every other class a subtype of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pneumoscope.model.manifest import BundleManifest
from pneumoscope.model.upgrade_results import format_1_decisions, upgrade_results

__all__ = ["PNEUMONIA_CODE", "upgrade_format_1"]

PNEUMONIA_CODE = {"value": "233604007", "scheme": "SCT", "meaning": "Pneumonia"}
"""SNOMED CT."""

_CRITERIA = {
    "screening": "sensitivity at least 0.98",
    "balanced": "near the maximum of Youden's J",
    "rule-in": "specificity at least 0.98",
}


def upgrade_format_1(stored: Mapping[str, Any]) -> BundleManifest:
    """Return the manifest of a format 1 ``bundle.json`` in format 2.

    Parameters
    ----------
    stored : mapping
        The parsed file.

    Raises
    ------
    ValueError
        If something is missing or wrong; pydantic's ValidationError is one.
    """
    try:
        manifest = BundleManifest.model_validate(_content(stored))
        results = upgrade_results(
            stored.get("results") or {},
            same_decisions=format_1_decisions(stored),
            decisions=manifest.decision_sha256,
        )
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"not as format 1 has it ({type(error).__name__}: {error})") from error
    return manifest.model_copy(update={"results": results})


def _content(stored: Mapping[str, Any]) -> dict[str, Any]:
    classes = tuple(stored.get("findings", ()))
    kept = ("name", "default_operating_point", "intended_use", "licence", "files")
    content: dict[str, Any] = {name: stored[name] for name in kept if name in stored}
    results = stored.get("results") or {}
    return content | {
        "format_version": 2,
        "state": _state(stored, results),
        "classes": classes,
        "target": {"name": "pneumonia", "classes": classes[1:], "code": PNEUMONIA_CODE},
        "input": _input(stored.get("input") or {}),
        "calibrations": [_calibration(stored)],
        "validated": _validated(stored.get("gate") or {}),
        "gate": {k: v for k, v in (stored.get("gate") or {}).items() if k != "validated_ages"},
        "provenance": _provenance(stored.get("provenance") or {}),
    }


def _state(stored: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    if "pneumonia" in results or "recalibration" in results:
        return "evaluated"
    fitted = stored.get("conformal") is not None or "calibrator" in stored
    return "calibrated" if fitted else "draft"


def _input(spec: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in spec.items() if name != "channels"}
    return kept | ({"window": "image"} if kept.get("window") == "picture" else {})


def _calibration(stored: Mapping[str, Any]) -> dict[str, Any]:
    calibrator = stored.get("calibrator") or {}
    return {
        "calibrator": calibrator,
        "operating_points": [
            {
                "name": point.get("name"),
                "threshold": point.get("threshold"),
                "criterion": _CRITERIA.get(point.get("name"), ""),
                "chosen_on": calibrator.get("fitted_on", ""),
                **{
                    measure: None if point.get(measure) is None else {"value": point[measure]}
                    for measure in ("sensitivity", "specificity")
                },
            }
            for point in stored.get("operating_points") or [{"name": "balanced", "threshold": 0.5}]
        ],
        "conformal": stored.get("conformal"),
        "conformal_alpha": stored.get("conformal_alpha"),
    }


def _validated(gate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the ages that format 1 gave to every bundle: those under its upper bound."""
    end = (gate.get("validated_ages") or (0, 18))[1]
    return [{"name": "children" if end == 18 else "patients", "ages": (0, int(end) - 1)}]


def _provenance(stored: Mapping[str, Any]) -> dict[str, Any]:
    moved = {"data_description", "data_fingerprint", "also_description", "also_fingerprint"}
    data = [
        {
            "description": {"name": stored[f"{part}_description"]},
            "fingerprint": stored.get(f"{part}_fingerprint", ""),
            "additional": part == "also",
        }
        for part in ("data", "also")
        if stored.get(f"{part}_description")
    ]
    return {name: value for name, value in stored.items() if name not in moved} | {"data": data}
