"""Heat maps that wait, in memory and for a short while, to be fetched by their URL."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict

__all__ = ["HeatmapStore"]


class HeatmapStore:
    """Keeps a few images for a few seconds under names that cannot be guessed.

    Parameters
    ----------
    seconds : float
        Until a image is gone.
    most : int
        Images; the oldest goes first.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._images: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def put(self, image: bytes) -> str:
        """Keep a image; must be called where an event loop runs.

        Returns
        -------
        str
            The token to get it back with.
        """
        token = secrets.token_urlsafe(32)
        self._images[token] = image
        if len(self._images) > self._most:
            self._images.popitem(last=False)
        asyncio.get_running_loop().call_later(self._seconds, self._images.pop, token, None)
        return token

    def get(self, token: str) -> bytes | None:
        """Return a image, or None if it is gone."""
        return self._images.get(token)
