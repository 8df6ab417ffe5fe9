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
    outcome_text,
    percent_text,
    plain_text,
    threshold_text,
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


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0, "<0.1%"), (0.0009, "<0.1%"), (0.001, "0.1%"), (0.739, "73.9%"), (0.999, "99.9%"), (1.0, ">99.9%")],
)
def test_no_probability_is_certain(p, shown):
    assert percent_text(p) == shown


def test_an_image_without_a_prediction_has_its_reason_beside_the_result():
    rejected = Prediction("x", "rejected", ("inverted", "lateral_view", "too_small"))
    assert outcome_text(rejected) == "rejected: lateral view, too small"
    assert outcome_text(Prediction("x", "unreadable", ("truncated",))) == "could not be read: truncated"
    assert outcome_text(Prediction("x", "unreadable")) == "could not be read"
    sure = SUBTYPES.prediction("x", SUBTYPES.positive, reasons=("inverted",))
    assert outcome_text(sure) == "pneumonia suspected"


@pytest.mark.parametrize(
    ("threshold", "percent", "fraction"),
    [
        (0.4, "40.0%", "0.4000"),
        (0.00012, "0.012%", "0.00012"),
        (0.99996, "99.9960%", "0.999960"),
        (3e-300, "3.0e-298%", "3.0e-300"),  # with 300 digits no plot can be drawn
        (0.0, "0.0%", "0.0000"),
        (1.0, "100.0%", "1.0000"),
    ],
)
def test_a_threshold_is_told_from_0_and_from_1(threshold, percent, fraction):
    assert threshold_text(threshold) == percent
    assert threshold_text(threshold, percent=False) == fraction
