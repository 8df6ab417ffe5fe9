"""Cross-fitting: one network for each part of the data that is held out, every part evaluated by strangers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lightning.fabric import Fabric

from pneumoscope.errors import DataError
from pneumoscope.training.dataset import Packed
from pneumoscope.training.fit import fit, predict_logits
from pneumoscope.training.history import Epoch
from pneumoscope.training.networks import build_network
from pneumoscope.training.pretrain import pretrain
from pneumoscope.training.recipe import Recipe

__all__ = ["cross_fit"]

LOGITS_FILE, IMAGES_FILE = "held-out.npz", "images.sha256"


def cross_fit(
    recipe: Recipe,
    packed: Packed,
    parts: Sequence[npt.NDArray[np.intp]],
    out: Path,
    *,
    fabric: Fabric,
    weights: Path | None = None,
    on_part: Callable[[int], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> list[npt.NDArray[np.float32]]:
    """Train once without each part and evaluate that part; every part is a run of its own that resumes.

    The weights of the last epoch are taken: a held-out part that chose the epoch would flatter itself. A
    recipe's teacher is left aside: it would have seen the held-out parts.

    Parameters
    ----------
    recipe : Recipe
    packed : Packed
        All images.
    parts : sequence of ndarray of intp
        Positions held out, in turn.
    out : Path
        Gets ``part-1`` and so on.
    weights : Path, optional
        A timm checkpoint to start from.
    on_part : callable
        Told the number of the part that begins, from 1.

    Returns
    -------
    list of ndarray of float32, shape (n, K)
        Logits of each part's images.

    Raises
    ------
    DataError
        If what is in `out` belongs to other images.
    """
    last = recipe.model_copy(update={"keep": "last", "patience": None, "distillation": None})
    if fabric.is_global_zero:
        _same_images(packed, out)
    logits = []
    for number, held_out in enumerate(parts, start=1):
        on_part(number)
        run = out / f"part-{number}"
        stored = run / LOGITS_FILE
        if not stored.exists():
            run.mkdir(parents=True, exist_ok=True)
            learnt = packed.subset(np.setdiff1d(np.arange(len(packed)), held_out))
            evaluated = packed.subset(held_out)
            network = build_network(last.network, len(last.classes), weights=weights, seed=last.seed)
            if last.pretraining:
                network = pretrain(last, network, learnt.images, run, fabric=fabric)
            network = fit(
                last,
                network,
                learnt,
                evaluated,
                run,
                fabric=fabric,
                resume=True,
                on_epoch=on_epoch,
            )
            found = predict_logits(network, evaluated.images, fabric).numpy()
            if fabric.is_global_zero:
                np.savez(stored, logits=found, held_out=held_out)
            fabric.barrier()
        with np.load(stored, allow_pickle=False) as saved:
            if not np.array_equal(saved["held_out"], held_out):
                raise DataError(f"{stored}: belongs to other images; delete {out} and begin again")
            logits.append(saved["logits"])
    return logits


def _same_images(packed: Packed, out: Path) -> None:
    """Hold a folder that was begun to the images it began with, as the network sees them."""
    digest = hashlib.sha256(packed.images.tobytes() + packed.labels.tobytes()).hexdigest()
    path = out / IMAGES_FILE
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{digest}\n", encoding="utf-8")
    elif path.read_text(encoding="utf-8").strip() != digest:
        raise DataError(f"{out}: began with other images or another segmenter; use another --out")
