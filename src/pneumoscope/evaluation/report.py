"""One page that says how well a model reads: figures with intervals, plots, and what it got wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError, UnreadableImageError
from pneumoscope.evaluation import plots
from pneumoscope.evaluation.embed import inline_svg, thumbnail
from pneumoscope.evaluation.extra import evaluate_extra
from pneumoscope.evaluation.scores import Mistake, ScoredSet, worst_mistakes
from pneumoscope.evaluation.tables import (
    CHANGES,
    MEASURES,
    bar_floor,
    change,
    map_measures,
    not_evaluated_counts,
    robustness_rows,
    span,
    subgroup_rows,
    summary,
    value,
)
from pneumoscope.report.rows import plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

REPORT_FILE, METRICS_FILE, MATRIX_FILE, CURVES_FILE = (
    "report.html",
    "metrics.json",
    "confusion_matrix.png",
    "plot.jpg",
)
TEMPLATE = "report.html.j2"
DPI = 150
HEADLINE = ("auroc", "sensitivity", "specificity")
# These run below zero, or the other way: no bar up to 1 for them.
WITHOUT_BAR = {"mcc", "brier", "ece"}


def write_report(
    out_dir: Path,
    scored: ScoredSet,
    *,
    rejected: Sequence[Prediction],
    metrics: dict[str, Any],
    root: Path,
    title: str,
    about: Mapping[str, str],
    history: Path | None = None,
    evaluated_on: str,
) -> Path:
    """Write ``metrics.json``, ``confusion_matrix.png`` and a self-contained ``report.html``.

    Parameters
    ----------
    out_dir : Path
        Made if absent.
    scored : ScoredSet
        The images that were evaluated.
    rejected : sequence of Prediction
        Those that were not, unreadable or rejected; they are counted and listed.
    metrics : dict
        From `evaluate_scores`. ``metrics.json`` holds it, with `title`, `evaluated_on`, `about` and the counts
        of what was not evaluated.
    root : Path
        Folder that the paths of `scored` start from.
    title : str
        Of the page.
    about : mapping of str to str
        Facts about model and data, shown in their order.
    history : Path, optional
        ``history.csv`` of the training; adds a section with its curves, and ``plot.jpg``.
    evaluated_on : str
        Which images the figures speak of.

    Returns
    -------
    Path
        The page. Nothing in it is fetched from elsewhere.

    Raises
    ------
    DataError
        If the history cannot be read.
    MissingExtraError
        If the plotting or templating packages are absent.
    """
    with evaluate_extra("Writing a report"):
        import jinja2
    curves = None if history is None else _history_figure(history)
    matrix = plots.confusion_matrix(metrics["all_classes"]["confusion"], scored.classes)
    counts = not_evaluated_counts(rejected)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(value=value, span=span, plain=plain_text, change=change)
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text("utf-8"))
    page = template.render(
        title=title,
        evaluated_on=evaluated_on,
        about=about,
        **_figures(metrics),
        not_evaluated=counts,
        rejected=rejected,
        plots=_embedded(scored, metrics, matrix, curves),
        mistakes=_shown(worst_mistakes(scored, metrics["threshold"]), root),
    )
    content = {
        "title": title,
        "evaluated_on": evaluated_on,
        "about": dict(about),
        "not_evaluated": counts,
        **metrics,
    }
    return _written(out_dir, page, content, {MATRIX_FILE: matrix, CURVES_FILE: curves})


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of ``metrics.json``, in the order and the words of people."""
    drawn = [metrics["pneumonia"][key] for key, _, _ in MEASURES if key not in WITHOUT_BAR]
    robustness = metrics.get("robustness")
    return {
        "metrics": metrics,
        "summary": summary(metrics),
        "measures": MEASURES,
        "headline": [measure for measure in MEASURES if measure[0] in HEADLINE],
        "without_bar": WITHOUT_BAR,
        "floor": bar_floor(drawn),
        "subgroups": subgroup_rows(metrics),
        "maps": map_measures(metrics.get("localisation", {})),
        "robustness": robustness,
        "changes": {name: robustness_rows(robustness, name) for name in CHANGES} if robustness else {},
        "change_titles": CHANGES,
    }


def _written(
    out_dir: Path, page: str, content: Mapping[str, Any], figures: Mapping[str, Figure | None]
) -> Path:
    out_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (out_dir / METRICS_FILE).write_text(plain_text(text), encoding="utf-8")
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(out_dir / name, dpi=DPI)
    report = out_dir / REPORT_FILE
    report.write_text(plain_text(page), encoding="utf-8")
    return report


def _history_figure(history: Path) -> Figure | None:
    try:
        with history.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return plots.training_curves(rows) if rows else None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{history}: cannot read the training history: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{history}: not a training history ({error}); give the run's history.csv") from error


def _embedded(
    scored: ScoredSet, metrics: Mapping[str, Any], matrix: Figure, curves: Figure | None
) -> dict[str, str]:
    threshold = metrics["threshold"]
    binary = plots.confusion_matrix(metrics["pneumonia"]["confusion"], ("normal", "pneumonia"))
    figures = {
        "binary": (binary, "Confusion matrix of pneumonia against normal"),
        "matrix": (matrix, "Confusion matrix of all classes"),
        "roc": (plots.roc(scored, threshold), "ROC curve"),
        "recall": (plots.precision_recall(scored, threshold), "Precision-recall curve"),
        "reliability": (plots.reliability(scored), "Reliability diagram"),
        "histograms": (plots.score_histograms(scored, threshold), "Histograms of the probability"),
    }
    if mean := metrics.get("localisation", {}).get("curves", {}).get("mean"):
        figures["insertion"] = (plots.insertion_deletion(mean), "Insertion and deletion curves")
    if curves is not None:
        figures["curves"] = (curves, "Training curves")
    return {name: inline_svg(figure, name, label) for name, (figure, label) in figures.items()}


def _shown(mistakes: Sequence[Mistake], root: Path) -> dict[str, list[dict[str, Any]]]:
    """Group mistakes for the page, with the image or the reason why it cannot be shown."""
    groups: dict[str, list[dict[str, Any]]] = {"missed": [], "alarms": []}
    for mistake in mistakes:
        shown: dict[str, Any] = {"mistake": mistake, "name": Path(mistake.path).name}
        try:
            shown["image"] = thumbnail(root / mistake.path)
        except UnreadableImageError as error:
            shown["reason"] = error.detail
        groups["missed" if mistake.missed else "alarms"].append(shown)
    return groups
