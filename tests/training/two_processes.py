"""What two processes do together: torchrun starts it for `test_processes.py` with the name of a result."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from pneumoscope.errors import DataError, OtherProcessError
from pneumoscope.training import processes
from pneumoscope.training.global_norm import shared_batch_statistics
from pneumoscope.training.networks import Network, build_network
from pneumoscope.training.pretrain import pretrain
from pneumoscope.training.processes import make_fabric, own_parts, shared, shared_network
from pneumoscope.training.recipe import Recipe
from tiny_training import aged, trained, with_expert

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "classes": ["normal", "pneumonia"],
        "input": {"size": 16},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4, 8]}},
        "phases": [{"epochs": 1, "lr": 0.02}],
        "augmentation": {"gamma": 0.3},
        "pretraining": {"epochs": 2, "lr": 0.01},
        "batch": 8,
    }
)


def cleared() -> int:
    """Return how many MiB the system clears for 21 blocks of 64 that are freed one by one."""
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(21):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin) * resource.getpagesize() >> 20


def large() -> dict[str, object]:
    """Return arrays that are sent in several pieces, with an empty one, and something small."""
    ramp = np.arange(300_000, dtype=np.uint16)
    return {
        "ramp": ramp,
        "empty": ramp[:0],
        "columns": np.asfortranarray(ramp.reshape(300, 1000)),
        "word": "ok",
    }


def norms() -> nn.Sequential:
    """Return layers with every kind of normalisation that the networks have."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), BatchNormAct2d(5), nn.Flatten(),
        nn.Linear(125, 6), nn.BatchNorm1d(6, affine=False),
    ).double()  # fmt: skip


def normalised(parts: list[torch.Tensor], layers: nn.Sequential) -> dict[str, list[float]]:
    """Train two steps on parts of batches; return gradients, buffers and what comes out afterwards."""
    for part in parts:
        layers.zero_grad()
        (layers(part) * part.mean(dim=(1, 2, 3))[:, None]).sum().backward()
    gradients = {name: one.grad for name, one in layers.named_parameters()}
    return gradients | dict(layers.named_buffers())


def main(result: Path) -> None:
    """Write what each process found."""
    before = cleared()
    fabric = make_fabric("cpu")
    rank, found = fabric.global_rank, {"cleared": [before, cleared()]}
    processes.CHUNK_BYTES = 100_000

    sent = shared(fabric, large)
    expected = large()
    found["shared"] = all(np.array_equal(sent[name], expected[name]) for name in expected)

    def fails() -> None:
        raise DataError("spoilt.png: damaged")

    try:
        shared(fabric, fails)
    except (DataError, OtherProcessError) as error:
        found["error"] = type(error).__name__

    def built() -> Network:
        network = build_network(RECIPE.network, 2, seed=1)
        network.random_pyramid = True  # known from weights that only the first process reads
        return network

    network = shared_network(fabric, built, lambda: build_network(RECIPE.network, 2, seed=2))
    found["random_pyramid"] = network.random_pyramid
    found["network"] = float(network.head.weight.detach().sum())

    batches = [
        torch.randn(8, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        for n in (1, 2)
    ]
    alone = normalised(batches, norms())
    divided = norms()
    with shared_batch_statistics(divided, fabric):
        together = normalised([batch[rank::2] for batch in batches], divided)
    for name, value in together.items():
        total = (
            fabric.all_reduce(value.detach().clone(), reduce_op="sum")
            if name in dict(divided.named_parameters())
            else value
        )
        assert torch.allclose(total, alone[name], rtol=1e-9, atol=1e-9), (name, total, alone[name])
    found["norms"] = sorted(together)
    found["restored"] = all("forward" not in vars(layer) for layer in divided)

    order = own_parts(torch.arange(19), 8, fabric)
    found["parts"] = [part.tolist() for part in order]

    images = np.random.default_rng(0).integers(0, 255, (24, 1, 16, 16)).astype(np.uint8)
    run = result.parent / "pretrained"
    if rank == 0:
        run.mkdir()
    fabric.barrier()
    pretrained = pretrain(RECIPE, network, images, run, fabric=fabric)
    found["pretrained"] = float(pretrained.backbone(torch.ones(1, 1, 16, 16)).detach().sum())
    again = pretrain(RECIPE, build_network(RECIPE.network, 2, seed=3), images, run, fabric=fabric)
    found["read"] = float(again.backbone(torch.ones(1, 1, 16, 16)).detach().sum())

    trained_run = result.parent / "expert"
    if rank == 0:
        trained_run.mkdir()
    fabric.barrier()
    expert = trained(with_expert(), trained_run, fabric, train=aged(), val=aged(16, 1))
    found["expert"] = [expert.backbone.started, float(expert(torch.ones(2, 1, 64, 64))[0].detach().sum())]
    result.with_suffix(f".{rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
