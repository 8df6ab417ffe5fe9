"""Admission control: how many requests at a time, and how much memory uploads and responses may take.

A request is first *receiving*, while its body arrives at the pace of its client, and then *waiting* for its
response. The two are counted separately, so that slow clients take no place in the queue.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from pneumoscope.serve.web.limits import WebLimits

__all__ = ["Admission", "Slot"]

INITIAL_PACE = 0.5  # seconds per request, until some have been measured
PACE_SMOOTHING = 0.9
MAX_RETRY = 30


class Admission:
    """Counts the requests in progress.

    Parameters
    ----------
    limits : WebLimits
        Maximum counts and memory.
    """

    def __init__(self, limits: WebLimits) -> None:
        self._limits = limits
        self._pace = INITIAL_PACE
        self._addresses: Counter[str] = Counter()
        self.receiving = 0
        self.waiting = 0
        self.held_bytes = 0
        self.stopping = False

    @property
    def full(self) -> bool:
        """Whether the next request would be rejected."""
        return self.waiting >= self._limits.max_queue or self.receiving >= self._limits.max_receiving

    @contextmanager
    def slot(self, address: str) -> Iterator[Slot]:
        """Admit one request for as long as the context lasts.

        Parameters
        ----------
        address : str
            The client's; one address may have at most half of the places for receiving.

        Raises
        ------
        HTTPException
            503 if the server is stopping; 429 if it is full.
        """
        if self.stopping:
            raise HTTPException(503, "the server is stopping; send this again to the next one")
        crowded = self._addresses[address] >= max(1, self._limits.max_receiving // 2)
        if self.full or crowded:
            raise self.busy("too many requests are in progress")
        slot = Slot(self, address)
        try:
            yield slot
        finally:
            slot.leave()

    def busy(self, why: str) -> HTTPException:
        """Return error 429 with the estimated seconds until a retry can succeed."""
        seconds = min(MAX_RETRY, max(1, math.ceil(self.waiting * self._pace)))
        return HTTPException(429, f"{why}; try again in {seconds} s", headers={"Retry-After": str(seconds)})

    def record(self, seconds: float) -> None:
        """Record how long a request took from its last byte to its response."""
        share = seconds / max(1, self.waiting)
        self._pace = PACE_SMOOTHING * self._pace + (1 - PACE_SMOOTHING) * share

    def grow(self, size: int) -> None:
        """Count bytes that are about to be kept.

        Raises
        ------
        HTTPException
            429 if the memory for uploads and responses is full.
        """
        if self.held_bytes + size > self._limits.max_held_bytes:
            raise self.busy("the memory for uploads and responses is full")
        self.held_bytes += size

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count bytes for as long as the context lasts.

        Raises
        ------
        HTTPException
            429 if the memory for uploads and responses is full.
        """
        self.grow(size)
        try:
            yield
        finally:
            self.held_bytes -= size

    def began(self, address: str) -> None:
        """Count a request whose body is arriving."""
        self.receiving += 1
        self._addresses[address] += 1

    def ended(self, address: str) -> None:
        """Remove a request whose body has arrived."""
        self.receiving -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]


class Slot:
    """The place of one request."""

    def __init__(self, admission: Admission, address: str) -> None:
        self._admission, self._address = admission, address
        self._held = 0
        self._receiving, self._waiting = True, False
        admission.began(address)

    def grow(self, size: int) -> None:
        """Take memory.

        Raises
        ------
        HTTPException
            429 if the memory for uploads and responses is full.
        """
        self._admission.grow(size)
        self._held += size

    def shrink(self, size: int) -> None:
        """Return memory."""
        self._admission.held_bytes -= size
        self._held -= size

    def received(self) -> None:
        """Pass from receiving to waiting."""
        self._admission.ended(self._address)
        self._receiving, self._waiting = False, True
        self._admission.waiting += 1

    def leave(self) -> None:
        """Return everything."""
        self.shrink(self._held)
        if self._receiving:
            self._admission.ended(self._address)
        if self._waiting:
            self._admission.waiting -= 1
        self._receiving = self._waiting = False
