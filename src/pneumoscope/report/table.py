"""Predictions as a table for people on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from pneumoscope.domain import Prediction
from pneumoscope.report.rows import plain_text

__all__ = ["as_table"]

STATUS_STYLES = {"ok": "green", "rejected": "yellow", "unreadable": "red"}
PROBABILITIES = {
    "pneumonia": "p_pneumonia",
    "normal": "p_normal",
    "bacterial": "p_bacterial",
    "viral": "p_viral",
}


def as_table(predictions: Iterable[Prediction]) -> Table:
    """Return a rich table: one line a picture, columns that no picture fills left out."""
    shown = list(predictions)
    kinds = {
        name: field
        for name, field in PROBABILITIES.items()
        if any(getattr(one, field) is not None for one in shown)
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("picture", overflow="fold")
    table.add_column("status")
    for name in kinds:
        table.add_column(f"P({name})", justify="right")
    table.add_column("decision")
    for one in shown:
        status = Text(", ".join(one.reasons) or one.status, STATUS_STYLES[one.status])
        values = [getattr(one, field) for field in kinds.values()]
        table.add_row(
            Text(plain_text(one.path)),
            status,
            *("" if value is None else f"{value:.3f}" for value in values),
            _decision(one),
        )
    return table


def _decision(prediction: Prediction) -> Text:
    text = Text(prediction.decision or "", "bold" if prediction.decision == "pneumonia" else "")
    return text.append(" (uncertain)", "yellow") if prediction.uncertain else text
