"""A folder of links to a few images, so that a benchmark runs long enough to be steady."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

__all__ = ["SUFFIXES", "link_copies"]

SUFFIXES = {".jpeg", ".jpg", ".png"}
"""Images that benchmarks use: JPEG and PNG, which the peers read as well."""


def link_copies(originals: Path, count: int, folder: Path) -> Path:
    """Fill `folder` with `count` links to the images under `originals`, each used in turn.

    Raises
    ------
    SystemExit
        If there is no image.
    """
    images = sorted(path for path in originals.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not images:
        raise SystemExit(f"{originals}: no JPEG or PNG image in this folder")
    folder.mkdir(parents=True)
    for number, image in enumerate(islice(cycle(images), count)):
        (folder / f"{number:07}{image.suffix.lower()}").symlink_to(image.resolve())
    return folder
