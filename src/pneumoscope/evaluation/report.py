"""One page that shows how well a model performs: measures with intervals, plots, and its mistakes."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pneumoscope.data.walk import SOFTWARE
from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError, UnreadableImageError, require_extra
from pneumoscope.evaluation import plots
from pneumoscope.evaluation.explorer import explore
from pneumoscope.evaluation.plot_names import named_for_plots
from pneumoscope.evaluation.scores import Mistake, ScoredSet, Threshold, worst_mistakes
from pneumoscope.evaluation.tables import (
    CHANGES,
    bar_floor,
    change,
    count_not_evaluated,
    map_rows,
    measures_of,
    robustness_rows,
    span,
    subgroup_rows,
    summary,
    value,
)
from pneumoscope.evaluation.tables import threshold as shown_threshold
from pneumoscope.image.decode import read_radiograph
from pneumoscope.model.results import Evaluation
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
TEMPLATE, SCRIPT = "report.html.j2", "explorer.js"
DPI = 150
JPEG_QUALITY = 82
PIXELS_PER_INCH = 101  # text of 9 points comes out at 12.6 pixels, in every plot alike
THUMBNAIL_SIDE = 360
HEADLINE = ("auroc", "sensitivity", "specificity")
# These run below zero, or lower is better: no bar up to 1 for them.
WITHOUT_BAR = {"mcc", "brier", "ece"}
OWN_MARK = dict([SOFTWARE.decode().split("\0")])
_THEME = {plots.INK: "var(--ink)", plots.MUTED: "var(--muted)", plots.GRID: "var(--line)"}


def write_report(
    out_dir: Path,
    scored: ScoredSet,
    *,
    metrics: Evaluation,
    not_evaluated: Sequence[Prediction],
    threshold: Threshold,
    points: Mapping[str, Threshold],
    root: Path,
    title: str,
    about: Mapping[str, str],
    history: Path | None = None,
) -> Path:
    """Write ``metrics.json``, ``confusion_matrix.png`` and a self-contained ``report.html``.

    Parameters
    ----------
    out_dir : Path
        Made if absent.
    scored : ScoredSet
        The images that were evaluated.
    metrics : Evaluation
        From `evaluate_scores`, with `evaluated_on`. ``metrics.json`` holds it, with `title` and `about`.
    not_evaluated : sequence of Prediction
        Images that were unreadable or rejected; they are counted and listed.
    threshold : float or ndarray of float64, shape (N,)
        Of the operating point.
    points : mapping of str to float or ndarray
        Thresholds of all operating points by name, likewise.
    root : Path
        Folder that the paths of `scored` start from.
    title : str
        Of the page.
    about : mapping of str to str
        Facts about model and data, shown in their order.
    history : Path, optional
        ``history.csv`` of the training; adds a section with its curves, and ``plot.jpg``.

    Returns
    -------
    Path
        The page. It loads nothing else; its threshold explorer needs a script, which it holds.

    Raises
    ------
    DataError
        If the history cannot be read.
    MissingExtraError
        If the plotting or templating packages are absent.
    """
    with require_extra("evaluate", "Writing a report"):
        import jinja2
    curves = None if history is None else _history_figure(history)
    drawn, replaced = named_for_plots(scored)
    matrix = plots.confusion_matrix(metrics.all_classes.confusion, drawn.classes)
    metrics = metrics.model_copy(update={"not_evaluated": count_not_evaluated(not_evaluated)})
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_packaged),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        value=value, span=span, plain=plain_text, change=change, threshold=shown_threshold
    )
    script = _packaged(SCRIPT)
    page = environment.get_template(TEMPLATE).render(
        title=title,
        about=about,
        **_content(metrics),
        explored=explore(scored, points, metrics.intervals, start=threshold),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        rejected=not_evaluated,
        plots=_embedded(drawn, metrics, threshold, matrix, curves),
        replaced=replaced,
        mistakes=_shown(worst_mistakes(scored, threshold), root),
    )
    written = {"title": title, "about": dict(about), **metrics.model_dump(mode="json")}
    return _written(out_dir, page, written, {MATRIX_FILE: matrix, CURVES_FILE: curves})


def _packaged(name: str) -> str:
    """Return a file beside this module: the template, and what it includes."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _content(metrics: Evaluation) -> dict[str, Any]:
    """Return what the page shows of the measures."""
    target, robustness = metrics.target.name, metrics.robustness
    measures = measures_of(target)
    drawn = [getattr(metrics.detection, key) for key, _, _ in measures if key not in WITHOUT_BAR]
    return {
        "metrics": metrics,
        "target": target,
        "summary": summary(metrics),
        "measures": measures,
        "headline": [measure for measure in measures if measure[0] in HEADLINE],
        "without_bar": WITHOUT_BAR,
        "floor": bar_floor(drawn),
        "subgroups": subgroup_rows(metrics),
        "maps": map_rows(metrics.localisation),
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
            # Where the folder lies in a data set, a search of that leaves out a PNG so marked.
            figure.savefig(out_dir / name, dpi=DPI, metadata=OWN_MARK if name.endswith(".png") else None)
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
    scored: ScoredSet, metrics: Evaluation, threshold: Threshold, matrix: Figure, curves: Figure | None
) -> dict[str, str]:
    target = scored.target
    binary = plots.confusion_matrix(metrics.detection.confusion or (), (target.absent, target.name))
    figures = {
        "binary": (binary, f"Confusion matrix of {target.name}"),
        "matrix": (matrix, "Confusion matrix of all classes"),
        "roc": (plots.roc(scored, threshold), "ROC curve"),
        "recall": (plots.precision_recall(scored, threshold), "Precision-recall curve"),
        "reliability": (plots.reliability(scored), "Reliability diagram"),
        "histograms": (plots.score_histograms(scored, threshold), "Histograms of the probability"),
    }
    if metrics.localisation and metrics.localisation.curves and metrics.localisation.curves.mean:
        mean = metrics.localisation.curves.mean
        figures["insertion"] = (plots.insertion_deletion(mean, target.name), "Insertion and deletion curves")
    if curves is not None:
        figures["curves"] = (curves, "Training curves")
    return {name: _inline_svg(figure, name, label) for name, (figure, label) in figures.items()}


def _shown(mistakes: Sequence[Mistake], root: Path) -> dict[str, list[dict[str, Any]]]:
    """Group mistakes for the page, with the image or the reason why it cannot be shown."""
    groups: dict[str, list[dict[str, Any]]] = {"missed": [], "alarms": []}
    for mistake in mistakes:
        shown: dict[str, Any] = {"mistake": mistake, "name": Path(mistake.path).name}
        try:
            shown["image"] = _thumbnail(root / mistake.path)
        except UnreadableImageError as error:
            shown["reason"] = error.detail
        groups["missed" if mistake.missed else "alarms"].append(shown)
    return groups


def _inline_svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an ``<svg>`` element that follows the page's theme.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Drawn with the inks of `pneumoscope.evaluation.plots`.
    name : str
        Unique on the page: prefix of the ids inside, which would clash between figures.
    label : str
        What the plot shows, for screen readers.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    # The page sets the width; the view box keeps the shape.
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    widest = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return f'{head} style="max-width:{widest}px" role="img" aria-label="{_escaped(label)}">{rest}'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def _thumbnail(path: Path) -> str:
    """Return an X-ray as a small JPEG in a data URI, at its own aspect.

    Raises
    ------
    UnreadableImageError
        If it cannot be read (any more).
    """
    radiograph = read_radiograph(path, min_side=THUMBNAIL_SIDE)
    scale = THUMBNAIL_SIDE / min(radiograph.pixels.shape)
    width, height = (max(1, round(side * min(scale, 1))) for side in radiograph.pixels.shape[::-1])
    grey = cv2.resize(radiograph.pixels, (width, height), interpolation=cv2.INTER_AREA)
    levels = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
