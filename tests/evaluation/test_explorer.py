from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pneumoscope.domain import Estimate
from pneumoscope.evaluation import evaluate_scores, weighted
from pneumoscope.evaluation.explorer import LEVELS, at_prevalence, explore
from pneumoscope.evaluation.tables import subgroup_rows

POINTS = {"screening": 0.31, "balanced": 0.6, "rule-in": 0.905}


@pytest.fixture
def scored(draw):
    many = draw(n=240, per_patient=2)
    population = tuple(("adults", "any")[i % 3 == 0] for i in range(240))
    return replace(many, attributes={"sex": tuple("MF"[i % 2] for i in range(240)), "population": population})


def evaluated(scored, **changes):
    return evaluate_scores(
        scored, **({"threshold": 0.6, "points": POINTS, "n_boot": 60, "seed": 3} | changes)
    )


def test_the_operating_points_have_the_numbers_of_the_report(scored):
    metrics = evaluated(scored)
    explored = explore(scored, POINTS, metrics.intervals)
    rows = {row.point: row for row in explored.rows if row.group == "all images"}
    for name, at in metrics.operating_points.items():
        assert rows[name].sensitivity == at.sensitivity
        assert rows[name].specificity == at.specificity
        assert rows[name].threshold == POINTS[name]
    detection = metrics.detection
    assert rows["balanced"].ppv.value == pytest.approx(detection.ppv.value)
    assert rows["balanced"].npv.value == pytest.approx(detection.npv.value)
    (_, alarms), (missed, found) = detection.confusion
    assert rows["balanced"].referred == pytest.approx(1000 * (found + alarms) / len(scored))
    assert rows["balanced"].missed == pytest.approx(1000 * missed / len(scored))


def test_the_page_has_the_counts_and_intervals_of_every_subgroup(scored):
    metrics = evaluated(scored)
    data = json.loads(explore(scored, POINTS, metrics.intervals).json)
    groups = {group["name"]: group for group in data["groups"]}
    subgroups = [item for item in subgroup_rows(metrics) if item[0] in groups]
    assert {"source: IM", "sex: F", "subtype: viral"} <= {name for name, _ in subgroups}
    for name, subgroup in [*subgroups, ("all images", metrics.detection)]:
        group = groups[name]
        at = group["points"]["balanced"]
        assert data["thresholds"][at] == 0.6
        assert group["found"][at] / group["positive"] == pytest.approx(subgroup.sensitivity.value)
        assert 1 - group["alarms"][at] / group["negative"] == pytest.approx(subgroup.specificity.value)
        for key in ("sensitivity", "specificity"):
            estimate = getattr(subgroup, key)
            shown = [f"{end[at] / 1000:.3f}" for end in group["ends"][key]]
            assert shown == [f"{estimate.low:.3f}", f"{estimate.high:.3f}"]


def test_counts_at_every_threshold_are_those_of_the_images(scored):
    data = explore(scored, POINTS, evaluated(scored).intervals).data
    assert set(LEVELS) | set(POINTS.values()) == set(data["thresholds"])
    p, truth = scored.p_target, scored.is_positive
    everything = data["groups"][0]
    for at, threshold in enumerate(data["thresholds"]):
        assert everything["found"][at] == (truth & (p >= threshold)).sum()
        assert everything["alarms"][at] == (~truth & (p >= threshold)).sum()


def test_populations_have_their_own_thresholds(scored):
    adults = np.array(scored.attributes["population"]) == "adults"
    points = {"balanced": np.where(adults, 0.7, 0.4)}
    explored = explore(scored, points, evaluated(scored).intervals, start=points["balanced"])
    rows = {row.group: row for row in explored.rows}
    assert list(rows) == ["all images", "population: adults", "population: any other"]
    assert [row.threshold for row in rows.values()] == [None, 0.7, 0.4]
    positive = scored.p_target >= points["balanced"]
    truth = scored.is_positive
    assert rows["all images"].sensitivity.value == pytest.approx((positive & truth).sum() / truth.sum())
    here = adults & ~truth
    assert rows["population: adults"].specificity.value == pytest.approx(
        (~positive & here).sum() / here.sum()
    )
    data = explored.data
    assert data["thresholds"][data["start"]] == 0.5
    assert [group["points"]["balanced"] is None for group in data["groups"][:3]] == [True, False, False]


def test_converted_intervals_are_those_of_resampling_at_that_prevalence(scored):
    n_boot, prevalence = 400, 0.05
    intervals = weighted.intervals(n_boot, 0)
    row = next(one for one in explore(scored, {"balanced": 0.6}, intervals).rows)
    called, truth = scored.p_target >= 0.6, scored.is_positive

    def ppv(weights):
        hits = weighted.share(called, truth, weights) * prevalence
        alarms = weighted.share(called, ~truth, weights) * (1 - prevalence)
        return {"ppv": weighted.ratio(hits, hits + alarms)}

    values = weighted.replicates(scored.patient_index, n_boot, 0, ppv)["ppv"]
    direct = weighted.estimate(values, len(set(scored.patients)))
    own = scored.is_positive.mean()
    half = at_prevalence(row.ppv, 1 - own)  # back to a prevalence of one half
    shown = at_prevalence(half, prevalence)
    assert shown.value == pytest.approx(direct.value)
    # Percentiles lie between two resamples, where the conversion is not a straight line.
    assert (shown.low, shown.high) == pytest.approx((direct.low, direct.high), abs=2e-3)


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "prevalence", "ppv", "npv"),
    [(0.9, 0.8, 0.5, 0.9 / 1.1, 0.8 / 0.9), (0.9, 0.8, 0.1, 0.09 / 0.27, 0.72 / 0.73), (1, 1, 0.3, 1, 1)],
)
def test_bayes(sensitivity, specificity, prevalence, ppv, npv):
    half = Estimate(sensitivity / (sensitivity + 1 - specificity))
    assert at_prevalence(half, prevalence).value == pytest.approx(ppv)
    other = Estimate(specificity / (specificity + 1 - sensitivity))
    assert at_prevalence(other, 1 - prevalence).value == pytest.approx(npv)


@pytest.mark.parametrize("only", [0, 1])
def test_what_one_class_leaves_undefined_has_no_number(scored, only):
    part = scored.select(scored.labels == only)
    explored = explore(part, POINTS, weighted.intervals(20, 0))
    row = explored.rows[0]
    undefined = row.sensitivity if only == 0 else row.specificity
    assert undefined.value is None
    assert row.referred is None
    assert row.missed is None
    json.loads(explored.json)


def test_without_resamples_there_are_values_alone(scored):
    explored = explore(scored, POINTS, weighted.intervals(0, 0))
    assert explored.rows[0].sensitivity.value is not None
    assert explored.rows[0].sensitivity.low is None
    assert set(explored.data["groups"][0]["ends"]["ppv"][0]) == {None}


def test_many_groups_keep_the_page_small_and_names_cannot_end_the_element(draw):
    many = draw(n=2000)
    sources = tuple(f"</script><b>&{i % 60:02d}" for i in range(2000))
    text = explore(replace(many, sources=sources), POINTS, weighted.intervals(20, 0)).json
    assert len(json.loads(text)["groups"]) == 24
    assert len(text) < 200_000
    assert not set("<>&") & set(text)
