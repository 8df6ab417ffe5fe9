"""Make the real X-rays that ship: the samples of the package, and the training set of the repository.

The samples are children of the Kermany set that the shipped model was not trained on, a shoulder, a hand, an
image with inverted grey levels and a DICOM file. The training set is 600 images, 200 of each class, of
whole patients from the part that the shipped model was trained on, so that its test patients stay held out
whatever is trained on them.

    python benchmarks/make_samples.py samples DATA
    python benchmarks/make_samples.py training-set DATA

DATA holds `kermany-224` (squashed images, `sizes.csv`), `kermany-original` and `not-chest`.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ComputedRadiographyImageStorage, JPEGBaseline8Bit, generate_uid

from pneumoscope.data.audit import inspect
from pneumoscope.data.description import write_description
from pneumoscope.data.duplicates import NEAR_DISTANCE
from pneumoscope.data.folder import scan
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.samples import SAMPLES_TABLE, Sample
from pneumoscope.data.sources import describe
from pneumoscope.data.split import split

REPOSITORY = Path(__file__).parents[1]
SAMPLES = REPOSITORY / "src" / "pneumoscope" / "samples"
TRAINING_SET = REPOSITORY / "data" / "xrays-sample"

SPLIT_OF_SHIPPED = (0.8, 0.1, 0.1)  # fractions, with seed 0
SPLIT_FINGERPRINT = "3481b7aa184766559f813f4b0701e16892339826ca255723b0b2d84757616f6c"
SAMPLE_SIDE, SAMPLE_QUALITY = 640, 88  # pixels on the shorter side
TRAINING_SIDE, TRAINING_QUALITY = 128, 88
IMAGES_A_CLASS = 200
MAX_ASPECT = 2.5  # beyond it an image is rejected as cropped

KERMANY = "Kermany, Zhang, Goldbaum; Mendeley Data, version 2, doi:10.17632/rscbjbr9sj.2; CC BY 4.0"
FRACATLAS = "Abedeen et al., Scientific Data 2023; figshare, doi:10.6084/m9.figshare.22363012; CC BY 4.0"
RECOGNISED = "FracAtlas, recognised by its content and size, since the copy does not state it; reduced"

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Child:
    """A child of the Kermany set to become a sample.

    Parameters
    ----------
    name : str
        File to write.
    path : str
        File in the data set.
    content : str
        What the image is.
    inverted : bool
        Whether its grey levels are inverted.
    """

    name: str
    path: str
    content: str
    inverted: bool = False


CHILDREN = (
    Child("normal.jpeg", "NORMAL/IM-0579-0001.jpeg", "A child without pneumonia."),
    Child(
        "bacterial.jpeg",
        "PNEUMONIA/person1099_bacteria_3040.jpeg",
        "A child with bacterial pneumonia: dense consolidation of most of the right lung.",
    ),
    Child(
        "viral.jpeg",
        "PNEUMONIA/person868_virus_1514.jpeg",
        "A child with viral pneumonia: haze and streaks in both lungs.",
    ),
    Child(
        "subtle.jpeg",
        "PNEUMONIA/person702_virus_1299.jpeg",
        "A child labelled viral pneumonia that the shipped model calls normal. Hard for a reader too: both "
        "lungs are well aerated, with a little streaking around the hila only.",
    ),
    Child(
        "inverted.jpeg",
        "PNEUMONIA/person281_bacteria_1323.jpeg",
        "A child with bacterial pneumonia in several places; the grey levels were inverted on purpose.",
        inverted=True,
    ),
    Child(
        "child.dcm",
        "NORMAL/NORMAL2-IM-1241-0001.jpeg",
        "A child without pneumonia, as a DICOM file at full size; its header was made up.",
    ),
)

LIMBS = (
    ("shoulder.jpeg", "shoulder", "limb-221", "A shoulder with one lung beside it; half a chest."),
    ("hand.jpeg", "hand", "limb-224", "A hand and wrist; no chest."),
)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("samples", "training-set"))
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, help="Folder; its place in the repository if not given.")
    given = parser.parse_args()
    manifest = shipped_split(given.data / "kermany-224")
    if given.what == "samples":
        make_samples(given.data, manifest.subset("test"), given.out or SAMPLES)
    else:
        make_training_set(manifest.subset("train"), given.out or TRAINING_SET)


def shipped_split(folder: Path) -> Manifest:
    """Return the data set with the split of the shipped model."""
    found = inspect(scan(folder), near_distance=NEAR_DISTANCE).readable()
    manifest = split(found.manifest, fractions=SPLIT_OF_SHIPPED, seed=0, duplicates=found.groups)
    if manifest.split_fingerprint() != SPLIT_FINGERPRINT:
        raise SystemExit(f"{folder}: this is not the split that the shipped model was trained with")
    return manifest


def make_samples(data: Path, held_out: Manifest, out: Path) -> None:
    """Write the samples and their table."""
    out.mkdir(parents=True, exist_ok=True)
    records = {record.path: record for record in held_out}
    samples = [sample_of(child, records, data, out) for child in CHILDREN]
    for name, label, limb, content in LIMBS:
        (out / name).write_bytes((data / "not-chest" / f"{limb}.jpg").read_bytes())
        samples.append(Sample(name, label, limb, content, RECOGNISED, "CC BY 4.0", FRACATLAS))
    with (out / SAMPLES_TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, Sample.__dataclass_fields__, lineterminator="\n")
        table.writeheader()
        table.writerows(map(asdict, samples))
    print(f"{len(samples)} samples, {size_of(out) / 1e6:.2f} MB in {out}")


def sample_of(child: Child, records: dict[str, Record], data: Path, out: Path) -> Sample:
    """Write one child and return its row."""
    if child.path not in records:
        raise SystemExit(f"{child.path}: not among the test patients of the shipped model")
    record = records[child.path]
    original = data / "kermany-original" / child.path
    if original.is_file():
        image, changes = cv2.imread(str(original), cv2.IMREAD_GRAYSCALE), []
    else:
        sizes = original_sizes(data / "kermany-224")
        image = restored(data / "kermany-224" / child.path, sizes[child.path])
        changes = ["from a copy of 224 by 224 pixels", "aspect ratio restored"]
    if child.name.endswith(".dcm"):
        changes.append("the compressed image as it was, in a DICOM file")
        (out / child.name).write_bytes(as_dicom(original.read_bytes(), image.shape, child.name))
    else:
        smaller = reduced(image, SAMPLE_SIDE)
        if smaller.shape != image.shape:
            changes.append(f"reduced to {smaller.shape[1]} by {smaller.shape[0]} pixels")
        if child.inverted:
            smaller = 255 - smaller
            changes.append("grey levels inverted")
        if changes:
            write_jpeg(out / child.name, smaller, SAMPLE_QUALITY)
        else:
            (out / child.name).write_bytes(original.read_bytes())
    return Sample(
        child.name,
        record.label,
        record.patient_id,
        child.content,
        source="; ".join([f"Chest X-Ray Images (Pneumonia), {child.path}", *changes]),
        licence="CC BY 4.0",
        attribution=KERMANY,
    )


def as_dicom(jpeg: bytes, shape: Sequence[int], name: str) -> bytes:
    """Return a Computed Radiography Image around a grey baseline JPEG, with the attributes that it requires.

    What is not known, such as the child's age and the date, is empty or absent.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, "instance"])
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    image = FileDataset(io.BytesIO(), Dataset(), file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    for keyword in (
        *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
        *("ReferringPhysicianName", "SeriesNumber", "KVP"),
    ):
        setattr(image, keyword, None)
    image.PatientName, image.PatientID = "Sample^Child", "SAMPLE"
    image.PatientIdentityRemoved, image.DeidentificationMethod = "YES", "Header made up for a sample"
    image.Modality, image.Manufacturer = "CR", "Pneumoscope"
    image.SoftwareVersions = "0.2.0"  # fixed, so that the file is always the same
    image.BodyPartExamined, image.ViewPosition, image.PatientOrientation = "CHEST", "AP", ["L", "F"]
    image.InstanceNumber, image.ImageType = 1, ["DERIVED", "PRIMARY"]
    image.LossyImageCompression, image.LossyImageCompressionMethod = "01", "ISO_10918_1"
    image.LossyImageCompressionRatio = round(shape[0] * shape[1] / len(jpeg), 1)
    image.BurnedInAnnotation = "NO"
    image.DerivationDescription = "Published JPEG image put into a DICOM file unchanged"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = int(shape[0]), int(shape[1])
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.WindowCenter, image.WindowWidth = 128, 256
    image.PixelData = encapsulate([jpeg])
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def make_training_set(trained_on: Manifest, out: Path) -> None:
    """Write 200 images a class, of whole patients in random order, and `dataset.yaml`."""
    if out.exists() and any(out.rglob("*.jpeg")):
        raise SystemExit(f"{out}: holds images; delete it first")
    sizes = original_sizes(trained_on.root)
    for record in (chosen := chosen_patients(trained_on, sizes)):
        image = reduced(restored(trained_on.resolve(record), sizes[record.path]), TRAINING_SIDE)
        (out / record.path).parent.mkdir(parents=True, exist_ok=True)
        write_jpeg(out / record.path, image, TRAINING_QUALITY)
    whole = describe("kermany", None).description
    write_description(out, replace(whole, name=f"{whole.name}: a sample of its training part, reduced"))
    patients = len({record.patient_id for record in chosen})
    print(f"{len(chosen)} images of {patients} patients, {size_of(out) / 1e6:.2f} MB in {out}")


def chosen_patients(manifest: Manifest, sizes: dict[str, tuple[int, int]]) -> list[Record]:
    """Choose whole patients at random until each class is full, of those whose images are all usable.

    An image is usable if the size of its original is known and not that of a narrow strip.
    """
    usable = {path for path, size in sizes.items() if max(size) <= MAX_ASPECT * min(size)}
    images: dict[str, list[Record]] = {}
    for record in manifest:
        images.setdefault(record.patient_id, []).append(record)
    left = Counter(dict.fromkeys(manifest.labels(), IMAGES_A_CLASS))
    chosen: list[Record] = []
    for patient in np.random.default_rng(0).permutation(sorted(images)):
        records = images[str(patient)]
        counts = Counter(record.label for record in records)
        if counts <= left and all(record.path in usable for record in records):
            left -= counts
            chosen += records
    if left.total():
        raise SystemExit(f"{manifest.root}: too few patients to choose from; missing {dict(left)}")
    return sorted(chosen, key=lambda record: record.path)


def original_sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return width and height of the originals, where they are known."""
    with (folder / "sizes.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["file"]: (int(row["original_width"]), int(row["original_height"]))
            for row in csv.DictReader(file)
            if row["original_width"] and row["original_height"]
        }


def restored(path: Path, size: tuple[int, int]) -> Image:
    """Return a squashed image at the aspect ratio of its original, without losing pixels on either side."""
    image: Image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    scale = max(image.shape[1] / size[0], image.shape[0] / size[1])
    shape = (round(size[0] * scale), round(size[1] * scale))
    wider: Image = cv2.resize(image, shape, interpolation=cv2.INTER_CUBIC)
    return wider


def reduced(image: Image, side: int) -> Image:
    """Return an image with at most `side` pixels on the shorter side."""
    scale = side / min(image.shape)
    if scale >= 1:
        return image
    shape = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    smaller: Image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    return smaller


def write_jpeg(path: Path, image: Image, quality: int) -> None:
    """Write a grey image as JPEG."""
    _, data = cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    path.write_bytes(data.tobytes())


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
