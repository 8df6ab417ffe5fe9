"""The audit and the perceptual hash."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_files import dicom, ramp
from pneumoscope.data import Manifest, Record, scan, split
from pneumoscope.data import audit as audit_module
from pneumoscope.data.audit import audit, inspect
from pneumoscope.data.duplicates import NEAR_DISTANCE, near_pairs, perceptual_hash
from pneumoscope.data.phantom import draw_phantom, write_phantoms
from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress


@pytest.fixture
def phantoms(tmp_path):
    write_phantoms(tmp_path, n=18, size=96)
    return tmp_path


def distance(a, b):
    return int(np.bitwise_count(a ^ b).sum())


def test_hash_of_a_resized_or_brighter_copy_is_near():
    for seed in range(6):
        image = draw_phantom("normal", seed, 256)
        first = perceptual_hash(image.astype(np.float32) / 255)
        packed = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0)
        small = cv2.resize(image, (120, 120), interpolation=cv2.INTER_AREA)
        for copy in (packed, small, np.clip(image * 1.1, 0, 255)):
            assert distance(first, perceptual_hash(copy.astype(np.float32) / 255)) <= NEAR_DISTANCE


def test_hash_tells_images_apart_and_has_none_for_a_blank():
    hashes = [
        perceptual_hash(draw_phantom("normal", seed, 128).astype(np.float32) / 255) for seed in range(20)
    ]
    assert min(distance(hashes[i], hashes[j]) for i in range(20) for j in range(i)) > NEAR_DISTANCE
    assert perceptual_hash(np.full((90, 80), 0.4, np.float32)) is None


@settings(max_examples=30)
@given(count=st.integers(0, 300), seed=st.integers(0, 1000), limit=st.integers(0, 256))
def test_near_pairs_agree_with_comparing_one_by_one(count, seed, limit):
    count = min(count, 40) if count % 7 else count
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**63, (count, 4), dtype=np.uint64)
    hashes[count // 2 :] = hashes[: count - count // 2] ^ np.uint64(5)
    found = {(i, j) for i, j, _ in near_pairs(hashes, limit)}
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2, dtype=int)
    expected = {(i, j) for i, j in zip(*np.nonzero(apart <= limit), strict=True) if i < j}
    assert found == expected


def test_clean_set(phantoms):
    report = audit(split(scan(phantoms), fractions=(0.5, 0.25, 0.25)))
    assert not report.leaks
    assert report.images == 18
    assert sum(sum(counts.values()) for counts in report.balance.values()) == 18
    assert list(report.balance) == ["train", "val", "test"]
    assert report.sizes["width_median"] == report.sizes["height_max"] == 96
    assert all(count == "0" for _, count, _ in report.rows())


def test_unsplit_set_cannot_leak(phantoms):
    report = audit(scan(phantoms))
    assert list(report.balance) == ["unsplit"]
    assert not report.leaks


def test_unreadable_and_changed_files_are_named(phantoms):
    manifest = scan(phantoms)
    first, second, third = manifest.records[:3]
    manifest.resolve(first).write_bytes(b"")
    manifest.resolve(second).write_bytes(manifest.resolve(third).read_bytes())
    report = audit(manifest)
    assert [(problem.path, problem.reason) for problem in report.unreadable] == [(first.path, "empty_file")]
    assert report.changed == (second.path,)
    assert report.exact_duplicates == ((second.path, third.path),)
    found = inspect(manifest)
    kept = found.readable()
    assert len(kept.manifest) == 17
    assert [[kept.manifest.records[i].path for i in group] for group in kept.exact] == [
        [second.path, third.path]
    ]


def test_duplicates_conflicts_and_leaks(phantoms):
    original = cv2.imread(str(next((phantoms / "NORMAL").glob("*.jpeg"))), cv2.IMREAD_GRAYSCALE)
    near = phantoms / "PNEUMONIA" / "person900_virus_1.jpeg"
    cv2.imwrite(str(near), cv2.resize(original, (80, 80), interpolation=cv2.INTER_AREA))
    manifest = scan(phantoms)
    sides = {record.patient_id: "train" for record in manifest} | {"person900": "test"}
    manifest = manifest.with_records(replace(r, split=sides[r.patient_id]) for r in manifest)
    report = audit(manifest)
    name = near.relative_to(phantoms).as_posix()
    assert len(report.near_duplicates) == 1
    assert name in report.near_duplicates[0]
    assert report.label_conflicts == report.near_duplicates
    assert [leak.what for leak in report.leaks_found] == ["duplicate"]
    assert report.leaks_found[0].splits == {"train": 1, "test": 1}
    assert not audit(manifest, near_distance=None).leaks
    # The groups that the inspection found keep a new split free of leaks.
    found = inspect(manifest)
    for seed in range(5):
        assert not audit(split(found.manifest, seed=seed, duplicates=found.groups)).leaks


def test_patient_in_two_splits_leaks(phantoms):
    manifest = scan(phantoms)
    manifest = manifest.with_records(
        replace(r, patient_id="same", split="train" if i else "test") for i, r in enumerate(manifest)
    )
    report = audit(manifest)
    assert report.leaks
    assert [(leak.what, leak.name, leak.splits) for leak in report.leaks_found] == [
        ("patient", "same", {"train": 17, "test": 1})
    ]
    assert json.loads(report.to_json())["leaks"] is True
    assert ("patients in several splits", "1", "same (17 in train, 1 in test)") in report.rows()


def test_progress_is_reported_to_the_end(phantoms):
    class Recorder(Progress):
        def __init__(self):
            self.received = []

        def step(self, name):
            self.received.append(name)

        def update(self, done, total=None):
            self.received.append((done, total))

    progress = Recorder()
    audit(scan(phantoms), progress=progress)
    read = [(i, 18) for i in range(1, 19)]
    assert progress.received == ["reading images", *read, "comparing images", (18, 18)]


def test_no_more_threads_than_cpus_of_this_process(phantoms, monkeypatch):
    monkeypatch.setattr(audit_module, "available_cpus", lambda: 1)
    threads = set()
    read = audit_module.read_radiograph

    def reading(*args, **options):
        threads.add(threading.get_ident())
        return read(*args, **options)

    monkeypatch.setattr(audit_module, "read_radiograph", reading)
    inspect(scan(phantoms))
    assert len(threads) == 1


def test_nothing_to_audit(tmp_path):
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal" / "a.png").write_bytes(b"no image")
    manifest = scan(tmp_path)
    with pytest.raises(DataError, match="no file can be read"):
        audit(manifest)
    with pytest.raises(DataError, match="lists no image"):
        audit(manifest.with_records(()))
    with pytest.raises(DataError, match="distance"):
        audit(manifest, near_distance=-1)


@pytest.mark.long
def test_real_set(shared_data):
    manifest = split(scan(shared_data / "kermany-224"))
    start = time.perf_counter()
    report = audit(manifest)
    assert time.perf_counter() - start < 60
    assert not report.leaks
    assert not report.unreadable
    # Some children have the same file twice, under two numbers.
    assert report.exact_duplicates
    assert not report.near_duplicates
    assert audit(split(manifest, method="random"), near_distance=None).leaks


def test_full_size_and_reduced_copies_are_recognised(shared_data, tmp_path):
    for size in ("kermany-original", "kermany-224"):
        for path in sorted((shared_data / "kermany-original" / "NORMAL").glob("*.jpeg"))[:8]:
            target = tmp_path / size / "normal" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((shared_data / size / "NORMAL" / path.name).read_bytes())
    groups = audit(scan(tmp_path)).near_duplicates
    assert sorted(len(group) for group in groups) == [2] * 8
    assert all(len({path.split("/")[-1] for path in group}) == 1 for group in groups)


def test_nothing_is_hashed_where_bytes_alone_are_compared(phantoms, monkeypatch):
    def hashed(pixels):
        raise AssertionError

    monkeypatch.setattr(audit_module, "perceptual_hash", hashed)
    (phantoms / "NORMAL" / "copy.jpeg").write_bytes(next((phantoms / "NORMAL").iterdir()).read_bytes())
    assert len(inspect(scan(phantoms), near_distance=None).exact) == 1


def dicom_set(folder, patients):
    """Write a DICOM file for each pair of the patient that is stated and the one of its header."""
    records = []
    for number, (stated, patient) in enumerate(patients):
        (folder / f"{number}.dcm").write_bytes(dicom(ramp(), PatientID=patient, PatientComments=str(number)))
        records.append(Record(f"{number}.dcm", "normal", stated, ("train", "test")[number % 2]))
    return Manifest(tuple(records), folder)


def test_an_identifier_of_all_headers_leaks_nobody_whom_the_manifest_tells_apart(tmp_path):
    report = audit(dicom_set(tmp_path, [(f"p{n}", "ANONYMOUS") for n in range(6)]), near_distance=None)
    assert not report.leaks


def test_an_identifier_of_many_patients_among_others_leaks_nobody(tmp_path):
    patients = [(f"p{n}", "ANONYMOUS") for n in range(12)] + [("q", "X"), ("q2", "Y")]
    assert inspect(dicom_set(tmp_path, patients), near_distance=None).same_key == []


def test_a_patient_who_is_listed_as_two_is_found_by_the_headers(tmp_path):
    report = audit(dicom_set(tmp_path, [("a", "X"), ("b", "X"), ("c", "Y"), ("d", "Z")]), near_distance=None)
    assert [leak.paths for leak in report.leaks_found] == [("0.dcm", "1.dcm")]
