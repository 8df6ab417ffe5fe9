"""`pneumoscope batch`: predict an archive of any size, on one machine or a cluster."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.common import NOTHING_DONE, bundle_with, exit_code, note, print_json, stops_on_sigterm
from pneumoscope.cli.parameters import BundlePath, Force, PointName, PopulationName
from pneumoscope.cli.progress import show_progress
from pneumoscope.errors import require_extra

if TYPE_CHECKING:
    from pneumoscope.serve.batch.reconcile import Summary

__all__ = ["batch"]

REASONS_SHOWN = 5


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="Folder, manifest (.csv, .parquet), or a URI of either: s3://…, gs://…"
        ),
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder or URI for the results, one row for each image.")
    ],
    bundle: BundlePath = None,
    address: Annotated[
        str,
        typer.Option(
            metavar="local|auto|HOST:PORT",
            help="This machine; the Ray cluster that this machine belongs to; or the cluster there.",
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that predict; one for each --threads CPUs, or each GPU, if not given."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each of them.")] = 1,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Where networks run; auto is the GPU where there is one and onnxruntime-gpu."),
    ] = "auto",
    part_size: Annotated[
        int | None, typer.Option(min=1, help="Images of each file of results; 500 if not given.")
    ] = None,
    operating_point: PointName = None,
    population: PopulationName = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Predict all X-rays of a folder, a manifest or an object store, with Ray.

    The same command continues a run that was interrupted anywhere: finished parts are kept, and the rows in
    the end are those of a run that was not interrupted. An unreadable or rejected image is a row with a
    reason.

    Exit code 0: all were predicted; 3: some were rejected or unreadable; 4: none could be predicted, or rows
    and images do not add up; 130: the run was interrupted.
    """
    with require_extra("batch", "predicting with Ray"):
        from pneumoscope.serve.batch import BatchSettings, run_batch

    loaded = bundle_with(bundle, operating_point, population)
    settings = BatchSettings(address=address, workers=workers, threads=threads, device=device)
    with (
        stops_on_sigterm(),
        show_progress(keep=False) as progress,
        # Ray prints there that a worker died, whatever it is told; the worker is replaced.
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
    ):
        try:
            summary = run_batch(
                source,
                output,
                loaded,
                operating_point=operating_point,
                population=population,
                force=force,
                part_size=part_size,
                settings=settings,
                progress=progress,
            )
        except KeyboardInterrupt:
            note(f"interrupted; the same command continues, the finished parts are in {output}")
            raise
    if as_json:
        print_json(summary.as_json())
    else:
        _show(summary, output)
    if not summary.adds_up:
        raise typer.Exit(NOTHING_DONE)
    raise typer.Exit(exit_code(done=summary.ok, left_out=summary.rejected + summary.unreadable))


def _show(summary: Summary, output: str) -> None:
    counts = ", ".join(
        f"{getattr(summary, status):,} {status}" for status in ("ok", "rejected", "unreadable")
    )
    speed = ""
    if summary.seconds:
        speed = f"; {summary.images_predicted / summary.seconds:,.0f} a second"
    note(f"{summary.rows:,} images: {counts}{speed}; results in {output}")
    shown = list(summary.reasons.items())[:REASONS_SHOWN]
    if shown:
        note("most frequent reasons: " + ", ".join(f"{reason} {count:,}" for reason, count in shown))
    if not summary.adds_up:
        parts = f", {len(summary.foreign_parts)} files of no part" if summary.foreign_parts else ""
        typer.echo(
            f"error: {output}: {summary.entries:,} images but {summary.rows:,} rows "
            f"({summary.missing:,} missing, {summary.repeated:,} repeated, "
            f"{summary.foreign:,} of no image{parts}); see summary.json",
            err=True,
        )
