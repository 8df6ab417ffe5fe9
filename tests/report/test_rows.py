from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.domain import Prediction
from pneumoscope.report.rows import (
    columns,
    csv_safe,
    decision_text,
    flat_row,
    plain_text,
    to_row,
    tsv_header,
    tsv_line,
)
from predictions import BUNDLES, SUBTYPES, Example

PREDICTED = SUBTYPES.prediction(
    "x.png",
    (0.25, 0.5, 0.25),
    operating_point="balanced",
    population="children",
    prediction_set=("viral",),
    bundle="b@1",
)
PNEUMONIA = (SUBTYPES.classes, SUBTYPES.target)


def test_the_columns_of_pneumonia_bundles():
    contract = (
        "path, status, reasons, p_normal, p_bacterial, p_viral, p_pneumonia, finding, decision, "
        "operating_point, population, prediction_set, bundle, uncertain"
    )
    assert ", ".join(columns(*PNEUMONIA)) == contract
    assert tuple(to_row(PREDICTED, *PNEUMONIA)) == columns(*PNEUMONIA)


@pytest.mark.parametrize("example", BUNDLES, ids=lambda example: example.target)
def test_any_classes_have_a_column_each_and_the_target_one(example: Example):
    row = to_row(example.prediction("x.png", example.positive), *example.names)
    found = {name: value for name, value in row.items() if name.startswith("p_")}
    assert found == example.columns
    assert list(found) == list(example.columns)
    assert row["decision"] == example.target
    assert row["finding"] in example.classes
    rejected = to_row(Prediction("x.png", "rejected", target=example.target), *example.names)
    assert list(rejected) == list(row)
    assert {rejected[name] for name in example.columns} == {None}


def test_flat_cells_are_text():
    assert flat_row(PREDICTED, *PNEUMONIA)["p_bacterial"] == "0.500000"
    assert flat_row(PREDICTED, *PNEUMONIA)["population"] == "children"
    two = Prediction("x.png", "rejected", ("too_small", "cropped"))
    assert flat_row(two, *PNEUMONIA)["reasons"] == "too_small;cropped"
    assert flat_row(two, *PNEUMONIA)["p_normal"] == ""


@pytest.mark.parametrize("uncertain", [True, False])
def test_uncertainty_is_a_column(uncertain):
    predicted = replace(PREDICTED, uncertain=uncertain)
    assert to_row(predicted, *PNEUMONIA)["uncertain"] is uncertain
    assert flat_row(predicted, *PNEUMONIA)["uncertain"] == ("true" if uncertain else "false")


@pytest.mark.parametrize("example", BUNDLES, ids=lambda example: example.target)
def test_results_in_words(example: Example):
    positive, negative = (example.prediction("x.png", p) for p in (example.positive, example.negative))
    assert decision_text(positive) == f"{example.target} suspected"
    assert decision_text(negative) == f"no {example.target} detected"
    assert (
        decision_text(replace(negative, uncertain=True)) == f"uncertain, leaning away from {example.target}"
    )
    assert decision_text(Prediction("x.png", "rejected", ("lateral_view",))) == "rejected"
    assert decision_text(Prediction("x.png", "unreadable", ("corrupt",))) == "could not be read"


@given(st.text(st.characters(codec=None)))
def test_any_name_becomes_text_that_utf8_can_hold_and_one_tab_separated_line(name):
    plain_text(name).encode("utf-8")
    line = tsv_line(Prediction(name, "ok"), *PNEUMONIA)
    assert line.splitlines() == [line]
    assert line.count("\t") == tsv_header(*PNEUMONIA).count("\t") == len(columns(*PNEUMONIA)) - 1


@given(st.text(min_size=1))
def test_no_cell_can_start_a_formula(cell):
    assert csv_safe(cell)[0] not in "=+-@\t\r\n"
    assert csv_safe(cell).endswith(cell)
