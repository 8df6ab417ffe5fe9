"""Phantoms: deterministic, labelled, not separable by brightness alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pneumoscope.data import scan, split
from pneumoscope.data.phantom import PHANTOM_CLASSES, draw_phantom, write_phantoms
from pneumoscope.errors import DataError


def auroc(scores, positive):
    """Chance that a positive scores above a negative."""
    return float((scores[positive][:, None] > scores[~positive][None, :]).mean())


@pytest.mark.parametrize("label", PHANTOM_CLASSES)
@pytest.mark.parametrize("size", [32, 100, 256])
def test_shape_range_and_determinism(label, size):
    image = draw_phantom(label, 7, size)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    assert image.std() > 20
    assert np.array_equal(image, draw_phantom(label, 7, size))
    assert not np.array_equal(image, draw_phantom(label, 8, size))


def test_disease_is_inside_the_chest_and_all_else_is_the_same():
    normal = draw_phantom("normal", 5, 128).astype(int)
    for label in ("bacterial", "viral"):
        change = np.abs(draw_phantom(label, 5, 128).astype(int) - normal)
        assert change.max() > 15
        assert change[:, :6].max() <= 3
        assert change[:, -6:].max() <= 3


def test_bacterial_is_focal_and_viral_is_diffuse():
    spread = {}
    for label in ("bacterial", "viral"):
        shares = []
        for seed in range(12):
            change = cv2.absdiff(draw_phantom(label, seed, 128), draw_phantom("normal", seed, 128))
            shares.append((cv2.blur(change, (9, 9)) > 6).mean())
        spread[label] = np.median(shares)
    assert spread["bacterial"] < spread["viral"]


def test_mean_brightness_does_not_give_the_label_away():
    images = [
        (label, draw_phantom(label, 1000 * k + i, 64))
        for k, label in enumerate(PHANTOM_CLASSES)
        for i in range(60)
    ]
    sick = np.array([label != "normal" for label, _ in images])
    brightness = np.array([image.mean() for _, image in images])
    assert 0.3 < auroc(brightness, sick) < 0.7


def test_same_patient_looks_alike_in_another_view():
    a, b, other = (
        draw_phantom("normal", s, 64, anatomy_seed=p).astype(float).ravel()
        for s, p in ((1, 9), (2, 9), (2, 10))
    )
    assert not np.array_equal(a, b)
    assert not np.array_equal(b, other)


def test_set_is_read_back_by_scan_with_labels_and_patients(tmp_path):
    manifest = write_phantoms(tmp_path, n=32, seed=1, size=48)
    assert len(manifest) == 32
    counts = [sum(r.label == label for r in manifest) for label in PHANTOM_CLASSES]
    assert counts == [11, 11, 10]
    scanned = {r.path: (r.label, r.patient_id, r.sha256) for r in scan(tmp_path)}
    assert scanned == {r.path: (r.label, r.patient_id, r.sha256) for r in manifest}
    patients = {r.patient_id for r in manifest}
    assert len(patients) < 32
    assert len(split(manifest)) == 32
    assert manifest.description.population.name == "phantoms"
    assert scan(tmp_path).description == manifest.description


def test_the_same_call_may_be_repeated_and_other_images_are_safe(tmp_path):
    first = write_phantoms(tmp_path, n=6, size=32)
    assert write_phantoms(tmp_path, n=6, size=32) == first
    (tmp_path / "NORMAL" / "mine.jpeg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"mine\.jpeg"):
        write_phantoms(tmp_path, n=6, size=32)


@pytest.mark.parametrize(
    "call",
    [
        lambda out: draw_phantom("covid", 0),
        lambda out: draw_phantom("normal", -1),
        lambda out: draw_phantom("normal", 0, 8),
        lambda out: write_phantoms(out, n=2),
        lambda out: write_phantoms(out, classes=("normal", "covid")),
    ],
)
def test_wrong_arguments(tmp_path, call):
    with pytest.raises(DataError):
        call(tmp_path / "new")
    assert not (tmp_path / "new").exists()
