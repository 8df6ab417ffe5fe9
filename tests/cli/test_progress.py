"""Progress on standard error, as all commands show it."""

from __future__ import annotations

import io
import logging
import re
import time
from functools import partial
from itertools import count

import pytest

from pneumoscope import __version__
from pneumoscope.cli import progress as module
from pneumoscope.cli.options import Shown
from pneumoscope.cli.progress import show_progress

LINE = "epoch {}/2  loss 1.000  val loss 1.000  val AUROC 0.5000  val accuracy 0.500  7 s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(stderr: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", stderr.getvalue()).splitlines()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch):
    """Make standard error a terminal or a file, from within the test: pytest replaces it before."""

    def replaced(kind: type[io.StringIO]) -> io.StringIO:
        stderr = kind()
        monkeypatch.setattr("sys.stderr", stderr)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        return stderr

    return replaced


both = pytest.mark.parametrize("kind", [Terminal, io.StringIO])


@both
@pytest.mark.parametrize("columns", ["40", "200"])
def test_every_message_stays_as_one_whole_line(screen, kind, columns, monkeypatch):
    stderr = screen(kind)
    monkeypatch.setenv("COLUMNS", columns)
    with show_progress() as progress:
        progress.step("training")
        for number in (1, 2):
            progress.message(LINE.format(number))
            progress.update(number, 2)
    whole = [line for line in printed(stderr) if re.match(r"epoch \d/2 .*  7 s$", line)]
    assert [line[:9] for line in whole] == ["epoch 1/2", "epoch 2/2"]


@both
def test_a_message_is_no_markup(screen, kind):
    stderr = screen(kind)
    with show_progress() as progress:
        progress.message("[red]/a[1].png: left out")
    assert "[red]/a[1].png: left out" in printed(stderr)


@both
def test_log_lines_stand_by_themselves(screen, kind):
    stderr = screen(kind)
    with show_progress() as progress:
        progress.step("reading images")
        logging.getLogger("pneumoscope.training").info("phase 1: 2 epochs")
        progress.step("training")
    assert "phase 1: 2 epochs" in [line.rstrip() for line in printed(stderr)]


class AtOnce:
    """A timer that has run out when it is started."""

    def __init__(self, seconds, call, args, keywords):
        self.call = partial(call, *args, **keywords)

    def start(self):
        self.call()

    def cancel(self):
        pass


def clock_of(monkeypatch, seconds: float) -> None:
    """Let each look at the clock be so many seconds after the one before."""
    ticks = count(0.0, seconds)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(ticks))


def test_plain_lines_name_each_step_and_count_now_and_then(screen, monkeypatch):
    stderr = screen(io.StringIO)
    monkeypatch.setattr(module.threading, "Timer", AtOnce)
    clock_of(monkeypatch, 2)
    with show_progress() as progress:
        progress.step("reading images")
        for done in range(1, 6):
            progress.update(done, 5)
        progress.step("downloading")
        for done in range(1, 4):
            progress.update(done * 1_000_000)
    assert printed(stderr) == [
        "reading images",
        "reading images: 3 of 5, 4 s left",
        "downloading",
        "downloading: 3.0 MB",
    ]


def test_lines_of_a_long_step_become_rarer(screen, monkeypatch):
    stderr = screen(io.StringIO)
    clock_of(monkeypatch, 1)
    with show_progress() as progress:
        progress.step("training")
        for done in range(3600):
            progress.update(done, 3600)
    lines = [line for line in printed(stderr) if ":" in line]
    assert 60 < len(lines) < 120
    assert lines[-1].startswith("training: 3,")


def test_a_step_that_is_over_at_once_is_no_line_and_a_blocking_one_is_named(screen, monkeypatch):
    stderr = screen(io.StringIO)
    monkeypatch.setattr(module, "STEP_SECONDS", 0.2)
    with show_progress() as progress:
        for name in ("listing files", "hashing files"):
            progress.step(name)
        progress.step("exporting")
        time.sleep(0.5)
        progress.step("writing the report")
    time.sleep(0.3)
    assert printed(stderr) == ["exporting"]


@both
def test_quiet_shows_nothing_and_keeps_warnings(screen, kind, monkeypatch):
    stderr = screen(kind)
    monkeypatch.setattr(module.threading, "Timer", AtOnce)
    monkeypatch.setattr(module, "shown", lambda: Shown(quiet=True))
    with show_progress() as progress:
        progress.step("training")
        progress.update(1, 2)
        progress.message(LINE)
        logging.getLogger("pneumoscope.training").info("phase 1: 2 epochs")
        assert stderr.getvalue() == ""
        logging.getLogger("pneumoscope.experiment").warning("3 of 30 images are rejected and left out")
    assert [line for line in printed(stderr) if line] == ["3 of 30 images are rejected and left out"]


@both
def test_verbose_tells_versions_times_and_log_lines(screen, kind, monkeypatch):
    stderr = screen(kind)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(module, "shown", lambda: Shown(verbose=True))
    clock_of(monkeypatch, 3)
    with show_progress() as progress:
        progress.step("reading images")
        progress.step("training")
        logging.getLogger("pneumoscope.training").debug("batch 1")
    lines = [line.rstrip() for line in printed(stderr)]
    assert any(line.startswith(f"pneumoscope {__version__}, Python ") for line in lines)
    for expected in (r"reading images: done in \d+\.00 s", r"training: done in \d+\.00 s", "batch 1"):
        assert any(re.fullmatch(expected, line) for line in lines)


def test_a_bar_that_waits_is_not_there_for_short_work(screen):
    stderr = screen(Terminal)
    with show_progress(after=60) as progress:
        progress.step("predicting")
        progress.update(1, 2)
        progress.message("a.png: left out")
    assert printed(stderr) == ["a.png: left out"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (41.6, "42 s"), (60, "1 min"), (3570, "1 h 0 min"), (12_000, "3 h 20 min")],
)
def test_the_time_left_is_as_exact_as_an_estimate(seconds, words):
    assert module._duration(seconds) == words


@pytest.mark.parametrize(("total", "count"), [(30, "12 of 30"), (None, "12")])
def test_a_bar_counts_with_and_without_a_total(screen, total, count, monkeypatch):
    stderr = screen(Terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with show_progress() as progress:
        progress.step("predicting")
        progress.update(12, total)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stderr.getvalue())
    assert re.search(rf"predicting .*\b{count}\b", text)
