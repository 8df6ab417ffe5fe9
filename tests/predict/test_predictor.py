from __future__ import annotations

import os
from collections import Counter

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import grey_levels, write_image
from pneumoscope.data.samples import samples_folder
from pneumoscope.domain import OperatingPoint, Population, Radiograph, Target, ViewPosition
from pneumoscope.errors import BundleError, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.standardise import InputSpec, standardise
from pneumoscope.model.limits import GateLimits
from pneumoscope.model.manifest import Calibrator
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.inputs import InputItem
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.workers.rows import prediction_of, prediction_row

POINTS = [{"name": "balanced", "threshold": 0.5}, {"name": "never", "threshold": 1.0}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(
        tmp_path_factory.mktemp("tiny"),
        calibration={"operating_points": POINTS, "conformal": (0.3, 0.3, 0.3)},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(30):
        write_image(folder / f"{number:02}.png", seed=number)
    (folder / "03.png").write_bytes(b"")
    (folder / "05.png").write_text("no image")
    write_image(folder / "07.png", height=20, width=20)
    (folder / "09.png").write_bytes((folder / "08.png").read_bytes()[:200])
    return folder


def test_every_image_is_a_row_in_order_and_one_bad_file_stops_nothing(bundle, folder):
    found = Predictor.load(bundle.path, workers=3).predict(folder)
    assert [one.path for one in found] == sorted(str(path) for path in folder.iterdir())
    assert Counter(one.status for one in found) == {"ok": 26, "unreadable": 3, "rejected": 1}
    assert found[3].reasons == ("empty_file",)
    assert found[5].reasons == ("not_an_image",)
    assert found[7].reasons == ("too_small",)
    for one in found:
        assert (one.p_target is None) == (one.decision is None) == bool(one.reasons)
        assert bool(one.message) == bool(one.reasons)
        assert one.bundle == bundle.identity


@pytest.mark.parametrize(("stated", "coverage"), [({"conformal_alpha": 0.2}, 0.8), ({}, None)])
def test_the_coverage_of_prediction_sets_is_as_stated(tmp_path, folder, stated, coverage):
    bundle = make_bundle(tmp_path, calibration={"conformal": (0.3, 0.3, 0.3), **stated})
    (found,) = Predictor(bundle, workers=1).predict(folder / "00.png")
    assert found.set_coverage == coverage
    assert prediction_of(prediction_row(found), bundle).set_coverage == coverage


def test_the_prediction_is_the_calibrated_network_on_the_standardised_image(tmp_path):
    calibrator = Calibrator(method="vector", scale=(0.7, 1.2, 1.0), bias=(0.1, 0.0, -0.2))
    bundle = make_bundle(tmp_path, calibration={"calibrator": calibrator})
    image = write_image(tmp_path / "x.png", seed=5)
    predictor = Predictor.load(tmp_path)
    (score,) = predictor.scores_iter(image)
    pixels = standardise(read_radiograph(image), bundle.manifest.input).pixels
    (logits,) = predictor._network(pixels[None], ("logits",))
    np.testing.assert_array_equal(score.logits, logits[0])
    (one,) = predictor.predict(image)
    normal, bacterial, viral = calibrate(logits[0], calibrator, bundle.manifest.target_mask)
    expected = {"normal": normal, "bacterial": bacterial, "viral": viral}
    assert one.probabilities == pytest.approx(expected)
    assert list(one.probabilities) == list(expected)
    assert one.p_target == pytest.approx(bacterial + viral)
    assert one.finding == ("normal", "bacterial", "viral")[int(np.argmax([normal, bacterial, viral]))]


def test_threads_and_batches_do_not_change_a_prediction(bundle, folder):
    alone = Predictor.load(bundle.path, workers=1)
    together = {one.path: one for one in Predictor.load(bundle.path, workers=4).predict(folder)}
    for path in sorted(folder.iterdir())[:10]:
        (one,) = alone.predict(str(path))
        other = together[one.path]
        assert (one.status, one.finding) == (other.status, other.finding)
        assert one.p_target == pytest.approx(other.p_target, abs=1e-6)


def test_images_in_memory_are_predicted_as_files_are(bundle, folder):
    predictor = Predictor.load(bundle.path, workers=1)
    paths = [str(folder / f"{number:02}.png") for number in (0, 1, 7)]
    in_memory = predictor.predict_radiographs([read_radiograph(path) for path in paths])
    assert in_memory == predictor.predict(paths)
    assert [one.status for one in in_memory] == ["ok", "ok", "rejected"]


def test_two_classes_have_no_subtypes(tmp_path):
    make_bundle(tmp_path, classes=("normal", "pneumonia"))
    (one,) = Predictor.load(tmp_path).predict(write_image(tmp_path / "x.png"))
    assert list(one.probabilities) == ["normal", "pneumonia"]
    assert one.p_target == one.probabilities["pneumonia"]
    assert sum(one.probabilities.values()) == pytest.approx(1)


def test_any_classes_and_any_target_in_any_order(tmp_path):
    classes = ("lobar", "clear", "other", "diffuse")
    make_bundle(tmp_path, classes=classes, target=Target("infiltrate", ("diffuse", "lobar")), seed=3)
    predictor = Predictor.load(tmp_path)
    found = [predictor.explain(write_image(tmp_path / f"{seed}.png", seed)) for seed in range(6)]
    for one in (each.prediction for each in found):
        assert tuple(one.probabilities) == classes
        assert one.target == "infiltrate"
        assert one.p_target == pytest.approx(one.probabilities["lobar"] + one.probabilities["diffuse"])
        assert one.decision == ("infiltrate" if one.p_target >= 0.5 else "no infiltrate")
        assert one.positive is (one.p_target >= 0.5)
    assert {each.explanation.finding for each in found} == {"infiltrate"}


CHILDREN, ADULTS = Population("children", (0, 17)), Population("adults", (18, None), ("PA",))


@pytest.fixture(scope="module")
def two_populations(tmp_path_factory):
    def calibration(population: str, threshold: float, bias: float) -> dict[str, object]:
        point = OperatingPoint("balanced", threshold, population=population)
        calibrator = Calibrator(method="vector", scale=(1.0,), bias=(bias, 0.0, 0.0))
        return {"population": population, "operating_points": [point], "calibrator": calibrator}

    return make_bundle(
        tmp_path_factory.mktemp("two"),
        populations=(CHILDREN, ADULTS),
        calibrations=(calibration("children", 0.3, 0.0), calibration("adults", 0.9, 4.0)),
    )


@pytest.mark.parametrize(
    ("age", "view", "population"),
    [
        (3.0, ViewPosition.AP, "children"),
        (40.0, ViewPosition.PA, "adults"),
        (40.0, ViewPosition.AP, "children"),  # of no known population: the default
        (None, ViewPosition.PA, "children"),
    ],
)
def test_calibration_and_operating_point_follow_age_and_view(two_populations, age, view, population):
    predictor = Predictor.load(two_populations.path)
    grey = grey_levels(4) / np.float32(255)
    (one,) = predictor.predict_radiographs([Radiograph(grey, "x", "png", *grey.shape, age=age, view=view)])
    assert one.population == population
    assert predictor.point_of(one).threshold == {"children": 0.3, "adults": 0.9}[population]
    assert one.decision == (
        "pneumonia" if one.p_target >= predictor.point_of(one).threshold else "no pneumonia"
    )
    (forced,) = Predictor.load(two_populations.path, population="adults").predict_radiographs(
        [Radiograph(grey, "x", "png", *grey.shape)]
    )
    assert forced.population == "adults"
    assert (one.p_target == pytest.approx(forced.p_target)) is (population == "adults")


def test_a_manifest_states_age_and_view_where_there_is_no_header(two_populations, tmp_path):
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.png")
    (tmp_path / "m.csv").write_text("path,age,view\na.png,50,PA\nb.png,004Y,AP\nc.png,,\n")
    found = Predictor.load(two_populations.path).predict(tmp_path / "m.csv")
    assert [one.population for one in found] == ["adults", "children", "children"]


class _WithExpert:
    """The network of a bundle, which notes what it is told of the population of its expert."""

    def __init__(self, network, expert):
        self.network, self.expert, self.told = network, expert, []

    def __call__(self, batch, outputs, of_population):
        assert of_population.dtype == np.float32
        self.told += of_population.tolist()
        return self.network(batch, outputs)


@pytest.mark.parametrize(
    ("population", "told"), [(None, [-1, 1, 0]), ("children", [-1, 1, 0]), ("adults", [-1, 1, -1])]
)
def test_the_network_is_told_whether_an_image_is_of_its_experts_population(
    two_populations, tmp_path, population, told
):
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.png")
    (tmp_path / "m.csv").write_text("path,age,view\na.png,50,PA\nb.png,004Y,AP\nc.png,,\n")
    predictor = Predictor(two_populations, population=population, workers=1)
    network = predictor._network = _WithExpert(predictor._network, Population("preschool", (0, 5)))
    predictor.predict(tmp_path / "m.csv")
    assert network.told == told


def test_what_is_known_of_a_patient_holds_for_copies_of_the_image(two_populations, tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("path,age\na.png,50\n")
    predictor = Predictor(two_populations, workers=1)
    network = predictor._network = _WithExpert(predictor._network, Population("preschool", (0, 5)))
    ((first, copy),) = predictor.outputs_iter(tmp_path / "m.csv", copies=lambda radiograph: [radiograph])
    assert network.told == [-1, -1]
    assert first.score.age == copy.score.age == 50


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_altered_copies_pass_the_layers_that_the_image_passed(two_populations, tmp_path, side):
    write_image(tmp_path / "a.png")
    predictor = Predictor(two_populations, workers=1)
    plain = predictor._network

    class Doubled(_WithExpert):
        """Its expert gives twice the logits; where nothing is known, the gate has chosen `side`."""

        def __call__(self, batch, outputs, of_population):
            super().__call__(batch, outputs, of_population)
            logits, *rest = plain(batch, outputs)
            chosen = np.where(of_population == 0, side, of_population)
            return logits * np.where(chosen > 0, 2, 1)[:, None].astype(np.float32), *rest

    network = predictor._network = Doubled(plain, Population("preschool", (0, 5)))
    one = predictor.explain(tmp_path / "a.png")
    network.told.clear()
    odds = predictor.log_odds_like(one)(np.stack([one.standardised.pixels] * 2))
    assert network.told[2:] == [side, side]
    p_target = one.prediction.p_target
    assert odds == pytest.approx(np.log(p_target / (1 - p_target)), abs=1e-4)


def test_an_unknown_population_names_the_known_ones(two_populations):
    with pytest.raises(BundleError, match="it has children, adults"):
        Predictor.load(two_populations.path, population="infants")


@pytest.mark.parametrize(
    ("population", "prevalence"), [(None, None), (None, 0.05), ("adult", None), ("adult", 0.4)]
)
def test_a_predictor_for_others_is_as_one_that_is_loaded_for_them(population, prevalence):
    shipped = Predictor.load(workers=1)
    files = [str(samples_folder() / name) for name in ("normal.jpeg", "viral.jpeg")]
    before = shipped.predict(files)
    loaded = Predictor(shipped.bundle, population=population, prevalence=prevalence, workers=1)
    assert shipped.adapted(population, prevalence).predict(files) == loaded.predict(files)
    assert shipped.predict(files) == before


def test_a_draft_is_rejected_unless_it_is_asked_for(tmp_path):
    make_bundle(tmp_path, state="draft")
    with pytest.raises(BundleError, match="is a draft"):
        Predictor.load(tmp_path)
    assert Predictor.load(tmp_path, allow_draft=True).bundle.manifest.state == "draft"


def test_a_decision_can_be_taken_again_at_another_operating_point(bundle, folder):
    predictor = Predictor.load(bundle.path)
    (one,) = predictor.predict(folder / "00.png")
    again = predictor.decide_again(one, "never")
    assert (again.operating_point, again.decision) == ("never", "no pneumonia")
    assert again.p_target == one.p_target
    with pytest.raises(BundleError, match="no operating point"):
        predictor.decide_again(one, "always")


def test_the_operating_point_moves_the_decision_and_nothing_else(bundle, folder):
    path = folder / "00.png"
    (default,) = Predictor.load(bundle.path).predict(path)
    (never,) = Predictor.load(bundle.path, operating_point="never").predict(path)
    assert default.operating_point == "balanced"
    assert default.decision == ("pneumonia" if default.p_target >= 0.5 else "no pneumonia")
    assert (never.operating_point, never.decision) == ("never", "no pneumonia")
    assert never.p_target == default.p_target
    with pytest.raises(BundleError, match="no operating point 'always'"):
        Predictor.load(bundle.path, operating_point="always")


def test_force_predicts_what_the_gate_rejects_and_keeps_the_reason(bundle, folder):
    predictor = Predictor.load(bundle.path, force=True)
    rejected, empty = predictor.predict([folder / "07.png", folder / "03.png"])
    assert (rejected.status, rejected.reasons) == ("ok", ("too_small",))
    assert rejected.p_target is not None
    assert empty.status == "unreadable"


def test_bytes_are_predicted_like_the_file_they_came_from(bundle, folder):
    predictor = Predictor.load(bundle.path)
    path = folder / "02.png"
    (from_file,) = predictor.predict(path)
    from_bytes, damaged = predictor.predict_bytes([(path.read_bytes(), "upload.png"), (b"nothing", "x.png")])
    assert from_bytes.path == "upload.png"
    assert from_bytes.p_target == from_file.p_target
    assert (damaged.path, damaged.status) == ("x.png", "unreadable")
    assert predictor.predict_bytes([]) == []


def test_an_explained_prediction_agrees_with_the_prediction(bundle, folder):
    predictor = Predictor.load(bundle.path)
    path = folder / "02.png"
    found = predictor.explain(path)
    assert found.prediction == predictor.predict(path)[0]
    assert found.radiograph.pixels.shape == (120, 140)
    assert found.explanation.heatmap.shape == (64, 64)
    assert 0 <= found.explanation.heatmap.min() <= found.explanation.heatmap.max() <= 1
    rejected, unreadable = predictor.explain(folder / "07.png"), predictor.explain(folder / "03.png")
    assert rejected.radiograph is not None
    assert rejected.explanation is rejected.logits is None
    assert unreadable.radiograph is None
    assert predictor.explain(path.read_bytes()).prediction.path == "<bytes>"
    assert [one.prediction for one in predictor.explain_iter(folder)] == predictor.predict(folder)


def test_lungs_are_found_where_the_input_asks_for_them(tmp_path):
    spec = InputSpec(size=64, lungs="crop", window="lungs")
    make_bundle(tmp_path, input=spec, gate=GateLimits(min_lung_certainty=0))
    found = Predictor.load(tmp_path).explain(write_image(tmp_path / "x.png"))
    assert found.prediction.status == "ok"
    top, left, bottom, right = found.explanation.region
    assert 0 < top < bottom < 1
    assert 0 < left < right < 1


def test_a_folder_without_images_and_a_missing_file_are_rows(bundle, tmp_path):
    found = Predictor.load(bundle.path).predict([tmp_path, tmp_path / "gone.png"])
    assert [(one.status, one.reasons) for one in found] == [("unreadable", ("not_found",))] * 2


def test_a_table_that_is_no_manifest_is_a_row(bundle, tmp_path):
    (tmp_path / "m.csv").write_text("name\nx.png\n")
    (one,) = Predictor.load(bundle.path).predict(tmp_path / "m.csv")
    assert (one.path, one.status) == (str(tmp_path / "m.csv"), "unreadable")
    assert "path" in one.message


def test_a_network_with_wrong_outputs_is_an_error_and_no_prediction(tmp_path, bundle, folder):
    predictor = Predictor.load(make_bundle(tmp_path, classes=("normal", "pneumonia")).path)
    predictor.bundle = bundle  # three classes, two logits
    with pytest.raises(BundleError, match="3 finite logits"):
        predictor.predict(folder / "00.png")


def test_a_predictor_leaves_the_settings_of_the_process_alone(bundle):
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    Predictor.load(bundle.path)
    assert cv2.getNumThreads() == 2
    cv2.setNumThreads(before)


def test_there_is_at_least_one_worker(bundle):
    with pytest.raises(ValueError, match="workers"):
        Predictor.load(bundle.path, workers=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_a_row(bundle, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    (one,) = Predictor.load(bundle.path).predict(tmp_path)
    closed.chmod(0o700)
    assert one.reasons == ("no_permission",)


def test_real_radiographs_pass_the_gate_and_other_modalities_do_not(bundle, shared_data):
    predictor = Predictor.load(bundle.path)
    chests = sorted((shared_data / "kermany-original").rglob("*.jpeg"))[:12]
    assert {one.status for one in predictor.predict(chests)} == {"ok"}
    for name in ("CT1_UNC.dcm", "MR1_UNC.dcm", "US1_RLE.dcm"):
        (one,) = predictor.predict(shared_data / "dicom" / name)
        assert one.reasons == ("not_a_chest_radiograph",)


def test_errors_that_are_items_keep_their_own_path(bundle):
    error = UnreadableImageError("folder", "not_found", "nothing in it")
    pipeline = Pipeline.of_bundle(bundle)
    (score,) = pipeline.read([InputItem(error)])
    assert (score.path, score.message) == ("folder", "nothing in it")
