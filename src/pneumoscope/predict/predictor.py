"""The heart of the Python API: a bundle, ready to predict images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation, OperatingPoint, Prediction, Radiograph
from pneumoscope.errors import BundleError
from pneumoscope.image.standardise import Standardised
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.parallel import CHUNK, available_cpus, in_order
from pneumoscope.predict.calibration import calibrate, calibrated_logits, decide, log_odds, prediction_set
from pneumoscope.predict.explain import explain, heat_map
from pneumoscope.predict.inputs import expand
from pneumoscope.predict.occlusion import occlusion_evidence
from pneumoscope.predict.preparation import Preparation, Prepared, RawScore, Source

__all__ = ["Examination", "MakeViews", "Method", "Output", "Predictor", "RawScore"]

Floats = npt.NDArray[np.float32]
Method = Literal["cam", "occlusion"]
"""How a heat map is made: from the features of the same pass, or by hiding one place after the other."""

MakeViews = Callable[[Radiograph], Sequence[Radiograph]]
"""Makes changed copies of a image, such as disturbed ones."""


@dataclass(frozen=True, eq=False, slots=True)
class Examination:
    """One image with everything that was found out about it.

    Parameters
    ----------
    prediction : Prediction
        The answer.
    radiograph : Radiograph or None
        The image as the predictor read it; None where it could not be read.
    logits : ndarray of float32, shape (K,), or None
        The network's outputs; None where the image was not predicted.
    explanation : Explanation or None
        The heat map for pneumonia; None where the image was not predicted.
    standardised : Standardised or None
        What the network saw; None where the image was not predicted.
    """

    prediction: Prediction
    radiograph: Radiograph | None = None
    logits: Floats | None = None
    explanation: Explanation | None = None
    standardised: Standardised | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Output:
    """All that the network gave for one image: what calibrators, backgrounds and gates are fitted on.

    Parameters
    ----------
    score : RawScore
        With the logits.
    features : ndarray of float32, shape (D, h, w), or None
        The last feature maps; their mean over all places is the embedding. None where it was not predicted.
    standardised : Standardised or None
        What the network saw, and the lungs that were found; None where it was not predicted.
    """

    score: RawScore
    features: Floats | None = None
    standardised: Standardised | None = None


def _output(one: Prepared, logits: Floats | None, features: Floats | None) -> Output:
    return Output(replace(one.score, logits=logits), features, one.input)


class Predictor:
    """Predicts chest radiographs with one bundle.

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
        Predict images that the gate would reject; their status is ``ok`` and the reasons stay.
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
            raise BundleError(f"{bundle.model_path}: takes {found} images, but bundle.json says {expected}")
        self._prepare = Preparation(bundle, force=force)

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
            Predict images that the gate would reject.

        Raises
        ------
        BundleError
            If the bundle is missing, damaged, or has no such operating point.
        """
        loaded = load_bundle(bundle)
        point = loaded.manifest.operating_point(operating_point)
        return cls(loaded, point, workers=available_cpus() if workers is None else workers, force=force)

    def predict(self, paths: Iterable[str | Path] | str | Path) -> list[Prediction]:
        """Predict files, folders and manifests; the answers are in the order of the images.

        A image that cannot be read or may not be predicted is an answer too, with its reasons.

        Parameters
        ----------
        paths : path or iterable of paths
            Files, folders (searched with all subfolders), manifests (``.csv``, ``.parquet``).
        """
        return list(self.predict_iter(paths))

    def predict_iter(self, paths: Iterable[str | Path] | str | Path) -> Iterator[Prediction]:
        """Predict like `predict`, one answer at a time; memory does not grow with their number."""
        for score in self.scores_iter(paths):
            yield self._prediction(score)

    def predict_bytes(self, data: bytes, name: str) -> Prediction:
        """Predict a image that is in memory; `name` stands for it in the answer."""
        return self._prediction(self._scores([(data, name)])[0])

    def predict_radiographs(self, radiographs: Sequence[Radiograph]) -> list[Prediction]:
        """Predict images that were decoded already, in one pass of the network and in the calling thread."""
        return [self._prediction(score) for score in self._scored(self._prepare.admit(radiographs))]

    def scores_iter(self, paths: Iterable[str | Path] | str | Path) -> Iterator[RawScore]:
        """Yield raw logits for files, folders and manifests, in order; memory stays flat."""
        sources = ((item, None) for item in expand(paths))
        return in_order(sources, self._scores, workers=self.workers)

    def examine(
        self, source: str | Path | bytes, name: str | None = None, *, method: Method = "cam"
    ) -> Examination:
        """Predict one image and keep what a report shows: the image, the logits and the heat map.

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
            Makes changed copies of a image as it was read; each goes the same way through gate and network.

        Yields
        ------
        list of Output
            One list a image: the image as it is, and then its views; no views where it is not predicted.
        """
        sources = ((item, None) for item in expand(paths))
        return in_order(sources, partial(self._outputs, views=views), workers=self.workers)

    def log_odds(self, inputs: Floats) -> npt.NDArray[np.float64]:
        """Return the calibrated log-odds of pneumonia, shape (N,), for standardised inputs, (N, C, S, S)."""
        (logits,) = self._run(list(inputs), ("logits",))
        return log_odds(calibrated_logits(logits, self.bundle.manifest.calibrator))

    def _scores(self, sources: Sequence[tuple[Source, str | None]]) -> list[RawScore]:
        return self._scored(self._prepare.read(sources))

    def _scored(self, prepared: Sequence[Prepared]) -> list[RawScore]:
        inputs = [one.input.pixels for one in prepared if one.input is not None]
        logits = iter(self._run(inputs, ("logits",))[0] if inputs else ())
        return [replace(one.score, logits=next(logits)) if one.input else one.score for one in prepared]

    def _outputs(
        self, sources: Sequence[tuple[Source, str | None]], *, views: MakeViews | None
    ) -> list[list[Output]]:
        groups = []
        for first in self._prepare.read(sources):
            copies = views(first.radiograph) if views and first.radiograph and first.input else ()
            groups.append([first, *self._prepare.admit(copies)])
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
        prepared = self._prepare.read(sources)
        inputs = [one.input.pixels for one in prepared if one.input is not None]
        rows = zip(*self._run(inputs, ("logits", "features")), strict=True) if inputs else iter(())
        return [
            self._examination(one, *(next(rows) if one.input else (None, None)), method=method)
            for one in prepared
        ]

    def _examination(
        self, one: Prepared, logits: Floats | None, features: Floats | None, *, method: Method
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

    def _run(self, inputs: Sequence[Floats], outputs: tuple[str, ...]) -> tuple[Floats, ...]:
        arrays = self._network(np.stack(inputs), outputs)
        logits, classes = arrays[0], len(self.bundle.manifest.findings)
        if logits.shape != (len(inputs), classes) or not np.isfinite(logits).all():
            wanted = f"{classes} finite logits a image"
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
