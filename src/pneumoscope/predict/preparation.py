"""From files to what the network is fed: read, gate, find the lungs, standardise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Radiograph, Status
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.lungs import LungField, lung_field
from pneumoscope.image.standardise import Standardised, lung_view, standardise_with_lungs
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.lungs import OnnxLungSegmenter
from pneumoscope.predict.gate import (
    advice,
    check_header,
    check_lungs,
    check_pixels,
    is_negative,
    may_be_negative,
    negative,
    rejects,
)
from pneumoscope.predict.inputs import Item
from pneumoscope.predict.novelty import Novelty

__all__ = ["Preparation", "Prepared", "RawScore", "Source"]

Floats = npt.NDArray[np.float32]
Source = Item | bytes


@dataclass(frozen=True, eq=False, slots=True)
class RawScore:
    """What the network said before calibration; what calibrators are fitted on.

    Parameters
    ----------
    path : str
        The file, as the user named it.
    status : {"ok", "rejected", "unreadable"}
        As in a `Prediction`.
    reasons : tuple of Reason
        Why it was not read or not predicted; also kept where the gate was overridden.
    logits : ndarray of float32, shape (K,), or None
        None unless the status is ``ok``.
    message : str
        The line for people that goes with the reasons.
    """

    path: str
    status: Status
    reasons: tuple[Reason, ...] = ()
    logits: Floats | None = None
    message: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A image on its way to the network.

    Parameters
    ----------
    score : RawScore
        Without logits.
    radiograph : Radiograph or None
        The image as it was read; None where it could not be.
    input : Standardised or None
        There where the image shall be predicted.
    """

    score: RawScore
    radiograph: Radiograph | None = None
    input: Standardised | None = None


class Preparation:
    """What happens to images before the network; may be used from several threads at once.

    Parameters
    ----------
    bundle : Bundle
        Its input spec, gate limits and lung segmenter are used.
    force : bool
        Prepare what the gate would reject, too.
    """

    def __init__(self, bundle: Bundle, *, force: bool = False) -> None:
        self._spec, self._limits, self._force = bundle.manifest.input, bundle.manifest.gate, force
        self._segment = OnnxLungSegmenter(bundle.lungs_path) if bundle.lungs_path else None
        statistics = bundle.gate_statistics
        self._novelty = Novelty(*statistics) if statistics else None

    def read(self, sources: Sequence[tuple[Source, str | None]]) -> list[Prepared]:
        """Read, gate and standardise some files or their contents, each with a name or None."""
        read = [self._read(source, name) for source, name in sources]
        admitted = iter(self.admit([one for one in read if isinstance(one, Radiograph)]))
        return [next(admitted) if isinstance(one, Radiograph) else one for one in read]

    def admit(self, radiographs: Sequence[Radiograph]) -> list[Prepared]:
        """Gate and standardise images that were read; the segmenter sees them together."""
        reasons = [self._first_look(radiograph) for radiograph in radiographs]
        open_to = [self._force or not rejects(found) for found in reasons]
        pairs = zip(radiographs, open_to, strict=True)
        lungs = iter(self._lungs([radiograph for radiograph, may_pass in pairs if may_pass]))
        prepared = []
        for radiograph, found, may_pass in zip(radiographs, reasons, open_to, strict=True):
            if may_pass:
                shown, image, more = self._upright(radiograph, next(lungs))
                prepared.append(self._verdict(shown, image, [*found, *more]))
            else:
                prepared.append(self._verdict(radiograph, None, found))
        return prepared

    def _read(self, source: Source, name: str | None) -> Radiograph | Prepared:
        known = name or (source if isinstance(source, str) else "<bytes>")
        try:
            if isinstance(source, UnreadableImageError):
                raise source
            return read_radiograph(source, min_side=self._spec.decode_side, name=known)
        except UnreadableImageError as error:
            path = error.path if isinstance(source, UnreadableImageError) else known
            return Prepared(RawScore(path, "unreadable", (error.reason,), message=error.detail))

    def _first_look(self, radiograph: Radiograph) -> list[Reason]:
        """Predict header and grey levels; these only where the header does not reject the image."""
        reasons = check_header(radiograph, self._limits)
        if not rejects(reasons) or self._force:
            reasons = reasons + check_pixels(radiograph, self._limits)
        return reasons

    def _lungs(self, radiographs: Sequence[Radiograph]) -> list[LungField | None]:
        """Find the lungs of several images in one call of the segmenter, where they are needed."""
        if self._segment is None or not self._spec.needs_lungs or not radiographs:
            return [None] * len(radiographs)
        views = np.stack([lung_view(radiograph) for radiograph in radiographs])
        maps = self._segment.batch(views)
        return [lung_field(one, view=view) for one, view in zip(maps, views, strict=True)]

    def _upright(
        self, radiograph: Radiograph, lungs: LungField | None
    ) -> tuple[Radiograph, Standardised, list[Reason]]:
        """Standardise a image and look at its lungs; a negative is turned first."""
        limits, novelty = self._limits, self._novelty
        given = standardise_with_lungs(radiograph, self._spec, lungs)
        found = check_lungs(given, limits, novelty)
        if novelty and (found or may_be_negative(given, limits)):
            positive = negative(radiograph)
            turned = standardise_with_lungs(positive, self._spec, self._lungs([positive])[0])
            if is_negative(given, turned, found, check_lungs(turned, limits, novelty)):
                return positive, turned, [Reason.INVERTED]
        return radiograph, given, found

    def _verdict(
        self, radiograph: Radiograph, image: Standardised | None, reasons: Sequence[Reason]
    ) -> Prepared:
        unique = tuple(dict.fromkeys(reasons))
        message = advice(unique, radiograph, self._limits)
        if rejects(unique) and not self._force:
            return Prepared(RawScore(radiograph.source, "rejected", unique, message=message), radiograph)
        return Prepared(RawScore(radiograph.source, "ok", unique, message=message), radiograph, image)
