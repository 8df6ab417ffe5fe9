"""A recipe of seconds, and what tests of whole training runs share."""

from __future__ import annotations

import pytest

from pneumoscope.errors import DataError
from pneumoscope.experiment import run_experiment
from pneumoscope.parallel import Progress
from pneumoscope.training.recipe import Recipe

__all__ = ["RECIPE", "Steps", "rejected", "small"]

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "classes": ["normal", "bacterial", "viral"],
        "target": {"name": "pneumonia", "classes": ["bacterial", "viral"]},
        "input": {"size": 32, "lungs": "crop", "window": "lungs"},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [8, 8]}},
        "phases": [{"epochs": 2, "lr": 0.01}],
        "batch": 8,
        "split": {"fractions": [0.6, 0.2, 0.2]},
    }
)


class Steps(Progress):
    """Keeps the steps, the lines, and the epochs of the training steps with their number in all."""

    def __init__(self):
        self.steps, self.lines, self.epochs = [], [], []

    def step(self, name):
        self.steps.append(name)

    def message(self, line):
        self.lines.append(line)
        if self.steps[-1] == "training":
            done, total = line.split()[1].split("/")
            self.epochs.append((int(done), int(total)))


def small(**changes):
    """The recipe without lungs, for what needs no whole run."""
    return RECIPE.model_copy(update={"input": RECIPE.input.model_validate({"size": 32})} | changes)


def rejected(experiment, error=DataError):
    with pytest.raises(error) as caught:
        run_experiment(experiment)
    assert "\n" not in str(caught.value)
    return str(caught.value)
