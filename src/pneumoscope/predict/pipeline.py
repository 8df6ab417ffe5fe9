"""The one path from a file to the network's input.

Decode, check, find the lungs, correct rotation or inverted grayscale, standardise.

Prediction, training, gate fitting and evaluation all use it, so that a network never sees in use what it did
not see in training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.walk import OWN_OUTPUT, is_own_output
from pneumoscope.domain import Population, Radiograph, ViewPosition
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.decode import DEFAULT_LIMITS, read_radiograph
from pneumoscope.image.lungs import LungField, lung_field
from pneumoscope.image.standardise import InputSpec, Standardised, lung_view, standardise_with_lungs
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.limits import GateLimits
from pneumoscope.model.lungs import LungsOnBlack, OnnxLungSegmenter
from pneumoscope.predict.cache import CachedImage, ImageCache
from pneumoscope.predict.chest import NOT_A_CHEST, ChestClassifier, chest_features
from pneumoscope.predict.estimates import FRONTAL, LATERAL_ESTIMATED, FeatureClassifier, feature_moments
from pneumoscope.predict.gate import (
    advice,
    check_edges,
    check_header,
    check_lungs,
    check_pixels,
    inverted,
    is_inverted,
    may_be_inverted,
    population_advice,
    rejects,
)
from pneumoscope.predict.inputs import InputItem
from pneumoscope.predict.novelty import Novelty, describe
from pneumoscope.predict.prepared import Prepared
from pneumoscope.predict.rotation import QUARTER_TURNS, may_be_rotated, rotated, rotation_to_upright

__all__ = ["Pipeline"]

Floats = npt.NDArray[np.float32]

# Part of the key of cached images: raise it when the pipeline's result for a file changes.
PIPELINE_VERSION = 6


class Pipeline:
    """Prepares images for a network; may be used from several threads at once.

    Parameters
    ----------
    spec : InputSpec
        How images are standardised.
    limits : GateLimits
        What they must satisfy.
    segmenter : OnnxLungSegmenter or LungsOnBlack, optional
        Finds the lungs; needed where `spec.needs_lungs`.
    novelty : Novelty, optional
        Statistics of known chest radiographs, for `GateLimits.max_novelty`.
    classifier : ChestClassifier, optional
        Of frontal chest radiographs, for `GateLimits.min_chest`.
    populations, views : FeatureClassifier, optional
        They estimate the population of an image whose age is not stated, and the view where that is not.
    validated : tuple of Population
        Images known to be of other populations get a caution.
    force : bool
        Prepare what the gate would reject, too; the reasons stay.
    cache : ImageCache, optional
        Where standardised images are kept between calls. Images from it have no `Prepared.radiograph`, and
        their inputs are rounded to 8 bits.

    Raises
    ------
    ValueError
        If the spec needs lungs and there is no segmenter.
    """

    def __init__(
        self,
        spec: InputSpec,
        limits: GateLimits = GateLimits(),  # noqa: B008  (frozen)
        *,
        segmenter: OnnxLungSegmenter | LungsOnBlack | None = None,
        novelty: Novelty | None = None,
        classifier: ChestClassifier | None = None,
        populations: FeatureClassifier | None = None,
        views: FeatureClassifier | None = None,
        validated: tuple[Population, ...] = (),
        force: bool = False,
        cache: ImageCache | None = None,
    ) -> None:
        if spec.needs_lungs and segmenter is None:
            raise ValueError("this input spec needs a lung segmenter, and none was given")
        self.spec, self.limits = spec, limits
        self._segmenter, self._novelty, self._validated = segmenter, novelty, validated
        self._classifier, self._populations, self._views = classifier, populations, views
        self._force, self._cache = force, cache
        self._key = self._fingerprint() if cache else ""

    @classmethod
    def of_bundle(
        cls,
        bundle: Bundle,
        *,
        limits: GateLimits | None = None,
        segmenter: LungsOnBlack | None = None,
        novelty: Novelty | None = None,
        classifier: ChestClassifier | None = None,
        populations: FeatureClassifier | None = None,
        views: FeatureClassifier | None = None,
        force: bool = False,
        cache: ImageCache | None = None,
    ) -> Pipeline:
        """Return the pipeline of a bundle: its input spec, gate, lung segmenter and validated populations.

        Parameters
        ----------
        limits, novelty, classifier, populations, views
            In place of the bundle's own, where they are fitted and not written yet.
        segmenter : LungsOnBlack, optional
            In place of the bundle's own, for images of which only the lungs are left.
        force, cache
            As for `Pipeline`.
        """
        manifest = bundle.manifest
        if novelty is None and (statistics := bundle.gate_statistics):
            novelty = Novelty(*statistics)
        if classifier is None and (chest := bundle.chest_classifier):
            classifier = ChestClassifier.of(chest)
        if populations is None and (stored := bundle.population_classifier):
            populations = FeatureClassifier.of(*stored)
        if views is None and (stored := bundle.view_classifier):
            views = FeatureClassifier.of(*stored)
        return cls(
            manifest.input,
            limits or manifest.gate,
            segmenter=segmenter or (OnnxLungSegmenter(bundle.lungs_path) if bundle.lungs_path else None),
            novelty=novelty,
            classifier=classifier,
            populations=populations,
            views=views,
            validated=manifest.validated,
            force=force,
            cache=cache,
        )

    def read(self, items: Sequence[InputItem]) -> list[Prepared]:
        """Decode, check and standardise files or their contents; the segmenter gets them together."""
        keys = [self._cache_key(item) for item in items]
        cached = [self._cached(item, key) for item, key in zip(items, keys, strict=True)]
        decoded = [found or self._decode(item) for item, found in zip(items, cached, strict=True)]
        admitted = iter(self._admit([one for one in decoded if isinstance(one, Radiograph)]))
        prepared = []
        for item, key, one in zip(items, keys, decoded, strict=True):
            if isinstance(one, Radiograph):
                new = next(admitted)
                prepared.append(self._complete(self._stored(key, new) if key else new, item))
            else:
                prepared.append(one)
        return prepared

    def admit(self, radiographs: Sequence[Radiograph]) -> list[Prepared]:
        """Check and standardise decoded images; the segmenter gets them together."""
        items = (InputItem(radiograph.source) for radiograph in radiographs)
        return [self._complete(one, item) for one, item in zip(self._admit(radiographs), items, strict=True)]

    def check_features(self, one: Prepared, features: Floats) -> Prepared:
        """Reject what is no frontal chest radiograph by its features, and estimate population and view.

        Parameters
        ----------
        one : Prepared
            An image that passed the other checks.
        features : ndarray of float32, shape (D, h, w)
            The network's last feature maps for it.
        """
        moments = feature_moments(features)
        if not self._is_chest(one, moments):
            if self._views is not None and self._views(moments) == ViewPosition.LATERAL:
                one = self._rejected(one, Reason.LATERAL_VIEW, LATERAL_ESTIMATED)
            else:
                one = self._rejected(one, Reason.NOT_A_CHEST_RADIOGRAPH, NOT_A_CHEST)
        if self._populations is not None and one.age is None:
            one = replace(one, estimated=self._populations(moments))
        if self._views is not None and one.view == ViewPosition.UNKNOWN:
            one = replace(one, estimated_view=self._views(moments, among=FRONTAL) or ViewPosition.UNKNOWN)
        return one

    def _is_chest(self, one: Prepared, moments: Floats) -> bool:
        lungs = one.input.lungs if one.input is not None else None
        least = self.limits.min_chest
        if self._classifier is None or least is None or lungs is None:
            return True
        # "Not less than" would let a probability that is not a number pass.
        return self._classifier(chest_features(moments, lungs)) >= least

    def _rejected(self, one: Prepared, reason: Reason, message: str) -> Prepared:
        """Reject an image for its features; where the gate is overridden, the reason becomes a caution."""
        if not self._force:
            return replace(one, status="rejected", reasons=(reason,), message=message, input=None)
        if reason in one.reasons:
            return one
        return replace(one, reasons=(*one.reasons, reason), message=f"{one.message} {message}".strip())

    def _decode(self, item: InputItem) -> Radiograph | Prepared:
        try:
            if isinstance(item.source, UnreadableImageError):
                raise item.source
            if is_own_output(item.source):
                return Prepared(item.label, "rejected", (Reason.NOT_A_CHEST_RADIOGRAPH,), OWN_OUTPUT)
            radiograph = read_radiograph(item.source, min_side=self.spec.decode_side, name=item.label)
        except UnreadableImageError as error:
            return Prepared(
                item.label, "unreadable", (error.reason,), error.detail, age=item.age, view=item.view
            )
        if isinstance(self._segmenter, LungsOnBlack):
            return replace(radiograph, pixels=self._segmenter.corrected(radiograph.pixels))
        return radiograph

    def _admit(self, radiographs: Sequence[Radiograph]) -> list[Prepared]:
        """Check and standardise; without what depends on the population."""
        reasons = [self._first_checks(radiograph) for radiograph in radiographs]
        passing = [self._force or not rejects(found) for found in reasons]
        pairs = zip(radiographs, passing, strict=True)
        lungs = iter(self._lungs([radiograph for radiograph, passes in pairs if passes]))
        prepared = []
        for radiograph, found, passes in zip(radiographs, reasons, passing, strict=True):
            if passes:
                corrected, image, more = self._standardise(radiograph, next(lungs))
                if not rejects(more):
                    more = more + check_edges(image)
                prepared.append(self._verdict(corrected, image, [*found, *more]))
            else:
                prepared.append(self._verdict(radiograph, None, found))
        return prepared

    def _first_checks(self, radiograph: Radiograph) -> list[Reason]:
        """Check the header, and the grey levels where the header does not reject the image."""
        finds_lungs = self._segmenter is not None
        stated = check_header(radiograph, self.limits, finds_lungs=finds_lungs)
        reasons = [Reason(code) for code in radiograph.cautions] + stated
        if not rejects(reasons) or self._force:
            reasons = reasons + check_pixels(radiograph, self.limits)
        return reasons

    def _lungs(self, radiographs: Sequence[Radiograph]) -> list[LungField | None]:
        """Find the lungs of several images in one call of the segmenter."""
        if self._segmenter is None or not radiographs:
            return [None] * len(radiographs)
        views = np.stack([lung_view(radiograph) for radiograph in radiographs])
        return list(self._lungs_of_views(views))

    def _lungs_of_views(self, views: Floats) -> list[LungField]:
        assert self._segmenter is not None
        maps = self._segmenter.batch(views)
        return [lung_field(one, view=view) for one, view in zip(maps, views, strict=True)]

    def _standardise(
        self, radiograph: Radiograph, lungs: LungField | None
    ) -> tuple[Radiograph, Standardised, list[Reason]]:
        """Standardise an image and check its lungs; rotation or inverted grayscale is corrected first."""
        limits, novelty = self.limits, self._novelty
        if lungs is not None and (upright := self._upright(radiograph, lungs)):
            return radiograph, upright, [Reason.ROTATED]
        given = standardise_with_lungs(radiograph, self.spec, lungs)
        found = check_lungs(given, limits, novelty)
        if lungs is not None and (found or may_be_inverted(given, limits)):
            positive = inverted(radiograph)
            other = standardise_with_lungs(positive, self.spec, self._lungs([positive])[0])
            # Without statistics of known chests, only lungs that no inverted chest shows are convincing.
            least = 0.0 if novelty else limits.sure_lung_certainty
            if not check_lungs(other, limits, novelty) and is_inverted(given, other, found, least):
                return positive, other, [Reason.INVERTED]
        return radiograph, given, found

    def _upright(self, radiograph: Radiograph, lungs: LungField) -> Standardised | None:
        """Standardise an image that is rotated in its upright orientation; None where it is not rotated."""
        novelty = self._novelty
        if novelty is None or lungs.view is None or not may_be_rotated(given := novelty(describe(lungs))):
            return None
        views = np.stack([np.rot90(lungs.view, turns) for turns in QUARTER_TURNS])
        fields = dict(zip(QUARTER_TURNS, self._lungs_of_views(views), strict=True))
        turns = rotation_to_upright(given, {turns: novelty(describe(one)) for turns, one in fields.items()})
        if turns is None:
            return None
        image = standardise_with_lungs(rotated(radiograph, turns), self.spec, fields[turns])
        return None if check_lungs(image, self.limits, novelty) else replace(image, quarter_turns=turns)

    def _verdict(
        self, radiograph: Radiograph, image: Standardised | None, reasons: Sequence[Reason]
    ) -> Prepared:
        unique = tuple(dict.fromkeys(reasons))
        message = advice(unique, radiograph, self.limits, finds_lungs=self._segmenter is not None)
        rejected = rejects(unique) and not self._force
        return Prepared(
            radiograph.source,
            "rejected" if rejected else "ok",
            unique,
            message,
            radiograph,
            None if rejected else image,
            radiograph.age,
            radiograph.view,
        )

    def _complete(self, one: Prepared, item: InputItem) -> Prepared:
        """Fill in what the header does not state, and add the caution about other populations."""
        age = item.age if one.age is None else one.age
        view = item.view if one.view == ViewPosition.UNKNOWN else one.view
        reasons, message = one.reasons, one.message
        if one.status == "ok" and (caution := population_advice(age, view, self._validated)):
            reasons = (*reasons, Reason.POPULATION_NOT_VALIDATED)
            message = f"{message} {caution}".strip()
        return replace(one, path=item.label, reasons=reasons, message=message, age=age, view=view)

    def _fingerprint(self) -> str:
        """Return the hash of everything that determines what an image becomes."""
        parts = {
            "version": PIPELINE_VERSION,
            "spec": self.spec.model_dump(mode="json"),
            "limits": self.limits.model_dump(mode="json"),
            "segmenter": self._segmenter.identity if self._segmenter else None,
            "force": self._force,
        }
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        if self._novelty:
            digest.update(self._novelty.mean.tobytes() + self._novelty.whitener.tobytes())
        return digest.hexdigest()

    def _cache_key(self, item: InputItem) -> str:
        """Return the key of an item in the cache; empty where there is none, or the file cannot be read."""
        if self._cache is None or isinstance(item.source, UnreadableImageError):
            return ""
        content = item.source
        if isinstance(content, str):
            try:
                path = Path(content)
                if not path.is_file() or path.stat().st_size > DEFAULT_LIMITS.max_bytes:
                    return ""
                content = path.read_bytes()
            except (OSError, ValueError):  # decoding will give the reason
                return ""
        return self._cache.key(content, self._key)

    def _cached(self, item: InputItem, key: str) -> Prepared | None:
        entry = self._cache.get(key) if self._cache and key else None
        if entry is None:
            return None
        facts = entry.facts
        reasons = tuple(Reason(reason) for reason in facts["reasons"])
        stated = (facts["age"], facts["view"])
        found = Prepared(item.label, facts["status"], reasons, facts["message"], None, entry.input, *stated)
        return self._complete(found, item)

    def _stored(self, key: str, one: Prepared) -> Prepared:
        """Store an image; return it as the cache will give it, so that every call gets the same input."""
        assert self._cache is not None
        facts = {
            "status": one.status,
            "reasons": [str(reason) for reason in one.reasons],
            "message": one.message,
            "age": one.age,
            "view": str(one.view),
        }
        return replace(one, input=self._cache.put(key, CachedImage(facts, one.input)).input)
