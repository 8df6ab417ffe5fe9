"""Limits on requests."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MB", "WebLimits"]

MB = 1_000_000


@dataclass(frozen=True)
class WebLimits:
    """Limits on requests, connections and the prediction of their images.

    Parameters
    ----------
    max_file_bytes, max_request_bytes : int
        Size of one upload, and of the body of a request; status 413 above them.
    max_files : int
        Uploads in a request; status 413 above it.
    max_held_bytes : int
        Memory for the uploads and the unsent responses of all requests together; status 429 above it.
    max_receiving : int
        Requests whose bodies are arriving; one address gets at most half of them.
    max_queue : int
        Requests that wait for their response; status 429 for further ones.
    max_connections : int
        Open connections; further ones are closed at once.
    head_timeout, idle_timeout, body_timeout : float
        Seconds for the head of a request, between two pieces of its body, and for the whole body.
    write_timeout : float
        Seconds in which a client must read each 64 kB of its response.
    job_timeout : float
        Seconds for reading and predicting one image.
    worker_memory : int
        Bytes that a worker may allocate beyond those of the loaded model; see
        `pneumoscope.serve.workers.pool.WorkerLimits`.
    heatmap_seconds : float
        How long a heat map can be fetched from its URL.
    max_heatmaps : int
        Heat maps kept at the same time; the oldest is discarded first.
    stop_timeout : float
        Seconds for accepted requests to finish when the server stops.
    """

    max_file_bytes: int = 100 * MB
    max_request_bytes: int = 256 * MB
    max_files: int = 64
    max_held_bytes: int = 1024 * MB
    max_receiving: int = 128
    max_queue: int = 64
    max_connections: int = 512
    head_timeout: float = 10.0
    idle_timeout: float = 10.0
    body_timeout: float = 120.0
    write_timeout: float = 60.0
    job_timeout: float = 30.0
    worker_memory: int = 1024 * MB
    heatmap_seconds: float = 120.0
    max_heatmaps: int = 512
    stop_timeout: float = 60.0
