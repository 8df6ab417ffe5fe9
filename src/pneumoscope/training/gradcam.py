"""Grad-CAM: heat maps for networks whose head is not pooled-linear.

Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*, ICCV
2017.
Bundles need none of it: their head is pooled-linear, and there Grad-CAM is the class activation map.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["grad_cam"]


def grad_cam(
    network: nn.Module, layer: nn.Module, images: Tensor, score: Callable[[Tensor], Tensor]
) -> npt.NDArray[np.float32]:
    """Weigh a layer's channels by the mean gradient of a score, and add them up.

    Parameters
    ----------
    network : nn.Module
        Is put into evaluation mode, and back into the mode it was in.
    layer : nn.Module
        Part of it whose output has the shape ``[N, D, h, w]``, most often the last convolutional one.
    images : Tensor
        Shape ``[N, C, H, W]``.
    score : callable
        From the network's output to one number a image, shape ``[N]``: a logit, or a difference of two.

    Returns
    -------
    ndarray of float32, shape (N, h, w)
        Evidence for the score; what speaks against it is negative. (The paper cuts that off for show.)

    Raises
    ------
    ValueError
        If the layer is not part of the pass, or its output is no feature map.
    """
    caught: list[Tensor] = []
    handle = layer.register_forward_hook(lambda *passed: caught.append(passed[2]))
    was_training = network.training
    try:
        with torch.enable_grad():
            total = score(network.eval()(images.detach().requires_grad_())).sum()
        if not caught or not isinstance(caught[-1], Tensor) or caught[-1].ndim != 4:
            raise ValueError(
                "the layer gives no feature map [N, D, h, w] in this pass; choose a convolutional one"
            )
        (gradient,) = torch.autograd.grad(total, caught[-1])
    finally:
        handle.remove()
        network.train(was_training)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    evidence: npt.NDArray[np.float32] = (weights * caught[-1]).sum(dim=1).detach().cpu().float().numpy()
    return evidence
