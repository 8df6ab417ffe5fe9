from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.domain import Prediction
from pneumoscope.report.rows import COLUMNS, csv_safe, flat_row, plain_text, to_row, tsv_header, tsv_line

PREDICTED = Prediction(
    "x.png", "ok", (), 0.25, 0.5, 0.25, 0.75, "bacterial", "pneumonia", "balanced", ("viral",), "b@1"
)


def test_the_columns_are_those_of_the_contract():
    contract = (
        "path, status, reasons, p_normal, p_bacterial, p_viral, p_pneumonia, finding, decision, "
        "operating_point, prediction_set, bundle, uncertain"
    )
    assert ", ".join(COLUMNS) == contract
    assert tuple(to_row(PREDICTED)) == COLUMNS


def test_flat_cells_are_text():
    assert flat_row(PREDICTED)["p_bacterial"] == "0.500000"
    two = Prediction("x.png", "rejected", ("too_small", "cropped"))
    assert flat_row(two)["reasons"] == "too_small;cropped"
    assert flat_row(two)["p_normal"] == ""


@pytest.mark.parametrize(
    ("classes", "coverage", "uncertain"),
    [
        (("normal",), 0.9, False),
        (("bacterial", "viral"), 0.9, False),
        (("normal", "viral"), 0.9, True),
        ((), 0.9, True),
        ((), None, False),
    ],
)
def test_doubt_is_a_column(classes, coverage, uncertain):
    predicted = Prediction("x.png", "ok", prediction_set=classes, set_coverage=coverage)
    assert to_row(predicted)["uncertain"] is uncertain
    assert flat_row(predicted)["uncertain"] == ("true" if uncertain else "false")
    assert flat_row(replace(predicted, status="rejected"))["uncertain"] == "false"


@given(st.text(st.characters(codec=None)))
def test_any_name_becomes_text_that_utf8_can_hold_and_one_tab_separated_line(name):
    plain_text(name).encode("utf-8")
    line = tsv_line(Prediction(name, "ok"))
    assert line.splitlines() == [line]
    assert line.count("\t") == tsv_header().count("\t") == len(COLUMNS) - 1


@given(st.text(min_size=1))
def test_no_cell_can_start_a_formula(cell):
    assert csv_safe(cell)[0] not in "=+-@\t\r\n"
    assert csv_safe(cell).endswith(cell)
