"""What training prints while it runs."""

from __future__ import annotations

import io
import logging
import re

import pytest

from pneumoscope.cli.training_progress import show_progress
from pneumoscope.training.history import Epoch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def epoch(number: int) -> Epoch:
    return Epoch(
        epoch=number,
        phase=1,
        lr=0.001,
        train_loss=1.0,
        val_loss=1.0,
        val_auroc=0.5,
        val_accuracy=0.5,
        seconds=7.0,
    )


def printed(stderr: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", stderr.getvalue()).splitlines()


@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize("screen", [Terminal, io.StringIO])
def test_every_epoch_stays_as_one_whole_line(
    screen: type[io.StringIO], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = screen()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("COLUMNS", columns)
    with show_progress() as progress:
        progress.on_step("training")
        for number in (1, 2):
            progress.on_epoch(epoch(number), 2)
    whole = [line for line in printed(stderr) if re.match(r"epoch \d/2 .*  7 s$", line)]
    assert [line[:9] for line in whole] == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.parametrize("screen", [Terminal, io.StringIO])
def test_log_lines_stand_by_themselves(screen: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = screen()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with show_progress() as progress:
        progress.on_step("reading images")
        logging.getLogger("pneumoscope.training").info("phase 1: 2 epochs")
        progress.on_step("training")
    assert "phase 1: 2 epochs" in [line.rstrip() for line in printed(stderr)]
