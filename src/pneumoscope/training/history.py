"""The history of a run: one row per epoch, in ``history.csv`` and, where it is installed, for TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pneumoscope.data.drafts import replacing

__all__ = ["HISTORY_FILE", "Epoch", "append_epoch", "epochs_done", "trim_history"]

HISTORY_FILE, TENSORBOARD_FOLDER = "history.csv", "tensorboard"


@dataclass(frozen=True)
class Epoch:
    """One row of ``history.csv``; losses are mean cross-entropies, the other metrics are of split ``val``."""

    epoch: int
    phase: int
    lr: float
    train_loss: float
    val_loss: float
    val_auroc: float
    val_accuracy: float
    seconds: float

    def line(self, epochs: int) -> str:
        """Return the row as a line, given the number of epochs in all."""
        return (
            f"epoch {self.epoch}/{epochs}  loss {self.train_loss:.3f}  val loss {self.val_loss:.3f}  "
            f"val AUROC {self.val_auroc:.4f}  val accuracy {self.val_accuracy:.3f}  {self.seconds:.0f} s"
        )


def append_epoch(run: Path, row: Epoch) -> None:
    """Add an epoch to the history of a run; the first one replaces what an earlier run has left."""
    path = run / HISTORY_FILE
    new = not path.exists() or row.epoch == 1
    with path.open("w" if new else "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        if new:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" for name, value in asdict(row).items()})
    if row.epoch == 1:
        for curves in (run / TENSORBOARD_FOLDER).glob("events.out.tfevents.*"):
            curves.unlink()
    if importlib.util.find_spec("tensorboard") is not None:
        _log_tensorboard(run / TENSORBOARD_FOLDER, row)


def epochs_done(run: Path) -> int:
    """Return how many epochs the history of a run has."""
    with (run / HISTORY_FILE).open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.DictReader(file))


def trim_history(run: Path, epochs: int) -> None:
    """Drop rows after the checkpoint: a run can be interrupted between the two writes."""
    path = run / HISTORY_FILE
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        with replacing(path) as file:
            file.write("\n".join(lines[: epochs + 1]) + "\n")


def _log_tensorboard(folder: Path, row: Epoch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name in ("lr", "train_loss", "val_loss", "val_auroc", "val_accuracy"):
            writer.add_scalar(name, getattr(row, name), row.epoch)
