"""Predictions as a table for people on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from pneumoscope.domain import Prediction
from pneumoscope.errors import Reason
from pneumoscope.report.rows import plain_text

__all__ = ["as_table"]

STATUS_STYLES = {"ok": "yellow", "rejected": "yellow", "unreadable": "red"}
PROBABILITIES = {
    "pneumonia": "p_pneumonia",
    "normal": "p_normal",
    "bacterial": "p_bacterial",
    "viral": "p_viral",
}


def as_table(predictions: Iterable[Prediction]) -> Table:
    """Return a rich table: one line a image, probabilities that none has left out; fits 80 columns."""
    shown = list(predictions)
    kinds = {
        name: field
        for name, field in PROBABILITIES.items()
        if any(getattr(one, field) is not None for one in shown)
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    for name in kinds:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("answer", width=max(map(len, Reason)))
    for one in shown:
        values = [getattr(one, field) for field in kinds.values()]
        table.add_row(
            Text(plain_text(one.path)),
            *("" if value is None else f"{value:.3f}" for value in values),
            _answer(one),
        )
    return table


def _answer(prediction: Prediction) -> Text:
    """The decision, doubt about it, and the reasons; these alone where there is no decision."""
    text = Text(prediction.decision or "", "bold" if prediction.decision == "pneumonia" else "")
    if prediction.uncertain:
        text.append(" (uncertain)", "yellow")
    said = ", ".join(prediction.reasons) or (prediction.decision is None and prediction.status)
    if said:
        text.append(", " if text else "").append(said, STATUS_STYLES[prediction.status])
    return text
