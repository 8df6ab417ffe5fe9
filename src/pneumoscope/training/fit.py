"""The training loop, to be read from top to bottom.

Lightning Fabric carries it to bf16, to a GPU and, under ``torchrun``, to several. Every random number
of an epoch comes from (seed, epoch), so a run that is resumed goes on as if it had never stopped.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from torch import Tensor

from pneumoscope.errors import DataError
from pneumoscope.training.augment import augment, mixup
from pneumoscope.training.dataset import Packed
from pneumoscope.training.ema import WeightAverage
from pneumoscope.training.history import Epoch, append_epoch, trim_history
from pneumoscope.training.loss import Targets, cross_entropy
from pneumoscope.training.multitask import MultiTask
from pneumoscope.training.networks import Network, freeze, set_training
from pneumoscope.training.recipe import Phase, Recipe

__all__ = [
    "CHECKPOINT_FILE",
    "cpu_has_bf16",
    "fit",
    "make_fabric",
    "predict_logits",
]

log = logging.getLogger(__name__)

CHECKPOINT_FILE = "last.ckpt"
EVALUATION_BATCH = 64


@dataclass
class _State:
    """What a checkpoint holds besides weights."""

    epoch: int = 0
    best_loss: float = math.inf
    stale: int = 0
    stopped: bool = False


def make_fabric(devices: str = "auto") -> Fabric:
    """Return the engine: a GPU where there is one; ``torchrun`` says how many processes there are.

    It computes in bf16 where the device does so itself, and in float32 elsewhere: a processor without
    AVX-512 only imitates bf16, at a tenth of the speed.

    Parameters
    ----------
    devices : str
        ``auto``, ``cpu`` or ``cuda``.
    """
    # Fabric by itself would take every GPU and start this command once for each.
    local, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    cuda = devices == "cuda" or (devices == "auto" and torch.cuda.is_available())
    fabric = Fabric(
        accelerator=devices,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if cuda or cpu_has_bf16() else "32-true",
    )
    fabric.launch()
    return fabric


def cpu_has_bf16() -> bool:
    """Return whether this processor multiplies bf16 faster than float32."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def fit(
    recipe: Recipe,
    network: Network,
    train: Packed,
    val: Packed,
    run: Path,
    *,
    fabric: Fabric,
    teacher: npt.NDArray[np.float32] | None = None,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Network:
    """Train a network as a recipe says and return it with the weights to keep.

    Parameters
    ----------
    recipe : Recipe
    network : Network
        Freshly built; where `resume` finds a checkpoint, its weights are replaced.
    train, val : Packed
    run : Path
        Gets a checkpoint after every epoch, ``history.csv`` and TensorBoard logs.
    teacher : ndarray of float32, shape (N, K), optional
        A teacher's probabilities for the training images; see `pneumoscope.training.distil`.
    resume : bool
        Go on from the run's checkpoint, if there is one.

    Raises
    ------
    DataError
        If the loss becomes infinite or not a number.
    """
    if resume and not (run / CHECKPOINT_FILE).exists():
        log.info("nothing to resume in %s: starting from the first epoch", run)
    if fabric.world_size == 1:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = _Trainer(recipe, network, train, val, run, fabric, teacher)
    if resume and (run / CHECKPOINT_FILE).exists():
        trainer.load()
    first = 0
    for number, phase in enumerate(recipe.phases):
        last = first + phase.epochs
        if trainer.state.epoch < last and not trainer.state.stopped:
            trainer.run_phase(number, phase, first, on_epoch)
        first = last
    return trainer.kept()


class _Trainer:
    def __init__(
        self,
        recipe: Recipe,
        network: Network,
        train: Packed,
        val: Packed,
        run: Path,
        fabric: Fabric,
        teacher: npt.NDArray[np.float32] | None,
    ) -> None:
        self.recipe, self.run, self.fabric = recipe, run, fabric
        self.network: Network = network.to(fabric.device)
        self.average = WeightAverage(self.network, recipe.ema) if recipe.ema else None
        self.best: dict[str, Tensor] | None = None
        self.state = _State()
        self.optimizer_state: dict[str, Any] | None = None
        self.train, self.val = train, val
        maps = [train.images] if train.lungs is None else [train.images, train.lungs]
        self.images = torch.from_numpy(np.concatenate(maps, axis=1)).to(fabric.device)
        counts = np.bincount(train.labels, minlength=len(recipe.classes))
        balanced = len(train) / (len(recipe.classes) * np.maximum(counts, 1))
        self.class_weights = balanced if recipe.class_weights == "balanced" else np.ones_like(balanced)
        names, source = np.unique([record.source for record in train.records], return_inverse=True)
        self.learner = MultiTask(self.network, recipe.tasks, len(names), seed=recipe.seed)
        self.learner.to(fabric.device)
        self.targets = self._targets(train, teacher, source.astype(np.int64))

    def _targets(
        self, packed: Packed, teacher: npt.NDArray[np.float32] | None, source: npt.NDArray[np.int64]
    ) -> Targets:
        recipe, device = self.recipe, self.fabric.device
        # By class: which sources have images of it.
        has = packed.possible.T @ np.eye(source.max() + 1, dtype=np.bool_)[source]
        smoothing = [recipe.smoothing(record.source, record.label) for record in packed.records]
        return Targets(
            torch.from_numpy(packed.possible).to(device),
            torch.tensor(smoothing, dtype=torch.float32, device=device),
            torch.tensor(self.class_weights[packed.labels], dtype=torch.float32, device=device),
            None if teacher is None else torch.from_numpy(teacher).to(device),
            recipe.distillation.trust if recipe.distillation else 0.0,
            torch.from_numpy(source).to(device),
            torch.from_numpy(packed.possible @ has).to(device),
        )

    def run_phase(self, number: int, phase: Phase, first: int, on_epoch: Callable[[Epoch], None]) -> None:
        """Train the epochs of one phase that are still to do."""
        learning = freeze(self.network, phase.frozen)
        log.info(
            "phase %d: %d epochs, lr %g, %d parameters learn", number + 1, phase.epochs, phase.lr, learning
        )
        model, optimizer = self.fabric.setup(self.learner, self._optimizer(phase), move_to_device=False)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        for epoch in range(max(first, self.state.epoch), first + phase.epochs):
            started = time.monotonic()
            loss = self._train_epoch(model, optimizer, phase, epoch, first)
            # Batch statistics differ between processes: one of them speaks for all.
            val_loss, auroc, accuracy = self.fabric.broadcast(self._validate())
            lr = optimizer.param_groups[0]["lr"]
            seconds = time.monotonic() - started
            row = Epoch(epoch + 1, number + 1, lr, loss, val_loss, auroc, accuracy, round(seconds, 2))
            self._keep_score(row)
            self._save(optimizer, row)
            on_epoch(row)
            if self.state.stopped:
                log.info("stopped early: no lower validation loss for %d epochs", self.state.stale)
                return

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        learning = [parameter for parameter in self.learner.parameters() if parameter.requires_grad]
        decay = self.recipe.weight_decay
        if self.recipe.optimizer == "sgd":
            return torch.optim.SGD(learning, lr=phase.lr, momentum=0.9, weight_decay=decay, nesterov=True)
        kind = torch.optim.Adam if self.recipe.optimizer == "adam" else torch.optim.AdamW
        return kind(learning, lr=phase.lr, weight_decay=decay)

    def _train_epoch(self, model: Any, optimizer: Any, phase: Phase, epoch: int, first: int) -> float:
        """One pass over the training images; return the mean loss."""
        recipe, fabric = self.recipe, self.fabric
        order_generator = torch.Generator().manual_seed(_mix(recipe.seed, epoch, 0))
        generator = torch.Generator(fabric.device).manual_seed(
            _mix(recipe.seed, epoch, 1 + fabric.global_rank)
        )
        torch.manual_seed(_mix(recipe.seed, epoch, 1000 + fabric.global_rank))  # dropout
        order = torch.randperm(len(self.train), generator=order_generator)
        # Every process must take as many steps as the others, or they wait for each other for ever.
        whole = len(order) // fabric.world_size * fabric.world_size
        batches = _batches(order[:whole][fabric.global_rank :: fabric.world_size], recipe.batch)
        if not batches:
            raise DataError(f"{self.run}: {len(order)} training images are too few; give more")
        set_training(model)
        total = torch.zeros((), device=fabric.device)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(phase, epoch - first + step / len(batches))
            augmented = augment(self.images[batch].float() / 255, recipe.augmentation, generator)
            targets = self.targets[batch.to(fabric.device)]
            if recipe.augmentation.mixup:
                augmented, other, share = mixup(augmented, recipe.augmentation.mixup, generator)
            images, lungs = augmented[:, :1], augmented[:, 1:]
            said = model(images.contiguous(memory_format=torch.channels_last))
            loss = self.learner.loss(said, targets, lungs)
            if recipe.augmentation.mixup:
                loss = share * loss + (1 - share) * self.learner.loss(said, targets[other], lungs)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            optimizer.step()
            if self.average:
                self.average.update(self.network)
            total += loss.detach()
        summed = fabric.all_reduce(total, reduce_op="mean")
        assert isinstance(summed, Tensor)
        mean = float(summed) / len(batches)
        if not math.isfinite(mean):
            raise DataError(f"{self.run}: the loss is no longer a number in epoch {epoch + 1}; lower the lr")
        return mean

    def _evaluated(self) -> Network:
        """Return the weights that are validated and kept: the average, where there is one."""
        return self.average.network if self.average else self.network

    def _validate(self) -> tuple[float, float, float]:
        logits = predict_logits(self._evaluated(), self.val.images, self.fabric)
        weight = torch.tensor(self.class_weights[self.val.labels], dtype=torch.float32)
        targets = Targets(torch.from_numpy(self.val.possible), torch.zeros(len(self.val)), weight)
        loss = float(cross_entropy(logits, targets))
        hits = self.val.possible[np.arange(len(self.val)), logits.argmax(dim=1).numpy()]
        normal = logits.softmax(dim=1)[:, 0].numpy()
        return loss, _auroc(1 - normal, self.val.labels != 0), float(hits.mean())

    def _keep_score(self, row: Epoch) -> None:
        self.state.epoch = row.epoch
        if row.val_loss < self.state.best_loss:
            self.state.best_loss, self.state.stale = row.val_loss, 0
            self.best = {
                name: value.detach().clone() for name, value in self._evaluated().state_dict().items()
            }
        else:
            self.state.stale += 1
        self.state.stopped = self.recipe.patience is not None and self.state.stale >= self.recipe.patience

    def _save(self, optimizer: Any, row: Epoch) -> None:
        """Write the checkpoint in one step, and one row of history."""
        if self.fabric.is_global_zero:
            draft = self.run / f"{CHECKPOINT_FILE}.new"
            content = {
                "recipe": self.recipe.sha256,
                "network": self.network.state_dict(),
                "heads": self.learner.heads.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "best": self.best,
                "optimizer": optimizer.state_dict(),
                "state": asdict(self.state),
            }
            torch.save(content, draft)
            draft.replace(self.run / CHECKPOINT_FILE)
            append_epoch(self.run, row)
        self.fabric.barrier()

    def load(self) -> None:
        """Take up the run's checkpoint."""
        path = self.run / CHECKPOINT_FILE
        try:
            saved = torch.load(path, map_location=self.fabric.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, LookupError, struct.error, pickle.UnpicklingError) as error:
            raise DataError(f"{path}: the checkpoint is damaged; delete it and begin again") from error
        if saved["recipe"] != self.recipe.sha256:
            raise DataError(
                f"{path}: belongs to another recipe; resume with the same options, or use another --out"
            )
        self.network.load_state_dict(saved["network"])
        self.learner.heads.load_state_dict(saved.get("heads", {}))
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.best, self.state = saved["best"], _State(**saved["state"])
        self.optimizer_state = saved["optimizer"] if self._inside_phase() else None
        trim_history(self.run, self.state.epoch)
        log.info("resuming after epoch %d", self.state.epoch)

    def _inside_phase(self) -> bool:
        """Whether the next epoch belongs to the phase of the last one, and so to its optimizer."""
        ends = np.cumsum([phase.epochs for phase in self.recipe.phases])
        return self.state.epoch not in ends

    def kept(self) -> Network:
        """Return the network with the weights that the recipe keeps."""
        network = self._evaluated()
        if self.recipe.keep == "best" and self.best is not None:
            network.load_state_dict(self.best)
        return network.eval()


def _mix(seed: int, epoch: int, stream: int) -> int:
    """Return one seed for a (seed, epoch, stream) triple."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1)[0])


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Cut into batches; a last one of a single image is dropped, batch normalisation cannot take it."""
    return [part for part in torch.split(order, size) if len(part) > 1]


def _learning_rate(phase: Phase, progress: float) -> float:
    """Learning rate after `progress` epochs of a phase."""
    if progress < phase.warmup:
        return phase.lr * max(progress, 0.01) / phase.warmup
    if phase.schedule == "constant":
        return phase.lr
    share = (progress - phase.warmup) / max(1e-9, phase.epochs - phase.warmup)
    return phase.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@torch.inference_mode()
def predict_logits(network: Network, images: npt.NDArray[np.uint8], fabric: Fabric) -> Tensor:
    """Return logits (N, K) for packed images, float32 on the CPU."""
    network.eval()
    parts = []
    for start in range(0, len(images), EVALUATION_BATCH):
        batch = torch.from_numpy(images[start : start + EVALUATION_BATCH]).to(fabric.device)
        augmented = (batch.float() / 255).contiguous(memory_format=torch.channels_last)
        with fabric.autocast():
            logits, _ = network(augmented)
        parts.append(logits.float().cpu())
    return torch.cat(parts)


def _auroc(scores: npt.NDArray[np.floating[Any]], positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve by ranks, ties halved (Mann and Whitney, 1947)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    rank_sum = float(ranks[inverse][positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
