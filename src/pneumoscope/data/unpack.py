"""Unpacking archives that came from elsewhere."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pneumoscope.errors import DataError

__all__ = ["unzip_images"]

_SUFFIXES = (".jpeg", ".jpg", ".png")
_MAX_MEMBERS = 50_000
_MAX_MEMBER_BYTES = 100 * 2**20
_MAX_TOTAL_BYTES = 10 * 2**30
_CHUNK = 1 << 20


def unzip_images(
    archive: Path,
    out: Path,
    *,
    max_total: int = _MAX_TOTAL_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Unpack the images of a ZIP archive, keeping its folders.

    Everything else in it is left out. Images that are there already at their full size are kept, so
    that an interrupted run goes on. Sizes are counted as the bytes come, not believed from the header.

    Parameters
    ----------
    archive, out : Path
        The ZIP file and the folder to unpack into.
    max_total : int
        Bytes that all images together may have; 100 MB each and 50,000 images at most in any case.
    progress : callable, optional
        Called with the number of images done and their total.

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    DataError
        If the archive is damaged, too large, or names a path outside of `out`; or nothing can be
        written.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if _is_image(member)]
            if len(members) > _MAX_MEMBERS:
                raise DataError(f"{archive}: holds more than {_MAX_MEMBERS:,} images; not unpacked")
            targets = [_target(archive, out, member.filename) for member in members]
            total = 0
            for done, (member, target) in enumerate(zip(members, targets, strict=True), start=1):
                allowed = min(_MAX_MEMBER_BYTES, max_total - total)
                total += _extract(packed, member, target, archive, allowed)
                if progress:
                    progress(done, len(members))
            return len(members)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DataError(
            f"{archive}: damaged or no ZIP archive ({error}); delete it and its .sha256 and fetch again"
        ) from error
    except OSError as error:
        name = error.filename or archive
        raise DataError(f"{name}: cannot be read or written ({error.strerror or error})") from error


def _is_image(member: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(member.filename).parts
    # macOS packs a shadow "._name" of every file.
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in parts)
    return not member.is_dir() and not hidden and member.filename.lower().endswith(_SUFFIXES)


def _target(archive: Path, out: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise DataError(f"{archive}: names a path outside of the folder ({name!r}); not unpacked")
    return out.joinpath(*path.parts)


def _extract(
    packed: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, archive: Path, allowed: int
) -> int:
    if target.is_file() and target.stat().st_size == member.file_size:
        return member.file_size
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    size = 0
    try:
        with packed.open(member) as source, partial.open("wb") as sink:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > allowed:
                    raise DataError(f"{archive}: {member.filename} is too large unpacked; not unpacked")
                sink.write(chunk)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return size
