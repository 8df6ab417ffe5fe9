"""`pneumoscope export`: the bundle of a run, or its network as a Keras file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pneumoscope.cli.common import bundle_facts, print_json
from pneumoscope.cli.completion import complete_bundle
from pneumoscope.errors import require_extra


def export(
    run: Annotated[
        Path,
        typer.Argument(autocompletion=complete_bundle, help="Run folder made by 'pneumoscope train'."),
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder, or the .h5 file, to write.")],
    to: Annotated[Literal["bundle", "keras"], typer.Option(help="Format to write.")] = "bundle",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the bundle of a training run to a folder of its own, or its network as model.h5 for Keras."""
    if to == "bundle":
        from pneumoscope.model.bundle import copy_bundle, load_bundle

        bundle = copy_bundle(load_bundle(run), out)
        if as_json:
            print_json({"bundle": bundle_facts(bundle)})
        else:
            typer.echo(f"{bundle.path}: {bundle.identity}")
        return
    from pneumoscope.cli.progress import show_progress

    with show_progress(keep=False) as progress:
        progress.step("writing the Keras file")
        with require_extra("keras", "Writing a Keras file"):
            from pneumoscope.experiment import export_run_to_keras

        difference = export_run_to_keras(run, out)
    if as_json:
        print_json({"keras": {"path": str(out), "largest_difference": difference}})
        return
    typer.echo(f"{out}: agrees with the network within {difference:.1e}")
