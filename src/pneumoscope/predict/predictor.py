"""The heart of the Python API: a bundle, ready to judge pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import (
    BundleError,
    Explanation,
    OperatingPoint,
    Prediction,
    Radiograph,
    Reason,
    Status,
    UnreadableImageError,
)
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.standardise import Standardised, standardise
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.lungs import OnnxLungSegmenter
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.predict.calibration import calibrate, calibrated_logits, decide, log_odds, prediction_set
from pneumoscope.predict.explain import explain, heat_map
from pneumoscope.predict.gate import (
    advice,
    check_header,
    check_lungs,
    check_pixels,
    is_negative,
    may_be_negative,
    negative,
    refuses,
)
from pneumoscope.predict.inputs import Item, expand
from pneumoscope.predict.novelty import Novelty
from pneumoscope.predict.occlusion import occlusion_evidence
from pneumoscope.predict.pipeline import CHUNK, available_cpus, in_order

__all__ = ["Examination", "MakeViews", "Method", "Output", "Predictor", "RawScore"]

Floats = npt.NDArray[np.float32]
Method = Literal["cam", "occlusion"]
"""How a heat map is made: from the features of the same pass, or by hiding one place after the other."""

Source = Item | bytes

MakeViews = Callable[[Radiograph], Sequence[Radiograph]]
"""Makes changed copies of a picture, such as disturbed ones."""


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
        Why it was not read or not judged; also kept where the gate was overridden.
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
class Examination:
    """One picture with everything that was found out about it.

    Parameters
    ----------
    prediction : Prediction
        The answer.
    radiograph : Radiograph or None
        The picture as the predictor read it; None where it could not be read.
    logits : ndarray of float32, shape (K,), or None
        The network's outputs; None where the picture was not judged.
    explanation : Explanation or None
        The heat map for pneumonia; None where the picture was not judged.
    standardised : Standardised or None
        What the network saw; None where the picture was not judged.
    """

    prediction: Prediction
    radiograph: Radiograph | None = None
    logits: Floats | None = None
    explanation: Explanation | None = None
    standardised: Standardised | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Output:
    """All that the network gave for one picture: what calibrators, backgrounds and gates are fitted on.

    Parameters
    ----------
    score : RawScore
        With the logits.
    features : ndarray of float32, shape (D, h, w), or None
        The last feature maps; their mean over all places is the embedding. None where it was not judged.
    standardised : Standardised or None
        What the network saw, and the lungs that were found; None where it was not judged.
    """

    score: RawScore
    features: Floats | None = None
    standardised: Standardised | None = None


@dataclass(frozen=True, eq=False, slots=True)
class _Prepared:
    """A picture on its way to the network; `input` is there where it shall be judged."""

    score: RawScore
    radiograph: Radiograph | None = None
    input: Standardised | None = None


def _output(one: _Prepared, logits: Floats | None, features: Floats | None) -> Output:
    return Output(replace(one.score, logits=logits), features, one.input)


class Predictor:
    """Judges chest radiographs with one bundle.

    Make one with `load`; it may be used from several threads at once.

    Parameters
    ----------
    bundle : Bundle
        Verified.
    operating_point : OperatingPoint
        Its threshold makes the decision.
    workers : int
        Threads that read, standardise and run the network.
    force : bool
        Judge pictures that the gate would reject; their status is ``ok`` and the reasons stay.
    """

    def __init__(
        self, bundle: Bundle, operating_point: OperatingPoint, *, workers: int, force: bool = False
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, not {workers}")
        # Each worker is one thread's worth of work; OpenCV's own threads would only fight with them.
        cv2.setNumThreads(1)
        self.bundle = bundle
        self.operating_point = operating_point
        self.workers = workers
        self.force = force
        self._network = OnnxRuntime(bundle.model_path)
        if missing := {"logits", "features"} - set(self._network.outputs):
            raise BundleError(f"{bundle.model_path}: has no output {', '.join(sorted(missing))}")
        spec = bundle.manifest.input
        expected = (spec.channels, spec.size, spec.size)
        fixed = zip(self._network.input_shape[1:], expected, strict=True)
        if any(isinstance(side, int) and side != wanted for side, wanted in fixed):
            found = " x ".join(map(str, self._network.input_shape[1:]))
            raise BundleError(f"{bundle.model_path}: takes {found} pictures, but bundle.json says {expected}")
        self._segment = OnnxLungSegmenter(bundle.lungs_path) if bundle.lungs_path else None
        statistics = bundle.gate_statistics
        self._novelty = Novelty(*statistics) if statistics else None

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        *,
        operating_point: str | None = None,
        workers: int | None = None,
        force: bool = False,
    ) -> Predictor:
        """Load a bundle; sets OpenCV to one thread a call for the whole process.

        Parameters
        ----------
        bundle : Path or str, optional
            A bundle's folder or a run folder; the bundle that ships with the package if not given.
        operating_point : str, optional
            Name of the operating point; the bundle's default one if not given.
        workers : int, optional
            Threads; one for each CPU that this process may use if not given.
        force : bool
            Judge pictures that the gate would reject.

        Raises
        ------
        BundleError
            If the bundle is missing, damaged, or has no such operating point.
        """
        loaded = load_bundle(bundle)
        point = loaded.manifest.operating_point(operating_point)
        return cls(loaded, point, workers=available_cpus() if workers is None else workers, force=force)

    def predict(self, paths: Iterable[str | Path] | str | Path) -> list[Prediction]:
        """Judge files, folders and manifests; the answers are in the order of the pictures.

        A picture that cannot be read or may not be judged is an answer too, with its reasons.

        Parameters
        ----------
        paths : path or iterable of paths
            Files, folders (searched with all subfolders), manifests (``.csv``, ``.parquet``).
        """
        return list(self.predict_iter(paths))

    def predict_iter(self, paths: Iterable[str | Path] | str | Path) -> Iterator[Prediction]:
        """Judge like `predict`, one answer at a time; memory does not grow with their number."""
        for score in self.scores_iter(paths):
            yield self._prediction(score)

    def predict_bytes(self, data: bytes, name: str) -> Prediction:
        """Judge a picture that is in memory; `name` stands for it in the answer."""
        return self._prediction(self._scores([(data, name)])[0])

    def predict_radiographs(self, radiographs: Sequence[Radiograph]) -> list[Prediction]:
        """Judge pictures that were decoded already, in one pass of the network and in the calling thread."""
        prepared = [self._admit(radiograph.source, radiograph) for radiograph in radiographs]
        return [self._prediction(score) for score in self._scored(prepared)]

    def scores_iter(self, paths: Iterable[str | Path] | str | Path) -> Iterator[RawScore]:
        """Yield raw logits for files, folders and manifests, in order; memory stays flat."""
        sources = ((item, None) for item in expand(paths))
        return in_order(sources, self._scores, workers=self.workers)

    def examine(
        self, source: str | Path | bytes, name: str | None = None, *, method: Method = "cam"
    ) -> Examination:
        """Judge one picture and keep what a report shows: the picture, the logits and the heat map.

        Parameters
        ----------
        source : str, Path or bytes
            A file, or its content.
        name : str, optional
            What to call it in the answer; the path, or ``"<bytes>"``, if not given.
        method : {"cam", "occlusion"}
            How the heat map is made; occlusion takes about two hundred passes.
        """
        one: Source = str(source) if isinstance(source, Path) else source
        return self._examinations([(one, name)], method=method)[0]

    def examine_iter(
        self, paths: Iterable[str | Path] | str | Path, *, method: Method = "cam"
    ) -> Iterator[Examination]:
        """Examine files, folders and manifests, in order, with heat maps by `method`; memory stays flat."""
        sources = ((item, None) for item in expand(paths))
        return in_order(sources, partial(self._examinations, method=method), workers=self.workers)

    def outputs_iter(
        self, paths: Iterable[str | Path] | str | Path, *, views: MakeViews | None = None
    ) -> Iterator[list[Output]]:
        """Yield all that the network gives, in order; memory stays flat.

        Parameters
        ----------
        paths : path or iterable of paths
            Files, folders and manifests.
        views : callable, optional
            Makes changed copies of a picture as it was read; each goes the same way through gate and network.

        Yields
        ------
        list of Output
            One list a picture: the picture as it is, and then its views; no views where it is not judged.
        """
        sources = ((item, None) for item in expand(paths))
        return in_order(sources, partial(self._outputs, views=views), workers=self.workers)

    def log_odds(self, inputs: Floats) -> npt.NDArray[np.float64]:
        """Return the calibrated log-odds of pneumonia, shape (N,), for standardised inputs, (N, C, S, S)."""
        (logits,) = self._run(list(inputs), ("logits",))
        return log_odds(calibrated_logits(logits, self.bundle.manifest.calibrator))

    def _scores(self, sources: Sequence[tuple[Source, str | None]]) -> list[RawScore]:
        return self._scored([self._prepare(source, name) for source, name in sources])

    def _scored(self, prepared: Sequence[_Prepared]) -> list[RawScore]:
        inputs = [one.input.pixels for one in prepared if one.input is not None]
        logits = iter(self._run(inputs, ("logits",))[0] if inputs else ())
        return [replace(one.score, logits=next(logits)) if one.input else one.score for one in prepared]

    def _outputs(
        self, sources: Sequence[tuple[Source, str | None]], *, views: MakeViews | None
    ) -> list[list[Output]]:
        groups = []
        for source, name in sources:
            first = self._prepare(source, name)
            copies = views(first.radiograph) if views and first.radiograph and first.input else ()
            groups.append([first, *(self._admit(first.score.path, copy) for copy in copies)])
        inputs = [one.input.pixels for group in groups for one in group if one.input is not None]
        rows = (
            row
            for start in range(0, len(inputs), CHUNK)
            for row in zip(*self._run(inputs[start : start + CHUNK], ("logits", "features")), strict=True)
        )
        return [[_output(one, *(next(rows) if one.input else (None, None))) for one in g] for g in groups]

    def _examinations(
        self, sources: Sequence[tuple[Source, str | None]], *, method: Method
    ) -> list[Examination]:
        prepared = [self._prepare(source, name) for source, name in sources]
        inputs = [one.input.pixels for one in prepared if one.input is not None]
        rows = zip(*self._run(inputs, ("logits", "features")), strict=True) if inputs else iter(())
        return [
            self._examination(one, *(next(rows) if one.input else (None, None)), method=method)
            for one in prepared
        ]

    def _examination(
        self, one: _Prepared, logits: Floats | None, features: Floats | None, *, method: Method
    ) -> Examination:
        prediction = self._prediction(replace(one.score, logits=logits))
        if logits is None or features is None or one.input is None:
            return Examination(prediction, one.radiograph)
        if method == "occlusion":
            evidence = occlusion_evidence(self.log_odds, one.input.pixels)
            explanation = heat_map(evidence, one.input, method=method)
        else:
            calibrator = self.bundle.manifest.calibrator
            probabilities = calibrate(logits, calibrator)
            weight, background = self.bundle.head_weight, self.bundle.background
            if background is not None and background.shape != features.shape:
                raise BundleError(f"{self.bundle.path}: the background fits no features; calibrate it again")
            explanation = explain(features, weight, probabilities, one.input, calibrator, background)
        return Examination(prediction, one.radiograph, logits, explanation, one.input)

    def _prepare(self, source: Source, name: str | None) -> _Prepared:
        """Read, gate and standardise one picture."""
        spec = self.bundle.manifest.input
        known = name or (source if isinstance(source, str) else "<bytes>")
        try:
            if isinstance(source, UnreadableImageError):
                raise source
            radiograph = read_radiograph(source, min_side=spec.decode_side, name=name)
        except UnreadableImageError as error:
            path = error.path if isinstance(source, UnreadableImageError) else known
            return _Prepared(RawScore(path, "unreadable", (error.reason,), message=error.detail))
        return self._admit(known, radiograph)

    def _admit(self, known: str, radiograph: Radiograph) -> _Prepared:
        """Gate and standardise one picture that was read."""
        limits = self.bundle.manifest.gate
        reasons: list[Reason] = check_header(radiograph, limits)
        if not refuses(reasons) or self.force:
            reasons += check_pixels(radiograph, limits)
        picture: Standardised | None = None
        if not refuses(reasons) or self.force:
            radiograph, picture, found = self._upright(radiograph)
            reasons += found
        unique = tuple(dict.fromkeys(reasons))
        message = advice(unique, radiograph, limits)
        if refuses(unique) and not self.force:
            return _Prepared(RawScore(known, "rejected", unique, message=message), radiograph)
        return _Prepared(RawScore(known, "ok", unique, message=message), radiograph, picture)

    def _upright(self, radiograph: Radiograph) -> tuple[Radiograph, Standardised, list[Reason]]:
        """Standardise a picture and look at its lungs; a negative is turned first."""
        spec, limits = self.bundle.manifest.input, self.bundle.manifest.gate
        given = standardise(radiograph, spec, self._segment)
        found = check_lungs(given, limits, self._novelty)
        if self._novelty and (found or may_be_negative(given, limits)):
            positive = negative(radiograph)
            turned = standardise(positive, spec, self._segment)
            if is_negative(given, turned, found, check_lungs(turned, limits, self._novelty)):
                return positive, turned, [Reason.INVERTED]
        return radiograph, given, found

    def _run(self, inputs: Sequence[Floats], outputs: tuple[str, ...]) -> tuple[Floats, ...]:
        arrays = self._network(np.stack(inputs), outputs)
        logits, classes = arrays[0], len(self.bundle.manifest.findings)
        if logits.shape != (len(inputs), classes) or not np.isfinite(logits).all():
            wanted = f"{classes} finite logits a picture"
            raise BundleError(f"{self.bundle.model_path}: did not give {wanted}; export the bundle again")
        return arrays

    def _prediction(self, score: RawScore) -> Prediction:
        """Turn logits into the answer: probabilities, finding, decision, prediction set."""
        manifest = self.bundle.manifest
        reasons = tuple(str(reason) for reason in score.reasons)
        if score.logits is None:
            identity = self.bundle.identity
            return Prediction(score.path, score.status, reasons, bundle=identity, message=score.message)
        probabilities = calibrate(score.logits, manifest.calibrator)
        by_name = dict(zip(manifest.findings, probabilities.tolist(), strict=True))
        p_pneumonia = float(probabilities[1:].sum())
        return Prediction(
            path=score.path,
            status=score.status,
            reasons=reasons,
            p_normal=by_name["normal"],
            p_bacterial=by_name.get("bacterial"),
            p_viral=by_name.get("viral"),
            p_pneumonia=p_pneumonia,
            finding=manifest.findings[int(probabilities.argmax())],
            decision=decide(p_pneumonia, self.operating_point),
            operating_point=self.operating_point.name,
            prediction_set=tuple(
                manifest.findings[index] for index in prediction_set(probabilities, manifest.conformal)
            ),
            bundle=self.bundle.identity,
            message=score.message,
            set_coverage=None if manifest.conformal is None else 1 - (manifest.conformal_alpha or 0.1),
        )
