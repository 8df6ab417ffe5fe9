"""A run on Ray: workers take the parts that are not there yet; the only module that knows Ray."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pneumoscope.errors import DataError, PneumoscopeError, require_extra
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.runtime import Device, has_cuda
from pneumoscope.parallel import Progress, available_cpus, in_order
from pneumoscope.predict.inputs import local_path
from pneumoscope.serve.batch.parts import PARTS, is_committed
from pneumoscope.serve.batch.plan import Plan, prepare
from pneumoscope.serve.batch.reconcile import SUMMARY, Summary, reconcile
from pneumoscope.serve.batch.scorer import ATTEMPTS, Scorer
from pneumoscope.serve.batch.store import FolderStore, Store, open_store

__all__ = ["BatchSettings", "run_batch"]

log = logging.getLogger(__name__)

CHECKERS = 16  # threads that look which parts are there
RATE_SECONDS = 30.0  # between two lines with the throughput
OBJECT_STORE_BYTES = 128 << 20  # blocks hold numbers of parts
REMOVE_ATTEMPTS = 20
REACHED_SECONDS = 10.0  # in which a cluster accepts a connection
RAY_FOLDER = "pneumoscope-ray-"  # and the process that made it
DeviceChoice = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class BatchSettings:
    """How a run is shared out; none of it changes a result.

    Parameters
    ----------
    address : str
        ``local`` starts Ray on this machine for this run; ``auto`` joins the cluster that this machine
        belongs to, ``HOST:PORT`` the named one.
    workers : int or None
        Processes that predict; as many as the cluster's CPUs, or GPUs, have place for, if None.
    threads : int
        Of each worker.
    device : {"auto", "cpu", "cuda"}
        Where networks run; ``auto`` is the GPU where the cluster has one and ONNX Runtime can use it.
    """

    address: str = "local"
    workers: int | None = None
    threads: int = 1
    device: DeviceChoice = "auto"


def run_batch(
    source: str,
    output: str,
    bundle: Bundle,
    *,
    operating_point: str | None = None,
    population: str | None = None,
    force: bool = False,
    part_size: int | None = None,
    settings: BatchSettings = BatchSettings(),
    progress: Progress | None = None,
) -> Summary:
    """Predict all images of a folder, a manifest or a URI; continue where a run was interrupted.

    Where Ray is initialised already in this process, it is used, and left running.

    Parameters
    ----------
    source : str
        INPUT, see `pneumoscope.serve.batch.listing.list_entries`.
    output : str
        OUTPUT, a folder or a URI, which workers must reach under the same name.
    bundle : Bundle
        Copied to OUTPUT.
    operating_point, population, force
        As for `pneumoscope.Predictor`.
    part_size : int, optional
        Images of a part; 500 if not given.
    settings : BatchSettings
        How the work is shared out.
    progress : Progress, optional
        Receives counts and a line with the throughput now and then.

    Returns
    -------
    Summary
        As it was written to ``summary.json``.

    Raises
    ------
    DataError
        If there is no image, OUTPUT holds another run, a store cannot be reached, or Ray cannot be started.
    """
    source, output = local_path(source), local_path(output)  # of URIs such as file:///xrays
    ray = _import_ray(local=settings.address == "local")
    shown = progress or Progress()
    store = open_store(output)
    options = {"operating_point": operating_point, "population": population, "force": force}
    plan = prepare(store, source, bundle, **options, part_size=part_size, progress=shown)  # type: ignore[arg-type]
    if isinstance(store, FolderStore):
        store.remove_drafts(PARTS)
        # Workers have another working directory.
        output = str(Path(output).resolve())
    pending = _pending(store, plan, shown)
    images = sum(map(plan.size, pending))
    began = time.monotonic()
    if pending:
        if len(pending) < plan.parts:
            shown.message(f"continuing: {plan.entries - images:,} of {plan.entries:,} images are done")
        shown.step("starting Ray")
        with _started(ray, settings):
            began = time.monotonic()
            _score(ray, output, plan, pending, settings, shown)
    summary = reconcile(
        store,
        plan,
        images_predicted=images,
        seconds=time.monotonic() - began if images else 0.0,
        progress=shown,
    )
    store.put(SUMMARY, json.dumps(summary.as_json(), indent=2).encode())
    _remove_attempts(store)
    return summary


def _import_ray(*, local: bool) -> Any:
    """Import Ray; what it reads from the environment as it is loaded is set before.

    Parameters
    ----------
    local : bool
        It will be started here. It listens on all interfaces and runs what it is sent: with a token, only
        this run may send.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray warns that it will one day leave the variables of accelerators alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's own processes log to files; its part in this process would print warnings for developers of Ray.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if local and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with require_extra("batch", "predicting with Ray"):
        import ray
        import ray.data
        import ray.exceptions
    return ray


def _pending(store: Store, plan: Plan, progress: Progress) -> list[int]:
    """Return the parts that are not there, or not whole."""
    if not store.names(PARTS):
        return list(range(plan.parts))
    progress.step("looking for finished parts")

    def check(parts: Any) -> list[tuple[int, bool]]:
        return [(part, is_committed(store, plan, part)) for part in parts]

    found = in_order(range(plan.parts), check, workers=CHECKERS)
    return [part for part, done in progress.collect(found, plan.parts) if not done]


def _score(
    ray: Any, output: str, plan: Plan, pending: list[int], settings: BatchSettings, progress: Progress
) -> None:
    """Share the parts out among the workers, and wait until all are there."""
    device, workers = _capacity(ray, settings, len(pending))
    resources: dict[str, Any] = {"num_gpus": 1} if device == "cuda" else {}
    # One block a part, which holds its number only: the images never pass through Ray's memory.
    blocks = ray.data.from_items([{"part": part} for part in pending], override_num_blocks=len(pending))
    # Ray Data starts a worker that died again, and gives its part to one that lives, without limit.
    results = blocks.map_batches(
        Scorer,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_args=(output, plan, uuid.uuid4().hex[:8]),
        fn_constructor_kwargs={"threads": settings.threads, "device": device},
        num_cpus=settings.threads,
        # Ray derives it from `num_cpus` only where it is not set already.
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(settings.threads)}},
        **resources,
    )
    progress.step("predicting")
    total, before = plan.entries, plan.entries - sum(map(plan.size, pending))
    done, began, said = before, time.monotonic(), time.monotonic()
    progress.update(done, total)
    try:
        for row in results.iter_rows():
            done += int(row["images"])
            progress.update(done, total)
            now = time.monotonic()
            if now - said >= RATE_SECONDS:
                said = now
                rate = (done - before) / (now - began)
                progress.message(f"{done:,} of {total:,} images, {rate:,.0f} a second, {workers} workers")
    except ray.exceptions.RayError as error:
        raise _plain(error) from error


def _capacity(ray: Any, settings: BatchSettings, parts: int) -> tuple[Device, int]:
    """Return the device, and how many workers there are."""
    found: dict[str, float] = ray.cluster_resources()
    gpus, cpus = int(found.get("GPU", 0)), int(found.get("CPU", 1))
    device: Device = "cpu"
    if settings.device == "cuda" or (settings.device == "auto" and gpus and has_cuda()):
        if not gpus:
            raise DataError("--device cuda: Ray sees no GPU; use --device cpu")
        device = "cuda"
    places = max(1, cpus // settings.threads)
    if device == "cuda":
        places = max(1, min(places, gpus))
    return device, min(parts, settings.workers or places)


def _plain(error: BaseException) -> PneumoscopeError:
    """Return what a worker raised, without Ray's account of how it got here."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PneumoscopeError):
            return cause.with_traceback(None)
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return DataError(
        f"a worker of Ray failed ({lines[-1].strip() if lines else type(error).__name__}); "
        "start the command again, it continues"
    )


@contextmanager
def _started(ray: Any, settings: BatchSettings) -> Iterator[None]:
    """Start Ray or join a cluster; a Ray that runs in this process already is left as it is."""
    _quiet(ray)
    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if settings.address == "local":
            options |= {
                "num_cpus": max(available_cpus(), settings.threads),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": stack.enter_context(_ray_folder()),
            }
        else:
            _check_reachable(settings.address)
        stack.callback(ray.shutdown)  # before the folder is removed
        try:
            # The first line of Ray's log goes to standard error, whatever its level.
            with _without_standard_error(), _own_sigterm():
                ray.init(settings.address, **options)
        except Exception as error:  # Ray raises it itself where it takes too long to start
            raise _unreachable(settings.address, str(error).strip().partition("\n")[0]) from error
        yield


def _check_reachable(address: str) -> None:
    """Raise `DataError` in seconds where nothing listens at a host and port, which takes Ray minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, why: str) -> DataError:
    if address == "local":
        return DataError(f"Ray did not start on this machine ({why}); start the command again, it continues")
    return DataError(f"--address {address}: Ray cannot be reached ({why}); check the cluster")


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this program's handler of SIGTERM: Ray's ends the process without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _ray_folder() -> Iterator[str]:
    """Yield a new folder for the files of Ray; those of runs that were killed are removed."""
    # Not under TMPDIR: with all folders, the names of its sockets may have 107 characters.
    base = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    for old in base.glob(f"{RAY_FOLDER}*"):
        number = old.name.removeprefix(RAY_FOLDER).partition("-")[0]
        if number.isdigit() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{RAY_FOLDER}{os.getpid()}-", dir=base)
    try:
        yield folder
    finally:
        # Ray's last processes may write a line after it was shut down.
        for _ in range(REMOVE_ATTEMPTS):
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).exists():
                break
            time.sleep(0.1)


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """Discard what C++ code writes to standard error; errors of Python are exceptions and not affected."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quiet(ray: Any) -> None:
    """Leave progress and log to this program: Ray Data prints both on its own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False  # rows carry their id
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _remove_attempts(store: Store) -> None:
    """Remove the folder of notes, which a finished run leaves empty."""
    if isinstance(store, FolderStore):
        shutil.rmtree(Path(store.location) / ATTEMPTS, ignore_errors=True)
