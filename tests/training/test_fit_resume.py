"""A training that was interrupted goes on as if it had not been."""

from __future__ import annotations

import shutil

import pytest
import torch

from pneumoscope.errors import DataError
from pneumoscope.training.fit import CHECKPOINT_FILE
from tiny_training import (
    LOSSES,
    PATIENT,
    Killed,
    Watch,
    assert_same_weights,
    history_of,
    recipe,
    rows_of,
    scripted,
    trained,
)

RICH = {
    "phases": [{"epochs": 2, "lr": 0.02, "frozen": 2}, {"epochs": 3, "lr": 0.02, "schedule": "cosine"}],
    "augmentation": {"area": [0.7, 1.1], "flip": 0.5, "noise": 0.1},
    "ema": 0.9,
    "optimizer": "adamw",
    "keep": "best",
}


@pytest.mark.parametrize("after", [3, 4, 7])
def test_patience_goes_on_where_a_run_is_resumed(tmp_path, fabric, monkeypatch, after):
    scripted(monkeypatch, list(LOSSES))
    unbroken = trained(recipe(**PATIENT), tmp_path / "unbroken", fabric)

    def kill(line):
        if line.startswith(f"epoch {after}/"):
            raise Killed

    scripted(monkeypatch, list(LOSSES))
    watch = Watch()
    watch.message = kill
    with pytest.raises(Killed):
        trained(recipe(**PATIENT), tmp_path / "broken", fabric, progress=watch)
    resumed = trained(recipe(**PATIENT), tmp_path / "broken", fabric, resume=True, seed=5)
    assert_same_weights(unbroken, resumed)
    assert history_of(tmp_path / "broken") == history_of(tmp_path / "unbroken")


OWN = {"lungs_only": 0.5, "augmentation_strength": 0.5, "average_power": 2}


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        *(({}, after) for after in (1, 2, 4)),
        ({"ema": None, "keep": "last"}, 2),
        ({"tasks": {"lungs": 0.5, "source": 0.2}}, 2),
        ({"phases": [{"epochs": 2, "lr": 0.02}, {"epochs": 3, "lr": 0.02, **OWN}]}, 3),
    ],
)
def test_a_run_that_is_killed_and_resumed_ends_as_the_unbroken_one(tmp_path, fabric, after, changes):
    made = recipe(**RICH | changes)
    unbroken = trained(made, tmp_path / "unbroken", fabric)

    def kill(epoch):
        if epoch == after:
            raise Killed

    with pytest.raises(Killed):
        trained(made, tmp_path / "broken", fabric, progress=Watch(kill))
    torch.manual_seed(999)
    resumed = trained(made, tmp_path / "broken", fabric, resume=True, seed=5)
    assert_same_weights(unbroken, resumed)
    assert history_of(tmp_path / "broken") == history_of(tmp_path / "unbroken")


def test_a_kill_between_checkpoint_and_history_leaves_no_row_twice(tmp_path, fabric):
    made = recipe()
    trained(made, tmp_path / "whole", fabric)

    def kill(epoch):
        if epoch == 2:
            shutil.copy(tmp_path / "run" / CHECKPOINT_FILE, tmp_path / "second.ckpt")
        if epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        trained(made, tmp_path / "run", fabric, progress=Watch(kill))
    shutil.copy(tmp_path / "second.ckpt", tmp_path / "run" / CHECKPOINT_FILE)
    trained(made, tmp_path / "run", fabric, resume=True)
    assert history_of(tmp_path / "run") == history_of(tmp_path / "whole")


def test_resuming_a_finished_run_gives_the_same_weights_and_trains_nothing(tmp_path, fabric):
    made = recipe(**RICH)
    first = trained(made, tmp_path, fabric)
    again = trained(made, tmp_path, fabric, resume=True, progress=Watch(lambda _: pytest.fail("trained")))
    assert_same_weights(first, again)


def test_resuming_nothing_starts_from_the_first_epoch(tmp_path, fabric):
    trained(recipe(), tmp_path, fabric, resume=True)
    assert len(rows_of(tmp_path)) == 4


def test_a_checkpoint_of_another_recipe_is_rejected_in_one_line(tmp_path, fabric):
    trained(recipe(), tmp_path, fabric)
    with pytest.raises(DataError, match="belongs to another recipe") as caught:
        trained(recipe(batch=16), tmp_path, fabric, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"junk", b"junk" * 100, None])
def test_a_damaged_checkpoint_is_one_line(tmp_path, fabric, damage):
    trained(recipe(phases=[{"epochs": 1, "lr": 0.01}]), tmp_path, fabric)
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    with pytest.raises(DataError, match=r"last\.ckpt: the checkpoint is damaged") as caught:
        trained(recipe(phases=[{"epochs": 1, "lr": 0.01}]), tmp_path, fabric, resume=True)
    assert "\n" not in str(caught.value)
