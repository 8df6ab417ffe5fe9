"""Ablations of the default recipe: one change at a time, several seeds, one table.

Every variant is a run of `pneumoscope train` by a recipe that differs from the default in one thing; finished
runs are not repeated. Runs are short and images small, so that only the differences are of interest. A gain
on patients of the series that were trained on may come from marks of the series, so that each run is
evaluated three times: on held-out patients of the known series; on the normals of a series that no run was
trained on, against the same held-out pneumonia; and on adults of another hospital. The split is the same for
every seed, so that the range is that of the training.

    python benchmarks/ablations.py kermany-224 nih-adult --out ablations --epochs 15 --limit 600 --seeds 2
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.experiment.images import divide, limited
from pneumoscope.training.recipe import Recipe, SplitSpec, load_recipe

SIZE = 64
UNSEEN = "NORMAL2"
ADULTS = SplitSpec(method="patient", fractions=(0.7, 0.15, 0.15), seed=0)
LIGHT = {"area": [0.9, 1.0], "rotate": 5, "flip": 0.5}


@dataclass(frozen=True)
class Variant:
    """One change of the base recipe: the default without its teacher, on small images."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    taught: bool = False  # with the runs on larger images, of all seeds, as teachers
    adults: bool = False  # with adults as additional training data


LARGER = Variant("larger image, 96 pixels", {"input": {"size": 96}})
VARIANTS = (
    Variant("base: lungs cropped, heavy augmentation"),
    Variant("whole image", {"input": {"lungs": "none", "window": "image"}}),
    Variant("all but the lungs masked", {"input": {"lungs": "crop_and_mask"}}),
    Variant("light augmentation", {"augmentation": LIGHT}),
    Variant(
        "light augmentation, whole image",
        {"augmentation": LIGHT, "input": {"lungs": "none", "window": "image"}},
    ),
    Variant("median filter", {"input": {"denoise": "median"}}),
    Variant("CLAHE", {"input": {"contrast": "clahe"}}),
    Variant("self-supervised pretraining", {"pretraining": {"epochs": 5}}),
    LARGER,
    Variant("teachers", {"distillation": {"teacher": "teacher", "trust": 0.5}}, taught=True),
    Variant("auxiliary task: lungs", {"tasks": {"lungs": 0.3}}),
    Variant("additional adults", adults=True),
    Variant("additional adults, source-adversarial task", {"tasks": {"source": 0.1}}, adults=True),
)
METRICS = {
    "AUROC, known series": ("known", "detection", "auroc"),
    "AUROC, unseen series": ("unseen", "detection", "auroc"),
    "AUROC, adults": ("adults", "detection", "auroc"),
    "AUROC, bacterial against viral": ("known", "subtypes", "bacterial vs viral", "auroc"),
    "accuracy, 3 classes": ("known", "all_classes", "accuracy"),
}


def recipe_of(variant: Variant, base: Recipe, *, epochs: int, seed: int) -> dict[str, Any]:
    """Return the content of a variant's recipe."""
    content = base.model_dump(mode="json") | {"distillation": None, "seed": seed}
    content["input"] |= {"size": SIZE} | variant.changes.get("input", {})
    content["phases"] = [content["phases"][0] | {"epochs": epochs, "warmup": 1.0}]
    content["ema"] = 0.99
    return content | {key: value for key, value in variant.changes.items() if key != "input"}


def check_same(options: argparse.Namespace) -> None:
    """Note the options in the folder, and stop where its finished runs are of others: they do not compare."""
    now = {name: str(value) for name, value in vars(options).items() if name not in ("out", "seeds")}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "options.json"
    if not path.exists():
        path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    elif (begun := json.loads(path.read_text(encoding="utf-8"))) != now:
        changed = ", ".join(name for name in now if begun.get(name) != now[name])
        raise SystemExit(f"{options.out}: has runs with another {changed}; use another --out")


def write_data(options: argparse.Namespace, base: Recipe) -> None:
    """Write the manifests: training data, additional adults, and the three test sets."""
    children = divide(load(options.children), base.split)
    known = children.with_records(r for r in children.records if r.source != UNSEEN)
    unseen = [r for r in children.records if r.source == UNSEEN]
    sick = [r for r in known.subset("test") if r.label != "normal"]
    train = limited(known.subset("train"), options.limit, seed=0) if options.limit else known.subset("train")
    adults = divide(load(options.adults), ADULTS)
    held_out = [record for record in adults.records if record.split != "train"]
    manifests: dict[str, Manifest] = {
        "train": known.with_records([*train, *known.subset("val"), *known.subset("test")]),
        "known": known.subset("test"),
        "unseen": children.with_records([*unseen, *sick]),
        "additional-adults": adults.subset("train"),
        "adults": adults.with_records(held_out),
    }
    for name, manifest in manifests.items():
        manifest.write(options.out / f"{name}.csv")


def pneumoscope(*arguments: object) -> None:
    """Run one command of the command line; exit code 3 means that some images were rejected."""
    done = subprocess.run([sys.executable, "-m", "pneumoscope", *map(str, arguments)], check=False)
    if done.returncode not in {0, 3}:
        raise SystemExit(done.returncode)


def folder_of(variant: Variant, seed: int, out: Path) -> Path:
    """Return the run folder of a variant."""
    return out / f"{'-'.join(re.findall(r'[a-zA-Z0-9]+', variant.name.partition(':')[0]))}-{seed}"


def run(variant: Variant, seed: int, base: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one variant, unless that is done; return its ``metrics.json`` on each set."""
    out, folder = options.out, folder_of(variant, seed, options.out)
    if not (folder / "metrics.json").exists():
        path = out / f"{folder.name}.yaml"
        recipe = recipe_of(variant, base, epochs=options.epochs, seed=seed)
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        more: list[object] = ["--lungs", options.lungs] if options.lungs else []
        more += ["--additional", out / "additional-adults.csv"] if variant.adults else []
        if variant.taught:
            for other in range(options.seeds):
                more += ["--teacher", folder_of(LARGER, other, out)]
        pneumoscope("train", path, "--data", out / "train.csv", "--out", folder, "--resume", *more)
    found = {}
    for name in ("known", "unseen", "adults"):
        evaluated = folder / f"evaluated-{name}"
        if not (evaluated / "metrics.json").exists():
            evaluate = ("evaluate", out / f"{name}.csv", "--bundle", folder, "--out", evaluated)
            pneumoscope(*evaluate, "--resamples", 100)
        found[name] = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    return found


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: mean over the seeds, and their range."""
    lines = [f"| step | {' | '.join(METRICS)} |", "| --- |" + " --- |" * len(METRICS)]
    for name, runs in results.items():
        cells = []
        for path in METRICS.values():
            values = [functools.reduce(lambda part, key: part[key], path, one)["value"] for one in runs]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all variants and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("children", type=Path, help="folder of the Kermany set")
    parser.add_argument("adults", type=Path, help="folder of adults of another hospital")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--limit", type=int, help="training images of each class; all if not given")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lungs", type=Path, help="lung segmenter; the shipped one if not given")
    options = parser.parse_args()
    base = load_recipe("default")
    check_same(options)
    write_data(options, base)
    results: dict[str, list[dict[str, Any]]] = {}
    for variant in VARIANTS:
        for seed in range(options.seeds):
            results.setdefault(variant.name, []).append(run(variant, seed, base, options))
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
