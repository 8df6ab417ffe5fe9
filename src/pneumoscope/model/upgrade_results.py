"""Measured results of format 1 in the names of format 2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pneumoscope.model.manifest import CARD_FILE, HEAD_FILE, sha256_of_json
from pneumoscope.model.results import (
    Evaluation,
    ExternalValidation,
    ParentResults,
    RecalibrationResult,
    Results,
    Speed,
)

__all__ = ["format_1_decisions", "reworded", "upgrade_results"]

_RENAMED = {
    "speaks_of": "evaluated_on",
    "pictures": "images",
    "pictures_by_class": "images_by_class",
    "not_judged": "not_evaluated",
    "by_kind": "by_subtype",
    "said": "predicted",
    "found": "observed",
    "p_pneumonia": "p_target",
    "refused": "rejected",
    "refused_change": "rejected_change",
    "against_normal_only": "target_only",
    "views": "copies",
}
_NORMAL = "normal"
# What an entry on another set does not hold.
_OWN_ONLY = frozenset(Evaluation.model_fields) - frozenset(ExternalValidation.model_fields)


def upgrade_results(stored: Mapping[str, Any], *, same_decisions: str, decisions: str) -> Results:
    """Return the results of a bundle of format 1.

    Parameters
    ----------
    stored : mapping
        The part ``results`` of its ``bundle.json``.
    same_decisions : str
        `format_1_decisions` of that ``bundle.json``: external results of other decisions are left out.
    decisions : str
        `BundleManifest.decision_sha256` of the upgraded manifest.

    Raises
    ------
    ValueError
        If a part is not as format 1 has it.
    """
    others = stored.get("elsewhere") or {}
    external = {
        name: ExternalValidation(
            **{key: part for key, part in _evaluation(entry).items() if key not in _OWN_ONLY},
            decisions=decisions,
        )
        for name, entry in others.items()
        if entry.get("answers") == same_decisions
    }
    parent = stored.get("parent")
    recalibration = stored.get("recalibration")
    return Results(
        evaluation=_measured(stored),
        external=external,
        recalibration=None if recalibration is None else _recalibration(recalibration),
        parent=None
        if parent is None
        else ParentResults(identity=parent["identity"], evaluation=_measured(parent["results"])),
        speed=_speed(stored.get("speed")),
    )


def format_1_decisions(raw: Mapping[str, Any]) -> str:
    """Return the hash that format 1 gave to all that decides: networks, input, gate, calibration."""
    parts = ("calibrator", "operating_points", "default_operating_point", "conformal")
    calibration = sha256_of_json({name: raw.get(name) for name in parts})
    files = {name: sha256 for name, sha256 in raw["files"].items() if name not in {CARD_FILE, HEAD_FILE}}
    return sha256_of_json(
        {"files": files, "calibration": calibration, "input": raw["input"], "gate": raw.get("gate")}
    )


def _measured(stored: Mapping[str, Any]) -> Evaluation | None:
    return Evaluation(**_evaluation(stored)) if "pneumonia" in stored else None


def _renamed(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {
            _RENAMED.get(name, name): reworded(part) if name == "reason" else _renamed(part)
            for name, part in tree.items()
        }
    return [_renamed(part) for part in tree] if isinstance(tree, list | tuple) else tree


def reworded(reason: str) -> str:
    """Return the reason why a measure is undefined in the words of format 2."""
    for old, new in (("picture", "image"), ("called so", "predicted so"), ("called", "predicted as")):
        reason = reason.replace(old, new)
    return reason.replace("all answers", "all predictions")


def _evaluation(stored: Mapping[str, Any]) -> dict[str, Any]:
    new: dict[str, Any] = _renamed(stored)
    counted = {name: new.pop(name, None) for name in ("pneumonia", "bacterial_vs_viral")}
    if counted["pneumonia"]:
        new["detection"] = counted["pneumonia"]
    if counted["bacterial_vs_viral"]:
        new["subtypes"] = {"bacterial vs viral": counted["bacterial_vs_viral"]}
    for section in ("by_source", "by_subtype", "by_view", "by_age", "by_sex"):
        for part in new.get(section, {}).values():
            part["positive"] = part.pop("pneumonia")
    new["by_age"] = {_age_band(name): part for name, part in new.get("by_age", {}).items()}
    if classes := new.get("classes"):
        new["target"] = {"name": "pneumonia", "classes": [name for name in classes if name != _NORMAL]}
    return {name: part for name, part in new.items() if name in Evaluation.model_fields}


def _age_band(name: str) -> str:
    if name == "0 years":
        return "under 1 year"
    return re.sub(r"(\d+)-(\d+)", r"\1 to \2", name).replace("and over", "or more")


def _recalibration(stored: Mapping[str, Any]) -> RecalibrationResult:
    new = _renamed(stored)
    for side in ("parent", "recalibrated"):
        if sets := new[side].get("prediction_sets"):
            coverage = {
                name.removeprefix("holds_"): part for name, part in sets.items() if name != "uncertain"
            }
            new[side]["prediction_sets"] = {"coverage": coverage, "uncertain": sets["uncertain"]}
    return RecalibrationResult(**new)


def _speed(stored: Mapping[str, str] | None) -> Speed | None:
    if not stored:
        return None
    new = {
        name.replace("Picture", "Image").replace("picture", "image"): fact for name, fact in stored.items()
    }
    return Speed(
        images_per_second=float(new["Images a second, from file to answer"]),
        latency_ms=float(new["One image alone"].split()[0]),
        measured_on=new["Measured on"],
    )
