"""How training tells what it does: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pneumoscope.experiment import Progress
    from pneumoscope.training.history import Epoch


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield the callbacks that print on standard error while an experiment runs."""
    from pneumoscope.experiment import Progress

    # Fabric announces its precision through loggers that already print.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pneumoscope").setLevel(logging.INFO)
    if not sys.stderr.isatty():
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        yield Progress(
            on_step=lambda step: typer.echo(step, err=True),
            on_epoch=lambda row, epochs: typer.echo(_line(row, epochs), err=True),
        )
        return
    from rich.console import Console
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Through the console of the bar, which makes room for the line.
    handler = RichHandler(
        console=console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    with Bars(*columns, console=console) as bars:
        task = bars.add_task("starting", total=None)

        def on_epoch(row: Epoch, epochs: int) -> None:
            # Above the bar, where all of them stay to be compared.
            console.print(_line(row, epochs), highlight=False, soft_wrap=True)
            bars.update(task, total=epochs, completed=row.epoch)

        yield Progress(
            on_step=lambda step: bars.update(task, description=step, total=None, completed=0),
            on_images=lambda done, total: bars.update(task, completed=done, total=total),
            on_epoch=on_epoch,
        )


def _line(row: Epoch, epochs: int) -> str:
    return (
        f"epoch {row.epoch}/{epochs}  loss {row.train_loss:.3f}  val loss {row.val_loss:.3f}  "
        f"val AUROC {row.val_auroc:.4f}  val accuracy {row.val_accuracy:.3f}  {row.seconds:.0f} s"
    )
