"""From a folder of images to records.

The label of a image is, in this order:

1. its row in the table of labels, where there is one;
2. what a file name of the Kermany set says, unless its class folder says otherwise;
3. the nearest folder above it that is named after a known class (``NORMAL``, ``bacteria``, ...), else
   the topmost folder that is no part of a split (``train``, ``val``, ``test``) and no mere container
   (``images``, ...).

Age, sex and view position are what the table of labels says. Where the folder holds a table ``sizes.csv``
(``file,original_width,original_height``), the images were made smaller or squashed, and that is the size.

The patient is its row in the table of patients or labels, what the Kermany name says, the folder
directly under the class folder (``normal/patient7/view1.png``), whom the DICOM header names, else the image
alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pneumoscope.data.attributes import parse_age, parse_sex, parse_view
from pneumoscope.data.kermany import parse_name
from pneumoscope.data.manifest import Manifest, Record, read_csv, read_parquet
from pneumoscope.errors import DataError

__all__ = ["class_name", "scan_folder"]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"})
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_CONTAINERS = frozenset({"images", "image", "img", "imgs", "data", "jpg", "jpeg", "png", "dicom", "dcm"})
_CLASSES = {
    "normal": "normal",
    "pneumonia": "pneumonia",
    "bacteria": "bacterial",
    "bacterial": "bacterial",
    "bacterial pneumonia": "bacterial",
    "pneumonia bacterial": "bacterial",
    "virus": "viral",
    "viral": "viral",
    "viral pneumonia": "viral",
    "pneumonia viral": "viral",
}
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image")
_LABEL_COLUMNS = ("label", "class", "finding")
_PATIENT_COLUMNS = ("patient_id", "patient")
_OTHER_COLUMNS = {
    "age": ("age", "patient age", "patient_age", "patientage"),
    "sex": ("sex", "gender", "patient gender", "patient sex", "patient_sex", "patientsex"),
    "view": ("view", "view position", "view_position", "viewposition"),
    "width": ("original_width",),
    "height": ("original_height",),
}
SIZES_FILE = "sizes.csv"


def class_name(text: str) -> str:
    """Return the class that a folder or table cell names: lower case, usual spellings made one."""
    plain = " ".join(text.lower().replace("_", " ").replace("-", " ").split())
    return _CLASSES.get(plain, text.strip().lower())


def scan_folder(
    folder: Path,
    *,
    labels_csv: str | Path | None = None,
    patients_csv: str | Path | None = None,
    hash_files: bool = True,
) -> Manifest:
    """Build a manifest by the rules of this module; see `pneumoscope.data.scan`.

    With a table of labels, images that it does not list are left out.

    Raises
    ------
    DataError
        If there is no image, a image has no label, or a table names a image that is absent.
    """
    paths = sorted(_images(folder))
    if not paths:
        hint = "; give the .npz file itself" if any(folder.glob("*.npz")) else ""
        raise DataError(f"{folder}: no image found (JPEG, PNG, TIFF, BMP or DICOM){hint}")
    if labels_csv is None and (folder / "labels.csv").is_file():
        labels_csv = folder / "labels.csv"
    labels = _table(Path(labels_csv), paths, _LABEL_COLUMNS) if labels_csv else None
    patients = _table(Path(patients_csv), paths, _PATIENT_COLUMNS) if patients_csv else {}
    sizes_csv = folder / SIZES_FILE
    sizes = _table(sizes_csv, paths, _OTHER_COLUMNS["width"]) if sizes_csv.is_file() else {}
    records = []
    for path in paths:
        row = None
        if labels is not None:
            row = labels.get(path)
            if row is None:
                continue
        digest = _sha256(folder / path) if hash_files else ""
        width, height = _size(sizes.get(path, {}))
        record = _record(path, folder, row, patients.get(path, {}), digest)
        records.append(replace(record, width=width, height=height))
    return Manifest(tuple(_joined_by_header(records, folder)), folder)


def _joined_by_header(records: list[Record], folder: Path) -> Iterator[Record]:
    """Give images whose headers name one patient the name of the first; nobody's identity is kept."""
    from pneumoscope.image.dicom import read_patient_key

    first: dict[str, str] = {}
    for record in records:
        key = None
        if record.patient_id == record.path and _is_dicom(folder / record.path):
            key = read_patient_key(folder / record.path)
        yield record if key is None else replace(record, patient_id=first.setdefault(key, record.path))


def _images(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        # Hidden files and the shadow files that macOS packs into archives are no images.
        if any(part.startswith(".") or part == "__MACOSX" for part in relative.parts):
            continue
        if path.is_file() and (path.suffix.lower() in _SUFFIXES or _is_unnamed_dicom(path)):
            yield relative.as_posix()


def _is_unnamed_dicom(path: Path) -> bool:
    """Tell DICOM files named by a UID or a bare number, as scanners export them."""
    return not (path.suffix and not path.suffix[1:].isdigit()) and _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _record(
    path: str,
    folder: Path,
    row: Mapping[str, str] | None,
    patient_row: Mapping[str, str],
    digest: str,
) -> Record:
    parents = PurePosixPath(path).parts[:-1]
    known = parse_name(f"{folder.name}/{path}")
    depth = _class_depth(parents)
    label = class_name(parents[depth]) if depth is not None else ""
    patient = path
    if known:
        label = known[0] if _agree(known[0], label) else label
        patient = known[1]
    elif depth is not None:
        below = [part for part in parents[depth + 1 :] if part.lower() not in _CONTAINERS]
        patient = below[0] if below else path
    split = next((_SPLIT_FOLDERS[p.lower()] for p in parents if p.lower() in _SPLIT_FOLDERS), "")
    if row is not None:
        label = class_name(row["label"])
        patient = row.get("patient") or patient
        split = _SPLIT_FOLDERS.get(row.get("split", "").lower(), split)
    if not label:
        raise DataError(
            f"{folder / path}: no label; sort the images into a folder for each class, or give a table "
            "of labels"
        )
    return Record(
        path=path,
        label=label,
        patient_id=patient_row.get("patient") or patient,
        split=split,
        sha256=digest,
        source=known[2] if known else _source(parents, depth, folder),
        age=parse_age((row or {}).get("age")),
        sex=parse_sex((row or {}).get("sex")),
        view=parse_view((row or {}).get("view")),
    )


def _size(row: Mapping[str, str]) -> tuple[int, int]:
    width, height = row.get("width", ""), row.get("height", "")
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() else (0, 0)


def _class_depth(parents: tuple[str, ...]) -> int | None:
    """Return which of the folders above a image is its class."""
    known = [i for i, part in enumerate(parents) if class_name(part) in _CLASSES.values()]
    if known:
        return known[-1]
    skipped = _SPLIT_FOLDERS.keys() | _CONTAINERS
    return next((i for i, part in enumerate(parents) if part.lower() not in skipped), None)


def _agree(by_name: str, by_folder: str) -> bool:
    """Tell whether a folder does not contradict the file name; a image sorted by hand keeps its folder."""
    if by_folder == "pneumonia":
        return by_name != "normal"
    return by_folder == by_name or by_folder not in _CLASSES.values()


def _source(parents: tuple[str, ...], depth: int | None, folder: Path) -> str:
    above = [p for p in parents[: depth or 0] if p.lower() not in _SPLIT_FOLDERS.keys() | _CONTAINERS]
    return above[0] if above else folder.resolve().name


def _table(path: Path, images: list[str], wanted: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return label, patient and split by image, matched by path or by unambiguous file name."""
    columns, rows = read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    lower = {name.lower().strip(): name for name in columns}

    def column(names: tuple[str, ...]) -> str | None:
        return next((lower[name] for name in names if name in lower), None)

    key = column(_PATH_COLUMNS)
    if key is None or column(wanted) is None:
        missing = _PATH_COLUMNS[0] if key is None else wanted[0]
        raise DataError(f"{path}: no column '{missing}'; found {', '.join(columns) or 'none'}")
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_name[PurePosixPath(image).name].append(image)
    known = set(images)
    found: dict[str, dict[str, str]] = {}
    sought = {
        "label": column(_LABEL_COLUMNS),
        "patient": column(_PATIENT_COLUMNS),
        "split": column(("split",)),
        **{name: column(names) for name, names in _OTHER_COLUMNS.items()},
    }
    for number, row in enumerate(rows, start=1):
        name = str(row.get(key) or "").strip().replace("\\", "/")
        matches = [name] if name in known else by_name.get(PurePosixPath(name).name, [])
        if len(matches) != 1:
            problem = "is not in the folder" if not matches else "is ambiguous: give its path"
            raise DataError(f"{path}, row {number}: image '{name}' {problem}")
        if matches[0] in found:
            raise DataError(f"{path}, row {number}: image '{name}' is listed twice")
        found[matches[0]] = {k: str(row.get(c) or "").strip() for k, c in sought.items() if c}
    return found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
