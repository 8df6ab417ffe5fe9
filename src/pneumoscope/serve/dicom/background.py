"""Parts of the node that work beside each other, and how it is seen that one of them does not any more."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

from pneumoscope.errors import PneumoscopeError

__all__ = ["STUCK_SECONDS", "Background", "Part", "Pulse", "stop_together"]

logger = logging.getLogger(__name__)

STUCK_SECONDS = 300.0  # without a sign of life of a part, beyond what it may wait for


class Part(Protocol):
    """A part of the node that the watchdog looks at."""

    @property
    def name(self) -> str:
        """In logs."""

    @property
    def stuck(self) -> bool:
        """Whether it has ended, or has not gone on for longer than it may."""


class Pulse:
    """When a part last went on, by the clock that no one sets; safe from any thread.

    Parameters
    ----------
    longest : float
        Seconds that it may take to its next sign of life.
    """

    def __init__(self, longest: float = STUCK_SECONDS) -> None:
        self._longest = longest
        self._last = time.monotonic()

    def beat(self) -> None:
        """Give a sign of life."""
        self._last = time.monotonic()

    @property
    def lost(self) -> bool:
        """Whether the last sign of life is too long ago."""
        return time.monotonic() - self._last > self._longest


class Background(ABC):
    """Runs `_work` in a thread of its own.

    Parameters
    ----------
    name : str
        Of the thread.
    longest : float
        Seconds that it may take from one `pulse` to the next.
    """

    def __init__(self, name: str, longest: float) -> None:
        self.name, self.pulse = name, Pulse(longest)
        self.failure: PneumoscopeError | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stuck(self) -> bool:
        """Whether the thread has ended, or takes longer over something than all of its time limits allow."""
        return not self._thread.is_alive() or self.pulse.lost

    def start(self) -> None:
        """Begin."""
        self.pulse.beat()
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be something to do."""
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """Finish what is in hand, for so long at most."""
        stop_together([self], seconds)

    def ask_to_stop(self) -> None:
        """Say that it should end once what is in hand is finished."""
        self._stopping = True
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Wait for its end, for so long at most; return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except PneumoscopeError as error:
            self.failure = error
        except Exception as error:
            self.failure = PneumoscopeError(f"{self.name}: {type(error).__name__}")
            raise

    @abstractmethod
    def _work(self) -> None:
        """Work until `_stopping`; wait for `_wake` in between."""


def stop_together(threads: Iterable[Background], seconds: float) -> None:
    """Stop all at once, and wait for all of them for so long at most."""
    stopped = list(threads)
    end = time.monotonic() + seconds
    for one in stopped:
        one.ask_to_stop()
    if late := [one.name for one in stopped if not one.join(end - time.monotonic())]:
        logger.warning("not finished in time", extra={"parts": late})
