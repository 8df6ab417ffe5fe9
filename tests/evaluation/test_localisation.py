from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Explanation
from pneumoscope.errors import DataError
from pneumoscope.evaluation.boxes import TOLERANCE, Box, inside_boxes, point_of, points_at, read_boxes
from pneumoscope.evaluation.bundles import evaluate_bundle
from pneumoscope.evaluation.localisation import CURVES, STEPS, MapTruth, curve, energy_inside, localise
from pneumoscope.evaluation.steps import calibrate_bundle, sign_bundle
from pneumoscope.image.lungs import WHOLE
from pneumoscope.image.standardise import Standardised
from pneumoscope.parallel import Progress
from pneumoscope.predict.predictor import Predictor

# The map covers the lower right quarter of the image; its strongest place is that quarter's first corner.
HEAT = np.zeros((4, 4), np.float32)
HEAT[0, 0], HEAT[3, 3] = 1, 0.5
MAP = Explanation("pneumonia", HEAT, (0.5, 0.5, 1.0, 1.0))


def test_energy_is_counted_in_the_frame_of_the_image():
    mask = np.zeros((40, 80), bool)
    mask[20:25, 40:50] = True
    energy, area = energy_inside(MAP, mask)
    assert energy == pytest.approx(1 / 1.5)
    assert area == pytest.approx(1 / 16)
    assert energy_inside(MAP, ~mask)[0] == pytest.approx(0.5 / 1.5)


def test_the_point_is_in_pixels_of_the_original():
    assert point_of(MAP, 400, 800) == pytest.approx((450, 225))


def test_a_point_near_any_box_counts_within_reach_alone():
    boxes = (Box(10, 10, 20, 20), Box(100, 100, 10, 10))
    assert points_at(30, 30, boxes, 0)
    assert not points_at(33, 34, boxes, 4.9)
    assert points_at(33, 34, boxes, 5)
    assert points_at(105, 95, boxes, 5)


def test_the_area_of_boxes_counts_overlap_once_and_keeps_the_aspect():
    inside = inside_boxes((Box(0, 0, 100, 50), Box(50, 0, 50, 50)), 100, 200)
    assert inside.shape == (224, 448)
    assert inside.mean() == pytest.approx(0.25, abs=0.01)
    wider = inside_boxes((Box(50, 25, 100, 50),), 100, 200, reach=10)
    assert wider.mean() == pytest.approx((120 * 70 - (4 - np.pi) * 100) / 20000, abs=0.01)


def brightness(row: slice, column: slice):
    """Log-odds of a network that looks at one place alone."""
    return lambda images: 20 * (images[:, 0, row, column].mean(axis=(1, 2)).astype(float) - 0.5)


def test_curves_tell_a_map_of_what_the_network_sees_from_one_beside_it():
    pixels = np.ones((1, 40, 40), np.float32)
    seen = Standardised(pixels, WHOLE, WHOLE, None)
    network = brightness(slice(5, 15), slice(20, 30))
    right, wrong = np.zeros((2, 40, 40), np.float32)
    right[5:15, 20:30] = wrong[25:35, 0:10] = 1

    def area(heat, *, insert):
        values = curve(network, seen, np.zeros_like(pixels), heat, insert=insert)
        assert len(values) == STEPS + 1
        assert values[-1 if insert else 0] == pytest.approx(1, abs=1e-4)
        assert values[0 if insert else -1] == pytest.approx(0, abs=1e-4)
        return values.mean()

    assert area(right, insert=True) > area(wrong, insert=True) + 0.2
    assert area(right, insert=False) < area(wrong, insert=False) - 0.2


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A calibrated bundle, twelve images of six patients, half of them ill, masks and boxes."""
    folder = tmp_path_factory.mktemp("set")
    records = []
    for number in range(12):
        label = "bacterial" if number % 2 else "normal"
        path = f"{label}/{number}.png"
        write_image(folder / path, seed=number)
        records.append(Record(path, label, f"patient{number // 4}-{label}"))
        image = cv2.imread(str(folder / path), cv2.IMREAD_GRAYSCALE)
        mask = np.zeros(image.shape, np.uint8)
        mask[:, : mask.shape[1] // 2] = 255
        (folder / "masks" / label).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "masks" / path), mask)
    boxes = "1,0,0,9999,9999,1\n3,0,0,9999,9999,1\n5,0,0,0.01,0.01,1\n2,,,,,0\n"
    (folder / "boxes.csv").write_text("patientId,x,y,width,height,Target\n" + boxes)
    manifest = Manifest(tuple(records), folder)
    bundle = make_bundle(folder / "bundle", seed=1)
    return calibrate_bundle(bundle, manifest, method="none", described_as="made-up"), manifest, folder


def test_everything_is_measured_with_intervals(evaluated):
    bundle, manifest, folder = evaluated
    truth = MapTruth(folder / "masks", read_boxes(folder / "boxes.csv"), 4)
    measured = localise(Predictor.load(bundle.path, force=True), manifest, truth, n_boot=50)
    found = measured.model_dump(mode="json")
    json.dumps(found, allow_nan=False)
    lungs, boxes, curves = found["lungs"], found["boxes"], found["curves"]
    assert lungs["lung_area"]["value"] == pytest.approx(0.5, abs=0.01)
    assert 0 <= lungs["energy_in_lungs"]["low"] <= lungs["energy_in_lungs"]["value"] <= 1
    assert boxes["images"] == 3
    assert boxes["tolerance"] == TOLERANCE
    # Two boxes are the whole image, one is a speck in a corner.
    assert boxes["pointing_game_strict"]["value"] == pytest.approx(2 / 3)
    assert boxes["energy_in_boxes"]["value"] == pytest.approx(2 / 3, abs=0.01)
    assert boxes["box_area"]["value"] == pytest.approx(2 / 3, abs=0.01)
    assert set(curves["mean"]) == set(CURVES)
    for name, values in curves["mean"].items():
        assert len(values) == curves["steps"] + 1, name
        assert curves[name]["value"] == pytest.approx(np.trapezoid(values, dx=1 / STEPS))


def test_curves_of_rotated_images_follow_the_map_as_the_network_saw_it(tmp_path):
    records = [Record(f"{label}.png", label, label) for label in ("bacterial", "normal")]
    samples, areas = resources.files("pneumoscope") / "samples", []
    for turns in (0, 1):
        folder = tmp_path / str(turns)
        folder.mkdir()
        for record in records:
            pixels = cv2.imread(str(samples / f"{record.label}.jpeg"), cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(str(folder / record.path), np.rot90(pixels, turns))
        found = localise(
            Predictor.load(workers=1), Manifest(tuple(records), folder), MapTruth(curves=1), n_boot=0
        )
        areas.append([found.curves.deletion.value, found.curves.insertion.value])
    assert areas[1] == pytest.approx(areas[0], abs=0.02)


def test_an_image_is_covered_with_the_chest_of_another_patient_alone(evaluated):
    bundle, manifest, _ = evaluated
    predictor = Predictor.load(bundle.path, force=True)
    one = manifest.with_records(replace(record, patient_id="one") for record in manifest)
    assert localise(predictor, one, MapTruth(curves=2), n_boot=0).curves.images == 0
    assert localise(predictor, manifest, MapTruth(curves=2), n_boot=0).curves.images == 2


class Steps(Progress):
    """Lists the steps that are begun."""

    def __init__(self, begun):
        self.begun = begun

    def step(self, name):
        self.begun.append(name)


def evaluate_with(maps, bundle, manifest, out, begun):
    progress = Steps(begun)
    evaluate_bundle(bundle, manifest, out, evaluated_on="made-up", about={}, maps=maps, progress=progress)


def test_masks_and_boxes_of_other_images_are_rejected(evaluated, tmp_path):
    bundle, manifest, _ = evaluated
    with pytest.raises(DataError, match="no mask belongs"):
        localise(
            Predictor.load(bundle.path, force=True), manifest, MapTruth(masks=tmp_path, curves=0), n_boot=0
        )
    (tmp_path / "boxes.csv").write_text("path,x,y,width,height\nother.png,1,2,3,4\n")
    boxes = MapTruth(boxes=read_boxes(tmp_path / "boxes.csv"), curves=0)
    for truth, message in (
        (boxes, "no box belongs"),
        (MapTruth(masks=tmp_path, curves=0), "no mask belongs"),
    ):
        predicted = []
        with pytest.raises(DataError, match=message):
            evaluate_with(truth, bundle, manifest, tmp_path / "out", predicted)
        assert predicted == []  # it is found before any image is read


def test_masks_of_ones_are_lungs_as_in_training_and_an_empty_mask_is_an_error(evaluated, tmp_path):
    bundle, manifest, folder = evaluated
    predictor = Predictor.load(bundle.path, force=True)
    for record in manifest.records:
        mask = cv2.imread(str(folder / "masks" / record.path), cv2.IMREAD_GRAYSCALE)
        (tmp_path / record.label).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / record.path), mask // 255)
    ones, levels = (
        localise(predictor, manifest, MapTruth(masks=masks, curves=0), n_boot=0).lungs
        for masks in (tmp_path, folder / "masks")
    )
    assert ones == levels
    assert ones.lung_area.value == pytest.approx(0.5, abs=0.01)
    cv2.imwrite(str(tmp_path / "bacterial" / "5.png"), np.zeros((50, 40), np.uint8))
    predicted = []
    for evaluation in (
        lambda maps: localise(predictor, manifest, maps, n_boot=0),
        lambda maps: evaluate_with(maps, bundle, manifest, tmp_path / "out", predicted),
    ):
        with pytest.raises(DataError, match=r"5\.png: this mask shows no lung; .*") as error:
            evaluation(MapTruth(masks=tmp_path, curves=0))
        assert "\n" not in str(error.value)
    assert predicted == []  # it is found before any image is read
    (tmp_path / "bacterial" / "5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"5\.png: not a readable mask"):
        localise(predictor, manifest, MapTruth(masks=tmp_path, curves=0), n_boot=0)


def test_the_background_is_the_mean_of_normal_features(evaluated):
    bundle, manifest, _ = evaluated
    predictor = Predictor.load(bundle.path)
    normal = [manifest.resolve(record) for record in manifest.records if record.label == "normal"]
    expected = np.mean([one.features for (one,) in predictor.outputs_iter(normal)], axis=0)
    assert bundle.background is not None
    np.testing.assert_allclose(bundle.background, expected, rtol=1e-5)
    assert bundle.background.shape[0] == bundle.head_weight.shape[1]


def test_report_and_card_show_what_was_measured(evaluated, tmp_path):
    bundle, manifest, folder = evaluated
    truth = MapTruth(folder / "masks", read_boxes(folder / "boxes.csv"), 4)
    evaluation = evaluate_bundle(
        bundle, manifest, tmp_path, evaluated_on="made-up", about={}, n_boot=100, maps=truth
    )
    estimate = evaluation.metrics.localisation.boxes.pointing_game
    page = evaluation.report.read_text(encoding="utf-8")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["localisation"]["boxes"]["pointing_game"]["value"] == estimate.value
    assert "Pointing game, strict" in page
    assert "Insertion and deletion curves" in page
    card = sign_bundle(bundle, evaluation.metrics).card
    assert f"| Pointing game | 3 | {estimate.value:.3f} |" in card
