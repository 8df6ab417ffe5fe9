"""Errors, the reasons why an image has no prediction, and what their messages share.

Each error is one line that names the file and the fix::

    PneumoscopeError
    ├── UnreadableImageError   a file that cannot be decoded to an image; carries a `Reason`
    ├── BundleError            a bundle that is missing, damaged, unfinished or of another format
    ├── DataError              a data set, manifest or label table that cannot be used
    ├── RecipeError            a training recipe with an unknown key or a wrong value
    ├── DownloadError          a download that failed or did not match its checksum
    ├── MissingExtraError      a feature whose optional packages are not installed
    └── OtherProcessError      one of several processes failed; that one has reported why
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

__all__ = [
    "CAUTIONS",
    "BundleError",
    "DataError",
    "DownloadError",
    "MissingExtraError",
    "OtherProcessError",
    "PneumoscopeError",
    "Reason",
    "RecipeError",
    "UnreadableImageError",
    "counted",
    "require_extra",
]


class PneumoscopeError(Exception):
    """Base of every error that Pneumoscope raises on purpose; its text is one line for people."""


class Reason(StrEnum):
    """Why an image was not read or not predicted, or a caution about its prediction, as a stable code."""

    # Unreadable: the file was not decoded.
    NOT_FOUND = "not_found"
    NO_PERMISSION = "no_permission"
    EMPTY_FILE = "empty_file"
    FILE_TOO_LARGE = "file_too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    NO_PIXELS = "no_pixels"
    MULTI_FRAME = "multi_frame"
    READER_STOPPED = "reader_stopped"
    # Rejected: decoded, but outside of what the model may predict.
    NOT_A_CHEST_RADIOGRAPH = "not_a_chest_radiograph"
    LATERAL_VIEW = "lateral_view"
    TOO_SMALL = "too_small"
    CROPPED = "cropped"
    OVER_EXPOSED = "over_exposed"
    UNDER_EXPOSED = "under_exposed"
    # Cautions: predicted, with something to know.
    INVERTED = "inverted"
    ROTATED = "rotated"
    GREY_LEVELS_RESTORED = "grey_levels_restored"
    BODY_PART_MISMATCH = "body_part_mismatch"
    LUNGS_CUT_OFF = "lungs_cut_off"
    POPULATION_NOT_VALIDATED = "population_not_validated"


CAUTIONS = frozenset(
    {
        Reason.INVERTED,
        Reason.ROTATED,
        Reason.GREY_LEVELS_RESTORED,
        Reason.BODY_PART_MISMATCH,
        Reason.LUNGS_CUT_OFF,
        Reason.POPULATION_NOT_VALIDATED,
    }
)
"""Reasons that do not keep an image from being predicted."""


class UnreadableImageError(PneumoscopeError):
    """A file that cannot be decoded to an image.

    Parameters
    ----------
    path : str
        The file, as the user named it.
    reason : Reason
        The code that goes into the row of the batch.
    detail : str
        What is wrong and what to do about it, one sentence.
    """

    def __init__(self, path: str, reason: Reason, detail: str) -> None:
        detail = " ".join(detail.split())  # a codec's message may have several lines
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, Reason, str]]:
        """Keep the error whole when it crosses a process boundary."""
        return (type(self), (self.path, self.reason, self.detail))


class BundleError(PneumoscopeError):
    """A bundle that is missing, damaged, unfinished or of another format."""


class DataError(PneumoscopeError):
    """A data set, manifest or label table that cannot be used."""


class RecipeError(PneumoscopeError):
    """A training recipe with an unknown key or a wrong value."""


class DownloadError(PneumoscopeError):
    """A download that failed or did not match its checksum."""


class MissingExtraError(PneumoscopeError):
    """A feature whose optional packages are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs more packages: in a clone, pip install '.[{extra}]'")
        self.feature = feature
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Keep the error whole when it crosses a process boundary."""
        return (type(self), (self.feature, self.extra))


class OtherProcessError(PneumoscopeError):
    """The end of a process because another one, of the same training, failed and has reported why."""


def counted(number: int, what: str, several: str = "") -> str:
    """Return a number with its noun: for all numbers but 1 with an ``s``, or as `several` has it."""
    return f"{number} {what if number == 1 else several or f'{what}s'}"


@contextmanager
def require_extra(extra: str, feature: str) -> Iterator[None]:
    """Turn a failed import inside the block into one clear line.

    Parameters
    ----------
    extra : str
        The optional dependency group that brings the package.
    feature : str
        What the user asked for, as the subject of a sentence.

    Raises
    ------
    MissingExtraError
        If a package outside of Pneumoscope is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pneumoscope"):
            raise
        raise MissingExtraError(feature, extra) from error
