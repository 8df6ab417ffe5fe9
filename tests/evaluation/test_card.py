from __future__ import annotations

import pytest

from pneumoscope.evaluation import evaluate_scores
from pneumoscope.evaluation.card import write_card

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
        "evaluated_on": "phantoms, test split",
        "speed": {"images a second, one core": 90, "machine": ["a", "b"]},
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
        "Measured on phantoms, test split: 120 images",
        f"| AUROC | {auroc['value']:.3f} | {auroc['low']:.3f} to {auroc['high']:.3f} |",
        f"| source: NORMAL2 | 60 | {source['pneumonia']} |",
        "Calibrated by vector scaling, fitted on the val split.",
        "| balanced (default) | amid the greatest sums of sensitivity and specificity | 0.4567 | –",
        "| screening | sensitivity at least 0.98 | 0.1200 | 0.981 | 0.700 |",
        "90% of the images of each class",
        "- images a second, one core: 90",
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
    assert "| AUROC | – | needs images with and without pneumonia |" in card


def test_a_bundle_that_was_not_measured_has_a_card():
    card = write_card({"name": "bare", "findings": ["normal", "pneumonia"]}, {})
    assert "normal or pneumonia" in card
    assert "often look alike" not in card  # it tells no kinds apart
    assert "How well it reads" not in card
    assert "no calibrator was fitted" in card


def whole_metrics(scored):
    """Everything `evaluate_bundle` may measure, with a made-up robustness."""
    metrics = evaluate_scores(scored, threshold=0.4567, n_boot=20, points={"screening": 0.12})
    figure, lost = {"value": 0.9, "low": 0.8, "high": 0.95}, {"value": -0.05, "low": -0.1, "high": 0.01}
    summary = dict.fromkeys(("auroc", "sensitivity", "specificity", "rejected"), figure)
    row = {**summary, "auroc_change": lost}
    strengths = [{"setting": 1, "auroc": value} for value in (0.95, 0.9, None)]
    one = {"images": 100, "strengths": strengths, **row}
    groups = {
        name: {"mean": row, "corruptions": {"gaussian_blur": one}}
        for name in ("medmnist_c", "transfer", "shortcut")
    }
    metrics["robustness"] = {"images": 120, "patients": 90, "side": 224, "clean": summary, **groups}
    metrics["not_evaluated"] = {
        "rejected": 3,
        "unreadable": 1,
        "reasons": {"lateral_view": 3, "truncated": 1},
    }
    return metrics


def section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_robustness_rejections_calibration_and_mistakes_have_their_sections(draw):
    metrics = whole_metrics(draw(n=120))
    card = write_card(BUNDLE, metrics)
    robustness = section(card, "Robustness")
    assert "### Corruptions of MedMNIST-C" in robustness
    assert (
        "| gaussian blur, 100 images | 0.950 0.900 – | 0.900 (0.800 to 0.950) | -0.050 (-0.100 to +0.010) |"
        in robustness
    )
    assert "| mean |  | 0.900" in robustness
    rejections = section(card, "What it rejects")
    assert "Of 124 images 3 (2.4%) were rejected and 1 could not be read." in rejections
    assert "lateral view 3, truncated 1" in rejections
    answers = section(card, "How it answers")
    ece = metrics["pneumonia"]["ece"]
    assert f"ECE (15 bins) is {ece['value']:.3f} ({ece['low']:.3f} to {ece['high']:.3f})" in answers
    assert answers.count("\n| 0.") >= len(metrics["reliability"]) - 1
    measured = metrics["operating_points"]["screening"]["sensitivity"]
    assert f"| 0.981 | 0.700 | {measured['value']:.3f} (" in answers
    mistakes = section(card, "Worst mistakes")
    assert len(metrics["mistakes"]) == mistakes.count("| `")
    worst = metrics["mistakes"][0]
    assert f"| `{worst['path']}` | {worst['label']} | {worst['p_pneumonia']:.3f} | missed |" in mistakes
    for block in card.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.strip().split("\n")}) == 1


def test_the_whole_is_said_once_to_be_no_medical_device(draw):
    bundle = {**BUNDLE, "intended_use": "Research. Not a medical device."}
    assert write_card(bundle, whole_metrics(draw(n=120))).lower().count("medical device") == 1


def test_other_sets_have_their_own_rows_and_subgroups(draw):
    adults = {**whole_metrics(draw(n=90, seed=3)), "evaluated_on": "films of another hospital"}
    results = {**BUNDLE["results"], "elsewhere": {"adults": adults}}
    provenance = {"data_description": "kermany-224"}
    card = write_card({**BUNDLE, "results": results, "provenance": provenance}, whole_metrics(draw(n=120)))
    others = section(card, "On other sets")
    auroc = adults["pneumonia"]["auroc"]
    assert f"| adults | 90 | {auroc['value']:.3f} ({auroc['low']:.3f}" in others
    assert "- adults: films of another hospital" in others
    assert "### Subgroups of adults" in others
    limits = section(card, "Intended use and limits")
    assert "children of 1 to 5 years, AP view" in limits
    assert "*On other sets*" in limits
    assert "- Licence of the data: CC BY 4.0" in card
    alone = write_card({**BUNDLE, "provenance": provenance}, whole_metrics(draw(n=120)))
    assert "not measured on adults" in alone
    assert "On other sets" not in alone
    assert "children" not in write_card(BUNDLE, {})  # of unknown data nothing is known
