"""Progress on standard error, as all commands show it."""

from __future__ import annotations

import io
import logging
import re

import pytest

from pneumoscope.cli import progress as module
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


def test_plain_lines_name_each_step_and_count_now_and_then(screen, monkeypatch):
    stderr = screen(io.StringIO)
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with show_progress() as progress:
        progress.step("reading images")
        for done in range(1, 6):
            progress.update(done, 5)
        progress.step("downloading")
        for done in range(1, 4):
            progress.update(done * 1_000_000)
    assert printed(stderr) == [
        "reading images",
        "reading images: 3 of 5",
        "downloading",
        "downloading: 3.0 MB",
    ]


@pytest.mark.parametrize(("total", "count"), [(30, "12 of 30"), (None, "12")])
def test_a_bar_counts_with_and_without_a_total(screen, total, count, monkeypatch):
    stderr = screen(Terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with show_progress() as progress:
        progress.step("predicting")
        progress.update(12, total)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stderr.getvalue())
    assert re.search(rf"predicting .*\b{count}\b", text)
