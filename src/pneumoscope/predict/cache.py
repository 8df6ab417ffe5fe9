"""A cache of standardised images on disk, so that training decodes and segments each image once.

An entry is found by the sha256 of the file's content and the fingerprint of the pipeline, so that renamed
files are found again, and changed files or settings are not. It holds arrays and JSON only (no pickle). The
least recently used entries are removed when the folder grows beyond its limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import DataError
from pneumoscope.image.lungs import LungField
from pneumoscope.image.standardise import Standardised

__all__ = ["CACHE_VARIABLE", "CachedImage", "ImageCache", "default_cache_folder"]

CACHE_VARIABLE = "PNEUMOSCOPE_CACHE"
"""Environment variable that names the folder of caches."""

DEFAULT_MAX_BYTES = 4_000_000_000
# Pruning removes a little more than it must, so that it is not needed again at once.
KEPT_SHARE = 0.9

SHAPES = "shapes.json"
# RuntimeError and zlib.error: zipfile, where the bytes state another compression or a password.
DAMAGED = (
    *(OSError, ValueError, LookupError, AttributeError, TypeError, EOFError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)

Bytes = npt.NDArray[np.uint8]


def default_cache_folder() -> Path:
    """Return the folder of caches: of `CACHE_VARIABLE`, else ``pneumoscope`` in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pneumoscope"


@dataclass(frozen=True, eq=False, slots=True)
class CachedImage:
    """What the pipeline found out about one file.

    Parameters
    ----------
    facts : dict
        JSON-ready: reasons, message, age and view.
    input : Standardised or None
        The network's input, rounded to 8 bits; None where the image was rejected.
    """

    facts: dict[str, Any]
    input: Standardised | None


class ImageCache:
    """Standardised images in a folder of limited size; may be used from several threads and processes.

    Parameters
    ----------
    folder : Path, optional
        `default_cache_folder` if not given.
    max_bytes : int
        Size that the folder is kept below.

    Raises
    ------
    DataError
        If the folder cannot be made.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = (folder or default_cache_folder()) / "images"
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.folder}: the cache folder cannot be made ({error.strerror}); give another by "
                "--cache, or use --no-cache"
            ) from error
        # Size of the folder; counted when the first entry is stored, which takes a second for 100,000.
        self._bytes: int | None = None

    def key(self, content: bytes, fingerprint: str) -> str:
        """Return the key of a file's content for a pipeline."""
        return hashlib.sha256(hashlib.sha256(content).digest() + fingerprint.encode()).hexdigest()

    def get(self, key: str) -> CachedImage | None:
        """Return an entry, or None where there is none or it is damaged."""
        path = self._path(key)
        try:
            entry = _unpack(_read(path))
        except DAMAGED:
            return None
        with contextlib.suppress(OSError):  # an entry of another user, that may be read only
            os.utime(path)
        return entry

    def put(self, key: str, entry: CachedImage) -> CachedImage:
        """Store an entry and return it as `get` will; where the disk does not allow it, nothing is stored."""
        arrays = _pack(entry)
        path = self._path(key)
        draft = path.with_suffix(f".{secrets.token_hex(4)}.new")
        try:
            path.parent.mkdir(exist_ok=True)
            _write(draft, arrays)
            size = draft.stat().st_size
            draft.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            return _unpack(arrays)
        with self._lock:
            self._bytes = self._size() if self._bytes is None else self._bytes + size
            if self._bytes > self.max_bytes:
                self._prune()
        return _unpack(arrays)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.zip"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return time of last use, size and path of each file, whatever version left it there."""
        found = []
        # Another process may remove any of them at any time.
        with contextlib.suppress(OSError):
            for file in self.folder.glob("*/*"):
                with contextlib.suppress(OSError):
                    stat = file.stat()
                    found.append((stat.st_mtime, stat.st_size, file))
        return found

    def _size(self) -> int:
        return sum(size for _, size, _ in self._entries())

    def _prune(self) -> None:
        entries = sorted(self._entries(), key=lambda entry: entry[0])
        kept = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if kept <= KEPT_SHARE * self.max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                kept -= size
        self._bytes = kept


# Not numpy's format: its header is parsed as Python, which Python before 3.13 cannot do in several threads at
# once ("AST constructor recursion depth mismatch").
def _write(path: Path, arrays: dict[str, Bytes]) -> None:
    """Write arrays of bytes to a zip archive: ``shapes.json``, and the bytes of each by its name."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(SHAPES, json.dumps({name: array.shape for name, array in arrays.items()}))
        for name, array in arrays.items():
            archive.writestr(name, array.tobytes())


def _read(path: Path) -> dict[str, Bytes]:
    with zipfile.ZipFile(path) as archive:
        shapes = json.loads(archive.read(SHAPES))
        return {
            name: np.frombuffer(archive.read(name), np.uint8).reshape(shape) for name, shape in shapes.items()
        }


def _pack(entry: CachedImage) -> dict[str, Bytes]:
    facts: dict[str, Any] = dict(entry.facts)
    arrays: dict[str, Bytes] = {}
    if entry.input is not None:
        facts |= {
            "region": entry.input.region,
            "content": entry.input.content,
            "quarter_turns": entry.input.quarter_turns,
        }
        arrays["pixels"] = _to_bytes(entry.input.pixels)
        if lungs := entry.input.lungs:
            facts["lungs"] = {
                "box": lungs.box,
                "plausible": lungs.plausible,
                "certainty": lungs.certainty,
                "shape": lungs.mask.shape,
            }
            arrays["mask"] = np.packbits(lungs.mask)
            if lungs.view is not None:
                arrays["view"] = _to_bytes(lungs.view)
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    return arrays


def _unpack(arrays: dict[str, Bytes]) -> CachedImage:
    facts = json.loads(arrays["facts"].tobytes())
    if "pixels" not in arrays:
        return CachedImage(facts, None)
    lungs = None
    if found := facts.pop("lungs", None):
        height, width = found["shape"]
        mask = np.unpackbits(arrays["mask"], count=height * width).reshape(height, width).view(np.bool_)
        view = _to_floats(arrays["view"]) if "view" in arrays else None
        lungs = LungField(mask, tuple(found["box"]), found["plausible"], found["certainty"], view)
    region, content = tuple(facts.pop("region")), tuple(facts.pop("content"))
    pixels, turns = _to_floats(arrays["pixels"]), facts.pop("quarter_turns")
    return CachedImage(facts, Standardised(pixels, region, content, lungs, turns))


def _to_bytes(values: npt.NDArray[np.float32]) -> Bytes:
    return np.rint(values * 255).astype(np.uint8)


def _to_floats(values: Bytes) -> npt.NDArray[np.float32]:
    return values.astype(np.float32) / np.float32(255)
