"""Fitting the frontal-chest classifier: groups, measures, and the way into a bundle."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.data.folder import scan
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import BundleError, DataError
from pneumoscope.evaluation import chest
from pneumoscope.evaluation.chest import FittedChest, fit_chest
from pneumoscope.evaluation.gate import Described, FittedGate, fit_novelty
from pneumoscope.evaluation.non_chest import KINDS_OF_CHESTS, KINDS_OF_DRAWINGS, non_chests
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.bundle import GATE_FILE, Bundle, load_bundle, write_bundle
from pneumoscope.predict.novelty import DIMENSIONS
from pneumoscope.predict.predictor import Predictor

EACH = 4


def chests(folder: Path) -> Manifest:
    for number in range(12):
        write_image(folder / "normal" / f"{number}.png", seed=number)
    return scan(folder)


def others(folder: Path) -> Path:
    for kind in ("knee", "hand"):
        (folder / kind).mkdir(parents=True)
        for number in range(6):
            stripes = np.tile(np.arange(100, dtype=np.uint8) * (number + 2), (100, 1))
            cv2.imwrite(str(folder / kind / f"{number}.png"), stripes)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), input=InputSpec(size=64, lungs="crop"))


@pytest.fixture(scope="module")
def fitted(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> FittedChest:
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chest, "EACH_KIND", EACH)
        return fit_chest(bundle, {"here": chests(folder / "chests")}, others(folder / "others"))


def test_every_source_and_kind_is_measured(fitted: FittedChest):
    kinds = {f"made: {kind}" for kind in [*KINDS_OF_DRAWINGS, *KINDS_OF_CHESTS]}
    assert set(fitted.measures) == {"here", "knee", "hand"} | kinds
    assert [name for name, one in fitted.measures.items() if one.chest] == ["here"]
    assert fitted.measures["here"].images == 12
    assert fitted.measures["made: text"].images == EACH
    assert 0 < fitted.min_chest <= 0.5
    assert fitted.classifier.weight.shape == fitted.classifier.mean.shape == (4 * 2 + 10 + 1,)


def test_the_classifier_travels_in_the_bundle_and_decides(
    fitted: FittedChest, bundle: Bundle, tmp_path: Path
):
    rows = np.random.default_rng(0).normal(size=(500, DIMENSIONS)).astype(np.float32)
    novelty = fit_novelty([Described(rows, [str(number) for number in range(500)])])
    alone, gate = FittedGate.of(bundle, novelty), FittedGate.of(bundle, novelty, fitted)
    assert alone.limits.min_chest is None
    assert gate.limits.min_chest == fitted.min_chest
    assert gate.limits.max_novelty > alone.limits.max_novelty
    image = tmp_path / "image.png"
    write_image(image, seed=99)
    statuses = {}
    for least in (0.0, 1.0):
        limits = gate.limits.model_copy(
            update={"min_chest": least, "min_lung_certainty": 0.0, "max_novelty": 1e9, "max_lung_bridge": 1.0}
        )
        manifest = bundle.manifest.model_copy(update={"gate": limits})
        folder = tmp_path / str(least)
        folder.mkdir()
        for name in bundle.manifest.files:
            (folder / name).write_bytes((bundle.path / name).read_bytes())
        written = write_bundle(folder, manifest, {GATE_FILE: gate.content})
        (found,) = Predictor(load_bundle(folder), workers=1).predict(image)
        statuses[least] = found.status
        assert written.chest_classifier is not None
    assert statuses == {0.0: "ok", 1.0: "rejected"}
    files = {**written.manifest.files, "model.onnx": "0" * 64}
    other = Bundle(written.path, written.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=r"another model\.onnx"):
        _ = other.chest_classifier


def test_a_folder_or_source_without_images_is_an_error(bundle: Bundle, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    known = chests(tmp_path / "chests")
    with pytest.raises(DataError, match="no image of another kind"):
        fit_chest(bundle, {"here": known}, tmp_path / "empty")
    with pytest.raises(DataError, match="away: no readable chest"):
        fit_chest(bundle, {"here": known, "away": known.with_records(())}, others(tmp_path / "others"))


@pytest.mark.parametrize("images", [12, 100, 800, 1000])
def test_the_limit_rejects_no_more_of_the_strictest_source_than_it_may(images: int):
    strict = np.random.default_rng(images).uniform(0.1, 0.4, images)
    limit = chest._limit([strict, np.linspace(0.4, 1, 50)])
    assert limit in strict
    assert (strict < limit).mean() <= chest.MOST_REJECTED
    assert chest._limit([np.full(10, 0.9)]) == chest.GREATEST_LIMIT


def test_made_images_are_repeatable_and_in_range():
    material = [np.random.default_rng(0).random((60, 50), dtype=np.float32)]
    first, again = (list(non_chests(material, 2, seed=3)) for _ in range(2))
    assert len(first) == 2 * (len(KINDS_OF_DRAWINGS) + len(KINDS_OF_CHESTS))
    for (kind, pixels), (same, repeated) in zip(first, again, strict=True):
        assert kind == same and np.array_equal(pixels, repeated)
        assert pixels.dtype == np.float32 and 0 <= pixels.min() <= pixels.max() <= 1
    assert len(list(non_chests((), 1))) == len(KINDS_OF_DRAWINGS)
