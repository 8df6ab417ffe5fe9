"""The folder of a run: its data, and what is needed to reproduce and to resume it."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import logging
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pneumoscope.data.drafts import replacing
from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import DatasetDescription
from pneumoscope.errors import DataError
from pneumoscope.experiment.plan import RECIPE_FILE, Experiment, is_of_another_recipe
from pneumoscope.model.bundle import input_hash, load_bundle, sha256_of
from pneumoscope.model.manifest import Provenance, TrainingData
from pneumoscope.parallel import available_cpus
from pneumoscope.training.cross_fit import IMAGES_FILE
from pneumoscope.training.dataset import LeftOut
from pneumoscope.training.fit import CHECKPOINT_FILE
from pneumoscope.training.recipe import SplitSpec

__all__ = [
    "INPUTS_FILE",
    "LEFT_OUT_FILE",
    "SEARCH_FILE",
    "SPLIT_FILE",
    "Origin",
    "begun_with",
    "check_inputs",
    "check_recipe",
    "read_note",
    "resumes",
    "write_inputs",
    "write_left_out",
]

log = logging.getLogger(__name__)

SPLIT_FILE, ENVIRONMENT_FILE, INPUTS_FILE = "split.csv", "environment.json", "inputs.json"
LEFT_OUT_FILE = "left-out.csv"
_Note = TypeVar("_Note", dict[str, Any], list[Any])
SEARCH_FILE = "search.json"  # of a search of `tune`, whose folder is not that of a run


@dataclass(frozen=True)
class Origin:
    """The data of an experiment and how they are split.

    Parameters
    ----------
    experiment : Experiment
        With a resolved recipe.
    manifest : Manifest
        The data set, with its split.
    added : Manifest or None
        Additional training data.
    brings_split : bool
        Whether the data had a split already, so that the one of the recipe is not used.
    """

    experiment: Experiment
    manifest: Manifest
    added: Manifest | None
    brings_split: bool

    @property
    def description(self) -> DatasetDescription:
        """What the data set states about itself; named by its folder where it states no name."""
        return _named(self.manifest.description, self.manifest.root.resolve().name)

    @property
    def split_in_words(self) -> str:
        """How the images were split."""
        how = self._split
        return f"by {how.method}, seed {how.seed}" if how else "as given by the data"

    def part(self, side: str) -> str:
        """Return the name of one side of the split, for reports and calibrators."""
        return f"{self.description.name}, {side} split ({self.split_in_words})"

    def provenance(
        self, teachers: tuple[str, ...] = (), *, images: int | None = None, added_images: int | None = None
    ) -> Provenance:
        """Return what the bundle records of the data.

        Parameters
        ----------
        teachers : tuple of str
            Identities of the teachers.
        images, added_images : int, optional
            Training images of the data set, and of the additional one.
        """
        how = self._split
        data = [
            TrainingData(description=self.description, fingerprint=self.manifest.fingerprint(), images=images)
        ]
        if self.added is not None:
            sources = sorted({record.source for record in self.added.records if record.source})
            name = ", ".join(sources) or self.added.root.resolve().name
            data.append(
                TrainingData(
                    description=_named(self.added.description, name),
                    fingerprint=self.added.fingerprint(),
                    additional=True,
                    images=added_images,
                )
            )
        return Provenance(
            data=tuple(data),
            split_seed=how.seed if how else None,
            split_method=how.method if how else "given",
            split_fingerprint=self.manifest.split_fingerprint(),
            teachers=teachers,
        )

    @property
    def _split(self) -> SplitSpec | None:
        return None if self.brings_split else self.experiment.recipe.split


def _named(description: DatasetDescription | None, name: str) -> DatasetDescription:
    description = description or DatasetDescription()
    return description if description.name else replace(description, name=name)


def resumes(experiment: Experiment) -> bool:
    """Return whether there is a run to continue.

    Raises
    ------
    DataError
        If there is a run and the experiment does not resume it, or a search or cross-validation.
    """
    if (experiment.out / SEARCH_FILE).exists():
        raise DataError(f"{experiment.out}: holds a search; use another --out")
    if (experiment.out / IMAGES_FILE).exists():
        raise DataError(f"{experiment.out}: holds a cross-validation; use another --out")
    if not (experiment.out / CHECKPOINT_FILE).exists():
        if experiment.resume:
            log.info("nothing to resume in %s: starting from the first epoch", experiment.out)
        return False
    if not experiment.resume:
        raise DataError(
            f"{experiment.out}: holds a run already; use --resume to continue it, or another --out"
        )
    return True


def check_recipe(experiment: Experiment) -> None:
    """Raise `DataError` if the run folder has a run of another recipe."""
    if is_of_another_recipe(experiment.out, experiment.recipe):
        raise DataError(
            f"{experiment.out}: a run of another recipe; resume with the same options, or use another --out"
        )


def begun_with(out: Path, manifest: Manifest) -> Manifest:
    """Return the images of a manifest that a run, or a search, was begun with, on the same sides.

    Raises
    ------
    DataError
        If one of them, or its label, is no longer the same.
    """
    path = out / SPLIT_FILE
    begun = Manifest.read(path)
    now = {record.path: record for record in manifest.records}
    for record in begun.records:
        found = now.get(record.path)
        if found is None or (found.label, found.sha256) != (record.label, record.sha256):
            raise DataError(
                f"{record.path}: has changed since {out} was begun (see {path.name}); restore it, or start "
                "again with another --out"
            )
    return manifest.with_records(begun.records)


def check_inputs(origin: Origin, lungs: Path | None) -> None:
    """Check that a run is resumed with the same segmenter, teachers, weights, limit and additional images.

    Raises
    ------
    DataError
        Naming the option that differs, or if the file of the inputs is damaged.
    """
    path = origin.experiment.out / INPUTS_FILE
    if not path.exists():
        return
    begun = read_note(path, dict)
    for option, value in _inputs(origin, lungs).items():
        if option in begun and begun[option] != value:  # not in runs of older versions
            raise DataError(
                f"{path.parent}: started with another --{option}; resume with the same, or use another --out"
            )


def read_note(path: Path, kind: type[_Note]) -> _Note:
    """Read what an earlier call wrote as JSON into the folder that it began.

    Raises
    ------
    DataError
        If it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged; delete the folder, or use another --out") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: damaged; delete the folder, or use another --out")
    return content


def _inputs(origin: Origin, lungs: Path | None) -> dict[str, Any]:
    """Return the inputs other than recipe and data, by option; files as hashes."""
    experiment = origin.experiment
    return {
        "additional": origin.added.fingerprint() if origin.added else None,
        "limit": experiment.limit,
        "lungs": sha256_of(lungs) if lungs else None,
        "teacher": [load_bundle(path).identity for path in experiment.teachers],
        "weights": input_hash(experiment.weights),
    }


def write_inputs(origin: Origin, lungs: Path | None) -> None:
    """Write recipe, split, inputs and environment, which are needed to reproduce the run."""
    experiment, manifest = origin.experiment, origin.manifest
    out = experiment.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: the run folder cannot be made ({error.strerror})") from error
    _write_whole(out / RECIPE_FILE, experiment.recipe.to_yaml())
    manifest.write(out / SPLIT_FILE)
    _write_whole(out / INPUTS_FILE, json.dumps(_inputs(origin, lungs), indent=2) + "\n")
    packages = (
        "pneumoscope", "torch", "timm", "lightning-fabric", "numpy", "opencv-python-headless", "onnxruntime",
    )  # fmt: skip
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": available_cpus(),
        "packages": {name: _version(name) for name in packages},
    }
    _write_whole(out / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")


def _version(package: str) -> str | None:
    """Return the version of a package; None where another one has its place, such as onnxruntime-gpu."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _write_whole(path: Path, text: str) -> None:
    """Write a file that a killed process leaves as it was, or does not leave at all."""
    with replacing(path) as file:
        file.write(text)


def write_left_out(run: Path, left_out: Iterable[LeftOut]) -> None:
    """List the images that were left out, with the reason; bytes that are no text become escapes."""
    path = run / LEFT_OUT_FILE
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "status", "reason", "detail"))
        writer.writerows((one.path, one.status, one.reason, one.detail) for one in left_out)
