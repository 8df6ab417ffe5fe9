from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pneumoscope.domain import CodedConcept, Population, Target
from pneumoscope.errors import RecipeError
from pneumoscope.image.standardise import InputSpec
from pneumoscope.training.augment import Augmentation
from pneumoscope.training.recipe import (
    Distillation,
    NetworkSpec,
    Phase,
    Pretraining,
    Recipe,
    SplitSpec,
    Tasks,
    load_recipe,
    recipe_names,
)
from pneumoscope.training.target import PNEUMONIA, parse_target

PUBLISHED = {"custom-cnn", "default", "inception-v3", "vgg16", "vgg19-first16", "vgg19-two-phase"}
SMALL = {
    "name": "small",
    "description": "For tests.",
    "network": {"name": "custom-cnn", "channels": 1},
    "phases": [{"epochs": 2, "lr": 0.01}],
}


def fault(tmp_path, changes):
    """Return the one line of the error of a recipe with changes."""
    path = tmp_path / "r.yaml"
    path.write_text(
        changes if isinstance(changes, str) else yaml.safe_dump(SMALL | changes), encoding="utf-8"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_the_published_systems_ship():
    assert set(recipe_names()) >= PUBLISHED


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_survives_being_written_out(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(str(tmp_path / "again.yaml"))
    assert again == recipe
    assert again.sha256 == recipe.sha256


def test_the_resolved_recipe_spells_every_default_out(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    written = yaml.safe_load(load_recipe(str(tmp_path / "r.yaml")).to_yaml())
    assert set(written) == set(Recipe.model_fields)
    assert written["input"]["size"] == 224


def test_the_hash_follows_the_content():
    recipe = load_recipe("custom-cnn")
    assert recipe.model_copy(update={"seed": 1}).sha256 != recipe.sha256
    assert recipe.model_copy().sha256 == recipe.sha256


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimiser": "adam"}, "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ({"qqq": 1}, "unknown key 'qqq'"),
        (
            {"network": {"name": "custom-cnn", "dropuot": 0.1}},
            "unknown key 'network.dropuot'; did you mean 'dropout'?",
        ),
        (
            {"phases": [{"epochs": 1, "lr": 1, "frozzen": 3}]},
            "unknown key 'phases.0.frozzen'; did you mean 'frozen'?",
        ),
        ({"input": {"sise": 64}}, "unknown key 'input.sise'; did you mean 'size'?"),
        ({"augmentation": {"rotation": 5}}, "unknown key 'augmentation.rotation'; did you mean 'rotate'?"),
        (
            {"target": {"name": "x", "classes": ["a"], "cod": 1}},
            "unknown key 'target.cod'; did you mean 'code'?",
        ),
        ({"split": {"sed": 5}}, "unknown key 'split.sed'; did you mean 'seed'?"),
    ],
)
def test_an_unknown_key_is_named_with_a_guess(tmp_path, changes, expected):
    assert fault(tmp_path, changes) == expected


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"batch": 1}, "batch: "),
        ({"batch": "many"}, "batch: "),
        ({"phases": []}, "phases: "),
        ({"phases": [{"epochs": 0, "lr": 0.1}]}, "phases.0.epochs: "),
        ({"phases": [{"epochs": 1, "lr": -0.1}]}, "phases.0.lr: "),
        (
            {"phases": [{"epochs": 1, "lr": 0.1, "augmentation_strength": 3}]},
            "phases.0.augmentation_strength: ",
        ),
        (
            {"phases": [{"epochs": 1, "lr": 0.1, "average_power": 2}]},
            "phases.0.average_power: needs ema",
        ),
        (
            {"phases": [{"epochs": 1, "lr": 0.1, "sampling_exponent": 0.5}]},
            "phases.0.sampling_exponent: needs sampling",
        ),
        ({"phases": [{"epochs": 1, "lr": 0.1, "trust": 0}]}, "phases.0.trust: needs distillation"),
        ({"phases": [{"epochs": 1, "lr": 0.1, "expert": True}]}, "phases.0.expert: needs network.expert"),
        (
            {"network": {"name": "resnet18", "expert": {"population": {"ages": [0, 5]}}}},
            "network: expert: needs a pyramid",
        ),
        (
            {"network": {"name": "resnet18", "pyramid": 8, "expert": {"population": {"name": "all"}}}},
            "network.expert: population: needs bounds",
        ),
        (
            {
                "network": {"name": "resnet18", "pyramid": 8, "expert": {"population": {"ages": [0, 5]}}},
                "phases": [{"epochs": 1, "lr": 0.1, "expert": True, "frozen": 3}],
            },
            "phases.0.frozen: has no effect",
        ),
        ({"phases": [{"epochs": 1, "lr": 0.1, "frozen": "all"}]}, "phases.0.frozen"),
        ({"phases": [{"epochs": 1, "lr": 0.1, "frozen": -1}]}, "phases.0.frozen"),
        ({"optimizer": "lion"}, "optimizer: "),
        ({"input": {"size": 7}}, "input.size: "),
        ({"ema": 1.0}, "ema: "),
        ({"classes": ["normal"]}, "classes"),
        ({"classes": ["a b", "a_b"], "target": {"name": "x", "classes": ["a_b"]}}, "classes: two of"),
        ({"target": {"name": "x", "classes": []}}, "target: a name and at least one class"),
        ({"target": {"name": "x", "classes": ["a", "a"]}}, "target.classes: each must"),
        ({"classes": ["a", "b"], "target": {"name": "x", "classes": ["c"]}}, "target.classes: c not among"),
        ({"classes": ["a", "b"], "target": {"name": "x", "classes": ["a", "b"]}}, "target.classes: at least"),
        (
            {"classes": ["a", "b", "c"], "target": {"name": "a", "classes": ["b"]}},
            "target.name: a is named like a class",
        ),
        ({"classes": ["normal", "viral", "viral"]}, "classes"),
        ({"augmentation": {"flip": 2}}, "augmentation.flip: "),
        ({"augmentation": {"area": [0, 1]}}, "augmentation"),
        ({"augmentation": {"area": [1.0, 0.5]}}, "augmentation"),
        ({"split": {"fractions": [0.5, 0.5]}}, "split.fractions"),
        ({"split": {"fractions": [0.5, 0.5, 0.5]}}, "split"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, changes, key):
    assert key in fault(tmp_path, changes)


# Classes and target


def small(**changes):
    return Recipe.model_validate(SMALL | changes)


@pytest.mark.parametrize(
    ("labels", "classes", "target"),
    [
        (["viral", "normal", "bacterial"], ("normal", "bacterial", "viral"), ("bacterial", "viral")),
        (["pneumonia", "normal"], ("normal", "pneumonia"), ("pneumonia",)),
        (
            ["pneumonia", "normal", "viral", "bacterial"],
            ("normal", "bacterial", "viral"),
            ("bacterial", "viral"),
        ),
        (["normal", "bacterial"], ("normal", "bacterial"), ("bacterial",)),
    ],
)
def test_pneumonia_is_the_target_of_normal_and_its_subtypes(labels, classes, target):
    found = small().resolved(labels)
    assert found.classes == classes
    assert found.target == Target("pneumonia", target, CodedConcept("233604007", "SCT", "Pneumonia"))
    assert found.target_mask.tolist() == [name in target for name in classes]
    assert found.resolved(labels) == found


@pytest.mark.parametrize(
    "labels", [["clear", "lobar"], ["normal", "covid", "bacterial"], ["bacterial", "viral"]]
)
def test_other_classes_need_a_target_and_the_error_says_how_to_name_it(labels):
    for recipe in (small(), small(classes=labels)):
        with pytest.raises(RecipeError, match=r"--target NAME=CLASS.*target: \{name: NAME") as caught:
            recipe.resolved(labels)
        assert "\n" not in str(caught.value)
        assert ", ".join(sorted(labels)) in str(caught.value)


def test_the_classes_of_the_target_come_last_in_its_own_order():
    found = small(target={"name": "infiltrate", "classes": ["lobar", "diffuse"]})
    assert found.classes is None
    found = found.resolved(["diffuse", "other", "clear", "lobar", "infiltrate"])
    assert found.classes == ("clear", "other", "lobar", "diffuse")
    assert found.target_mask.tolist() == [False, False, True, True]
    assert found.target.code is None


def test_normal_is_a_class_like_any_other():
    found = small(classes=["viral", "normal"], target={"name": "viral", "classes": ["viral"]}).resolved()
    assert found.target_mask.tolist() == [True, False]


def test_a_target_that_does_not_fit_the_labels_is_one_line():
    with pytest.raises(RecipeError, match=r"small: target.classes: at least one class must be outside"):
        small(target={"name": "x", "classes": ["a", "b"]}).resolved(["a", "b"])


def test_a_target_is_read_from_the_command_line():
    assert parse_target("Infiltrate = lobar, Diffuse") == Target("infiltrate", ("lobar", "diffuse"))
    assert parse_target("pneumonia=viral").code == PNEUMONIA
    for wrong in ("infiltrate", "=lobar", "infiltrate=", "infiltrate=lobar,"):
        with pytest.raises(RecipeError, match=r"write it as NAME=CLASS"):
            parse_target(wrong)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_state_classes_and_target(name):
    recipe = load_recipe(name)
    assert recipe.resolved() == recipe


def test_populations_are_read_and_written(tmp_path):
    path = tmp_path / "r.yaml"
    given = [{"name": "adults", "ages": [18, None], "views": ["PA"]}]
    path.write_text(yaml.safe_dump(SMALL | {"populations": given}))
    recipe = load_recipe(str(path))
    assert recipe.populations == (Population("adults", (18, None), ("PA",)),)
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe
    assert Recipe.model_validate(SMALL).sha256 != recipe.sha256


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"name": "adults"}, {"name": "adults", "views": ["PA"]}], "each name must be listed once"),
        ([{"ages": [18, None]}], "each needs a name other than 'any'"),
    ],
)
def test_populations_have_names_of_their_own(tmp_path, given, message):
    """A bundle finds their calibrations by these."""
    assert fault(tmp_path, {"populations": given}) == f"populations: {message}"


def test_a_seed_below_zero_is_named(tmp_path):
    assert fault(tmp_path, {"split": {"seed": -1}}).startswith("split.seed: ")


def test_a_missing_key_is_named(tmp_path):
    without = {name: value for name, value in SMALL.items() if name != "network"}
    assert fault(tmp_path, yaml.safe_dump(without)) == "the key 'network' is missing"
    assert fault(tmp_path, {"phases": [{"epochs": 1}]}) == "the key 'phases.0.lr' is missing"


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n", "3"])
def test_what_is_no_table_is_rejected(tmp_path, text):
    assert fault(tmp_path, text) == "a recipe is a table of keys and values"


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\tx: 1", "a: &x [*x, *y]"])
def test_what_is_no_yaml_is_rejected(tmp_path, text):
    assert fault(tmp_path, text).startswith("not valid YAML: ")


def test_keys_that_are_no_words_are_rejected(tmp_path):
    fault(tmp_path, "1: 2\n2: 3\n")


def test_a_tag_that_would_run_code_is_rejected(tmp_path):
    assert fault(tmp_path, "!!python/object/apply:os.getcwd []").startswith("not valid YAML: ")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("custom-cn", "did you mean 'custom-cnn'?"),
        ("vgg19first16", "did you mean 'vgg19-first16'?"),
        ("zzz", "known: "),
    ],
)
def test_an_unknown_recipe_is_one_line_with_a_guess(name, hint):
    with pytest.raises(RecipeError, match="no such recipe") as caught:
        load_recipe(name)
    assert hint in str(caught.value)


def test_a_recipe_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("absent.yaml", "folder.yaml", "bytes.yaml"):
        with pytest.raises(RecipeError, match=f"{name}: recipe cannot be read") as caught:
            load_recipe(str(tmp_path / name))
        assert "give a .yaml file, or one of children, custom-cnn" in str(caught.value)
    (tmp_path / "date.yaml").write_text("name: 2025-13-01\n")
    with pytest.raises(RecipeError, match=r"date\.yaml: not valid YAML: month must be"):
        load_recipe(str(tmp_path / "date.yaml"))


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [1]), (2, [1, 1]), (3, [2, 1]), (25, [24, 1]), (26, [25, 1]), (40, [25, 15])]
)
def test_with_epochs_keeps_the_order_of_the_phases(epochs, expected):
    recipe = load_recipe("vgg19-two-phase").with_epochs(epochs)
    assert [phase.epochs for phase in recipe.phases] == expected
    assert recipe.epochs == epochs
    assert recipe.phases[0].frozen == "backbone"


def test_one_epoch_is_one_epoch_of_a_recipe_with_three_phases():
    recipe = load_recipe("default")
    assert len(recipe.phases) == 3
    assert [recipe.with_epochs(epochs).epochs for epochs in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_from_scratch_frees_every_layer_and_takes_its_own_rate():
    recipe = load_recipe("vgg19-two-phase")
    scratch = recipe.from_scratch()
    assert recipe.network.pretrained
    assert not scratch.network.pretrained
    assert [phase.frozen for phase in scratch.phases] == ["none", "none"]
    assert [phase.lr for phase in scratch.phases] == [recipe.phases[0].scratch_lr, recipe.phases[1].lr]
    assert scratch.sha256 != recipe.sha256
    tuned = scratch.with_values({"phases.0.lr": 0.0123})
    assert tuned.from_scratch() == tuned, "a learning rate that was chosen for it stays"


def test_layers_that_are_pretrained_on_the_images_may_be_frozen():
    recipe = Recipe.model_validate(
        SMALL
        | {
            "pretraining": {"epochs": 1},
            "augmentation": {"gamma": 0.3},
            "phases": [{"epochs": 1, "lr": 0.1, "frozen": "backbone"}],
        }
    )
    assert recipe.from_scratch().phases[0].frozen == "backbone"


def test_pretraining_needs_two_views_of_an_image():
    for augmentation in ({}, {"lungs_only": 0.5}):
        with pytest.raises(ValidationError, match="pretraining: needs an augmentation"):
            Recipe.model_validate(SMALL | {"pretraining": {"epochs": 1}, "augmentation": augmentation})


def test_labels_are_smoothed_by_source_and_label():
    made = Recipe.model_validate(
        SMALL | {"label_smoothing": 0.1, "label_noise": {"reports": 0.4, "mined": {"pneumonia": 0.3}}}
    )
    assert made.smoothing("clinic", "normal") == 0.1
    assert made.smoothing("reports", "normal") == 0.4
    assert made.smoothing("mined", "pneumonia") == 0.3
    assert made.smoothing("mined", "normal") == 0.1


# The reference page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"
SECTIONS = {
    "The recipe": Recipe,
    "`input`": InputSpec,
    "`network`": NetworkSpec,
    "`phases`": Phase,
    "`augmentation`": Augmentation,
    "`split`": SplitSpec,
}


def section_of(title):
    return re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)[1]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_reference_names_every_key_with_its_default(title):
    rows = {}
    for keys, default in re.findall(r"^\| (`.*?`) \| (.*?) \|", section_of(title), re.M):
        rows |= dict.fromkeys(re.findall(r"`(\w+)`", keys), default)
    fields = SECTIONS[title].model_fields
    assert set(rows) == set(fields)
    for name, field in fields.items():
        if field.is_required():
            assert rows[name].startswith("required"), name
        elif found := re.fullmatch(r"`(.*)`", rows[name]):
            value = yaml.safe_load(found[1])
            expected = field.default
            assert value == (list(expected) if isinstance(expected, tuple) else expected), name
        else:
            # None, or a table that changes nothing and has a section of its own.
            assert not field.default or isinstance(field.default, BaseModel), name


@pytest.mark.parametrize(
    ("key", "model"), [("distillation", Distillation), ("pretraining", Pretraining), ("tasks", Tasks)]
)
def test_the_reference_names_the_keys_of_teachers_pretraining_and_tasks(key, model):
    rows = dict(re.findall(rf"^\| `{key}\.(\w+)` \| (.*?) \|", PAGE.read_text(), re.M))
    assert set(rows) == set(model.model_fields)
    for name, field in model.model_fields.items():
        default = f"`{field.default}`" if field.default not in ("", None) else "none"
        assert rows[name] == ("required" if field.is_required() else default), name


def test_the_example_of_the_reference_is_a_recipe(tmp_path):
    example = re.search(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.M | re.S)[1]
    (tmp_path / "mine.yaml").write_text(example)
    assert load_recipe(str(tmp_path / "mine.yaml")).epochs == 30


def test_the_page_on_several_hospitals_shows_what_the_recipe_has():
    page = Path(__file__).parents[2] / "docs/how-to/several-hospitals.md"
    (text,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    shown = yaml.safe_load(text)
    recipe = load_recipe("hospitals").model_dump(mode="json")
    made = Recipe.model_validate(SMALL | shown).model_dump(mode="json")
    for name in shown.keys() - {"augmentation"}:
        assert made[name] == recipe[name], name
    for name in shown["augmentation"]:
        assert made["augmentation"][name] == recipe["augmentation"][name], name


def test_a_target_with_the_column_of_a_class_is_rejected(tmp_path):
    target = {"name": "lung opacity", "classes": ["lung_opacity"]}
    message = fault(tmp_path, {"classes": ["normal", "lung_opacity"], "target": target})
    assert "lung opacity is named like a class" in message
    target["name"] = "lung_opacity"
    assert Recipe.model_validate(SMALL | {"classes": ["normal", "lung_opacity"], "target": target})


def test_a_key_that_is_there_twice_is_named(tmp_path):
    text = yaml.safe_dump(SMALL)
    message = fault(tmp_path, text + "batch: 16\nbatch: 8\n")
    assert "the key 'batch' is given twice" in message
    assert "'lr' is given twice" in fault(tmp_path, text.replace("lr: 0.01", "lr: 0.01\n  lr: 0.1"))
