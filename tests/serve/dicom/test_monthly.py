"""The monthly report: counts, intervals, drift and radiologists' verdicts."""

from __future__ import annotations

import datetime
import functools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.errors import DataError
from pneumoscope.evaluation.weighted import wilson
from pneumoscope.model.bundle import load_bundle
from pneumoscope.serve.dicom.inputs import INPUT_MEASURES, input_reference
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.monthly import monthly_report, stability_index

MONTH = "2026-11"


@pytest.fixture(scope="module")
def bundle():
    return load_bundle()


@functools.cache
def identity() -> str:
    return load_bundle().identity


def fill(journal: Journal, scores, *, month=11, inputs=None, **more) -> None:
    """Add images with these probabilities."""
    received = datetime.datetime(2026, month, 15).astimezone().timestamp()
    first = journal.value("SELECT count(*) FROM instances")
    with journal.change() as connection:
        for number, score in enumerate(scores, start=first):
            row = {
                "sop_instance": f"1.2.{number}", "sop_class": "1", "sha256": str(number), "bytes": 1,
                "file": "f", "via": "store", "caller": "CR1", "link": "l", "received": received,
                "state": "reported", "study_uid": f"9.{number}", "status": "ok", "reasons": "[]",
                "positive": int(score > 0.74),
                "p_target": score, "scanner": "Model 1", "view": "PA", "site": "North",
                "inputs": json.dumps({} if inputs is None else inputs(number)),
                "bundle": identity(),
            } | more  # fmt: skip
            connection.execute(
                f"INSERT INTO instances ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
                tuple(row.values()),
            )


def like_the_evaluation(bundle, count: int, seed: int = 0) -> list[float]:
    """Return probabilities as the bundle's own evaluation had them."""
    rng = np.random.default_rng(seed)
    bins = bundle.manifest.results.evaluation.reliability
    share = np.array([one.images for one in bins], float)
    chosen = rng.choice(len(bins), count, p=share / share.sum())
    return [float(rng.uniform(bins[index].low, bins[index].high)) for index in chosen]


def score_drift(report):
    return next(one for one in report.drift if one.name.startswith("probability"))


def test_scores_as_in_the_evaluation_are_stable(journal, bundle):
    fill(journal, like_the_evaluation(bundle, 400))
    report = monthly_report(journal, bundle, MONTH)
    assert report.images == 400
    assert score_drift(report).index < 0.1
    assert not [warning for warning in report.warnings if "probability" in warning]
    assert report.positives["scanner"]["Model 1"].total == 400


def test_scores_that_moved_are_a_warning(journal, bundle):
    fill(journal, [0.5] * 400)
    drift = score_drift(monthly_report(journal, bundle, MONTH))
    assert drift.index > 0.25
    assert "has changed" in drift.warning


def test_too_few_images_say_nothing(journal, bundle):
    fill(journal, [0.5] * 20)
    assert score_drift(monthly_report(journal, bundle, MONTH)).index is None


def test_inputs_against_the_gate_of_the_bundle(journal, bundle):
    reference = input_reference(bundle)
    assert set(reference) == {"lung_area", "lung_balance"}
    assert 0.05 < reference["lung_area"][0] < 0.6
    rng = np.random.default_rng(0)
    mean, spread = reference["lung_area"]
    values = rng.normal(mean, spread, 300)
    fill(
        journal, like_the_evaluation(bundle, 300), inputs=lambda number: {"lung_area": float(values[number])}
    )
    report = monthly_report(journal, bundle, MONTH)
    area = next(one for one in report.drift if one.name == INPUT_MEASURES["lung_area"])
    assert area.index < 0.1
    other = next(one for one in report.drift if one.name == INPUT_MEASURES["lung_balance"])
    assert other.index is None


def test_a_month_of_its_own_as_baseline(journal, bundle):
    rng = np.random.default_rng(1)
    grey = rng.normal(0.5, 0.1, 1000)
    fill(journal, rng.uniform(0, 1, 300), month=10, inputs=lambda number: {"grey_mean": float(grey[number])})
    fill(journal, rng.uniform(0, 1, 300), inputs=lambda number: {"grey_mean": float(grey[number]) + 0.2})
    report = monthly_report(journal, bundle, MONTH, baseline="2026-10")
    found = {one.name: one for one in report.drift}
    assert score_drift(report).index < 0.1
    changed = found[INPUT_MEASURES["grey_mean"]]
    assert changed.index > 0.25
    assert "2026-10 at this node" in changed.warning
    assert report.images == 300


def test_a_baseline_of_few_images_says_nothing(journal, bundle):
    rng = np.random.default_rng(1)
    fill(journal, rng.uniform(0, 1, 20), month=10)
    fill(journal, rng.uniform(0, 1, 300))
    assert score_drift(monthly_report(journal, bundle, MONTH, baseline="2026-10")).index is None


def test_a_constant_measure_has_not_moved(journal, bundle):
    """Values on the edges of bins are counted the same way in both months."""
    same = {"inputs": lambda _number: {"grey_mean": 0.5}}
    fill(journal, [0.5] * 100, month=10, **same)
    fill(journal, [0.5] * 100, **same)
    report = monthly_report(journal, bundle, MONTH, baseline="2026-10")
    assert [one.index for one in report.drift if one.index is not None] == [0.0, 0.0]


def test_predictions_of_another_bundle_are_left_out(journal, bundle):
    fill(journal, like_the_evaluation(bundle, 300))
    alone = monthly_report(journal, bundle, MONTH)
    fill(journal, [0.99] * 300, bundle="other@1")
    both = monthly_report(journal, bundle, MONTH)
    assert (both.drift, both.positives, both.other_bundles) == (alone.drift, alone.positives, 300)
    assert both.images == 600


def test_positives_and_reasons(journal, bundle):
    fill(journal, [0.9, 0.9, 0.1], view="AP", scanner="Model 2")
    fill(journal, [0.1], scanner=None)
    fill(journal, [0.5], status="rejected", p_target=None, positive=None, reasons='["lateral_view"]')
    fill(journal, [0.5], month=12)
    report = monthly_report(journal, bundle, MONTH)
    assert report.images == 5
    assert report.reasons == {"lateral_view": 1}
    assert report.statuses == {"ok": 4, "rejected": 1}
    share = report.positives["scanner"]["Model 2"]
    assert (share.count, share.total) == (2, 3)
    assert set(report.positives["view"]) == {"AP", "PA"}
    assert set(report.positives["scanner"]) == {"Model 2", "not stated"}


def test_radiologists_verdicts(tmp_path, journal, bundle):
    fill(journal, [0.9, 0.9, 0.1, 0.1, 0.1])
    fill(journal, [0.9], site="South")
    table = tmp_path / "verdicts.csv"
    table.write_text(
        "study_uid,verdict,site\n9.0,yes,\n9.1,no,\n9.2,no,\n9.3,yes,\n9.4,NO,\n9.5,positive,\n9.99,yes,\n"
    )
    report = monthly_report(journal, bundle, MONTH, verdicts=table)
    assert report.unmatched == 1
    north = report.verdicts["North"]
    assert (north["sensitivity"].count, north["sensitivity"].total) == (1, 2)
    assert (north["specificity"].count, north["specificity"].total) == (2, 3)
    assert report.verdicts["South"]["specificity"].value is None
    assert list(report.verdicts)[-1] == "all sites"
    table.write_text("study_uid,verdict\n9.0,perhaps\n")
    with pytest.raises(DataError, match="neither yes nor no"):
        monthly_report(journal, bundle, MONTH, verdicts=table)
    table.write_text("study_uid,opinion\n9.0,yes\n")
    with pytest.raises(DataError, match="verdict"):
        monthly_report(journal, bundle, MONTH, verdicts=table)


def test_a_study_with_several_results_is_one_study(journal, bundle):
    received = datetime.datetime(2026, 11, 15).astimezone().timestamp()
    with journal.change() as connection:
        for study, revision, seconds in (("9.0", 0, 2.0), ("9.0", 1, 4.0), ("9.1", 0, 6.0)):
            connection.execute(
                "INSERT INTO results (study_uid, made, revision, bundle, state, destinations, first_received,"
                " last_received, built) VALUES (?, '', ?, 'b', 'built', '[]', ?, ?, ?)",
                (study, revision, received, received, received + seconds),
            )
    report = monthly_report(journal, bundle, MONTH)
    assert (report.studies, report.results) == (2, 3)
    assert report.seconds["median"] == pytest.approx(4.0)


@pytest.mark.parametrize("month", ["2026", "2026-13", "11-2026", "", "9999-12"])
def test_a_month_that_is_none(journal, bundle, month):
    with pytest.raises(DataError, match="2026-11"):
        monthly_report(journal, bundle, month)


def test_december_has_an_end(journal, bundle):
    fill(journal, [0.5], month=12)
    assert monthly_report(journal, bundle, "2026-12").images == 1


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_an_interval_holds_its_share(pair):
    count, total = pair
    low, high = wilson(count, total)
    assert 0 <= low <= count / total <= high <= 1


def test_known_values():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Newcombe 1998
    assert stability_index([10, 20, 30], [1, 2, 3]) == pytest.approx(0)
    # (0.5-0.25) ln 2 + (0.5-0.75) ln(2/3)
    assert stability_index([1, 1], [1, 3]) == pytest.approx(0.2747, abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=15))
def test_an_index_is_never_negative(pairs):
    assert stability_index([one for one, _ in pairs], [other for _, other in pairs]) >= 0
