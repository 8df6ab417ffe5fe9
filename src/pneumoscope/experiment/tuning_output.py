"""What a search leaves: a table and a plot of its trials, and the best recipe."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.evaluation.plots import search_history
from pneumoscope.training.recipe import Recipe
from pneumoscope.training.space import Range, SearchSpace

__all__ = ["BEST_FILE", "TRIALS_FILE", "Trial", "Tuned", "write_results"]

TRIALS_FILE, PLOT_FILE, BEST_FILE = "trials.csv", "trials.png", "best.yaml"
OBJECTIVES = {"loss": "validation loss", "auroc": "validation AUROC"}


@dataclass(frozen=True)
class Trial:
    """One trial.

    Parameters
    ----------
    number : int
        From 0.
    state : {"complete", "pruned", "failed", "interrupted"}
    value : float or None
        The objective; where it was pruned, after its last epoch; None where it failed.
    epochs : int
        Epochs trained, over all folds.
    seconds : float or None
    values : dict
        What was drawn, by key.
    error : str
        Why it failed.
    """

    number: int
    state: str
    value: float | None
    epochs: int
    seconds: float | None
    values: dict[str, Any]
    error: str = ""

    @classmethod
    def of(cls, trial: Any) -> Trial:
        """Return a trial of Optuna."""
        attributes = trial.user_attrs
        state = trial.state.name.lower()
        if state == "fail":
            state = "failed" if "error" in attributes else "interrupted"
        return cls(
            trial.number,
            state,
            trial.value,
            int(attributes.get("epochs", 0)),
            attributes.get("seconds"),
            dict(trial.params),
            str(attributes.get("error", "")),
        )

    def line(self, objective: str) -> str:
        """Return the trial as a line."""
        if self.state in ("failed", "interrupted"):
            return f"trial {self.number}: {self.state}{f': {self.error}' if self.error else ''}"
        early = f", ended early after {self.epochs} epochs" if self.state == "pruned" else ""
        drawn = "  ".join(f"{key} {_short(value)}" for key, value in self.values.items())
        return f"trial {self.number}: {OBJECTIVES[objective]} {self.value:.4f}{early}  {drawn}"


@dataclass(frozen=True)
class Tuned:
    """Result of a search.

    Parameters
    ----------
    trials : tuple of Trial
        In their order, without those that were interrupted.
    best : Trial
    recipe : Path
        ``best.yaml``, for `pneumoscope train`.
    table, plot : Path
        ``trials.csv`` and ``trials.png``.
    """

    trials: tuple[Trial, ...]
    best: Trial
    recipe: Path
    table: Path
    plot: Path


def write_results(
    out: Path, trials: Sequence[Trial], best: Trial, recipe: Recipe, objective: str, space: SearchSpace
) -> Tuned:
    """Write ``trials.csv``, ``trials.png`` and ``best.yaml``.

    Parameters
    ----------
    out : Path
        The folder of the search.
    trials : sequence of Trial
    best : Trial
    recipe : Recipe
        With the values of the best trial.
    objective : {"loss", "auroc"}
    space : SearchSpace
    """
    table, plot, path = (out / name for name in (TRIALS_FILE, PLOT_FILE, BEST_FILE))
    keys = list(space.keys)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("trial", "state", objective, "epochs", "seconds", "error", *keys))
        for one in trials:
            facts = (one.number, one.state, one.value, one.epochs, one.seconds, one.error)
            writer.writerow((*facts, *(one.values.get(key) for key in keys)))
    figure = search_history(
        [one.number for one in trials],
        [one.value for one in trials],
        [one.state == "complete" for one in trials],
        {key: [one.values.get(key) for one in trials] for key in keys},
        name=OBJECTIVES[objective],
        minimised=objective == "loss",
        logarithmic=[key for key, one in space.keys.items() if isinstance(one, Range) and one.log],
    )
    figure.savefig(plot, dpi=110, facecolor="white")
    note = f"# Trial {best.number} of {len(trials)}: {OBJECTIVES[objective]} {best.value:.4f}\n"
    path.write_text(note + recipe.to_yaml(), encoding="utf-8")
    return Tuned(tuple(trials), best, path, table, plot)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
