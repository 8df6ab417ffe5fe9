"""What a result means, in words."""

from __future__ import annotations

import pytest

from pneumoscope.domain import Estimate, OperatingPoint, Population, Prediction
from pneumoscope.errors import CAUTIONS, Reason
from pneumoscope.report.statements import (
    CAUTION_TEXTS,
    caution_statements,
    conclusion,
    operating_point_statement,
    population_statement,
    probability_statement,
    rejection_statement,
    set_statement,
)
from predictions import BUNDLES, SUBTYPES


@pytest.mark.parametrize(
    ("p_target", "shown", "share"),
    [
        (0.001, "0.1%", "fewer than 1"),
        (0.5, "50.0%", "about 50"),
        (0.876, "87.6%", "about 88"),
        (0.9999, ">99.9%", "more than 99"),
    ],
)
def test_the_probability_is_explained_as_a_share(p_target, shown, share):
    text = probability_statement(Prediction("x", "ok", target="pneumonia", p_target=p_target))
    assert f"{share} show pneumonia" in text and "rarer, fewer" in text and f"Probability {shown}:" in text


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_words_are_those_of_the_bundle(bundle):
    prediction = bundle.prediction("x", bundle.positive)
    assert conclusion(prediction).lower() == f"{bundle.target} suspected"
    assert bundle.target in probability_statement(prediction)
    # Not "on": the probabilities may be shifted to another prevalence than that of the calibration.
    assert "the model is calibrated for" in probability_statement(prediction)


def test_conclusions():
    positive = SUBTYPES.prediction("x", SUBTYPES.positive)
    negative = SUBTYPES.prediction("x", SUBTYPES.negative)
    uncertain = SUBTYPES.prediction("x", SUBTYPES.negative, uncertain=True)
    assert conclusion(positive) == "Pneumonia suspected"
    assert conclusion(negative) == "No pneumonia detected"
    assert conclusion(uncertain) == "Uncertain, leaning away from pneumonia"
    assert conclusion(Prediction("x", "rejected")) == "Not predicted: image rejected"
    assert conclusion(Prediction("x", "unreadable")) == "Not predicted: image could not be read"


def test_the_operating_point_says_how_often_it_was_right():
    point = OperatingPoint("screening", 0.25, "sensitivity at least 0.98", chosen_on="the validation split")
    assert operating_point_statement(point, "pneumonia") == (
        "Operating point screening: a probability of 25.0% or more counts as pneumonia "
        "(sensitivity at least 0.98)."
    )
    measured = OperatingPoint(
        "b", 0.5, chosen_on="the validation split", sensitivity=Estimate(0.9), specificity=Estimate(0.8)
    )
    text = operating_point_statement(measured, "pneumonia")
    assert text.endswith("Sensitivity 90.0%, specificity 80.0% on the validation split.")
    half = OperatingPoint(
        "b", 0.5, sensitivity=Estimate(0.9), specificity=Estimate(None, reason="no normals")
    )
    assert "None" not in operating_point_statement(half, "pneumonia")


def test_a_low_threshold_is_not_said_to_be_none():
    text = operating_point_statement(OperatingPoint("screening", 0.00012), "pneumonia")
    assert "a probability of 0.012% or more" in text


def test_the_population_says_on_whom_the_model_was_evaluated():
    prediction = SUBTYPES.prediction("x", SUBTYPES.positive, population="children")
    text = population_statement(prediction, [Population("children", (1, 5), ("AP",))])
    assert text == "Calibration for children. Evaluated on: children, 1 to 5 years, AP view."
    assert population_statement(prediction, []).endswith("Evaluated on: not stated.")


def test_prediction_sets():
    classes = SUBTYPES.prediction(
        "x", SUBTYPES.positive, prediction_set=("viral", "normal"), set_coverage=0.9
    )
    assert set_statement(classes) == "Not ruled out (90% coverage): viral, normal."
    empty = SUBTYPES.prediction("x", SUBTYPES.positive, set_coverage=0.9)
    assert "none: no class reaches" in set_statement(empty)
    assert set_statement(SUBTYPES.prediction("x", SUBTYPES.positive)) == ""


def test_a_rejection_names_its_reasons_but_not_cautions():
    reasons = (Reason.BODY_PART_MISMATCH, Reason.NOT_A_CHEST_RADIOGRAPH)
    prediction = Prediction("x", "rejected", reasons, message="Not a chest: give a chest.")
    assert rejection_statement(prediction) == "Not a chest: give a chest. Reason: not a chest radiograph."
    assert rejection_statement(Prediction("x", "rejected")) == "No further detail. Reason: not stated."


def test_every_caution_has_a_sentence_without_attributes_of_the_patient():
    assert set(CAUTION_TEXTS) == CAUTIONS
    message = "Caution: not on 91 years, PA view"
    prediction = SUBTYPES.prediction("x", SUBTYPES.positive, reasons=tuple(CAUTIONS), message=message)
    texts = caution_statements(prediction)
    assert len(texts) == len(CAUTIONS) and "91" not in " ".join(texts)
