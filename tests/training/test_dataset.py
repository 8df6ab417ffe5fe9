from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.errors import DataError, Reason
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.standardise import InputSpec, standardise
from pneumoscope.training.dataset import check_classes, check_packed, check_split, class_indices, pack

THREE, TWO = ("normal", "bacterial", "viral"), ("normal", "pneumonia")
SPEC = InputSpec(size=32)


def manifest_of(root, *rows):
    """Rows are (label, split)."""
    records = (
        Record(f"{position}.png", label, f"patient{position}", split)
        for position, (label, split) in enumerate(rows)
    )
    return Manifest(tuple(records), root)


def full(root, count=10, labels=THREE):
    """`count` images of each label, in train but for the last two."""
    sides = ["train"] * (count - 2) + ["val", "test"]
    return manifest_of(root, *((label, side) for label in labels for side in sides))


def draw(manifest, *, broken=()):
    rng = np.random.default_rng(0)
    for position, record in enumerate(manifest.records):
        path = manifest.resolve(record)
        if position in broken:
            path.write_bytes(b"this is no image")
        else:
            cv2.imwrite(str(path), rng.integers(0, 256, (40, 50), dtype=np.uint8))
    return manifest


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_kinds_count_as_pneumonia_for_two_classes(tmp_path):
    records = full(tmp_path, 3).records
    assert class_indices(records, THREE).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert class_indices(records, TWO).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no images found"),
        ([("normal", ""), ("covid", "")], "label 'covid' is none of the classes"),
        ([("normal", ""), ("normal", "")], "all 2 images are 'normal'; a second class is needed"),
        ([("normal", ""), ("viral", "")], "no image of class bacterial"),
    ],
)
def test_data_that_no_network_can_learn_from_are_one_line(tmp_path, rows, said):
    with pytest.raises(DataError, match=said) as caught:
        check_classes(manifest_of(tmp_path, *rows), THREE)
    one_line(caught)


def test_good_data_pass(tmp_path):
    check_classes(full(tmp_path), THREE)
    check_split(full(tmp_path), THREE)
    check_split(full(tmp_path), TWO)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda r: r.split == "val" and r.label == "viral", "split 'val' has no image of class viral"),
        (lambda r: r.split == "train", "split 'train' has no image of class normal, bacterial, viral"),
        (lambda r: r.split == "test", "split 'test' is empty"),
    ],
)
def test_a_split_that_cannot_serve_is_one_line(tmp_path, lost, said):
    manifest = full(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        check_split(manifest.with_records(r for r in manifest.records if not lost(r)), THREE)
    one_line(caught)


def test_images_are_packed_as_the_network_will_see_them(tmp_path):
    manifest = draw(full(tmp_path, 4))
    told = []
    packed = pack(manifest, THREE, SPEC, progress=told.append)
    assert packed.images.shape == (12, 1, 32, 32)
    assert packed.images.dtype == np.uint8
    assert packed.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert packed.records == manifest.records
    assert told == list(range(1, 13))
    seen = standardise(read_radiograph(manifest.resolve(manifest.records[7])), SPEC).pixels
    assert np.abs(packed.images[7] / 255 - seen).max() <= 0.5 / 255 + 1e-6


def test_the_lung_segmenter_is_used_where_the_input_needs_it(tmp_path):
    manifest = draw(full(tmp_path, 3))

    def left_half(pixels):
        probability = np.zeros((64, 64), np.float32)
        probability[:, :32] = 1
        return probability

    packed = pack(manifest, THREE, InputSpec(size=32, lungs="mask"), left_half)
    assert packed.images[:, :, :, :16].any()
    assert not packed.images[:, :, :, 16:].any()


@pytest.mark.parametrize(
    "spec", [SPEC, InputSpec(size=32, lungs="crop", lung_margin=0.0)], ids=["whole", "crop"]
)
def test_the_lungs_are_kept_in_the_frame_of_the_input(tmp_path, spec):
    manifest = draw(full(tmp_path, 2))

    def two_lungs(pixels):
        probability = np.zeros((64, 64), np.float32)
        probability[16:48, 8:28] = probability[16:48, 36:56] = 1
        return probability

    plain = pack(manifest, THREE, spec, two_lungs)
    assert plain.lungs is None
    packed = pack(manifest, THREE, spec, two_lungs, keep_lungs=True)
    assert np.array_equal(packed.images, plain.images)
    assert packed.lungs.shape == (6, 1, 32, 32)
    assert set(np.unique(packed.lungs)) == {0, 255}
    whole = spec.lungs == "none"
    assert (packed.lungs == 255).mean() == pytest.approx(0.3125 if whole else 40 / 48, abs=0.05)
    assert packed.subset(np.array([4, 1])).lungs.shape == (2, 1, 32, 32)


def test_nothing_packs_to_nothing(tmp_path):
    packed = pack(Manifest((), tmp_path), THREE, SPEC)
    assert packed.images.shape == (0, 1, 32, 32)
    assert len(packed) == 0


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    manifest = draw(full(tmp_path, 8), broken=(1, 20))
    manifest.resolve(manifest.records[5]).unlink()
    packed = pack(manifest, THREE, SPEC)
    assert len(packed) == 21
    assert packed.records == tuple(r for i, r in enumerate(manifest.records) if i not in (1, 5, 20))
    assert packed.labels.tolist() == class_indices(packed.records, THREE).tolist()
    assert [error.reason for error in packed.unreadable] == [
        Reason.NOT_AN_IMAGE, Reason.NOT_FOUND, Reason.NOT_AN_IMAGE
    ]  # fmt: skip
    assert packed.unreadable[0].path == str(manifest.resolve(manifest.records[1]))


def packed_sides(manifest):
    return {side: pack(manifest.subset(side), THREE, SPEC) for side in ("train", "val")}


def test_five_percent_unreadable_is_borne_and_more_is_not(tmp_path):
    # 38 images a class to train and choose on, so 5% of all 114 are 5.7 images.
    for broken, stops in ((range(5), False), (range(6), True)):
        manifest = draw(full(tmp_path, 39), broken=broken)
        sides = packed_sides(manifest)
        if not stops:
            check_packed(tmp_path, THREE, **sides)
            continue
        with pytest.raises(DataError, match=r"6 of 114 images are unreadable, the first: .*0\.png") as caught:
            check_packed(tmp_path, THREE, **sides)
        assert "data audit" in one_line(caught)


def test_one_unreadable_image_of_a_small_split_does_not_stop_a_large_set(tmp_path):
    manifest = full(tmp_path, 30)
    records = list(manifest.records)
    records[27] = dataclasses.replace(records[27], split="val")  # a second normal to choose on
    manifest = draw(manifest.with_records(records), broken=(27,))
    check_packed(tmp_path, THREE, **packed_sides(manifest))


def test_a_class_whose_images_of_a_split_are_all_unreadable_stops(tmp_path):
    manifest = draw(full(tmp_path, 30), broken=(28,))
    with pytest.raises(DataError, match="split 'val' has no readable image of class normal") as caught:
        check_packed(tmp_path, THREE, **packed_sides(manifest))
    one_line(caught)
