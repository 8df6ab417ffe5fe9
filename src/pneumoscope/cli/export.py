"""`pneumoscope export`: the bundle of a run, or its network in the format of another runtime."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.common import bundle_facts, check_no_run, check_output, print_json
from pneumoscope.cli.completion import complete_bundle
from pneumoscope.cli.parameters import AsJson
from pneumoscope.errors import require_extra

if TYPE_CHECKING:
    from pneumoscope.experiment import ExportedNetwork

Format = Literal["bundle", "onnx", "onnx-int8", "openvino", "torchscript", "keras", "safetensors"]


def export(
    run: Annotated[
        Path,
        typer.Argument(autocompletion=complete_bundle, help="Run folder made by 'pneumoscope train'."),
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder, or the file, to write.")],
    to: Annotated[Format, typer.Option(help="Format to write.")] = "bundle",
    check: Annotated[
        Path | None,
        typer.Option(
            help="Folder or manifest of X-rays to compare with the bundle on, in place of the run's "
            "validation images."
        ),
    ] = None,
    ranges: Annotated[
        Path | None,
        typer.Option(
            help="Folder or manifest of X-rays on which onnx-int8 measures its activations, in place of the "
            "run's training images."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the bundle of a training run to a folder of its own, or its network for another runtime."""
    if ranges is not None and to != "onnx-int8":
        raise typer.BadParameter("is for --to onnx-int8", param_hint="--ranges")
    if to == "bundle":
        from pneumoscope.model.bundle import copy_bundle, load_bundle

        if check is not None:
            raise typer.BadParameter("a bundle is copied as it is; leave it out", param_hint="--check")
        check_no_run(out)
        bundle = copy_bundle(load_bundle(run), out)
        if as_json:
            print_json({"bundle": bundle_facts(bundle)})
        else:
            typer.echo(f"{bundle.path}: {bundle.identity}")
        return
    check_output(out, [run / "model.safetensors", run / "model.h5", *run.glob("bundle/*")])
    from pneumoscope.cli.progress import show_progress

    with show_progress(keep=False) as progress:
        with require_extra("keras" if to == "keras" else "train", f"Writing {to}"):
            from pneumoscope.experiment import export_network

        result = export_network(run, out, to, check=check, ranges=ranges, progress=progress)
    _print(result, to, as_json=as_json)


def _print(result: ExportedNetwork, to: str, *, as_json: bool) -> None:
    if as_json:
        facts = asdict(result)
        renamed = {
            "path": str(facts.pop("path")),
            "largest_difference": facts.pop("from_bundle"),
            "mean_difference": facts.pop("mean_from_bundle"),
            "largest_difference_from_network": facts.pop("from_network"),
        }
        print_json({to: renamed | facts})
        return
    typer.echo(f"{result.path}: {result.bytes / 1e6:.2f} MB")
    typer.echo(
        f"probability of {result.target} on {result.images} X-rays ({result.checked_on}): differs from the "
        f"bundle's by {result.from_bundle:.1e} at most, {result.mean_from_bundle:.1e} on average"
    )
    if result.bundle_precision == "int8" and to != "onnx-int8":
        typer.echo(
            "the bundle's network has 8 bits; from the trained network, in float32, it differs by "
            f"{result.from_network:.1e} at most"
        )
