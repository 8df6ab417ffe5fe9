"""`pneumoscope evaluate`: how well a bundle performs on labelled images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.common import (
    SOME_LEFT_OUT,
    check_no_run,
    check_outside,
    make_folder,
    note,
    one_opencv_thread,
    print_json,
)
from pneumoscope.cli.parameters import BundlePath
from pneumoscope.errors import counted

if TYPE_CHECKING:
    from pneumoscope.model.results import Evaluation

_Masks = Annotated[Path | None, typer.Option(metavar="DIR", help="Lung masks: PNG under the images' names.")]
_Boxes = Annotated[
    Path | None,
    typer.Option(metavar="FILE.csv", help="Boxes: path,x,y,width,height, or RSNA's layout."),
]
_Curves = Annotated[
    int | None,
    typer.Option(min=0, help="Images for insertion and deletion curves; 100 if masks or boxes are given."),
]
_Robustness = Annotated[
    bool,
    typer.Option("--robustness", help="Evaluate every image under corruptions, handling and shortcuts too."),
]
_Images = Annotated[
    int | None,
    typer.Option(min=1, help="Most images for --robustness, by whole patients; all if not given."),
]
_LungsOnly = Annotated[
    Literal["positive", "inverted"] | None,
    typer.Option(help="The images show lungs on black and nothing else; the gate is overridden."),
]
_Sign = Annotated[
    bool, typer.Option("--sign", help="Write results, validated population and model card into the bundle.")
]
_Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Add the results to the bundle's card as an external validation."),
]


def evaluate(
    data: Annotated[Path, typer.Argument(help="Labelled folder, manifest or MedMNIST .npz.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, plots and report.html.")],
    bundle: BundlePath = None,
    split: Annotated[
        Literal["train", "val", "test"] | None, typer.Option(help="Evaluate this split of the manifest only.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples for the intervals.")] = 1000,
    masks: _Masks = None,
    boxes: _Boxes = None,
    curves: _Curves = None,
    robustness: _Robustness = False,
    images: _Images = None,
    lungs_only: _LungsOnly = None,
    sign: _Sign = False,
    add_to_card: _Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json, one JSON object.")] = False,
) -> None:
    """Evaluate a bundle on labelled images: metrics with 95% intervals, plots, worst mistakes.

    Exit code 3: some images were unreadable or rejected.
    """
    if sign and add_to_card is not None:
        raise typer.BadParameter("a set is the bundle's own or an external one: --sign or --add-to-card")
    if bundle is None and (sign or add_to_card is not None):
        raise typer.BadParameter("name the --bundle to write into; the shipped one is not changed")
    if add_to_card is not None and not add_to_card.strip():
        raise typer.BadParameter("give a name that describes the set", param_hint="--add-to-card")
    if lungs_only and sign:
        raise typer.BadParameter("the gate is overridden for --lungs-only: give --add-to-card, not --sign")
    if images is not None and not robustness:
        raise typer.BadParameter("--images goes with --robustness")
    if masks is not None and not masks.is_dir():
        raise typer.BadParameter(
            f"{masks} is no folder; give the one that holds the masks", param_hint="--masks"
        )
    check_outside(out, data)
    check_no_run(out)
    from pneumoscope.cli.progress import show_progress

    make_folder(out)
    one_opencv_thread()
    with show_progress(keep=False) as progress:
        progress.step("loading the libraries")
        from pneumoscope.evaluation import bundles

        evaluation = bundles.evaluate(
            data,
            out,
            bundle=bundle,
            split=split,
            masks=masks,
            boxes=boxes,
            curves=curves,
            robustness=robustness,
            images=images,
            lungs_only=lungs_only,
            sign=sign,
            add_to_card=add_to_card,
            n_boot=resamples,
            progress=progress,
        )
    for warning in evaluation.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(json.loads((out / "metrics.json").read_text(encoding="utf-8")))
    else:
        _print(evaluation.metrics)
        typer.echo(f"report: {evaluation.report}")
    if evaluation.not_evaluated:
        note(f"{counted(len(evaluation.not_evaluated), 'image')} not evaluated; see the report")
        raise typer.Exit(SOME_LEFT_OUT)


def _print(metrics: Evaluation) -> None:
    from pneumoscope.evaluation.tables import (
        CHANGES,
        change,
        map_rows,
        measures_of,
        robustness_rows,
        with_interval,
    )

    for key, name, _ in measures_of(metrics.target.name):
        typer.echo(f"{name:20s} {with_interval(getattr(metrics.detection, key))}")
    for row in map_rows(metrics.localisation):
        typer.echo(f"{row.name:24s} {with_interval(row.estimate)}")
    if metrics.robustness is not None:
        for group in CHANGES:
            for one in robustness_rows(metrics.robustness, group):
                auroc, rejected = change(one.measures.auroc_change), with_interval(one.measures.rejected)
                typer.echo(f"{one.name:24s} AUROC {auroc}, rejected {rejected}")
