"""Evaluating a bundle: what is known of each image is what it was predicted with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bundles import make_bundle
from dicom_files import dicom
from images import grey_levels, write_image
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.evaluation.bundles import evaluate_bundle
from pneumoscope.evaluation.metrics import MIN_SUBGROUP


def test_one_population_has_one_threshold(tmp_path):
    for number, label in enumerate(("normal", "viral")):
        write_image(tmp_path / "data" / label / f"{number}.png", seed=number)
    images = load(tmp_path / "data")
    thresholds = {"any": 0.5, "child": 0.6, "adult": 0.7}
    bundle = make_bundle(
        tmp_path / "bundle",
        populations=({"name": "child", "ages": (0, 17)}, {"name": "adult", "ages": (18, None)}),
        calibrations=tuple(
            {"population": name, "operating_points": ({"name": "balanced", "threshold": at},)}
            for name, at in thresholds.items()
        ),
    )
    for ages, expected in (((5, 6), 0.6), ((50, 60), 0.7), ((5, 60), None)):
        aged = images.with_records(
            replace(one, age=float(age)) for one, age in zip(images, ages, strict=True)
        )
        facts = {"evaluated_on": "made-up", "about": {}, "n_boot": 0}
        metrics = evaluate_bundle(bundle, aged, tmp_path / "out", **facts).metrics
        assert metrics.threshold == metrics.operating_points["balanced"].threshold == expected


def test_subgroups_and_population_are_those_of_dicom_headers_else_of_the_manifest(tmp_path):
    for number in range(2 * MIN_SUBGROUP):
        pixels = np.asarray(grey_levels(number, 120, 140))
        stated = {} if number % 2 else {"PatientAge": "004Y", "ViewPosition": "AP"}
        file = tmp_path / "data" / ("normal", "viral")[number // 2 % 2] / f"{number}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(dicom(pixels, bits=8, Rows=120, Columns=140, SOPInstanceUID=f"1.{number}", **stated))
    manifest = load(tmp_path / "data")
    bundle = make_bundle(tmp_path / "bundle")

    def evaluated(images: Manifest):
        facts = {"evaluated_on": "made-up", "about": {}, "n_boot": 0}
        return evaluate_bundle(bundle, images, tmp_path / "out", **facts).metrics

    children = manifest.with_records(
        one for one in manifest if int(one.path[:-4].rpartition("/")[2]) % 2 == 0
    )
    metrics = evaluated(children)
    assert {name: one.images for name, one in metrics.by_age.items()} == {"1 to 5 years": MIN_SUBGROUP}
    assert {name: one.images for name, one in metrics.by_view.items()} == {"AP": MIN_SUBGROUP}
    assert (metrics.population.ages, metrics.population.views) == ((4, 4), ("AP",))
    adults = manifest.with_records(replace(one, age=50.0, view="PA") for one in manifest)
    metrics = evaluated(adults)
    assert set(metrics.by_age) == {"1 to 5 years", "40 to 64 years"}
    assert set(metrics.by_view) == {"AP", "PA"}
    assert metrics.population.ages == (4, 50)
