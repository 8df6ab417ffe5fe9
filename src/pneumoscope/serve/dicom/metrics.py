"""Prometheus metrics of the node: what happened since it started, and what the journal and the disk say now.

No label holds anything of a patient. Silence must alarm as well: alert on
``pneumoscope_node_caller_silent_seconds`` as on errors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pneumoscope.serve.dicom.journal import (
    DELIVERY_STATES,
    IMAGE_STATES,
    RESULT_STATES,
    Journal,
    JournalError,
    now,
)
from pneumoscope.serve.dicom.status import WAITING
from pneumoscope.serve.dicom.store import Store

__all__ = ["NodeMetrics"]

STUDY_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 300, 1800)
IMAGE_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
PREFIX = "pneumoscope_node"
LONGEST_SILENCE = 30 * 86400.0  # seconds; looking further back would read all of the journal


class NodeMetrics:
    """The metrics of one node."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.received = Counter(f"{PREFIX}_received", "Datasets accepted", ["via", "how"], registry=registry)
        for via in ("folder", "web"):  # from 0 on: Prometheus sees no increase in the first value of a series
            self.received.labels(via, "left_out")
        self.images = Counter(f"{PREFIX}_images", "Images processed", ["status"], registry=registry)
        self.image_seconds = Histogram(
            f"{PREFIX}_image_seconds",
            "Reading and predicting one image",
            buckets=IMAGE_SECONDS,
            registry=registry,
        )
        self.study_seconds = Histogram(
            f"{PREFIX}_study_seconds",
            "From the last image of a study to its results at a destination",
            buckets=STUDY_SECONDS,
            registry=registry,
        )
        self.deliveries = Counter(
            f"{PREFIX}_deliveries",
            "Attempts to send an object",
            ["destination", "outcome"],
            registry=registry,
        )
        self.restarts = Counter(f"{PREFIX}_worker_restarts", "Workers replaced", registry=registry)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def watch(
        self,
        journal: Journal,
        store: Store,
        values: Callable[[], dict[str, float]],
        *,
        callers: Sequence[str] = (),
        destinations: Sequence[str] = (),
    ) -> None:
        """Add what is read when the metrics are requested.

        Parameters
        ----------
        journal : Journal
        store : Store
        values : callable
            Further gauges by name.
        callers : sequence of str
            Calling AE titles, and names in place of one, whose silence is shown; if empty, whoever has sent
            in the last 30 days.
        destinations : sequence of str
            Shown also before anything was made for them.
        """
        self.registry.register(_Now(journal, store, values, tuple(callers), tuple(destinations)))

    def serve(self, host: str, port: int) -> int:
        """Serve ``/metrics``; return the port.

        Raises
        ------
        OSError
            If the address cannot be used.
        """
        self._server, self._thread = start_http_server(port, host, self.registry)
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Now(Collector):
    """Gauges from the journal."""

    def __init__(
        self,
        journal: Journal,
        store: Store,
        values: Callable[[], dict[str, float]],
        callers: Sequence[str],
        destinations: Sequence[str],
    ) -> None:
        self._journal, self._store, self._values = journal, store, values
        self._callers, self._destinations = callers, destinations
        self._started = now()

    def describe(self) -> Iterable[Metric]:
        """Name no metric in advance: they are read from a journal that may not be open yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read journal, disk and values."""
        try:
            yield from self._journal_gauges()
            broken = 0.0
        except JournalError:
            broken = 1.0
        yield _gauge("journal_failed", "1 if the journal cannot be read", broken)
        yield _gauge("disk_free_bytes", "Free space on the disk of the folder", self._store.free_bytes)
        for name, value in self._values().items():
            yield _gauge(name, name.replace("_", " ").capitalize(), value)

    def _journal_gauges(self) -> Iterator[Metric]:
        journal = self._journal
        # Every state, also with 0: a sum over a series that is absent has no value, and raises no alert.
        for table, what, states in (
            ("instances", "Images", IMAGE_STATES),
            ("results", "Results", RESULT_STATES),
        ):
            counted = self._by_name(f"SELECT state, count(*) FROM {table} GROUP BY state")
            found = dict.fromkeys(states, 0.0) | counted
            yield _family(table, f"{what} in the journal", ["state"], found)
        queued = {
            (row[0], row[1]): row[2]
            for row in journal.rows("SELECT destination, state, count(*) FROM deliveries GROUP BY 1, 2")
        }
        names = sorted({*self._destinations, *(name for name, _ in queued)})
        objects = {(name, state): queued.get((name, state), 0) for name in names for state in DELIVERY_STATES}
        yield _family("objects", "Objects by destination and state", ["destination", "state"], objects)
        yield _family(
            "caller_silent_seconds",
            "Since the last image of a caller, or since the start where that is more than 30 days ago",
            ["caller"],
            self._silences(),
        )
        length, oldest = journal.rows(f"SELECT count(*), min(received) FROM instances WHERE {WAITING}")[0]
        unsent = journal.value(
            "SELECT min(r.last_received) FROM deliveries d JOIN objects o ON o.id = d.object"
            " JOIN results r ON r.id = o.result WHERE d.state IN ('pending', 'sending')"
        )
        last = journal.value("SELECT max(received) FROM instances")
        yield _gauge("queue_length", "Images that are accepted and not reported yet", length)
        yield _gauge("queue_oldest_seconds", "Age of the oldest of them", _age(oldest))
        yield _gauge("unsent_oldest_seconds", "Age of the oldest study with an unsent result", _age(unsent))
        yield _gauge("last_received_timestamp_seconds", "When the last image was accepted", last or 0.0)

    def _by_name(self, query: str, *parameters: float) -> dict[str, float]:
        return {row[0]: row[1] for row in self._journal.rows(query, parameters)}

    def _silences(self) -> dict[str, float]:
        last = self._by_name(
            "SELECT caller, max(received) FROM instances WHERE received > ? GROUP BY caller",
            now() - LONGEST_SILENCE,
        )
        return {one: _age(last.get(one, self._started)) for one in self._callers or sorted(last)}


def _age(since: float | None) -> float:
    return 0.0 if since is None else max(0.0, now() - since)


def _gauge(name: str, help: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help, value=float(value))


def _family(name: str, help: str, labels: Sequence[str], values: Mapping[Any, float]) -> GaugeMetricFamily:
    """Return a gauge with labels; a key is the value of the label, or a tuple with that of each label."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help, labels=labels)
    for key, value in values.items():
        family.add_metric([key] if isinstance(key, str) else key, float(value))
    return family
