"""Heat maps that wait, in memory and for a short while, to be fetched by their URL."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict

__all__ = ["HeatmapStore"]


class HeatmapStore:
    """Keeps a few pictures for a few seconds under names that cannot be guessed.

    Parameters
    ----------
    seconds : float
        Until a picture is gone.
    most : int
        Pictures; the oldest goes first.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._pictures: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pictures)

    def put(self, picture: bytes) -> str:
        """Keep a picture; must be called where an event loop runs.

        Returns
        -------
        str
            The token to get it back with.
        """
        token = secrets.token_urlsafe(32)
        self._pictures[token] = picture
        if len(self._pictures) > self._most:
            self._pictures.popitem(last=False)
        asyncio.get_running_loop().call_later(self._seconds, self._pictures.pop, token, None)
        return token

    def get(self, token: str) -> bytes | None:
        """Return a picture, or None if it is gone."""
        return self._pictures.get(token)
