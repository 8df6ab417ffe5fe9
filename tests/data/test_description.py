"""``dataset.yaml``: read, written, carried by manifests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumoscope.data import Manifest, Record, load, scan
from pneumoscope.data.description import read_description, write_description
from pneumoscope.domain import DatasetDescription, Population
from pneumoscope.errors import DataError

CHILDREN = DatasetDescription(
    name="Kermany 2018",
    population=Population("children", (1, 5), ("AP",)),
    hospital="Guangzhou Women and Children's Medical Center",
    label_source="two physicians",
    licence="CC BY 4.0",
    citation="Kermany et al., Cell 2018; doi:10.17632/rscbjbr9sj.2",
)
TEXT = st.text(st.characters(exclude_categories=("C",)), max_size=20).map(str.strip)
AGES = st.tuples(st.none() | st.integers(0, 40), st.none() | st.integers(40, 120))
DESCRIPTIONS = st.builds(
    DatasetDescription,
    name=TEXT,
    population=st.builds(
        Population,
        name=TEXT.filter(bool),
        ages=AGES,
        views=st.lists(st.sampled_from(["AP", "PA", "LL"]), unique=True).map(tuple),
    ),
    hospital=TEXT,
    label_source=TEXT,
    licence=TEXT,
    citation=TEXT,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(description=DESCRIPTIONS)
def test_what_is_written_is_read(tmp_path, description):
    write_description(tmp_path, description)
    assert read_description(tmp_path) == description


def test_a_file_written_by_hand(tmp_path):
    (tmp_path / "dataset.yaml").write_text(
        "name: Ward 3\npopulation: {name: adults, ages: [18, null], views: pa}\nlicence:\n"
    )
    assert read_description(tmp_path) == DatasetDescription(
        "Ward 3", Population("adults", (18, None), ("PA",))
    )
    (tmp_path / "dataset.yaml").write_text("")
    assert read_description(tmp_path) == DatasetDescription()


def test_without_a_file_nothing_is_stated(tmp_path):
    assert read_description(tmp_path) is None
    assert read_description(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("nmae: x\n", "nmae"),
        ("population: {age: [1, 5]}\n", "population.age"),
        ("population: children\n", "population"),
        ("population: {ages: 5}\n", "population.ages"),
        ("population: {ages: [1, 5, 7]}\n", "population.ages"),
        ("population: {ages: [5, 1]}\n", "population.ages"),
        ("population: {ages: [1.5, 3]}\n", "population.ages"),
        ("population: {ages: [true, 3]}\n", "population.ages"),
        ("population: {views: [front]}\n", "population.views"),
        ("population: {views: 3}\n", "population.views"),
        ("population: {name: [a]}\n", "population.name"),
        ("licence: 4.0\n", "licence"),
        ("hospital: [a, b]\n", "hospital"),
        ("- name\n", "the file"),
        ("name: {\n", "not YAML"),
        ("name: 2018-99-99\n", "not YAML"),
        ("name: !!python/object:os.system x\n", "not YAML"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_key(tmp_path, text, key):
    path = tmp_path / "dataset.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_description(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert key in message
    assert "\n" not in message


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
def test_any_bytes_give_a_description_or_one_error(tmp_path, content):
    (tmp_path / "dataset.yaml").write_bytes(content)
    try:
        read_description(tmp_path)
    except DataError as error:
        assert "\n" not in str(error)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "normal").mkdir(parents=True)
    (tmp_path / "images" / "normal" / "a.png").write_bytes(b"x")
    write_description(tmp_path / "images", CHILDREN)
    return tmp_path / "images"


def test_a_manifest_carries_the_description_of_its_folder(folder):
    manifest = scan(folder)
    assert manifest.description == load(folder).description == CHILDREN
    assert manifest.with_records(manifest.records).subset("").description == CHILDREN
    assert manifest.fingerprint() == replace(manifest, description=None).fingerprint()


def test_the_description_beside_a_manifest_comes_before_that_of_its_images(folder, tmp_path):
    scan(folder).write(tmp_path / "run" / "split.csv")
    assert load(tmp_path / "run" / "split.csv").description == CHILDREN
    other = replace(CHILDREN, name="other")
    write_description(tmp_path / "run", other)
    assert load(tmp_path / "run" / "split.csv").description == other


def test_a_manifest_without_a_description_has_none(tmp_path):
    Manifest((Record("a.png", "normal", "p"),), tmp_path).write(tmp_path / "m.csv")
    assert load(tmp_path / "m.csv").description is None


def test_a_key_that_is_there_twice_is_named_and_one_that_is_merged_is_not(tmp_path):
    (tmp_path / "dataset.yaml").write_text("name: A\nlicence: CC0\nname: B\n")
    with pytest.raises(DataError, match="the key 'name' is given twice"):
        read_description(tmp_path)
    (tmp_path / "dataset.yaml").write_text("population: {<<: {name: adults, ages: [1, 5]}, name: children}\n")
    assert read_description(tmp_path).population == Population("children", (1, 5))
