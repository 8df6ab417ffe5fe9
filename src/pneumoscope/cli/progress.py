"""Progress of long work on standard error: a bar on a terminal, plain lines otherwise, nothing if quiet."""

from __future__ import annotations

import logging
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from pneumoscope import __version__
from pneumoscope.cli.options import shown
from pneumoscope.parallel import Progress, TimeLeft, available_cpus, launched_as

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

__all__ = ["show_progress"]

STEP_SECONDS = 1.0  # of a step, to be named where there is no terminal
PLAIN_SECONDS = 5.0  # between the first lines where there is no terminal
MOST_PLAIN_SECONDS = 60.0  # between lines of a long step
PLAIN_SHARE = 0.1  # of the time since the step began, between two lines
DOWNLOAD = "download"  # a step that begins with this word counts bytes


@contextmanager
def show_progress(*, keep: bool = True, after: float = 0.0) -> Iterator[Progress]:
    """Yield a `Progress` that writes to standard error; log lines of the package appear beside it.

    With ``--quiet`` it shows nothing, not even messages; with ``--verbose`` also the time of each step, and
    more log lines.

    Parameters
    ----------
    keep : bool
        Leave the bar on the terminal when the work is done.
    after : float
        Seconds of work before a bar is there; messages come at once.
    """
    options = shown()
    quiet = options.quiet or launched_as().rank > 0  # the first process shows the progress of all
    # Fabric reports its precision and its processes through loggers that print by themselves.
    for library in ("lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        for module in ("rank_zero", "distributed"):
            logging.getLogger(f"{library}.utilities.{module}").setLevel(logging.WARNING)
    level = logging.WARNING if quiet else logging.DEBUG if options.verbose else logging.INFO
    logging.getLogger("pneumoscope").setLevel(level)
    if quiet or not sys.stderr.isatty():
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        if quiet:
            yield Progress()
            return
        lines = _Lines()
        try:
            with _timed(lines) as progress:
                yield progress
        finally:
            lines.end()
        return
    from rich.console import Console
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    # Through the console of the bar, which makes room for the line.
    handler = RichHandler(
        console=console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    # Standard output is left alone: rows and JSON go there.
    bars = Bars(*columns, TimeElapsedColumn(), console=console, transient=not keep, redirect_stdout=False)
    try:
        with _timed(_Bar(bars, console, after)) as progress:
            yield progress
    finally:
        bars.stop()


@contextmanager
def _timed(progress: Progress) -> Iterator[Progress]:
    """Yield the progress, or with ``--verbose`` one that also tells versions and the time of each step."""
    if not shown().verbose:
        yield progress
        return
    progress.message(
        f"pneumoscope {__version__}, Python {platform.python_version()}, {platform.platform()}, "
        f"{available_cpus()} CPUs"
    )
    timed = _Timed(progress)
    try:
        yield timed
    finally:
        timed.end()


class _Timed(Progress):
    """Passes everything on, and tells how long each step took."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step, self._began = "", time.monotonic()

    def step(self, name: str) -> None:
        self.end()
        self._step, self._began = name, time.monotonic()
        self._progress.step(name)

    def end(self) -> None:
        """Tell how long the present step took."""
        took = time.monotonic() - self._began
        if self._step:
            self._progress.message(f"{self._step}: done in {took:.2f} s")
        self._step = ""

    def update(self, done: int, total: int | None = None) -> None:
        self._progress.update(done, total)

    def message(self, line: str) -> None:
        self._progress.message(line)


class _Lines(Progress):
    """Plain lines: each step that is not over at once, each message, and a count every few seconds."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        self._begin("")

    def _begin(self, name: str) -> None:
        self._step = name
        self._began = self._last = time.monotonic()
        self._left = TimeLeft()

    def step(self, name: str) -> None:
        self.end()
        self._begin(name)
        # Some steps are one call of a library, during which nothing else could name them.
        self._timer = threading.Timer(STEP_SECONDS, typer.echo, [name], {"err": True})
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """End the present step."""
        if self._timer is not None:
            self._timer.cancel()

    def update(self, done: int, total: int | None = None) -> None:
        now = time.monotonic()
        left = self._left(now, done, total)
        pause = min(MOST_PLAIN_SECONDS, max(PLAIN_SECONDS, PLAIN_SHARE * (now - self._began)))
        if now - self._last >= pause:
            self._last = now
            typer.echo(f"{self._step}: {_count(self._step, done, total, left)}", err=True)

    def message(self, line: str) -> None:
        typer.echo(line, err=True)


class _Bar(Progress):
    """A bar for the present step; messages stay above it."""

    def __init__(self, bars: Bars, console: Console, after: float) -> None:
        self._bars, self._console = bars, console
        self._visible_from = time.monotonic() + after
        self._step = "starting"
        self._left = TimeLeft()
        self._task = bars.add_task(self._step, total=None, count="")
        self._start(time.monotonic())

    def step(self, name: str) -> None:
        self._step, self._left = name, TimeLeft()
        self._bars.reset(self._task, total=None, completed=0, description=name, count="")
        self._start(time.monotonic())

    def update(self, done: int, total: int | None = None) -> None:
        now = time.monotonic()
        count = _count(self._step, done, total, self._left(now, done, total))
        self._bars.update(self._task, completed=done, total=total, count=count)
        self._start(now)

    def message(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _start(self, now: float) -> None:
        if now >= self._visible_from:
            self._bars.start()  # does nothing where it has started


def _count(step: str, done: int, total: int | None, left: float | None) -> str:
    if step.startswith(DOWNLOAD):
        count = f"{done / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB")
    else:
        count = f"{done:,} of {total:,}" if total else f"{done:,}"
    return count if left is None else f"{count}, {_duration(left)} left"


def _duration(seconds: float) -> str:
    """Return a time in words, as exact as an estimate can be: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
