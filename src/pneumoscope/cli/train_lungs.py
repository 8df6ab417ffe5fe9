"""`pneumoscope train-lungs`: the lung segmenter, from images and masks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.common import SOME_LEFT_OUT, make_folder, note, print_json
from pneumoscope.cli.parameters import AsJson
from pneumoscope.errors import require_extra


def train_lungs(
    data: Annotated[Path, typer.Option(help="Folder or manifest of images.")],
    masks: Annotated[Path, typer.Option(help="Folder of mask PNGs with the relative names of the images.")],
    out: Annotated[Path, typer.Option(help="Folder that gets lungs.onnx.")],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the training.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split and training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train the lung segmenter on the training patients of the default recipe, or on split train.

    Exit code 3: some images could not be read and are left out.
    """
    from pneumoscope.cli.common import one_opencv_thread
    from pneumoscope.cli.progress import show_progress
    from pneumoscope.data.folder import load

    one_opencv_thread()
    with show_progress() as progress:
        progress.step("loading the training libraries")
        with require_extra("train", "Training"):
            from pneumoscope.experiment import divide
            from pneumoscope.training.lungs import fit_lungs
            from pneumoscope.training.recipe import load_recipe

        manifest = load(data, progress=progress)
        if not manifest.has_split:
            how = load_recipe("default").split
            manifest = divide(manifest, how.model_copy(update={"seed": seed}), progress)
        make_folder(out)
        result = fit_lungs(manifest, masks, out, epochs=epochs, seed=seed, progress=progress)
    if as_json:
        print_json({**asdict(result), "path": str(result.path)})
    else:
        typer.echo(
            f"{result.path}: Dice {result.dice_full:.4f} on validation patients "
            f"({result.dice:.4f} at the size of the network), {result.images} images, {result.seconds:.0f} s"
        )
    if result.left_out:
        note(f"{result.left_out} unreadable images left out")
        raise typer.Exit(SOME_LEFT_OUT)
