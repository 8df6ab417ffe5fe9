"""The retired words of ``docs/reference/glossary.md`` occur in no text that a user sees.

Checked: documentation, help of every command, messages in the source, docstrings of the public API, the page,
report templates, the shipped model card and bundle, and the recipes.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import CliRunner

import pneumoscope
from pneumoscope.cli import COMMANDS

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "pneumoscope"
GLOSSARY = REPOSITORY / "docs" / "reference" / "glossary.md"

# Text that holds a retired word for a reason: file, and the exact text, which is left out of the search.
ALLOWED = {
    # Keys of bundles of format 1.
    "src/pneumoscope/model/upgrade_results.py": ["Images a second, from file to answer", "all answers"],
}
SHOWN_ATTRIBUTES = {"alt", "aria-label", "content", "placeholder", "title"}
STRING = re.compile(r"""'((?:\\.|[^'\\\n])*)'|"((?:\\.|[^"\\\n])*)"|`((?:\\.|[^`\\])*)`""")
COMMENT = re.compile(r"/\*.*?\*/|(?<![:\"'`\w])//[^\n]*", re.DOTALL)


def retired_words() -> list[str]:
    table = GLOSSARY.read_text(encoding="utf-8").split("\n\n")[2]
    rows = [line.strip("| ").split("|") for line in table.splitlines()[2:]]
    return [word for row in rows if len(row) == 3 for word in re.findall(r"`([^`]+)`", row[2])]


def _pattern(words: list[str]) -> re.Pattern[str]:
    phrases = (r"\s+".join(map(re.escape, word.split())) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{'|'.join(phrases)})(?![\w-])", re.IGNORECASE)


RETIRED = _pattern(retired_words())


def hits(name: str, text: str) -> list[str]:
    """Return each retired word with the text around it."""
    for allowed in ALLOWED.get(name, []):
        text = text.replace(allowed, "")
    return [
        f"{match[0]!r} in {' '.join(text[max(0, match.start() - 40) : match.end() + 30].split())!r}"
        for match in RETIRED.finditer(text)
    ]


def _relative(paths: Iterator[Path]) -> list[str]:
    return sorted(str(path.relative_to(REPOSITORY)) for path in paths)


PAGES = ["README.md", "CONTRIBUTING.md", *_relative((REPOSITORY / "docs").rglob("*.md"))]
PAGES.remove(str(GLOSSARY.relative_to(REPOSITORY)))


def test_the_glossary_names_words() -> None:
    words = retired_words()
    assert {"picture", "judged", "answers", "refused", "mend", "learnt", "elsewhere", "amid"} <= set(words)
    assert hits("", "The Pictures were judged, and the\n  figures stand elsewhere.") != []
    assert len(hits("", "The Pictures were judged, and the\n  figures stand elsewhere.")) == 4
    assert hits("", "A predicted image, evaluated in matplotlib_figures and pictured.") == []


@pytest.mark.parametrize("name", PAGES)
def test_documentation(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert hits(name, re.sub("</?picture>", "", text)) == [], "but for the element of HTML"


def _sentences(tree: ast.Module) -> Iterator[str]:
    """Yield the strings with a space in them, joined where they are parts of one; docstrings are left out."""
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            constants = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield "".join(constants)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in docstrings | parts
            and re.search(r"\s", node.value)
        ):
            yield node.value


@pytest.mark.parametrize("name", _relative(SOURCE.rglob("*.py")))
def test_messages_in_the_source(name: str) -> None:
    tree = ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))
    assert [hit for text in _sentences(tree) for hit in hits(name, text)] == []


def _helps(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the name and help of a command and of its subcommands."""
    done = CliRunner().invoke(command, ["--help"], env={"COLUMNS": "1000"})
    assert done.exit_code == 0, done.output
    yield name, done.output
    for subname, subcommand in getattr(command, "commands", {}).items():
        yield from _helps(subcommand, f"{name} {subname}")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str) -> None:
    module, attribute, overview = COMMANDS[name]
    call = getattr(import_module(module), attribute)
    if not isinstance(call, typer.Typer):
        app = typer.Typer()
        app.command()(call)
        call = app
    helps = {"overview": overview, **dict(_helps(typer.main.get_command(call), name))}
    assert {command: found for command, text in helps.items() if (found := hits(command, text))} == {}


@pytest.mark.parametrize("name", sorted({*pneumoscope.__all__} - {"__version__"}))
def test_docstrings_of_the_public_api(name: str) -> None:
    public = getattr(pneumoscope, name)
    members = vars(public).items() if inspect.isclass(public) else ()
    texts = [public.__doc__, *(value.__doc__ for key, value in members if not key.startswith("_"))]
    assert [hit for text in texts if isinstance(text, str) for hit in hits(name, text)] == []


class _Shown(HTMLParser):
    """Collects what a browser shows, or a screen reader says."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.texts += [value for key, value in attrs if key in SHOWN_ATTRIBUTES and value]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # neither script nor style
            self.texts.append(data)


@pytest.mark.parametrize(
    "name", _relative(path for path in SOURCE.rglob("*") if path.suffix in {".html", ".j2"})
)
def test_pages_and_templates(name: str) -> None:
    shown = _Shown()
    shown.feed((REPOSITORY / name).read_text(encoding="utf-8"))
    assert hits(name, " ".join(shown.texts)) == []


@pytest.mark.parametrize("name", _relative(SOURCE.rglob("*.js")))
def test_strings_of_the_page(name: str) -> None:
    code = COMMENT.sub("", (REPOSITORY / name).read_text(encoding="utf-8"))
    strings = ("".join(found.groups("")) for found in STRING.finditer(code))
    texts = [text for text in strings if re.search(r"\s|^[A-Z]", text)]
    assert [hit for text in texts for hit in hits(name, text)] == []


def _values(value: Any) -> Iterator[str]:
    """Yield the keys and strings of nested data."""
    if isinstance(value, dict):
        yield from (str(key) for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _values(one)
    elif isinstance(value, str):
        yield value


def test_shipped_bundle() -> None:
    folder = SOURCE / "bundles" / "default"
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    texts = [(folder / "card.md").read_text(encoding="utf-8"), *_values(manifest)]
    assert [hit for text in texts for hit in hits("bundles/default", text)] == []


@pytest.mark.parametrize("name", _relative((SOURCE / "recipes").glob("*.yaml")))
def test_recipes(name: str) -> None:
    recipe = yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))
    assert [hit for text in _values(recipe) for hit in hits(name, text)] == []
