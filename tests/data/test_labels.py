"""Labels: their classes, and file names of the Kermany set."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data.labels import (
    check_labels,
    class_index,
    class_name,
    classes_with_target,
    parse_kermany_name,
    possible_classes,
)
from pneumoscope.domain import Target
from pneumoscope.errors import DataError
from pneumoscope.training.recipe import load_recipe
from pneumoscope.training.target import parse_target

THREE, TWO = ("normal", "bacterial", "viral"), ("normal", "pneumonia")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Normal", "normal"),
        ("NO_FINDING", "normal"),
        ("PNEUMONIA", "pneumonia"),
        ("Viral Pneumonia", "viral"),
        ("pneumonia-bacterial", "bacterial"),
        ("COVID", "covid"),
        ("COVID-19", "covid"),
        ("Lung_Opacity", "lung_opacity"),
        ("lung opacity", "lung_opacity"),
        (" Edema ", "edema"),
        ("pleural_effusion", "pleural_effusion"),
    ],
)
def test_spellings_of_one_class(text, name):
    assert class_name(text) == class_name(name) == name


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
    assert "(first line path,label)" in message
    assert "\n" not in message


def test_pneumonia_without_subtype_leaves_both_subtypes_open():
    assert possible_classes("pneumonia", THREE, "a.png") == (1, 2)
    assert possible_classes("pneumonia", TWO, "a.png") == (1,)
    assert possible_classes("viral", THREE, "a.png") == (2,)
    assert possible_classes("normal", THREE, "a.png") == (0,)


def test_a_label_of_no_class_is_an_error():
    with pytest.raises(DataError, match="none of the classes"):
        possible_classes("fracture", THREE, "a.png")


LUNGS = ("clear", "lobar", "diffuse")
INFILTRATE = Target("infiltrate", ("lobar", "diffuse"))


def test_the_name_of_the_target_leaves_its_classes_open():
    assert possible_classes("infiltrate", LUNGS, "a.png", INFILTRATE) == (1, 2)
    assert possible_classes("lobar", LUNGS, "a.png", INFILTRATE) == (1,)
    assert possible_classes("infiltrate", ("clear", "infiltrate"), "a.png", INFILTRATE) == (1,)
    with pytest.raises(DataError, match="none of the classes"):
        class_index("infiltrate", LUNGS, "a.png", INFILTRATE)
    with pytest.raises(DataError, match="none of the classes"):
        possible_classes("infiltrate", LUNGS, "a.png")


def test_a_class_of_the_target_counts_as_the_target_where_the_classes_have_only_that():
    assert class_index("diffuse", ("clear", "infiltrate"), "a.png", INFILTRATE) == 1
    with pytest.raises(DataError, match="none of the classes"):
        class_index("diffuse", ("clear", "infiltrate"), "a.png")


def message_of(labels, classes, target=None, **options):
    with pytest.raises(DataError) as caught:
        check_labels(labels, classes, "xrays", target, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_known_labels_of_a_data_set_pass():
    check_labels(["normal", "viral", "pneumonia"], THREE, "xrays", training=True)
    check_labels(["normal", "viral"], TWO, "xrays")
    check_labels(["clear", "infiltrate"], LUNGS, "xrays", INFILTRATE)


def test_all_unknown_labels_of_a_data_set_are_one_line_with_their_counts():
    labels = ["normal"] * 5 + ["covid"] * 2 + ["lung_opacity"] * 3
    line = message_of(labels, THREE)
    assert line.startswith(
        "xrays: 2 labels are none of the classes (normal, bacterial, viral): "
        "'lung_opacity' 3, 'covid' 2 of 10 images; "
    )
    assert "--target" not in line
    one = message_of(["normal", "covid", "covid"], THREE)
    assert one.startswith(
        "xrays: label 'covid' is none of the classes (normal, bacterial, viral): 2 of 3 images;"
    )
    many = message_of(["normal", *(f"c{number:02}" for number in range(12))], THREE)
    assert "'c09' 1, 2 more 2 of 13 images;" in many


@pytest.mark.parametrize(
    ("labels", "option"),
    [
        (("normal", "covid", "viral"), "pneumonia=covid,viral"),
        (("normal", "covid", "pneumonia"), "finding=covid,pneumonia"),
        (("normal", "pleural effusion"), "pneumonia=pleural effusion"),
    ],
)
@pytest.mark.parametrize("recipe", ["custom-cnn", "transfer"])
def test_a_training_is_told_the_target_that_makes_the_labels_its_classes(labels, option, recipe):
    stated = load_recipe(recipe)
    line = message_of(labels, stated.classes, stated.target, training=True)
    assert "--target" in line
    words = shlex.split(re.search(r"--target .*?(?= \()", line)[0])
    assert words == ["--target", option]
    open_recipe = stated.model_copy(update={"classes": None, "target": parse_target(option)})
    assert set(open_recipe.resolved(labels).output_classes) == set(labels)


@pytest.mark.parametrize("labels", [("clear", "lobar"), ("normal", "a,b")])
def test_where_no_such_line_would_work_the_option_is_named_only(labels):
    assert "--target NAME=CLASS[,CLASS...]" in message_of(labels, THREE, training=True)


def test_the_message_on_one_image_proposes_no_label():
    with pytest.raises(DataError) as caught:
        class_index("covid", TWO, "COVID-1.jpeg")
    assert "COVID-1.jpeg,pneumonia" not in str(caught.value)
    assert "a recipe or bundle that has it as a class" in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "target", "expected"),
    [
        (THREE, Target("pneumonia", ("bacterial", "viral")), ("normal", "pneumonia")),
        (TWO, Target("pneumonia", ("pneumonia",)), ("normal", "pneumonia")),
        (LUNGS, INFILTRATE, ("clear", "infiltrate")),
        (("lobar", "clear", "mass"), INFILTRATE, ("clear", "mass", "infiltrate")),
    ],
)
def test_a_set_labelled_with_the_target_only_is_evaluated_on_the_other_classes_and_the_target(
    classes, target, expected
):
    assert classes_with_target(classes, target) == expected


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
def test_kermany_names_give_label_patient_and_series(name, expected):
    assert parse_kermany_name(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "person_bacteria_1.jpeg",
        "person1_fungus_1.jpeg",
        "IM-0115.jpeg",
        "IM-0001-0001.dcm",
        "IM-0001-0001.DCM",
        "IM-0001-0001",
        "x-IM-1-1.jpeg",
        "person١_virus_1.png",
    ],
)
def test_other_names_are_not_kermany_names(name):
    assert parse_kermany_name(name) is None


@given(st.text())
def test_any_text_gives_a_label_or_none(name):
    found = parse_kermany_name(name)
    assert found is None or found[0] in {"normal", "bacterial", "viral"}


def test_every_real_kermany_name_is_parsed(shared_data):
    names = list((shared_data / "kermany-224").rglob("*.jpeg"))
    parsed = [parse_kermany_name(path.name) for path in names]
    assert None not in parsed
    assert all(
        (found[0] == "normal") == (path.parent.name == "NORMAL")
        for found, path in zip(parsed, names, strict=True)
    )
