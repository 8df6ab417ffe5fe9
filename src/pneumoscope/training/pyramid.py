"""A feature map that joins two resolutions of a backbone, and an expert for the images of one population."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumoscope.errors import RecipeError

__all__ = ["Pyramid", "PyramidWithExpert"]

# Far above what a gate gives, and small enough for float32 to keep its sign.
CERTAIN = 1e6


class _Joined(nn.Module):
    """Layers that join maps of two resolutions at the finer one (Lin et al., CVPR 2017).

    Parameters
    ----------
    channels : tuple of int
        Of the finer and of the coarser map.
    features : int
        Channels of the joined map.
    **before : nn.Module
        Layers that come first in the order of the modules, by their names.
    """

    def __init__(self, channels: tuple[int, int], features: int, **before: nn.Module) -> None:
        super().__init__()
        for name, layers in before.items():
            self.add_module(name, layers)
        self.fine, self.coarse = (
            nn.Sequential(nn.Conv2d(inputs, features, 1, bias=False), nn.BatchNorm2d(features))
            for inputs in channels
        )
        self.join = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1, groups=features, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU6(),
            nn.Conv2d(features, features, 1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU6(),
        )

    def joined(self, fine: Tensor, coarse: Tensor) -> Tensor:
        finer = self.fine(fine)
        wide = F.interpolate(self.coarse(coarse), size=finer.shape[-2:], mode="nearest")
        features: Tensor = self.join(finer + wide)
        return features


class Pyramid(_Joined):
    """The last two resolutions of a timm backbone in one map at the finer one.

    Parameters
    ----------
    model : nn.Module
        From ``timm.create_model(..., features_only=True)``, with two outputs.
    features : int
        Channels of the map.
    """

    model: Any

    def __init__(self, model: Any, features: int) -> None:
        fine, coarse = model.feature_info.channels()
        super().__init__((fine, coarse), features, model=model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map ``[N, D, h, w]``."""
        return self.joined(*self.model(x))


class PyramidWithExpert(Pyramid):
    """A pyramid whose last layers are there twice: shared by all images, and for those of one population.

    Where it is not known whether an image is of that population, a linear gate on the mean of the shared map
    chooses (Jacobs et al., *Adaptive Mixtures of Local Experts*, Neural Computation 1991, with a choice that
    is hard and a gate that is fitted beforehand). Until `start`, there is no expert: all images have the
    shared map, and an export does not hold its layers.

    Parameters
    ----------
    model, features
        As for `Pyramid`.
    blocks : int
        Of how many of the backbone's last blocks the expert has its own, besides the layers of the pyramid.

    Attributes
    ----------
    started : bool
        Whether there is an expert yet.
    expert_alone : bool
        In training mode, all images have the expert's map.

    Raises
    ------
    RecipeError
        If the backbone is not of a family that is built of such blocks, or they include the finer map.
    """

    gate_weight: Tensor
    gate_bias: Tensor

    def __init__(self, model: Any, features: int, blocks: int) -> None:
        super().__init__(model, features)
        if not all(hasattr(model, part) for part in ("conv_stem", "bn1", "blocks")):
            raise RecipeError("network.expert: needs an EfficientNet or MobileNet, as tf_efficientnet_lite0")
        stages = len(model.blocks)
        self._fine, last = (int(name.rpartition(".")[2]) for name in model.feature_info.module_name())
        if last != stages - 1 or blocks > last - self._fine:
            raise RecipeError(
                f"network.expert.blocks: {blocks} are too many for this network; use {last - self._fine}"
            )
        self._shared = stages - blocks
        own = copy.deepcopy(model.blocks[self._shared :])
        # Its weights are replaced before it is used: without an expert, a seed gives the same network.
        with torch.random.fork_rng(devices=()):
            self.expert = _Joined(tuple(model.feature_info.channels()), features, blocks=own)
        self.expert.requires_grad_(False)
        self.register_buffer("gate_weight", torch.zeros(features))
        self.register_buffer("gate_bias", torch.zeros(()))
        self.started = self.expert_alone = False
        self.register_load_state_dict_post_hook(_note_whether_started)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, of_population: Tensor | None = None) -> Tensor:
        """Return the map ``[N, D, h, w]``: the expert's for the images of its population.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W)
        of_population : Tensor, shape (N,), optional
            1 for images that are known to be of the expert's population, -1 for those known to be of another,
            0 where the gate is to choose; the gate chooses for all if not given.
        """
        x = fine = self.model.bn1(self.model.conv_stem(x))
        for number, stage in enumerate(self.model.blocks[: self._shared]):
            x = stage(x)
            if number == self._fine:
                fine = x
        if self.training and self.expert_alone:
            return self._of_expert(fine, x)
        shared = self.joined(fine, self.model.blocks[self._shared :](x))
        if not self.started:
            return shared
        own = self._of_expert(fine, x)
        gate = (shared.mean(dim=(2, 3)) * self.gate_weight).sum(dim=1) + self.gate_bias
        if of_population is not None:
            gate = gate + CERTAIN * of_population
        return torch.where((gate > 0)[:, None, None, None], own, shared)

    def _of_expert(self, fine: Tensor, x: Tensor) -> Tensor:
        return self.expert.joined(fine, cast(nn.Module, self.expert.blocks)(x))

    @torch.no_grad()
    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Begin the expert as a copy of the shared layers.

        Parameters
        ----------
        weight : Tensor, shape (D,)
            Of the gate, for the mean of the shared map over its places.
        bias : Tensor, shape ()
        """
        own = cast(nn.Module, self.expert.blocks)
        own.load_state_dict(self.model.blocks[self._shared :].state_dict())
        for name in ("fine", "coarse", "join"):
            getattr(self.expert, name).load_state_dict(getattr(self, name).state_dict())
        self.set_gate(weight, bias)

    @torch.no_grad()
    def set_gate(self, weight: Tensor, bias: Tensor) -> None:
        """Use the expert, whose layers are there, for the images that this gate chooses."""
        self.gate_weight.copy_(weight)
        self.gate_bias.copy_(bias)
        self.started = True


def _note_whether_started(module: nn.Module, _: object) -> None:
    """Take from weights that were loaded whether they have an expert."""
    assert isinstance(module, PyramidWithExpert)
    module.started = bool(module.gate_weight.any())
