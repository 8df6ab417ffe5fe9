"""The walkthrough: its notebook runs, and its page is that notebook with the outputs of a run."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat import NotebookNode

REPOSITORY = Path(__file__).parents[1]
builder = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "notebooks" / "build_page.py")))
PAGE = builder.PAGE.read_text(encoding="utf-8")
IMAGE = re.compile(r"^!\[.*\]\((walkthrough-.*\.png)\)$", re.MULTILINE)
PRINTED = re.compile(r"^```text\n.*?^```$", re.MULTILINE | re.DOTALL)
FIX = "run `make tutorial`"


def notebook() -> NotebookNode:
    return nbformat.read(builder.NOTEBOOK, as_version=4)


def without_outputs(page: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", IMAGE.sub("", PRINTED.sub("", page))).strip()


def test_the_page_is_the_notebook() -> None:
    text, _ = builder.render(notebook())
    assert without_outputs(PAGE) == without_outputs(text), FIX


def test_the_notebook_holds_no_outputs() -> None:
    kept = [cell.id for cell in notebook().cells if cell.get("outputs") or cell.get("execution_count")]
    assert kept == [], "outputs belong to the page only"


def test_the_page_shows_small_images_that_are_there() -> None:
    files = {path.name: path.stat().st_size for path in builder.PAGE.parent.glob("*.png")}
    assert set(IMAGE.findall(PAGE)) == set(files), FIX
    assert sum(files.values()) <= 300 * 1024


@pytest.mark.long
@pytest.mark.timeout(600)  # less than a minute on two free cores
def test_the_notebook_runs_and_shows_what_the_page_shows(tmp_path: Path) -> None:
    run = notebook()
    short = [cell for cell in run.cells if cell.source.startswith("!pneumoscope train ")]
    assert [cell.id for cell in short] == ["train"]
    short[0].source += " --epochs 2 --limit 40 --size 64"
    builder.execute(run, tmp_path)
    short[0].source = short[0].source.removesuffix(" --epochs 2 --limit 40 --size 64")
    text, images = builder.render(run)
    assert IMAGE.findall(PAGE) == list(images), FIX
    assert without_outputs(text) == without_outputs(PAGE)
    # Files and counts are the same on every machine; probabilities differ in the last digits.
    same_everywhere = [cell for cell in run.cells if "same-everywhere" in cell.metadata.get("tags", ())]
    assert len(same_everywhere) >= 4
    for cell in same_everywhere:
        shown, _ = builder.render_code(cell)
        assert shown in PAGE, f"{cell.id}: {FIX}"
    written = tmp_path / "notebooks" / "walkthrough"
    metrics = json.loads((written / "evaluated" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images"] + metrics["not_evaluated"]["rejected"] == 90, "the test split of the samples"


def test_the_notebook_begins_and_ends_with_real_images() -> None:
    codes = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert "pneumoscope samples" in codes[0].source
    assert codes[-1].id == "your-own-image"
    assert "data fetch" not in "".join(cell.source for cell in codes), "nothing is downloaded"


def test_cell_ids_are_unique() -> None:
    ids = [cell.id for cell in notebook().cells]
    assert sorted(set(ids)) == sorted(ids), "an id names the image of a cell"


def test_a_command_that_fails_stops_the_run(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("!pneumoscope data audit nowhere")]
    with pytest.raises(RuntimeError, match="nowhere"):
        builder.execute(nbformat.v4.new_notebook(cells=cells), tmp_path)
