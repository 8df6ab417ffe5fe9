"""Public data sets: where they are, how they are checked, how they become a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.data.download import download
from pneumoscope.data.manifest import Manifest, scan
from pneumoscope.data.medmnist import read_npz
from pneumoscope.data.unpack import unzip_images
from pneumoscope.errors import DataError, DownloadError

__all__ = ["PNEUMONIAMNIST_SIZES", "SOURCES", "Source", "describe", "fetch"]

Progress = Callable[[str, int, int | None], None]
"""Called with what is going on (``download`` or ``unpack``), how far it is, and the total if known."""


@dataclass(frozen=True, slots=True)
class Source:
    """One archive of a public data set.

    Parameters
    ----------
    name : str
        Of the data set.
    url, filename : str
        Where the archive is and what it is called.
    checksum : str or None
        As its publisher states it, ``md5:`` and hexadecimal digest; None where none is published.
    licence, reference : str
        To be named by whoever uses the set.
    """

    name: str
    url: str
    filename: str
    checksum: str | None
    licence: str
    reference: str


_KERMANY = Source(
    name="kermany",
    url=(
        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
    ),
    filename="ChestXRay2017.zip",
    checksum=None,
    licence="CC BY 4.0",
    reference="Kermany et al., Cell 2018; Mendeley Data, version 2, doi:10.17632/rscbjbr9sj.2",
)

_PNEUMONIAMNIST_MD5 = {
    28: "28209eda62fecd6e6a2d98b1501bb15f",
    64: "8f4eceb4ccffa70c672198ea285246c6",
    128: "05b46931834c231683c68f40c47b2971",
    224: "d6a3c71de1b945ea11211b03746c1fe1",
}
PNEUMONIAMNIST_SIZES = tuple(_PNEUMONIAMNIST_MD5)
"""Sides in pixels that PneumoniaMNIST comes in."""


def _pneumoniamnist(size: int) -> Source:
    filename = "pneumoniamnist.npz" if size == 28 else f"pneumoniamnist_{size}.npz"
    return Source(
        name="pneumoniamnist",
        url=f"https://zenodo.org/records/10519652/files/{filename}?download=1",
        filename=filename,
        checksum=f"md5:{_PNEUMONIAMNIST_MD5[size]}",
        licence="CC BY 4.0",
        reference="Yang et al., Scientific Data 2023; Zenodo, doi:10.5281/zenodo.10519652",
    )


SOURCES = ("kermany", "pneumoniamnist")
"""Names that `fetch` knows."""


def fetch(
    name: str,
    out: str | Path,
    *,
    size: int | None = None,
    file: str | Path | None = None,
    base_url: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Get a public data set, check it and unpack it.

    May be repeated: a broken download goes on where it broke, and what is there is not fetched again.

    Parameters
    ----------
    name : {"kermany", "pneumoniamnist"}
        ``kermany`` is 5,856 paediatric chest radiographs at full size (1.2 GB to download) in the
        official folders ``train`` and ``test``; ``pneumoniamnist`` is the same set made small and
        square, with its own train, val and test.
    out : path-like
        Folder for the archive, the images and ``manifest.csv``.
    size : {28, 64, 128, 224}, optional
        Side of the images of ``pneumoniamnist``; 28 by default.
    file : path-like, optional
        The archive, where it was got in another way; nothing is downloaded then.
    base_url : str, optional
        A mirror: folder that holds the archive under its usual name.
    progress : callable, optional
        Called with ``download`` or ``unpack``, how far it is, and the total if known.

    Returns
    -------
    Manifest
        With the split that the set comes with.

    Raises
    ------
    DataError
        If the name or size is unknown, or the archive is damaged.
    DownloadError
        If the archive cannot be downloaded, or is not the published one.
    MissingExtraError
        If the packages for downloading are not installed.
    """
    source, out = describe(name, size), Path(out)
    if file is not None:
        archive = Path(file)
        _verify(archive, source)
    else:
        archive = out / source.filename
        url = f"{base_url.rstrip('/')}/{source.filename}" if base_url else source.url
        report = (lambda done, total: progress("download", done, total)) if progress else None
        download(url, archive, checksum=source.checksum, progress=report)
    if name == "pneumoniamnist":
        return read_npz(archive, out)
    report = (lambda done, total: progress("unpack", done, total)) if progress else None
    if not unzip_images(archive, out, progress=report):
        raise DataError(f"{archive}: holds no image; it is not {source.filename}")
    manifest = scan(out)
    manifest.write(out / "manifest.csv")
    return manifest


def describe(name: str, size: int | None) -> Source:
    """Return where a set comes from and on what terms; raises DataError for an unknown name or size."""
    if name not in SOURCES:
        raise DataError(f"data set '{name}': choose {' or '.join(SOURCES)}")
    if name == "kermany":
        if size is not None:
            raise DataError("data set 'kermany' comes at full size only; leave the size out")
        return _KERMANY
    if size is not None and size not in PNEUMONIAMNIST_SIZES:
        raise DataError(
            f"pneumoniamnist at {size} pixels: choose {', '.join(map(str, PNEUMONIAMNIST_SIZES))}"
        )
    return _pneumoniamnist(size or 28)


def _verify(archive: Path, source: Source) -> None:
    if not archive.is_file():
        raise DataError(f"{archive}: no such file; give the downloaded {source.filename}")
    if source.checksum is None:
        return
    algorithm, _, wanted = source.checksum.partition(":")
    try:
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{archive}: cannot be read ({error.strerror})") from error
    if digest != wanted:
        raise DownloadError(
            f"{archive}: is not {source.filename} as published ({algorithm} {digest}); get it again"
        )
