from __future__ import annotations

import csv
import json

import cv2
import optuna
import pytest
import yaml

from pneumoscope.cli import main
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.experiment import divide, tuning
from pneumoscope.experiment.tuning import JOURNAL_FILE, Search
from pneumoscope.experiment.tuning_folder import held
from pneumoscope.training.recipe import SplitSpec, load_recipe

RECIPE = {
    "name": "tiny",
    "description": "For tests.",
    "input": {"size": 32},
    "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4]}},
    "phases": [{"epochs": 2, "lr": 0.01}],
    "augmentation": {"noise": 0.05},
    "batch": 8,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Phantoms of which the test images are gone: a search must not need them."""
    folder = tmp_path_factory.mktemp("tune")
    manifest = divide(write_phantoms(folder / "phantoms", n=36, size=64, seed=1), SplitSpec())
    manifest.write(folder / "split.csv")
    for record in manifest.subset("test").records:
        manifest.resolve(record).unlink()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    (folder / "space.yaml").write_text("phases.0.lr: {low: 1e-3, high: 1e-1, log: true}\nbatch: [4, 8]\n")
    return folder


@pytest.fixture
def tune(place, capsys, monkeypatch):
    monkeypatch.chdir(place)

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["tune", "tiny.yaml", "--data", "split.csv", *map(str, words)])
        return left.value.code, *capsys.readouterr()

    return run


def rows(folder):
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_folder_of_a_run_is_left_alone(tune, place):
    run = place / "run"
    run.mkdir()
    for name in ("recipe.yaml", "split.csv"):
        (run / name).write_text("of the run")
    code, _, err = tune("--out", "run", "--trials", 1)
    assert code == 4
    assert err.splitlines()[-1] == "error: run: holds a run that is no search; use another --out"
    assert {(run / name).read_text() for name in ("recipe.yaml", "split.csv")} == {"of the run"}


def test_a_search_is_not_trained_into(tune, place, capsys):
    (place / "searched").mkdir()
    (place / "searched" / "search.json").write_text("{}")
    with pytest.raises(SystemExit) as left:
        main(["train", "tiny.yaml", "--data", "split.csv", "--out", "searched"])
    assert left.value.code == 4
    assert capsys.readouterr().err.splitlines()[-1] == "error: searched: holds a search; use another --out"


def test_a_search_is_continued_and_its_best_recipe_is_one(tune, place):
    words = ("--out", "search", "--space", "space.yaml")
    code, _, err = tune(*words, "--trials", 2)
    assert code in (0, None), err
    first = rows(place / "search")
    assert [float(first[0][key]) for key in ("phases.0.lr", "batch")] == [0.01, 8]  # the recipe's own
    assert err.count("trial 0: validation loss") == 1
    assert "phase 1" not in err
    code, out, err = tune(*words, "--trials", 4, "--json")
    assert code in (0, None), err
    trials = rows(place / "search")
    assert trials[:2] == first
    assert len(trials) == 4
    assert len({row["phases.0.lr"] for row in trials}) == 4
    summary = json.loads(out)
    complete = [float(row["loss"]) for row in trials if row["state"] == "complete"]
    assert summary["best"]["value"] == min(complete)
    best = load_recipe(str(place / "search" / "best.yaml"))
    assert best.phases[0].lr == summary["best"]["values"]["phases.0.lr"]
    assert best.batch == summary["best"]["values"]["batch"]
    assert min(cv2.imread(str(place / "search" / "trials.png")).shape[:2]) > 100
    assert not list((place / "search").rglob("*.ckpt"))
    code, out, _ = tune(*words, "--trials", 4)  # nothing is left to do
    assert (code or 0, len(rows(place / "search"))) == (0, 4)


def test_what_a_killed_search_left_is_repeated(tune, place):
    words = ("--out", "killed", "--space", "space.yaml")
    tune(*words, "--trials", 1, "-q")
    journal = place / "killed" / JOURNAL_FILE
    recipe = load_recipe("tiny.yaml")
    study = tuning._open(place / "killed", Search(1), recipe)
    study.enqueue_trial({"phases.0.lr": 0.0123, "batch": 4})
    trial = study.ask()
    trial.suggest_float("phases.0.lr", 1e-3, 1e-1, log=True)
    trial.suggest_categorical("batch", (4, 8))
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')  # killed in the middle of a line
    journal.with_name("journal.log.lock").symlink_to(journal)  # and while it held the file
    code, _, err = tune(*words, "--trials", 2)
    assert code in (0, None), err
    trials = rows(place / "killed")
    assert [row["state"] for row in trials] == ["complete", "complete"]
    assert (float(trials[1]["phases.0.lr"]), trials[1]["batch"]) == (0.0123, "4")


def test_a_trial_that_fails_does_not_end_the_search(tune, place, monkeypatch):
    score, called = tuning._score, []

    def fails_once(trial, job, images):
        called.append(trial)
        if len(called) == 1:
            raise tuning.DataError("the loss is not finite")
        return score(trial, job, images)

    monkeypatch.setattr(tuning, "_score", fails_once)
    code, _, err = tune("--out", "fails", "--trials", 2)
    assert code in (0, None), err
    assert "trial 0: failed: the loss is not finite" in err
    assert [row["state"] for row in rows(place / "fails")] == ["failed", "complete"]
    assert rows(place / "fails")[0]["error"] == "the loss is not finite"


def test_without_a_complete_trial_there_is_one_line(tune, place, monkeypatch):
    def fails(*_):
        raise tuning.DataError("no")

    monkeypatch.setattr(tuning, "_score", fails)
    code, _, err = tune("--out", "nothing", "--trials", 1, "-q")
    assert (code, err) == (4, "error: nothing: no trial was completed: no\n")


def test_a_trial_that_falls_behind_is_ended_early(tune, place, monkeypatch):
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1

    monkeypatch.setattr(tuning.optuna.pruners, "NopPruner", Second)
    code, _, err = tune("--out", "pruned", "--trials", 2, "--pruner", "none")
    assert code in (0, None), err
    second = rows(place / "pruned")[1]
    assert (second["state"], second["epochs"]) == ("pruned", "1")
    assert "ended early after 1 epochs" in err


def test_folds_of_patients(tune, place):
    words = ("--out", "folds", "--trials", 1, "--folds", 2, "--objective", "auroc", "-q")
    code, _, err = tune(*words)
    assert code in (0, None), err
    (row,) = rows(place / "folds")
    assert row["epochs"] == "4"
    assert 0 <= float(row["auroc"]) <= 1
    parts = json.loads((place / "folds" / "folds.json").read_text())
    with (place / "split.csv").open(newline="") as file:
        split = list(csv.DictReader(file))
    used = {one["path"] for one in split if one["split"] != "test"}
    assert sorted(path for part in parts for path in part) == sorted(used)
    patient = {one["path"]: one["patient_id"] for one in split}
    assert not {patient[path] for path in parts[0]} & {patient[path] for path in parts[1]}


@pytest.mark.slow
def test_trials_in_several_processes(tune, place):
    code, _, err = tune("--out", "jobs", "--trials", 4, "--jobs", 2, "--space", "space.yaml", "--json")
    assert code in (0, None), err
    trials = rows(place / "jobs")
    assert sorted(int(row["trial"]) for row in trials) == [0, 1, 2, 3]
    assert len({row["phases.0.lr"] for row in trials}) == 4  # no process draws what another one draws


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--space", "other.yaml"), "searched with another --space"),
        (("--folds", 3), "searched with another --folds"),
        (("--objective", "auroc"), "searched with another --objective"),
        (("--epochs", 3), "holds a search of another recipe"),
        (("--space", "absent.yaml"), "absent.yaml: search space cannot be read"),
        (("--space", "weights.yaml"), "search with --objective auroc"),
    ],
)
def test_another_search_in_the_same_folder_is_one_line(tune, place, words, message):
    (place / "other.yaml").write_text("batch: [2, 8]\n")
    (place / "weights.yaml").write_text("class_weights: [none, balanced]\n")
    if not (place / "one").exists():
        tune("--out", "one", "--trials", 1, "-q")
    code, out, err = tune("--out", "one", "--trials", 2, "-q", *words)
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert message in line


def test_one_search_at_a_time_works_in_a_folder(tune, place):
    with held(place / "busy"):
        code, _, err = tune("--out", "busy", "--trials", 1, "-q")
    assert code == 4
    assert "another search works in this folder" in err
