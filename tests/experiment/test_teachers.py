"""A teacher of some sources only, where the student is trained on more."""

from __future__ import annotations

import dataclasses

import pytest

from pneumoscope.data.manifest import Manifest
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.data.split import split
from pneumoscope.experiment import Experiment, run_experiment
from pneumoscope.model.bundle import load_bundle
from pneumoscope.parallel import Progress
from pneumoscope.training.recipe import Distillation, Recipe

TEACHER = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "classes": ["normal", "bacterial", "viral"],
        "target": {"name": "pneumonia", "classes": ["bacterial", "viral"]},
        "input": {"size": 32},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [8, 8]}},
        "phases": [{"epochs": 1, "lr": 0.01}],
        "batch": 8,
    }
)


class Messages(Progress):
    """Keeps the messages."""

    def __init__(self):
        self.lines = []

    def message(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Children and adults below one folder, the adults with a class that the teacher does not know."""
    folder = tmp_path_factory.mktemp("joined")
    records = []
    for name, seed in (("children", 3), ("adults", 4)):
        own = split(write_phantoms(folder / name, n=45, size=64, seed=seed), fractions=(0.6, 0.2, 0.2))
        for record in own.records:
            label = "other" if (name, record.label) == ("adults", "viral") else record.label
            path, patient = f"{name}/{record.path}", f"{name}-{record.patient_id}"
            records.append(
                dataclasses.replace(record, path=path, label=label, patient_id=patient, source=name)
            )
    Manifest(tuple(records), folder).write(folder / "all.csv")
    return folder / "all.csv"


def student(folder, sources):
    (folder / "teacher.yaml").write_text(TEACHER.to_yaml(), encoding="utf-8")
    distillation = Distillation(teacher=str(folder / "teacher.yaml"), sources=sources)
    classes = (*TEACHER.output_classes, "other")
    return TEACHER.model_copy(update={"classes": classes, "distillation": distillation})


def test_a_teacher_is_trained_on_its_sources_and_predicts_only_these(joined, tmp_path):
    experiment = Experiment(student(tmp_path, ("children",)), joined, tmp_path / "run")
    result = run_experiment(experiment)
    teacher = load_bundle(tmp_path / "run" / "teacher")
    assert result.bundle.manifest.provenance.teachers == (teacher.identity,)
    assert teacher.manifest.classes == TEACHER.output_classes
    images = Manifest.read(tmp_path / "run" / "teacher-images.csv")
    assert {record.source for record in images.records} == {"children"}
    assert images.root == joined.parent / "children"
    assert [one.fingerprint for one in teacher.manifest.provenance.data] == [images.fingerprint()]


def test_without_an_image_of_its_sources_there_is_no_teacher(joined, tmp_path):
    progress = Messages()
    result = run_experiment(Experiment(student(tmp_path, ("absent",)), joined, tmp_path / "run"), progress)
    assert result.bundle.manifest.provenance.teachers == ()
    assert any("no image is of the teacher's sources (absent)" in line for line in progress.lines)
    assert not (tmp_path / "run" / "teacher").exists()
