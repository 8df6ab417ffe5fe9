"""Splits and folds: no patient divided, labels balanced, reproducible."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.data import Manifest, Record, folds, scan, split
from pneumoscope.data.split import connected, group_records
from pneumoscope.errors import DataError


def made(patients=200, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for patient in range(patients):
        label = rng.choice(["normal", "bacterial", "viral"], p=[0.25, 0.5, 0.25])
        records += [
            Record(f"{label}/{patient}_{view}.png", str(label), f"p{patient}", sha256=f"{patient}-{view}")
            for view in range(rng.integers(1, 6))
        ]
    return Manifest(tuple(records), Path("images"))


def sides(manifest, key):
    found = defaultdict(set)
    for record in manifest:
        found[key(record)].add(record.split)
    return found


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), patients=st.integers(30, 120))
def test_no_patient_is_divided_and_every_record_has_a_split(seed, patients):
    result = split(made(patients, seed), seed=seed)
    assert all(len(found) == 1 for found in sides(result, lambda r: r.patient_id).values())
    assert all(record.split in {"train", "val", "test"} for record in result)


def test_shares_are_kept_in_every_label():
    manifest = made(600)
    result = split(manifest, fractions=(0.6, 0.2, 0.2))
    total = Counter(record.label for record in manifest)
    for side, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        counts = Counter(record.label for record in result.subset(side))
        for label in total:
            assert counts[label] / total[label] == pytest.approx(share, abs=0.01)


def test_duplicates_and_near_duplicates_stay_together():
    manifest = made(60)
    records = list(manifest.records)
    # Two identical files of different patients, and a chain of near duplicates over three patients.
    by_patient = {record.patient_id: i for i, record in enumerate(records)}
    a, b, c, d, e = (by_patient[f"p{i}"] for i in (1, 20, 3, 40, 55))
    records[b] = Record(records[b].path, records[b].label, records[b].patient_id, sha256=records[a].sha256)
    manifest = manifest.with_records(records)
    for seed in range(20):
        result = split(manifest, seed=seed, duplicates=[[c, d], [d, e]]).records
        assert result[a].split == result[b].split
        assert result[c].split == result[d].split == result[e].split


def test_same_seed_same_split_whatever_the_order():
    manifest = made()
    first = {record.path: record.split for record in split(manifest, seed=3)}
    reversed_order = manifest.with_records(reversed(manifest.records))
    assert {record.path: record.split for record in split(reversed_order, seed=3)} == first
    assert {record.path: record.split for record in split(manifest, seed=4)} != first
    drawn = {record.path: record.split for record in split(manifest, seed=3, method="random")}
    assert {record.path: record.split for record in split(reversed_order, seed=3, method="random")} == drawn


@pytest.mark.parametrize(
    ("seed", "method", "fingerprint"),
    [
        (0, "patient", "2adbb9ba55a8a3c6"),
        (0, "random", "c14fe2ed6cf4c191"),
        (7, "patient", "ab51567d22fa5014"),
        (7, "random", "1e382e529b65991a"),
    ],
)
def test_published_splits_stay_reproducible(seed, method, fingerprint):
    assert split(made(), seed=seed, method=method).split_fingerprint().startswith(fingerprint)


def test_published_splits_with_duplicates_stay_reproducible():
    result = split(made(60), seed=1, fractions=(0.6, 0.2, 0.2), duplicates=[[0, 50], [50, 90]])
    assert result.split_fingerprint().startswith("d1f5162122d3616c")


def test_the_split_of_the_real_children_stays_reproducible(shared_data):
    result = split(scan(shared_data / "kermany-224"), seed=0)
    assert result.split_fingerprint().startswith("1b0256d2124c6d60")


def test_random_split_divides_patients_and_counts_exactly():
    manifest = made(300)
    result = split(manifest, fractions=(0.6, 0.2, 0.2), method="random")
    assert any(len(found) > 1 for found in sides(result, lambda r: r.patient_id).values())
    counts = Counter(record.split for record in result)
    assert counts["train"] == round(0.6 * len(manifest))
    assert abs(counts["val"] - counts["test"]) <= 1


def test_a_part_may_be_empty_on_request():
    assert not len(split(made(), fractions=(0.8, 0.0, 0.2)).subset("val"))
    assert not len(split(made(), fractions=(0.8, 0.2, 0.0), method="random").subset("test"))


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.2, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5), (float("nan"), 0.5, 0.5)]
)
def test_wrong_fractions(fractions):
    with pytest.raises(DataError, match="three shares"):
        split(made(), fractions=fractions)


def test_too_few_patients_and_wrong_method():
    with pytest.raises(DataError, match="too few"):
        split(made(2))
    with pytest.raises(DataError, match="choose patient or random"):
        split(made(), method="by file")


@pytest.mark.parametrize("k", [2, 5])
def test_folds_are_a_partition_by_patient(k):
    manifest = made()
    held_out = folds(manifest, k, seed=1)
    assert sorted(np.concatenate(held_out)) == list(range(len(manifest)))
    patients = [{manifest.records[i].patient_id for i in fold} for fold in held_out]
    assert sum(map(len, patients)) == len(set().union(*patients))
    sizes = [len(fold) for fold in held_out]
    assert max(sizes) - min(sizes) <= 5
    again = folds(manifest, k, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(held_out, again, strict=True))


def test_folds_are_stratified_whatever_the_order():
    manifest = made(600)
    held_out = folds(manifest, 5, seed=2)
    total = Counter(record.label for record in manifest)
    for fold in held_out:
        counts = Counter(manifest.records[i].label for i in fold)
        for label in total:
            assert counts[label] / total[label] == pytest.approx(0.2, abs=0.01)
    backwards = manifest.with_records(reversed(manifest.records))
    last = len(manifest) - 1
    assert [sorted(last - fold) for fold in folds(backwards, 5, seed=2)] == [list(fold) for fold in held_out]
    assert any(not np.array_equal(a, b) for a, b in zip(folds(manifest, 5, seed=3), held_out, strict=True))


def test_folds_take_a_date_as_their_seed():
    """Above 32 bits, which is what scikit-learn takes."""
    assert len(folds(made(), 5, seed=20250101123000)) == 5


@settings(max_examples=60)
@given(
    labels=st.lists(st.sampled_from(["normal", "viral", "rare", "rarer"]), min_size=2, max_size=30),
    patients=st.lists(st.integers(0, 12), min_size=30, max_size=30),
    k=st.integers(2, 6),
)
def test_folds_of_few_patients_and_rare_labels_are_never_empty(labels, patients, k):
    records = [Record(f"{i}.png", label, f"p{patients[i]}") for i, label in enumerate(labels)]
    manifest = Manifest(tuple(records), Path())
    if len({record.patient_id for record in records}) < k:
        with pytest.raises(DataError, match="folds"):
            folds(manifest, k)
        return
    held_out = folds(manifest, k)
    assert sorted(np.concatenate(held_out)) == list(range(len(manifest)))
    assert all(len(fold) for fold in held_out)


@pytest.mark.parametrize("k", [0, 1, 10**6])
def test_impossible_folds(k):
    with pytest.raises(DataError, match="folds"):
        folds(made(), k)


@given(
    st.integers(1, 20).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))
    )
)
def test_connected_joins_exactly_what_is_linked(case):
    count, links = case
    groups = connected(count, links)
    assert sorted(i for group in groups for i in group) == list(range(count))
    reach = np.eye(count, dtype=bool)
    for i, j in links:
        reach[i, j] = reach[j, i] = True
    for _ in range(count):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    expected = {tuple(np.flatnonzero(row)) for row in reach}
    assert {tuple(group) for group in groups} == expected


def test_groups_of_records_ignore_missing_hashes(tmp_path):
    manifest = Manifest((Record("a", "normal", "p"), Record("b", "normal", "q")), tmp_path)
    assert group_records(manifest) == [[0], [1]]
