from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from pneumoscope.domain import Prediction
from pneumoscope.report.table import as_table


def shown(*predictions: Prediction, width: int = 120) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(as_table(predictions))
    return capture.get()


def test_reasons_stand_where_there_is_no_answer():
    text = shown(
        Prediction("[bold]a[/bold].png", "ok", (), 0.1, 0.2, 0.7, 0.9, "viral", "pneumonia"),
        Prediction("b.png", "rejected", ("lateral_view",)),
    )
    assert "[bold]a[/bold].png" in text  # a file name is no markup
    assert "0.900" in text
    assert "lateral_view" in text


def test_doubt_stands_beside_the_decision():
    sure = Prediction("a.png", "ok", (), 0.4, None, None, 0.6, "pneumonia", "pneumonia")
    unsure = replace(sure, prediction_set=("normal", "pneumonia"))
    assert "uncertain" not in shown(sure)
    assert "pneumonia (uncertain)" in shown(unsure)


def test_columns_that_nothing_fills_are_left_out():
    text = shown(Prediction("a.png", "ok", (), 0.1, None, None, 0.9, "pneumonia", "pneumonia"))
    assert "normal" in text
    assert "viral" not in text


def test_eighty_columns_cut_no_heading_and_no_reason():
    text = shown(
        Prediction("images/person1_bacteria_1.jpeg", "ok", (), 0.1, 0.2, 0.7, 0.9, "viral", "pneumonia"),
        Prediction("knee.jpg", "rejected", ("not_a_chest_radiograph",)),
        width=80,
    )
    for whole in ("pneumonia", "bacterial", "not_a_chest_radiograph"):
        assert whole in text
    assert "…" not in text


def test_a_caution_stands_beside_the_decision():
    text = shown(
        Prediction("a.dcm", "ok", ("adult_unvalidated",), 0.9, None, None, 0.1, "normal", "no pneumonia")
    )
    assert "no pneumonia," in text
    assert "adult_unvalidated" in text
