"""`pneumoscope cross-validate`: what a recipe reaches on patients, or sources, it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.errors import require_extra

if TYPE_CHECKING:
    from pneumoscope.experiment import CrossValidation


def cross_validate(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that ships, or a .yaml file.")],
    data: Annotated[Path, typer.Option(help="Folder, manifest (.csv, .parquet) or MedMNIST .npz.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs and figures; the same again resumes.")],
    folds: Annotated[int, typer.Option(min=2, max=20, help="Parts the patients are divided into.")] = 5,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Source to train without, as in the manifest; may be repeated."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs in all, not the recipe's.")] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Input side in pixels, not the recipe's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=3, help="At most so many images of each class.")] = None,
    lungs: Annotated[Path | None, typer.Option(help="Lung segmenter (.onnx), not the shipped one.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of folds and training.")] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained/--no-pretrained", help="Start from ImageNet weights, or not.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="timm checkpoint in place of the hub's.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train a recipe without each fold of patients, or each source, and evaluate what was left out."""
    from pneumoscope.cli.train import changed_recipe
    from pneumoscope.cli.progress import show_progress

    with require_extra("train", "Cross-validation"):
        from pneumoscope.experiment import Experiment, with_split
        from pneumoscope.experiment import cross_validate as run
        from pneumoscope.training.recipe import load_recipe

    chosen = changed_recipe(
        with_split(load_recipe(recipe), seed=seed),
        epochs=epochs,
        size=size,
        pretrained=pretrained,
        weights=weights,
    )
    experiment = Experiment(chosen, data, out, weights=weights, lungs=lungs, limit=limit)
    with show_progress() as progress:
        result = run(experiment, count=folds, sources=tuple(leave_out or ()), progress=progress)
    _print(result, out, as_json=json_)


def _print(result: CrossValidation, out: Path, *, as_json: bool) -> None:
    import json

    from pneumoscope.evaluation.tables import with_interval

    if as_json:
        typer.echo(json.dumps({"metrics": result.metrics, "parts": result.parts}, indent=2))
        return
    for name, part in result.parts.items():
        shown = ((key, part[key]) for key in ("auroc", "sensitivity", "specificity"))
        figures = "  ".join(f"{key} {value:.3f}" for key, value in shown if value is not None)
        typer.echo(f"{name:14s} {part['images']:5d} images  {figures}")
    if result.metrics:
        typer.echo(f"all folds: AUROC {with_interval(result.metrics['pneumonia']['auroc'])}")
    typer.echo(f"figures: {out / 'cross-validation.json'}")
