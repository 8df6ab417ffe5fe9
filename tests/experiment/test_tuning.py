from __future__ import annotations

import errno
import fcntl
import math
import shutil
from dataclasses import replace

import optuna
import pytest

from pneumoscope.data.folder import load
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.errors import DataError
from pneumoscope.experiment import Experiment, divide, tuning
from pneumoscope.experiment.tuning import Search, tune
from pneumoscope.experiment.tuning_folder import check_same, held, repair_journal
from pneumoscope.training.history import Epoch
from pneumoscope.training.networks import build_network, save_weights
from pneumoscope.training.recipe import Recipe, SplitSpec

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "classes": ["normal", "bacterial", "viral"],
        "input": {"size": 32},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4]}},
        "phases": [{"epochs": 1, "lr": 0.01}],
        "batch": 8,
    }
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    manifest = divide(write_phantoms(folder / "phantoms", n=36, size=64, seed=1), SplitSpec())
    manifest.write(folder / "split.csv")
    return folder / "split.csv"


def test_a_search_is_not_continued_from_other_weights(data, tmp_path, monkeypatch):
    """Trials that began from different weights do not compare."""
    weights, out = tmp_path / "mine.safetensors", tmp_path / "search"
    save_weights(build_network(RECIPE.network, 3, seed=0), weights)
    row = Epoch(1, 1, 0.01, 1.0, 0.9, 0.5, 0.5, 1.0)
    monkeypatch.setattr(tuning, "fit", lambda *_, after_epoch, **__: after_epoch(row))
    experiment = Experiment(RECIPE, data, out, weights=weights)
    assert len(tune(experiment, Search(1)).trials) == 1
    save_weights(build_network(RECIPE.network, 3, seed=1), weights)
    with pytest.raises(DataError, match="searched with another --weights; use the same"):
        tune(experiment, Search(2))


@pytest.mark.parametrize("change", ["other bytes", "other label"])
def test_a_search_is_not_continued_on_images_that_changed(data, tmp_path, monkeypatch, change):
    """Trials on different images do not compare."""
    own = tmp_path / "data"
    shutil.copytree(data.parent, own)
    row = Epoch(1, 1, 0.01, 1.0, 0.9, 0.5, 0.5, 1.0)
    monkeypatch.setattr(tuning, "fit", lambda *_, after_epoch, **__: after_epoch(row))
    experiment = Experiment(RECIPE, own / "split.csv", tmp_path / "search")
    assert len(tune(experiment, Search(1)).trials) == 1
    manifest = load(own / "split.csv")
    first = manifest.records[0]
    if change == "other bytes":
        manifest.resolve(first).write_bytes(manifest.resolve(manifest.records[1]).read_bytes())
    label = "viral" if first.label != "viral" else "normal"
    changed = replace(first, sha256="", **({"label": label} if change == "other label" else {}))
    manifest.with_records((changed, *manifest.records[1:])).write(own / "split.csv")
    with pytest.raises(DataError, match=f"{first.path}: has changed since .*search was begun"):
        tune(experiment, Search(2))


def test_fewer_folds_or_none_can_follow_where_a_fold_has_one_class_only(data, tmp_path, monkeypatch):
    """The error asks for fewer folds; a search that never began must not stand in their way."""
    row = Epoch(1, 1, 0.01, 1.0, 0.9, 0.5, 0.5, 1.0)
    monkeypatch.setattr(tuning, "fit", lambda *_, after_epoch, **__: after_epoch(row))
    experiment = Experiment(RECIPE, data, tmp_path / "search")
    with pytest.raises(DataError, match="use fewer folds"):
        tune(experiment, Search(1, folds=15))
    (trial,) = tune(experiment, Search(1)).trials
    assert trial.epochs == 1, "scored on split val, not on the folds of the call before"
    assert not (tmp_path / "search" / "folds.json").exists()


def test_trials_train_what_train_would_train(data, tmp_path, monkeypatch):
    phase = RECIPE.phases[0].model_copy(update={"scratch_lr": 0.02, "frozen": "backbone"})
    recipes = []

    def watch(recipe, *_, after_epoch, **__):
        recipes.append(recipe)
        after_epoch(Epoch(1, 1, 0.01, 1.0, 0.5, 0.5, 0.5, 1.0))

    monkeypatch.setattr(tuning, "fit", watch)
    tune(Experiment(RECIPE.model_copy(update={"phases": (phase,)}), data, tmp_path / "search"), Search(1))
    assert [(one.phases[0].frozen, one.phases[0].lr) for one in recipes] == [("none", 0.02)]


def test_a_trial_whose_validation_loss_is_no_number_fails(data, tmp_path, monkeypatch):
    """A pruner ends it; with no value, the line of such a trial ended the whole search."""

    class Always(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return True

    def diverges(*_, after_epoch, **__):
        after_epoch(Epoch(1, 1, 0.01, 1.0, math.nan, 0.5, 0.5, 1.0))

    monkeypatch.setattr(tuning.optuna.pruners, "NopPruner", Always)
    monkeypatch.setattr(tuning, "fit", diverges)
    experiment = Experiment(RECIPE, data, tmp_path / "search")
    with pytest.raises(DataError, match="no trial was completed: the validation loss is not finite"):
        tune(experiment, Search(1, pruner="none"))


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    message = r"files cannot be locked there \(Function not implemented\); use --out on another file system"
    with pytest.raises(DataError, match=message), held(tmp_path / "search"):
        pass


def test_a_damaged_note_of_the_search_is_one_line(tmp_path):
    for content in ('{"folds": ', "[]"):
        (tmp_path / "search.json").write_text(content)
        with pytest.raises(DataError, match=r"search\.json: damaged; delete the folder"):
            check_same(tmp_path, RECIPE, {"folds": None})


def test_half_a_line_of_a_killed_process_is_cut_off_the_journal(tmp_path):
    journal = tmp_path / "journal.log"
    one, two = b'{"op_code": 1}\n', b'{"op_code": 2}\n'
    for content, left in ((one + two + b"ha", one + two), (one, one), (b"ha", b""), (b"", b"")):
        journal.write_bytes(content)
        repair_journal(journal)
        assert journal.read_bytes() == left


@pytest.mark.parametrize("line", [b"garbage", b"", b"\xff\x00", b"[1]", b"{}"])
def test_a_damaged_line_of_the_journal_is_one_line(tmp_path, line):
    journal = tmp_path / "journal.log"
    journal.write_bytes(b'{"op_code": 1}\n' + line + b'\n{"op_code": 2}\n')
    with pytest.raises(DataError, match=r"journal\.log, line 2: damaged; delete the folder"):
        repair_journal(journal)
