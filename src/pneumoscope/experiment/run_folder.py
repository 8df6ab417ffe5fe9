"""The folder of a run: what another person needs to run it again, and what it takes to go on with it."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, UnreadableImageError
from pneumoscope.experiment.origin import Origin
from pneumoscope.experiment.plan import RECIPE_FILE, Experiment, is_of_another_recipe
from pneumoscope.model.bundle import load_bundle, sha256_of
from pneumoscope.parallel import available_cpus
from pneumoscope.training.fit import CHECKPOINT_FILE

__all__ = ["SPLIT_FILE", "check_inputs", "resumes", "write_inputs", "write_unreadable"]

SPLIT_FILE, ENVIRONMENT_FILE, INPUTS_FILE = "split.csv", "environment.json", "inputs.json"
UNREADABLE_FILE = "unreadable.csv"


def resumes(experiment: Experiment) -> bool:
    """Whether there is a run to go on with; reject to write over one, or to go on by another recipe."""
    out = experiment.out
    if not (out / CHECKPOINT_FILE).exists():
        return False
    if not experiment.resume:
        raise DataError(f"{out}: holds a run already; use --resume to go on with it, or another --out")
    if is_of_another_recipe(out, experiment.recipe):
        raise DataError(
            f"{out}: is a run of another recipe; resume with the same options, or use another --out"
        )
    return True


def check_inputs(origin: Origin, lungs: Path | None) -> None:
    """Reject to go on with a run by another segmenter, other teachers, weights or added images.

    Raises
    ------
    DataError
        Naming the option; a run that wrote down none of them is let pass.
    """
    path = origin.experiment.out / INPUTS_FILE
    if not path.exists():
        return
    begun, now = json.loads(path.read_text(encoding="utf-8")), _inputs(origin, lungs)
    for option, value in now.items():
        if begun.get(option) != value:
            raise DataError(
                f"{path.parent}: began with another --{option}; resume with the same, or use another --out"
            )


def _inputs(origin: Origin, lungs: Path | None) -> dict[str, Any]:
    """Return by option what was given besides recipe and data, as hashes."""
    experiment, weights = origin.experiment, origin.experiment.weights
    return {
        "also": origin.added.fingerprint() if origin.added else None,
        "lungs": sha256_of(lungs) if lungs else None,
        "teacher": [load_bundle(path).identity for path in experiment.teachers],
        "weights": sha256_of(weights) if weights and weights.is_file() else None,
    }


def write_inputs(origin: Origin, lungs: Path | None) -> None:
    """Leave in the run folder what another person needs to run it again."""
    experiment, manifest = origin.experiment, origin.manifest
    out = experiment.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: the run folder cannot be made ({error.strerror})") from error
    (out / RECIPE_FILE).write_text(experiment.recipe.to_yaml(), encoding="utf-8")
    manifest.write(out / SPLIT_FILE)
    packages = ("pneumoscope", "torch", "timm", "lightning", "numpy", "opencv-python-headless", "onnxruntime")
    (out / INPUTS_FILE).write_text(json.dumps(_inputs(origin, lungs), indent=2) + "\n", encoding="utf-8")
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": available_cpus(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
    (out / ENVIRONMENT_FILE).write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def write_unreadable(run: Path, unreadable: Iterable[UnreadableImageError]) -> None:
    """List the images that were left out, with the reason."""
    with (run / UNREADABLE_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "reason", "detail"))
        writer.writerows((error.path, error.reason.value, error.detail) for error in unreadable)
