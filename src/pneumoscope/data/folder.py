"""From a folder of images, a manifest or a MedMNIST file to a `Manifest`.

The label of an image in a folder is, in this order:

1. its row in the table of labels, where there is one;
2. the one in its file name, if it is named like the Kermany set and its class folder does not contradict;
   DICOM files are not: viewers export them under such names;
3. the nearest folder above it that is named after a known class (``NORMAL``, ``bacteria``, ...), else
   a folder beside such a one, else the topmost folder that is neither a split (``train``, ``val``,
   ``test``) nor a mere container (``images``, ...).

Age, sex and view position are those of the DICOM header, else those of the table of labels. A table
``sizes.csv`` in the folder (``file,original_width,original_height``) gives the original size of images that
were reduced or squashed.

The patient comes from the table of patients or labels, else from the folder directly under the class folder
(``normal/patient7/view1.png``), else from a Kermany file name, else from a folder that is named like one of
a patient (``sub-7``, ``patient00007``, ``p7``), else from the DICOM header: its Patient ID, or without one
its Study Instance UID. An image without any of these counts as one patient. Where a table states the label,
a folder that is named like one of a patient goes before the file name. A name such as ``IM-0115-0001``
counts only in a folder of normal images, or in one that is no class.

An archive that was unpacked into a folder of its own name (``chest_xray/chest_xray/train``) may hold every
image twice; the inner copies are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pneumoscope.data.description import read_description
from pneumoscope.data.headers import as_headers_state
from pneumoscope.data.labels import class_name
from pneumoscope.data.layout import SPLIT_FOLDERS, Layout
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.medmnist import read_npz
from pneumoscope.data.tables import (
    TABLE_SUFFIXES,
    parse_age,
    parse_sex,
    parse_text,
    parse_view,
    parse_whole,
    read_rows,
    require_columns,
)
from pneumoscope.data.walk import LoggedMessages, walk
from pneumoscope.errors import DataError, Reason, UnreadableImageError
from pneumoscope.image.decode import IMAGE_SUFFIXES, looks_like_image, read_radiograph
from pneumoscope.parallel import Progress

__all__ = ["load", "scan"]

_CELLS = (
    "label",
    "patient_id",
    "split",
    "source",
    "age",
    "sex",
    "view",
    "boxes",
    "original_width",
    "original_height",
)
_SIZES_FILE = "sizes.csv"

# The official validation images of the Kermany set are 16: nothing can be chosen on so few.
_FEW_VALIDATION = 50
_SAID = 20  # lines on what is left out, before they are only counted


def load(path: str | Path, *, progress: Progress | None = None) -> Manifest:
    """Read a data set in any of its forms: a folder, a manifest or a MedMNIST file.

    Its ``dataset.yaml`` is read with it: the one beside the manifest, else the one in the folder of images.

    Parameters
    ----------
    path : path-like
        A folder is scanned, ``.csv`` and ``.parquet`` are read, ``.npz`` is unpacked beside itself.
    progress : Progress, optional
        Receives the number of files hashed.

    Raises
    ------
    DataError
        If it is none of these, or cannot be read.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".npz":
        return scan(path, progress=progress)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return Manifest.read(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of images or a manifest")
    raise DataError(f"{path}: not a data set; give a folder, a manifest (.csv, .parquet) or a MedMNIST .npz")


def scan(
    folder: str | Path,
    *,
    labels_csv: str | Path | None = None,
    patients_csv: str | Path | None = None,
    hash_files: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Build a manifest from a folder of images, by the rules at the top of this module.

    Parameters
    ----------
    folder : path-like
        Searched at any depth; a MedMNIST ``.npz`` file is unpacked beside itself.
    labels_csv : path-like, optional
        Table with a column ``path`` (or ``file``) and a column ``label``, optionally ``patient_id``,
        ``split``, ``source``, ``age``, ``sex`` and ``view``; images that it does not list are left out. By
        default ``labels.csv`` in the folder, if there is one.
    patients_csv : path-like, optional
        Table with a column ``path`` (or ``file``) and a column ``patient_id``.
    hash_files : bool
        Compute the SHA-256 of every file, which finds exact duplicates and changed files.
    progress : Progress, optional
        Receives the number of files hashed, and a line for everything that is left out; these lines are
        logged if it is not given.

    Returns
    -------
    Manifest
        Files and folders that cannot be read are in its `left_out`.

    Raises
    ------
    DataError
        If the folder is absent or has no image, an image has no label, or a table names an image that is
        absent, or a split that there is not.
    """
    folder, progress = Path(folder), progress or LoggedMessages()
    if folder.suffix.lower() == ".npz" and folder.is_file():
        return read_npz(folder, folder.with_suffix(""), progress=progress)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the images")
    paths, left_out = _images(folder, progress)
    if labels_csv is None and (folder / "labels.csv").is_file():
        labels_csv = folder / "labels.csv"
    labels = _table(Path(labels_csv), folder, paths, "label") if labels_csv else None
    patients = _table(Path(patients_csv), folder, paths, "patient_id") if patients_csv else {}
    sizes_csv = folder / _SIZES_FILE
    sizes = _table(sizes_csv, folder, paths, "original_width") if sizes_csv.is_file() else {}
    listed = [path for path in paths if labels is None or path in labels]
    if len(listed) < len(paths):
        progress.message(f"{labels_csv}: does not list {len(paths) - len(listed)} images; they are left out")
    if patients_csv and (unlisted := len(set(listed) - patients.keys())):
        progress.message(
            f"{patients_csv}: does not list {unlisted} images; each counts as a patient of its own, unless "
            "its folder, its name or the labels state one"
        )
    stated = {path: class_name(row["label"]) for path, row in (labels or {}).items()}
    layout = Layout(folder, listed, stated)
    records = []
    for path in listed:
        record = _record(path, folder, layout, (labels or {}).get(path), patients.get(path, {}))
        width, height = _size(sizes.get(path, {}), f"{sizes_csv}: {path}")
        records.append(replace(record, width=width, height=height))
    if hash_files:
        records = _hashed(records, folder, left_out, progress)
    records = _without_inner_copies(records, folder, progress)
    _say(records, folder, left_out, progress)
    records = as_headers_state(records, folder, progress)
    _say_unclear(records, layout, labels_csv, progress)
    return Manifest(tuple(records), folder, read_description(folder), tuple(left_out))


def _images(folder: Path, progress: Progress) -> tuple[list[str], list[UnreadableImageError]]:
    """Return the images of a folder, sorted, and what cannot be read in it."""
    paths: list[str] = []
    left_out: list[UnreadableImageError] = []
    progress.step("listing files")
    for found in walk(folder, progress=progress):
        progress.update(len(paths) + len(left_out))
        one = found if isinstance(found, UnreadableImageError) else _problem(found)
        if one is None:
            assert isinstance(found, Path)
            paths.append(found.relative_to(folder).as_posix())
        else:
            left_out.append(one)
    if not paths and left_out:
        raise DataError(f"{folder}: no image can be read; the first problem: {left_out[0]}")
    if not paths:
        fix = "the .npz file itself" if any(folder.glob("*.npz")) else "a folder of X-rays"
        raise DataError(f"{folder}: no image was found; give {fix}")
    return sorted(paths), left_out


def _problem(path: Path) -> UnreadableImageError | None:
    """Return why a file cannot be decoded where its name and its first bytes show it, else None."""
    if path.suffix.lower() in IMAGE_SUFFIXES or looks_like_image(path):
        return None
    try:
        read_radiograph(path)
    except UnreadableImageError as error:
        return error
    return None


def _say(
    records: list[Record], folder: Path, left_out: list[UnreadableImageError], progress: Progress
) -> None:
    """Say what is left out, and that a validation split is too small."""
    for one in left_out[:_SAID]:
        progress.message(f"left out: {one}")
    if len(left_out) > _SAID:
        progress.message(f"left out: {len(left_out) - _SAID} more; `pneumoscope data audit` lists them")
    few = sum(record.split == "val" for record in records)
    if 0 < few < _FEW_VALIDATION and sum(record.split == "train" for record in records) >= 10 * few:
        progress.message(
            f"{folder}: only {few} images in val, too few to calibrate on; make a new split: "
            f"pneumoscope data split {folder} --out split.csv"
        )


def _say_unclear(
    records: list[Record], layout: Layout, labels_csv: str | Path | None, progress: Progress
) -> None:
    """Say that folders may be those of patients, where labels are in a table and nothing else names them."""
    alone = (one.path for one in records if one.patient_id == one.path)
    if labels_csv is not None and (unclear := [path for path in alone if layout.is_unclear(path)]):
        progress.message(
            f"{labels_csv}: states no patient for {len(unclear)} images in folders such as "
            f"'{PurePosixPath(unclear[0]).parent}', so each counts as a patient of its own; if some are of "
            "one patient, add a column patient_id"
        )


def _hashed(
    records: list[Record], folder: Path, left_out: list[UnreadableImageError], progress: Progress
) -> list[Record]:
    """Return the records with the hashes of their files; those that cannot be read go to `left_out`."""
    from pneumoscope.model.bundle import sha256_of

    progress.step("hashing files")
    hashed = []
    for done, record in enumerate(records, start=1):
        path = folder / record.path
        try:
            hashed.append(replace(record, sha256=sha256_of(path)))
        except OSError as error:
            reason = Reason.NO_PERMISSION if isinstance(error, PermissionError) else Reason.NOT_FOUND
            detail = f"cannot be read ({error.strerror}); check its permissions"
            left_out.append(UnreadableImageError(str(path), reason, detail))
        progress.update(done, len(records))
    if records and not hashed:
        raise DataError(f"{folder}: no image can be read; the first problem: {left_out[0]}")
    return hashed


def _without_inner_copies(records: list[Record], folder: Path, progress: Progress) -> list[Record]:
    """Leave out images that lie in a folder of the name of the one above it and once more without it."""
    name = folder.resolve().name
    hashes = {record.path: record.sha256 for record in records}

    def is_copy(record: Record) -> bool:
        parts = (name, *PurePosixPath(record.path).parts)
        without = (
            "/".join(parts[1 : i + 1] + parts[i + 2 :])
            for i in range(len(parts) - 2)
            if parts[i] == parts[i + 1]
        )
        return bool(record.sha256) and any(hashes.get(path) == record.sha256 for path in without)

    kept = [record for record in records if not is_copy(record)]
    if lost := len(records) - len(kept):
        progress.message(f"{folder}: {lost} images left out, copies in a folder of the same name")
    return kept


def _record(
    path: str, folder: Path, layout: Layout, row: Mapping[str, str] | None, patient_row: Mapping[str, str]
) -> Record:
    stated = row or {}
    place = layout.place(path)
    label = place.label if row is None else class_name(row["label"])
    if not label:
        raise DataError(
            f"{folder / path}: no label; sort the images into a folder for each class, or give a table "
            f"of labels: first line path,label, then {path},normal"
        )
    split = stated.get("split", "")
    if split and split.lower() not in SPLIT_FOLDERS:
        raise DataError(f"{folder / path}: split '{split}' in the table of labels; write train, val or test")
    return Record(
        path=path,
        label=label,
        patient_id=patient_row.get("patient_id") or stated.get("patient_id") or place.patient,
        split=SPLIT_FOLDERS.get(split.lower(), place.split),
        source=stated.get("source") or place.source,
        age=parse_age(stated.get("age")),
        sex=parse_sex(stated.get("sex")),
        view=parse_view(stated.get("view")),
        boxes=parse_text(stated.get("boxes")),
    )


def _size(row: Mapping[str, str], where: str) -> tuple[int, int]:
    width, height = (
        parse_whole(row.get(name), f"{where}: {name}") for name in ("original_width", "original_height")
    )
    return (width, height) if width and height else (0, 0)


def _table(path: Path, folder: Path, images: list[str], needed: str) -> dict[str, dict[str, str]]:
    """Return the cells of a table by image."""
    columns, rows = read_rows(path, aliases=True)
    require_columns(path, columns, ("path", needed))
    known, root = set(images), PurePosixPath(folder.resolve().as_posix())
    by_end: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for end in _ends(image):
            by_end[end].append(image)
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        name = str(row["path"] or "")
        matches = _meant(PurePosixPath(name), root, known, by_end)
        if len(matches) != 1:
            problem = "is not in the folder"
            if matches:
                problem = "is ambiguous: give its path"
            elif of_that_name := by_end.get(PurePosixPath(name).name):
                problem += f", where '{of_that_name[0]}' has its name; write the path as it is there"
            raise DataError(f"{path}, row {number}: image '{name}' {problem}")
        given = ((cell, row.get(cell)) for cell in _CELLS if cell in columns)
        cells = {cell: "" if value is None else str(value) for cell, value in given}
        # Tables with a row for each box repeat the others.
        if found.setdefault(matches[0], cells) != cells:
            raise DataError(f"{path}, row {number}: image '{name}' is listed twice, and differently")
    return found


def _ends(path: str) -> list[str]:
    """Return a path and all that remains without its first folders, the longest first."""
    parts = PurePosixPath(path).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _meant(
    path: PurePosixPath, root: PurePosixPath, known: set[str], by_end: Mapping[str, list[str]]
) -> list[str]:
    """Return which of the known images a table means by a path.

    A path may begin above the folder, or below it down to the file name alone: all that both state has to
    agree, and the image that shares most folders with it is meant.
    """
    if path.is_absolute():
        path = path.relative_to(root if path.is_relative_to(root) else path.anchor)
    if str(path) not in known and str(path) in by_end:
        return by_end[str(path)]
    return next(([end] for end in _ends(str(path)) if end in known), [])
