"""The model card: what a bundle is for, what it was made from, and how well it reads.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pneumoscope.evaluation import card_figures
from pneumoscope.evaluation.calibrate import SENSITIVITY_FLOOR, SPECIFICITY_FLOOR
from pneumoscope.evaluation.comparison import recalibration_sections
from pneumoscope.evaluation.markdown import facts, line, table
from pneumoscope.evaluation.tables import value, with_span

__all__ = ["write_card"]

_LIMITS = (
    "It speaks of frontal chest radiographs like those it was trained on. Another age group, hospital, "
    "device or projection can lower every figure below.",
    "It knows the findings named here and no others: a image with another disease may be called either way.",
    "The labels are those of the data set and hold its errors.",
)
_KINDS = "Bacterial and viral pneumonia often look alike; the kind is far less certain than the presence."
# By what the description of the training data says: whom they show, and under which licence.
_TRAINING_SETS = {
    "kermany": (
        "children of 1 to 5 years, AP view, of one hospital (Guangzhou Women and Children's Medical Center)",
        "CC BY 4.0 (Kermany et al., Cell 2018)",
    ),
    "nih": (
        "adults, AP and PA view, of one hospital (NIH Clinical Center), with labels mined from reports",
        "NIH ChestX-ray14: free to use, with acknowledgment (Wang et al., CVPR 2017)",
    ),
}
_ADULTS_MEASURED = (
    "Whom else it was measured on stands under *On other sets*; for anybody else, nobody knows."
)
_ADULTS_UNKNOWN = "It was not measured on adults: for them, nobody knows how well it reads."
_PROVENANCE = (
    ("data_description", "Data"),
    ("data_fingerprint", "Data fingerprint"),
    ("also_description", "Learnt from besides, never evaluated on"),
    ("also_fingerprint", "Its fingerprint"),
    ("recipe", "Recipe"),
    ("recipe_sha256", "Recipe sha256"),
    ("precision", "Precision"),
    ("split_method", "Split by"),
    ("split_seed", "Split seed"),
    ("split_fingerprint", "Split fingerprint"),
    ("teachers", "Taught by"),
    ("code_version", "Code"),
    ("created", "Made"),
    ("parent", "Made from"),
)
_INPUT = ("size", "fit", "resampling", "denoise", "contrast", "window", "lungs")
_FLOORS = {
    "screening": f"sensitivity at least {SENSITIVITY_FLOOR:.2f}",
    "balanced": "amid the greatest sums of sensitivity and specificity",
    "rule-in": f"specificity at least {SPECIFICITY_FLOOR:.2f}",
}


def write_card(bundle: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Write the model card of a bundle.

    Parameters
    ----------
    bundle : mapping
        Content of ``bundle.json`` (``manifest.model_dump(mode="json")``). What it lacks is left out. Its
        ``results`` may hold ``evaluated_on``, the images that were measured; ``elsewhere``, figures on other
        sets by name; ``gate`` and ``speed``, mappings of facts.
    metrics : mapping
        From `evaluate_scores`, with ``not_evaluated``, ``localisation`` and ``robustness`` where they were
        measured; empty for a bundle that was not measured.

    Returns
    -------
    str
        Markdown.
    """
    results = bundle.get("results") or {}
    others = results.get("elsewhere") or {}
    parts = [
        f"# {line(bundle['name'])}",
        f"Reads a frontal chest radiograph as {_either(bundle['findings'])}, with calibrated probabilities.",
        "## Intended use and limits",
        line(bundle.get("intended_use", "")),
        "\n".join(f"- {limit}" for limit in _limits(bundle, bool(others))),
        "## Where it comes from",
        facts(_origin(bundle)),
    ]
    if metrics:
        parts += card_figures.reading(metrics, str(results.get("evaluated_on", "")))
    parts += recalibration_sections(bundle)
    parts += card_figures.elsewhere(others)
    parts += _answers(bundle, metrics)
    parts += _gate(bundle, metrics)
    if robustness := metrics.get("robustness"):
        parts += card_figures.robustness(robustness)
    if localisation := metrics.get("localisation"):
        parts += card_figures.heat_maps(localisation)
    parts += card_figures.mistakes(metrics.get("mistakes", ()))
    if speed := results.get("speed"):
        parts += ["## Speed", facts((str(name), fact) for name, fact in speed.items())]
    hashes = {name: f"`{sha256}`" for name, sha256 in bundle.get("files", {}).items() if name != "card.md"}
    if hashes:
        parts += ["## Files", table(("file", "sha256"), sorted(hashes.items()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _training_sets(bundle: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return whom the known training sets show, and their licences, in the order of what was learnt from."""
    provenance = bundle.get("provenance") or {}
    described = (str(provenance.get(name, "")).lower() for name in ("data_description", "also_description"))
    return [known for text in described for name, known in _TRAINING_SETS.items() if name in text]


def _limits(bundle: Mapping[str, Any], others: bool) -> list[str]:
    limits = []
    if sets := _training_sets(bundle):
        population = "; and on ".join(shown for shown, _ in sets)
        limits = [f"Trained on {population}.", _ADULTS_MEASURED if others else _ADULTS_UNKNOWN]
    return [*limits, *_LIMITS, *((_KINDS,) if "viral" in bundle["findings"] else ())]


def _origin(bundle: Mapping[str, Any]) -> list[tuple[str, Any]]:
    provenance = bundle.get("provenance") or {}
    spec = bundle.get("input") or {}
    steps = ", ".join(f"{name} {spec[name]}" for name in _INPUT if spec.get(name) not in {None, "", "none"})
    return [
        *((label, _plain(provenance.get(name))) for name, label in _PROVENANCE),
        ("Licence of the data", "; ".join(licence for _, licence in _training_sets(bundle))),
        ("Input", steps),
        ("Licence", bundle.get("licence")),
    ]


def _plain(fact: object) -> object:
    return ", ".join(map(str, fact)) if isinstance(fact, list | tuple) else fact


def _answers(bundle: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Calibration, operating points, prediction sets."""
    calibrator = bundle.get("calibrator") or {}
    parts = ["## How it answers", "### Calibration"]
    method = calibrator.get("method", "none")
    if method == "none":
        parts.append("The probabilities are those of the network; no calibrator was fitted.")
    else:
        on = line(calibrator.get("fitted_on") or "")
        parts.append(f"Calibrated by {method} scaling" + (f", fitted on {on}." if on else "."))
    parts += card_figures.calibration(metrics)
    parts += _operating_points(bundle, metrics.get("operating_points") or {})
    if bundle.get("conformal"):
        share = 1 - float(bundle.get("conformal_alpha") or 0.1)
        parts += [
            "### Prediction sets",
            f"Prediction sets hold the true class for {share:.0%} of the images of each class, as long as "
            "they are like those of the calibration.",
        ]
    return parts


def _operating_points(bundle: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """Return the thresholds, what they were chosen for, and what they gave; as chosen, then as measured."""
    default = bundle.get("default_operating_point")
    rows = []
    for point in bundle.get("operating_points") or ():
        name, here = point["name"], measured.get(point["name"], {})
        rows.append(
            (
                f"{name} (default)" if name == default else name,
                _FLOORS.get(name, ""),
                f"{point['threshold']:.4f}",
                *(value(_figure(point.get(rate))) for rate in ("sensitivity", "specificity")),
                *(with_span(here.get(rate)) for rate in ("sensitivity", "specificity")),
            )
        )
    if not rows:
        return []
    head = ("operating point", "chosen for", "threshold", "sens. when chosen", "spec. when chosen")
    return [
        "### Operating points",
        "Figures when chosen are those of the images the threshold was chosen on, which flatters them; the "
        "measured ones are those of the images above.",
        table((*head, "sensitivity measured", "specificity measured"), rows),
    ]


def _figure(number: float | None) -> dict[str, float | None]:
    return {"value": number, "low": None, "high": None}


def _gate(bundle: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Return what a image must satisfy, and how many did not."""
    limits = {
        name.replace("_", " "): f"{fact:g}" if isinstance(fact, float) else fact
        for name, fact in (bundle.get("gate") or {}).items()
        if isinstance(fact, bool | int | float | str)
    }
    measured = (bundle.get("results") or {}).get("gate") or {}
    parts = [
        *card_figures.rejections(metrics.get("not_evaluated"), metrics.get("images", 0)),
        facts((str(name), fact) for name, fact in measured.items()),
        facts(limits.items()),
    ]
    return ["## What it rejects", *parts] if any(parts) else []


def _either(findings: Sequence[str]) -> str:
    return f"{', '.join(findings[:-1])} or {findings[-1]}"
