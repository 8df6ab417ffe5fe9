"""From trained weights to a bundle."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

import pneumoscope
from pneumoscope.model.bundle import Bundle, head_bytes, write_bundle
from pneumoscope.model.lungs import LUNGS_FILE
from pneumoscope.model.manifest import BundleManifest, GateLimits, Provenance
from pneumoscope.training.networks import Network
from pneumoscope.training.onnx_export import export_onnx
from pneumoscope.training.quantise import quantise
from pneumoscope.training.recipe import Recipe

__all__ = ["export_bundle"]

# Enough that the widest of their activations is no chance.
RANGE_IMAGES = 256


def export_bundle(
    network: Network,
    recipe: Recipe,
    folder: Path,
    *,
    provenance: Provenance,
    lungs: Path | None = None,
    gate: GateLimits | None = None,
    seen: npt.NDArray[np.uint8] | None = None,
) -> Bundle:
    """Write a network as a bundle, uncalibrated, with one operating point at 0.5.

    Parameters
    ----------
    network : Network
        Trained as `recipe` says.
    folder : Path
        The bundle's folder.
    provenance : Provenance
        Recipe, code version and date are filled in here.
    lungs : Path, optional
        The lung segmenter, needed where the recipe's input spec needs one.
    gate : GateLimits, optional
    seen : ndarray of uint8, shape (N, 1, S, S), optional
        Training images as the network saw them, needed where the recipe asks for 8 bits.

    Raises
    ------
    DataError
        If 8 bits are asked for and there are no images.
    PneumoscopeError
        If the exported network differs from the trained one.
    """
    stamped = provenance.model_copy(
        update={
            "recipe": recipe.name,
            "recipe_sha256": recipe.sha256,
            "precision": recipe.precision,
            "code_version": pneumoscope.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )
    manifest = BundleManifest(
        name=recipe.name,
        findings=recipe.classes,
        input=recipe.input,
        gate=gate or GateLimits(),
        provenance=stamped,
    )
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.onnx"
        export_onnx(network, model, size=recipe.input.size, outputs=("logits", "features"))
        if recipe.precision == "int8":
            model = quantise(model, model.with_name("eight-bits.onnx"), _sample(seen, recipe.seed))
        files: dict[str, bytes | Path] = {"model.onnx": model, "head.npz": _head(network)}
        if lungs is not None and recipe.input.needs_lungs:
            files[LUNGS_FILE] = lungs
        return write_bundle(folder, manifest, files)


def _sample(seen: npt.NDArray[np.uint8] | None, seed: int) -> npt.NDArray[np.float32]:
    """Draw the images on which the ranges of the activations are measured, grey levels in [0, 1]."""
    if seen is None:
        return np.zeros((0, 1, 1, 1), np.float32)
    count = min(RANGE_IMAGES, len(seen))
    drawn = np.random.default_rng(seed).choice(len(seen), count, replace=False)
    images: npt.NDArray[np.float32] = seen[drawn].astype(np.float32) / np.float32(255)
    return images


def _head(network: Network) -> bytes:
    """Return the head's weight and bias as an ``.npz`` file."""
    weight, bias = (
        part.detach().cpu().numpy().astype(np.float32) for part in (network.head.weight, network.head.bias)
    )
    return head_bytes(weight, bias)
