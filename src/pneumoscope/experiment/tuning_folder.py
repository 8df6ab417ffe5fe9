"""The folder of a search: what the search is, so that it is continued as it was begun, and its lock."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumoscope.data.drafts import locked, replacing
from pneumoscope.errors import DataError
from pneumoscope.experiment.plan import RECIPE_FILE, is_of_another_recipe
from pneumoscope.experiment.run_folder import SEARCH_FILE, read_note
from pneumoscope.training.recipe import Recipe

__all__ = ["check_same", "held", "repair_journal", "write_search"]

SPACE_FILE, LOCK_FILE = "space.yaml", "lock"


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Make the folder, and keep it for this process while it searches.

    Raises
    ------
    DataError
        If the folder cannot be written, another process searches in it, or on a system without its locks.
    """
    if importlib.util.find_spec("fcntl") is None:  # Windows
        raise DataError("tune runs on Linux and macOS; on Windows, run it in a container or under WSL")
    taken = "another search works in this folder (process {holder}); wait, or use another --out"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = locked(out / LOCK_FILE, taken, "use --out")
    except OSError as error:
        raise DataError(f"{out}: the folder cannot be written ({error.strerror})") from error
    with file:
        yield


def check_same(out: Path, recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Check that the folder holds the search with these options, or nothing.

    Parameters
    ----------
    out : Path
    recipe : Recipe
    facts : mapping of str to object
        Options of the search by their names on the command line, JSON-ready.

    Raises
    ------
    DataError
        If it holds another search, or a run.
    """
    path = out / SEARCH_FILE
    if not path.exists() and (out / RECIPE_FILE).exists():
        raise DataError(f"{out}: holds a run that is no search; use another --out")
    if is_of_another_recipe(out, recipe):
        raise DataError(f"{out}: holds a search of another recipe; use the same options, or another --out")
    if path.exists():
        begun = read_note(path, dict)
        for option, value in facts.items():
            if begun.get(option) != value:
                raise DataError(f"{out}: searched with another --{option}; use the same, or another --out")


def write_search(out: Path, recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Write what the search is; the recipe last, since a recipe alone is taken for a run."""
    texts = {
        SEARCH_FILE: json.dumps(dict(facts), indent=2) + "\n",
        SPACE_FILE: facts["space"],
        RECIPE_FILE: recipe.to_yaml(),
    }
    for name, text in texts.items():
        with replacing(out / name) as file:
            file.write(text)


def repair_journal(path: Path) -> None:
    """Remove what a killed process left in the journal: half a line, and the lock of a write.

    Raises
    ------
    DataError
        If another line is damaged.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        if not _is_event(line):
            raise DataError(f"{path}, line {number}: damaged; delete the folder, or use another --out")


def _is_event(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and "op_code" in event
