from __future__ import annotations

import io
import sys

import cv2
import numpy as np
import pytest
from matplotlib import pyplot
from sklearn.metrics import precision_recall_curve

from pneumoscope.domain import Target
from pneumoscope.errors import MissingExtraError
from pneumoscope.evaluation import plots

COLUMNS = ("epoch", "phase", "lr", "train_loss", "val_loss", "val_auroc", "val_accuracy", "seconds")


def drawn(figure):
    """Render as a user would, so that a failure in drawing shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize(
    "classes", [("normal", "bacterial", "viral"), ("normal", "pneumonia"), ("normal", "tb")]
)
@pytest.mark.parametrize("draw_one", [plots.roc, plots.precision_recall, plots.score_histograms])
def test_plots_of_scores_draw_something(draw, draw_one, classes):
    image = drawn(draw_one(draw(n=60, classes=classes), 0.4))
    assert image.std() > 5


def test_roc_marks_the_operating_point_and_names_the_area(draw):
    scored = draw()
    (ax,) = plots.roc(scored, 0.4).axes
    called = scored.p_target >= 0.4
    (point,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert point.get_xdata()[0] == pytest.approx(called[~scored.is_positive].mean())
    assert point.get_ydata()[0] == pytest.approx(called[scored.is_positive].mean())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label.split()[0] for label in labels] == ["pneumonia", "bacterial", "viral", "threshold"]


def test_precision_and_recall_are_scikit_learns(draw):
    scored = draw()
    precision, recall, _ = precision_recall_curve(scored.is_positive, scored.p_target)
    line = plots.precision_recall(scored).axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), recall)
    np.testing.assert_allclose(line.get_ydata(), precision)


@pytest.mark.parametrize("draw_one", [plots.roc, plots.precision_recall])
def test_curves_of_one_class_say_what_is_missing(draw, draw_one):
    scored = draw(n=60)
    figure = draw_one(scored.select(scored.labels == 0), 0.4)
    assert texts(figure) == ["needs images of both classes"]
    drawn(figure)


@pytest.mark.parametrize("draw_one", [plots.roc, plots.precision_recall])
def test_curves_of_classes_that_begin_with_an_underscore_are_named(draw, draw_one):
    names = ("normal", "_a", "_b")
    figure = draw_one(draw(n=60, classes=names, target=Target("_ill", names[1:])))
    assert texts(figure) == []
    labels = [text.get_text().split()[0] for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["_ill", "_a", "_b"]
    drawn(figure)


def test_confusion_matrix_shows_every_count():
    figure = plots.confusion_matrix([[1234, 5], [0, 0]], ("normal", "pneumonia"))
    assert {"1,234", "5", "99.6%", "0.0%"} <= set(texts(figure))
    assert drawn(figure).std() > 5


def test_reliability_of_a_calibrated_set_follows_the_diagonal():
    from pneumoscope.evaluation import ScoredSet

    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    labels = (rng.random(20_000) < p).astype(np.int64)
    names = tuple(map(str, range(20_000)))
    target = Target("pneumonia", ("pneumonia",))
    scored = ScoredSet(("normal", "pneumonia"), labels, np.c_[1 - p, p], names, names, names, target=target)
    figure = plots.reliability(scored)
    line = figure.axes[0].lines[-1]
    np.testing.assert_allclose(line.get_ydata(), line.get_xdata(), atol=0.05)
    drawn(figure)


@pytest.mark.parametrize("epochs", [1, 12])
def test_training_curves_take_text_and_gaps(epochs):
    rows = [
        dict(zip(COLUMNS, (str(e), str(1 + e // 6), "0.001", f"{1 / e}", "", "nan", "0.9", "1"), strict=True))
        for e in range(1, epochs + 1)
    ]
    figure = plots.training_curves(rows)
    loss, score, _ = figure.axes
    solid = [line for line in loss.lines if line.get_linestyle() == "-"]
    assert [line.get_label() for line in solid] == ["training"]  # no validation loss was written
    assert [line.get_label() for line in score.lines if line.get_linestyle() == "-"] == ["accuracy"]
    assert sum(line.get_linestyle() != "-" for line in loss.lines) == (2 if epochs == 12 else 0)
    drawn(figure)


def test_plots_without_matplotlib_name_the_extra(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"\.\[evaluate\]"):
        plots.reliability(draw(n=30))


def test_plots_leave_pyplot_alone(draw):
    plots.reliability(draw(n=30))
    plots.training_curves([{"epoch": 1, "lr": 1.0}])
    assert pyplot.get_fignums() == []
