"""The images of a folder: the one walk that prediction and data sets share, and its rules of names.

Linked folders are followed, each folder is listed once, and what is an image but cannot be an input is
yielded with the reason. Hidden files, the shadow files of operating systems, masks beside their images and
the images that Pneumoscope drew itself are left out; the last two with a line that says so. Batch applies the
same rules of names to object stores.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePath

from pneumoscope.errors import Reason, UnreadableImageError, counted
from pneumoscope.image.decode import IMAGE_SUFFIXES, format_of, looks_like_image, read_head
from pneumoscope.image.foreign import foreign_format
from pneumoscope.parallel import Progress

__all__ = [
    "DICOMDIR",
    "DICOMDIR_DETAIL",
    "OWN_HEAD_BYTES",
    "OWN_OUTPUT",
    "SOFTWARE",
    "LoggedMessages",
    "has_image_suffix",
    "has_images_and_masks",
    "is_ignored",
    "is_own_output",
    "left_out_lines",
    "mask_folders",
    "special_file",
    "walk",
]

log = logging.getLogger(__name__)

SOFTWARE = b"Software\0Pneumoscope"
"""Content of the PNG text chunk (PNG 11.3.4.3) that marks an image as drawn by Pneumoscope."""

OWN_OUTPUT = "An image that Pneumoscope drew: give the X-ray that it was drawn from."
"""Why such an image is rejected."""

OWN_HEAD_BYTES = 33 + 8 + len(SOFTWARE)
"""Signature and header of a PNG, then the head of the first chunk and its content."""

# Of a DICOM file, up to Manufacturer: preamble, file meta information, then a few UIDs, dates and times.
OWN_DICOM_BYTES = 2048
# SOP Class UID: Secondary Capture Image Storage; then Manufacturer. Both with their lengths.
OWN_DICOM = re.compile(
    rb"\x08\0\x16\0(?:UI\x1a\0|\x1a\0\0\0)1\.2\.840\.10008\.5\.1\.4\.1\.1\.7\0"
    rb".{,1500}\x08\0\x70\0(?:LO\x0c\0|\x0c\0\0\0)Pneumoscope ",
    re.DOTALL,
)

# Images that are not decoded: each is yielded, since its reader says what to do.
OTHER_SUFFIXES = frozenset(
    {
        *(".avif", ".heic", ".heif", ".jxl", ".jxr", ".jpf", ".jpc"),
        *(".ima", ".dic", ".mha", ".mhd", ".nii", ".nrrd"),
        *(".exr", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".tga"),
    }
)
OWN_SUFFIXES = frozenset({".png", ".dcm", ".dicom"})
FOREIGN_BYTES = 512  # enough for `foreign_format`
# Files that may hold an image beside others, and are no input where a folder is searched.
DOCUMENTS = frozenset({".ai", ".djvu", ".eps", ".h5", ".hdf5", ".ico", ".npy", ".npz", ".pdf", ".ps"})
COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})

IGNORED = frozenset({"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini"})
MASK_WORD = re.compile(r"(?:lungs?|left|right|manual|segmentation)?masks?|segmentations?")
# With one of these, such as in images_without_masks or images_and_masks, a folder holds images.
NO_MASK_WORDS = frozenset({"and", "no", "non", "not", "with", "without"})
IMAGE_WORD = re.compile(r"images?|imgs?|cxrs?|x?rays?|radiographs?")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

DICOMDIR = "DICOMDIR"
"""Name of the index of a folder of DICOM files, in capitals."""

DICOMDIR_DETAIL = "a DICOMDIR is the index of a folder and holds no image; the files that it lists do"
"""Why it is no image."""

SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def walk(folder: str | Path, *, progress: Progress | None = None) -> Iterator[Path | UnreadableImageError]:
    """Yield the images of a folder and its subfolders, in the order of their names, and what cannot be read.

    Files come before subfolders, and those before linked folders. A linked folder inside of `folder` is
    listed under its own name only; one outside is listed under the first link to it.

    Parameters
    ----------
    folder : path-like
        Searched at any depth.
    progress : Progress, optional
        Receives a line for each group of images that is left out: own output, masks, repeated links. They
        are logged as warnings if it is not given.

    Yields
    ------
    Path or UnreadableImageError
        A file that is an image by suffix or content; or a folder or file that cannot be one, with the reason.
    """
    return iter(_Walk(Path(folder), progress or LoggedMessages()))


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or a shadow file of an operating system."""
    return name.startswith(".") or name.lower() in IGNORED


def has_image_suffix(name: str) -> bool:
    """Return whether a name ends like that of an image, of a format that is read or of another one."""
    path = PurePath(name)
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        suffix = PurePath(path.stem).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in OTHER_SUFFIXES


def mask_folders(folders: Collection[str], files: Iterable[str]) -> set[str]:
    """Return which folders hold, by their names, masks of the images beside them.

    Parameters
    ----------
    folders, files : collection and iterable of str
        The names of all that are in one folder.
    """
    masks = {name for name in folders if _is_mask_name(name)}
    beside = bool(masks) and (len(masks) < len(folders) or any(map(has_image_suffix, files)))
    return masks if beside else set()


def has_images_and_masks(folders: Collection[str]) -> bool:
    """Return whether of folders beside each other some are named after images, and some after masks."""
    masks = {name for name in folders if _is_mask_name(name)}
    return bool(masks) and any(_ends_in(IMAGE_WORD, _words(name)) for name in folders if name not in masks)


def left_out_lines(place: str, own: int, masks: Mapping[str, int]) -> list[str]:
    """Return the lines that say what was left out of a folder or a prefix.

    Parameters
    ----------
    place : str
        Where it was searched.
    own : int
        Images that Pneumoscope drew.
    masks : mapping of str to int
        Masks by folder, relative to `place`.
    """
    lines = [f"{place}: {counted(own, 'image')} drawn by Pneumoscope left out"] if own else []
    if total := sum(masks.values()):
        lines.append(f"{place}: {counted(total, 'mask')} left out, not radiographs (in {_some(masks)})")
    return lines


class LoggedMessages(Progress):
    """Logs messages as warnings and shows nothing else; for callers that give no progress."""

    def message(self, line: str) -> None:
        """Log the line."""
        log.warning("%s", line)


def is_own_output(source: str | os.PathLike[str] | bytes) -> bool:
    """Return whether an image, given as path or content, was drawn by Pneumoscope.

    That is a PNG, or a Secondary Capture of the DICOM node in little endian; False for any other file.
    """
    count = OWN_DICOM_BYTES
    head = source[:count] if isinstance(source, bytes) else read_head(source, count)
    if head.startswith(b"\x89PNG"):
        return head[:OWN_HEAD_BYTES].endswith(b"tEXt" + SOFTWARE)
    return format_of(head) == "dicom" and OWN_DICOM.search(head) is not None


def special_file(path: str | os.PathLike[str]) -> UnreadableImageError | None:
    """Return why a path can be no image file: it is a pipe, a socket or a device; None for any other."""
    try:
        what = SPECIAL.get(stat.S_IFMT(Path(path).stat().st_mode))
    except (OSError, ValueError):  # reading it gives the reason
        return None
    if what is None:
        return None
    return UnreadableImageError(
        os.fspath(path), Reason.NOT_AN_IMAGE, f"this is {what}, not a file; give a file, or - for a pipe"
    )


class _Walk:
    """One walk: which folders it has seen, and what it left out.

    With `masks`, masks are listed too, until there are folders of images beside them: `is_data_set`.
    """

    def __init__(self, folder: Path, progress: Progress, *, masks: bool = False) -> None:
        self._folder, self._progress, self._with_masks = folder, progress, masks
        self._root = os.path.realpath(folder)
        self._seen: set[tuple[int, int]] = set()
        self._own = 0
        self.is_data_set = False
        self._masks: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Path | UnreadableImageError]:
        waiting = [self._folder]
        while waiting:
            here = waiting.pop()
            try:
                if not self._is_new(here):
                    continue
                with os.scandir(here) as entries:
                    listed = sorted((one for one in entries if not is_ignored(one.name)), key=_name)
            except OSError as error:
                yield _closed(here, error)
                continue
            folders = []
            for one in listed:
                if _is_folder(one):
                    folders.append(one)
                else:
                    yield from self._file(one)
            # The last one is taken first: real folders in order, then linked ones.
            linked = [Path(one) for one in folders if one.is_symlink() and self._follows(one)]
            real = [Path(one) for one in folders if not one.is_symlink()]
            inside = {one.name for one in folders}
            if self._with_masks and has_images_and_masks(inside):
                self.is_data_set = True
                return
            masks = mask_folders(inside, (one.name for one in listed if one.name not in inside))
            waiting += [
                one for one in (real + linked)[::-1] if one.name not in masks or not self._leaves_out(one)
            ]
        for line in left_out_lines(str(self._folder), self._own, self._masks):
            self._progress.message(line)

    def _is_new(self, folder: Path) -> bool:
        """Return whether a folder was not listed before, and remember it."""
        facts = folder.stat()
        identity = (facts.st_dev, facts.st_ino)
        if identity in self._seen:
            self._progress.message(f"{folder}: not listed again, it is a link to a folder that is listed")
            return False
        self._seen.add(identity)
        return True

    def _follows(self, link: os.DirEntry[str]) -> bool:
        """Return whether a linked folder is listed under the link, and not under its own name, or never."""
        target = os.path.realpath(link.path)
        if self._root == target or self._root.startswith(target.rstrip(os.sep) + os.sep):
            self._progress.message(f"{link.path}: left out, it is a link to a folder above it")
            return False
        if not target.startswith(self._root.rstrip(os.sep) + os.sep):
            return True
        return any(map(is_ignored, Path(target).relative_to(self._root).parts))

    def _file(self, entry: os.DirEntry[str]) -> Iterator[Path | UnreadableImageError]:
        path = Path(entry)
        if entry.name.upper() == DICOMDIR:
            yield UnreadableImageError(str(path), Reason.NO_PIXELS, DICOMDIR_DETAIL)
        elif problem := None if _is_file(entry) else special_file(path):
            if has_image_suffix(path.name):
                yield problem
        elif _is_image(path):
            # An image with another ending is not opened, for speed; the pipeline rejects it if it is one.
            may_be_own = path.suffix.lower() in OWN_SUFFIXES or not has_image_suffix(path.name)
            if may_be_own and is_own_output(path):
                self._own += 1
            else:
                yield path

    def _leaves_out(self, masks: Path) -> bool:
        """Return whether a folder named after masks is left out, and count what it holds.

        It is not where it has folders of images with masks inside: then it is a whole data set.
        """
        if self._with_masks:
            return False
        listed = _Walk(masks, Progress(), masks=True)
        count = sum(isinstance(one, Path) for one in listed)
        if not listed.is_data_set:
            self._masks[masks.relative_to(self._folder).as_posix()] = count
        return not listed.is_data_set


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _words(name: str) -> list[str]:
    """Return the words of a name such as ``lung masks``, ``GT_mask`` or ``leftMask``, without numbers."""
    return re.findall(r"[^\W\d_]+", _CAMEL.sub(" ", name).lower())


def _ends_in(word: re.Pattern[str], words: list[str]) -> bool:
    """Return whether the first or the last of the words is the given one."""
    return any(word.fullmatch(one) for one in (*words[:1], *words[-1:]))


def _is_mask_name(name: str) -> bool:
    words = _words(name)
    return _ends_in(MASK_WORD, words) and NO_MASK_WORDS.isdisjoint(words)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a closed folder
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _closed(folder: Path, error: OSError) -> UnreadableImageError:
    if isinstance(error, PermissionError):
        detail = "no permission to read this folder; change its mode or its owner"
        return UnreadableImageError(str(folder), Reason.NO_PERMISSION, detail)
    detail = f"this folder cannot be read ({error.strerror}); check the disk or the path"
    return UnreadableImageError(str(folder), Reason.NOT_FOUND, detail)


def _is_image(path: Path) -> bool:
    if has_image_suffix(path.name) or looks_like_image(path):
        return True
    head = read_head(path, FOREIGN_BYTES)
    if not head and path.exists() and not os.access(path, os.R_OK):
        # DICOM files are named by a UID or a number as a rule; a closed one cannot be recognised.
        return not path.suffix or path.suffix[1:].isdigit()
    foreign = foreign_format(head)
    return foreign is not None and foreign.image and path.suffix.lower() not in DOCUMENTS


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
