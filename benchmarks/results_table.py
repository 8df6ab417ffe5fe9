"""Print the table of `docs/results.md` from run folders: every figure is read from what a run left behind.

python benchmarks/results_table.py runs/default runs/vgg16 ...
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import yaml

COLUMNS = (
    "recipe", "classes", "input", "split", "seed", "epochs", "training time", "accuracy, all classes",
    "accuracy, pneumonia", "AUROC, pneumonia", "F1, pneumonia", "bacterial against viral, AUROC",
)  # fmt: skip


def main() -> None:
    """Read the run folders and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS))
    for run in parser.parse_args().runs:
        print("| " + " | ".join(row(run)) + " |")


def row(run: Path) -> list[str]:
    """Return the cells of one run."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    with (run / "history.csv").open(encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    seconds = sum(float(epoch["seconds"]) for epoch in history)
    kinds = metrics.get("bacterial_vs_viral") or {}
    return [
        recipe["name"],
        str(len(recipe["classes"])),
        f"{recipe['input']['size']} px",
        recipe["split"]["method"],
        str(recipe["split"]["seed"]),
        str(len(history)),
        f"{seconds / 60:.0f} min",
        figure(metrics["all_classes"]["accuracy"]),
        figure(metrics["pneumonia"]["accuracy"]),
        figure(metrics["pneumonia"]["auroc"]),
        figure(metrics["pneumonia"]["f1"]),
        figure(kinds.get("auroc")),
    ]


def figure(value: dict[str, Any] | None) -> str:
    """Return a figure with its interval."""
    if value is None or value["value"] is None:
        return "–"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
