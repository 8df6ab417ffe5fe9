"""MedMNIST files."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pneumoscope.data import load, scan
from pneumoscope.data.medmnist import read_npz
from pneumoscope.errors import DataError


def arrays(**changes):
    rng = np.random.default_rng(0)
    made = {}
    for split, n in (("train", 6), ("val", 2), ("test", 3)):
        made[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(n) % 2).astype(np.uint8)[:, None]
    return made | changes


def test_images_and_splits_come_out_as_they_are(tmp_path):
    content = arrays()
    np.savez_compressed(tmp_path / "pneumoniamnist.npz", **content)
    manifest = read_npz(tmp_path / "pneumoniamnist.npz", tmp_path / "out")
    assert [len(manifest.subset(split)) for split in ("train", "val", "test")] == [6, 2, 3]
    assert manifest.labels() == ["normal", "pneumonia"]
    for record in manifest:
        number = int(record.patient_id.split("-")[1])
        assert record.label == ("normal", "pneumonia")[int(content[f"{record.split}_labels"][number, 0])]
        image = cv2.imread(str(manifest.resolve(record)), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(image, content[f"{record.split}_images"][number])
        assert (record.width, record.height) == (28, 28)
    assert load(tmp_path / "out" / "manifest.csv") == manifest
    scanned = {r.path: (r.label, r.split, r.sha256) for r in scan(tmp_path / "out")}
    assert scanned == {r.path: (r.label, r.split, r.sha256) for r in manifest}


def test_load_unpacks_beside_the_file(tmp_path):
    np.savez(tmp_path / "set.npz", **arrays())
    assert len(load(tmp_path / "set.npz")) == 11
    assert (tmp_path / "set" / "manifest.csv").is_file()
    with pytest.raises(DataError, match=r"give the \.npz"):
        (tmp_path / "other").mkdir()
        (tmp_path / "set.npz").rename(tmp_path / "other" / "set.npz")
        load(tmp_path / "other")


@pytest.mark.parametrize(
    "content",
    [
        {"x": np.zeros(3)},
        arrays(val_images=np.zeros((2, 28, 28, 3), np.uint8)),
        arrays(val_images=np.zeros((2, 28, 28), np.float32)),
        arrays(val_images=np.zeros((2, 0, 28), np.uint8)),
        arrays(test_labels=np.full((3, 1), 7)),
        arrays(test_labels=np.zeros((3, 1))),
        arrays(test_labels=np.zeros((3, 1), bool)),
        arrays(test_labels=np.zeros((1, 1), np.uint8)),
        arrays(train_labels=np.array([[None]] * 6, dtype=object)),
    ],
)
def test_other_arrays_are_rejected(tmp_path, content):
    np.savez(tmp_path / "set.npz", **content)
    with pytest.raises(DataError, match=r"set\.npz"):
        load(tmp_path / "set.npz")


def test_truncated_and_absent_files(tmp_path):
    np.savez(tmp_path / "set.npz", **arrays())
    whole = (tmp_path / "set.npz").read_bytes()
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:end])
        with pytest.raises(DataError):
            load(tmp_path / "cut.npz")
    with pytest.raises(DataError):
        load(tmp_path / "none.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(DataError):
        load(tmp_path / "single.npz")


def test_a_member_that_is_no_array_is_one_line(tmp_path):
    for name in ("train_images.npy", "train_labels.npy"):
        np.savez(tmp_path / "set.npz", **arrays())
        with zipfile.ZipFile(tmp_path / "set.npz") as archive:
            members = {one: archive.read(one) for one in archive.namelist()}
        with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
            del members[name]
            archive.writestr(name.removesuffix(".npy"), b"x")
            for one, content in members.items():
                archive.writestr(one, content)
        with pytest.raises(DataError, match=r"set\.npz: train_(images|labels)"):
            load(tmp_path / "set.npz")


def test_a_manifest_with_another_split_stays_as_it_is(tmp_path):
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays())
    stored = tmp_path / "pneumoniamnist" / "manifest.csv"
    manifest = load(tmp_path / "pneumoniamnist.npz")
    manifest.with_records(replace(one, split="train") for one in manifest.records[1:]).write(stored)
    before = stored.read_bytes()
    assert load(tmp_path / "pneumoniamnist.npz") == manifest
    assert stored.read_bytes() == before
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays(test_images=np.zeros((3, 28, 28), np.uint8)))
    other = load(tmp_path / "pneumoniamnist.npz")
    assert load(stored) == other, "the one of other images is replaced"


def test_another_set_of_the_family_is_an_error_and_a_file_without_its_name_a_line(tmp_path, caplog):
    np.savez(tmp_path / "breastmnist_224.npz", **arrays())
    with pytest.raises(DataError, match=r"breastmnist_224\.npz: not PneumoniaMNIST"):
        load(tmp_path / "breastmnist_224.npz")
    assert not (tmp_path / "breastmnist_224").exists()
    np.savez(tmp_path / "set.npz", **arrays())
    load(tmp_path / "set.npz")
    assert "set.npz: taken for PneumoniaMNIST" in caplog.text
