from __future__ import annotations

import math

import pytest

from pneumoscope.domain import DatasetDescription, Estimate, OperatingPoint, Population, Target
from pneumoscope.evaluation import evaluate_scores
from pneumoscope.evaluation.card import write_card
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.manifest import BundleManifest, Calibration, Calibrator, Provenance, TrainingData
from pneumoscope.model.measures import BoxMeasures, Localisation, NotEvaluated, Robustness
from pneumoscope.model.results import ExternalValidation, Results, Speed

MANIFEST = BundleManifest(
    name="small",
    state="evaluated",
    classes=("normal", "bacterial", "viral"),
    target=Target("pneumonia", ("bacterial", "viral")),
    input=InputSpec(size=160, fit="pad", lungs="crop"),
    calibrations=(
        Calibration(
            calibrator=Calibrator(
                method="vector", scale=(1, 1, 1), bias=(0, 0, 0), fitted_on="the val split"
            ),
            operating_points=(
                OperatingPoint(
                    "screening",
                    0.12,
                    criterion="sensitivity at least 0.98",
                    chosen_on="the val split",
                    patients=200,
                    sensitivity=Estimate(0.981, 0.96, 0.99),
                    specificity=Estimate(0.7, 0.65, 0.75),
                ),
                OperatingPoint("balanced", 0.4567, criterion="near the maximum of Youden's J"),
            ),
            conformal=(0.1, 0.2, 0.3),
            conformal_alpha=0.1,
        ),
    ),
    provenance=Provenance(
        recipe="default",
        data=(TrainingData(description=DatasetDescription("phantoms | drawn")),),
        split_seed=0,
    ),
    results=Results(speed=Speed(images_per_second=90, latency_ms=6.3, measured_on="two cores")),
    intended_use="Research and teaching.",
    files={"model.onnx": "ab" * 32, "card.md": "cd" * 32},
)


def card_of(metrics=None, **fields):
    results = MANIFEST.results
    if metrics is not None:
        results = results.model_copy(update={"evaluation": metrics})
    return write_card(MANIFEST.model_copy(update={"results": results, **fields}))


def measured(scored, **options):
    metrics = evaluate_scores(scored, n_boot=20, **options)
    return metrics.model_copy(update={"evaluated_on": "phantoms, test split"})


def test_the_card_holds_everything(draw):
    metrics = measured(draw(n=120), threshold=0.4567)
    card = card_of(metrics)
    auroc, source = metrics.detection.auroc, metrics.by_source["NORMAL2"]
    for expected in (
        "# small\n",
        "normal, bacterial or viral",
        "Research and teaching.",
        "- Split seed: 0\n",
        "- Data set: phantoms \\| drawn\n",
        "size 160, fit pad, resampling area, window full, lungs crop",
        "Measured on phantoms, test split: 120 images",
        f"| AUROC | {auroc.value:.3f} | {auroc.low:.3f} to {auroc.high:.3f} |",
        f"| source: NORMAL2 | 60 | {source.positive} |",
        "calibrated by vector scaling, fitted on the val split.",
        "| balanced (default) | any | near the maximum of Youden's J | 0.4567 | not stated | – |",
        "| screening | any | sensitivity at least 0.98 | 0.1200 | the val split (200 patients) "
        "| 0.981 (0.960 to 0.990) | 0.700 (0.650 to 0.750) |",
        "90% of the patients of each class, one image each",
        "- Images per second, from file to prediction: 90",
        "- Measured on: two cores",
        "often look alike",
        f"| model.onnx | `{'ab' * 32}` |",
    ):
        assert expected in card, expected
    assert "denoise" not in card
    assert "Recalibrated from" not in card
    assert "cd" * 32 not in card  # a card cannot hold its own hash


def test_tables_are_whole(draw):
    for block in card_of(measured(draw(n=120), threshold=0.5)).split("\n\n"):
        if block.startswith("|"):
            widths = {line.replace("\\|", "").count("|") for line in block.strip().split("\n")}
            assert len(widths) == 1


@pytest.mark.parametrize("only", [0, 1])
def test_undefined_measures_have_their_reason(draw, only):
    scored = draw(n=60)
    card = card_of(measured(scored.select(scored.labels == only), threshold=0.5))
    assert "| AUROC | – | needs images with and without pneumonia |" in card


def test_a_bundle_that_was_not_evaluated_has_a_card():
    card = write_card(
        BundleManifest(
            name="bare",
            classes=("clear", "tb"),
            target=Target("tuberculosis", ("tb",)),
            input=InputSpec(size=64),
        )
    )
    assert "clear or tb" in card
    assert "decides on tuberculosis (tb)" in card
    assert "pneumonia" not in card
    assert "often look alike" not in card  # the target has one class
    assert "## Evaluation" not in card
    assert "no calibrator was fitted" in card
    assert "Training data: not stated." in card
    assert "Validated on: not stated." in card


def test_the_card_states_what_data_sets_state_and_guesses_nothing():
    """A set called 'nihon' is not NIH ChestX-ray14, and 'kermany-224' alone states no population."""
    for name in ("nihon university hospital", "kermany-224"):
        data = (TrainingData(description=DatasetDescription(name)),)
        card = card_of(provenance=Provenance(data=data))
        assert f"- Data set: {name}\n- Population: not stated\n- Hospital: not stated\n" in card
        assert "- Source of the labels: not stated\n- Licence of the data: not stated\n" in card
        assert "- Citation: not stated" in card
        assert "adults" not in card
        assert "children" not in card
    described = DatasetDescription(
        "Kermany 2018",
        Population("children", (1, 5), ("AP",)),
        "Guangzhou",
        "two physicians",
        "CC BY 4.0",
        "Kermany et al., Cell 2018",
    )
    data = (
        TrainingData(description=described),
        TrainingData(description=DatasetDescription("more"), additional=True),
    )
    card = card_of(provenance=Provenance(data=data, steps=("trained by recipe a", "quantised")))
    for expected in (
        "- Trained on: Kermany 2018 (children, 1 to 5 years, AP view); more (population not stated).",
        "- Population: children, 1 to 5 years, AP view\n- Hospital: Guangzhou\n",
        "- Source of the labels: two physicians\n- Licence of the data: CC BY 4.0\n",
        "- Citation: Kermany et al., Cell 2018",
        "### Additional training data",
        "1. trained by recipe a\n2. quantised",
    ):
        assert expected in card, expected


def test_validated_populations_are_listed():
    validated = (Population("adults", (18, None), ("PA",), "St. Anna", 120, 150),)
    limits = section(card_of(validated=validated), "Intended use and limits")
    assert "Validated on: adults, 18 years or more, PA view, St. Anna (120 patients, 150 images)." in limits
    assert "Not evaluated on other populations." in limits


def whole_metrics(scored):
    """Everything `evaluate_bundle` may measure, with a made-up robustness."""
    metrics = measured(scored, threshold=0.4567, points={"screening": 0.12})
    estimate, lost = {"value": 0.9, "low": 0.8, "high": 0.95}, {"value": -0.05, "low": -0.1, "high": 0.01}
    summary = dict.fromkeys(("auroc", "sensitivity", "specificity", "rejected"), estimate)
    row = {**summary, "auroc_change": lost}
    strengths = [{"setting": 1, "auroc": value} for value in (0.95, 0.9, None)]
    one = {"images": 100, "strengths": strengths, **row}
    groups = {
        name: {"mean": row, "corruptions": {"gaussian_blur": one}}
        for name in ("medmnist_c", "transfer", "shortcut")
    }
    facts = {"images": 120, "patients": 90, "side": 224, "seed": 0, "resamples": 20}
    robustness = Robustness.model_validate({**facts, "clean": summary, **groups})
    counts = NotEvaluated(rejected=3, unreadable=1, reasons={"lateral_view": 3, "truncated": 1})
    return metrics.model_copy(update={"robustness": robustness, "not_evaluated": counts})


def section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_robustness_rejections_calibration_and_mistakes_have_their_sections(draw):
    metrics = whole_metrics(draw(n=120))
    card = card_of(metrics)
    robustness = section(card, "Robustness")
    assert "### Corruptions of MedMNIST-C" in robustness
    assert (
        "| gaussian blur, 100 images | 0.950 0.900 – | 0.900 (0.800 to 0.950) | -0.050 (-0.100 to +0.010) |"
        in robustness
    )
    assert "| mean |  | 0.900" in robustness
    rejections = section(card, "Rejected images")
    assert "Of 124 images 3 (2.4%) were rejected and 1 could not be read." in rejections
    assert "lateral view 3, truncated 1" in rejections
    decisions = section(card, "Calibration and decisions")
    ece = metrics.detection.ece
    assert f"ECE (15 bins) is {ece.value:.3f} ({ece.low:.3f} to {ece.high:.3f})" in decisions
    assert decisions.count("\n| 0.") >= len(metrics.reliability) - 1
    reached = metrics.operating_points["screening"].sensitivity
    assert f"| screening | {reached.value:.3f}" in decisions
    mistakes = section(card, "Worst mistakes")
    assert len(metrics.mistakes) == mistakes.count("| `")
    worst = metrics.mistakes[0]
    assert f"| `{worst.path}` | {worst.label} | {worst.p_target:.3f} | missed |" in mistakes
    for block in card.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.strip().split("\n")}) == 1


def test_it_is_stated_once_that_it_is_no_medical_device(draw):
    card = card_of(whole_metrics(draw(n=120)), intended_use="Research. Not a medical device.")
    assert card.lower().count("medical device") == 1


def test_other_sets_have_their_own_rows_and_subgroups(draw):
    adults = whole_metrics(draw(n=90, seed=3))
    kept = {name: getattr(adults, name) for name in ExternalValidation.model_fields}
    found = Estimate(0.857, 0.805, 0.901)
    boxes = BoxMeasures(images=230, tolerance=0.07, iou_at=0.5, pointing_game=found)
    stated = {
        "evaluated_on": "films of another hospital",
        "population": Population("adults", (18, 90)),
        "localisation": Localisation(boxes=boxes),
    }
    entry = ExternalValidation(**kept | stated)
    metrics = whole_metrics(draw(n=120))
    results = Results(evaluation=metrics, external={"adults": entry})
    card = card_of(results=results)
    others = section(card, "External validation")
    auroc = adults.detection.auroc
    assert f"| adults | 90 | {auroc.value:.3f} ({auroc.low:.3f}" in others
    assert "- adults: films of another hospital; adults, 18 to 90 years" in others
    assert "### Subgroups of adults" in others
    assert "### Heat maps of adults" in others
    assert "| Pointing game | 230 | 0.857 | 0.805 to 0.901 |" in others
    assert "*External validation*" in section(card, "Intended use and limits")
    alone = card_of(metrics)
    assert "Not evaluated on other populations." in alone
    assert "External validation" not in alone


@pytest.mark.parametrize(
    ("fitted", "site", "shown"),
    [
        (0.004, 0.0004, ("0.40% of these", "prevalence of 0.040%")),
        (0.7, 0.1, ("70% of these", "prevalence of 10.0%")),
    ],
)
def test_a_small_prevalence_is_not_shown_as_none(fitted, site, shown):
    shift = math.log(site / (1 - site)) - math.log(fitted / (1 - fitted))
    calibrator = Calibrator(method="temperature", prior_shift=shift)
    card = card_of(calibrations=(Calibration(calibrator=calibrator, prevalence=fitted),))
    assert all(text in card for text in shown)


def test_a_threshold_near_0_is_told_from_it():
    points = (OperatingPoint("balanced", 0.00004),)
    assert "| 0.000040 |" in card_of(calibrations=(Calibration(operating_points=points),))
