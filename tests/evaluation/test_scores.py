from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from pneumoscope.domain import Prediction, Target
from pneumoscope.errors import DataError
from pneumoscope.evaluation import ScoredSet, scored_set, worst_mistakes

THREE = ("normal", "bacterial", "viral")
TWO = ("normal", "pneumonia")
TARGET = Target("pneumonia", ("bacterial", "viral"))


@dataclass(frozen=True)
class Row:
    """The part of a manifest's record that evaluating reads."""

    path: str
    label: str
    patient_id: str = "p"
    source: str = "s"
    age: float | None = None
    sex: str = ""
    view: str = ""


def three(path: str, normal: float, bacterial: float, viral: float) -> Prediction:
    return Prediction(
        path,
        "ok",
        probabilities={"normal": normal, "bacterial": bacterial, "viral": viral},
        target="pneumonia",
        p_target=bacterial + viral,
        finding="normal",
    )


def test_pairs_by_position_and_returns_the_unevaluated_apart():
    predictions = [
        three("/data/a.jpeg", 0.7, 0.2, 0.1),
        Prediction("/data/b.jpeg", "unreadable", ("truncated",)),
        three("/data/c.jpeg", 0.1, 0.3, 0.6),
        Prediction("/data/d.jpeg", "rejected", ("lateral_view",)),
    ]
    records = [
        Row("a.jpeg", "normal", "1", "IM"),
        Row("b.jpeg", "viral", "2"),
        Row("c.jpeg", "viral", "3", "person"),
        Row("d.jpeg", "normal", "4"),
    ]
    scored, not_evaluated = scored_set(predictions, records, THREE, TARGET)
    assert [row.path for row in not_evaluated] == ["/data/b.jpeg", "/data/d.jpeg"]
    assert scored.labels.tolist() == [0, 2]
    assert scored.paths == ("a.jpeg", "c.jpeg")
    assert scored.patients == ("1", "3")
    assert scored.sources == ("IM", "person")
    np.testing.assert_allclose(scored.probabilities, [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    np.testing.assert_allclose(scored.p_target, [0.3, 0.9])
    assert scored.is_positive.tolist() == [False, True]


def test_two_classes_take_both_subtypes_as_pneumonia():
    predictions = [three("a", 0.7, 0.2, 0.1), three("b", 0.1, 0.3, 0.6), three("c", 0.2, 0.5, 0.3)]
    records = [Row("a", "normal"), Row("b", "viral"), Row("c", "pneumonia")]
    scored, _ = scored_set(predictions, records, TWO, TARGET)
    assert scored.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(scored.probabilities, [[0.7, 0.3], [0.1, 0.9], [0.2, 0.8]])


def test_all_unevaluated_gives_an_empty_set():
    scored, not_evaluated = scored_set([Prediction("a", "unreadable")], [Row("a", "normal")], THREE, TARGET)
    assert len(scored) == 0
    assert scored.probabilities.shape == (0, 3)
    assert len(not_evaluated) == 1


@pytest.mark.parametrize(
    ("predictions", "records", "classes", "names"),
    [
        ([three("a", 1, 0, 0)], [], THREE, "1 predictions"),
        ([three("a", 1, 0, 0)], [Row("b", "normal")], THREE, "paired with the record of b"),
        ([three("a", 1, 0, 0)], [Row("a", "tuberculosis")], THREE, "a: label 'tuberculosis'"),
        ([three("a", 1, 0, 0)], [Row("a", "pneumonia")], THREE, "a: label 'pneumonia'"),
        (
            [Prediction("a", "ok", probabilities={"normal": 1.0}, target="pneumonia", p_target=0.0)],
            [Row("a", "viral")],
            THREE,
            "no probability for class 'bacter",
        ),
        ([three("a", 1, 0, 0)], [Row("a", "normal")], ("bacterial", "viral"), "label 'normal'"),
    ],
)
def test_what_does_not_pair_up_is_named(predictions, records, classes, names):
    with pytest.raises(DataError, match=names):
        scored_set(predictions, records, classes, TARGET)


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_probabilities_are_checked(bad):
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        ScoredSet(TWO, np.array([0]), np.array([[bad, 0.5]]), ("1",), ("a",), ("s",), target=TARGET)


def test_worst_mistakes_are_the_furthest_from_the_threshold():
    p = np.array([0.1, 0.4, 0.9, 0.6, 0.7, 0.2])
    labels = np.array([1, 1, 1, 0, 0, 0])
    scored = ScoredSet(TWO, labels, np.c_[1 - p, p], ("p",) * 6, tuple("abcdef"), ("s",) * 6, target=TARGET)
    found = worst_mistakes(scored, 0.5)
    assert [(m.path, m.missed) for m in found] == [("a", True), ("b", True), ("e", False), ("d", False)]
    assert [m.path for m in worst_mistakes(scored, 0.5, count=1)] == ["a", "e"]
    assert found[0].label == "pneumonia"
    assert found[0].p_target == pytest.approx(0.1)


def test_attributes_of_the_records_stay_with_the_scores():
    records = [Row("a", "normal", age=4.0, sex="F", view="AP"), Row("b", "viral", age=70.5)]
    adult = replace(three("b", 0.1, 0.3, 0.6), population="adults")
    scored, _ = scored_set([three("a", 0.7, 0.2, 0.1), adult], records, THREE, TARGET)
    assert scored.attributes == {
        "population": ("", "adults"),
        "view": ("AP", ""), "age": ("1 to 5 years", "65 years or more"), "sex": ("F", ""),
    }  # fmt: skip
    assert scored.select(scored.is_positive).attributes["age"] == ("65 years or more",)
    with pytest.raises(DataError, match="each attribute"):
        ScoredSet(
            THREE,
            scored.labels,
            scored.probabilities,
            ("p",) * 2,
            ("a", "b"),
            ("", ""),
            {"sex": ("F",)},
            target=TARGET,
        )


def test_the_target_is_some_of_the_classes():
    for classes in (("clear", "other"), ("bacterial", "viral")):
        with pytest.raises(DataError, match="must count as pneumonia"):
            ScoredSet(classes, np.array([0]), np.array([[0.5, 0.5]]), ("1",), ("a",), ("s",), target=TARGET)


def test_any_classes_in_any_order():
    target = Target("infiltrate", ("lobar", "diffuse"))
    probabilities = {"lobar": 0.2, "clear": 0.5, "diffuse": 0.3}
    prediction = Prediction("a", "ok", probabilities=probabilities, target="infiltrate", p_target=0.5)
    predictions, records = [prediction] * 2, [Row("a", "clear"), Row("a", "diffuse")]
    scored, _ = scored_set(predictions, records, tuple(probabilities), target)
    assert scored.is_positive.tolist() == [False, True]
    np.testing.assert_allclose(scored.p_target, 0.5)
    scored, _ = scored_set(predictions, records, ("clear", "infiltrate"), target)
    assert scored.labels.tolist() == [0, 1]
    np.testing.assert_allclose(scored.probabilities, [[0.5, 0.5]] * 2)
