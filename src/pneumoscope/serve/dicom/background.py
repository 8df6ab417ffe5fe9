"""A thread of the node that works when it is woken, and ends with what is in hand."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

__all__ = ["Background"]


class Background(ABC):
    """Runs `_run` in a thread of its own.

    Parameters
    ----------
    name : str
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be something to do."""
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """Finish what is in hand, for so long at most."""
        self._stopping = True
        self._wake.set()
        self._thread.join(seconds)

    @abstractmethod
    def _run(self) -> None:
        """Work until `_stopping`; wait for `_wake` in between."""
