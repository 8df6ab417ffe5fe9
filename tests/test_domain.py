"""Targets and populations."""

from __future__ import annotations

import pytest

from pneumoscope.domain import Population, Target


def test_the_mask_has_the_classes_of_the_target_and_its_own_name():
    target = Target("pneumonia", ("bacterial", "viral"))
    assert target.mask(("normal", "viral", "other", "bacterial")).tolist() == [False, True, False, True]
    assert target.mask(("normal", "pneumonia")).tolist() == [False, True]


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
