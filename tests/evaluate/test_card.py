from __future__ import annotations

import pytest

from pneumoscope.evaluate import evaluate_scores
from pneumoscope.evaluate.card import write_card

BUNDLE = {
    "name": "small",
    "findings": ["normal", "bacterial", "viral"],
    "input": {"size": 160, "fit": "pad", "denoise": "none", "lungs": "crop"},
    "calibrator": {"method": "vector", "scale": [1, 1, 1], "bias": [0, 0, 0], "fitted_on": "the val split"},
    "operating_points": [
        {"name": "screening", "threshold": 0.12, "sensitivity": 0.981, "specificity": 0.7},
        {"name": "balanced", "threshold": 0.4567, "sensitivity": None, "specificity": None},
    ],
    "default_operating_point": "balanced",
    "conformal": [0.1, 0.2, 0.3],
    "conformal_alpha": 0.1,
    "provenance": {
        "recipe": "default",
        "data_description": "phantoms | drawn",
        "split_seed": 0,
        "parent": None,
    },
    "results": {
        "speaks_of": "phantoms, test split",
        "speed": {"pictures a second, one core": 90, "machine": ["a", "b"]},
    },
    "intended_use": "Research and teaching.",
    "licence": "Apache-2.0",
    "files": {"model.onnx": "ab" * 32, "card.md": "cd" * 32},
}


def test_card_tells_everything(draw):
    metrics = evaluate_scores(draw(n=120), threshold=0.4567, n_boot=20)
    card = write_card(BUNDLE, metrics)
    auroc = metrics["pneumonia"]["auroc"]
    source = metrics["by_source"]["NORMAL2"]
    for expected in (
        "# small\n",
        "normal, bacterial or viral",
        "Research and teaching.",
        "- Split seed: 0\n",
        "- Data: phantoms \\| drawn\n",
        "size 160, fit pad, lungs crop",
        "Measured on phantoms, test split: 120 pictures",
        f"| AUROC | {auroc['value']:.3f} | {auroc['low']:.3f} to {auroc['high']:.3f} |",
        f"| NORMAL2 | 60 | {source['pneumonia']} |",
        "Calibrated by vector scaling, fitted on the val split.",
        "| balanced (default) | 0.4567 | – | – |",
        "| screening | 0.1200 | 0.981 | 0.700 |",
        "90% of the pictures of each class",
        "- pictures a second, one core: 90",
        "- machine: ['a', 'b']",
        "often look alike",
        f"| model.onnx | `{'ab' * 32}` |",
    ):
        assert expected in card, expected
    assert "denoise" not in card
    assert "Made from" not in card
    assert "cd" * 32 not in card  # a card cannot hold its own hash


def test_tables_are_whole(draw):
    card = write_card(BUNDLE, evaluate_scores(draw(n=120), threshold=0.5, n_boot=20))
    for block in card.split("\n\n"):
        if block.startswith("|"):
            widths = {line.replace("\\|", "").count("|") for line in block.strip().split("\n")}
            assert len(widths) == 1


@pytest.mark.parametrize("only", [0, 1])
def test_undefined_figures_have_their_reason(draw, only):
    scored = draw(n=60)
    card = write_card(BUNDLE, evaluate_scores(scored.select(scored.labels == only), threshold=0.5, n_boot=20))
    assert "| AUROC | – | needs pictures with and without pneumonia |" in card


def test_a_bundle_that_was_not_measured_has_a_card():
    card = write_card({"name": "bare", "findings": ["normal", "pneumonia"]}, {})
    assert "normal or pneumonia" in card
    assert "often look alike" not in card  # it tells no kinds apart
    assert "How well it reads" not in card
    assert "no calibrator was fitted" in card
