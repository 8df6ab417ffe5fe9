"""File names of the Kermany set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data.kermany import parse_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("person1234_bacteria_1.jpeg", ("bacterial", "person1234", "person")),
        ("person12_virus_34.jpeg", ("viral", "person12", "person")),
        ("person1_virus_2_3.jpeg", ("viral", "person1", "person")),
        ("IM-0115-0001.jpeg", ("normal", "IM-0115", "IM")),
        ("IM-0527-0001-0002.jpeg", ("normal", "IM-0527", "IM")),
        ("NORMAL2-IM-0383-0001.jpeg", ("normal", "NORMAL2-IM-0383", "NORMAL2")),
        ("NORMAL2-IM-0587-0001-0002.jpeg", ("normal", "NORMAL2-IM-0587", "NORMAL2")),
        ("chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg", ("bacterial", "person1", "person")),
        ("chest_xray/test/PNEUMONIA/person1_virus_6.jpeg", ("viral", "test-person1", "person")),
        ("chest_xray/test/NORMAL/IM-0001-0001.jpeg", ("normal", "IM-0001", "IM")),
    ],
)
def test_label_patient_and_series(name, expected):
    assert parse_name(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "person_bacteria_1.jpeg",
        "person1_fungus_1.jpeg",
        "IM-0115.jpeg",
        "x-IM-1-1.jpeg",
        "person١_virus_1.png",
    ],
)
def test_other_names_are_not_taken(name):
    assert parse_name(name) is None


@given(st.text())
def test_any_text_gives_a_label_or_none(name):
    found = parse_name(name)
    assert found is None or found[0] in {"normal", "bacterial", "viral"}


def test_every_real_name_is_understood(shared_data):
    names = list((shared_data / "kermany-224").rglob("*.jpeg"))
    parsed = [parse_name(path.name) for path in names]
    assert None not in parsed
    assert all(
        (found[0] == "normal") == (path.parent.name == "NORMAL")
        for found, path in zip(parsed, names, strict=True)
    )
