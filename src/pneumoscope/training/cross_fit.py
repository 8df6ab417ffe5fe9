"""Cross-fitting: for each part of the data, a network that is trained without it predicts it."""

from __future__ import annotations

import functools
import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_fabric import Fabric

from pneumoscope.data.drafts import replacing
from pneumoscope.errors import DataError
from pneumoscope.model.bundle import input_hash
from pneumoscope.parallel import Progress
from pneumoscope.training.dataset import Packed
from pneumoscope.training.fit import fit
from pneumoscope.training.networks import build_recipe_network
from pneumoscope.training.outputs import predict_logits
from pneumoscope.training.pretrain import pretrain
from pneumoscope.training.processes import shared, shared_network
from pneumoscope.training.recipe import Recipe

__all__ = ["IMAGES_FILE", "cross_fit"]

LOGITS_FILE, IMAGES_FILE, PART_FILE = "held-out.npz", "images.sha256", "part.sha256"
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error)


def cross_fit(
    recipe: Recipe,
    packed: Packed,
    parts: Mapping[str, npt.NDArray[np.intp]],
    out: Path,
    *,
    fabric: Fabric,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Train once without each part and predict that part; every part is a run of its own that can be resumed.

    The weights of the last epoch are used, since choosing the epoch on a held-out part would bias its result.
    A teacher of the recipe is not used, since it would have been trained on the held-out parts.

    Parameters
    ----------
    recipe : Recipe
        With classes and target.
    packed : Packed
        All images.
    parts : mapping of str to ndarray of intp
        Names of the parts and positions of their images.
    out : Path
        Gets ``part-1`` and so on.
    weights : Path, optional
        A timm checkpoint to start from.

    Returns
    -------
    list of ndarray of float32, shape (n, K)
        Logits of each part's images.

    Raises
    ------
    DataError
        If what is in `out` belongs to other images, another recipe or other weights, or is damaged.
    """
    progress = progress or Progress()
    # What is evaluated decides neither which weights are kept nor how long is trained.
    last = recipe.without_distillation().model_copy(update={"keep": "last", "patience": None})
    images = functools.partial(_same, out / IMAGES_FILE, "other images or another segmenter")
    shared(fabric, lambda: images(packed.images, packed.possible))
    started_from = np.frombuffer(f"{last.sha256} {input_hash(weights)}".encode(), np.uint8)
    logits = []
    for number, (name, held_out) in enumerate(parts.items(), start=1):
        progress.step(f"training without {name}")
        run = out / f"part-{number}"
        stored = run / LOGITS_FILE
        part = functools.partial(_same, run / PART_FILE, "other folds, sources, --weights or another recipe")
        shared(fabric, functools.partial(part, held_out, started_from))
        if not shared(fabric, stored.exists):
            train = packed.subset(np.setdiff1d(np.arange(len(packed)), held_out))
            evaluated = packed.subset(held_out)
            network = shared_network(
                fabric,
                functools.partial(build_recipe_network, last, weights=weights),
                functools.partial(build_recipe_network, last, pretrained=False),
            )
            if last.pretraining:
                network = pretrain(last, network, train.images, run, fabric=fabric, progress=progress)
            network = fit(last, network, train, evaluated, run, fabric=fabric, resume=True, progress=progress)
            found = predict_logits(network, evaluated.images, fabric).numpy()
            if fabric.is_global_zero:
                with replacing(stored, "wb") as file:
                    np.savez(file, logits=found, held_out=held_out)
        logits.append(shared(fabric, functools.partial(_stored_logits, stored, held_out)))
    return logits


def _stored_logits(stored: Path, held_out: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    try:
        # numpy leaves a file open that it opened itself and cannot read.
        with stored.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            logits: npt.NDArray[np.float32]
            logits, evaluated = saved["logits"], saved["held_out"]
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, *_DAMAGED_ZIP) as error:
        raise DataError(f"{stored}: damaged; delete it and repeat the command") from error
    if not np.array_equal(evaluated, held_out):
        raise DataError(f"{stored}: belongs to other images; delete {stored.parents[1]} and start again")
    return logits


def _same(path: Path, otherwise: str, *content: npt.NDArray[Any]) -> None:
    """Write the hash of what a run is started with, or check that it is the one written."""
    hashed = hashlib.sha256()
    for array in content:
        hashed.update(np.ascontiguousarray(array).data)
    digest = hashed.hexdigest()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(f"{digest}\n")
    elif path.read_text(encoding="utf-8", errors="replace").strip() != digest:
        raise DataError(f"{path.parent}: was started with {otherwise}; use another --out")
