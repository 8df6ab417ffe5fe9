"""Train the lung segmenter: a small U-Net on images and lung-field masks.

Ronneberger et al., U-Net, MICCAI 2015. A few masks of the public set belong to another patient or cover one
lung only; after the first epochs, the images with the largest loss in a batch are therefore ignored.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.lungs import mask_path, read_lung_mask
from pneumoscope.image.standardise import lung_view
from pneumoscope.model.lungs import LUNG_INPUT_SIZE, LUNGS_FILE
from pneumoscope.parallel import Progress
from pneumoscope.training.augment import Augmentation, photometric, sample_affine, warp
from pneumoscope.training.dense_lungs import draw_dense_lungs
from pneumoscope.training.onnx_export import export_onnx
from pneumoscope.training.processes import cpu_has_bf16, keep_freed_memory

__all__ = ["LungNet", "LungTraining", "Probability", "dice", "fit_lungs", "read_masks"]

log = logging.getLogger(__name__)

# Share of a batch that is ignored, and the first epochs, in which none is.
TRIMMED, WARM_EPOCHS = 0.06, 2

# Share of the images whose lungs are made dense.
DENSE = 0.4

AUGMENTATION = Augmentation(
    area=(0.5, 1.6), aspect=(0.75, 1.33), rotate=20, flip=0.5, gamma=0.8, contrast=0.5, brightness=0.2,
    haze=0.15, sharpness=0.6, blur=0.012, noise=0.06, markers=3, cutout=0.3,
)  # fmt: skip


def _convolution(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """3 by 3 convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Separable(nn.Module):
    """Depthwise and pointwise convolution around a shortcut (Howard et al., MobileNets, 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = _convolution(width, width, groups=width)
        self.pointwise = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.pointwise(self.spatial(x)))


class LungNet(nn.Module):
    """U-Net of separable convolutions, 0.1 M parameters: [N, 1, S, S] → logits of that shape.

    It costs a third of the time that decoding an image takes: skip connections are added and not stacked, and
    most blocks work at an eighth and a sixteenth of the side.
    """

    def __init__(
        self, widths: tuple[int, ...] = (12, 24, 48, 96), blocks: tuple[int, ...] = (0, 1, 2, 3)
    ) -> None:
        super().__init__()
        self.down, self.lateral, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        inputs = 1
        for width, count in zip(widths, blocks, strict=True):
            stage = [_Separable(width) for _ in range(count)]
            self.down.append(nn.Sequential(_convolution(inputs, width, stride=2), *stage))
            inputs = width
        for width in reversed(widths[:-1]):
            self.lateral.append(nn.Conv2d(inputs, width, 1))
            self.up.append(_Separable(width))
            inputs = width
        self.head = nn.Conv2d(inputs, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return lung logits for images in [0, 1]."""
        return F.interpolate(self.coarse(images), scale_factor=2.0, mode="bilinear", align_corners=False)

    def coarse(self, images: Tensor) -> Tensor:
        """Return the logits at half the side."""
        x = images * 4 - 2
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for lateral, block in zip(self.lateral, self.up, strict=True):
            x = block(F.interpolate(lateral(x), scale_factor=2.0) + skips.pop())
        logits: Tensor = self.head(x)
        return logits


class Probability(nn.Module):
    """The network with its sigmoid, as it is exported.

    The logits are enlarged by two products with a matrix: ONNX Runtime pads one channel to eight when it
    interpolates, and again for the sigmoid after it, which took a fifth of the time.
    """

    enlarge: Tensor

    def __init__(self, network: LungNet) -> None:
        super().__init__()
        self.network = network
        points = torch.eye(LUNG_INPUT_SIZE // 2)[None]
        enlarge = F.interpolate(points, scale_factor=2.0, mode="linear", align_corners=False)[0].T
        self.register_buffer("enlarge", enlarge.contiguous(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probability of lung for images of 128 by 128 pixels in [0, 1]."""
        return torch.sigmoid(self.enlarge @ self.network.coarse(images) @ self.enlarge.T)


@dataclass(frozen=True)
class LungTraining:
    """Result of `fit_lungs` on validation patients, as means over images.

    ``dice`` is at the 128 by 128 pixels of the network, ``dice_full`` at the size of the masks. ``left_out``
    counts the images that could not be read, and folders.
    """

    path: Path
    dice: float
    dice_full: float
    images: int
    seconds: float
    left_out: int


def read_masks(
    manifest: Manifest, masks: Path, progress: Progress | None = None
) -> tuple[npt.NDArray[np.uint8], list[Path], list[int]]:
    """Read every image that has a mask of the same relative name (``.png``) and can be read.

    Returns
    -------
    images : ndarray of uint8, shape (N, 128, 128)
    mask_paths : list of Path
    kept : list of int
        Index in the manifest of each image.
    """
    progress = progress or Progress()
    images, mask_paths, kept = [], [], []
    for index, record in enumerate(manifest.records):
        progress.update(index, len(manifest))
        mask = mask_path(masks, record.path)
        if not mask.is_file():
            continue
        try:
            radiograph = read_radiograph(manifest.resolve(record), min_side=2 * LUNG_INPUT_SIZE)
        except UnreadableImageError as error:
            log.warning("left out: %s", error)
            continue
        images.append(np.rint(lung_view(radiograph) * 255).astype(np.uint8))
        mask_paths.append(mask)
        kept.append(index)
    if not kept:
        raise DataError(f"{masks}: no mask belongs to an image of the data; names must match, ending in .png")
    return np.stack(images), mask_paths, kept


def dice(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks, 1 where both are empty (Dice, Ecology 1945)."""
    total = int(found.sum()) + int(truth.sum())
    return 2.0 * int((found & truth).sum()) / total if total else 1.0


def _loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice (Milletari et al., 3DV 2016), shape (N,)."""
    chance = torch.sigmoid(logits)
    overlap = 2 * (chance * masks).sum(dim=(1, 2, 3)) + 1
    soft_dice = overlap / (chance.sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(1, 2, 3))
    return entropy + 1 - soft_dice


def _trimmed_mean(losses: Tensor, share: float) -> Tensor:
    """Mean without the largest `share` of the losses (Han et al., Co-teaching, NeurIPS 2018)."""
    kept = max(1, round(len(losses) * (1 - share)))
    return losses.topk(kept, largest=False).values.mean()


def fit_lungs(
    manifest: Manifest,
    masks: Path,
    out: Path,
    *,
    epochs: int = 24,
    seed: int = 0,
    progress: Progress | None = None,
) -> LungTraining:
    """Train on the records of split ``train``, keep the last weights, measure on split ``val``.

    Parameters
    ----------
    manifest : Manifest
        With splits; its images have masks under `masks` by the same relative names.
    masks : Path
        Folder of mask PNGs.
    out : Path
        Folder that gets ``lungs.onnx``.

    Raises
    ------
    DataError
        If no mask belongs to an image, or a mask is unreadable.
    """
    started = time.monotonic()
    progress = progress or Progress()
    torch.manual_seed(seed)
    progress.step("reading images and masks")
    images, mask_paths, kept = read_masks(manifest, masks, progress)
    side = (LUNG_INPUT_SIZE, LUNG_INPUT_SIZE)
    targets = np.stack(
        [
            cv2.resize(read_lung_mask(path).astype(np.float32), side, interpolation=cv2.INTER_AREA)
            for path in mask_paths
        ]
    )
    splits = np.array([manifest.records[index].split for index in kept])
    train, val = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "val")
    if not (train.size and val.size):
        raise DataError(
            f"{masks}: {train.size} masks belong to training and {val.size} to validation images; give more"
        )
    out.mkdir(parents=True, exist_ok=True)  # before hours of work
    progress.step("training")
    keep_freed_memory()
    network = _fit(images[train], targets[train], epochs=epochs, seed=seed, progress=progress)
    progress.step("exporting")
    path = out / LUNGS_FILE
    export_onnx(Probability(network), path, size=LUNG_INPUT_SIZE, outputs=("probability",))
    small, full = _measure(network, images[val], targets[val], [mask_paths[index] for index in val])
    unread = sum(mask_path(masks, record.path).is_file() for record in manifest.records) - len(kept)
    left_out = unread + len(manifest.left_out)
    return LungTraining(path, small, full, len(kept), time.monotonic() - started, left_out)


def _fit(
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.float32],
    *,
    epochs: int,
    seed: int,
    progress: Progress,
) -> LungNet:
    batch = min(32, len(images))
    generator = torch.Generator().manual_seed(seed)
    network = LungNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-4)
    steps = epochs * (len(images) // batch)
    warm = 0.1 if steps > 10 else 0.3  # of 10 steps and less, a tenth is none
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps, pct_start=warm)
    both = torch.from_numpy(np.stack([images, np.rint(targets * 255).astype(np.uint8)], axis=1))
    network.train()
    for epoch in range(epochs):
        order = torch.randperm(len(both), generator=generator)
        total, done = 0.0, 0
        for start in range(0, len(order) - batch + 1, batch):
            pair = both[order[start : start + batch]].float() / 255
            pair = warp(pair, sample_affine(batch, AUGMENTATION, generator))
            image = draw_dense_lungs(pair[:, :1], pair[:, 1:], DENSE, generator)
            image = photometric(image, AUGMENTATION, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
                logits = network(image.contiguous(memory_format=torch.channels_last))
            loss = _trimmed_mean(_loss(logits.float(), pair[:, 1:]), TRIMMED if epoch >= WARM_EPOCHS else 0.0)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total, done = total + loss.item(), done + 1
            progress.update(epoch * (len(both) // batch) + done, steps)
        progress.message(f"epoch {epoch + 1}/{epochs}  loss {total / max(1, done):.4f}")
    network.eval()
    return network


@torch.inference_mode()
def _measure(
    network: LungNet,
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.float32],
    mask_paths: list[Path],
) -> tuple[float, float]:
    """Return the mean Dice over images, at the size of the network and at that of the masks."""
    small, full = [], []
    for image, target, path in zip(images, targets, mask_paths, strict=True):
        logits = network(torch.from_numpy(image)[None, None].float() / 255)[0, 0].numpy()
        truth = read_lung_mask(path)
        large = cv2.resize(logits, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        small.append(dice(logits > 0, target >= 0.5))
        full.append(dice(large > 0, truth))
    return float(np.mean(small)), float(np.mean(full))
