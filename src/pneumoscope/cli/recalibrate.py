"""`pneumoscope recalibrate`: a bundle's probabilities and thresholds, fitted to a hospital's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pneumoscope.cli.common import (
    SOME_LEFT_OUT,
    bundle_facts,
    check_no_effect,
    check_prevalence,
    note,
    one_opencv_thread,
    print_json,
)
from pneumoscope.cli.completion import complete_bundle
from pneumoscope.cli.parameters import AsJson
from pneumoscope.errors import counted


def recalibrate(
    bundle: Annotated[
        Path,
        typer.Argument(autocompletion=complete_bundle, help="Bundle or run folder; it is not changed."),
    ],
    data: Annotated[
        Path | None, typer.Argument(help="Labelled folder, manifest or MedMNIST .npz of the hospital.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the new bundle.")],
    prevalence: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            callback=check_prevalence,
            help="In place of labelled images: the expected share of images with the finding, such as 0.05.",
        ),
    ] = None,
    method: Annotated[
        Literal["none", "temperature", "vector"] | None,
        typer.Option(
            help="How probabilities are scaled; vector if not given; none keeps them and chooses thresholds "
            "alone."
        ),
    ] = None,
    copies: Annotated[
        int | None,
        typer.Option(min=0, help="Augmented copies of each image to fit on as well; 0 if not given."),
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option(min=100, help="Bootstrap resamples for the intervals; 1000 if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit calibrator, operating points and prediction sets to a hospital's images; write a new bundle.

    The results before and after are cross-fitted by patient: no image is evaluated with a fit on itself.

    With --prevalence in place of images nothing is fitted: probabilities and thresholds are shifted to it;
    decisions stay.
    """
    if prevalence is not None and data is None:
        unused = {"--method": method, "--copies": copies, "--resamples": resamples}
        check_no_effect(unused, "with --prevalence, which fits nothing")
        _shift(bundle, out, prevalence, as_json=as_json)
        return
    if data is None or prevalence is not None:
        raise typer.BadParameter("give labelled images to fit to, or else --prevalence", param_hint="DATA")
    from pneumoscope.cli.progress import show_progress

    one_opencv_thread()
    with show_progress(keep=False) as progress:
        progress.step("loading the libraries")
        from pneumoscope.evaluation import recalibration
        from pneumoscope.evaluation.tables import comparison_rows

        done = recalibration.recalibrate(
            bundle,
            data,
            out,
            method=method or "vector",
            copies=copies or 0,
            n_boot=1000 if resamples is None else resamples,
            progress=progress,
        )
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    identity = done.bundle.identity
    if as_json:
        parent = done.bundle.manifest.provenance.parent
        facts = {
            "bundle": bundle_facts(done.bundle) | {"parent": parent},
            "warnings": list(done.warnings),
            **done.results.model_dump(mode="json"),
        }
        print_json(facts)
    else:
        rows = [("", "parent", "recalibrated"), *comparison_rows(done.results)]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        for name, before, after in rows:
            typer.echo(f"{name:<{first}}  {before:<{second}}  {after}")
        typer.echo(f"bundle: {out} ({identity})")
    if left_out := done.results.not_evaluated:
        note(f"{counted(left_out, 'image')} not evaluated; see 'pneumoscope predict {data}'")
        raise typer.Exit(SOME_LEFT_OUT)


def _shift(bundle: Path, out: Path, prevalence: float, *, as_json: bool) -> None:
    from pneumoscope.evaluation.recalibration import set_prevalence
    from pneumoscope.model.bundle import load_bundle

    done = set_prevalence(load_bundle(bundle, allow_draft=False), prevalence, out)
    if as_json:
        print_json(
            {
                "bundle": bundle_facts(done) | {"parent": done.manifest.provenance.parent},
                "prevalence": prevalence,
            }
        )
    else:
        typer.echo(f"bundle: {out} ({done.identity}), for a prevalence of {prevalence:g}")
