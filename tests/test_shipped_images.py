"""The real X-rays in the repository: which patients they are of, and that nothing else ships."""

from __future__ import annotations

import runpy
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from pneumoscope.data.folder import scan
from pneumoscope.data.samples import read_samples, samples_folder

REPOSITORY = Path(__file__).parents[1]
TRAINING_SET = REPOSITORY / "data" / "xrays-sample"
CLASSES = ("bacterial", "normal", "viral")


@pytest.fixture(scope="module")
def training_set():
    return scan(TRAINING_SET)


def test_two_hundred_of_each_class_and_no_other_files(training_set):
    assert Counter(record.label for record in training_set) == dict.fromkeys(CLASSES, 200)
    files = {path for path in TRAINING_SET.rglob("*") if path.is_file()}
    assert files == {*map(training_set.resolve, training_set), TRAINING_SET / "dataset.yaml"}


def test_small_and_of_true_aspect(training_set):
    assert sum(path.stat().st_size for path in TRAINING_SET.rglob("*") if path.is_file()) < 4e6
    shapes = [
        cv2.imread(str(training_set.resolve(record)), cv2.IMREAD_GRAYSCALE).shape for record in training_set
    ]
    assert {min(shape) for shape in shapes} == {128}
    assert sum(width > height for height, width in shapes) > 500, "chests of children are wide, not square"


def test_it_says_what_it_is(training_set):
    description = training_set.description
    assert description is not None
    assert description.licence == "CC BY 4.0"
    assert "Kermany" in description.citation
    assert description.population.ages == (1, 5)


def test_attribution():
    notice = (REPOSITORY / "NOTICE").read_text(encoding="utf-8")
    assert "data/xrays-sample" in notice
    for sample in read_samples():
        assert sample.path in notice
    for words in ("Kermany", "10.17632/rscbjbr9sj.2", "CC BY 4.0", "Abedeen"):
        assert words in notice


def test_no_other_images_of_patients_are_tracked():
    places = (samples_folder(), TRAINING_SET)
    folders = ("src", "data", "tests", "benchmarks", "notebooks")
    command = ["git", "-c", "core.quotePath=off", "ls-files", *folders]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone, so that nothing is tracked")
    images = {
        REPOSITORY / name
        for name in listed.stdout.splitlines()
        if Path(name).suffix.lower() in {".jpeg", ".jpg", ".png", ".dcm", ".tiff"}
    }
    assert len(images) > 600
    other = [path for path in images if not any(place in path.parents for place in places)]
    assert other == []


@pytest.mark.slow
@pytest.mark.long
def test_the_script_makes_them_from_the_right_patients(training_set, shared_data, tmp_path):
    """Samples are of test patients of the shipped model, the training set of whole training patients."""
    script = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "benchmarks" / "make_samples.py")))
    whole = script.shipped_split(shared_data / "kermany-224")  # stops if it is another split
    split_of = {record.patient_id: record.split for record in whole}
    children = {sample.patient_id for sample in read_samples() if sample.label in CLASSES}
    assert len(children) == 6
    assert {split_of[patient] for patient in children} == {"test"}
    images = Counter(record.patient_id for record in whole)
    chosen = Counter(record.patient_id for record in training_set)
    assert {split_of[patient] for patient in chosen} == {"train"}
    assert chosen == {patient: images[patient] for patient in chosen}
    script.make_samples(shared_data, whole.subset("test"), tmp_path / "samples")
    script.make_training_set(whole.subset("train"), tmp_path / "training-set")
    for made, shipped in (("samples", samples_folder()), ("training-set", TRAINING_SET)):
        assert contents(tmp_path / made) == contents(shipped)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
