"""Targets and populations."""

from __future__ import annotations

import pytest

from pneumoscope.domain import Population, Target


def test_the_mask_has_the_classes_of_the_target_and_its_own_name():
    target = Target("pneumonia", ("bacterial", "viral"))
    assert target.mask(("normal", "viral", "other", "bacterial")).tolist() == [False, True, False, True]
    assert target.mask(("normal", "pneumonia")).tolist() == [False, True]


@pytest.mark.parametrize(
    ("population", "other", "part"),
    [
        (Population("preschool", (0, 5)), Population("infants", (0, 1), ("AP",)), 1),
        (Population("preschool", (0, 5)), Population("children", (0, 17)), 0),
        (Population("preschool", (0, 5)), Population("children", (None, 5)), 0),
        (Population("preschool", (0, 5)), Population("adults", (18, None)), -1),
        (Population("old", (65, None)), Population("adults", (18, None)), 0),
        (Population("preschool", (0, 5)), Population(), 0),
        (Population("young, AP", (0, 5), ("AP",)), Population("infants", (0, 1)), 0),
        (Population("young, AP", (0, 5), ("AP",)), Population("infants", (0, 1), ("AP",)), 1),
    ],
)
def test_a_population_is_part_of_another_wholly_partly_or_not_at_all(population, other, part):
    assert population.part(other) == part


@pytest.mark.parametrize(
    ("population", "age", "view", "membership"),
    [
        (Population("child", (0, 17)), 17.9, "unknown", 1),
        (Population("child", (0, 17)), 18.0, "unknown", -1),
        (Population("child", (0, 17)), None, "AP", 0),
        (Population("adult", (18, None), ("PA",)), 40.0, "PA", 1),
        (Population("adult", (18, None), ("PA",)), 40.0, "unknown", 0),
        (Population("adult", (18, None), ("PA",)), 4.0, "unknown", -1),
        (Population("adult", (18, None), ("PA",)), None, "AP", -1),
        (Population(), None, "unknown", 1),
    ],
)
def test_an_image_is_inside_a_population_outside_or_neither(population, age, view, membership):
    assert population.membership(age, view) == membership


@pytest.mark.parametrize(
    ("population", "stated", "words"),
    [
        (Population(), False, "any patient and view"),
        (Population(patients=2, images=1234), False, "any patient and view (2 patients, 1,234 images)"),
        (Population(hospital="Here", images=3), True, "Here (3 images)"),
        (Population("adults", (18, None)), True, "adults, 18 years or more"),
    ],
)
def test_what_is_stated_of_a_population(population, stated, words):
    assert population.is_stated is stated
    assert population.describe_with_counts() == words
