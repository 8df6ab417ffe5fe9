"""Several processes that train one network: what the first one reads, all get; what stops one, stops all.

``torchrun`` starts them. Only the first process reads data and writes files, so that neither has to be on the
other machines.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from pneumoscope.errors import OtherProcessError, PneumoscopeError, RecipeError
from pneumoscope.parallel import launched_as
from pneumoscope.training.networks import Network

__all__ = [
    "check_divides",
    "cpu_has_bf16",
    "end_together",
    "gathered",
    "keep_freed_memory",
    "make_fabric",
    "own_parts",
    "shared",
    "shared_network",
]

T = TypeVar("T")

# The other processes wait while the first one prepares the images, which takes hours where there are
# millions; a process that has ended is noticed by its connection or by torchrun.
LONGEST_WAIT = timedelta(days=7)
CHUNK_BYTES = 64 << 20
# Parameters of mallopt(3), from <malloc.h> of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# What gloo and NCCL say where a process at the other end is gone.
LOST = ("closed by peer", "reset by peer", "pair closure", "Broken pipe", "remote process exited")


def make_fabric(devices: str = "auto") -> Fabric:
    """Return the engine: a GPU where there is one, and as many processes as ``torchrun`` started.

    It computes in bf16 where the device has it, and in float32 otherwise: a processor without AVX-512 only
    emulates bf16, at a tenth of the speed.

    Parameters
    ----------
    devices : str
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    PneumoscopeError
        If there are more processes than GPUs on this machine.
    """
    # By default Fabric would use every GPU and start this command once for each.
    launch = launched_as()
    cuda = devices == "cuda" or (devices == "auto" and torch.cuda.is_available())
    if cuda and launch.local_processes > (gpus := torch.cuda.device_count()):
        raise PneumoscopeError(
            f"{launch.local_processes} processes were started on {gpus} GPUs; use --nproc-per-node {gpus}"
        )
    fabric = Fabric(
        accelerator=devices,
        devices=launch.local_processes,
        num_nodes=max(1, launch.processes // launch.local_processes),
        strategy=DDPStrategy(timeout=LONGEST_WAIT) if launch.processes > 1 else "auto",
        precision="bf16-mixed" if cuda or cpu_has_bf16() else "32-true",
    )
    if not cuda:
        keep_freed_memory()
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Leave the other processes before this one ends: its threads for them would abort it otherwise."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, until it ends.

    By default glibc gives each large block back to the system, which clears every page of it again for the
    next one: up to a quarter of the time of a training step on a CPU. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def cpu_has_bf16() -> bool:
    """Return whether this processor multiplies bf16 faster than float32."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def check_divides(batch: int, processes: int) -> None:
    """Raise `RecipeError` where a batch cannot be divided over the processes in equal parts."""
    if batch % processes:
        raise RecipeError(
            f"batch: {batch} images cannot be divided over {processes} processes; start a number "
            "that divides it (--nproc-per-node), or change the batch of the recipe"
        )


def own_parts(order: Tensor, batch: int, fabric: Fabric) -> list[Tensor]:
    """Divide an order of images into batches, and return the part of this process of each.

    The parts are of one size, since the processes wait for each other at each step, so that a last batch may
    lose images. Each part is taken evenly from its batch.
    """
    rank, processes = fabric.global_rank, fabric.world_size
    whole = (one[: len(one) // processes * processes] for one in torch.split(order, batch))
    # Batch normalisation needs two images.
    return [one[rank::processes] for one in whole if len(one) > 1]


def shared(fabric: Fabric, work: Callable[[], T]) -> T:
    """Do something in the first process and return its result in all of them.

    Parameters
    ----------
    work : callable
        Its result may hold large arrays: they are sent in pieces, without a copy of the whole.

    Raises
    ------
    OtherProcessError
        In all processes but the first, where `work` raised an error there.
    """
    if fabric.world_size == 1:
        return work()
    if not fabric.is_global_zero:
        sent: tuple[bytes | None, tuple[int, ...]] = fabric.broadcast((None, ()))
        head, sizes = sent
        if head is None:
            raise OtherProcessError("the first process of this training has failed")
        buffers = [np.empty(size, np.uint8) for size in sizes]
        for buffer in buffers:
            _send(fabric, buffer)
        result: T = pickle.loads(head, buffers=buffers)
        return result
    try:
        result = work()
    except Exception:
        fabric.broadcast((None, ()))
        raise
    apart: list[pickle.PickleBuffer] = []
    content = pickle.dumps(result, protocol=5, buffer_callback=apart.append)
    views = [np.frombuffer(buffer.raw(), np.uint8) for buffer in apart]
    fabric.broadcast((content, tuple(len(view) for view in views)))
    for view in views:
        _send(fabric, view)
    return result


def shared_network(fabric: Fabric, build: Callable[[], Network], like: Callable[[], Network]) -> Network:
    """Build a network in the first process and return one with its weights in all of them.

    Parameters
    ----------
    build : callable
        Called in the first process; it may read files of weights.
    like : callable
        Called in the others; returns a network of the same layers, whose weights are replaced.
    """
    built: list[Network] = []

    def weights() -> tuple[dict[str, npt.NDArray[Any]], bool]:
        built.append(build())
        state = {name: value.cpu().numpy() for name, value in built[0].state_dict().items()}
        return state, built[0].random_pyramid

    if fabric.world_size == 1:
        return build()
    state, random_pyramid = shared(fabric, weights)
    if built:
        return built[0]
    network = like()
    network.random_pyramid = random_pyramid  # it decides what all of them freeze
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
    return network


def gathered(own: Tensor) -> Tensor:
    """Return a tensor of all processes, which is of one shape in each, with a first axis for them."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.stack(parts)


def _send(fabric: Fabric, content: npt.NDArray[np.uint8]) -> None:
    """Send bytes of the first process to the others, which get them in place."""
    for start in range(0, len(content), CHUNK_BYTES):
        part = content[start : start + CHUNK_BYTES]
        piece = torch.empty(len(part), dtype=torch.uint8, device=fabric.device)
        if fabric.is_global_zero:
            piece.copy_(torch.from_numpy(np.array(part)))
        dist.broadcast(piece, 0)
        if not fabric.is_global_zero:
            part[:] = piece.cpu().numpy()


@contextmanager
def end_together() -> Iterator[None]:
    """Let one process alone report an error that ends several.

    Raises
    ------
    OtherProcessError
        Where another process has reported the error.
    """
    try:
        yield
    except OtherProcessError:
        raise
    except (PneumoscopeError, RuntimeError) as error:
        if launched_as().processes == 1:
            raise
        if not _is_first_to_fail():
            raise OtherProcessError("another process of this training has failed") from error
        if any(words in str(error) for words in LOST):
            raise PneumoscopeError(
                "another process of this training ended without a message, perhaps for want of memory; "
                "torchrun says below which one"
            ) from error
        raise


def _is_first_to_fail() -> bool:
    """Whether no other process has reported an error yet; the launcher keeps the count."""
    if not dist.is_initialized():
        return launched_as().local_rank == 0  # what fails before is the same in all processes of a machine
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        count: int = dist.distributed_c10d._get_default_store().add(f"pneumoscope/failed/{attempt}", 1)
    except RuntimeError:  # it ended with the process that failed
        return False
    return count == 1
