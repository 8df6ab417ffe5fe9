"""The network of a finished run in another format, compared with the run's bundle on real X-rays."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.folder import load
from pneumoscope.data.samples import read_samples, samples_folder
from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.experiment.bundling import WEIGHTS_FILE
from pneumoscope.experiment.plan import RECIPE_FILE
from pneumoscope.experiment.run_folder import SPLIT_FILE
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.parallel import CHUNK, Progress
from pneumoscope.predict.calibration import calibrate, target_probability
from pneumoscope.predict.inputs import InputItem, expand, input_items
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.training.export import RANGE_IMAGES
from pneumoscope.training.formats import FORMATS, Run, open_network, run_network, write_network, written_files
from pneumoscope.training.networks import Network, build_network, load_weights
from pneumoscope.training.onnx_export import TOLERANCE
from pneumoscope.training.recipe import Recipe, load_recipe

__all__ = ["CHECKED_IMAGES", "ExportedNetwork", "export_network"]

CHECKED_IMAGES = 200
ROUNDED_TOLERANCE = 1e-2  # of the probability, where the weights of the bundle are rounded to 16 bits
LEAST_RANGES = 16  # images for the ranges of activations to mean something

Floats = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ExportedNetwork:
    """A network in another format, and how far it is from the bundle of its run.

    Parameters
    ----------
    path : Path
    bytes : int
        Of all its files.
    target : str
        The finding whose probability was compared.
    from_bundle : float
        Largest difference of its calibrated probability from the bundle's, in [0, 1].
    mean_from_bundle : float
        Mean absolute difference from the bundle's.
    from_network : float
        Largest difference from the trained network in float32, which is another one where the bundle itself
        has 8 bits.
    images : int
        Number of X-rays that were compared.
    checked_on : str
        Which ones, in words.
    bundle_precision : str
        Of the bundle's network: ``float32``, ``float16`` or ``int8``.
    """

    path: Path
    bytes: int
    target: str
    from_bundle: float
    mean_from_bundle: float
    from_network: float
    images: int
    checked_on: str
    bundle_precision: str


@dataclass(frozen=True, eq=False)
class _FinishedRun:
    folder: Path
    recipe: Recipe
    bundle: Bundle
    network: Network

    @classmethod
    def of(cls, folder: Path) -> _FinishedRun:
        if not (folder / RECIPE_FILE).is_file():
            raise DataError(f"{folder}: no {RECIPE_FILE}; give the run folder made by 'pneumoscope train'")
        if not (folder / WEIGHTS_FILE).is_file():
            raise DataError(
                f"{folder}: no {WEIGHTS_FILE}, so the training is not finished; continue it with "
                "'train --resume'"
            )
        recipe = load_recipe(str(folder / RECIPE_FILE))
        network = build_network(recipe.network, len(recipe.output_classes), pretrained=False)
        network = load_weights(network, folder / WEIGHTS_FILE).eval()
        return cls(folder, recipe, load_bundle(folder), network)

    @property
    def precision(self) -> str:
        return self.bundle.manifest.provenance.precision

    @property
    def has_int8(self) -> bool:
        return self.precision == "int8"

    def items(self, side: str, count: int) -> list[InputItem]:
        """Return images of one split that are still there, spread over it."""
        path = self.folder / SPLIT_FILE
        if not path.is_file():
            return []
        manifest = load(path)
        there = [one for one in manifest.subset(side).records if manifest.resolve(one).is_file()]
        return _spread(input_items(manifest.with_records(there)), count)

    def inputs(self, items: Sequence[InputItem], progress: Progress) -> Floats:
        """Return standardised images, shape (N, 1, S, S), without those that cannot be read."""
        # What the gate would reject is compared as well.
        pipeline = Pipeline.of_bundle(self.bundle, force=True)
        images: list[Floats] = []
        for start in range(0, len(items), CHUNK):
            prepared = pipeline.read(items[start : start + CHUNK])
            images.extend(one.input.pixels for one in prepared if one.input is not None)
            progress.update(min(start + CHUNK, len(items)), len(items))
        size = self.recipe.input.size
        return np.stack(images) if images else np.zeros((0, 1, size, size), np.float32)

    def p_target(self, run: Run, images: Floats) -> Probabilities:
        """Return the target's probability, shape (N,), by the bundle's default calibration."""
        logits = [run(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
        manifest = self.bundle.manifest
        calibrator = manifest.calibration_for(None).calibrator
        probabilities = calibrate(np.concatenate(logits), calibrator, manifest.target_mask)
        p: Probabilities = target_probability(probabilities, manifest.target_mask)
        return p


def export_network(
    run: Path,
    out: Path,
    to: str,
    *,
    check: Path | None = None,
    ranges: Path | None = None,
    progress: Progress | None = None,
) -> ExportedNetwork:
    """Write the network of a finished run in another format and compare it with the bundle on X-rays.

    Parameters
    ----------
    run : Path
        A run folder.
    out : Path
        The file to write.
    to : str
        One of `pneumoscope.training.formats.FORMATS`. Where the bundle has 8 bits already, ``onnx-int8`` is
        its network; every other format is the trained network in float32.
    check : Path, optional
        Folder or manifest of X-rays to compare on; if not given, up to `CHECKED_IMAGES` of the run's split
        ``val`` that are still there, or otherwise the sample images of the package.
    ranges : Path, optional
        Folder or manifest on which ``onnx-int8`` measures its activations; training images of the run if not
        given. Not for a bundle that has 8 bits.

    Raises
    ------
    DataError
        If there is no image to compare on, or there are too few to measure activations on.
    PneumoscopeError
        If `out` has another suffix than that of the format; if `ranges` would have no effect; or a float
        format differs by more than `TOLERANCE` from the trained network, or from a bundle in float32, or by
        more than `ROUNDED_TOLERANCE` from one with weights of 16 bits. Nothing is written then.
    """
    progress = progress or Progress()
    if out.suffix != FORMATS[to]:
        raise PneumoscopeError(f"{out}: name the file of this format so that it ends in {FORMATS[to]}")
    finished = _FinishedRun.of(run)
    if ranges is not None and to == "onnx-int8" and finished.has_int8:
        raise PneumoscopeError(
            f"{run}: its bundle has 8 bits already, with ranges of its own; leave --ranges out"
        )
    progress.step("reading X-rays to compare on")
    images, checked_on = _check_images(finished, check, progress)
    try:
        # Written beside first: where it fails or differs, `out` has no file, or the one it had.
        place = tempfile.TemporaryDirectory(prefix=".new-", dir=out.parent)
    except OSError as error:
        raise PneumoscopeError(f"{out}: cannot be written ({error.strerror}); name another file") from error
    with place:
        draft = Path(place.name, out.name)
        progress.step(f"writing {to}")
        _write(finished, draft, to, ranges, progress)
        progress.step("comparing")
        result = _compared(finished, draft, to, images)
        files = written_files(draft, to)
        size = sum(file.stat().st_size for file in files)
        for file in files:
            file.replace(out.with_name(file.name))
    return replace(result, path=out, bytes=size, checked_on=checked_on)


def _check_images(finished: _FinishedRun, check: Path | None, progress: Progress) -> tuple[Floats, str]:
    if check is not None:
        items, words = list(expand(check)), str(check)
    elif items := finished.items("val", CHECKED_IMAGES):
        words = "split val"
    else:
        folder = samples_folder()
        items, words = [InputItem(str(folder / one.path)) for one in read_samples()], "the sample images"
    images = finished.inputs(items, progress)
    if not len(images):
        raise DataError(f"{check or finished.folder}: no X-ray to compare on can be read; correct --check")
    return images, words


def _spread(items: list[InputItem], count: int) -> list[InputItem]:
    """Return so many items from first to last, or all if there are fewer."""
    if len(items) <= count:
        return items
    return [items[position] for position in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _write(finished: _FinishedRun, out: Path, to: str, ranges: Path | None, progress: Progress) -> None:
    if to == "onnx-int8" and finished.has_int8:
        try:
            out.write_bytes(finished.bundle.model_path.read_bytes())
        except OSError as error:
            raise PneumoscopeError(
                f"{out}: cannot be written ({error.strerror}); name another file"
            ) from error
        return
    measured = None
    if to == "onnx-int8":
        items = (
            _spread(list(expand(ranges)), RANGE_IMAGES) if ranges else finished.items("train", RANGE_IMAGES)
        )
        measured = finished.inputs(items, progress)
        if len(measured) < LEAST_RANGES:
            raise DataError(
                f"{ranges or finished.folder}: {len(measured)} images to measure activations on are too few; "
                f"give --ranges with {LEAST_RANGES} or more X-rays like those of the training"
            )
    write_network(finished.network, finished.recipe, to, out, ranges=measured)


def _compared(finished: _FinishedRun, out: Path, to: str, images: Floats) -> ExportedNetwork:
    bundle = finished.bundle
    runtime = OnnxRuntime(bundle.model_path)
    found = finished.p_target(open_network(out, to, finished.recipe), images)
    of_bundle = finished.p_target(lambda batch: runtime(batch, ("logits",))[0], images)
    of_network = finished.p_target(run_network(finished.network), images)
    from_network = float(np.abs(found - of_network).max())
    from_bundle = float(np.abs(found - of_bundle).max())
    # Written so that NaN fails as well.
    if to != "onnx-int8" and not from_network <= TOLERANCE:
        raise PneumoscopeError(
            f"{out.name}: would differ from the network by {from_network:.1e} in the probability of "
            f"{bundle.manifest.target.name}; it is not written. Use the bundle"
        )
    least = ROUNDED_TOLERANCE if finished.precision == "float16" else TOLERANCE
    if to != "onnx-int8" and not (finished.has_int8 or from_bundle <= least):
        raise PneumoscopeError(
            f"{finished.folder / WEIGHTS_FILE}: not the weights of the bundle beside it (the probability of "
            f"{bundle.manifest.target.name} differs by {from_bundle:.1e}); repeat 'train --resume'"
        )
    return ExportedNetwork(
        out,
        0,
        bundle.manifest.target.name,
        from_bundle,
        float(np.abs(found - of_bundle).mean()),
        from_network,
        len(images),
        "",
        finished.precision,
    )
