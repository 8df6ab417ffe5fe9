"""Write tables and plot of `docs/results.md` from run folders, published claims and the shipped bundle.

python benchmarks/results_table.py runs/vgg16 runs/custom-cnn ...

Results of the given runs are kept in `published/measured.csv` beside this file, so that the pages can be
written again without them: a run of the same recipe, data, split, seed, size and epochs replaces an earlier
one.
Written are the parts between `<!-- NAME: begin -->` and `<!-- NAME: end -->` of README, `docs/results.md`
and `docs/explanation/experiments.md`, and the plot for the light and the dark theme of the pages.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pneumoscope import load_bundle
from pneumoscope.evaluation.tables import markdown_table
from pneumoscope.evaluation.tables import with_interval as stated

if TYPE_CHECKING:
    from pneumoscope.model.manifest import BundleManifest
    from pneumoscope.model.results import ExternalValidation

REPOSITORY = Path(__file__).parents[1]
FOLDER = Path(__file__).with_name("published")
MEASURED, CLAIMS = FOLDER / "measured.csv", FOLDER / "claims.csv"
PLOT = "results-published-{theme}.svg"  # in docs; one of each theme

KEY = ("recipe", "data", "split", "seed", "size", "epochs")
FACTS = ("recipe", "data", "split", "seed", "classes", "size", "epochs", "minutes", "cpus")
METRICS = {
    "accuracy_classes": "accuracy, all classes",
    "accuracy_target": "accuracy, pneumonia",
    "auroc": "AUROC, pneumonia",
    "f1": "F1, pneumonia",
    "subtypes_auroc": "bacterial against viral, AUROC",
}
DATA = "Kermany paediatric chest X-rays"  # the set of the published systems
DEMONSTRATION = "transfer"  # the recipe of `make demo`
SPLITS = {"patient": "split by patient", "random": "split at random"}
NONE = "–"

Row = dict[str, str]
# Background, ink, muted, patient, random: the last two differ in lightness too.
THEMES = {
    "light": ("#ffffff", "#1f2a33", "#66727d", "#0a6b5e", "#dd7a2f"),
    "dark": ("#1e2129", "#e2e4e9", "#9aa4ad", "#4fc3b0", "#f0a060"),
}


def main() -> None:
    """Add the runs to the measured results, and write tables and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run folders to add; unfinished ones are left out")
    rows = read_table(MEASURED)
    for run in parser.parse_args().runs:
        if not (run / "metrics.json").is_file():
            print(f"{run}: not finished, left out")
            continue
        new = measured(run)
        rows = [row for row in rows if key(row) != key(new)] + [new]
    write_measured(rows)
    claims = read_table(CLAIMS)
    for page, blocks in pages(rows, claims, load_bundle().manifest).items():
        path = REPOSITORY / page
        path.write_text(with_blocks(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    for theme in THEMES:
        draw(rows, claims, REPOSITORY / "docs" / PLOT.format(theme=theme), theme)


def pages(rows: Sequence[Row], claims: Sequence[Row], manifest: BundleManifest) -> dict[str, dict[str, str]]:
    """Return the blocks of each page, by their names."""
    return {
        "README.md": {"shipped": shipped_sentence(manifest)},
        "docs/results.md": {
            "shipped": shipped_table(manifest),
            "published": published_table(rows, claims),
            "demonstration": demonstration_table(rows),
        },
        "docs/explanation/experiments.md": {"runs": all_runs(rows), "claims": claims_table(claims)},
    }


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """Return a page with the content of its named blocks replaced.

    Raises
    ------
    SystemExit
        If the page lacks one of them.
    """
    for name, content in blocks.items():
        between = re.compile(rf"(?<=<!-- {name}: begin -->\n).*?(?=<!-- {name}: end -->)", re.DOTALL)
        if not between.search(text):
            raise SystemExit(f"no block {name!r} in the page")
        text = between.sub(lambda _, content=content: f"{content}\n", text)
    return text


def measured(run: Path) -> Row:
    """Return the results of a finished run folder."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    with (run / "history.csv").open(encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    row = {
        "recipe": recipe["name"],
        "data": metrics["evaluated_on"].partition(", test split")[0],
        "split": recipe["split"]["method"],
        "seed": str(recipe["seed"]),
        "classes": str(len(recipe["classes"])),
        "size": str(recipe["input"]["size"]),
        "epochs": str(len(history)),
        "minutes": f"{sum(float(epoch['seconds']) for epoch in history) / 60:.0f}",
        "cpus": str(environment["processors"]),
    }
    subtypes = [part["auroc"] for part in metrics["subtypes"].values()]
    values: dict[str, Any] = {
        "accuracy_classes": metrics["all_classes"]["accuracy"],
        "accuracy_target": metrics["detection"]["accuracy"],
        "auroc": metrics["detection"]["auroc"],
        "f1": metrics["detection"]["f1"],
        "subtypes_auroc": subtypes[0] if len(subtypes) == 1 else {},
    }
    for metric, value in values.items():
        for part, name in (("value", metric), ("low", f"{metric}_low"), ("high", f"{metric}_high")):
            number = value.get(part)
            row[name] = "" if number is None else f"{number:.3f}"
    return row


def key(row: Row) -> tuple[str, ...]:
    """Return what tells one run from another."""
    return tuple(row[name] for name in KEY)


def read_table(path: Path) -> list[Row]:
    """Read a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_measured(rows: Sequence[Row]) -> None:
    """Write the measured results."""
    columns = [*FACTS, *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high"))]
    with MEASURED.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def with_interval(row: Row, metric: str) -> str:
    """Return a metric of a run with its interval."""
    if not row[metric]:
        return NONE
    return f"{row[metric]} [{row[f'{metric}_low']}, {row[f'{metric}_high']}]"


def all_runs(rows: Sequence[Row]) -> str:
    """Return the table of every run."""
    columns = ["recipe", "data", "classes", "input", "split", "seed", "epochs", "training"]
    return markdown_table(
        [*columns, *METRICS.values()],
        [
            [
                row["recipe"],
                row["data"],
                row["classes"],
                f"{row['size']} px",
                row["split"],
                row["seed"],
                row["epochs"],
                f"{row['minutes']} min, {row['cpus']} cores",
                *(with_interval(row, metric) for metric in METRICS),
            ]
            for row in rows
        ],
    )


def claims_table(claims: Sequence[Row]) -> str:
    """Return the published claims with their pages."""
    return markdown_table(
        ["recipe", "the page", "its claim"], [[f"`{c['recipe']}`", link(c), c["claim"]] for c in claims]
    )


def link(claim: Row) -> str:
    """Return a link to a page, named by its owner and repository."""
    return f"[{'/'.join(claim['page'].split('/')[3:5])}]({claim['page']})" if claim["page"] else NONE


def side_by_side(rows: Sequence[Row], claims: Sequence[Row]) -> list[tuple[Row, str, dict[str, Row | None]]]:
    """Return each published recipe and seed with its longest run of either split, on the set they used.

    Returns
    -------
    list of (claim, seed, runs by split)
        In the order of the claims.
    """
    longest: dict[tuple[str, ...], Row] = {}
    for row in sorted((row for row in rows if row["data"] == DATA), key=lambda row: int(row["epochs"])):
        longest[row["recipe"], row["seed"], row["split"]] = row
    pairs = []
    for claim in claims:
        name = claim["recipe"]
        seeds = sorted({seed for recipe, seed, _ in longest if recipe == name})
        pairs += [
            (claim, seed, {split: longest.get((name, seed, split)) for split in SPLITS}) for seed in seeds
        ]
    return pairs


def how_run(row: Row) -> str:
    """Return size, epochs and time of a run."""
    return f"{row['size']} px, {row['epochs']} epochs, {row['minutes']} min"


def published_table(rows: Sequence[Row], claims: Sequence[Row]) -> str:
    """Return each claim with its runs, the split by patient first."""
    shown = ("accuracy_classes", "auroc", "f1")
    names = ["accuracy", *(METRICS[metric] for metric in shown[1:])]
    cells = [
        [
            f"`{claim['recipe']}`, seed {seed}",
            row["classes"],
            claim["accuracy"] or NONE,
            SPLITS[split].removeprefix("split "),
            *(with_interval(row, metric) for metric in shown),
            how_run(row),
        ]
        for claim, seed, runs in side_by_side(rows, claims)
        for split, row in runs.items()
        if row is not None
    ]
    return markdown_table(["recipe", "classes", "published accuracy", "split", *names, "run"], cells)


def demonstration_table(rows: Sequence[Row]) -> str:
    """Return what the recipe of `make demo` reached on each set of images."""
    shown = [METRICS[metric] for metric in ("auroc", "accuracy_target", "accuracy_classes")]
    cells = [
        [
            row["data"],
            *(with_interval(row, metric) for metric in ("auroc", "accuracy_target", "accuracy_classes")),
            how_run(row),
        ]
        for row in rows
        if row["recipe"] == DEMONSTRATION
    ]
    return markdown_table(["images", *shown, "run"], cells)


def draw(rows: Sequence[Row], claims: Sequence[Row], path: Path, theme: str) -> None:
    """Draw accuracy as claimed and as measured with either split, one line for each recipe and seed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    background, ink, muted, *colours = THEMES[theme]
    pairs = side_by_side(rows, claims)
    figure = Figure(figsize=(7.2, 0.9 + 0.5 * len(pairs)), layout="constrained")
    figure.set_facecolor(background)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    for line, (claim, _, runs) in enumerate(pairs):
        if claim["accuracy"]:
            axes.plot(
                float(claim["accuracy"]), line, "D", color=ink, mfc="none", ms=8, label="published claim"
            )
        for (split, row), colour, marker, offset in zip(
            runs.items(), colours, "os", (-0.13, 0.13), strict=True
        ):
            if row is None:
                continue
            value, low, high = (float(row[f"accuracy_classes{end}"]) for end in ("", "_low", "_high"))
            ends = [[value - low], [high - value]]
            axes.errorbar(
                value, line + offset, xerr=ends, fmt=marker, color=colour, capsize=3, label=SPLITS[split]
            )
    axes.set_yticks(range(len(pairs)), [f"{claim['recipe']}, seed {seed}" for claim, seed, _ in pairs])
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlabel("accuracy on held-out images, all classes of the recipe; 95% interval", color=muted)
    axes.tick_params(colors=ink, length=0)
    axes.grid(True, axis="x", color=muted, alpha=0.3)
    axes.spines[:].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=3, frameon=False, labelcolor=ink
    )
    # Text as text, in the font of the page; the same file each time.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pneumoscope", "font.family": "sans-serif"}):
        figure.savefig(path, metadata={"Date": None})


def shipped_table(manifest: BundleManifest) -> str:
    """Return what the card of a bundle says, its own evaluation beside every external validation."""
    results = manifest.results
    own = results.evaluation
    if own is None:
        raise SystemExit("the shipped bundle has no results: pneumoscope evaluate --sign")
    sets: dict[str, ExternalValidation] = {population(own): own, **results.external}
    target, point = manifest.target.name, manifest.default_operating_point
    lines = {
        "images (patients)": [f"{one.images:,} ({one.patients:,})" for one in sets.values()],
        f"AUROC, {target}": [stated(one.detection.auroc) for one in sets.values()],
        f"sensitivity at `{point}`": [stated(one.detection.sensitivity) for one in sets.values()],
        f"specificity at `{point}`": [stated(one.detection.specificity) for one in sets.values()],
        f"accuracy at `{point}`": [stated(one.detection.accuracy) for one in sets.values()],
        "calibration error (ECE)": [stated(one.detection.ece) for one in sets.values()],
    }
    beside = [NONE] * len(results.external)
    for name, measures in own.operating_points.items():
        if name != point:
            lines[f"sensitivity / specificity at `{name}`"] = [
                f"{stated(measures.sensitivity)} / {stated(measures.specificity)}",
                *beside,
            ]
    lines[f"accuracy, {len(own.classes)} classes"] = [stated(own.all_classes.accuracy), *beside]
    for name, subtypes in own.subtypes.items():
        lines[f"AUROC, {name}"] = [stated(subtypes.auroc), *beside]
    lines["rejected by the gate"] = [
        NONE if one.not_evaluated is None else str(one.not_evaluated.rejected) for one in sets.values()
    ]
    return markdown_table(["", *sets], [[name, *cells] for name, cells in lines.items()])


def population(own: ExternalValidation) -> str:
    """Return whose images a bundle's own evaluation used."""
    who = own.population.name if own.population else own.evaluated_on
    return f"{who}, held-out patients of the training set".capitalize()


def shipped_sentence(manifest: BundleManifest) -> str:
    """Return the results of the shipped bundle in three sentences."""
    own, external = manifest.results.evaluation, manifest.results.external
    if own is None:
        raise SystemExit("the shipped bundle has no results: pneumoscope evaluate --sign")
    found = own.detection
    text = (
        f"On {own.images:,} X-rays of {own.patients:,} patients that it was not trained on, the shipped "
        f"model separates {manifest.target.name} from normal with an AUROC of {stated(found.auroc)}; at its "
        f"default threshold the sensitivity is {stated(found.sensitivity)} and the specificity "
        f"{stated(found.specificity)}."
    )
    for name, subtypes in own.subtypes.items():
        text += f" AUROC of {name}: {stated(subtypes.auroc)}."
    for name, other in external.items():
        what, measure = "AUROC", other.detection.auroc
        if measure.value is None:  # a set of normal radiographs alone
            what, measure = "specificity", other.detection.specificity
        text += f" {name}: {what} {stated(measure)}."
    return text


if __name__ == "__main__":
    main()
