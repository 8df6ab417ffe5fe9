"""Many pictures out of a few: a folder of links, so that a benchmark reaches its steady state."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

__all__ = ["PICTURE_SUFFIXES", "link_copies"]

PICTURE_SUFFIXES = {".jpeg", ".jpg", ".png"}


def link_copies(originals: Path, count: int, folder: Path) -> Path:
    """Fill `folder` with `count` links to the pictures under `originals`, each used in turn.

    Raises
    ------
    SystemExit
        If there is no picture.
    """
    pictures = sorted(path for path in originals.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise SystemExit(f"{originals}: no JPEG or PNG picture in this folder")
    folder.mkdir(parents=True)
    for number, picture in enumerate(islice(cycle(pictures), count)):
        (folder / f"{number:07}{picture.suffix.lower()}").symlink_to(picture.resolve())
    return folder
