"""Public data sets: download, checksum, description, and conversion to a manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.data.description import read_description, write_description
from pneumoscope.data.download import download, unzip_images
from pneumoscope.data.folder import scan
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.medmnist import read_npz
from pneumoscope.domain import DatasetDescription, Population, ViewPosition
from pneumoscope.errors import DataError, DownloadError
from pneumoscope.parallel import Progress

__all__ = ["PNEUMONIAMNIST_SIZES", "SOURCES", "Source", "describe", "fetch"]

_CHILDREN = Population("children", (1, 5), (ViewPosition.AP.value,))
_HOSPITAL = "Guangzhou Women and Children's Medical Center"
_GRADING = "graded by two physicians, test images checked by a third"


@dataclass(frozen=True, slots=True)
class Source:
    """One archive of a public data set.

    Parameters
    ----------
    url, filename : str
        Address and file name of the archive.
    checksum : str or None
        As its publisher states it, ``md5:`` and hexadecimal digest; None where none is published.
    description : DatasetDescription
        Population, hospital, labels, licence and citation; the content of its ``dataset.yaml``.
    """

    url: str
    filename: str
    checksum: str | None
    description: DatasetDescription


_KERMANY = Source(
    url=(
        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
    ),
    filename="ChestXRay2017.zip",
    checksum=None,
    description=DatasetDescription(
        name="Chest X-Ray Images (Pneumonia)",
        population=_CHILDREN,
        hospital=_HOSPITAL,
        label_source=_GRADING,
        licence="CC BY 4.0",
        citation="Kermany et al., Cell 2018; Mendeley Data, version 2, doi:10.17632/rscbjbr9sj.2",
    ),
)

_PNEUMONIAMNIST_MD5 = {
    28: "28209eda62fecd6e6a2d98b1501bb15f",
    64: "8f4eceb4ccffa70c672198ea285246c6",
    128: "05b46931834c231683c68f40c47b2971",
    224: "d6a3c71de1b945ea11211b03746c1fe1",
}
PNEUMONIAMNIST_SIZES = tuple(_PNEUMONIAMNIST_MD5)
"""Widths and heights in pixels that PneumoniaMNIST is published in."""


def _pneumoniamnist(size: int) -> Source:
    filename = "pneumoniamnist.npz" if size == 28 else f"pneumoniamnist_{size}.npz"
    return Source(
        url=f"https://zenodo.org/records/10519652/files/{filename}?download=1",
        filename=filename,
        checksum=f"md5:{_PNEUMONIAMNIST_MD5[size]}",
        description=DatasetDescription(
            name="PneumoniaMNIST",
            population=_CHILDREN,
            hospital=_HOSPITAL,
            label_source=_GRADING,
            licence="CC BY 4.0",
            citation=(
                "Yang et al., Scientific Data 2023; Zenodo, doi:10.5281/zenodo.10519652; "
                "images of Kermany et al., Cell 2018"
            ),
        ),
    )


SOURCES = ("kermany", "pneumoniamnist")
"""Names that `fetch` accepts."""


def fetch(
    name: str,
    out: str | Path,
    *,
    size: int | None = None,
    file: str | Path | None = None,
    base_url: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Download a public data set, check it, unpack it and write its ``dataset.yaml`` and manifest.

    May be repeated: a broken download continues, and existing files, ``dataset.yaml`` among them, are kept.

    Parameters
    ----------
    name : {"kermany", "pneumoniamnist"}
        ``kermany`` is 5,856 paediatric chest radiographs at full size (1.2 GB to download) in the
        official folders ``train`` and ``test``; ``pneumoniamnist`` is the same set made small and
        square, with its own train, val and test.
    out : path-like
        Folder for the archive, the images, ``dataset.yaml`` and ``manifest.csv``.
    size : {28, 64, 128, 224}, optional
        Width and height of the images of ``pneumoniamnist``; 28 by default.
    file : path-like, optional
        The archive, where it was downloaded by other means; nothing is downloaded then.
    base_url : str, optional
        A mirror: folder that holds the archive under its usual name.
    progress : Progress, optional
        Receives the steps: bytes downloaded, images unpacked, files hashed.

    Returns
    -------
    Manifest
        With the published split.

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
        (progress or Progress()).step("checking the archive")
        _verify(archive, source)
        again = f"give the complete {source.filename}"
    else:
        archive, again = out / source.filename, "delete it and its .sha256 and fetch again"
        url = f"{base_url.rstrip('/')}/{source.filename}" if base_url else source.url
        download(url, archive, checksum=source.checksum, progress=progress)
    if name == "kermany" and not unzip_images(archive, out, again=again, progress=progress):
        raise DataError(f"{archive}: holds no image; it is not {source.filename}")
    if read_description(out) is None:
        write_description(out, source.description)
    if name == "pneumoniamnist":
        return read_npz(archive, out, progress=progress)
    manifest = scan(out, progress=progress)
    manifest.write(out / "manifest.csv")
    return manifest


def describe(name: str, size: int | None) -> Source:
    """Return address, checksum and description of a data set.

    Raises
    ------
    DataError
        If the name or the size is unknown.
    """
    if name not in SOURCES:
        raise DataError(f"data set '{name}': choose {' or '.join(SOURCES)}")
    if name == "kermany":
        if size is not None:
            raise DataError("data set 'kermany' is published at full size only; leave the size out")
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
    algorithm, _, expected = source.checksum.partition(":")
    try:
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{archive}: cannot be read ({error.strerror}); check its permissions") from error
    if digest != expected:
        raise DownloadError(
            f"{archive}: is not {source.filename} as published ({algorithm} {digest}); download it again"
        )
