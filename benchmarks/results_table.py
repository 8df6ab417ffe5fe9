"""Print the table of `docs/results.md` from the files in run folders.

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
    "accuracy, target", "AUROC, target", "F1, target", "subtypes, AUROC",
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
    subtypes = ", ".join(
        f"{name}: {with_interval(part['auroc'])}" for name, part in metrics["subtypes"].items()
    )
    return [
        recipe["name"],
        str(len(recipe["classes"])),
        f"{recipe['input']['size']} px",
        recipe["split"]["method"],
        str(recipe["split"]["seed"]),
        str(len(history)),
        f"{seconds / 60:.0f} min",
        with_interval(metrics["all_classes"]["accuracy"]),
        with_interval(metrics["detection"]["accuracy"]),
        with_interval(metrics["detection"]["auroc"]),
        with_interval(metrics["detection"]["f1"]),
        subtypes or "–",
    ]


def with_interval(value: dict[str, Any]) -> str:
    """Return a value with its interval."""
    if value["value"] is None:
        return "–"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
