"""The documentation builds without a warning, and its pages open without a network."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pneumoscope

REPOSITORY = Path(__file__).parents[1]


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
