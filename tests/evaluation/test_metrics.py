from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from pneumoscope.domain import Target
from pneumoscope.errors import DataError
from pneumoscope.evaluation import ScoredSet
from pneumoscope.evaluation import evaluate_scores as evaluate_typed
from pneumoscope.model.results import Evaluation


def evaluate_scores(scored, **options):
    """The content of ``metrics.json``."""
    metrics = evaluate_typed(scored, **options)
    content = metrics.model_dump(mode="json")
    assert Evaluation.model_validate(content) == metrics
    return content


def estimates(node):
    """Every estimate in a nest of sections."""
    if isinstance(node, dict):
        if "value" in node:
            yield node
        else:
            for part in node.values():
                yield from estimates(part)


def test_values_are_scikit_learns(draw):
    scored = draw()
    result = evaluate_scores(scored, threshold=0.4, n_boot=20)
    truth, p, labels, probabilities = (
        scored.is_positive,
        scored.p_target,
        scored.labels,
        scored.probabilities,
    )
    called, best = p >= 0.4, probabilities.argmax(axis=1)
    got = {name: figure["value"] for name, figure in result["detection"].items() if name != "confusion"}
    assert got["auroc"] == pytest.approx(sk.roc_auc_score(truth, p))
    assert got["average_precision"] == pytest.approx(sk.average_precision_score(truth, p))
    assert got["sensitivity"] == pytest.approx(sk.recall_score(truth, called))
    assert got["mcc"] == pytest.approx(sk.matthews_corrcoef(truth, called))
    assert got["brier"] == pytest.approx(sk.brier_score_loss(truth, p))
    assert result["detection"]["confusion"] == sk.confusion_matrix(truth, called).tolist()
    got = {name: figure["value"] for name, figure in result["all_classes"].items() if name != "confusion"}
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, best))
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, best))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(labels, best, average="macro"))
    assert got["macro_auroc"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert result["all_classes"]["confusion"] == sk.confusion_matrix(labels, best).tolist()
    viral = result["by_class"]["viral"]
    assert viral["ppv"]["value"] == pytest.approx(sk.precision_score(labels == 2, best == 2))
    kind = labels != 0
    share = probabilities[kind, 1] / probabilities[kind, 1:].sum(axis=1)
    expected = sk.roc_auc_score(labels[kind] == 1, share)
    assert result["subtypes"]["bacterial vs viral"]["auroc"]["value"] == pytest.approx(expected)
    one = np.array([source == "IM" for source in scored.sources])
    assert result["by_source"]["IM"]["auroc"]["value"] == pytest.approx(sk.roc_auc_score(truth[one], p[one]))
    assert result["by_source"]["IM"]["images"] == one.sum()


def test_means_are_over_the_classes_that_have_images(draw):
    three = draw(n=90)
    four = replace(
        three,
        classes=(*three.classes, "other"),
        probabilities=np.column_stack([three.probabilities, np.zeros(90)]),
    )
    means, expected = (evaluate_scores(one, threshold=0.5, n_boot=20)["all_classes"] for one in (four, three))
    for name in (one for one in expected if one.startswith("macro_") or one == "balanced_accuracy"):
        assert means[name] == pytest.approx(expected[name]), name


def test_a_subgroup_of_one_patient_has_no_interval(draw):
    scored = draw(n=120)
    one = tuple("a" if i % 2 else patient for i, patient in enumerate(scored.patients))
    group = evaluate_scores(replace(scored, patients=one), threshold=0.5, n_boot=50)["by_source"]["NORMAL2"]
    assert group["brier"]["low"] is None
    assert group["brier"]["reason"] == "no interval: all images are of one patient"


def test_intervals_hold_their_value_and_are_seeded(draw):
    scored = draw()
    first, again = (evaluate_scores(scored, threshold=0.5, n_boot=300, seed=3) for _ in range(2))
    assert first == again
    assert first != evaluate_scores(scored, threshold=0.5, n_boot=300, seed=4)
    auroc = first["detection"]["auroc"]
    assert auroc["low"] < auroc["value"] < auroc["high"]


def test_interval_of_a_share_is_as_wide_as_theory_says(draw):
    scored = draw(n=400)
    accuracy = evaluate_scores(scored, threshold=0.5, n_boot=2000)["all_classes"]["accuracy"]
    theory = 2 * 1.96 * np.sqrt(accuracy["value"] * (1 - accuracy["value"]) / 400)
    assert accuracy["high"] - accuracy["low"] == pytest.approx(theory, rel=0.12)


def test_images_of_one_patient_are_not_independent(draw):
    single = draw(n=200)
    fourfold = ScoredSet(
        single.classes,
        np.repeat(single.labels, 4),
        np.repeat(single.probabilities, 4, axis=0),
        tuple(np.repeat(single.patients, 4)),
        tuple(np.repeat(single.paths, 4)),
        tuple(np.repeat(single.sources, 4)),
        target=single.target,
    )
    a = evaluate_scores(single, threshold=0.5, n_boot=500)["detection"]
    b = evaluate_scores(fourfold, threshold=0.5, n_boot=500)["detection"]
    for name in ("auroc", "sensitivity", "f1"):
        for part in ("value", "low", "high"):
            assert b[name][part] == pytest.approx(a[name][part]), name


def test_blocks_of_resamples_do_not_change_the_result(draw, monkeypatch):
    scored = draw(n=60)
    whole = evaluate_scores(scored, threshold=0.5, n_boot=50)
    monkeypatch.setattr("pneumoscope.evaluation.weighted._BLOCK", 60 * 7)
    blockwise = evaluate_scores(scored, threshold=0.5, n_boot=50)
    for got, expected in zip(estimates(blockwise), estimates(whole), strict=True):
        assert got == pytest.approx(expected)


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_only_gives_null_with_a_reason(draw, only):
    scored = draw(n=60)
    scored = scored.select(scored.labels == only)
    result = evaluate_scores(scored, threshold=0.5, n_boot=50)
    auroc = result["detection"]["auroc"]
    assert auroc["value"] is None
    assert "with and without pneumonia" in auroc["reason"]
    assert result["detection"]["accuracy"]["value"] is not None
    missing = "sensitivity" if only == 0 else "specificity"
    assert result["detection"][missing]["value"] is None
    json.dumps(result, allow_nan=False)
    for figure in estimates(result):
        assert (figure["value"] is None) <= bool(figure.get("reason"))


SAME = "no interval: every resample gives the same value"


def test_all_of_a_few_have_no_interval():
    """15 of 15 are no certainty: an interval from 1 to 1 would say that they are."""
    names = tuple(str(i) for i in range(30))
    labels, target = np.array([0, 1] * 15), Target("pneumonia", ("pneumonia",))
    p = np.where(labels, 0.9, 0.1)
    scored = ScoredSet(
        *(("normal", "pneumonia"), labels, np.stack([1 - p, p], 1), names, names, ("s",) * 30),
        target=target,
    )
    found = evaluate_scores(scored, threshold=0.5, n_boot=50)["detection"]
    for name in ("sensitivity", "specificity", "auroc"):
        assert found[name] == {"value": 1.0, "low": None, "high": None, "reason": SAME}


def test_constant_scores_rank_nothing():
    labels = np.array([0, 1] * 20)
    names = tuple(str(i) for i in range(40))
    target = Target("pneumonia", ("pneumonia",))
    scored = ScoredSet(
        ("normal", "pneumonia"), labels, np.full((40, 2), 0.5), names, names, ("s",) * 40, target=target
    )
    result = evaluate_scores(scored, threshold=0.5, n_boot=50)
    auroc = result["detection"]["auroc"]
    assert auroc == {"value": 0.5, "low": None, "high": None, "reason": SAME}
    assert result["detection"]["npv"]["reason"] == "every image was predicted as pneumonia"
    assert result["subtypes"] == {}


def test_no_interval_says_why(draw):
    scored = draw(n=30)
    assert "no resamples" in evaluate_scores(scored, threshold=0.5, n_boot=0)["detection"]["auroc"]["reason"]
    scored = draw(n=30, per_patient=30)
    figure = evaluate_scores(scored, threshold=0.5, n_boot=10)["detection"]["auroc"]
    assert figure["low"] is None
    assert "one patient" in figure["reason"]


def test_small_sources_are_left_out(draw):
    scored = draw(n=30)  # 15 of each source
    assert evaluate_scores(scored, threshold=0.5, n_boot=5)["by_source"] == {}


def test_subtypes_are_evaluated_against_all_images_without_the_target(draw):
    scored = draw(n=200)
    viral = evaluate_scores(scored, threshold=0.5, n_boot=50)["by_subtype"]["viral"]
    index = scored.classes.index("viral")
    among = (scored.labels == 0) | (scored.labels == index)
    assert viral["images"] == among.sum()
    assert viral["positive"] == (scored.labels == index).sum()
    expected = sk.roc_auc_score(scored.labels[among] == index, scored.p_target[among])
    assert viral["auroc"]["value"] == pytest.approx(expected)
    assert (
        evaluate_scores(draw(n=200, classes=("normal", "pneumonia")), threshold=0.5, n_boot=5)["by_subtype"]
        == {}
    )


def test_views_ages_and_sexes_are_subgroups_in_their_order(draw):
    scored = draw(n=120)
    ages = tuple(("65 years or more", "1 to 5 years", "18 to 39 years", "")[i % 4] for i in range(120))
    views = tuple("AP" if i < 110 else "PA" for i in range(120))
    result = evaluate_scores(
        replace(scored, attributes={"age": ages, "view": views}), threshold=0.5, n_boot=20
    )
    assert list(result["by_age"]) == ["1 to 5 years", "18 to 39 years", "65 years or more"]
    assert result["by_age"]["1 to 5 years"]["images"] == 30
    assert list(result["by_view"]) == ["AP"]  # ten PA are too few
    assert result["by_sex"] == {}


def test_a_subgroup_of_one_label_has_a_rate_and_no_ranking(draw):
    scored = draw(n=200)
    sources = tuple("normals" if label == 0 else "ill" for label in scored.labels)
    by_source = evaluate_scores(replace(scored, sources=sources), threshold=0.5, n_boot=50)["by_source"]
    assert by_source["normals"]["auroc"]["value"] is None
    assert by_source["normals"]["sensitivity"]["value"] is None
    low, value, high = (by_source["normals"]["specificity"][key] for key in ("low", "value", "high"))
    assert low < value < high
    assert by_source["ill"]["sensitivity"]["value"] is not None


def test_operating_points_bins_and_mistakes(draw):
    scored = draw(n=150)
    points = {"screening": 0.2, "rule-in": 0.8}
    result = evaluate_scores(scored, threshold=0.5, n_boot=20, points=points)
    for name, threshold in points.items():
        called = scored.p_target >= threshold
        point = result["operating_points"][name]
        assert point["threshold"] == threshold
        assert point["sensitivity"]["value"] == pytest.approx(called[scored.is_positive].mean())
        assert point["specificity"]["value"] == pytest.approx(1 - called[~scored.is_positive].mean())
    bins = result["reliability"]
    assert sum(one["images"] for one in bins) == 150
    gap = sum(one["images"] * abs(one["predicted"] - one["observed"]) for one in bins) / 150
    assert gap == pytest.approx(result["detection"]["ece"]["value"])
    assert all(one["low"] <= one["predicted"] <= one["high"] for one in bins)
    assert 0 < len(result["mistakes"]) <= 10
    for one in result["mistakes"]:
        assert one["missed"] == (one["label"] != "normal") == (one["p_target"] < 0.5)
    with pytest.raises(DataError, match="threshold"):
        evaluate_scores(scored, threshold=0.5, points={"odd": -0.1})


def test_classes_in_any_order_and_of_any_name(draw):
    """Nothing depends on the name `normal`, or on its being the first class."""
    plain = draw(n=200)
    order = [1, 0, 2]
    moved = ScoredSet(
        ("lobar", "clear", "diffuse"),
        np.array(order)[plain.labels],
        plain.probabilities[:, order],
        plain.patients,
        plain.paths,
        plain.sources,
        target=Target("infiltrate", ("lobar", "diffuse")),
    )
    a, b = (evaluate_scores(one, threshold=0.5, n_boot=50) for one in (plain, moved))
    for one, other in zip(estimates(b["detection"]), estimates(a["detection"]), strict=True):
        assert one == pytest.approx(other)
    assert b["by_class"]["clear"]["auroc"] == pytest.approx(a["by_class"]["normal"]["auroc"])
    assert b["subtypes"]["lobar vs diffuse"]["auroc"] == a["subtypes"]["bacterial vs viral"]["auroc"]
    for one, other in zip(estimates(b["by_subtype"]), estimates(a["by_subtype"]), strict=True):
        assert one == pytest.approx(other)
    assert b["target"] == {"name": "infiltrate", "classes": ["lobar", "diffuse"]}


def test_each_pair_of_three_subtypes_is_measured(draw):
    scored = draw(
        n=200, classes=("covid", "normal", "tb", "flu"), target=Target("infection", ("covid", "tb", "flu"))
    )
    result = evaluate_scores(scored, threshold=0.5, n_boot=5)
    assert list(result["subtypes"]) == ["covid vs tb", "covid vs flu", "tb vs flu"]
    assert list(result["by_subtype"]) == ["covid", "tb", "flu"]


def test_a_threshold_for_each_image(draw):
    scored = draw(n=150)
    thresholds = np.where(np.arange(150) % 3 == 0, 0.3, 0.7)
    result = evaluate_scores(scored, threshold=thresholds, n_boot=5, points={"balanced": thresholds})
    called = scored.p_target >= thresholds
    expected = called[scored.is_positive].mean()
    assert result["detection"]["sensitivity"]["value"] == pytest.approx(expected)
    assert result["operating_points"]["balanced"]["sensitivity"]["value"] == pytest.approx(expected)
    assert result["threshold"] is None
    im = np.array([source == "IM" for source in scored.sources])
    own = called[im & scored.is_positive].mean()
    assert result["by_source"]["IM"]["sensitivity"]["value"] == pytest.approx(own)


def test_absolute_paths_of_mistakes_are_not_told(draw):
    scored = draw(n=60)
    moved = replace(scored, paths=tuple(f"/home/someone/{path}" for path in scored.paths))
    assert "someone" not in json.dumps(evaluate_scores(moved, threshold=0.5, n_boot=0))


def test_nothing_evaluated_is_one_line(draw):
    scored = draw(n=5)
    with pytest.raises(DataError, match="no image was evaluated"):
        evaluate_scores(scored.select(np.zeros(5, bool)), threshold=0.5)
    with pytest.raises(DataError, match="threshold"):
        evaluate_scores(scored, threshold=1.5)


def test_a_thousand_resamples_are_fast(draw):
    scored = draw(n=800, per_patient=2)
    start = time.process_time()
    evaluate_scores(scored, threshold=0.5)
    assert time.process_time() - start < 5
