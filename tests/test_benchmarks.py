"""What the scripts in `benchmarks` do before they measure."""

from __future__ import annotations

import argparse
import dataclasses
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pneumoscope.data.manifest import Record
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.data.samples import samples_folder
from pneumoscope.domain import Target
from pneumoscope.training.dataset import Packed
from pneumoscope.training.recipe import load_recipe

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Return what a script defines; it may import the modules beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return lambda name: SimpleNamespace(**runpy.run_path(str(FOLDER / f"{name}.py")))


def test_chests_of_a_folder_named_from_here_are_found(script, tmp_path, monkeypatch) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(samples_folder() / "normal.jpeg", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    name, manifest = script("fit_gate").chests("openist=images")
    (record,) = manifest.records
    assert (name, record.source) == ("openist", "openist")
    assert manifest.resolve(record).is_file()


def test_runs_of_other_options_are_not_put_into_one_table(script, tmp_path) -> None:
    check_same = script("ablations").check_same
    options = {"children": Path("c"), "adults": Path("a"), "out": tmp_path / "out", "lungs": None}
    check_same(argparse.Namespace(**options, epochs=15, limit=None, seeds=2))
    check_same(argparse.Namespace(**options, epochs=15, limit=None, seeds=3))
    with pytest.raises(SystemExit, match="has runs with another epochs, limit; use another --out"):
        check_same(argparse.Namespace(**options, epochs=30, limit=600, seeds=2))


def test_a_folder_without_images_is_one_line(script, tmp_path, monkeypatch) -> None:
    (tmp_path / "sizes.csv").write_text("file\n")  # not an image, as beside those of the full set
    monkeypatch.setattr(sys, "argv", ["stages.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="no JPEG or PNG image in this folder"):
        script("stages").main()


def test_published_systems_are_compared_on_their_own_set(script) -> None:
    table = script("results_table")
    row = {"recipe": "vgg16", "seed": "0", "split": "patient", "data": table.DATA, "epochs": "5"}
    rows = [row, row | {"data": "another set", "epochs": "12"}]
    ((_, _, runs),) = table.side_by_side(rows, [{"recipe": "vgg16"}])
    assert runs["patient"]["data"] == table.DATA


def test_bundles_are_compared_across_sources_where_one_lacks_a_side(script) -> None:
    table = script("compare_bundles")
    sides = [("both", "AP"), ("both", "PA"), ("sick", ""), ("well", "")]
    records = [
        Record(f"{source}{view}{label}{n}.png", label, f"{source}{view}{label}{n}", source=source, view=view)
        for source, view in sides
        for label in ("normal", "viral")
        if not (source == "sick" and label == "normal") and not (source == "well" and label == "viral")
        for n in range(3)
    ]
    target = Target("pneumonia", ("bacterial", "viral"))
    found = {group.name: group for group in table.groups(records, target)}
    across = ["both against normal well", "sick against normal both", "sick against normal well"]
    assert list(found) == ["both", "both, AP", "both, PA", *across]
    sick = np.array([record.label == "viral" for record in records], dtype=float)
    scores = np.stack([sick, -sick])
    for group in found.values():
        right, wrong = table.compared(group, records, scores)
        assert right == f"1.000 ({len(group.sick) + len(group.normal)})"
        assert wrong.startswith("0.000 ")
    rows = table.alarms(records, scores, target, "well")
    assert rows[-1][0] == "well, normal (3)"
    with pytest.raises(SystemExit, match="--reference sick: no normal image of this source"):
        table.alarms(records, scores, target, "sick")


def test_scores_of_a_run_are_of_the_images_in_their_order(script, tmp_path) -> None:
    check, recipe = script("left_out").check_images, load_recipe("phantom")

    def images(*numbers: int, grey: int = 0) -> Packed:
        pixels = np.full((len(numbers), 1, 4, 4), grey, np.uint8)
        records = tuple(Record(f"{n}.png", "normal", f"p{n}") for n in numbers)
        return Packed(pixels, np.ones((len(numbers), 1), np.bool_), records)

    check(tmp_path / "run", recipe, images(1, 2), images(3, 4))
    check(tmp_path / "run", recipe, images(1, 2), images(3, 4))
    for train, evaluated in (
        (images(1, 2), images(4, 3)),
        (images(1, 2), images(3)),
        (images(1, 2, grey=1), images(3, 4)),
    ):
        with pytest.raises(SystemExit, match="of other images or their order; use another --out"):
            check(tmp_path / "run", recipe, train, evaluated)


def test_recipes_are_compared_on_a_source_that_was_left_out(script, tmp_path, monkeypatch, capsys) -> None:
    drawn = write_phantoms(tmp_path / "data", n=45, size=64)
    parts = [("hospital-a", "train"), ("hospital-a", "val"), ("hospital-b", "train"), ("hospital-b", "test")]
    number = {"normal": 0, "bacterial": 0, "viral": 0}
    records = []
    for one in drawn.records:
        source, split = parts[number[one.label] % len(parts)]
        number[one.label] += 1
        records.append(dataclasses.replace(one, source=source, split=split))
    drawn.with_records(records).write(tmp_path / "data.csv")
    small = load_recipe("phantom").with_values({"input.size": 64, "network.options.widths": [4, 8]})
    for name in ("small", "other"):
        recipe = small.with_epochs(1).model_copy(update={"name": name})
        (tmp_path / f"{name}.yaml").write_text(recipe.to_yaml())
    given = ["left_out.py", tmp_path / "data.csv", f"well={tmp_path / 'data' / 'NORMAL'}"]
    recipes = ["--recipe", tmp_path / "small.yaml", "--recipe", tmp_path / "other.yaml"]
    options = ["--without", "hospital-b", "--reference", "hospital-a", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", list(map(str, [*given, *recipes, *options])))
    script("left_out").main()
    first = capsys.readouterr().out
    left_out = [one for one in records if (one.source, one.split) == ("hospital-b", "train")]
    # Not those of its test split.
    assert re.search(rf"\| hospital-b \| [01]\.\d{{3}} \({len(left_out)}\) \|", first)
    script("left_out").main()  # trains nothing again
    again = capsys.readouterr().out
    assert again == first[first.index("| AUROC") :]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--without", "hospital-c"])
    with pytest.raises(SystemExit, match="--without: the data has no source hospital-c"):
        script("left_out").main()
