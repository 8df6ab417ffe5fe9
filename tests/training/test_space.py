from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.errors import RecipeError
from pneumoscope.training.augment import Augmentation
from pneumoscope.training.recipe import Recipe, load_recipe, recipe_names
from pneumoscope.training.space import STRENGTH, Range, default_space, load_space

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "classes": ["normal", "pneumonia"],
        "network": {"name": "custom-cnn", "channels": 1},
        "phases": [{"epochs": 1, "lr": 0.01}, {"epochs": 2, "lr": 0.001}],
        "augmentation": {"area": [0.5, 1.1], "noise": 0.1, "markers": 2, "flip": 0.5, "cutout": 0.6},
        "label_noise": {"a.b": 0.2},
    }
)


@pytest.fixture
def read(tmp_path):
    def space(text):
        path = tmp_path / "space.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_space(path, RECIPE)

    return space


def test_ranges_and_choices_with_the_keys_of_the_recipe(read):
    space = read(
        "phases.1.lr: {low: 1e-5, high: 1e-2, log: true}\nbatch: [16, 32]\n"
        "phases.0.epochs: {low: 1, high: 4}\n"
        "weight_decay: {low: 0, high: 1}\nphases.0.frozen: [none, backbone, 3]\n"
    )
    assert space.keys["phases.1.lr"] == Range(low=1e-5, high=1e-2, log=True)  # YAML 1.1 reads 1e-5 as text
    assert space.keys["batch"] == (16, 32)
    assert space.keys["phases.0.epochs"].whole
    assert not space.keys["weight_decay"].whole
    changed = space.applied(RECIPE, {"phases.1.lr": 0.005, "batch": 16, "phases.0.frozen": 3})
    assert (changed.phases[1].lr, changed.batch, changed.phases[0].frozen) == (0.005, 16, 3)
    assert changed.phases[0].lr == RECIPE.phases[0].lr


def test_what_is_written_reads_the_same(read):
    space = read(
        "phases.0.epochs: {low: 1, high: 4}\nbatch: [16, 32]\nema: {low: 0.5, high: 0.9, step: 0.1}\n"
    )
    assert read(space.to_yaml()) == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phases.0.lrr: [1, 2]", "unknown key 'phases.0.lrr'; did you mean 'phases.0.lr'?"),
        ("phases.2.lr: [0.1, 0.2]", "unknown key 'phases.2.lr'"),
        ("sampling.exponent: {low: 0, high: 1}", "unknown key 'sampling.exponent'"),
        ("seed: [1, 2]", "'seed' is not searched"),
        ("phases.0.scratch_lr: [0.1, 0.2]", "search that"),
        ("distillation: [1, 2]", "'distillation' is not searched"),
        ("batch: 16", "batch: write a range"),
        ("batch: [16]", "batch: give two choices or more"),
        ("batch: [[1], [2]]", "a choice is a number"),
        ("batch: [16, 1]", "batch: 1 is not allowed: batch:"),
        ("batch: [16, many]", "batch: 'many' is not allowed"),
        ("batch: {low: 2}", "batch: high: Field required"),
        ("batch: {low: 2, high: 8, steps: 2}", "batch: steps: Extra inputs"),
        ("weight_decay: {low: 0, high: 1, log: true}", "low must be above 0 with log"),
        ("weight_decay: {low: 2, high: 1}", "low must be below high"),
        ("batch: {low: 8, high: 32, step: 0.5}", "batch: low, high and step must be whole numbers"),
        ("patience: {low: 1.5, high: 4, whole: true}", "patience: low, high and step must be whole"),
        ("network.dropout: {low: 0, high: 1}", "network.dropout: 1.0 is not allowed"),
        ("augmentation.strength: [weak, strong]", "'weak' is not a number"),
        ("weight_decay: {low: .nan, high: 1}", "low must be below high"),
        ("- batch", "a search space is a table"),
        ("", "a search space is a table"),
        ("a: [", "not valid YAML"),
        (b"\xff\xfe\x00", "search space cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_key(read, text, message):
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "space.yaml: " in str(caught.value)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60)))
def test_any_bytes_are_a_space_or_one_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        load_space(path, RECIPE)
    except RecipeError as error:
        assert str(path) in str(error)


@given(
    st.dictionaries(
        st.sampled_from(sorted(RECIPE.values())),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["low", "high", "log"]), inner)
            ),
            max_leaves=4,
        ),
        min_size=1,
        max_size=2,
    )
)
def test_any_values_of_known_keys_are_a_space_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        load_space(path, RECIPE)
    except RecipeError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("name", recipe_names())
def test_the_general_space_holds_the_recipes_own_values(name, tmp_path):
    recipe = load_recipe(name)
    space = default_space(recipe)
    path = tmp_path / "space.yaml"
    path.write_text(space.to_yaml(), encoding="utf-8")
    assert load_space(path, recipe) == space  # every limit is allowed
    own = recipe.values() | {STRENGTH: 1.0}
    assert all(one.low <= own[key] <= one.high for key, one in space.keys.items())
    assert {"weight_decay", "phases.0.lr"} <= set(space.keys)


def test_values_and_their_keys():
    values = RECIPE.values()
    assert values["phases.1.lr"] == 0.001
    assert values["label_noise.a.b"] == 0.2  # a source may have a dot
    assert values["augmentation.area"] == [0.5, 1.1]
    assert RECIPE.with_values(values) == RECIPE
    assert RECIPE.with_values({"label_noise.a.b": 0.1}).label_noise == {"a.b": 0.1}
    with pytest.raises(RecipeError, match="did you mean 'batch'"):
        RECIPE.with_values({"batc": 1})


def test_the_strength_of_an_augmentation():
    own = RECIPE.augmentation
    assert own.scaled(1) == own
    assert own.scaled(0) == Augmentation(flip=own.flip)
    double = own.scaled(2)
    assert (double.noise, double.markers, double.flip) == (0.2, 4, 0.5)
    assert double.area == pytest.approx((0.05, 1.2))
    assert double.cutout < 1  # its limit
    largest = Augmentation(rotate=180, corners=1, sharpness=2)
    assert largest.scaled(1) == largest, "the first trial has the recipe's own values"
    own.scaled(1000)


def test_a_key_that_is_there_twice_is_named(read):
    with pytest.raises(RecipeError, match="the key 'batch' is given twice"):
        read("batch: [16, 32]\nweight_decay: {low: 0, high: 1}\nbatch: [8, 16]\n")
