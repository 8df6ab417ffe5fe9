"""Who is let in: how many requests at a time, and how much memory their uploads may hold.

A request is first *receiving*, while its body arrives at the pace of its client, and then *waiting* for its
answer. The two are counted apart: slow clients take nothing from the queue.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from pneumoscope.serve.web.limits import WebLimits

__all__ = ["Admission", "Seat"]

FIRST_GUESS = 0.5  # seconds that a request takes, until some have been seen
MEMORY_OF_PACE = 0.9
LONGEST_RETRY = 30


class Admission:
    """Keeps count of the requests under way.

    Parameters
    ----------
    limits : WebLimits
        What is too much.
    """

    def __init__(self, limits: WebLimits) -> None:
        self._limits = limits
        self._pace = FIRST_GUESS
        self._addresses: Counter[str] = Counter()
        self.receiving = 0
        self.waiting = 0
        self.held_bytes = 0
        self.stopping = False

    @property
    def full(self) -> bool:
        """Whether the next request would be turned away."""
        return self.waiting >= self._limits.max_queue or self.receiving >= self._limits.max_receiving

    @contextmanager
    def seat(self, address: str) -> Iterator[Seat]:
        """Let one request in, for as long as the context lasts.

        Parameters
        ----------
        address : str
            The client's; one address cannot take all places for receiving.

        Raises
        ------
        HTTPException
            503 if the server is stopping; 429 if it is full.
        """
        if self.stopping:
            raise HTTPException(503, "the server is stopping; send this again to the next one")
        crowded = self._addresses[address] >= max(1, self._limits.max_receiving // 2)
        if self.full or crowded:
            raise self.turned_away("too many requests are under way")
        seat = Seat(self, address)
        try:
            yield seat
        finally:
            seat.leave()

    def turned_away(self, why: str) -> HTTPException:
        """Return the error of a full server, with the seconds after which it may be worth trying again."""
        seconds = min(LONGEST_RETRY, max(1, math.ceil(self.waiting * self._pace)))
        return HTTPException(429, f"{why}; try again in {seconds} s", headers={"Retry-After": str(seconds)})

    def saw(self, seconds: float) -> None:
        """Learn how long a request took, from its last byte to its answer, per request then in the queue."""
        share = seconds / max(1, self.waiting)
        self._pace = MEMORY_OF_PACE * self._pace + (1 - MEMORY_OF_PACE) * share

    def grow(self, size: int) -> None:
        """Count bytes that are about to be held.

        Raises
        ------
        HTTPException
            429 if they are too many.
        """
        if self.held_bytes + size > self._limits.max_held_bytes:
            raise self.turned_away("the memory for uploads is full")
        self.held_bytes += size

    def began(self, address: str) -> None:
        """Count a request whose body arrives."""
        self.receiving += 1
        self._addresses[address] += 1

    def ended(self, address: str) -> None:
        """Forget a request whose body arrived."""
        self.receiving -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]


class Seat:
    """The place of one request."""

    def __init__(self, admission: Admission, address: str) -> None:
        self._admission, self._address = admission, address
        self._held = 0
        self._receiving, self._waiting = True, False
        admission.began(address)

    def grow(self, size: int) -> None:
        """Take memory; raises as `Admission.grow` does."""
        self._admission.grow(size)
        self._held += size

    def shrink(self, size: int) -> None:
        """Give memory back."""
        self._admission.held_bytes -= size
        self._held -= size

    def received(self) -> None:
        """Pass from receiving to waiting."""
        self._admission.ended(self._address)
        self._receiving, self._waiting = False, True
        self._admission.waiting += 1

    def leave(self) -> None:
        """Give everything back."""
        self.shrink(self._held)
        if self._receiving:
            self._admission.ended(self._address)
        if self._waiting:
            self._admission.waiting -= 1
        self._receiving = self._waiting = False
