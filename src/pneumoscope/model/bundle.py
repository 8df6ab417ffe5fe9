"""The bundle: a folder that holds everything a trained model is.

::

    model.onnx    [N, 1, H, W] float32 in [0, 1] → logits [N, K], features [N, D, h, w]
    lungs.onnx    the lung segmenter, where the input spec needs one
    head.npz      weight [K, D] and bias [K] of the pooled-linear head, for class activation maps; and, once
                  calibrated, background [D, h, w]: mean features of chests without the target, to draw maps
                  against
    gate.npz      mean [D] and whitener [D, D] of descriptions of chest radiographs, and the frontal-chest
                  classifier, where the gate was fitted
    populations.npz  classifier of the populations, where training images of several were at hand
    views.npz     classifier of the view, where images of several views were at hand
    bundle.json   `BundleManifest`, format 2; format 1 is upgraded when it is read
    card.md       the model card

Training writes it, everything else reads it. ``bundle.json`` lists the sha256 of every file, which binds the
thresholds to the network they were chosen for: a bundle whose hashes disagree does not load. Each step that
makes a bundle (export, calibration, evaluation) writes it once and sets its `state`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pneumoscope.errors import BundleError
from pneumoscope.model.lungs import LUNGS_FILE
from pneumoscope.model.manifest import CARD_FILE, FORMAT_VERSION, HEAD_FILE, MODEL_FILE, BundleManifest
from pneumoscope.model.upgrade import upgrade_format_1

__all__ = [
    "BUNDLE_FOLDER",
    "GATE_FILE",
    "MANIFEST_FILE",
    "POPULATIONS_FILE",
    "VIEWS_FILE",
    "Bundle",
    "copy_bundle",
    "default_bundle_path",
    "head_bytes",
    "input_hash",
    "load_bundle",
    "sha256_of",
    "write_bundle",
]

MANIFEST_FILE = "bundle.json"
GATE_FILE = "gate.npz"
POPULATIONS_FILE, VIEWS_FILE = "populations.npz", "views.npz"
FeatureClassifierArrays = tuple[tuple[str, ...], dict[str, npt.NDArray[np.float32]]]
"""P names, and ``mean`` and ``scale``, shape (F,), ``weight``, shape (P, F), ``bias``, shape (P,)."""
_CLASSIFIER = ("mean", "scale", "weight", "bias")
BUNDLE_FOLDER = "bundle"
"""Where a run folder has its bundle."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: BundleManifest

    @property
    def model_path(self) -> Path:
        """The network."""
        return self.path / MODEL_FILE

    @property
    def lungs_path(self) -> Path | None:
        """The lung segmenter, where the input spec needs one."""
        return self.path / LUNGS_FILE if self.manifest.input.needs_lungs else None

    @property
    def card(self) -> str:
        """The model card in Markdown, or an empty string."""
        card = self.path / CARD_FILE
        return card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""

    @property
    def identity(self) -> str:
        """Name and the first 12 digits of the network's hash, which identify the model in results.

        A recalibrated bundle has the network of its parent; ``+`` and 8 digits of the hash of its calibration
        tell the two apart.
        """
        network = f"{self.manifest.name}@{self.manifest.files[MODEL_FILE][:12]}"
        if self.manifest.provenance.parent is None:
            return network
        return f"{network}+{self.manifest.calibration_sha256[:8]}"

    @cached_property
    def _head(self) -> dict[str, npt.NDArray[Any]]:
        return _arrays(self.path / HEAD_FILE, "weight")

    @cached_property
    def _gate(self) -> dict[str, npt.NDArray[Any]]:
        return _arrays(self.path / GATE_FILE)

    @cached_property
    def background(self) -> npt.NDArray[np.float32] | None:
        """Mean features of chests without the target, (D, h, w), that maps are drawn against; or None."""
        background = self._head.get("background")
        if background is not None and (background.ndim != 3 or len(background) != self.head_weight.shape[1]):
            raise BundleError(f"{self.path / HEAD_FILE}: its background fits no head; calibrate it again")
        return background

    @cached_property
    def gate_statistics(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """Mean, shape (D,), and whitener, shape (D, D), of known chests; None where it was not fitted."""
        if self.manifest.gate.max_novelty is None:
            return None
        if GATE_FILE not in self.manifest.files:
            raise BundleError(
                f"{self.path}: novelty is limited but there is no {GATE_FILE}; fit the gate again"
            )
        mean, whitener, lungs = (self._gate.get(name) for name in ("mean", "whitener", "lungs"))
        if mean is None or whitener is None or whitener.shape != (mean.size, mean.size):
            raise BundleError(f"{self.path / GATE_FILE}: no mean and whitener of one size; fit it again")
        if str(lungs) != self.manifest.files.get(LUNGS_FILE):
            raise BundleError(f"{self.path / GATE_FILE}: fitted with other lungs.onnx; fit it again")
        return mean, whitener

    @cached_property
    def chest_classifier(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """``mean``, ``scale``, ``weight``, shape (F,), and ``bias`` of the classifier; None without one."""
        if self.manifest.gate.min_chest is None:
            return None
        if any(f"chest_{name}" not in self._gate for name in (*_CLASSIFIER, "network")):
            raise BundleError(f"{self.path}: no chest classifier in {GATE_FILE}; fit the gate again")
        arrays = {name: self._gate[f"chest_{name}"] for name in _CLASSIFIER}
        if len({arrays[name].shape for name in ("mean", "scale", "weight")}) > 1:
            raise BundleError(f"{self.path / GATE_FILE}: its chest classifier fits no features; fit it again")
        network = str(self._gate["chest_network"])
        if network != self.manifest.files[MODEL_FILE]:
            raise BundleError(f"{self.path / GATE_FILE}: fitted with another model.onnx; fit it again")
        return arrays

    @cached_property
    def population_classifier(self) -> FeatureClassifierArrays | None:
        """The classifier of populations; None where the bundle does not estimate the population.

        It may name a population that had too few images for a calibration: the default one is used for its
        images, as it was when the others were fitted.
        """
        return self._feature_classifier(POPULATIONS_FILE)

    @cached_property
    def view_classifier(self) -> FeatureClassifierArrays | None:
        """The classifier of view positions; None where the bundle does not estimate the view."""
        return self._feature_classifier(VIEWS_FILE)

    def _feature_classifier(self, name: str) -> FeatureClassifierArrays | None:
        if name not in self.manifest.files:
            return None
        path = self.path / name
        stored = _arrays(path, *_CLASSIFIER, "names", "network")
        arrays = {name: stored[name] for name in _CLASSIFIER}
        names, network = tuple(stored["names"].tolist()), str(stored["network"])
        size = arrays["mean"].size
        if arrays["scale"].shape != (size,) or arrays["weight"].shape != (len(names), size):
            raise BundleError(f"{path}: its classifier fits no features; calibrate the bundle again")
        if network != self.manifest.files[MODEL_FILE]:
            raise BundleError(f"{path}: fitted for another model.onnx; calibrate again")
        return names, arrays

    @cached_property
    def head_weight(self) -> npt.NDArray[np.float32]:
        """Weights of the pooled-linear head, shape (K, D)."""
        weight = self._head["weight"]
        if weight.ndim != 2 or len(weight) != len(self.manifest.classes):
            raise BundleError(f"{self.path / HEAD_FILE}: not one row of weights per class; export it again")
        return weight

    @property
    def has_head_bias(self) -> bool:
        """Whether the biases of the head are there; early bundles have its weights alone."""
        return "bias" in self._head

    @cached_property
    def head_bias(self) -> npt.NDArray[np.float32]:
        """Biases of the pooled-linear head, shape (K,)."""
        bias: npt.NDArray[np.float32] | None = self._head.get("bias")
        if bias is None or bias.shape != (len(self.manifest.classes),):
            raise BundleError(f"{self.path / HEAD_FILE}: not one bias per class; export it again")
        return bias


def _arrays(path: Path, *names: str) -> dict[str, npt.NDArray[Any]]:
    """Return all arrays of a file of a bundle; `names` are those that it must have.

    Raises
    ------
    BundleError
        If it cannot be read, or one of them is missing.
    """
    try:
        # numpy leaves a file open that it opened itself and cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored.items())
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path}: damaged; copy the whole bundle again, or export it again") from error
    if missing := [name for name in names if name not in arrays]:
        raise BundleError(f"{path}: has no {', '.join(missing)}; export the bundle again")
    return arrays


def head_bytes(
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    background: npt.NDArray[np.float32] | None = None,
) -> bytes:
    """Return the content of ``head.npz``.

    Parameters
    ----------
    weight : ndarray of float32, shape (K, D)
    bias : ndarray of float32, shape (K,)
    background : ndarray of float32, shape (D, h, w), optional
        Mean features of chests without the target.
    """
    arrays = {"weight": weight, "bias": bias} | ({} if background is None else {"background": background})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def default_bundle_path() -> Path:
    """Return the folder of the bundle that ships with the package."""
    return Path(str(resources.files("pneumoscope") / "bundles" / "default"))


def load_bundle(path: Path | str | None = None, *, allow_draft: bool = True) -> Bundle:
    """Read a bundle and verify the hash of every file.

    Parameters
    ----------
    path : Path or str, optional
        The bundle's folder, or a run folder that holds one; the shipped bundle if not given.
    allow_draft : bool
        Whether a bundle may be read whose thresholds were not fitted yet.

    Raises
    ------
    BundleError
        If it is no bundle, of another format version, incomplete, altered, or a draft.
    """
    folder = default_bundle_path() if path is None else Path(path)
    if not (folder / MANIFEST_FILE).is_file() and (folder / BUNDLE_FOLDER / MANIFEST_FILE).is_file():
        folder = folder / BUNDLE_FOLDER
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{folder}: not a bundle (no readable {MANIFEST_FILE}); give a folder made by "
            "'pneumoscope train' or 'pneumoscope export'"
        ) from error
    manifest = _parse(folder / MANIFEST_FILE, text)
    if manifest.state == "draft" and not allow_draft:
        raise BundleError(
            f"{folder}: this bundle is a draft, its thresholds were not fitted; finish its run with "
            "'pneumoscope train ... --resume'"
        )
    _verify(folder, manifest)
    return Bundle(folder, manifest)


def _parse(path: Path, text: str) -> BundleManifest:
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        version = content.get("format_version")
        if version == 1:
            return upgrade_format_1(content)
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise BundleError(
                f"{path}: has format {version}, and this version of Pneumoscope reads up to "
                f"{FORMAT_VERSION}; upgrade Pneumoscope"
            )
        return BundleManifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])  # empty where several parts disagree
        message = first["msg"].removeprefix("Value error, ")
        detail = " ".join((f"{place}: {message}" if place else message).split())
        raise BundleError(f"{path}: {detail}; copy the whole bundle again") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not as its format has it
        detail = " ".join(str(error).split())
        raise BundleError(f"{path}: damaged ({detail}); copy the whole bundle again") from error


def _verify(folder: Path, manifest: BundleManifest) -> None:
    required = {MODEL_FILE, HEAD_FILE} | ({LUNGS_FILE} if manifest.input.needs_lungs else set())
    if missing := required - manifest.files.keys():
        raise BundleError(f"{folder}: bundle.json lists no {', '.join(sorted(missing))}; export it again")
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            raise BundleError(f"{folder}: bundle.json names a file outside the bundle: {name!r}")
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise BundleError(f"{folder}: {name} is missing; copy the whole bundle again") from error
        if found != expected:
            raise BundleError(
                f"{folder}: {name} is not the file this bundle was made with (sha256 differs); "
                "copy the whole bundle again"
            )


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_hash(path: Path | None) -> str | None:
    """Return what identifies a file or a bundle that training starts from; None where there is none."""
    if path and path.is_dir():
        return load_bundle(path).identity
    return sha256_of(path) if path and path.is_file() else None


def write_bundle(
    folder: Path, manifest: BundleManifest, files: Mapping[str, bytes | Path] | None = None
) -> Bundle:
    """Write or update a bundle; files are replaced once all are written, and ``bundle.json`` last.

    Parameters
    ----------
    folder : Path
        Made if absent.
    manifest : BundleManifest
        Its `files` are completed here: the hashes of files that are not replaced are kept.
    files : mapping of file name to bytes or to a Path to copy
        New content.

    Raises
    ------
    BundleError
        If the folder cannot be written.
    """
    given = files or {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # All is written beside first, so that a full disk leaves the bundle that was there.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as place:
            drafts = {name: Path(place, name) for name in given}
            for name, content in given.items():
                drafts[name].write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            kept = {name: sha for name, sha in manifest.files.items() if (folder / name).is_file()}
            hashes = kept | {name: sha256_of(draft) for name, draft in drafts.items()}
            complete = manifest.model_copy(update={"files": dict(sorted(hashes.items()))})
            text = json.dumps(complete.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
            written = Path(place, MANIFEST_FILE)
            written.write_text(text, encoding="utf-8")
            for name, draft in drafts.items():
                draft.replace(folder / name)
            written.replace(folder / MANIFEST_FILE)
    except OSError as error:
        message = f"{folder}: the bundle cannot be written ({error.strerror}); name another folder"
        raise BundleError(message) from error
    return Bundle(folder, complete)


def copy_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Copy a bundle's files into another folder and verify the copy.

    Raises
    ------
    BundleError
        If the folder holds a bundle already, or a file is not the one that was verified when it was loaded.
    """
    if (folder / MANIFEST_FILE).exists():
        raise BundleError(f"{folder}: holds a bundle already; give another folder")
    listed = bundle.manifest.files
    copy = write_bundle(folder, bundle.manifest, {name: bundle.path / name for name in listed})
    if changed := [name for name, sha in listed.items() if copy.manifest.files[name] != sha]:
        (folder / MANIFEST_FILE).unlink()
        raise BundleError(f"{bundle.path}: {', '.join(changed)} changed while it was copied; export again")
    return copy
