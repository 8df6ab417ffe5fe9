"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.completion import (
    complete_bundle,
    complete_operating_point,
    complete_population,
    complete_recipe,
)

__all__ = [
    "AsJson",
    "BundlePath",
    "CacheFolder",
    "Data",
    "Epochs",
    "Force",
    "Limit",
    "Lungs",
    "NoCache",
    "Patience",
    "PointName",
    "PopulationName",
    "Pretrained",
    "RecipeName",
    "Size",
    "TargetClasses",
    "Weights",
]

RecipeName = Annotated[
    str,
    typer.Argument(autocompletion=complete_recipe, help="Name of a shipped recipe, or a .yaml file."),
]
Data = Annotated[Path, typer.Option(help="Folder, manifest (.csv, .parquet) or MedMNIST .npz.")]
TargetClasses = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=CLASS[,CLASS...]",
        help="Finding to decide on and the classes that count as it; classes are the labels of the data.",
    ),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs in all, in place of the recipe's.")]
Patience = Annotated[
    int | None,
    typer.Option(min=1, help="Epochs without a lower validation loss after which a phase ends."),
]
Limit = Annotated[int | None, typer.Option(min=3, help="Largest number of images per class.")]
Size = Annotated[
    int | None, typer.Option(min=16, max=1024, help="Input side in pixels, in place of the recipe's.")
]
Pretrained = Annotated[
    bool | None, typer.Option("--pretrained/--no-pretrained", help="Start from ImageNet weights, or not.")
]


SHIPPED_WEIGHTS = "shipped"


def _weights(value: str) -> Path:
    """Return the path of weights; the word `SHIPPED_WEIGHTS` is the bundle that ships."""
    if value != SHIPPED_WEIGHTS:
        return Path(value)
    from pneumoscope.model.bundle import default_bundle_path

    return default_bundle_path()


Weights = Annotated[
    Path | None,
    typer.Option(
        parser=_weights,
        metavar="PATH",
        help=f"Start from these: {SHIPPED_WEIGHTS} for the shipped network, another bundle, "
        "model.safetensors of a run, or a timm checkpoint in place of the hub's.",
    ),
]
Lungs = Annotated[Path | None, typer.Option(help="Lung segmenter (.onnx) in place of the shipped one.")]
CacheFolder = Annotated[
    Path | None, typer.Option(help="Folder for prepared images, in place of the user's cache folder.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not keep prepared images.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
BundlePath = Annotated[
    Path | None,
    typer.Option(
        autocompletion=complete_bundle, help="Bundle or run folder; the shipped bundle if not given."
    ),
]
PointName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=complete_operating_point,
        help="Operating point; the bundle's default if not given.",
    ),
]
PopulationName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=complete_population,
        help="Population of all images; by age and view of each image if not given.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Predict images that would be rejected; the reasons stay.")
]
