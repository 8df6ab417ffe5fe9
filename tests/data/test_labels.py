from __future__ import annotations

import pytest

from pneumoscope.data.labels import class_index, possible_classes
from pneumoscope.errors import DataError

THREE, TWO = ("normal", "bacterial", "viral"), ("normal", "pneumonia")


@pytest.mark.parametrize(
    ("label", "classes", "expected"),
    [
        ("normal", THREE, 0),
        ("bacterial", THREE, 1),
        ("viral", THREE, 2),
        ("normal", TWO, 0),
        ("pneumonia", TWO, 1),
        ("bacterial", TWO, 1),
        ("viral", TWO, 1),
        ("viral", ("normal", "pneumonia", "viral"), 2),
    ],
)
def test_a_label_becomes_the_position_of_its_class(label, classes, expected):
    assert class_index(label, classes, "a.png") == expected


@pytest.mark.parametrize(
    ("label", "classes"), [("covid", THREE), ("pneumonia", THREE), ("bacterial", ("normal", "tb"))]
)
def test_a_label_that_is_no_class_is_one_line_with_image_and_classes(label, classes):
    with pytest.raises(DataError) as caught:
        class_index(label, classes, "folder/a.png")
    message = str(caught.value)
    assert message.startswith("folder/a.png: ")
    assert repr(label) in message
    assert ", ".join(classes) in message
    assert "\n" not in message


def test_pneumonia_of_no_kind_leaves_both_kinds_open():
    assert possible_classes("pneumonia", THREE, "a.png") == (1, 2)
    assert possible_classes("pneumonia", TWO, "a.png") == (1,)
    assert possible_classes("viral", THREE, "a.png") == (2,)
    assert possible_classes("normal", THREE, "a.png") == (0,)


def test_a_label_of_no_class_leaves_nothing_open():
    with pytest.raises(DataError, match="none of the classes"):
        possible_classes("fracture", THREE, "a.png")
