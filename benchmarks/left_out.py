"""Train recipes without some sources and evaluate them on these: what helps on an unknown hospital.

Training images are those of split ``train`` of the other sources. AUROC of the target, by the logits of the
trained networks before any calibration, as in `compare_bundles.py`: on split ``val`` of the sources that were
trained on, and on splits ``train`` and ``val`` of those left out. A teacher of a recipe is not used, since it
would have been trained on the sources left out. One training of EfficientNet-Lite0 of 8 epochs of 8,000
images takes 50 minutes on two cores, two minutes on a GPU. Finished trainings are not repeated.

    python benchmarks/left_out.py joined.csv openist=lung-masks-adult/images --without nih-adult,bimcv \
        --recipe hospitals --recipe half.yaml --seed 0 --seed 1 --join children=person,IM,NORMAL2 \
        --reference rsna --out runs/left-out
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from compare_bundles import names_of_joined, print_tables
from fit_gate import normal_radiographs

from pneumoscope.data.drafts import replacing
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.experiment.images import lung_segmenter, pack_images
from pneumoscope.experiment.plan import Experiment
from pneumoscope.parallel import Progress
from pneumoscope.predict.cache import default_cache_folder
from pneumoscope.predict.calibration import log_odds
from pneumoscope.training.dataset import Packed, joined
from pneumoscope.training.fit import fit
from pneumoscope.training.networks import build_recipe_network
from pneumoscope.training.outputs import predict_logits
from pneumoscope.training.processes import make_fabric
from pneumoscope.training.recipe import Recipe, load_recipe

SCORES_FILE, IMAGES_FILE = "scores.npz", "images.json"


class Lines(Progress):
    """Print each epoch."""

    def message(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)


def main() -> None:
    """Train what is not trained yet, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="manifest with a split")
    parser.add_argument(
        "normals", nargs="*", metavar="NAME=FOLDER", help="normal radiographs, never trained on"
    )
    parser.add_argument("--without", required=True, help="SOURCE,SOURCE: not trained on")
    parser.add_argument("--recipe", action="append", required=True, help="the first is compared to")
    parser.add_argument("--seed", action="append", type=int, help="0 if not given")
    parser.add_argument("--join", action="append", default=[], help="NAME=SOURCE,SOURCE: take these as one")
    parser.add_argument("--reference", help="source whose normal images 6%% false alarms are set on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    options = parser.parse_args()
    without = options.without.split(",")
    data = load(options.data)
    recipes = [load_recipe(one).resolved(data.labels()) for one in options.recipe]
    if len({(str(one.input), one.needs_lung_masks, one.tasks.boxes > 0) for one in recipes}) > 1:
        parser.error("the recipes must take the same input, lung masks and boxes")
    train, known, new = divided(data, without)
    pairs = [text.partition("=") for text in options.normals]
    normals = [normal_radiographs(name, Path(folder)) for name, _, folder in pairs]
    if empty := [one for one, found in zip(options.normals, normals, strict=True) if not len(found)]:
        parser.error(f"{empty[0]}: no image in this folder")
    train_set, *parts = packed([train, known, new, *normals], recipes[0], options.out)
    evaluated = joined([replace(one, lungs=None, boxes=None) for one in parts])
    runs = [
        recipe.model_copy(update={"seed": seed, "keep": "last", "patience": None, "distillation": None})
        for recipe in recipes
        for seed in options.seed or [0]
    ]
    scores = np.array([trained(one, train_set, parts[0], evaluated, options.out) for one in runs])
    names = names_of_joined(options.join)
    records = [replace(one, source=names.get(one.source, one.source)) for one in evaluated.records]
    title = f"AUROC (images), without {', '.join(without)}"
    heads = [f"{one.name}, seed {one.seed}" for one in runs]
    print_tables(title, heads, records, scores, recipes[0].output_target, options.reference)


def divided(data: Manifest, without: list[str]) -> tuple[Manifest, Manifest, Manifest]:
    """Return the images to train on, the validation images of their sources, and those of the others."""
    if unknown := sorted(set(without) - {record.source for record in data.records}):
        raise SystemExit(f"--without: the data has no source {', '.join(unknown)}")

    def chosen(left_out: bool, *splits: str) -> Manifest:
        def belongs(record: Record) -> bool:
            return (record.source in without) is left_out and record.split in splits

        return data.with_records(record for record in data.records if belongs(record))

    return chosen(False, "train"), chosen(False, "val"), chosen(True, "train", "val")


def packed(manifests: list[Manifest], recipe: Recipe, out: Path) -> list[Packed]:
    """Read and standardise images as a training does."""
    place = Experiment(recipe, Path(), out, cache=default_cache_folder())
    lungs, cache = lung_segmenter(place), place.open_cache()
    return [pack_images(one, recipe, lungs, cache, Progress()) for one in manifests]


def trained(recipe: Recipe, train: Packed, val: Packed, evaluated: Packed, out: Path) -> np.ndarray:
    """Train, or read what was trained before; return the log-odds of the target, shape (N,)."""
    run = out / f"{recipe.name}-{recipe.seed}"
    stored = run / SCORES_FILE
    check_images(run, recipe, train, evaluated)
    if not stored.exists():
        print(run, flush=True)
        fabric = make_fabric()
        network = build_recipe_network(recipe)
        network = fit(recipe, network, train, val, run, fabric=fabric, resume=True, progress=Lines())
        logits = predict_logits(network, evaluated.images, fabric).numpy()
        with replacing(stored, "wb") as file:
            np.savez(file, logits=logits)
    with np.load(stored) as found:
        logits = found["logits"]
    return log_odds(logits, recipe.target_mask)


def check_images(run: Path, recipe: Recipe, train: Packed, evaluated: Packed) -> None:
    """Write what a run is trained and evaluated on, or check that it is what was written."""
    trained_on = hashlib.sha256(train.images.tobytes())
    trained_on.update(train.possible.tobytes())
    facts = {
        "recipe": recipe.sha256,
        "trained_on": trained_on.hexdigest(),
        "evaluated": [record.path for record in evaluated.records],
    }
    path = run / IMAGES_FILE
    if not run.exists() or not any(run.iterdir()):
        run.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            json.dump(facts, file)
    elif not path.exists() or json.loads(path.read_text(encoding="utf-8")) != facts:
        raise SystemExit(f"{run}: is of another recipe, or of other images or their order; use another --out")


if __name__ == "__main__":
    main()
