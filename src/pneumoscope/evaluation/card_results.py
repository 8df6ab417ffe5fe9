"""Measured results as sections of the model card; each function returns blocks of Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from pneumoscope.domain import Estimate, ViewPosition
from pneumoscope.evaluation.tables import (
    CHANGES,
    RobustnessRow,
    change,
    comparison_rows,
    fact_list,
    line,
    map_rows,
    markdown_table,
    measures_of,
    robustness_rows,
    span,
    subgroup_rows,
    summary,
    value,
    with_interval,
    with_span,
)
from pneumoscope.model.manifest import BundleManifest
from pneumoscope.model.measures import Detection, Localisation, Robustness
from pneumoscope.model.results import (
    EstimateMeasures,
    Evaluation,
    ExternalValidation,
    GateMeasures,
    ParentResults,
    RecalibrationSide,
)

__all__ = [
    "evaluation_sections",
    "external_sections",
    "gate_sections",
    "heat_map_sections",
    "mistake_sections",
    "population_sections",
    "recalibration_sections",
    "rejection_lines",
    "reliability_sections",
    "robustness_sections",
    "view_sections",
]


def evaluation_sections(evaluation: Evaluation) -> list[str]:
    """Detection of the target, classes, and subgroups."""
    counts = ", ".join(f"{count:,} {name}" for name, count in evaluation.images_by_class.items())
    how = evaluation.intervals
    target = evaluation.target.name
    return [
        "## Evaluation",
        f"Measured on {line(evaluation.evaluated_on) or 'a labelled set'}: {evaluation.images:,} images of "
        f"{evaluation.patients:,} patients ({counts}). {summary(evaluation)}",
        f"Intervals: 95%, {how.method}, {how.resamples:,} resamples, seed {how.seed}.",
        f"### Detection of {target}",
        markdown_table(
            ("measure", "value", "95% interval"),
            ((name, *_cells(getattr(evaluation.detection, key))) for key, name, _ in measures_of(target)),
        ),
        "### Classes",
        "The most probable class is the prediction; each class against all others.",
        markdown_table(
            ("class", "images", "AUROC", "sensitivity", "specificity", "PPV", "F1"),
            (_class_row(name, evaluation) for name in evaluation.by_class),
        ),
        _overall(evaluation),
        *_subgroups(evaluation, target),
    ]


def _class_row(name: str, evaluation: Evaluation) -> tuple[str, ...]:
    part = evaluation.by_class[name]
    estimates = (part.auroc, part.sensitivity, part.specificity, part.ppv, part.f1)
    return (name, f"{evaluation.images_by_class[name]:,}", *map(with_span, estimates))


def _overall(evaluation: Evaluation) -> str:
    overall = evaluation.all_classes
    return fact_list(
        [
            ("Accuracy", with_span(overall.accuracy)),
            ("Balanced accuracy", with_span(overall.balanced_accuracy)),
            ("Macro AUROC", with_span(overall.macro_auroc)),
            ("Macro F1", with_span(overall.macro_f1)),
            ("MCC", with_span(overall.mcc)),
            *(
                (f"{pair}, AUROC among images of either", with_span(one.auroc))
                for pair, one in evaluation.subtypes.items()
            ),
        ]
    )


def _subgroups(measured: ExternalValidation, target: str) -> list[str]:
    rows = [
        (
            name,
            f"{part.images:,}",
            f"{part.positive:,}",
            *map(with_span, (part.auroc, part.sensitivity, part.specificity)),
        )
        for name, part in subgroup_rows(measured)
    ]
    if not rows:
        return []
    return [
        "### Subgroups",
        "Groups of at least 20 images, at the same threshold. A dash marks what is undefined in a group of "
        f"one label. A subtype is evaluated against all images without {target}.",
        markdown_table(("group", "images", f"with {target}", "AUROC", "sensitivity", "specificity"), rows),
    ]


def reliability_sections(evaluation: Evaluation) -> list[str]:
    """Predicted probability against observed frequency."""
    if not evaluation.reliability:
        return []
    detection = evaluation.detection
    return [
        f"On the evaluated images the ECE (15 bins) is {with_span(detection.ece)} and the Brier score "
        f"{with_span(detection.brier)}. Reliability of the probability of {evaluation.target.name}:",
        markdown_table(
            ("probability", "images", "mean predicted", "observed"),
            (
                (
                    f"{row.low:.2f} to {row.high:.2f}",
                    f"{row.images:,}",
                    f"{row.predicted:.3f}",
                    f"{row.observed:.3f}",
                )
                for row in evaluation.reliability
            ),
        ),
    ]


def rejection_lines(evaluation: Evaluation) -> list[str]:
    """How many of the images were rejected, and why."""
    counts = evaluation.not_evaluated
    if counts is None:
        return []
    total = evaluation.images + counts.rejected + counts.unreadable
    text = f"Of {total:,} images {counts.rejected:,} ({counts.rejected / total:.1%}) were rejected"
    text += f" and {counts.unreadable:,} could not be read." if counts.unreadable else "."
    if counts.reasons:
        reasons = (f"{name.replace('_', ' ')} {count:,}" for name, count in counts.reasons.items())
        text += f" Reasons: {', '.join(reasons)}."
    return [text]


def gate_sections(measures: Mapping[str, GateMeasures]) -> list[str]:
    """Both errors of the gate's classifier: chests rejected, other images passed."""
    if not measures:
        return []
    head = ("images", "number", "rejected", "rejected, none of their kind fitted on")
    parts = [
        "Images that the classifier of frontal chests rejects. It was fitted on chest radiographs of these "
        "sources against other images of these kinds (*made*: drawn, or made of chests), and is measured on "
        "held-out patients and files; in the last column, on a source or kind left out of the fit.",
    ]
    for chest, title in ((True, "Chest radiographs"), (False, "Other images")):
        rows = [
            (name, f"{one.images:,}", f"{one.rejected:.1%}", _share(one.rejected_left_out))
            for name, one in measures.items()
            if one.chest is chest
        ]
        parts += [f"### {title}", markdown_table(head, rows)]
    return parts


def population_sections(measures: Mapping[str, EstimateMeasures]) -> list[str]:
    """How well the population is estimated where the age is not stated."""
    if not measures:
        return []
    rows = [(name, f"{one.images:,}", f"{one.correct:.1%}") for name, one in measures.items()]
    return [
        "Where neither header nor manifest states the age, the network's features say which population an "
        "image belongs to, and so which calibration and thresholds apply. Measured on held-out images:",
        markdown_table(("population", "images", "assigned to it"), rows),
    ]


def view_sections(measures: Mapping[str, EstimateMeasures]) -> list[str]:
    """How well the view is estimated where it is not stated."""
    if not measures:
        return []
    views = sorted(measures.items())
    rows = [(ViewPosition(name).words, f"{one.images:,}", f"{one.correct:.1%}") for name, one in views]
    return [
        "Where neither header nor manifest states the view, it is estimated likewise: PA or AP of an image "
        "that is predicted on, lateral or not of one that is rejected for its features. Measured on held-out "
        "images; lateral views and other images by classifiers that were fitted without them:",
        markdown_table(("view", "images", "assigned to it"), rows),
    ]


def _share(share: float | None) -> str:
    return "not measured: the only source" if share is None else f"{share:.1%}"


def robustness_sections(result: Robustness) -> list[str]:
    """Corruptions and handling, one row each."""
    clean = result.clean
    head = ("change", "AUROC, weakest to strongest", "mean AUROC", "difference of AUROC")
    parts = [
        "## Robustness",
        f"{result.images:,} images of {result.patients:,} patients, reduced to {result.side} pixels on the "
        "shorter side, changed, and evaluated through gate and lung crop as any other. Unchanged: AUROC "
        f"{with_span(clean.auroc)}, sensitivity {with_span(clean.sensitivity)}, specificity "
        f"{with_span(clean.specificity)}, rejected {value(clean.rejected)}. Means are over the strengths; a "
        "difference is from the unchanged images, on the same resamples of patients.",
    ]
    for group, title in CHANGES.items():
        rows = map(_robustness_row, robustness_rows(result, group))
        parts += [
            f"### {title}",
            markdown_table((*head, "sensitivity", "specificity", "rejected"), rows),
        ]
    return parts


def _robustness_row(row: RobustnessRow) -> tuple[str, ...]:
    measures = row.measures
    return (
        row.name,
        " ".join("–" if one is None else f"{one:.3f}" for one in row.strengths),
        with_span(measures.auroc),
        change(measures.auroc_change),
        with_span(measures.sensitivity),
        with_span(measures.specificity),
        value(measures.rejected),
    )


def external_sections(sets: Mapping[str, ExternalValidation], target: str) -> list[str]:
    """Results on further sets, at the same operating point."""
    if not sets:
        return []
    rows = []
    for name, one in sets.items():
        detection = one.detection
        estimates = (
            detection.auroc,
            detection.sensitivity,
            detection.specificity,
            detection.accuracy,
            detection.ece,
        )
        rejected = 0 if one.not_evaluated is None else one.not_evaluated.rejected
        rows.append((name, f"{one.images:,}", *map(with_span, estimates), f"{rejected:,}"))
    head = ("set", "images", "AUROC", "sensitivity", "specificity", "accuracy", "ECE", "rejected")
    parts = [
        "## External validation",
        f"Detection of {target} on other sets, at the same threshold and with the same intervals; rejected "
        "images are in none of the measures.",
        markdown_table(head, rows),
        fact_list((name, _evaluated_on(one)) for name, one in sets.items()),
    ]
    for name, one in sets.items():
        if groups := _subgroups(one, target):
            parts += [f"### Subgroups of {line(name)}", groups[-1]]
        if one.localisation is not None:
            parts += [f"### Heat maps of {line(name)}", *_maps(one.localisation)]
    return parts


def _evaluated_on(one: ExternalValidation) -> str:
    known = one.population.describe() if one.population else ""
    return "; ".join(part for part in (one.evaluated_on, known) if part)


def heat_map_sections(localisation: Localisation) -> list[str]:
    """Where the maps point, beside the chance level."""
    return ["## Heat maps", *_maps(localisation)]


def _maps(localisation: Localisation) -> list[str]:
    return [
        "Where the maps point. Chance level: what a map unrelated to the image reaches, by its area or with "
        "the map of another patient; for blur, the probability of the blurred image.",
        markdown_table(
            ("measure", "images", "value", "95% interval", "chance level"),
            (
                (row.name, f"{row.images:,}", *_cells(row.estimate), value(row.chance))
                for row in map_rows(localisation)
            ),
        ),
    ]


def mistake_sections(evaluation: Evaluation) -> list[str]:
    """The most confident mistakes, by path below the data's folder."""
    if not evaluation.mistakes:
        return []
    return [
        "## Worst mistakes",
        "The most confident ones at the threshold, at most five missed and five false alarms.",
        markdown_table(
            ("image", "label", f"P({evaluation.target.name})", "mistake"),
            (
                (
                    f"`{one.path}`",
                    one.label,
                    f"{one.p_target:.3f}",
                    "missed" if one.missed else "false alarm",
                )
                for one in evaluation.mistakes
            ),
        ),
    ]


def recalibration_sections(manifest: BundleManifest) -> list[str]:
    """Before and after a recalibration, and the parent's own results; nothing for other bundles."""
    own, parent = manifest.results.recalibration, manifest.results.parent
    if parent is None:
        return []
    if own is None:
        return ["## Results of the parent", _shifted_words(parent)]
    counts = ", ".join(f"{count:,} {name}" for name, count in own.images_by_class.items())
    words = [
        f"The network is that of {parent.identity}; calibrator, operating points and prediction sets are "
        f"fitted on {line(own.evaluated_on)}: {own.images:,} images of {own.patients:,} patients ({counts}). "
        f"The results below are cross-fitted: {own.folds} folds of patients, each evaluated with what was "
        "fitted on the others. Intervals: 95%, patients resampled.",
    ]
    if own.target_only:
        calibrator, target = manifest.calibrations[0].calibrator, manifest.target.name
        words.append(
            f"Only {target} was calibrated, against the rest: its log-odds are scaled by "
            f"{calibrator.odds_scale:.3f} and shifted by {calibrator.odds_bias:.3f}. Its classes have the "
            "parent's shares in it, and the parent's thresholds in prediction sets, whose coverage is not "
            "guaranteed here."
        )
    return [
        "## Recalibration",
        *words,
        markdown_table(("measure", "parent", "recalibrated"), comparison_rows(own)),
        "### Results of the parent",
        _parent_words(parent),
    ]


def _parent_words(parent: ParentResults) -> str:
    if parent.evaluation is None:
        return f"{parent.identity} had no results of its own."
    return (
        f"{parent.identity} was measured on {_measured(parent.evaluation)}, with its own calibrator and "
        "thresholds. These results are not those of this bundle, whose decisions differ."
    )


def _shifted_words(parent: ParentResults) -> str:
    """Return the results of the parent of a bundle that makes the same decisions for another prevalence."""
    identity, recalibration = parent.identity, parent.recalibration
    if parent.evaluation is not None:
        measured = f"{identity} was measured on {_measured(parent.evaluation)}."
    elif recalibration is not None:
        on, side = line(recalibration.evaluated_on) or "a labelled set", recalibration.recalibrated
        measured = f"{identity} was recalibrated on {on}, cross-fitted: {_listed(side)}."
    else:
        return f"{identity} had no results of its own."
    return (
        f"{measured} This bundle makes the same decisions, so that sensitivity and specificity hold for it. "
        "Its probabilities are for another prevalence, so that the ECE does not, nor, where there is a "
        "calibration for each population, the AUROC."
    )


def _measured(evaluation: Evaluation) -> str:
    return f"{line(evaluation.evaluated_on) or 'a labelled set'}: {_listed(evaluation.detection)}"


def _listed(measures: Detection | RecalibrationSide) -> str:
    names = {"AUROC": "auroc", "sensitivity": "sensitivity", "specificity": "specificity", "ECE": "ece"}
    found = {name: getattr(measures, field, None) for name, field in names.items()}
    return ", ".join(
        f"{name} {with_interval(one)}" for name, one in found.items() if one and one.value is not None
    )


def _cells(estimate: Estimate) -> tuple[str, str]:
    return value(estimate), span(estimate) or estimate.reason
