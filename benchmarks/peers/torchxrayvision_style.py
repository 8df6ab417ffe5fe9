"""The steps of TorchXRayVision's example script, written out: full decode, [-1024, 1024], centre crop, 224.

The network is DenseNet-121 with one input channel and 18 outputs, one image at a time, float32. Weights are
random, which takes the same time as trained ones. Usage: python torchxrayvision_style.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from skimage.io import imread
from skimage.transform import resize
from torch import nn
from torchvision.models import densenet121


def prepared(path: Path) -> torch.Tensor:
    """Return one image as [1, 1, 224, 224] in [-1024, 1024]."""
    image = imread(path).astype(np.float32)
    if image.ndim == 3:
        image = image.mean(axis=2)
    image = (2 * (image / 255) - 1) * 1024
    side = min(image.shape)
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    return torch.from_numpy(resize(square, (224, 224), preserve_range=True).astype(np.float32))[None, None]


def main() -> None:
    """Predict every image of a folder and print how many there were."""
    network = densenet121(num_classes=18)
    network.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    network.eval()
    count = 0
    for path in sorted(Path(sys.argv[1]).iterdir()):
        with torch.no_grad():
            network(prepared(path)).sigmoid().numpy()
        count += 1
    print(count)


if __name__ == "__main__":
    main()
