from __future__ import annotations

import dataclasses
from dataclasses import replace

import cv2
import numpy as np
import pytest

from bundles import lungs_onnx
from dicom_files import dicom
from images import grey_levels
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Target
from pneumoscope.errors import DataError, Reason
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.lungs import WHOLE
from pneumoscope.image.standardise import InputSpec, Standardised, standardise
from pneumoscope.model.bundle import default_bundle_path, load_bundle
from pneumoscope.model.lungs import LUNGS_FILE, OnnxLungSegmenter
from pneumoscope.parallel import Progress
from pneumoscope.predict import pipeline as pipeline_module
from pneumoscope.predict.cache import ImageCache
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.training.dataset import (
    _box_mask,
    check_classes,
    check_packed,
    check_split,
    class_indices,
    joined,
    pack,
)

THREE, TWO = ("normal", "bacterial", "viral"), ("normal", "pneumonia")
SPEC = InputSpec(size=32)
PLAIN = Pipeline(SPEC)


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
    for position, record in enumerate(manifest.records):
        path = manifest.resolve(record)
        if position in broken:
            path.write_bytes(b"this is no image")
        else:
            cv2.imwrite(str(path), grey_levels(position))
    return manifest


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_subtypes_count_as_pneumonia_for_two_classes(tmp_path):
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


class Counts(Progress):
    def __init__(self):
        self.counts = []

    def update(self, done, total=None):
        self.counts.append((done, total))


def test_images_are_packed_as_prediction_prepares_them(tmp_path):
    manifest = draw(full(tmp_path, 4))
    progress = Counts()
    packed = pack(manifest, THREE, PLAIN, progress=progress)
    assert packed.images.shape == (12, 1, 32, 32)
    assert packed.images.dtype == np.uint8
    assert packed.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert packed.records == manifest.records
    assert packed.left_out == ()
    assert progress.counts == [(number, 12) for number in range(1, 13)]
    expected = standardise(read_radiograph(manifest.resolve(manifest.records[7])), SPEC).pixels
    assert np.abs(packed.images[7] / 255 - expected).max() <= 0.5 / 255 + 1e-6


def test_a_label_that_is_the_target_leaves_all_its_classes_open(tmp_path):
    manifest = draw(manifest_of(tmp_path, ("clear", ""), ("infiltrate", ""), ("diffuse", "")))
    target = Target("infiltrate", ("lobar", "diffuse"))
    packed = pack(manifest, ("clear", "lobar", "diffuse"), PLAIN, target=target)
    assert packed.possible.tolist() == [[True, False, False], [False, True, True], [False, False, True]]


@pytest.fixture(scope="module")
def two_lungs(tmp_path_factory):
    """A segmenter that finds the same two lungs in every image."""
    path = tmp_path_factory.mktemp("lungs") / "lungs.onnx"
    path.write_bytes(lungs_onnx())
    return OnnxLungSegmenter(path)


def test_the_lung_segmenter_is_used_where_the_input_needs_it(tmp_path, two_lungs):
    manifest = draw(full(tmp_path, 3))
    packed = pack(manifest, THREE, Pipeline(InputSpec(size=32, lungs="mask"), segmenter=two_lungs))
    assert packed.images[:, :, 8:24, 6:13].any()
    assert not packed.images[:, :, :, :4].any()


@pytest.mark.parametrize(
    "spec", [SPEC, InputSpec(size=32, lungs="crop", lung_margin=0.0)], ids=["whole", "crop"]
)
def test_the_lungs_are_kept_in_the_frame_of_the_input(tmp_path, two_lungs, spec):
    manifest = draw(full(tmp_path, 2))
    pipeline = Pipeline(spec, segmenter=two_lungs)
    plain = pack(manifest, THREE, pipeline)
    assert plain.lungs is None
    packed = pack(manifest, THREE, pipeline, keep_lungs=True)
    assert np.array_equal(packed.images, plain.images)
    assert packed.lungs.shape == (6, 1, 32, 32)
    assert set(np.unique(packed.lungs)) == {0, 255}
    whole = spec.lungs == "none"
    lungs = 80 * 76  # of 128 by 128 pixels, in a box of 80 by 88
    assert (packed.lungs == 255).mean() == pytest.approx(lungs / (128**2 if whole else 80 * 88), abs=0.05)
    assert packed.subset(np.array([4, 1])).lungs.shape == (2, 1, 32, 32)


def test_nothing_packs_to_nothing(tmp_path):
    packed = pack(Manifest((), tmp_path), THREE, PLAIN)
    assert packed.images.shape == (0, 1, 32, 32)
    assert len(packed) == 0


# The gate


def test_what_the_gate_rejects_is_left_out_of_training_with_its_reason(tmp_path):
    manifest = draw(full(tmp_path, 4))
    paths = [manifest.resolve(record) for record in manifest.records]
    paths[1].write_bytes(dicom(grey_levels(1), bits=8, Rows=120, Columns=140, ViewPosition="LL"))
    paths[6].write_bytes(dicom(grey_levels(6), bits=8, Rows=120, Columns=140, BodyPartExamined="HAND"))
    cv2.imwrite(str(paths[9]), grey_levels(0, 30, 35))
    packed = pack(manifest, THREE, PLAIN)
    assert [(one.path, one.status, one.reason) for one in packed.left_out] == [
        (str(paths[1]), "rejected", Reason.LATERAL_VIEW),
        (str(paths[6]), "rejected", Reason.NOT_A_CHEST_RADIOGRAPH),
        (str(paths[9]), "rejected", Reason.TOO_SMALL),
    ]
    assert all(one.detail for one in packed.left_out)
    assert packed.records == tuple(r for i, r in enumerate(manifest.records) if i not in (1, 6, 9))
    assert packed.labels.tolist() == class_indices(packed.records, THREE).tolist()


def test_an_inverted_image_is_corrected_for_training(shared_data, tmp_path):
    """The network is trained on the upright image, as it would get it in use."""
    source = next(path for path in sorted(shared_data.rglob("*NORMAL2-IM-*.jpeg")))
    grey = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "0.png"), grey)
    cv2.imwrite(str(tmp_path / "1.png"), 255 - grey)
    bundle = load_bundle(default_bundle_path())
    segmenter = OnnxLungSegmenter(bundle.path / LUNGS_FILE)
    pipeline = Pipeline(bundle.manifest.input, segmenter=segmenter)
    packed = pack(manifest_of(tmp_path, ("normal", ""), ("viral", "")), THREE, pipeline)
    assert len(packed) == 2
    upright, corrected = packed.images.astype(int)
    assert np.abs(upright - corrected).mean() < 5


def test_data_that_the_gate_rejects_are_one_line(tmp_path):
    manifest = full(tmp_path, 10)
    for record in manifest.records:
        cv2.imwrite(str(manifest.resolve(record)), np.full((120, 140), 90, np.uint8))
    with pytest.raises(DataError, match=r"27 of 27 images are rejected, the first: .*0\.png: ") as caught:
        check_packed("data.csv", THREE, **packed_sides(manifest))
    assert "frontal chest radiographs" in one_line(caught)


# The cache


def test_a_second_pack_decodes_nothing(tmp_path, two_lungs, monkeypatch):
    (tmp_path / "data").mkdir()
    manifest = draw(full(tmp_path / "data", 4))
    cv2.imwrite(str(manifest.resolve(manifest.records[2])), np.full((120, 140), 90, np.uint8))
    decoded = []

    def counting(source, **options):
        decoded.append(source)
        return read_radiograph(source, **options)

    monkeypatch.setattr(pipeline_module, "read_radiograph", counting)
    spec = InputSpec(size=32, lungs="crop")

    def packed_again(size=32):
        own = spec.model_copy(update={"size": size})
        cache = ImageCache(tmp_path / "cache")
        return pack(manifest, THREE, Pipeline(own, segmenter=two_lungs, cache=cache), keep_lungs=True)

    first = packed_again()
    assert len(decoded) == 12
    again = packed_again()
    assert len(decoded) == 12
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.lungs, again.lungs)
    assert first.left_out == again.left_out
    assert len(first.left_out) == 1
    packed_again(size=48)
    assert len(decoded) == 24, "another input is another entry"


# Unreadable images


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    manifest = draw(full(tmp_path, 8), broken=(1, 20))
    manifest.resolve(manifest.records[5]).unlink()
    packed = pack(manifest, THREE, PLAIN)
    assert len(packed) == 21
    assert packed.records == tuple(r for i, r in enumerate(manifest.records) if i not in (1, 5, 20))
    assert packed.labels.tolist() == class_indices(packed.records, THREE).tolist()
    assert [(one.status, one.reason) for one in packed.left_out] == [
        ("unreadable", Reason.NOT_AN_IMAGE),
        ("unreadable", Reason.NOT_FOUND),
        ("unreadable", Reason.NOT_AN_IMAGE),
    ]
    assert packed.left_out[0].path == str(manifest.resolve(manifest.records[1]))


def packed_sides(manifest):
    return {side: pack(manifest.subset(side), THREE, PLAIN) for side in ("train", "val")}


def test_five_percent_unreadable_is_accepted_and_more_is_not(tmp_path):
    # 38 training and validation images a class, so that 5% of all 114 are 5.7 images.
    for broken, stops in ((range(5), False), (range(6), True)):
        manifest = draw(full(tmp_path, 39), broken=broken)
        sides = packed_sides(manifest)
        if not stops:
            check_packed("data.csv", THREE, **sides)
            continue
        with pytest.raises(DataError, match=r"6 of 114 images are unreadable, the first: .*0\.png") as caught:
            check_packed("data.csv", THREE, **sides)
        assert "data audit" in one_line(caught)


def test_one_unreadable_image_of_a_small_split_does_not_stop_a_large_set(tmp_path):
    manifest = full(tmp_path, 30)
    records = list(manifest.records)
    records[27] = dataclasses.replace(records[27], split="val")  # a second normal to validate on
    manifest = draw(manifest.with_records(records), broken=(27,))
    check_packed("data.csv", THREE, **packed_sides(manifest))


def test_a_class_whose_images_of_a_split_are_all_unreadable_stops(tmp_path):
    manifest = draw(full(tmp_path, 30), broken=(28,))
    with pytest.raises(DataError, match="split 'val' has no usable image of class normal") as caught:
        check_packed("data.csv", THREE, **packed_sides(manifest))
    one_line(caught)


def test_boxes_are_kept_in_the_frame_of_the_input(tmp_path, two_lungs):
    """Boxes are shares of the whole image; the input is a crop of it."""
    records = tuple(
        replace(record, boxes="0.25,0.5,0.25,0.25;0.75,0.0,0.25,0.5" if number == 0 else "")
        for number, record in enumerate(full(tmp_path, 3).records)
    )
    manifest = draw(Manifest(records, tmp_path))
    packed = pack(manifest, THREE, PLAIN, keep_boxes=True)
    drawn_boxes = packed.boxes[0, 0] > 0
    expected = np.zeros((32, 32), bool)
    expected[16:24, 8:16] = expected[0:16, 24:32] = True
    assert np.array_equal(drawn_boxes, expected)
    assert not packed.boxes[1:].any()
    rotated = Standardised(np.zeros((1, 32, 32), np.float32), WHOLE, WHOLE, None, 1)
    boxes = ((0.25, 0.5, 0.25, 0.25), (0.75, 0.0, 0.25, 0.5))
    assert np.array_equal(_box_mask(rotated, boxes) > 0, np.rot90(expected))
    wrong = Manifest((replace(records[0], boxes="1,2,3"), *records[1:]), tmp_path)
    with pytest.raises(DataError, match=r"box '1,2,3' is not x,y,width,height"):
        pack(wrong, THREE, PLAIN, keep_boxes=True)


def test_parts_are_joined_in_order(tmp_path):
    packed = pack(draw(full(tmp_path, 3)), THREE, PLAIN, keep_boxes=True)
    halves = [packed.subset(np.arange(0, 4)), packed.subset(np.arange(4, 9))]
    both = joined(halves)
    assert both.records == packed.records
    assert np.array_equal(both.images, packed.images)
    assert np.array_equal(both.boxes, packed.boxes)
    assert both.lungs is None
    assert joined(halves[:1]) is halves[0]
