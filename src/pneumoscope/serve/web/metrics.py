"""What a Prometheus server may ask about the web face."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one application; nothing in them names a file or a client."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "pneumoscope_requests", "Requests answered", ["path", "status"], registry=self._registry
        )
        self.images = Counter("pneumoscope_images", "Images answered", ["status"], registry=self._registry)
        self.seconds = Histogram(
            "pneumoscope_prediction_seconds",
            "From the last byte of a request to its answer",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.restarts = Counter(
            "pneumoscope_worker_restarts", "Workers that had to be replaced", registry=self._registry
        )

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(f"pneumoscope_{name}", help, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return everything in the format that Prometheus reads."""
        return generate_latest(self._registry)
