"""Commands whose packages are an extra of the installation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pneumoscope.errors import MissingExtraError

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(extra: str, feature: str) -> Iterator[None]:
    """Turn the import of a package that is not installed into one clear line.

    Parameters
    ----------
    extra : str
        That brings the package.
    feature : str
        What the user asked for, as the subject of a sentence.

    Raises
    ------
    MissingExtraError
        If an import inside the block fails.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pneumoscope"):
            raise
        raise MissingExtraError(feature, extra) from error
