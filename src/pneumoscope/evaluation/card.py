"""The model card: what a bundle is for, how it was made, and how well it performs.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pneumoscope.domain import ANY_POPULATION, OperatingPoint
from pneumoscope.evaluation import card_results
from pneumoscope.evaluation.tables import fact_list, line, markdown_table, with_span
from pneumoscope.model.manifest import CARD_FILE, BundleManifest, Calibration, TrainingData
from pneumoscope.model.measures import PointMeasures
from pneumoscope.model.results import Results
from pneumoscope.predict.calibration import assumed_prevalence
from pneumoscope.report.rows import threshold_text

__all__ = ["write_card"]

NOT_STATED = "not stated"

_LIMITS = (
    "For frontal chest radiographs like those it was trained on. Another age group, hospital, device or "
    "projection can lower every measure below.",
    "It knows the classes named here and no others: an image with another disease may be predicted as any of "
    "them.",
    "The labels are those of the data set, with their errors.",
)
_WHEN_CHOSEN = (
    "Results when chosen are those of the images that the threshold was chosen on, which is optimistic."
)
_WHEN_CROSS_FITTED = "Results when chosen are the cross-fitted ones of the recalibration above."
_INPUT = ("size", "fit", "resampling", "denoise", "contrast", "window", "lungs")


def write_card(manifest: BundleManifest) -> str:
    """Write the model card of a bundle in Markdown.

    Parameters
    ----------
    manifest : BundleManifest
        What it does not state is marked ``not stated``; what was not measured is left out.
    """
    results = manifest.results
    evaluation = results.evaluation
    parts = [
        f"# {line(manifest.name)}",
        f"Predicts {_either(manifest.classes)} from a frontal chest radiograph, with calibrated "
        f"probabilities, and decides on {_target(manifest)}.",
        "## Intended use and limits",
        line(manifest.intended_use),
        "\n".join(f"- {line(limit)}" for limit in _limits(manifest)),
        *_provenance(manifest),
    ]
    if evaluation is not None:
        parts += card_results.evaluation_sections(evaluation)
    parts += card_results.recalibration_sections(manifest)
    parts += card_results.external_sections(results.external, manifest.target.name)
    parts += _decisions(manifest)
    parts += card_results.population_sections(results.populations)
    parts += card_results.view_sections(results.views)
    parts += _gate(manifest)
    if evaluation is not None:
        if evaluation.robustness is not None:
            parts += card_results.robustness_sections(evaluation.robustness)
        if evaluation.localisation is not None:
            parts += card_results.heat_map_sections(evaluation.localisation)
        parts += card_results.mistake_sections(evaluation)
    if (speed := results.speed) is not None:
        parts += [
            "## Speed",
            fact_list(
                [
                    ("Images per second, from file to prediction", f"{speed.images_per_second:.0f}"),
                    ("One image alone", f"{speed.latency_ms:.1f} ms"),
                    ("Measured on", speed.measured_on),
                ]
            ),
        ]
    hashes = {name: f"`{sha256}`" for name, sha256 in manifest.files.items() if name != CARD_FILE}
    if hashes:
        parts += ["## Files", markdown_table(("file", "sha256"), sorted(hashes.items()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _target(manifest: BundleManifest) -> str:
    target = manifest.target
    return (
        target.name if target.classes == (target.name,) else f"{target.name} ({_either_one(target.classes)})"
    )


def _either_one(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else _either(names)


def _limits(manifest: BundleManifest) -> list[str]:
    limits = [f"Trained on: {_populations([_trained_on(one) for one in manifest.provenance.data])}."]
    limits.append(
        f"Validated on: {_populations([one.describe_with_counts() for one in manifest.validated])}."
    )
    known = ["these"] if manifest.validated else []
    known += ["those under *External validation*"] if manifest.results.external else []
    than = f" than {' and '.join(known)}" if manifest.results.external else ""
    limits.append(f"Not evaluated on other populations{than}.")
    subtypes = manifest.target.classes
    if len(subtypes) > 1:
        limits.append(
            f"The classes of {manifest.target.name} ({_either(subtypes)}) often look alike: they are less "
            "certain than its presence."
        )
    return [*limits, *_LIMITS]


def _populations(described: Sequence[str]) -> str:
    return "; ".join(described) or NOT_STATED


def _trained_on(data: TrainingData) -> str:
    name = data.description.name or "an unnamed data set"
    return f"{name} ({_population(data)})"


def _population(data: TrainingData) -> str:
    population = data.description.population
    return population.describe() if population.is_stated else "population not stated"


def _provenance(manifest: BundleManifest) -> list[str]:
    provenance, spec = manifest.provenance, manifest.input.model_dump()
    steps = ", ".join(f"{name} {spec[name]}" for name in _INPUT if spec.get(name) not in {None, "", "none"})
    parts = ["## Provenance"]
    for data in provenance.data:
        parts += ["### Additional training data" if data.additional else "### Training data", _data_set(data)]
    if not provenance.data:
        parts += ["### Training data", f"Training data: {NOT_STATED}."]
    parts.append("### How it was made")
    if provenance.steps:
        parts.append("\n".join(f"{number}. {line(step)}" for number, step in enumerate(provenance.steps, 1)))
    facts: list[tuple[str, Any]] = [
        ("Recipe", provenance.recipe),
        ("Recipe sha256", provenance.recipe_sha256),
        ("Pretrained weights", provenance.pretrained or "none"),
        ("Precision", provenance.precision),
        ("Split by", provenance.split_method),
        ("Split seed", provenance.split_seed),
        ("Split fingerprint", provenance.split_fingerprint),
        ("Teachers (distillation)", ", ".join(provenance.teachers)),
        ("Code", provenance.code_version),
        ("Created", provenance.created),
        ("Recalibrated from", provenance.parent),
        ("Input", steps),
        ("Licence of the bundle", manifest.licence),
    ]
    return [*parts, fact_list(facts)]


def _data_set(data: TrainingData) -> str:
    stated = data.description
    return fact_list(
        [
            ("Data set", stated.name or NOT_STATED),
            ("Population", _population(data).removeprefix("population ")),
            ("Hospital", stated.hospital or stated.population.hospital or NOT_STATED),
            ("Source of the labels", stated.label_source or NOT_STATED),
            ("Licence of the data", stated.licence or NOT_STATED),
            ("Citation", stated.citation or NOT_STATED),
            ("Images trained on", None if data.images is None else f"{data.images:,}"),
            ("Fingerprint", data.fingerprint),
        ]
    )


def _decisions(manifest: BundleManifest) -> list[str]:
    """Calibration, operating points, prediction sets."""
    evaluation = manifest.results.evaluation
    parts = ["## Calibration and decisions", "### Calibration"]
    several = len(manifest.calibrations) > 1
    parts += [_calibrator(calibration, several=several) for calibration in manifest.calibrations]
    if evaluation is not None:
        parts += card_results.reliability_sections(evaluation)
    measured = {} if evaluation is None else evaluation.operating_points
    parts += _operating_points(manifest, measured)
    first = manifest.calibrations[0]
    if first.conformal:
        share = f" for {first.coverage:.0%}" if first.coverage is not None else ""
        parts += [
            "### Prediction sets",
            f"A prediction set holds the true class{share} of the patients of each class, one image "
            "each, that enough images of the calibration are labelled with, as long as the images are like "
            "those.",
        ]
    return parts


def _calibrator(calibration: Calibration, *, several: bool) -> str:
    calibrator = calibration.calibrator
    whose = f" for {_of_population(calibration.population)}" if several else ""
    if calibrator.method == "none":
        return f"The probabilities{whose} are those of the network; no calibrator was fitted."
    on = f", fitted on {line(calibrator.fitted_on)}" if calibrator.fitted_on else ""
    return (
        f"Probabilities{whose} are calibrated by {calibrator.method} scaling{on}.{_prevalence(calibration)}"
    )


def _prevalence(calibration: Calibration) -> str:
    if calibration.prevalence is None:
        return ""
    share = calibration.prevalence
    rounded = f"{share:.0%}" if 0.01 <= share <= 0.99 else threshold_text(share)
    fitted = f" {rounded} of these images are positive"
    site = assumed_prevalence(calibration)
    if site is not None and site != share:
        shown = threshold_text(site)
        return f"{fitted}; probabilities and thresholds are shifted to a prevalence of {shown}."
    return f"{fitted}; where fewer are, the same image means less."


def _of_population(name: str) -> str:
    return "any population" if name == ANY_POPULATION else line(name)


def _operating_points(manifest: BundleManifest, measured: dict[str, PointMeasures]) -> list[str]:
    """Return thresholds, why they were chosen, and what they reached: when chosen, then as evaluated."""
    default = manifest.default_operating_point
    points = [point for calibration in manifest.calibrations for point in calibration.operating_points]
    head = (
        "operating point",
        "population",
        "criterion",
        "threshold",
        "chosen on",
        "sensitivity when chosen",
        "specificity when chosen",
    )
    parts = [
        "### Operating points",
        _WHEN_CROSS_FITTED if _is_cross_fitted(manifest.results) else _WHEN_CHOSEN,
        markdown_table(head, [_point_row(point, default=point.name == default) for point in points]),
    ]
    if measured:
        rows = [
            (name, with_span(reached.sensitivity), with_span(reached.specificity))
            for name, reached in measured.items()
        ]
        several = ", each image at the threshold of its population" if len(manifest.calibrations) > 1 else ""
        parts += [
            f"In the evaluation above{several}:",
            markdown_table(("operating point", "sensitivity evaluated", "specificity evaluated"), rows),
        ]
    return parts


def _is_cross_fitted(results: Results) -> bool:
    """Whether the results of operating points are those of a recalibration, its own or the parent's."""
    return results.recalibration is not None or (
        results.parent is not None and results.parent.recalibration is not None
    )


def _point_row(point: OperatingPoint, *, default: bool) -> tuple[str, ...]:
    patients = "" if point.patients is None else f" ({point.patients:,} patients)"
    return (
        f"{point.name} (default)" if default else point.name,
        point.population,
        point.criterion or NOT_STATED,
        threshold_text(point.threshold, percent=False),
        (point.chosen_on or NOT_STATED) + patients,
        with_span(point.sensitivity),
        with_span(point.specificity),
    )


def _gate(manifest: BundleManifest) -> list[str]:
    """Return the limits that an image must satisfy, and how many did not."""
    limits = {
        name.replace("_", " "): f"{fact:g}" if isinstance(fact, float) else fact
        for name, fact in manifest.gate.model_dump().items()
        if isinstance(fact, bool | int | float | str)
    }
    evaluation = manifest.results.evaluation
    rejections = [] if evaluation is None else card_results.rejection_lines(evaluation)
    measured = card_results.gate_sections(manifest.results.gate)
    return ["## Rejected images", *rejections, *measured, "### Limits of the gate", fact_list(limits.items())]
