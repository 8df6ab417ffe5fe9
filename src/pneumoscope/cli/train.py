"""`pneumoscope train`: from a folder of X-rays to a tested, calibrated bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.common import SOME_LEFT_OUT
from pneumoscope.errors import require_extra

if TYPE_CHECKING:
    from pneumoscope.experiment import Result
    from pneumoscope.training.recipe import Recipe


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that ships, or a .yaml file.")],
    data: Annotated[Path, typer.Option(help="Folder, manifest (.csv, .parquet) or MedMNIST .npz.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs in all, not the recipe's.")] = None,
    also: Annotated[
        Path | None,
        typer.Option(help="A second data set to learn from; never evaluated on."),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="Bundle to learn from in place of the recipe's own teacher; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=3, help="At most so many images of each class.")] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Input side in pixels, not the recipe's.")
    ] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained/--no-pretrained", help="Start from ImageNet weights, or not.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="timm checkpoint in place of the hub's.")] = None,
    lungs: Annotated[Path | None, typer.Option(help="Lung segmenter (.onnx), not the shipped one.")] = None,
    split: Annotated[
        Literal["patient", "random"] | None, typer.Option(help="How to divide data that has no split yet.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of split and training.")] = None,
    keras: Annotated[bool, typer.Option("--keras", help="Write model.h5 for Keras as well.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a network by a recipe, then calibrate, evaluate and pack it as a bundle."""
    from pneumoscope.cli.progress import show_progress

    with require_extra("train", "Training"):
        from pneumoscope.experiment import Experiment, run_experiment, with_split
        from pneumoscope.training.recipe import load_recipe

    chosen = with_split(load_recipe(recipe), method=split, seed=seed)
    chosen = changed_recipe(chosen, epochs=epochs, size=size, pretrained=pretrained, weights=weights)
    experiment = Experiment(
        chosen,
        data,
        out,
        weights=weights,
        lungs=lungs,
        also=also,
        teachers=tuple(teacher or ()),
        teacher_epochs=epochs,
        limit=limit,
        keras=keras,
        resume=resume,
        divides=split is not None,
    )
    with show_progress() as progress:
        result = run_experiment(experiment, progress)
    if result is not None:
        _print(result, out, as_json=json_)
        if result.unreadable:
            raise typer.Exit(SOME_LEFT_OUT)


def changed_recipe(
    recipe: Recipe, *, epochs: int | None, size: int | None, pretrained: bool | None, weights: Path | None
) -> Recipe:
    """Apply the options that take the place of what the recipe says."""
    starts_trained = weights is not None or (recipe.network.pretrained if pretrained is None else pretrained)
    if pretrained is False and weights is not None:
        raise typer.BadParameter("--weights and --no-pretrained exclude each other")
    if not starts_trained:
        recipe = recipe.from_scratch()
    elif pretrained:
        network = recipe.network.model_copy(update={"pretrained": True})
        recipe = recipe.model_copy(update={"network": network})
    if size is not None:
        recipe = recipe.model_copy(update={"input": recipe.input.model_copy(update={"size": size})})
    return recipe.with_epochs(epochs) if epochs is not None else recipe


def _print(result: Result, out: Path, *, as_json: bool) -> None:
    import json

    from pneumoscope.evaluation.tables import with_interval

    metrics = result.evaluation.metrics
    against_normal = metrics["pneumonia"]
    summary = {
        "bundle": str(result.bundle.path),
        "identity": result.bundle.identity,
        "report": str(result.evaluation.report),
        "test_images": metrics["images"],
        "not_evaluated": len(result.evaluation.not_evaluated),
        "left_out": len(result.unreadable),
        "auroc": against_normal["auroc"],
        "accuracy": against_normal["accuracy"],
        "accuracy_all_classes": metrics["all_classes"]["accuracy"],
    }
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    for label, key in (
        ("AUROC, pneumonia against normal", "auroc"),
        ("accuracy, pneumonia against normal", "accuracy"),
        (f"accuracy, {len(metrics['classes'])} classes", "accuracy_all_classes"),
    ):
        typer.echo(f"{label:38s} {with_interval(summary[key])}")
    typer.echo(f"{summary['test_images']} test images evaluated, {summary['not_evaluated']} not evaluated")
    if result.unreadable:
        typer.echo(f"{len(result.unreadable)} unreadable images left out: {out / 'unreadable.csv'}", err=True)
    typer.echo(f"bundle: {summary['bundle']}\nreport: {summary['report']}")
