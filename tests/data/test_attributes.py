"""Age, sex and view as tables write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data.attributes import parse_age, parse_sex, parse_view


@pytest.mark.parametrize(
    ("text", "years"),
    [("42", 42), ("042Y", 42), (" 3 ", 3), ("006M", 0.5), ("0", 0), (36, 36), (3.5, 3.5)],
)
def test_ages(text, years):
    assert parse_age(text) == pytest.approx(years)


@pytest.mark.parametrize("text", ["", None, "old", "-3", "411", "nan", "1e3", "12Q", "003 Y"])
def test_what_is_no_age_is_unknown(text):
    assert parse_age(text) is None


def test_sex_and_view():
    assert [parse_sex(text) for text in ("F", "male", " o ", "", None, "?")] == ["F", "M", "O", "", "", ""]
    assert [parse_view(text) for text in ("pa", "AP", "Lateral", "", None, "x")] == [
        "PA",
        "AP",
        "LL",
        "",
        "",
        "",
    ]


@given(st.text(max_size=10))
def test_any_text_is_an_answer(text):
    age = parse_age(text)
    assert age is None or 0 <= age <= 130
    assert parse_sex(text) in {"F", "M", "O", ""}
    assert parse_view(text) in {"AP", "PA", "LL", ""}
