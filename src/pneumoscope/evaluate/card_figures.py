"""What was measured, as sections of the model card; each function returns blocks of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pneumoscope.evaluate.markdown import facts, line, table
from pneumoscope.evaluate.tables import (
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

__all__ = ["calibration", "elsewhere", "heat_maps", "mistakes", "reading", "refusals", "robustness"]

Metrics = Mapping[str, Any]

_RATES = ("auroc", "sensitivity", "specificity")


def reading(metrics: Metrics, speaks_of: str) -> list[str]:
    """How well it reads: against normal, class by class, and in subgroups."""
    counts = ", ".join(f"{count:,} {name}" for name, count in metrics["pictures_by_class"].items())
    how = metrics["intervals"]
    return [
        "## How well it reads",
        f"Measured on {line(speaks_of) or 'a labelled set'}: {metrics['pictures']:,} pictures of "
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
            ("class", "pictures", "AUROC", "sensitivity", "specificity", "PPV", "F1"),
            (_class_row(name, metrics) for name in metrics["by_class"]),
        ),
        _overall(metrics),
        *_subgroups(metrics),
    ]


def _class_row(name: str, metrics: Metrics) -> tuple[str, ...]:
    part = metrics["by_class"][name]
    keys = ("auroc", "sensitivity", "specificity", "ppv", "f1")
    return (name, f"{metrics['pictures_by_class'][name]:,}", *(with_span(part[key]) for key in keys))


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
            f"{row['pictures']:,}",
            f"{row['pneumonia']:,}",
            *(with_span(row[key]) for key in _RATES),
        )
        for row in subgroup_rows(metrics)
    ]
    if not rows:
        return []
    return [
        "### Subgroups",
        "Groups of at least 20 pictures, at the same threshold. A dash marks what a group of one label "
        "cannot tell. A kind of pneumonia is held against all normal pictures.",
        table(("group", "pictures", "with pneumonia", "AUROC", "sensitivity", "specificity"), rows),
    ]


def calibration(metrics: Metrics) -> list[str]:
    """How far the probabilities can be taken at their word."""
    if not metrics.get("reliability"):
        return []
    pneumonia = metrics["pneumonia"]
    return [
        f"On the measured pictures the ECE (15 bins) is {with_span(pneumonia['ece'])} and the Brier score "
        f"{with_span(pneumonia['brier'])}. Reliability, pneumonia against normal:",
        table(
            ("probability", "pictures", "mean said", "found"),
            (
                (
                    f"{row['low']:.2f} to {row['high']:.2f}",
                    f"{row['pictures']:,}",
                    f"{row['said']:.3f}",
                    f"{row['found']:.3f}",
                )
                for row in metrics["reliability"]
            ),
        ),
    ]


def refusals(not_judged: Metrics | None, judged: int) -> list[str]:
    """How many of the measured pictures were refused, and why."""
    if not_judged is None:
        return []
    refused, unreadable = not_judged["rejected"], not_judged["unreadable"]
    total = judged + refused + unreadable
    text = f"Of {total:,} pictures {refused:,} ({refused / total:.1%}) were refused"
    text += f" and {unreadable:,} could not be read." if unreadable else "."
    if not_judged["reasons"]:
        counts = (f"{name.replace('_', ' ')} {count:,}" for name, count in not_judged["reasons"].items())
        text += f" Reasons: {', '.join(counts)}."
    return [text]


def robustness(result: Metrics) -> list[str]:
    """Corruptions and handling, one row a kind."""
    clean = result["clean"]
    head = ("what was done", "AUROC, weakest to strongest", "mean AUROC", "change of AUROC")
    parts = [
        "## Robustness",
        f"{result['pictures']:,} pictures of {result['patients']:,} patients, brought to {result['side']} "
        "pixels on the shorter side, changed, and judged through gate and lung crop as any other. Unchanged: "
        f"AUROC {with_span(clean['auroc'])}, sensitivity {with_span(clean['sensitivity'])}, specificity "
        f"{with_span(clean['specificity'])}, refused {value(clean['refused'])}. Means are over the "
        "strengths; a change is against the unchanged pictures, on the same resamples of patients.",
    ]
    for group, title in CHANGES.items():
        rows = map(_robustness_row, robustness_rows(result, group))
        parts += [f"### {title}", table((*head, "sensitivity", "specificity", "refused"), rows)]
    return parts


def _robustness_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        " ".join("–" if one is None else f"{one:.3f}" for one in row["strengths"]),
        with_span(row["auroc"]),
        change(row["auroc_change"]),
        with_span(row["sensitivity"]),
        with_span(row["specificity"]),
        value(row["refused"]),
    )


def elsewhere(sets: Mapping[str, Metrics]) -> list[str]:
    """Figures on further sets, at the same operating point."""
    if not sets:
        return []
    keys = ("auroc", "sensitivity", "specificity", "accuracy", "ece")
    rows = [
        (
            name,
            f"{one['pictures']:,}",
            *(with_span(one["pneumonia"][key]) for key in keys),
            f"{one['not_judged']['rejected']:,}",
        )
        for name, one in sets.items()
    ]
    parts = [
        "## On other sets",
        "Pneumonia or not, at the same threshold and with the same intervals; the refused are in no figure.",
        table(("set", "pictures", "AUROC", "sensitivity", "specificity", "accuracy", "ECE", "refused"), rows),
        facts((name, one.get("speaks_of")) for name, one in sets.items()),
    ]
    for name, one in sets.items():
        if groups := _subgroups(one):
            parts += [f"### Subgroups of {line(name)}", groups[-1]]
    return parts


def heat_maps(localisation: Metrics) -> list[str]:
    """Where the maps point, beside what chance would give."""
    return [
        "## Heat maps",
        "Where the maps point. By chance: what a map scores that knows nothing of the picture, by "
        "area or with the map of another patient; for blur, the probability of the blurred picture.",
        table(
            ("measure", "pictures", "value", "95% interval", "by chance"),
            (
                (row["name"], f"{row['pictures']:,}", *_cells(row["figure"]), value(row["chance"]))
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
            ("picture", "truth", "P(pneumonia)", "what went wrong"),
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
