"""What each step of the default recipe buys: one change at a time, several seeds, one table.

Every variant is a run of `pneumoscope train` by a recipe that differs from the default in one thing; a
finished run is not done again. The network is the student's; runs are short and the pictures small, so the
differences count and not the level. The split is that of the default recipe for every seed, so that the
spread is that of the training.

    python benchmarks/ablations.py kermany-224 --out runs/ablations --epochs 6 --seeds 2
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pneumoscope.train.recipe import Recipe, load_recipe

LIGHT = {"area": [0.9, 1.0], "rotate": 5, "flip": 0.5}
# Changes of the base recipe, which is the default without its teacher, on small pictures.
VARIANTS: dict[str, dict[str, Any]] = {
    "base: lungs cropped, heavy augmentation": {},
    "whole picture": {"input": {"lungs": "none", "window": "picture"}},
    "light augmentation": {"augmentation": LIGHT},
    "teacher": {"distillation": {"teacher": "teacher"}},
    "all but the lungs masked": {"input": {"lungs": "crop_and_mask"}},
    "CLAHE": {"input": {"contrast": "clahe"}},
    "median filter": {"input": {"denoise": "median"}},
    "self-supervised epochs first": {"pretraining": {"epochs": 3}},
    "lungs found besides": {"tasks": {"lungs": 0.3}},
    "sources forgotten": {"tasks": {"source": 0.1}},
    "larger picture (96 pixels)": {"input": {"size": 96}},
}
FIGURES = {
    "AUROC": ("pneumonia", "auroc"),
    "bacterial against viral": ("bacterial_vs_viral", "auroc"),
    "accuracy, 3 classes": ("all_classes", "accuracy"),
}


def variant(base: Recipe, changes: dict[str, Any], *, epochs: int, seed: int) -> dict[str, Any]:
    """Return the content of a recipe that differs from `base` by `changes`."""
    content = base.model_dump(mode="json") | {"distillation": None, "seed": seed}
    content["input"] |= {"size": 64} | changes.get("input", {})
    content["phases"] = [content["phases"][0] | {"epochs": epochs, "warmup": 1.0}]
    content["ema"] = 0.99
    return content | {key: value for key, value in changes.items() if key != "input"}


def run(name: str, recipe: dict[str, Any], options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train one variant, unless that is done, and return its ``metrics.json``."""
    folder = options.out / f"{'-'.join(re.findall(r'[a-zA-Z0-9]+', name.partition(':')[0]))}-{seed}"
    metrics = folder / "metrics.json"
    if not metrics.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{folder.name}.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        command = ["train", str(path), "--data", str(options.data), "--out", str(folder), "--resume"]
        if options.limit:
            command += ["--limit", str(options.limit)]
        if options.lungs:
            command += ["--lungs", str(options.lungs)]
        if recipe["distillation"] and options.teacher:
            command += ["--teacher", str(options.teacher)]
        subprocess.run([sys.executable, "-m", "pneumoscope", *command], check=True)
    found: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8"))
    return found


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: mean over the seeds, and their range."""
    lines = [f"| step | {' | '.join(FIGURES)} |", "| --- |" + " --- |" * len(FIGURES)]
    for name, runs in results.items():
        cells = []
        for section, key in FIGURES.values():
            values = [one[section][key]["value"] for one in runs]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder or manifest")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--limit", type=int, help="pictures of each class; all if not given")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lungs", type=Path)
    parser.add_argument("--teacher", type=Path, help="a bundle; its step is left out without it")
    options = parser.parse_args()
    base = load_recipe("default")
    results: dict[str, list[dict[str, Any]]] = {}
    for name, changes in VARIANTS.items():
        if "distillation" in changes and not options.teacher:
            continue
        for seed in range(options.seeds):
            recipe = variant(base, changes, epochs=options.epochs, seed=seed)
            results.setdefault(name, []).append(run(name, recipe, options, seed))
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
