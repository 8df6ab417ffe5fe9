"""Before and after a recalibration as people read it: on the terminal and in the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pneumoscope.evaluation.markdown import table
from pneumoscope.evaluation.tables import with_interval

__all__ = ["comparison_rows", "recalibration_sections"]


def comparison_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the measure, the parent's figure and the recalibrated one, each with its interval, for people.

    Parameters
    ----------
    results : mapping
        ``results.recalibration`` of a bundle.
    """
    parent, own = results["parent"], results["recalibrated"]

    def row(name: str, *path: str) -> tuple[str, str, str]:
        return name, with_interval(_at(parent, path)), with_interval(_at(own, path))

    rows = [row("AUROC", "auroc"), row("ECE", "ece"), row("Brier score", "brier")]
    points = dict.fromkeys([*own["operating_points"], *parent["operating_points"]])
    for point in points:
        rows += [
            row(f"{point}: {measure}", "operating_points", point, measure)
            for measure in ("sensitivity", "specificity")
        ]
    for name in dict.fromkeys([*own.get("prediction_sets", {}), *parent.get("prediction_sets", {})]):
        words = "uncertain" if name == "uncertain" else f"sets of {name.removeprefix('holds_')} that hold it"
        rows.append(row(words, "prediction_sets", name))
    return rows


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any] | None:
    for name in path:
        if name not in tree:
            return None
        tree = tree[name]
    return tree


def recalibration_sections(bundle: Mapping[str, Any]) -> list[str]:
    """Return the card's sections of a recalibrated bundle: before and after, and whose the other figures are.

    Parameters
    ----------
    bundle : mapping
        Content of ``bundle.json``; nothing is returned for a bundle that was not recalibrated.
    """
    results = bundle.get("results") or {}
    if "recalibration" not in results:
        return []
    return [
        "## Recalibrated",
        *_recalibration_words(results, bundle["calibrator"]),
        table(("measure", "parent", "recalibrated"), comparison_rows(results["recalibration"])),
        "### Figures of the parent",
        _parent_words(results),
    ]


def _recalibration_words(results: Mapping[str, Any], calibrated: Mapping[str, Any]) -> list[str]:
    own, parent = results["recalibration"], results["parent"]
    counts = ", ".join(f"{count:,} {name}" for name, count in own["images_by_class"].items())
    words = [
        f"The network is that of {parent['identity']}; calibrator, operating points and prediction sets are "
        f"its own, fitted on {own['evaluated_on']}: {own['images']:,} images of {own['patients']:,} "
        f"patients ({counts}). The figures below are cross-fitted: {own['folds']} folds of patients, each "
        "evaluated with what was fitted on the others. Intervals: 95%, patients resampled.",
    ]
    if own["against_normal_only"]:
        words.append(
            "Pneumonia was calibrated against normal: the log-odds of pneumonia are scaled by "
            f"{calibrated['odds_scale']:.3f} and moved by {calibrated['odds_bias']:.3f}. The kinds of "
            "pneumonia have the parent's shares in it, and the parent's thresholds in prediction sets, which "
            "promise nothing here."
        )
    return words


def _parent_words(results: Mapping[str, Any]) -> str:
    parent = results["parent"]
    measured = parent["results"].get("pneumonia")
    if not measured:
        return f"No figures of {parent['identity']} were handed down."
    said = ", ".join(
        f"{name} {with_interval(measured[key])}"
        for key, name in (
            ("auroc", "AUROC"),
            ("sensitivity", "sensitivity"),
            ("specificity", "specificity"),
            ("ece", "ECE"),
        )
        if key in measured
    )
    on = parent["results"].get("evaluated_on") or "a labelled set"
    return (
        f"{parent['identity']} was measured on {on}, with its own calibrator and thresholds: {said}. "
        "Those figures are the parent's; this bundle answers otherwise."
    )
