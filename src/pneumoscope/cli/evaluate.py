"""`pneumoscope evaluate`: how well a bundle reads labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def evaluate(
    data: Annotated[Path, typer.Argument(help="Labelled folder, manifest or MedMNIST .npz.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, plots and report.html.")],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle or run folder; the shipped one if not given.")
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None, typer.Option(help="Judge this split of the manifest only.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples for the intervals.")] = 1000,
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Lung masks: PNG under the pictures' names.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Boxes: path,x,y,width,height, or RSNA's layout."),
    ] = None,
    curves: Annotated[
        int | None,
        typer.Option(
            min=0, help="Pictures for insertion and deletion curves; 100 if masks or boxes are given."
        ),
    ] = None,
    sign: Annotated[
        bool, typer.Option("--sign", help="Write the results and the model card into the bundle.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print metrics.json.")] = False,
) -> None:
    """Judge a bundle on labelled pictures: figures with 95% intervals, plots, worst mistakes."""
    from pneumoscope.data.manifest import load
    from pneumoscope.domain import DataError
    from pneumoscope.evaluate.bundles import judge_bundle, sign_bundle
    from pneumoscope.evaluate.localisation import CURVE_PICTURES, MapTruth
    from pneumoscope.evaluate.tables import map_measures, with_interval
    from pneumoscope.model.bundle import load_bundle

    manifest = load(data)
    if split is not None:
        manifest = manifest.subset(split)
    if not len(manifest):
        raise DataError(f"{data}: no pictures to judge" + (f" in split {split!r}" if split else ""))
    speaks_of = f"{data.resolve().name}" + (
        f", {split} split" if split else f", all {len(manifest)} pictures"
    )
    if curves is None:
        curves = CURVE_PICTURES if masks or boxes else 0
    judged = load_bundle(bundle)
    judgement = judge_bundle(
        judged,
        manifest,
        out,
        speaks_of=speaks_of,
        about={"Data": speaks_of},
        n_boot=resamples,
        maps=MapTruth(masks, boxes, curves),
    )
    if sign:
        sign_bundle(judged, judgement.metrics, speaks_of)
    if json_:
        typer.echo((out / "metrics.json").read_text(encoding="utf-8"))
    else:
        for name, figure in judgement.metrics["pneumonia"].items():
            if isinstance(figure, dict):
                typer.echo(f"{name:20s} {with_interval(figure)}")
        for row in map_measures(judgement.metrics.get("localisation", {})):
            typer.echo(f"{row['name'].lower():24s} {with_interval(row['figure'])}")
        typer.echo(f"report: {judgement.report}")
    if judgement.not_judged:
        typer.echo(f"{len(judgement.not_judged)} pictures were not judged; see the report", err=True)
        raise typer.Exit(3)
