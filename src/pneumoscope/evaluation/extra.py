"""The one place that says which optional packages evaluating needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pneumoscope.errors import MissingExtraError

__all__ = ["evaluate_extra"]


@contextmanager
def evaluate_extra(feature: str) -> Iterator[None]:
    """Turn a failed import inside the block into one clear line.

    Parameters
    ----------
    feature : str
        What the user asked for, as the subject of a sentence.

    Raises
    ------
    MissingExtraError
        If a package of the extra ``evaluate`` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(feature, "evaluate") from error
