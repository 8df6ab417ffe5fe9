"""How much a client may ask for, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WebLimits"]

MB = 1_000_000


@dataclass(frozen=True)
class WebLimits:
    """Bounds that hold while a request streams in, and while its images are predicted.

    Parameters
    ----------
    max_file_bytes, max_request_bytes : int
        Size of one upload, and of the whole body of a request; beyond them the answer is 413.
    max_files : int
        Uploads in a request; beyond it the answer is 413.
    max_held_bytes : int
        Memory for the uploads of all requests together; beyond it the answer is 429.
    max_receiving : int
        Requests whose bodies arrive at the same time; one address gets at most half of them.
    max_queue : int
        Requests that arrived and wait for their answer; from there on the answer is 429.
    max_connections : int
        Open connections; more are closed at once.
    head_timeout, idle_timeout, body_timeout : float
        Seconds for the head of a request, between two pieces of its body, and for the whole body.
    write_timeout : float
        Seconds that a client may leave an answer unread.
    job_timeout : float
        Seconds for reading and predicting one image.
    worker_memory : int
        Bytes that a worker may take beyond what the loaded model takes. The largest image that is read, 50
        megapixels of 16-bit RGB, takes about 400 MB.
    heatmap_seconds : float
        How long a heat map can be fetched by its URL.
    max_heatmaps : int
        Heat maps kept at the same time; the oldest goes first.
    stop_timeout : float
        Seconds that accepted requests get to finish when the server is told to stop.
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
