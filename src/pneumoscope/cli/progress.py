"""Progress of long work on standard error: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from pneumoscope.parallel import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

__all__ = ["show_progress"]

PLAIN_SECONDS = 5.0  # between lines where there is no terminal
DOWNLOAD = "download"  # a step that begins with this word counts bytes


@contextmanager
def show_progress(*, keep: bool = True) -> Iterator[Progress]:
    """Yield a `Progress` that writes to standard error; log lines of the package appear beside it.

    Parameters
    ----------
    keep : bool
        Leave the bar on the terminal when the work is done.
    """
    # Fabric reports its precision through loggers that print by themselves.
    for library in ("lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(f"{library}.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pneumoscope").setLevel(logging.INFO)
    if not sys.stderr.isatty():
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        yield _Lines()
        return
    from rich.console import Console
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    # Through the console of the bar, which makes room for the line.
    handler = RichHandler(
        console=console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    # Standard output is left alone: rows and JSON go there.
    with Bars(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=not keep,
        redirect_stdout=False,
    ) as bars:
        yield _Bar(bars, console)


class _Lines(Progress):
    """Plain lines: each step, each message, and a count every few seconds."""

    def __init__(self) -> None:
        self._step = ""
        self._last = time.monotonic()

    def step(self, name: str) -> None:
        self._step, self._last = name, time.monotonic()
        typer.echo(name, err=True)

    def update(self, done: int, total: int | None = None) -> None:
        now = time.monotonic()
        if now - self._last >= PLAIN_SECONDS:
            self._last = now
            typer.echo(f"{self._step}: {_count(self._step, done, total)}", err=True)

    def message(self, line: str) -> None:
        typer.echo(line, err=True)


class _Bar(Progress):
    """A bar for the present step; messages stay above it."""

    def __init__(self, bars: Bars, console: Console) -> None:
        self._bars, self._console = bars, console
        self._step = "starting"
        self._task = bars.add_task(self._step, total=None, count="")

    def step(self, name: str) -> None:
        self._step = name
        self._bars.reset(self._task, total=None, completed=0, description=name, count="")

    def update(self, done: int, total: int | None = None) -> None:
        count = _count(self._step, done, total)
        self._bars.update(self._task, completed=done, total=total, count=count)

    def message(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def _count(step: str, done: int, total: int | None) -> str:
    if step.startswith(DOWNLOAD):
        return f"{done / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB")
    return f"{done} of {total}" if total else f"{done}"
