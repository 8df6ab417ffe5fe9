"""`pneumoscope recalibrate`: a bundle's probabilities and thresholds, fitted to a site's own images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from pneumoscope.cli.common import SOME_LEFT_OUT


def recalibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle or run folder; it stays as it is.")],
    data: Annotated[Path, typer.Argument(help="Labelled folder, manifest or MedMNIST .npz of the site.")],
    out: Annotated[Path, typer.Option(help="Folder for the new bundle.")],
    method: Annotated[
        Literal["none", "temperature", "vector"],
        typer.Option(help="How probabilities are scaled; none keeps them and chooses thresholds alone."),
    ] = "vector",
    views: Annotated[
        int, typer.Option(min=0, help="Mildly disturbed copies of each image to fit on as well.")
    ] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples for the intervals.")] = 1000,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fit calibrator, operating points and prediction sets to a site's images; write a new bundle.

    The figures before and after are cross-fitted by patient: no image is evaluated with what was fitted on it.
    """
    from pneumoscope.data.folder import load
    from pneumoscope.evaluation.comparison import comparison_rows
    from pneumoscope.evaluation.recalibrate import recalibrate_bundle
    from pneumoscope.model.bundle import load_bundle

    parent, manifest = load_bundle(bundle), load(data)
    done = recalibrate_bundle(
        parent,
        manifest,
        out,
        method=method,
        described_as=data.resolve().name,
        views=views,
        n_boot=resamples,
    )
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if json_:
        identity = {"identity": done.bundle.identity, "path": str(out), "parent": parent.identity}
        facts = {"bundle": identity, "warnings": list(done.warnings), **done.results}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        rows = [("", "parent", "recalibrated"), *comparison_rows(done.results)]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        for name, before, after in rows:
            typer.echo(f"{name:<{first}}  {before:<{second}}  {after}")
        typer.echo(f"bundle: {out} ({done.bundle.identity})")
    if left_out := done.results["not_evaluated"]:
        typer.echo(f"{left_out} images were not evaluated; see 'pneumoscope predict {data}'", err=True)
        raise typer.Exit(SOME_LEFT_OUT)
