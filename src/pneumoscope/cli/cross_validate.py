"""`pneumoscope cross-validate`: a recipe evaluated on patients, or sources, it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.common import SOME_LEFT_OUT, print_json
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
from pneumoscope.errors import require_extra
from pneumoscope.parallel import launched_as

if TYPE_CHECKING:
    from pneumoscope.experiment import CrossValidation


def cross_validate(
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for runs and metrics; repeat the command to resume.")],
    target: TargetClasses = None,
    folds: Annotated[
        int,
        typer.Option(
            min=2,
            max=20,
            help="Number of folds of patients; with --leave-out, one of them is held out with each source.",
        ),
    ] = 5,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Source to train without, as in the manifest; may be repeated."),
    ] = None,
    epochs: Epochs = None,
    size: Size = None,
    limit: Limit = None,
    lungs: Lungs = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of folds and training.")] = None,
    pretrained: Pretrained = None,
    weights: Weights = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe without each fold of patients, or each source, and evaluate it on that part.

    Exit code 3: some images were unreadable or rejected and are left out.
    """
    from pneumoscope.cli.common import (
        check_cache,
        check_data,
        check_outside,
        check_weights,
        folder_of_cache,
        one_opencv_thread,
        says_how_to_continue,
    )
    from pneumoscope.cli.progress import show_progress

    check_weights(pretrained, weights)
    check_cache(cache, no_cache=no_cache)
    check_data(data)
    check_outside(out, data)
    one_opencv_thread()
    with says_how_to_continue(out), show_progress() as progress:
        progress.step("loading the training libraries")
        with require_extra("train", "Cross-validation"):
            from pneumoscope.experiment import Experiment, changed_recipe
            from pneumoscope.experiment import cross_validate as run
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
        result = run(experiment, count=folds, sources=tuple(leave_out or ()), progress=progress)
    if launched_as().rank == 0:
        _print(result, out, as_json=as_json)
        # A launcher takes other codes than 0 for a failure.
        if result.left_out and launched_as().processes == 1:
            raise typer.Exit(SOME_LEFT_OUT)


def _print(result: CrossValidation, out: Path, *, as_json: bool) -> None:
    from pneumoscope.cli.train import note_left_out
    from pneumoscope.evaluation.tables import with_interval
    from pneumoscope.experiment.cross_validation import METRICS_FILE

    if as_json:
        content = json.loads((out / METRICS_FILE).read_text(encoding="utf-8"))
        print_json(content | {"left_out": len(result.left_out)})
        return
    for name, part in result.parts.items():
        shown = ((key, part[key]) for key in ("auroc", "sensitivity", "specificity"))
        values = "  ".join(f"{key} {value:.3f}" for key, value in shown if value is not None)
        typer.echo(f"{name:14s} {part['images']:5d} images  {values}")
    if result.metrics:
        typer.echo(f"all folds: AUROC {with_interval(result.metrics.detection.auroc)}")
    note_left_out(result.left_out, out)
    typer.echo(f"metrics: {out / METRICS_FILE}")
