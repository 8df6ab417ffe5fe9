from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.errors import DataError
from pneumoscope.evaluation import robustness
from pneumoscope.evaluation.corruptions import CORRUPTIONS, SHORTCUTS, TRANSFERS, Corruption
from pneumoscope.evaluation.robustness import CorruptionPlan, chosen_records
from pneumoscope.evaluation.robustness import measure_robustness as measure_typed
from pneumoscope.parallel import Progress
from pneumoscope.predict.predictor import Predictor

PLAN = CorruptionPlan()


def measure_robustness(*given, **options):
    """The section of ``metrics.json``."""
    return measure_typed(*given, **options).model_dump(mode="json")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), n=12, size=96, seed=5)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(make_bundle(tmp_path_factory.mktemp("bundle")).path, workers=2)


def test_every_corruption_at_every_strength_is_measured(predictor, manifest):
    steps = []

    class Counted(Progress):
        def update(self, done, total=None):
            steps.append((done, total))

    result = measure_robustness(predictor, manifest, PLAN, n_boot=20, progress=Counted())
    assert steps == [(done, 12) for done in range(1, 13)]
    assert result["images"] == 12
    assert set(result["medmnist_c"]["corruptions"]) == {one.name for one in CORRUPTIONS}
    assert set(result["transfer"]["corruptions"]) >= {one.name for one in TRANSFERS}
    assert set(result["shortcut"]["corruptions"]) == {one.name for one in SHORTCUTS}
    noise = result["medmnist_c"]["corruptions"]["gaussian_noise"]
    assert [one["setting"] for one in noise["strengths"]] == [0.04, 0.05, 0.06, 0.07, 0.08]
    for key in ("auroc", "sensitivity", "specificity", "rejected"):
        values = [one[key] for one in noise["strengths"]]
        assert noise[key]["value"] == pytest.approx(np.mean(values))
        change = noise[key]["value"] - result["clean"][key]["value"]
        assert noise[f"{key}_change"]["value"] == pytest.approx(change, abs=1e-9)
    means = [one["auroc"]["value"] for one in result["medmnist_c"]["corruptions"].values()]
    assert result["medmnist_c"]["mean"]["auroc"]["value"] == pytest.approx(np.mean(means))
    assert measure_robustness(predictor, manifest, PLAN, n_boot=20) == result


def test_clean_is_what_the_predictor_predicts(predictor, manifest, monkeypatch):
    """And a change of nothing changes no figure, on no resample."""
    nothing = Corruption("nothing", (0,), lambda pixels, _, __: pixels)
    monkeypatch.setattr(robustness, "GROUPS", {"medmnist_c": (nothing,)})
    result = measure_robustness(predictor, manifest, PLAN, n_boot=50)
    predictions = predictor.predict([manifest.resolve(record) for record in manifest])
    truth = np.array([record.label != "normal" for record in manifest])
    called = np.array([one.decision == "pneumonia" for one in predictions])
    assert result["clean"]["sensitivity"]["value"] == pytest.approx(called[truth].mean())
    assert result["clean"]["specificity"]["value"] == pytest.approx(1 - called[~truth].mean())
    assert result["clean"]["rejected"]["value"] == 0
    row = result["medmnist_c"]["corruptions"]["nothing"]
    assert row["auroc_change"]["value"] == 0
    assert row["auroc_change"]["reason"].startswith("no interval: every resample")


def test_what_the_gate_rejects_is_a_share_and_leaves_the_other_figures(predictor, manifest, monkeypatch):
    half = Corruption("dark_half", (0,), lambda pixels, _, rng: pixels * (rng.random() < 0.5))
    black = Corruption("black", (0,), lambda pixels, _, __: pixels * 0)
    monkeypatch.setattr(robustness, "GROUPS", {"medmnist_c": (half, black)})
    rows = measure_robustness(predictor, manifest, PLAN, n_boot=20)["medmnist_c"]["corruptions"]
    assert 0 < rows["dark_half"]["rejected"]["value"] < 1
    assert rows["black"]["rejected"]["value"] == 1
    assert rows["black"]["auroc"]["value"] is None
    assert "evaluated" in rows["black"]["auroc"]["reason"]
    assert rows["black"]["strengths"][0]["sensitivity"] is None


def test_aspects_concern_only_images_that_have_another(predictor, tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "square.png"), grey)
    cv2.imwrite(str(tmp_path / "wide.png"), np.hstack([grey, grey[:, :40]]))
    records = (
        Record("square.png", "normal", "a", width=1400, height=1000),
        Record("wide.png", "viral", "b", width=140, height=100),
    )
    rows = measure_robustness(predictor, Manifest(records, tmp_path), PLAN, n_boot=10)["transfer"][
        "corruptions"
    ]
    assert rows["aspect_squashed"]["images"] == 1
    assert rows["aspect_restored"]["images"] == 1
    assert rows["aspect_restored"]["specificity"]["value"] is not None  # the square one, a normal
    assert rows["aspect_restored"]["sensitivity"]["value"] is None


def test_unreadable_images_are_left_out_and_none_left_is_one_line(predictor, manifest, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = Record("broken.png", "normal", "x")
    with pytest.raises(DataError, match="no image could be read"):
        measure_robustness(predictor, Manifest((broken,), tmp_path), PLAN, n_boot=10)


def test_images_are_chosen_by_whole_patients_and_evenly_over_labels():
    records = [
        Record(f"{label}{number}.png", label, f"{label}{number // 2}")
        for label, count in (("normal", 20), ("viral", 60))
        for number in range(count)
    ]
    chosen = chosen_records(records, 16, seed=0)
    assert chosen == chosen_records(records, 16, seed=0)
    assert chosen != chosen_records(records, 16, seed=1)
    assert [record.path for record in records if record in chosen] == [record.path for record in chosen]
    assert sum(record.label == "normal" for record in chosen) == 8
    for patient in {record.patient_id for record in chosen}:
        assert sum(record.patient_id == patient for record in chosen) == 2
    assert chosen_records(records, None, 0) == chosen_records(records, 500, 0) == records


def test_no_more_images_are_chosen_than_asked_for_and_no_patient_is_split():
    one = [Record(f"a{number}.png", "normal", "a") for number in range(40)]
    others = [Record(f"{number}.png", "viral", f"b{number}") for number in range(20)]
    assert len(chosen_records(one + others, 5, seed=0)) == 5
    # Patients with one image of each label.
    pairs = [Record(f"{n}.png", ("normal", "viral")[n % 2], f"p{n // 2}") for n in range(60)]
    for count in (20, 21):
        chosen = Counter(record.patient_id for record in chosen_records(pairs, count, seed=1))
        assert set(chosen.values()) == {2}
        assert sum(chosen.values()) == 20
    with pytest.raises(DataError, match="every patient has more than 1 images"):
        chosen_records(pairs, 1, seed=0)
