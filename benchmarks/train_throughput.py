"""Images a second in training: Pneumoscope against Keras 3 on torch, and two processes against one.

Both train the same network (MobileNetV2, three channels, random weights) on the same images in memory, with
the same batch, AdamW, and augmentation by flip, rotation, zoom, contrast and brightness: in Pneumoscope by
`fit` as `pneumoscope train` calls it, in Keras by preprocessing layers and `Model.fit`, as its guides show.
Each runs with its own defaults: Pneumoscope computes in bf16 where the processor has it, in channels-last
order, and keeps the memory that a step frees; Keras in float32. Pneumoscope in float32 is measured too,
Pneumoscope that returns freed memory to the system and, with --bf16, Keras in `mixed_bfloat16`.
Every system runs once in each round, and ratios are taken within a round; the first steps are not counted.

    python benchmarks/train_throughput.py [--size 128] [--batch 32] [--steps 8] [--rounds 3] [--bf16]

Two processes (gloo, by torchrun) have half of the threads each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch
from lightning_fabric import Fabric

from pneumoscope.data.manifest import Record
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.training.dataset import Packed
from pneumoscope.training.fit import fit
from pneumoscope.training.networks import build_network
from pneumoscope.training.processes import cpu_has_bf16, keep_freed_memory, make_fabric
from pneumoscope.training.recipe import Recipe

WARM_UP = 2  # steps
CLASSES = ("normal", "bacterial", "viral")
OURS, TOGETHER, BF16 = "pneumoscope", "pneumoscope, 2 processes", "keras mixed_bfloat16"


class Clock(Progress):
    """Notes the time at which each batch begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, done: int, total: int | None = None) -> None:  # noqa: ARG002
        """Note a batch; the end of the epoch is noted too, but comes after the validation."""
        self.times.append(time.perf_counter())

    def rate(self, options: argparse.Namespace) -> float:
        """Return images a second."""
        begin, end = self.times[WARM_UP], self.times[WARM_UP + options.steps]
        return options.batch * options.steps / (end - begin)


def images(options: argparse.Namespace, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise as images, which take as long as X-rays, and labels."""
    rng = np.random.default_rng(0)
    shape = (count, 1, options.size, options.size)
    return rng.integers(0, 256, shape, dtype=np.uint8), np.arange(count) % len(CLASSES)


def packed(options: argparse.Namespace, count: int) -> Packed:
    """Return images as the training gets them."""
    grey, labels = images(options, count)
    records = tuple(Record(f"{n}.png", CLASSES[label], f"p{n}") for n, label in enumerate(labels))
    return Packed(grey, np.eye(len(CLASSES), dtype=bool)[labels], records)


def ours(options: argparse.Namespace, fabric: Fabric) -> float:
    """Return images a second of one epoch of `fit`, in all processes together."""
    recipe = Recipe.model_validate(
        {
            "name": "throughput",
            "description": "For a benchmark.",
            "classes": CLASSES,
            "input": {"size": options.size},
            "network": {"name": "mobilenetv2_100", "channels": 3},
            "phases": [{"epochs": 1, "lr": 0.001}],
            "augmentation": {
                "area": [0.8, 1.2], "rotate": 10, "flip": 0.5, "contrast": 0.2, "brightness": 0.1,
            },
            "batch": options.batch,
            "optimizer": "adamw",
        }
    )  # fmt: skip
    network = build_network(recipe.network, len(CLASSES), seed=0)
    clock, steps = Clock(), WARM_UP + options.steps + 1
    with tempfile.TemporaryDirectory() as run:
        fit(
            recipe,
            network,
            packed(options, steps * options.batch),
            packed(options, options.batch),
            Path(run),
            fabric=fabric,
            progress=clock,
        )
    return clock.rate(options)


def plain(precision: str, *, keep: bool) -> Fabric:
    """Return an engine that differs from `make_fabric` in its precision, or returns freed memory."""
    if keep:
        keep_freed_memory()
    return Fabric(accelerator="cpu", devices=1, precision=precision)


def keras(options: argparse.Namespace, policy: str) -> float:
    """Return images a second of one epoch of `Model.fit`."""
    import keras as k

    k.mixed_precision.set_global_policy(policy)
    place = k.Input((options.size, options.size, 1))
    changed = k.layers.Rescaling(1 / 255)(place)
    for layer in (
        k.layers.RandomFlip("horizontal"), k.layers.RandomRotation(10 / 360), k.layers.RandomZoom(0.1),
        k.layers.RandomContrast(0.2, value_range=(0, 1)), k.layers.RandomBrightness(0.1, value_range=(0, 1)),
    ):  # fmt: skip
        changed = layer(changed)
    colour = k.layers.Concatenate()([changed] * 3)
    body = k.applications.MobileNetV2((options.size, options.size, 3), include_top=False, weights=None)
    pooled = k.layers.GlobalAveragePooling2D()(body(colour))
    model = k.Model(place, k.layers.Dense(len(CLASSES), activation="softmax", dtype="float32")(pooled))
    model.compile(k.optimizers.AdamW(0.001), loss="sparse_categorical_crossentropy")
    clock = Clock()
    grey, labels = images(options, (WARM_UP + options.steps + 1) * options.batch)
    begin = k.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs=None: clock.update(batch))  # noqa: ARG005
    model.fit(grey.transpose(0, 2, 3, 1), labels, batch_size=options.batch, verbose=0, callbacks=[begin])
    return clock.rate(options)


def as_process(name: str, options: argparse.Namespace) -> float:
    """Measure one system in a process of its own, or two processes, and return its images a second."""
    count = 2 if name == TOGETHER else 1
    words = [f"--{key}={getattr(options, key)}" for key in ("size", "batch", "steps")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if count > 1 else []
    threads = max(1, available_cpus() // count)
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *words, f"--only={name}"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


SYSTEMS: dict[str, Callable[[argparse.Namespace], float]] = {
    OURS: lambda options: ours(options, make_fabric("cpu")),
    "pneumoscope float32": lambda options: ours(options, plain("32-true", keep=True)),
    "pneumoscope, memory returned": lambda options: ours(
        options, plain("bf16-mixed" if cpu_has_bf16() else "32-true", keep=False)
    ),
    TOGETHER: lambda options: ours(options, make_fabric("cpu")),
    "keras": lambda options: keras(options, "float32"),
    BF16: lambda options: keras(options, "mixed_bfloat16"),
}


def main() -> None:
    """Print one line a system and one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128, help="side of the input in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="counted steps in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="measure Keras in mixed_bfloat16 too")
    parser.add_argument("--only", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        rate = SYSTEMS[options.only](options)
        if int(os.environ.get("RANK", "0")) == 0:
            print(rate)
        return
    rates: dict[str, list[float]] = {name: [] for name in SYSTEMS if name != BF16 or options.bf16}
    for _ in range(options.rounds):
        for name, found in rates.items():
            found.append(as_process(name, options))
            print(f"{name}: {found[-1]:.1f} images/s", file=sys.stderr, flush=True)
    machine = {
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cpus": available_cpus(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name, found in rates.items():
        ratios = [our / their for our, their in zip(rates[OURS], found, strict=True)]
        print(
            f"{name:28s} {statistics.median(found):7.1f} images/s   pneumoscope is "
            f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(json.dumps({"machine": machine, "options": vars(options), "images_per_second": rates}))


if __name__ == "__main__":
    main()
