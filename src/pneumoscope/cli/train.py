"""`pneumoscope train`: from a folder of X-rays to a tested, calibrated bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.common import (
    SOME_LEFT_OUT,
    bundle_facts,
    check_cache,
    check_data,
    check_outside,
    check_weights,
    note,
    print_json,
    says_how_to_continue,
)
from pneumoscope.cli.completion import complete_bundle
from pneumoscope.cli.parameters import (
    AsJson,
    CacheFolder,
    Data,
    Epochs,
    Limit,
    Lungs,
    NoCache,
    Patience,
    Pretrained,
    RecipeName,
    Size,
    TargetClasses,
    Weights,
)
from pneumoscope.errors import counted, require_extra
from pneumoscope.parallel import launched_as

if TYPE_CHECKING:
    from pneumoscope.experiment import Result
    from pneumoscope.training.dataset import LeftOut


def train(
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    target: TargetClasses = None,
    epochs: Epochs = None,
    patience: Patience = None,
    additional: Annotated[
        Path | None,
        typer.Option(help="Additional training data; not used for validation or test."),
    ] = None,
    not_chest: Annotated[
        Path | None,
        typer.Option(help="Folder of images that are no frontal chest radiographs, for the gate to reject."),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            autocompletion=complete_bundle,
            help="Bundle to distil from, in place of the recipe's teacher; may be repeated.",
        ),
    ] = None,
    limit: Limit = None,
    size: Size = None,
    pretrained: Pretrained = None,
    weights: Weights = None,
    lungs: Lungs = None,
    split: Annotated[
        Literal["patient", "random"] | None, typer.Option(help="How to split data that have no split yet.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of split and training.")] = None,
    keras: Annotated[bool, typer.Option("--keras", help="Write model.h5 for Keras as well.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    track: Annotated[
        str | None,
        typer.Option(metavar="mlflow[:URI]", help="Log parameters, curves, report and bundle there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a network by a recipe, then calibrate, evaluate and write it as a bundle.

    Exit code 3: some images were unreadable or rejected and are left out.
    """
    from pneumoscope.cli.common import one_opencv_thread
    from pneumoscope.cli.progress import show_progress

    check_weights(pretrained, weights)
    check_cache(cache, no_cache=no_cache)
    for folder in filter(None, (data, additional, not_chest)):
        check_outside(out, folder)
    check_data(data)
    with says_how_to_continue(out, "the same command with --resume"), show_progress() as progress:
        progress.step("loading the training libraries")
        with require_extra("train", "Training"):
            from pneumoscope import experiment
        one_opencv_thread()
        result = experiment.train(
            recipe,
            data,
            out,
            target=target,
            epochs=epochs,
            patience=patience,
            additional=additional,
            not_chest=not_chest,
            teachers=tuple(teacher or ()),
            limit=limit,
            size=size,
            pretrained=pretrained,
            weights=weights,
            lungs=lungs,
            split=split,
            seed=seed,
            keras=keras,
            resume=resume,
            cache=cache,
            use_cache=not no_cache,
            track=track,
            progress=progress,
        )
    if result is not None:
        _print(result, out, as_json=as_json)
        # A launcher takes other codes than 0 for a failure.
        if result.left_out and launched_as().processes == 1:
            raise typer.Exit(SOME_LEFT_OUT)


def note_left_out(left_out: Iterable[LeftOut], out: Path) -> None:
    """Say how many images a training left out, by status, and which file lists them."""
    for status, count in Counter(one.status for one in left_out).items():
        note(f"{counted(count, f'{status} image')} left out: {out / 'left-out.csv'}")


def _print(result: Result, out: Path, *, as_json: bool) -> None:
    from pneumoscope.evaluation.tables import with_interval

    metrics = result.evaluation.metrics
    name = metrics.target.name
    lines = {
        "auroc": (f"AUROC, {name} against the rest", metrics.detection.auroc),
        "accuracy": (f"accuracy, {name} against the rest", metrics.detection.accuracy),
        "accuracy_all_classes": (f"accuracy, {len(metrics.classes)} classes", metrics.all_classes.accuracy),
    }
    if as_json:
        summary = {
            "bundle": bundle_facts(result.bundle),
            "report": str(result.evaluation.report),
            "target": name,
            "test_images": metrics.images,
            "not_evaluated": len(result.evaluation.not_evaluated),
            "left_out": len(result.left_out),
            **{
                key: {"value": one.value, "low": one.low, "high": one.high} for key, (_, one) in lines.items()
            },
        }
        print_json(summary)
        return
    for label, estimate in lines.values():
        typer.echo(f"{label:38s} {with_interval(estimate)}")
    typer.echo(
        f"{counted(metrics.images, 'test image')} evaluated, "
        f"{len(result.evaluation.not_evaluated)} not evaluated"
    )
    note_left_out(result.left_out, out)
    typer.echo(f"bundle: {result.bundle.path}\nreport: {result.evaluation.report}")
