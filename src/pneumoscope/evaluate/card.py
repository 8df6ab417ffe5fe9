"""The model card: what a bundle is for, what it was made from, and how well it reads.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pneumoscope.evaluate.tables import MEASURES, map_measures, span, summary, value

__all__ = ["write_card"]

_LIMITS = (
    "It speaks of frontal chest radiographs like those it was trained on. Another age group, hospital, "
    "device or projection can lower every figure below.",
    "It knows the findings named here and no others: a picture with another disease may be called either "
    "way.",
    "The labels are those of the data set and hold its errors.",
)
_KINDS = "Bacterial and viral pneumonia often look alike; the kind is far less certain than the presence."
_PROVENANCE = (
    ("data_description", "Data"),
    ("data_fingerprint", "Data fingerprint"),
    ("recipe", "Recipe"),
    ("recipe_sha256", "Recipe sha256"),
    ("split_method", "Split by"),
    ("split_seed", "Split seed"),
    ("code_version", "Code"),
    ("created", "Made"),
    ("parent", "Made from"),
)
_INPUT = ("size", "fit", "resampling", "denoise", "contrast", "window", "lungs")


def write_card(bundle: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Write the model card of a bundle.

    Parameters
    ----------
    bundle : mapping
        Content of ``bundle.json`` (``manifest.model_dump(mode="json")``). What it lacks is left out. Its
        ``results`` may hold ``speaks_of``, the pictures that were measured, and ``speed``, a mapping of
        facts.
    metrics : mapping
        From `evaluate_scores`; empty for a bundle that was not measured.

    Returns
    -------
    str
        Markdown.
    """
    results = bundle.get("results") or {}
    parts = [
        f"# {bundle['name']}",
        f"Reads a frontal chest radiograph as {_either(bundle['findings'])}, with calibrated probabilities.",
        "## Intended use and limits",
        _line(bundle.get("intended_use", "")),
        "\n".join(
            f"- {limit}" for limit in (*_LIMITS, *((_KINDS,) if "viral" in bundle["findings"] else ()))
        ),
        "## Where it comes from",
        _facts(_origin(bundle)),
    ]
    if metrics:
        parts += _measured(metrics, str(results.get("speaks_of", "")))
    parts += _answers(bundle)
    if speed := results.get("speed"):
        parts += ["## Speed", _facts((str(name), fact) for name, fact in speed.items())]
    hashes = {name: f"`{sha256}`" for name, sha256 in bundle.get("files", {}).items() if name != "card.md"}
    if hashes:
        parts += ["## Files", _table(("file", "sha256"), sorted(hashes.items()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(bundle: Mapping[str, Any]) -> list[tuple[str, Any]]:
    provenance = bundle.get("provenance") or {}
    spec = bundle.get("input") or {}
    steps = ", ".join(f"{name} {spec[name]}" for name in _INPUT if spec.get(name) not in {None, "", "none"})
    return [
        *((label, provenance.get(name)) for name, label in _PROVENANCE),
        ("Input", steps),
        ("Licence", bundle.get("licence")),
    ]


def _measured(metrics: Mapping[str, Any], speaks_of: str) -> list[str]:
    counts = ", ".join(f"{count:,} {name}" for name, count in metrics["pictures_by_class"].items())
    how = metrics["intervals"]
    parts = [
        "## How well it reads",
        f"Measured on {speaks_of or 'a labelled set'}: {metrics['pictures']:,} pictures of "
        f"{metrics['patients']:,} patients ({counts}). {summary(metrics)}",
        "### Pneumonia or not",
        _table(
            ("measure", "value", "95% interval"),
            ((name, *_cells(metrics["pneumonia"][key])) for key, name, _ in MEASURES),
        ),
        "### Classes",
        "The most likely class is the answer; each class against all others.",
        _table(
            ("class", "pictures", "AUROC", "sensitivity", "specificity", "PPV", "F1"),
            (_class_row(name, metrics) for name in metrics["by_class"]),
        ),
        _overall(metrics),
    ]
    if metrics["by_source"]:
        parts += [
            "### Sources",
            "Sources of at least 20 pictures; a dash where a source holds one class only.",
            _table(
                ("source", "pictures", "with pneumonia", "AUROC", "sensitivity", "specificity"),
                (_source_row(name, part) for name, part in metrics["by_source"].items()),
            ),
        ]
    if localisation := metrics.get("localisation"):
        parts += [
            "### Heat maps",
            "Where the maps point. By chance: what a map scores that knows nothing of the picture, by "
            "area or with the map of another patient; for blur, the probability of the blurred picture.",
            _table(
                ("measure", "pictures", "value", "95% interval", "by chance"),
                (
                    (row["name"], f"{row['pictures']:,}", *_cells(row["figure"]), value(row["chance"]))
                    for row in map_measures(localisation)
                ),
            ),
        ]
    parts.append(f"Intervals: 95%, {how['method']}, {how['resamples']:,} resamples, seed {how['seed']}.")
    return parts


def _class_row(name: str, metrics: Mapping[str, Any]) -> tuple[str, ...]:
    part = metrics["by_class"][name]
    keys = ("auroc", "sensitivity", "specificity", "ppv", "f1")
    return (name, f"{metrics['pictures_by_class'][name]:,}", *(_with_span(part[key]) for key in keys))


def _source_row(name: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    keys = ("auroc", "sensitivity", "specificity")
    return (name, f"{part['pictures']:,}", f"{part['pneumonia']:,}", *(_with_span(part[key]) for key in keys))


def _overall(metrics: Mapping[str, Any]) -> str:
    overall, kind = metrics["all_classes"], metrics["bacterial_vs_viral"]
    facts = [
        ("Accuracy", _with_span(overall["accuracy"])),
        ("Balanced accuracy", _with_span(overall["balanced_accuracy"])),
        ("Macro AUROC", _with_span(overall["macro_auroc"])),
        ("Macro F1", _with_span(overall["macro_f1"])),
        ("MCC", _with_span(overall["mcc"])),
    ]
    if kind:
        facts.append(("Bacterial against viral, AUROC among true pneumonia", _with_span(kind["auroc"])))
    return _facts(facts)


def _answers(bundle: Mapping[str, Any]) -> list[str]:
    calibrator = bundle.get("calibrator") or {}
    parts = ["## How it answers"]
    method = calibrator.get("method", "none")
    if method == "none":
        parts.append("The probabilities are those of the network; no calibrator was fitted.")
    else:
        on = calibrator.get("fitted_on")
        parts.append(f"Calibrated by {method} scaling" + (f", fitted on {on}." if on else "."))
    points = bundle.get("operating_points") or ()
    default = bundle.get("default_operating_point")
    rows = [
        (
            f"{point['name']} (default)" if point["name"] == default else point["name"],
            f"{point['threshold']:.4f}",
            _number(point.get("sensitivity")),
            _number(point.get("specificity")),
        )
        for point in points
    ]
    if rows:
        parts.append(
            "Operating points, with sensitivity and specificity on the pictures they were chosen on:"
        )
        parts.append(_table(("operating point", "threshold", "sensitivity", "specificity"), rows))
    if bundle.get("conformal"):
        share = 1 - float(bundle.get("conformal_alpha") or 0.1)
        parts.append(
            f"Prediction sets hold the true class for {share:.0%} of the pictures of each class, as long as "
            "they are like those of the calibration."
        )
    return parts


def _either(findings: Sequence[str]) -> str:
    return f"{', '.join(findings[:-1])} or {findings[-1]}"


def _cells(figure: Mapping[str, Any]) -> tuple[str, str]:
    return value(figure), span(figure) or str(figure["reason"])


def _with_span(figure: Mapping[str, Any]) -> str:
    interval = span(figure)
    return f"{value(figure)} ({interval})" if interval else value(figure)


def _number(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"


def _line(text: object) -> str:
    """Return text that cannot break a table or a line of Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _facts(facts: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(f"- {name}: {_line(fact)}" for name, fact in facts if fact is not None and fact != "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_line(cell) for cell in line) + " |" for line in lines)
