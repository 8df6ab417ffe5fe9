"""From a folder of images, a manifest or a MedMNIST file to a `Manifest`.

The label of an image in a folder is, in this order:

1. its row in the table of labels, where there is one;
2. the one in its file name, if it is named like the Kermany set and its class folder does not contradict;
3. the nearest folder above it that is named after a known class (``NORMAL``, ``bacteria``, ...), else
   the topmost folder that is neither a split (``train``, ``val``, ``test``) nor a mere container
   (``images``, ...).

Age, sex and view position come from the table of labels. A table ``sizes.csv`` in the folder
(``file,original_width,original_height``) gives the original size of images that were reduced or squashed.

The patient comes from the table of patients or labels, else from a Kermany file name, else from the folder
directly under the class folder (``normal/patient7/view1.png``), else from the DICOM header; an image without
any of these counts as one patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pneumoscope.data.description import read_description
from pneumoscope.data.labels import KNOWN_CLASSES, class_name, parse_kermany_name
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.medmnist import read_npz
from pneumoscope.data.tables import TABLE_SUFFIXES, parse_age, parse_sex, parse_view, read_rows
from pneumoscope.errors import DataError
from pneumoscope.image.decode import IMAGE_SUFFIXES
from pneumoscope.parallel import Progress

__all__ = ["load", "scan"]

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
_NO_CLASS = _SPLIT_FOLDERS.keys() | _CONTAINERS
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
_SIZES_FILE = "sizes.csv"


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
        ``split``, ``age``, ``sex`` and ``view``; images that it does not list are left out. By default
        ``labels.csv`` in the folder, if there is one.
    patients_csv : path-like, optional
        Table with a column ``path`` (or ``file``) and a column ``patient_id``.
    hash_files : bool
        Compute the SHA-256 of every file, which finds exact duplicates and changed files.
    progress : Progress, optional
        Receives the number of files hashed.

    Raises
    ------
    DataError
        If the folder is absent or has no image, an image has no label, or a table names an image that is
        absent.
    """
    folder = Path(folder)
    if folder.suffix.lower() == ".npz" and folder.is_file():
        return read_npz(folder, folder.with_suffix(""))
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the images")
    paths = sorted(_images(folder))
    if not paths:
        hint = "; give the .npz file itself" if any(folder.glob("*.npz")) else ""
        raise DataError(f"{folder}: no image found (JPEG, PNG, TIFF, BMP or DICOM){hint}")
    if labels_csv is None and (folder / "labels.csv").is_file():
        labels_csv = folder / "labels.csv"
    labels = _table(Path(labels_csv), paths, _LABEL_COLUMNS) if labels_csv else None
    patients = _table(Path(patients_csv), paths, _PATIENT_COLUMNS) if patients_csv else {}
    sizes_csv = folder / _SIZES_FILE
    sizes = _table(sizes_csv, paths, _OTHER_COLUMNS["width"]) if sizes_csv.is_file() else {}
    records = []
    for path in paths:
        if labels is not None and path not in labels:
            continue
        row = None if labels is None else labels[path]
        width, height = _size(sizes.get(path, {}))
        record = _record(path, folder, row, patients.get(path, {}))
        records.append(replace(record, width=width, height=height))
    if hash_files:
        records = _hashed(records, folder, progress or Progress())
    return Manifest(tuple(_joined_by_header(records, folder)), folder, read_description(folder))


def _hashed(records: list[Record], folder: Path, progress: Progress) -> list[Record]:
    from pneumoscope.model.bundle import sha256_of

    progress.step("hashing files")
    hashed = []
    for record in records:
        path = folder / record.path
        try:
            hashed.append(replace(record, sha256=sha256_of(path)))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        progress.update(len(hashed), len(records))
    return hashed


def _joined_by_header(records: list[Record], folder: Path) -> Iterator[Record]:
    """Give images whose headers name one patient the path of the first as patient; no identity is kept."""
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
        if path.is_file() and (path.suffix.lower() in IMAGE_SUFFIXES or _is_unnamed_dicom(path)):
            yield relative.as_posix()


def _is_unnamed_dicom(path: Path) -> bool:
    """Recognise DICOM files named by a UID or a bare number, as scanners export them."""
    return not (path.suffix and not path.suffix[1:].isdigit()) and _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _record(path: str, folder: Path, row: Mapping[str, str] | None, patient_row: Mapping[str, str]) -> Record:
    parents = PurePosixPath(path).parts[:-1]
    known = parse_kermany_name(f"{folder.name}/{path}")
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
        source=known[2] if known else _source(parents, depth, folder),
        age=parse_age((row or {}).get("age")),
        sex=parse_sex((row or {}).get("sex")),
        view=parse_view((row or {}).get("view")),
    )


def _size(row: Mapping[str, str]) -> tuple[int, int]:
    width, height = row.get("width", ""), row.get("height", "")
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() else (0, 0)


def _class_depth(parents: tuple[str, ...]) -> int | None:
    """Return which of the folders above an image is its class."""
    known = [i for i, part in enumerate(parents) if class_name(part) in KNOWN_CLASSES]
    if known:
        return known[-1]
    return next((i for i, part in enumerate(parents) if part.lower() not in _NO_CLASS), None)


def _agree(by_name: str, by_folder: str) -> bool:
    """Return whether a folder does not contradict the file name; an image sorted by hand keeps its folder."""
    if by_folder == "pneumonia":
        return by_name != "normal"
    return by_folder == by_name or by_folder not in KNOWN_CLASSES


def _source(parents: tuple[str, ...], depth: int | None, folder: Path) -> str:
    above = [part for part in parents[: depth or 0] if part.lower() not in _NO_CLASS]
    return above[0] if above else folder.resolve().name


def _table(path: Path, images: list[str], needed: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return the cells of a table by image, matched by path or by unambiguous file name."""
    columns, rows = read_rows(path)
    lower = {name.lower().strip(): name for name in columns}

    def column(names: tuple[str, ...]) -> str | None:
        return next((lower[name] for name in names if name in lower), None)

    key = column(_PATH_COLUMNS)
    if key is None or column(needed) is None:
        missing = _PATH_COLUMNS[0] if key is None else needed[0]
        raise DataError(f"{path}: no column '{missing}'; found {', '.join(columns) or 'none'}")
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_name[PurePosixPath(image).name].append(image)
    known = set(images)
    found: dict[str, dict[str, str]] = {}
    cells = {
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
        found[matches[0]] = {k: str(row.get(c) or "").strip() for k, c in cells.items() if c}
    return found
