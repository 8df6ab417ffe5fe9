"""The classifiers of population and view: fitted where these are known, used where they are not stated."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import grey_levels
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Population, Target
from pneumoscope.errors import BundleError
from pneumoscope.evaluation.card import write_card
from pneumoscope.evaluation.estimation import Estimators, fit_populations, fit_views
from pneumoscope.evaluation.recalibration import recalibrate_bundle
from pneumoscope.evaluation.steps import calibrate_bundle
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.bundle import POPULATIONS_FILE, load_bundle
from pneumoscope.predict.inputs import InputItem
from pneumoscope.predict.predictor import Predictor

CLASSES, TARGET = ("clear", "lobar"), Target("infiltrate", ("lobar",))
CHILD, ADULT = Population("child", (0, 17)), Population("adult", (18, None))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Manifest:
    """Images of children, dark, and of adults, bright; half of each positive."""
    folder = tmp_path_factory.mktemp("mixed")
    records = []
    for number in range(120):
        adult, label = number % 2 == 1, CLASSES[number // 2 % 2]
        path = f"{label}/{number}.png"
        (folder / label).mkdir(exist_ok=True)
        cv2.imwrite(str(folder / path), grey_levels(number) // 2 + (100 if adult else 0))
        age = 40.0 if adult else 4.0
        records.append(Record(path, label, f"p{number}", source="adults" if adult else "children", age=age))
    return Manifest(tuple(records), folder)


@pytest.fixture(scope="module")
def calibrated(mixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    bundle = make_bundle(folder, classes=CLASSES, target=TARGET, input=InputSpec(size=64), state="draft")
    estimator = fit_populations(bundle, mixed, mixed, (CHILD, ADULT))
    return calibrate_bundle(
        bundle,
        mixed,
        method="temperature",
        described_as="mixed",
        populations=(CHILD, ADULT),
        estimators=Estimators(estimator),
    )


def test_an_image_without_an_age_gets_the_estimated_population(calibrated, mixed):
    predictor = Predictor(load_bundle(calibrated.path), workers=1)
    unstated = [InputItem(str(mixed.resolve(record))) for record in mixed.records]
    found = [one.population for one in predictor.predict(unstated)]
    expected = ["adult" if record.age == 40 else "child" for record in mixed.records]
    assert np.mean([a == b for a, b in zip(found, expected, strict=True)]) > 0.9


def test_a_stated_age_goes_before_the_estimate(calibrated, mixed):
    predictor = Predictor(load_bundle(calibrated.path), workers=1)
    stated = [InputItem(str(mixed.resolve(record)), age=70.0) for record in mixed.records[:4]]
    assert {one.population for one in predictor.predict(stated)} == {"adult"}
    given = Predictor(load_bundle(calibrated.path), workers=1, population="child")
    assert {one.population for one in given.predict(stated)} == {"child"}


def test_rows_without_an_age_are_calibrated_with_the_population_they_will_get(mixed, tmp_path):
    bundle = make_bundle(tmp_path, classes=CLASSES, target=TARGET, input=InputSpec(size=64), state="draft")
    estimator = fit_populations(bundle, mixed, mixed, (CHILD, ADULT))
    unknown = mixed.with_records(replace(record, age=None) for record in mixed.records)
    options = {"method": "temperature", "described_as": "x", "populations": (CHILD, ADULT)}
    written = calibrate_bundle(bundle, unknown, estimators=Estimators(estimator), **options)
    assert [one.population for one in written.manifest.calibrations] == ["any", "child", "adult"]
    alone = calibrate_bundle(bundle, unknown, **options)
    assert [one.population for one in alone.manifest.calibrations] == ["any"]


def test_a_population_with_too_few_images_is_estimated_and_gets_the_default_calibration(mixed, tmp_path):
    """Those who are taken for it must not fall to the calibration of another population instead."""
    bundle = make_bundle(tmp_path, classes=CLASSES, target=TARGET, input=InputSpec(size=64), state="draft")
    aged = mixed.with_records(
        replace(record, age=80.0 if record.age == 40 and number < 40 else record.age)
        for number, record in enumerate(mixed.records)
    )
    three = (CHILD, Population("adult", (18, 64)), Population("old", (65, None)))
    old = [record for record in aged.records if record.age == 80]
    held_out = aged.with_records([one for one in aged.records if one.age != 80] + old[:5])
    estimator = fit_populations(bundle, aged, held_out, three)
    options = {"method": "none", "described_as": "x", "estimators": Estimators(estimator)}
    for own in (("child",), ("child", "adult")):
        populations = [one for one in three if one.name in (*own, "old")]
        written = calibrate_bundle(bundle, held_out, populations=populations, **options)
        assert [one.population for one in written.manifest.calibrations] == ["any", *own]
        predictor = Predictor(load_bundle(written.path), workers=1)
        unstated = [InputItem(str(aged.resolve(record))) for record in aged.records]
        raw = [score.estimated for score in predictor.scores_iter(unstated)]
        assert {"child", "old"} <= set(raw)
        found = [one.population for one in predictor.predict(unstated)]
        assert found == [name if name in own else "any" for name in raw]


def test_the_share_of_right_estimates_is_measured_and_in_the_card(calibrated):
    measures = calibrated.manifest.results.populations
    assert {name: one.images for name, one in measures.items()} == {"child": 60, "adult": 60}
    assert all(one.correct > 0.9 for one in measures.values())
    assert "| child | 60 |" in write_card(calibrated.manifest)


def test_one_population_alone_needs_no_classifier(mixed, tmp_path):
    bundle = make_bundle(tmp_path, classes=CLASSES, target=TARGET, input=InputSpec(size=64))
    children = mixed.with_records(record for record in mixed.records if record.age == 4)
    assert fit_populations(bundle, children, children, (CHILD, ADULT)) is None


def test_a_recalibrated_bundle_has_one_calibration_and_estimates_nothing(calibrated, mixed, tmp_path):
    child = recalibrate_bundle(calibrated, mixed, tmp_path / "own", described_as="own", n_boot=10).bundle
    assert POPULATIONS_FILE not in child.manifest.files
    assert child.population_classifier is None


def test_a_classifier_of_another_network_is_an_error(calibrated, tmp_path):
    other = replace(
        calibrated,
        manifest=calibrated.manifest.model_copy(
            update={"files": {**calibrated.manifest.files, "model.onnx": "0" * 64}}
        ),
    )
    with pytest.raises(BundleError, match=r"fitted for another model\.onnx"):
        _ = other.population_classifier


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Images that are no frontal chests: some inverted, called lateral, and some flat."""
    folder = tmp_path_factory.mktemp("others")
    for number in range(24):
        cv2.imwrite(str(folder / f"lateral-{number}.png"), 255 - grey_levels(number) // 4)
        cv2.imwrite(str(folder / f"limb-{number}.png"), np.full_like(grey_levels(number), 10 + number))
    return folder


@pytest.fixture(scope="module")
def by_view(mixed, others, tmp_path_factory):
    """A bundle, and its classifier fitted on the images of adults as PA and of children as AP."""
    bundle = make_bundle(tmp_path_factory.mktemp("views"), classes=CLASSES, target=TARGET, state="draft")
    views = mixed.with_records(
        replace(record, view="PA" if record.age == 40 else "AP") for record in mixed.records
    )
    return bundle, views, fit_views(bundle, views, views, others)


def test_views_are_fitted_and_measured_with_laterals_left_out_in_turn(by_view):
    *_, fitted = by_view
    assert set(fitted.classifier.names) == {"AP", "PA", "LL", "other"}
    images = {name: one.images for name, one in fitted.measures.items()}
    assert images == {"AP": 60, "PA": 60, "LL": 24, "other": 24}
    assert all(one.correct > 0.9 for one in fitted.measures.values())


def test_the_view_classifier_is_written_and_in_the_card(by_view):
    bundle, views, fitted = by_view
    options = {"method": "temperature", "described_as": "x"}
    written = calibrate_bundle(bundle, views, estimators=Estimators(views=fitted), **options)
    names, stored = load_bundle(written.path).view_classifier
    assert names == fitted.classifier.names
    np.testing.assert_array_equal(stored["weight"], fitted.classifier.weight)
    assert "| lateral view | 24 |" in write_card(written.manifest)


def test_one_view_alone_needs_no_classifier(by_view):
    bundle, views, _ = by_view
    frontal = views.with_records(record for record in views.records if record.view == "AP")
    assert fit_views(bundle, frontal, frontal) is None
