"""`pneumoscope export`: the bundle of a run, or its network as a Keras file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pneumoscope.errors import require_extra


def export(
    run: Annotated[Path, typer.Argument(help="Run folder made by 'pneumoscope train'.")],
    out: Annotated[Path, typer.Option(help="Bundle folder, or the .h5 file, to write.")],
    to: Annotated[Literal["bundle", "keras"], typer.Option(help="Format to write.")] = "bundle",
) -> None:
    """Write the bundle of a training run to a folder of its own, or its network as model.h5 for Keras."""
    if to == "bundle":
        from pneumoscope.model.bundle import copy_bundle, load_bundle

        bundle = copy_bundle(load_bundle(run), out)
        typer.echo(f"{bundle.path}: {bundle.identity}")
        return
    with require_extra("keras", "Writing a Keras file"):
        from pneumoscope.experiment import export_run_to_keras

    difference = export_run_to_keras(run, out)
    typer.echo(f"{out}: agrees with the network within {difference:.1e}")
