"""What the routes share: the model, its workers, the limits, heat maps to be fetched, and counters."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pneumoscope.model.bundle import Bundle
from pneumoscope.serve.web.admission import Admission
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.workers.pool import WorkerPool

__all__ = ["HeatmapStore", "Metrics", "WebContext"]

SECONDS = (0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class HeatmapStore:
    """Keeps a few heat maps in memory for a short time, under names that cannot be guessed.

    Parameters
    ----------
    seconds : float
        Until a heat map is discarded.
    most : int
        Heat maps; the oldest is discarded first.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._images: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def put(self, image: bytes) -> str:
        """Keep a heat map and return the token to get it back; needs a running event loop."""
        token = secrets.token_urlsafe(32)
        self._images[token] = image
        if len(self._images) > self._most:
            self._images.popitem(last=False)
        asyncio.get_running_loop().call_later(self._seconds, self._images.pop, token, None)
        return token

    def get(self, token: str) -> bytes | None:
        """Return a heat map, or None if it was discarded."""
        return self._images.get(token)


class Metrics:
    """Prometheus metrics of one application; they contain no file name and no address."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "pneumoscope_requests", "Responses sent", ["path", "status"], registry=self._registry
        )
        self.images = Counter(
            "pneumoscope_images", "Images with a result", ["status"], registry=self._registry
        )
        self.seconds = Histogram(
            "pneumoscope_prediction_seconds",
            "From the last byte of a request to its response",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.restarts = Counter("pneumoscope_worker_restarts", "Workers replaced", registry=self._registry)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when metrics are requested."""
        Gauge(f"pneumoscope_{name}", help, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True, eq=False)
class WebContext:
    """The objects that the routes share."""

    bundle: Bundle
    limits: WebLimits
    pool: WorkerPool
    admission: Admission
    heatmaps: HeatmapStore
    metrics: Metrics

    def watch_all(self) -> None:
        """Add the gauges of queue, memory and workers to the metrics."""
        watch, admission, pool = self.metrics.watch, self.admission, self.pool
        watch("requests_receiving", "Requests whose bodies are arriving", lambda: admission.receiving)
        watch("requests_waiting", "Requests that wait for their response", lambda: admission.waiting)
        watch("jobs_waiting", "Images in the queue of the workers", lambda: pool.waiting)
        watch("held_bytes", "Memory held by uploads and unsent responses", lambda: admission.held_bytes)
        watch("workers_alive", "Running workers", lambda: pool.alive)
        watch("heatmaps", "Heat maps waiting to be fetched", lambda: len(self.heatmaps))
