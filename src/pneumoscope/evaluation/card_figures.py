"""What was measured, as sections of the model card; each function returns blocks of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pneumoscope.evaluation.markdown import facts, line, table
from pneumoscope.evaluation.tables import (
    CHANGES,
    MEASURES,
    change,
    map_measures,
    robustness_rows,
    span,
    subgroup_rows,
    summary,
    value,
    with_span,
)

__all__ = ["calibration", "elsewhere", "heat_maps", "mistakes", "reading", "rejections", "robustness"]

Metrics = Mapping[str, Any]

_RATES = ("auroc", "sensitivity", "specificity")


def reading(metrics: Metrics, evaluated_on: str) -> list[str]:
    """How well it reads: against normal, class by class, and in subgroups."""
    counts = ", ".join(f"{count:,} {name}" for name, count in metrics["images_by_class"].items())
    how = metrics["intervals"]
    return [
        "## How well it reads",
        f"Measured on {line(evaluated_on) or 'a labelled set'}: {metrics['images']:,} images of "
        f"{metrics['patients']:,} patients ({counts}). {summary(metrics)}",
        f"Intervals: 95%, {how['method']}, {how['resamples']:,} resamples, seed {how['seed']}.",
        "### Pneumonia or not",
        table(
            ("measure", "value", "95% interval"),
            ((name, *_cells(metrics["pneumonia"][key])) for key, name, _ in MEASURES),
        ),
        "### Classes",
        "The most likely class is the answer; each class against all others.",
        table(
            ("class", "images", "AUROC", "sensitivity", "specificity", "PPV", "F1"),
            (_class_row(name, metrics) for name in metrics["by_class"]),
        ),
        _overall(metrics),
        *_subgroups(metrics),
    ]


def _class_row(name: str, metrics: Metrics) -> tuple[str, ...]:
    part = metrics["by_class"][name]
    keys = ("auroc", "sensitivity", "specificity", "ppv", "f1")
    return (name, f"{metrics['images_by_class'][name]:,}", *(with_span(part[key]) for key in keys))


def _overall(metrics: Metrics) -> str:
    overall, kind = metrics["all_classes"], metrics["bacterial_vs_viral"]
    rows = [
        ("Accuracy", with_span(overall["accuracy"])),
        ("Balanced accuracy", with_span(overall["balanced_accuracy"])),
        ("Macro AUROC", with_span(overall["macro_auroc"])),
        ("Macro F1", with_span(overall["macro_f1"])),
        ("MCC", with_span(overall["mcc"])),
    ]
    if kind:
        rows.append(("Bacterial against viral, AUROC among true pneumonia", with_span(kind["auroc"])))
    return facts(rows)


def _subgroups(metrics: Metrics) -> list[str]:
    rows = [
        (
            row["name"],
            f"{row['images']:,}",
            f"{row['pneumonia']:,}",
            *(with_span(row[key]) for key in _RATES),
        )
        for row in subgroup_rows(metrics)
    ]
    if not rows:
        return []
    return [
        "### Subgroups",
        "Groups of at least 20 images, at the same threshold. A dash marks what a group of one label "
        "cannot tell. A subtype of pneumonia is held against all normal images.",
        table(("group", "images", "with pneumonia", "AUROC", "sensitivity", "specificity"), rows),
    ]


def calibration(metrics: Metrics) -> list[str]:
    """How far the probabilities can be taken at their word."""
    if not metrics.get("reliability"):
        return []
    pneumonia = metrics["pneumonia"]
    return [
        f"On the measured images the ECE (15 bins) is {with_span(pneumonia['ece'])} and the Brier score "
        f"{with_span(pneumonia['brier'])}. Reliability, pneumonia against normal:",
        table(
            ("probability", "images", "mean said", "found"),
            (
                (
                    f"{row['low']:.2f} to {row['high']:.2f}",
                    f"{row['images']:,}",
                    f"{row['said']:.3f}",
                    f"{row['found']:.3f}",
                )
                for row in metrics["reliability"]
            ),
        ),
    ]


def rejections(not_evaluated: Metrics | None, evaluated: int) -> list[str]:
    """How many of the measured images were rejected, and why."""
    if not_evaluated is None:
        return []
    rejected, unreadable = not_evaluated["rejected"], not_evaluated["unreadable"]
    total = evaluated + rejected + unreadable
    text = f"Of {total:,} images {rejected:,} ({rejected / total:.1%}) were rejected"
    text += f" and {unreadable:,} could not be read." if unreadable else "."
    if not_evaluated["reasons"]:
        counts = (f"{name.replace('_', ' ')} {count:,}" for name, count in not_evaluated["reasons"].items())
        text += f" Reasons: {', '.join(counts)}."
    return [text]


def robustness(result: Metrics) -> list[str]:
    """Corruptions and handling, one row a kind."""
    clean = result["clean"]
    head = ("what was done", "AUROC, weakest to strongest", "mean AUROC", "change of AUROC")
    parts = [
        "## Robustness",
        f"{result['images']:,} images of {result['patients']:,} patients, brought to {result['side']} "
        "pixels on the shorter side, changed, and evaluated through gate and lung crop as any other. Unchanged: "
        f"AUROC {with_span(clean['auroc'])}, sensitivity {with_span(clean['sensitivity'])}, specificity "
        f"{with_span(clean['specificity'])}, rejected {value(clean['rejected'])}. Means are over the "
        "strengths; a change is against the unchanged images, on the same resamples of patients.",
    ]
    for group, title in CHANGES.items():
        rows = map(_robustness_row, robustness_rows(result, group))
        parts += [f"### {title}", table((*head, "sensitivity", "specificity", "rejected"), rows)]
    return parts


def _robustness_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        " ".join("–" if one is None else f"{one:.3f}" for one in row["strengths"]),
        with_span(row["auroc"]),
        change(row["auroc_change"]),
        with_span(row["sensitivity"]),
        with_span(row["specificity"]),
        value(row["rejected"]),
    )


def elsewhere(sets: Mapping[str, Metrics]) -> list[str]:
    """Figures on further sets, at the same operating point."""
    if not sets:
        return []
    keys = ("auroc", "sensitivity", "specificity", "accuracy", "ece")
    rows = [
        (
            name,
            f"{one['images']:,}",
            *(with_span(one["pneumonia"][key]) for key in keys),
            f"{one['not_evaluated']['rejected']:,}",
        )
        for name, one in sets.items()
    ]
    parts = [
        "## On other sets",
        "Pneumonia or not, at the same threshold and with the same intervals; the rejected are in no figure.",
        table(("set", "images", "AUROC", "sensitivity", "specificity", "accuracy", "ECE", "rejected"), rows),
        facts((name, one.get("evaluated_on")) for name, one in sets.items()),
    ]
    for name, one in sets.items():
        if groups := _subgroups(one):
            parts += [f"### Subgroups of {line(name)}", groups[-1]]
    return parts


def heat_maps(localisation: Metrics) -> list[str]:
    """Where the maps point, beside what chance would give."""
    return [
        "## Heat maps",
        "Where the maps point. By chance: what a map scores that knows nothing of the image, by "
        "area or with the map of another patient; for blur, the probability of the blurred image.",
        table(
            ("measure", "images", "value", "95% interval", "by chance"),
            (
                (row["name"], f"{row['images']:,}", *_cells(row["figure"]), value(row["chance"]))
                for row in map_measures(localisation)
            ),
        ),
    ]


def mistakes(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The most confident mistakes, by path below the data's folder."""
    if not found:
        return []
    return [
        "## Worst mistakes",
        "The most confident ones at the threshold, at most five missed and five false alarms; look at them.",
        table(
            ("image", "truth", "P(pneumonia)", "what went wrong"),
            (
                (
                    f"`{one['path']}`",
                    one["label"],
                    f"{one['p_pneumonia']:.3f}",
                    "missed" if one["missed"] else "false alarm",
                )
                for one in found
            ),
        ),
    ]


def _cells(figure: Mapping[str, Any]) -> tuple[str, str]:
    return value(figure), span(figure) or str(figure["reason"])
