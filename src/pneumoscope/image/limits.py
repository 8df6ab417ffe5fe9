"""Limits on the size of an image, checked before anything is decoded, and errors of damaged data."""

from __future__ import annotations

from dataclasses import dataclass

from pneumoscope.errors import Reason, UnreadableImageError

__all__ = ["DEFAULT_LIMITS", "Limits", "check_bytes", "check_pixels", "corrupt", "truncated"]


@dataclass(frozen=True)
class Limits:
    """Bounds on one image; a larger one is rejected before it is decoded.

    Parameters
    ----------
    max_bytes : int
        Size of the file, and of a deflated DICOM file after inflation.
    max_pixels : int
        Rows times columns. The largest X-ray detectors give about 20 million.
    """

    max_bytes: int = 100_000_000
    max_pixels: int = 50_000_000


DEFAULT_LIMITS = Limits()


def check_bytes(name: str, size: int, limits: Limits) -> None:
    """Reject an empty file and one that is too large.

    Raises
    ------
    UnreadableImageError
        With `Reason.EMPTY_FILE` or `Reason.FILE_TOO_LARGE`.
    """
    if size == 0:
        raise UnreadableImageError(
            name, Reason.EMPTY_FILE, "the file is empty; copy it again from its source"
        )
    if size > limits.max_bytes:
        detail = f"{size / 1e6:.0f} MB is more than the limit of {limits.max_bytes / 1e6:.0f} MB"
        raise UnreadableImageError(name, Reason.FILE_TOO_LARGE, f"{detail}; export one image per file")


def check_pixels(name: str, height: int, width: int, limits: Limits) -> None:
    """Reject an image without area and one with too many pixels.

    Raises
    ------
    UnreadableImageError
        With `Reason.CORRUPT` or `Reason.TOO_MANY_PIXELS`.
    """
    if height < 1 or width < 1:
        detail = f"its header states a size of {width} x {height} pixels; export it again"
        raise UnreadableImageError(name, Reason.CORRUPT, detail)
    if height * width > limits.max_pixels:
        detail = (
            f"{width} x {height} pixels are more than the limit of {limits.max_pixels / 1e6:g} million; "
            "export it at a lower resolution"
        )
        raise UnreadableImageError(name, Reason.TOO_MANY_PIXELS, detail)


def corrupt(name: str, kind: str, what: str = "") -> UnreadableImageError:
    """Return the error for data that contradict their own format."""
    detail = f"damaged {kind} data ({what})" if what else f"damaged {kind} data"
    return UnreadableImageError(name, Reason.CORRUPT, f"{detail}; copy the file again")


def truncated(name: str, kind: str) -> UnreadableImageError:
    """Return the error for data that end too early."""
    return UnreadableImageError(name, Reason.TRUNCATED, f"the {kind} data end too early; copy the file again")
