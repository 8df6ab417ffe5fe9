"""`pneumoscope tune`: search for better values of a recipe on validation patients."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.common import print_json
from pneumoscope.cli.parameters import (
    AsJson,
    CacheFolder,
    Data,
    Epochs,
    Limit,
    Lungs,
    NoCache,
    Pretrained,
    RecipeName,
    Size,
    TargetClasses,
    Weights,
)
from pneumoscope.errors import counted, require_extra

if TYPE_CHECKING:
    from pneumoscope.experiment.tuning_output import Tuned


def tune(
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the search; repeat the command to continue.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, earlier calls included.")] = 30,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that train at the same time.")] = 1,
    space: Annotated[
        Path | None,
        typer.Option(help="Search space (.yaml) with keys of the recipe; a general one if not given."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, max=20, help="Score by cross-validation in so many folds of patients."),
    ] = None,
    objective: Annotated[
        Literal["loss", "auroc"], typer.Option(help="Of the validation images: what to improve.")
    ] = "loss",
    pruner: Annotated[
        Literal["median", "hyperband", "none"], typer.Option(help="How trials are ended early.")
    ] = "median",
    target: TargetClasses = None,
    epochs: Epochs = None,
    size: Size = None,
    limit: Limit = None,
    lungs: Lungs = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of split, training and search.")] = None,
    pretrained: Pretrained = None,
    weights: Weights = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Search for values of a recipe with a better result on validation patients, and write the best one."""
    from pneumoscope.cli.common import (
        check_cache,
        check_data,
        check_outside,
        check_weights,
        folder_of_cache,
        one_opencv_thread,
        says_how_to_continue,
        stops_on_sigterm,
    )
    from pneumoscope.cli.progress import show_progress

    check_weights(pretrained, weights)
    check_cache(cache, no_cache=no_cache)
    check_data(data)
    check_outside(out, data)
    one_opencv_thread()
    with (
        says_how_to_continue(out),
        show_progress() as progress,
        stops_on_sigterm(),
        _without_lines_of_each_phase(),
    ):
        progress.step("loading the training libraries")
        with require_extra("tune", "A search"):
            from pneumoscope.experiment import Experiment, changed_recipe
            from pneumoscope.experiment.tuning import Search
            from pneumoscope.experiment.tuning import tune as run
            from pneumoscope.training.recipe import load_recipe

        chosen = changed_recipe(
            load_recipe(recipe),
            target=target,
            epochs=epochs,
            size=size,
            seed=seed,
            pretrained=pretrained,
            weights=weights,
        )
        folder = folder_of_cache(cache, no_cache=no_cache)
        experiment = Experiment(chosen, data, out, weights=weights, lungs=lungs, limit=limit, cache=folder)
        search = Search(trials, jobs, folds, objective, pruner, space)
        result = run(experiment, search, progress)
    _print(result, objective, as_json=as_json)


@contextmanager
def _without_lines_of_each_phase() -> Iterator[None]:
    """Let trials be reported in one line each, unless every line was asked for."""
    log = logging.getLogger("pneumoscope.training.fit")
    level = log.level
    if log.getEffectiveLevel() > logging.DEBUG:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _print(result: Tuned, objective: str, *, as_json: bool) -> None:
    from collections import Counter

    counts = Counter(one.state for one in result.trials)
    first, best = result.trials[0], result.best
    if as_json:
        print_json(
            {
                "trials": dict(counts),
                "objective": objective,
                "best": {"trial": best.number, "value": best.value, "values": best.values},
                "first": {"value": first.value, "values": first.values},
                "recipe": str(result.recipe),
                "table": str(result.table),
                "plot": str(result.plot),
            }
        )
        return
    typer.echo(", ".join(f"{counted(count, 'trial')} {state}" for state, count in counts.items()))
    if first.value is not None and first.state == "complete" and first is not best:
        typer.echo(first.line(objective))
    typer.echo(f"best: {best.line(objective)}")
    typer.echo(f"recipe: {result.recipe}\ntrials: {result.table}, {result.plot}")
