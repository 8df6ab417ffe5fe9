"""What the measurements of `pneumoscope batch` share: starting it, watching its parts, reading its rows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import dataset

__all__ = ["descendants", "finished", "parts", "rows_of", "start", "until", "workers_of"]


def start(source: Path, output: Path, *words: object) -> subprocess.Popen[str]:
    """Start a run as a process of its own; its lines on standard error go to ``OUTPUT.log``."""
    log = output.with_name(f"{output.name}.log")
    command = [sys.executable, "-m", "pneumoscope", "batch", source, output, *words]
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(list(map(str, command)), stderr=file, text=True)


def finished(run: subprocess.Popen[str], output: Path) -> dict[str, Any]:
    """Wait for the end of a run and return its summary.

    Raises
    ------
    SystemExit
        If it ended with another code than 0 or 3, or does not add up.
    """
    code = run.wait()
    if code not in {0, 3}:
        lines = output.with_name(f"{output.name}.log").read_text(encoding="utf-8").splitlines()
        raise SystemExit(f"{output}: the run ended with {code}: {lines[-1] if lines else ''}")
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    if not summary["adds_up"]:
        raise SystemExit(f"{output}: does not add up")
    return summary


def parts(output: Path) -> list[Path]:
    """Return the parts that are there, oldest first."""
    found = (output / "parts").glob("part-*.parquet")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def workers_of(output: Path) -> set[int]:
    """Return the processes that work on a part at present."""
    numbers = set()
    for note in (output / "attempts").glob("*/*"):
        try:
            number = json.loads(note.read_text())["pid"]
            if Path(f"/proc/{number}/cmdline").read_bytes().startswith(b"ray::"):
                numbers.add(number)
        except (OSError, ValueError):  # removed or not written yet; or it ended
            continue
    return numbers


def descendants(root: int, title: bytes = b"") -> list[int]:
    """Return the processes below another one whose command line begins with `title`."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue
    below, found = {root}, True
    while found:
        found = {one for one, parent in parents.items() if parent in below} - below
        below |= found
    return [one for one in below - {root} if titles.get(one, b"").startswith(title)]


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Return all rows, by id."""
    table = dataset.dataset(output / "parts").to_table()
    rows: list[dict[str, Any]] = sorted(table.to_pylist(), key=lambda row: row["id"])
    return rows


def until(found: Callable[[], object], seconds: float = 600) -> None:
    """Wait until something is so.

    Raises
    ------
    SystemExit
        If it is not within `seconds`.
    """
    end = time.monotonic() + seconds
    while not found():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:g} s in vain")
        time.sleep(0.02)
