"""The plots of a report; each function returns a matplotlib Figure and touches no global state.

Save one with ``figure.savefig(path)``; `pneumoscope.evaluation.report` embeds them in a page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pneumoscope.errors import require_extra
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.scores import BoolArray, FloatArray, ScoredSet, Threshold
from pneumoscope.evaluation.tables import threshold as text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "confusion_matrix",
    "insertion_deletion",
    "precision_recall",
    "reliability",
    "roc",
    "score_histograms",
    "search_history",
    "training_curves",
]

# On a page these three follow its light or dark theme; the colours of the data serve both.
INK, MUTED, GRID = "#1f2a33", "#66727d", "#d9dfe4"
ACCENT, SECOND = "#2f7fb8", "#dd7a2f"
# Classes in their order; the target as one class has the accent.
COLOURS = ("#2a9d8a", SECOND, "#8a6bd1", "#c2557a", "#8a8f3c", "#5b7fa6", "#a9714b")


def _figure(width: float, height: float, **grid: Any) -> tuple[Figure, list[Axes]]:
    with require_extra("evaluate", "Drawing plots"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: list[Axes] = list(figure.subplots(squeeze=False, **grid).flat)
    for ax in axes:
        ax.set_axisbelow(True)
        ax.grid(True, color=GRID, linewidth=0.8)
        ax.tick_params(which="both", colors=MUTED, length=0, labelsize=9)
        ax.patch.set_visible(False)
        ax.spines[:].set_visible(False)
    return figure, axes


def _titles(ax: Axes, x: str, y: str, title: str = "") -> None:
    ax.set_xlabel(x, color=MUTED, fontsize=9.5)
    ax.set_ylabel(y, color=MUTED, fontsize=9.5)
    if title:
        ax.set_title(title, color=INK, fontsize=11, loc="left", pad=10)


def _legend(ax: Axes, where: Literal["best", "lower left", "lower right"]) -> None:
    ax.legend(loc=where, frameon=False, fontsize=9, labelcolor=INK)


def _unit_square(ax: Axes) -> None:
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_yticks(np.linspace(0, 1, 6))


def _colour(scored: ScoredSet, index: int) -> str:
    alone = scored.target_mask[index] and scored.target_mask.sum() == 1
    return ACCENT if alone else COLOURS[index % len(COLOURS)]


def confusion_matrix(counts: Sequence[Sequence[int]], names: Sequence[str], title: str = "") -> Figure:
    """Draw counts; the tint of a cell is its share of the true class.

    Parameters
    ----------
    counts : sequence of sequence of int, shape (K, K)
        Rows true, columns predicted.
    names : sequence of str, length K
        Class names.
    title : str
        Above the matrix.
    """
    with require_extra("evaluate", "Drawing plots"):
        from matplotlib.patches import Rectangle
    k = len(names)
    figure, (ax,) = _figure(1.5 + 1.15 * k, 1.2 + 0.95 * k)
    ax.grid(visible=False)
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            share = count / sum(line) if sum(line) else 0.0
            colour = ACCENT if row == column else SECOND
            face = Rectangle(
                (column + 0.02, row + 0.02), 0.96, 0.96, facecolor=colour, alpha=0.08 + 0.87 * share
            )
            ax.add_patch(face)
            ink = "white" if share > 0.55 else INK
            ax.text(column + 0.5, row + 0.43, f"{count:,}", color=ink, fontsize=14, ha="center", va="center")
            ax.text(
                column + 0.5, row + 0.7, f"{share:.1%}", color=ink, fontsize=8.5, ha="center", va="center"
            )
    ax.set(xlim=(0, k), ylim=(k, 0))
    ax.set_xticks(np.arange(k) + 0.5, names)
    ax.set_yticks(np.arange(k) + 0.5, names, rotation=90, va="center")
    ax.tick_params(labelsize=9.5, labelcolor=INK)
    _titles(ax, "predicted", "true", title)
    return figure


def roc(scored: ScoredSet, threshold: Threshold | None = None) -> Figure:
    """Draw the ROC curve of the target against the rest, and of each other class against the rest.

    Parameters
    ----------
    scored : ScoredSet
        Evaluated images.
    threshold : float or ndarray of float64, shape (N,), optional
        Operating point to mark, in [0, 1].
    """
    figure, (ax,) = _figure(5, 4.9)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    for name, scores, truth, style in _curves(scored):
        hits, alarms = _cumulated(scores, truth)
        auroc = weighted.ranking(scores, truth, np.ones((1, len(truth))))[0][0]
        ax.plot(alarms / alarms[-1], hits / hits[-1], label=f"{name}  {auroc:.3f}", **style)
    truth = scored.is_positive
    if threshold is not None and _both(truth):
        positive = scored.p_target >= threshold
        _mark(ax, positive[~truth].mean(), positive[truth].mean(), _threshold_text(threshold))
    _unit_square(ax)
    _titles(ax, "1 − specificity", "sensitivity")
    _legend_or_reason(ax, "lower right")
    return figure


def precision_recall(scored: ScoredSet, threshold: Threshold | None = None) -> Figure:
    """Draw precision against recall; parameters as in `roc`."""
    figure, (ax,) = _figure(5, 4.9)
    for name, scores, truth, style in _curves(scored):
        hits, alarms = _cumulated(scores, truth)
        recall, precision = hits / hits[-1], np.r_[1.0, hits[1:] / (hits + alarms)[1:]]
        label = f"{name}  {weighted.ranking(scores, truth, np.ones((1, len(truth))))[1][0]:.3f}"
        # From the lowest threshold on, as scikit-learn draws it.
        ax.plot(recall[::-1], precision[::-1], label=label, drawstyle="steps-post", **style)
    truth = scored.is_positive
    if threshold is not None and _both(truth):
        positive = scored.p_target >= threshold
        if positive.any():
            _mark(ax, positive[truth].mean(), truth[positive].mean(), _threshold_text(threshold))
    _unit_square(ax)
    _titles(ax, "recall (sensitivity)", "precision (PPV)")
    _legend_or_reason(ax, "lower left")
    return figure


def _cumulated(scores: FloatArray, truth: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return how many images of each label are above a threshold that falls from above all scores."""
    hits, alarms = weighted.cumulated(scores, truth, np.ones((1, len(truth))))
    return np.r_[0.0, hits[0]], np.r_[0.0, alarms[0]]


def _threshold_text(threshold: Threshold) -> str:
    return "thresholds by population" if isinstance(threshold, np.ndarray) else f"threshold {text(threshold)}"


def _both(truth: BoolArray) -> bool:
    return bool(truth.any() and not truth.all())


def _curves(scored: ScoredSet) -> list[tuple[str, FloatArray, BoolArray, dict[str, Any]]]:
    """The target first and strongest, then its classes and others; those with images of both labels."""
    found = [(scored.target.name, scored.p_target, scored.is_positive, {"color": ACCENT, "linewidth": 2.4})]
    mask = scored.target_mask
    dashes = iter(((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))))
    for index, name in enumerate(scored.classes):
        # A class that is all of the target, or all of the rest, has the curve of the target.
        if (mask == mask[index]).sum() > 1:
            style = {"color": _colour(scored, index), "linewidth": 1.5, "linestyle": next(dashes, "solid")}
            found.append((name, scored.probabilities[:, index], scored.labels == index, style))
    # matplotlib leaves a label that begins with _ out of a legend.
    return [(" " * one[0].startswith("_") + one[0], *one[1:]) for one in found if _both(one[2])]


def _mark(ax: Axes, x: float, y: float, label: str) -> None:
    ax.plot(
        [x], [y], "o", color=ACCENT, markersize=9, markeredgecolor="white", markeredgewidth=1.5, label=label
    )


def _legend_or_reason(ax: Axes, where: Literal["lower left", "lower right"]) -> None:
    if ax.get_legend_handles_labels()[0]:
        _legend(ax, where)
    else:
        ax.text(0.5, 0.5, "needs images of both classes", color=MUTED, ha="center", va="center")


def reliability(scored: ScoredSet) -> Figure:
    """Draw the observed frequency of the target against its predicted probability, in 15 bins of equal width.

    The bars are 95% Wilson intervals; below, how many images each bin holds.
    """
    figure, (ax, below) = _figure(5, 5.4, nrows=2, sharex=True, height_ratios=(4, 1))
    p, truth = scored.p_target, scored.is_positive
    edges = np.linspace(0, 1, weighted.N_BINS + 1)
    bins = weighted.bin_of(p)
    counts = np.bincount(bins, minlength=weighted.N_BINS)
    full = np.flatnonzero(counts)
    predicted = np.bincount(bins, p, weighted.N_BINS)[full] / counts[full]
    hits = np.bincount(bins, truth, weighted.N_BINS)[full]
    observed = hits / counts[full]
    low, high = weighted.wilson(hits, counts[full])
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    ax.vlines(predicted, low, high, color=ACCENT, alpha=0.4, linewidth=4)
    ax.plot(predicted, observed, "o-", color=ACCENT, linewidth=1.6, markersize=6)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _titles(ax, "", f"observed frequency of {scored.target.name}")
    below.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color=ACCENT, alpha=0.55)
    below.grid(visible=False, axis="x")
    _titles(below, f"predicted probability of {scored.target.name}", "images")
    return figure


def score_histograms(scored: ScoredSet, threshold: Threshold | None = None) -> Figure:
    """Draw the probability of the target, one row for each true class; parameters as in `roc`."""
    k, at = len(scored.classes), None if isinstance(threshold, np.ndarray) else threshold
    figure, axes = _figure(5, max(5.4, 1.35 * k), nrows=k, sharex=True)
    for index, (name, ax) in enumerate(zip(scored.classes, axes, strict=True)):
        own = scored.p_target[scored.labels == index]
        ax.hist(own, bins=30, range=(0, 1), color=_colour(scored, index), alpha=0.75, rwidth=0.92)
        ax.grid(visible=False, axis="x")
        ax.set_title(f"{name}, {len(own):,} images", color=INK, fontsize=9.5, loc="left", pad=5)
        ax.locator_params(axis="y", nbins=3, integer=True)
        ax.set_ylim(0, None if own.size else 1)
        if at is not None:
            ax.axvline(at, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    axes[-1].set_xlim(-0.02, 1.02)
    dashed = "" if at is None else f"  (dashed: {_threshold_text(at)})"
    _titles(axes[-1], f"probability of {scored.target.name}{dashed}", "")
    return figure


def insertion_deletion(curves: Mapping[str, Sequence[float]], target: str) -> Figure:
    """Draw mean insertion and deletion curves, each beside that of another patient's map and that by blur.

    Parameters
    ----------
    curves : mapping
        Probabilities at equal steps of the area, under the names of `localisation.CURVES`.
    target : str
        Name of the target.
    """
    figure, axes = _figure(9.4, 3.9, ncols=2, sharey=True)
    styles: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("", "its own map", {"color": ACCENT, "linewidth": 2}),
        ("_other", "another patient's map", {"color": SECOND, "linewidth": 1.6}),
        ("_blur", "its own map, by blur", {"color": MUTED, "linewidth": 1.4, "linestyle": (0, (4, 2))}),
    )
    for ax, name in zip(axes, ("insertion", "deletion"), strict=True):
        for suffix, label, style in styles:
            if values := curves.get(name + suffix):
                area = np.trapezoid(values, dx=1 / (len(values) - 1))
                ax.plot(np.linspace(0, 1, len(values)), values, label=f"{label}  {area:.3f}", **style)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        _titles(
            ax,
            "share of the image that is shown" if name == "insertion" else "share that is covered",
            f"probability of {target}" if name == "insertion" else "",
            name,
        )
        if ax.lines:
            _legend(ax, "lower right" if name == "insertion" else "lower left")
    return figure


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a training history.

    Parameters
    ----------
    rows : sequence of mapping
        One an epoch, with ``epoch, phase, lr, train_loss, val_loss, val_auroc, val_accuracy``; numbers may be
        text, and what is empty or not finite is left out.
    """
    figure, (loss, score, rate) = _figure(11, 3.3, ncols=3)
    epochs = [float(row["epoch"]) for row in rows]
    marker = "o" if len(rows) == 1 else None
    for ax, name, label, colour in (
        (loss, "train_loss", "training", ACCENT),
        (loss, "val_loss", "validation", SECOND),
        (score, "val_auroc", "AUROC", ACCENT),
        (score, "val_accuracy", "accuracy", SECOND),
        (rate, "lr", "learning rate", ACCENT),
    ):
        values = _column(rows, name)
        if np.isfinite(values).any():
            ax.plot(epochs, values, color=colour, linewidth=1.8, marker=marker, label=label)
    if (_column(rows, "lr") > 0).any():
        rate.set_yscale("log")
    for ax, title in ((loss, "loss"), (score, "on the validation images"), (rate, "learning rate")):
        for start in _phase_starts(rows):
            ax.axvline(start - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        ax.locator_params(axis="x", integer=True)
        _titles(ax, "epoch", "", title)
        if ax is not rate and ax.lines:
            _legend(ax, "best")
    return figure


def search_history(
    numbers: Sequence[int],
    values: Sequence[float | None],
    complete: Sequence[bool],
    drawn: Mapping[str, Sequence[Any]],
    *,
    name: str,
    minimised: bool,
    logarithmic: Sequence[str] = (),
) -> Figure:
    """Draw the trials of a search: the result in their order, and against each value that was drawn.

    Parameters
    ----------
    numbers : sequence of int, length T
        Of the trials.
    values : sequence of float or None, length T
        Their results; None is left out.
    complete : sequence of bool, length T
        False for a trial that was ended early, which is drawn hollow.
    drawn : mapping of str to sequence, length T
        What was drawn for each key.
    name : str
        What the results are.
    minimised : bool
        Whether a smaller result is better.
    logarithmic : sequence of str
        Keys with a logarithmic axis.
    """
    with require_extra("evaluate", "Drawing plots"):
        from matplotlib.ticker import LogLocator
    y = np.array([math.nan if value is None else value for value in values])
    whole = np.array(complete, dtype=np.bool_)
    columns = min(4, 1 + len(drawn))
    rows = math.ceil((1 + len(drawn)) / columns)
    figure, axes = _figure(3.4 * columns, 2.9 * rows, nrows=rows, ncols=columns, sharey=True)
    best = (np.fmin if minimised else np.fmax).accumulate(np.where(whole, y, math.nan))
    axes[0].step(numbers, best, where="post", color=SECOND, linewidth=1.8, label="best so far")
    for ax, key in zip(axes, (None, *drawn), strict=False):
        x: Any = numbers if key is None else drawn[key]
        known = np.array([one is not None for one in x], dtype=np.bool_)
        if not all(_is_number(one) for one in x if one is not None):
            x = [str(one) for one in x]
        for chosen, face, label in (
            (whole & known, ACCENT, "complete"),
            (~whole & known, "none", "ended early"),
        ):
            shown = [one for one, is_shown in zip(x, chosen, strict=True) if is_shown]
            ax.scatter(shown, y[chosen], s=22, facecolors=face, edgecolors=ACCENT, label=label)
        if key in logarithmic:
            ax.set_xscale("log", subs=[])
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _titles(ax, "trial" if key is None else key, name if ax in axes[::columns] else "")
    axes[0].locator_params(axis="x", integer=True)
    if outside := _limit_to(axes[0], y, y[whole]):
        axes[0].set_title(f"{outside} not shown", color=MUTED, fontsize=9, loc="right")
    axes[0].legend(loc="best", frameon=False, fontsize=8, labelcolor=INK)
    for ax in axes[1 + len(drawn) :]:
        ax.set_axis_off()
    return figure


def _limit_to(ax: Axes, values: FloatArray, shown: FloatArray) -> int:
    """Limit the axis to what matters, and return how many other values are outside."""
    known = values[np.isfinite(values)]
    low, high = np.nanmin(shown), np.nanmax(shown)
    # A trial that diverged would leave no room for the others.
    room = max(high - low, 1e-3)
    low, high = max(low - room, known.min()), min(high + room, known.max())
    margin = 0.05 * max(high - low, 1e-3)
    ax.set_ylim(low - margin, high + margin)
    return int(((known < low) | (known > high)).sum())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> FloatArray:
    values = (row.get(name) for row in rows)
    column = np.array([float(value) if value not in {None, ""} else math.nan for value in values])
    column[~np.isfinite(column)] = math.nan
    return column


def _phase_starts(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    pairs = itertools.pairwise(rows)
    return [float(row["epoch"]) for before, row in pairs if row.get("phase") != before.get("phase")]
