"""MedMNIST files (Yang et al., Scientific Data 2023): arrays with their own train, val and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.data.description import read_description
from pneumoscope.data.download import DAMAGED_ZIP
from pneumoscope.data.manifest import SPLITS, Manifest, Record
from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress

__all__ = ["read_npz"]

# PneumoniaMNIST; other sets of the family have other classes.
_LABELS = ("normal", "pneumonia")
# What numpy raises besides on bytes that are not an archive of arrays.
_DAMAGED = (*DAMAGED_ZIP, MemoryError)


def read_npz(path: str | Path, out_dir: str | Path, *, progress: Progress | None = None) -> Manifest:
    """Write the images of a PneumoniaMNIST file as PNG and return their manifest.

    The images go to ``OUT/train/normal/00000.png`` and so on, and the manifest to
    ``OUT/manifest.csv``, unless there is one that lists none but these images. The file
    does not identify patients, so each image counts as one: only the split
    that it comes with is known to be by patient. A ``dataset.yaml`` in `out_dir`, else beside the file, is
    read.

    Parameters
    ----------
    path : path-like
        ``pneumoniamnist.npz``, or the larger ``_64``, ``_128`` or ``_224``: arrays
        ``{train,val,test}_images`` of uint8, shape (N, H, W), and ``{train,val,test}_labels``, shape
        (N, 1), 0 normal and 1 pneumonia.
    out_dir : path-like
        Created if absent.
    progress : Progress, optional
        Receives the number of images written, by split, and a line where the name of the file does not say
        which set it is.

    Raises
    ------
    DataError
        If the file is absent, damaged, has other arrays or the name of another set.
    """
    path, out, progress = Path(path), Path(out_dir), progress or Progress()
    name = path.stem.lower()
    if "mnist" in name and "pneumonia" not in name:
        raise DataError(f"{path}: not PneumoniaMNIST by its name; give pneumoniamnist.npz")
    try:
        with path.open("rb") as stream:
            records = _unpack(path, stream, out, progress)
    except KeyError as error:
        raise DataError(f"{path}: not a MedMNIST file ({error.args[0]}); give pneumoniamnist.npz") from error
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise DataError(f"{path}: not a MedMNIST file, or damaged; download it again") from error
    manifest = Manifest(tuple(records), out, read_description(out) or read_description(path.parent))
    if "pneumonia" not in name:
        progress.message(f"{path}: taken for PneumoniaMNIST: label 0 is normal, 1 is pneumonia")
    if not _lists(out / "manifest.csv", manifest):
        manifest.write(out / "manifest.csv")
    return manifest


def _lists(path: Path, manifest: Manifest) -> bool:
    """Return whether a table is a manifest of these images, such as one with another split."""
    if not path.is_file():
        return False
    hashes = {record.path: record.sha256 for record in manifest}
    return all(one.path in hashes and one.sha256 in {"", hashes[one.path]} for one in Manifest.read(path))


def _unpack(path: Path, stream: IO[bytes], out: Path, progress: Progress) -> list[Record]:
    progress.step("unpacking")
    loaded = np.load(stream, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: not a MedMNIST file but a single array; give pneumoniamnist.npz")
    records: list[Record] = []
    with loaded as arrays:
        for split in SPLITS:
            images, labels = arrays[f"{split}_images"], np.ravel(arrays[f"{split}_labels"])
            _check(path, split, images, labels)
            records += progress.collect(_write(out, split, images, labels, path.stem), len(images))
    return records


def _check(path: Path, split: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer]) -> None:
    if not isinstance(images, np.ndarray):  # numpy gives the bytes of a member that is no array
        raise DataError(f"{path}: {split}_images is no array; give pneumoniamnist.npz")
    if images.ndim != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
        raise DataError(f"{path}: {split}_images is {images.dtype} {images.shape}, not grey uint8 (N, H, W)")
    whole = np.issubdtype(labels.dtype, np.integer)
    if not whole or len(labels) != len(images) or not np.isin(labels, range(len(_LABELS))).all():
        raise DataError(f"{path}: {split}_labels does not give 0 or 1 for each image: not PneumoniaMNIST")


def _write(
    out: Path, split: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer], source: str
) -> Iterator[Record]:
    for label in _LABELS:
        (out / split / label).mkdir(parents=True, exist_ok=True)
    height, width = images.shape[1:]
    for number, (image, code) in enumerate(zip(images, labels, strict=True)):
        name = f"{split}/{_LABELS[code]}/{number:05d}.png"
        data = cv2.imencode(".png", image)[1].tobytes()
        (out / name).write_bytes(data)
        yield Record(
            path=name,
            label=_LABELS[code],
            patient_id=f"{split}-{number:05d}",
            split=split,
            sha256=hashlib.sha256(data).hexdigest(),
            width=width,
            height=height,
            source=source,
        )
