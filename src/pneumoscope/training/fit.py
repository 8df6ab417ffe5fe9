"""The training loop, to be read from top to bottom.

Lightning Fabric runs it in bf16, on a GPU and, under ``torchrun``, in several processes, which divide each
batch of the recipe. Every random number of an epoch comes from (seed, epoch), so a resumed run gives the same
weights as an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import logging
import math
import pickle
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress
from pneumoscope.training.augment import augment
from pneumoscope.training.batch_norms import measure_once
from pneumoscope.training.dataset import Packed, draw_chances
from pneumoscope.training.expert import fit_gate, members
from pneumoscope.training.global_norm import shared_batch_statistics
from pneumoscope.training.history import Epoch, append_epoch, trim_history
from pneumoscope.training.loss import MultiTask, Targets, cross_entropy
from pneumoscope.training.networks import Network, freeze, set_training
from pneumoscope.training.outputs import pooled_features, predict_logits
from pneumoscope.training.processes import check_divides, gathered, own_parts, shared
from pneumoscope.training.pyramid import PyramidWithExpert
from pneumoscope.training.recipe import Phase, Recipe
from pneumoscope.training.schedules import moving_average, rate, set_decay

__all__ = ["CHECKPOINT_FILE", "fit"]

log = logging.getLogger(__name__)

CHECKPOINT_FILE = "last.ckpt"


@dataclass
class _State:
    """The part of a checkpoint that is not weights.

    `steps` counts updates of the average. `phase` is the index of the current phase, which began after epoch
    `begun` and had its `lowest` validation loss `waited` epochs ago.
    """

    epoch: int = 0
    steps: int = 0
    best_loss: float = math.inf
    phase: int = 0
    begun: int = 0
    lowest: float = math.inf
    waited: int = 0


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
    after_epoch: Callable[[Epoch], None] | None = None,
    progress: Progress | None = None,
) -> Network:
    """Train a network by a recipe and return it with the weights to keep.

    Parameters
    ----------
    recipe : Recipe
        With classes and target; see `Recipe.resolved`.
    network : Network
        Freshly built; where `resume` finds a checkpoint, its weights are replaced.
    train, val : Packed
        The same in every process, and so is `network`.
    run : Path
        Gets a checkpoint after every epoch, ``history.csv`` and, where TensorBoard is installed, its logs.
    teacher : ndarray of float32, shape (N, K), optional
        Probabilities of a teacher for the training images; see `pneumoscope.training.distil`.
    resume : bool
        Continue from the checkpoint of the run, if there is one.
    after_epoch : callable, optional
        Gets each row of the history, in the first process; what it raises ends the training.
    progress : Progress, optional
        Gets one line per epoch, and the number of batches.

    Raises
    ------
    DataError
        If the loss becomes infinite or not a number, or there is an expert without images.
    RecipeError
        If the batch cannot be divided over the processes.
    """
    begun = resume and shared(fabric, (run / CHECKPOINT_FILE).exists)
    if not begun:
        measure_once(network, train.images, fabric)
    if fabric.world_size == 1:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_divides(recipe.batch, fabric.world_size)
    trainer = _Trainer(recipe, network, train, val, run, fabric, teacher)
    trainer.after_epoch = after_epoch if fabric.is_global_zero else None
    if begun:
        trainer.load()
    with shared_batch_statistics(network, fabric):
        for phase in recipe.phases[trainer.state.phase :]:
            trainer.run_phase(phase, progress or Progress())
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
        self.after_epoch: Callable[[Epoch], None] | None = None
        self.average = moving_average(self.network) if recipe.ema else None
        self.best: dict[str, Tensor] | None = None
        self.state = _State()
        self.resumed: dict[str, Any] = {}
        self.train, self.val = train, val
        self.members = members(recipe, train.records)
        # In the order that `augment` takes them.
        maps = [one for one in (train.images, train.lungs, train.boxes) if one is not None]
        self.images = torch.from_numpy(np.concatenate(maps, axis=1)).to(fabric.device)
        classes = len(recipe.output_classes)
        balanced = len(train) / (classes * np.maximum(train.shares.sum(axis=0), 1))
        self.class_weights = balanced if recipe.class_weights == "balanced" else np.ones_like(balanced)
        names, source = np.unique([record.source for record in train.records], return_inverse=True)
        self.learner = MultiTask(self.network, recipe.tasks, len(names), recipe.target_mask, seed=recipe.seed)
        self.learner.to(fabric.device)
        self.targets = self._targets(train, teacher, source.astype(np.int64))

    def _targets(
        self, packed: Packed, teacher: npt.NDArray[np.float32] | None, source: npt.NDArray[np.int64]
    ) -> Targets:
        recipe, device = self.recipe, self.fabric.device
        # By class: the sources that have images of it.
        has = packed.possible.T @ np.eye(source.max() + 1, dtype=np.bool_)[source]
        smoothing = [recipe.smoothing(record.source, record.label) for record in packed.records]
        return Targets(
            possible=torch.from_numpy(packed.possible).to(device),
            smoothing=torch.tensor(smoothing, dtype=torch.float32, device=device),
            weight=torch.tensor(packed.shares @ self.class_weights, dtype=torch.float32, device=device),
            teacher=None if teacher is None else torch.from_numpy(teacher).to(device),
            source=torch.from_numpy(source).to(device),
            rivals=torch.from_numpy(packed.possible @ has).to(device),
        )

    def run_phase(self, phase: Phase, progress: Progress) -> None:
        """Train the remaining epochs of the current phase."""
        number = self.state.phase + 1
        if phase.expert:
            self._start_expert()
        trainable = freeze(self.network, phase.frozen, expert=phase.expert)
        facts = (number, phase.epochs, phase.lr, trainable)
        log.info("phase %d: %d epochs, lr %g, %d trainable parameters", *facts)
        self._set_up(phase)
        plain = self._optimizer(phase)
        batches = len(self._batches(0))
        schedule = LambdaLR(plain, lambda step: rate(phase, step / batches))
        model, optimizer = self.fabric.setup(self.learner, plain, move_to_device=False)
        if self.resumed:
            optimizer.load_state_dict(self.resumed["optimizer"])
            schedule.load_state_dict(self.resumed["schedule"])
            self.resumed = {}
        while self.state.phase < number:
            started, epoch = time.monotonic(), self.state.epoch
            loss, lr = self._train_epoch(model, optimizer, schedule, epoch, progress)
            val_loss, auroc, accuracy = self.fabric.broadcast(self._validate())
            seconds = round(time.monotonic() - started, 2)
            row = Epoch(epoch + 1, number, lr, loss, val_loss, auroc, accuracy, seconds)
            early = self._keep_score(row, phase)
            self._save(optimizer, schedule, row)
            progress.message(row.line(self.recipe.epochs))
            if early:
                waited = self.recipe.patience
                progress.message(f"phase {number} ended: no lower validation loss in {waited} epochs")
            progress.update(row.epoch * batches, self.recipe.epochs * batches)
            if self.after_epoch:
                self.after_epoch(row)

    def _start_expert(self) -> None:
        """Begin the expert from the weights that are validated, unless there is one already."""
        backbone = cast(PyramidWithExpert, self.network.backbone)
        if backbone.started:
            return
        own = self.members
        assert own is not None
        self.network.load_state_dict(self._evaluated().state_dict())

        def fitted() -> tuple[Any, Any]:
            return fit_gate(pooled_features(self.network, self.train.images, self.fabric).numpy(), own)

        weight, bias = shared(self.fabric, fitted)
        for network in (self.network, self._evaluated()):
            cast(PyramidWithExpert, network.backbone).start(torch.from_numpy(weight), torch.tensor(bias))

    def _set_up(self, phase: Phase) -> None:
        """Take what may change from phase to phase."""
        own = self.recipe.in_phase(phase)
        self.augmentation = own.augmentation
        self.chances = draw_chances(self.train.records, own.sampling) if own.sampling else None
        if phase.expert and self.members is not None:
            self.chances = np.where(self.members.inside, 1.0 if self.chances is None else self.chances, 0.0)
        self.targets = replace(self.targets, trust=own.distillation.trust if own.distillation else 0.0)
        if self.average and self.recipe.ema:
            set_decay(self.average, self.recipe.ema, phase.average_power)

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        trainable = [parameter for parameter in self.learner.parameters() if parameter.requires_grad]
        decay = self.recipe.weight_decay
        if self.recipe.optimizer == "sgd":
            return torch.optim.SGD(trainable, lr=phase.lr, momentum=0.9, weight_decay=decay, nesterov=True)
        algorithm = torch.optim.Adam if self.recipe.optimizer == "adam" else torch.optim.AdamW
        return algorithm(trainable, lr=phase.lr, weight_decay=decay)

    def _batches(self, epoch: int) -> list[Tensor]:
        """Return the batches of this process, as positions of the training images."""
        generator = torch.Generator().manual_seed(_mix(self.recipe.seed, epoch, 0))
        if self.chances is None:
            order = torch.randperm(len(self.train), generator=generator)
        else:
            sampling = self.recipe.sampling
            draws = (sampling.images if sampling else None) or int(np.count_nonzero(self.chances))
            chances = torch.from_numpy(self.chances)
            order = torch.multinomial(chances, draws, replacement=True, generator=generator)
        batches = own_parts(order, self.recipe.batch, self.fabric)
        if not batches:
            raise DataError(f"{self.run}: {len(order)} training images are too few; give more")
        return batches

    def _train_epoch(
        self, model: Any, optimizer: Any, schedule: LambdaLR, epoch: int, progress: Progress
    ) -> tuple[float, float]:
        """Train on all images once; return the mean loss and the learning rate of the last step."""
        recipe, fabric = self.recipe, self.fabric
        stream = _mix(recipe.seed, epoch, 1 + fabric.global_rank)
        generator = torch.Generator(fabric.device).manual_seed(stream)
        torch.manual_seed(_mix(recipe.seed, epoch, 1000 + fabric.global_rank))  # dropout
        batches = self._batches(epoch)
        set_training(model)
        total = torch.zeros((), device=fabric.device)
        for number, batch in enumerate(batches):
            progress.update(epoch * len(batches) + number, recipe.epochs * len(batches))
            augmented = augment(self.images[batch].float() / 255, self.augmentation, generator)
            images, *maps = torch.split(augmented, 1, dim=1)
            outputs = model(images.contiguous(memory_format=torch.channels_last))
            loss = self.learner.loss(outputs, self.targets[batch.to(fabric.device)], *maps)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            optimizer.step()
            (lr,) = schedule.get_last_lr()
            schedule.step()
            if self.average:
                self.state.steps += 1
                self.average.update(self.network, step=self.state.steps + 1)
            total += loss.detach()
        summed = fabric.all_reduce(total, reduce_op="mean")
        assert isinstance(summed, Tensor)
        mean = float(summed) / len(batches)
        if not math.isfinite(mean):
            raise DataError(f"{self.run}: the loss is not finite in epoch {epoch + 1}; lower the lr")
        return mean, float(lr)

    def _evaluated(self) -> Network:
        """Return the network that is validated and kept: the average, where there is one."""
        return cast(Network, self.average.module) if self.average else self.network

    def _validate(self) -> tuple[float, float, float]:
        logits = self._validation_logits()
        weight = torch.tensor(self.val.shares @ self.class_weights, dtype=torch.float32)
        targets = Targets(torch.from_numpy(self.val.possible), torch.zeros(len(self.val)), weight)
        loss = float(cross_entropy(logits, targets))
        hits = self.val.possible[np.arange(len(self.val)), logits.argmax(dim=1).numpy()]
        mask = self.recipe.target_mask
        p_target = logits.softmax(dim=1).numpy()[:, mask].sum(axis=1)
        return loss, _auroc(p_target, mask[self.val.labels]), float(hits.mean())

    def _validation_logits(self) -> Tensor:
        """Return logits (N, K) of the validation images, of which each process predicts its part."""
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        images = self.val.images
        if processes == 1:
            return predict_logits(self._evaluated(), images, self.fabric)
        # The last part may be shorter; the first images fill it up.
        each = -(-len(images) // processes)
        own = images[np.arange(each * rank, each * (rank + 1)) % len(images)]
        logits = predict_logits(self._evaluated(), own, self.fabric)
        return gathered(logits.to(self.fabric.device)).flatten(0, 1)[: len(images)].cpu()

    def _keep_score(self, row: Epoch, phase: Phase) -> bool:
        """Count an epoch; return whether its phase ends early."""
        state, patience = self.state, self.recipe.patience
        state.epoch = row.epoch
        if row.val_loss < state.best_loss:
            state.best_loss = row.val_loss
            weights = self._evaluated().state_dict()
            self.best = {name: value.detach().clone() for name, value in weights.items()}
        state.waited = 0 if row.val_loss < state.lowest else state.waited + 1
        state.lowest = min(state.lowest, row.val_loss)
        over = row.epoch - state.begun >= phase.epochs
        early = not over and patience is not None and state.waited >= patience
        if over or early:
            state.phase, state.begun, state.lowest, state.waited = row.phase, row.epoch, math.inf, 0
        return early

    def _save(self, optimizer: Any, schedule: LambdaLR, row: Epoch) -> None:
        """Write the checkpoint in one step, and one row of history."""
        if self.fabric.is_global_zero:
            draft = self.run / f"{CHECKPOINT_FILE}.new"
            content = {
                "recipe": self.recipe.sha256,
                "network": self.network.state_dict(),
                "heads": self.learner.heads.state_dict(),
                "average": self.average.module.state_dict() if self.average else None,
                "best": self.best,
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "state": asdict(self.state),
            }
            torch.save(content, draft)
            append_epoch(self.run, row)  # first: a row too many is dropped on resuming
            draft.replace(self.run / CHECKPOINT_FILE)
        self.fabric.barrier()

    def load(self) -> None:
        """Restore the checkpoint of the run, which the first process reads."""
        path = self.run / CHECKPOINT_FILE
        saved = shared(self.fabric, lambda: self._read(path))
        self.network.load_state_dict(saved["network"])
        self.learner.heads.load_state_dict(saved["heads"])
        if self.average:
            self.average.module.load_state_dict(saved["average"])
        self.best, self.state = saved["best"], _State(**saved["state"])
        if self.state.epoch > self.state.begun:  # inside a phase, whose optimizer goes on
            self.resumed = {name: saved[name] for name in ("optimizer", "schedule")}
        if self.fabric.is_global_zero:
            trim_history(self.run, self.state.epoch)
        log.info("resuming after epoch %d", self.state.epoch)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, LookupError, struct.error, pickle.UnpicklingError) as error:
            raise DataError(f"{path}: the checkpoint is damaged; delete it and start again") from error
        if saved["recipe"] != self.recipe.sha256:
            raise DataError(
                f"{path}: belongs to another recipe; resume with the same options, or use another --out"
            )
        return saved

    def kept(self) -> Network:
        """Return the network with the weights that the recipe keeps."""
        network = self._evaluated()
        if self.recipe.keep == "best" and self.best is not None:
            network.load_state_dict(self.best)
        return network.eval()


def _mix(seed: int, epoch: int, stream: int) -> int:
    """Return one seed for a (seed, epoch, stream) triple."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1)[0])


def _auroc(scores: npt.NDArray[np.floating[Any]], positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve by ranks, ties halved (Mann and Whitney, 1947)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    rank_sum = float(ranks[inverse][positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
