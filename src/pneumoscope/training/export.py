"""From trained weights to a bundle."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

import pneumoscope
from pneumoscope.domain import Population
from pneumoscope.model.bundle import Bundle, head_bytes, write_bundle
from pneumoscope.model.lungs import LUNGS_FILE
from pneumoscope.model.manifest import HEAD_FILE, MODEL_FILE, BundleManifest, Provenance
from pneumoscope.training.networks import Network
from pneumoscope.training.onnx_export import export_onnx, halve, quantise
from pneumoscope.training.pyramid import PyramidWithExpert
from pneumoscope.training.recipe import Recipe

__all__ = ["RANGE_IMAGES", "export_bundle"]

# Enough for a stable estimate of the widest activations.
RANGE_IMAGES = 256


def export_bundle(
    network: Network,
    recipe: Recipe,
    folder: Path,
    *,
    provenance: Provenance,
    lungs: Path | None = None,
    train_images: npt.NDArray[np.uint8] | None = None,
) -> Bundle:
    """Write a network as a draft bundle: uncalibrated, with one operating point at 0.5.

    Parameters
    ----------
    network : Network
        Trained by `recipe`.
    folder : Path
        The bundle's folder.
    provenance : Provenance
        Recipe, weights, normalisation, code version and date are filled in here.
    lungs : Path, optional
        The lung segmenter, needed where the input spec of the recipe needs one.
    train_images : ndarray of uint8, shape (N, 1, S, S), optional
        Packed training images, needed where the precision of the recipe is int8.

    Raises
    ------
    DataError
        If the precision is int8 and there are no images.
    PneumoscopeError
        If the exported network differs from the trained one.
    """
    stamped = provenance.model_copy(
        update={
            "recipe": recipe.name,
            "recipe_sha256": recipe.sha256,
            "precision": recipe.precision,
            "pretrained": network.weights_source,
            "mean": tuple(network.mean.flatten().tolist()),
            "std": tuple(network.std.flatten().tolist()),
            "code_version": pneumoscope.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )
    manifest = BundleManifest(
        name=recipe.name,
        classes=recipe.output_classes,
        target=recipe.output_target,
        input=recipe.input,
        provenance=stamped,
    )
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / MODEL_FILE
        export_onnx(
            network,
            model,
            size=recipe.input.size,
            outputs=("logits", "features"),
            expert=_whose_expert(network, recipe),
        )
        if recipe.precision == "int8":
            model = quantise(model, model.with_name("int8.onnx"), _sample(train_images, recipe.seed))
        elif recipe.precision == "float16":
            model = halve(model, model.with_name("float16.onnx"))
        files: dict[str, bytes | Path] = {MODEL_FILE: model, HEAD_FILE: _head(network)}
        if lungs is not None and recipe.input.needs_lungs:
            files[LUNGS_FILE] = lungs
        return write_bundle(folder, manifest, files)


def _whose_expert(network: Network, recipe: Recipe) -> Population | None:
    """Return the population whose expert the network has; None where it has none, or none yet."""
    if not (isinstance(network.backbone, PyramidWithExpert) and network.backbone.started):
        return None
    return recipe.network.expert.population if recipe.network.expert else None


def _sample(packed: npt.NDArray[np.uint8] | None, seed: int) -> npt.NDArray[np.float32]:
    """Draw the images on which the ranges of the activations are measured, grey levels in [0, 1]."""
    if packed is None:
        return np.zeros((0, 1, 1, 1), np.float32)
    count = min(RANGE_IMAGES, len(packed))
    drawn = np.random.default_rng(seed).choice(len(packed), count, replace=False)
    images: npt.NDArray[np.float32] = packed[drawn].astype(np.float32) / np.float32(255)
    return images


def _head(network: Network) -> bytes:
    """Return the head's weight and bias as an ``.npz`` file."""
    weight, bias = (
        part.detach().cpu().numpy().astype(np.float32) for part in (network.head.weight, network.head.bias)
    )
    return head_bytes(weight, bias)
