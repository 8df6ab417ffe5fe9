"""`Predictor`: a bundle, ready for use from Python."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import OperatingPoint, Prediction, Radiograph, ViewPosition
from pneumoscope.errors import BundleError
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.runtime import Device, OnnxRuntime
from pneumoscope.parallel import CHUNK, available_cpus, in_order
from pneumoscope.predict.calibration import (
    bundle_at_prevalence,
    calibrate,
    calibrated_logits,
    decide,
    is_uncertain,
    log_odds,
    prediction_set,
    target_probability,
    without_shift,
)
from pneumoscope.predict.explain import LogOdds, explain, heat_map, occlusion_evidence
from pneumoscope.predict.inputs import InputItem, expand
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.prepared import ExplainedPrediction, Output, Prepared, RawScore

__all__ = ["ExplainedPrediction", "MakeCopies", "Method", "Output", "Predictor", "RawScore"]

Floats = npt.NDArray[np.float32]
Paths = Iterable[str | Path | InputItem] | str | Path
Method = Literal["cam", "occlusion"]
"""How a heat map is made: from the features of the same pass, or by occluding location by location."""

MakeCopies = Callable[[Radiograph], Sequence[Radiograph]]
"""Makes changed copies of an image, such as augmented ones."""


class Predictor:
    """Predicts on chest radiographs with one bundle; may be used from several threads at once.

    Parameters
    ----------
    bundle : Bundle
        Verified.
    operating_point : str, optional
        Name of the operating point; the bundle's default one if not given.
    population : str, optional
        Name of the bundle's population that all images belong to. If not given, it is chosen for each image
        by the age and view that its header or manifest states, and is the bundle's default where they do not
        say.
    workers : int
        Threads that decode, standardise and run the network.
    force : bool
        Predict on images that the gate would reject; their status is ``ok`` and the reasons stay.
    prevalence : float, optional
        Share of images with the target that is expected where the bundle is used, above 0 and below 1: the
        probabilities are shifted to it, and the thresholds with them. That of the calibration if not given.
    pipeline : Pipeline, optional
        In place of the bundle's own, where a gate is being fitted or standardised images are cached.
    device : {"cpu", "cuda"}
        Where the network runs; images are decoded and standardised on the CPU.

    Raises
    ------
    BundleError
        If the network does not fit the bundle, or the bundle has no such operating point or population, or
        does not state the prevalence of its calibration.
    """

    def __init__(
        self,
        bundle: Bundle,
        operating_point: str | None = None,
        *,
        population: str | None = None,
        workers: int,
        force: bool = False,
        prevalence: float | None = None,
        pipeline: Pipeline | None = None,
        device: Device = "cpu",
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, not {workers}")
        if prevalence is not None:
            bundle = bundle_at_prevalence(bundle, prevalence)
        bundle.manifest.operating_point(operating_point, population)
        self.bundle = bundle
        self.workers = workers
        self.force = force
        self._point_name = operating_point or bundle.manifest.default_operating_point
        self._population = population
        self._pipeline = pipeline or Pipeline.of_bundle(bundle, force=force)
        self._mask = bundle.manifest.target_mask
        self._network = OnnxRuntime(bundle.model_path, device)
        if missing := {"logits", "features"} - set(self._network.outputs):
            raise BundleError(f"{bundle.model_path}: has no output {', '.join(sorted(missing))}")
        expected = (1, bundle.manifest.input.size, bundle.manifest.input.size)
        fixed = zip(self._network.input_shape[1:], expected, strict=True)
        if any(isinstance(side, int) and side != known for side, known in fixed):
            found = " x ".join(map(str, self._network.input_shape[1:]))
            raise BundleError(f"{bundle.model_path}: takes {found} images, but bundle.json states {expected}")

    def adapted(self, population: str | None, prevalence: float | None) -> Predictor:
        """Return this predictor for another population and prevalence; both share the loaded networks.

        Parameters
        ----------
        population, prevalence
            As for `Predictor`; the prevalence is that of its bundle where it is not given.

        Raises
        ------
        BundleError, ValueError
            As for `Predictor`.
        """
        bundle = self.bundle if prevalence is None else bundle_at_prevalence(self.bundle, prevalence)
        bundle.manifest.operating_point(self._point_name, population)
        other = copy.copy(self)
        other.bundle, other._population = bundle, population
        return other

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        *,
        operating_point: str | None = None,
        population: str | None = None,
        workers: int | None = None,
        force: bool = False,
        prevalence: float | None = None,
        allow_draft: bool = False,
    ) -> Predictor:
        """Load a bundle.

        Parameters
        ----------
        bundle : Path or str, optional
            A bundle's folder or a run folder; the bundle that ships with the package if not given.
        operating_point, population, force, prevalence
            As for `Predictor`.
        workers : int, optional
            Threads; one for each CPU that this process may use if not given.
        allow_draft : bool
            Load a bundle whose thresholds were not fitted yet.

        Raises
        ------
        BundleError
            If the bundle is missing, damaged or a draft, or has no such operating point or population.
        """
        return cls(
            load_bundle(bundle, allow_draft=allow_draft),
            operating_point,
            population=population,
            workers=available_cpus() if workers is None else workers,
            force=force,
            prevalence=prevalence,
        )

    def predict(self, paths: Paths) -> list[Prediction]:
        """Predict on files, folders and manifests; the predictions are in the order of the images.

        An image that cannot be read or is rejected is a prediction without probabilities, with its reasons.

        Parameters
        ----------
        paths : path or iterable of paths
            Files, folders (searched with all subfolders), manifests (``.csv``, ``.parquet``).
        """
        return list(self.predict_iter(paths))

    def predict_iter(self, paths: Paths) -> Iterator[Prediction]:
        """Predict like `predict`, one prediction at a time; memory does not grow with their number."""
        for score in self.scores_iter(paths):
            yield self.prediction_of(score)

    def predict_bytes(self, files: Sequence[tuple[bytes, str]]) -> list[Prediction]:
        """Predict on contents of files, each with its name in the result, in the calling thread."""
        items = [InputItem(data, name) for data, name in files]
        return [self.prediction_of(score) for score in self._scored(self._pipeline.read(items))]

    def predict_radiographs(self, radiographs: Sequence[Radiograph]) -> list[Prediction]:
        """Predict on decoded images, in one pass of the network and in the calling thread."""
        return [self.prediction_of(score) for score in self._scored(self._pipeline.admit(radiographs))]

    def scores_iter(self, paths: Paths) -> Iterator[RawScore]:
        """Yield logits for files, folders and manifests, in order; memory stays flat."""
        return in_order(
            expand(paths), lambda items: self._scored(self._pipeline.read(items)), workers=self.workers
        )

    def prediction_of(self, score: RawScore) -> Prediction:
        """Turn logits into a prediction: probabilities, finding, decision, prediction set."""
        manifest, identity = self.bundle.manifest, self.bundle.identity
        reasons = tuple(str(reason) for reason in score.reasons)
        target = manifest.target
        if score.logits is None:
            return Prediction(
                score.path, score.status, reasons, target=target.name, bundle=identity, message=score.message
            )
        view = score.estimated_view if score.view == ViewPosition.UNKNOWN else score.view
        population = self._population or manifest.population_of(score.age, view, score.estimated)
        calibration = manifest.calibration_for(population)
        probabilities = calibrate(score.logits, calibration.calibrator, self._mask)
        p_target = float(target_probability(probabilities, self._mask))
        point = manifest.operating_point(self._point_name, population)
        as_fitted = probabilities
        if calibration.calibrator.prior_shift:
            as_fitted = calibrate(score.logits, without_shift(calibration.calibrator), self._mask)
        kept = prediction_set(as_fitted, calibration.conformal)
        return Prediction(
            path=score.path,
            status=score.status,
            reasons=reasons,
            probabilities=dict(zip(manifest.classes, probabilities.tolist(), strict=True)),
            target=target.name,
            p_target=p_target,
            finding=manifest.classes[int(probabilities.argmax())],
            decision=decide(p_target, point, target),
            operating_point=point.name,
            population=population,
            prediction_set=tuple(manifest.classes[index] for index in kept),
            bundle=identity,
            uncertain=is_uncertain(kept, self._mask, calibration.conformal),
            message=score.message,
            set_coverage=calibration.coverage,
        )

    def explain(
        self, source: str | Path | bytes, name: str | None = None, *, method: Method = "cam"
    ) -> ExplainedPrediction:
        """Predict on one image and keep what a report shows: the image, the logits and the heat map.

        Parameters
        ----------
        source : str, Path or bytes
            A file, or its content.
        name : str, optional
            What to call it in the result; the path, or ``"<bytes>"``, if not given.
        method : {"cam", "occlusion"}
            How the heat map is made; occlusion takes about two hundred passes.
        """
        item = InputItem(str(source) if isinstance(source, Path) else source, name)
        return self._explained([item], method=method)[0]

    def explain_iter(self, paths: Paths, *, method: Method = "cam") -> Iterator[ExplainedPrediction]:
        """Explain files, folders and manifests, in order; memory stays flat."""
        # One image a task: a result holds the decoded image, and several tasks are under way.
        explained = partial(self._explained, method=method)
        return in_order(expand(paths), explained, workers=self.workers, chunk=1)

    def outputs_iter(self, paths: Paths, *, copies: MakeCopies | None = None) -> Iterator[list[Output]]:
        """Yield all outputs of the network, in order; memory stays flat.

        Parameters
        ----------
        paths : path or iterable of paths
            Files, folders and manifests.
        copies : callable, optional
            Makes changed copies of a decoded image; each goes through the same gate and network.

        Yields
        ------
        list of Output
            One list an image: the image unchanged, then its copies; no copies where it has no prediction.
        """
        return in_order(expand(paths), partial(self._outputs, copies=copies), workers=self.workers)

    def outputs_of(self, radiographs: Sequence[Radiograph]) -> list[Output]:
        """Return all outputs of the network for decoded images, in the calling thread."""
        return [Output.of(*row) for row in self._rows(self._pipeline.admit(radiographs))]

    def log_odds_like(self, one: ExplainedPrediction) -> LogOdds:
        """Return what gives the log-odds of the target for altered copies of an image.

        Parameters
        ----------
        one : ExplainedPrediction
            Of the image; the copies pass the same layers and get the same calibration as it did.

        Returns
        -------
        callable
            From standardised inputs, float32 of shape (N, 1, S, S), to calibrated log-odds of shape (N,).
        """
        assert one.standardised is not None
        assert one.logits is not None
        calibrator = self.bundle.manifest.calibration_for(one.prediction.population).calibrator
        side = 0.0
        if self._network.expert is not None:  # whose layers the image passed is seen from its logits
            (both,) = self._run([one.standardised.pixels] * 2, ("logits",), (1.0, -1.0))
            side = (1.0, -1.0)[int(np.abs(both - one.logits).max(axis=1).argmin())]

        def run(inputs: Floats) -> npt.NDArray[np.float64]:
            (logits,) = self._run(list(inputs), ("logits",), [side] * len(inputs))
            return log_odds(calibrated_logits(logits, calibrator, self._mask), self._mask)

        return run

    def point_of(self, prediction: Prediction) -> OperatingPoint:
        """Return the operating point that a prediction used; the one that it would use, if there is none."""
        return self.bundle.manifest.operating_point(
            prediction.operating_point or self._point_name, prediction.population or self._population
        )

    def decide_again(self, prediction: Prediction, operating_point: str) -> Prediction:
        """Return a prediction with the decision at another operating point of its population.

        Raises
        ------
        BundleError
            If the bundle has none of that name.
        """
        manifest = self.bundle.manifest
        point = manifest.operating_point(operating_point, prediction.population)
        if prediction.p_target is None:
            return prediction
        decision = decide(prediction.p_target, point, manifest.target)
        return replace(prediction, decision=decision, operating_point=point.name)

    def _scored(self, prepared: Sequence[Prepared]) -> list[RawScore]:
        return [one.score(logits) for one, logits, _ in self._rows(prepared)]

    def _outputs(self, items: Sequence[InputItem], *, copies: MakeCopies | None) -> list[list[Output]]:
        groups = []
        for first in self._pipeline.read(items):
            made = copies(first.radiograph) if copies and first.radiograph and first.input else ()
            # What is known of the patient holds for the copies too.
            copied = (replace(one, age=first.age, view=first.view) for one in self._pipeline.admit(made))
            groups.append([first, *copied])
        rows = self._rows([one for group in groups for one in group])
        return [[Output.of(*next(rows)) for _ in group] for group in groups]

    def _explained(self, items: Sequence[InputItem], *, method: Method) -> list[ExplainedPrediction]:
        rows = self._rows(self._pipeline.read(items))
        return [self._explain(one, logits, features, method=method) for one, logits, features in rows]

    def _explain(
        self, one: Prepared, logits: Floats | None, features: Floats | None, *, method: Method
    ) -> ExplainedPrediction:
        prediction = self.prediction_of(one.score(logits))
        if logits is None or features is None or one.input is None:
            return ExplainedPrediction(prediction, one.radiograph)
        target, bundle = prediction.target, self.bundle
        if method == "occlusion":
            like = ExplainedPrediction(prediction, logits=logits, standardised=one.input)
            evidence = occlusion_evidence(self.log_odds_like(like), one.input.pixels)
            explanation = heat_map(evidence, one.input, target, method=method)
        else:
            calibrator = bundle.manifest.calibration_for(prediction.population).calibrator
            probabilities = calibrate(logits, calibrator, self._mask)
            if bundle.background is not None and bundle.background.shape != features.shape:
                raise BundleError(
                    f"{bundle.path}: the background does not fit the features; calibrate it again"
                )
            explanation = explain(
                features,
                bundle.head_weight,
                probabilities,
                one.input,
                calibrator,
                target=target,
                target_mask=self._mask,
                bias=bundle.head_bias if bundle.has_head_bias else None,
                background=bundle.background,
            )
        return ExplainedPrediction(prediction, one.radiograph, logits, explanation, one.input)

    def _rows(self, prepared: Sequence[Prepared]) -> Iterator[tuple[Prepared, Floats | None, Floats | None]]:
        """Yield each image with its logits and features, None where the image is rejected or unreadable."""
        admitted = [one for one in prepared if one.input is not None]
        parts = (admitted[start : start + CHUNK] for start in range(0, len(admitted), CHUNK))
        rows = (row for part in parts for row in self._outputs_of_part(part))
        for one in prepared:
            if one.input is None:
                yield one, None, None
                continue
            logits, features = next(rows)
            checked = self._pipeline.check_features(one, features)
            yield (checked, logits, features) if checked.input is not None else (checked, None, None)

    def _outputs_of_part(self, part: Sequence[Prepared]) -> Iterator[tuple[Floats, Floats]]:
        inputs = [one.input.pixels for one in part if one.input is not None]
        of_expert = [self._of_expert(one) for one in part]
        logits, features = self._run(inputs, ("logits", "features"), of_expert)
        return zip(logits, features, strict=True)

    def _of_expert(self, one: Prepared) -> float:
        """Return 1 where an image is known to be of the population of the expert, -1 of another, or 0."""
        expert = self._network.expert
        if expert is None:
            return 0.0
        named = (each for each in self.bundle.manifest.populations if each.name == self._population)
        return float(expert.membership(one.age, one.view) or next((expert.part(each) for each in named), 0))

    def _run(
        self, inputs: Sequence[Floats], outputs: tuple[str, ...], of_expert: Sequence[float]
    ) -> tuple[Floats, ...]:
        arrays = self._network(np.stack(inputs), outputs, np.array(of_expert, np.float32))
        logits, classes = arrays[0], len(self.bundle.manifest.classes)
        if logits.shape != (len(inputs), classes) or not np.isfinite(logits).all():
            expected = f"{classes} finite logits an image"
            raise BundleError(f"{self.bundle.model_path}: did not give {expected}; export the bundle again")
        return arrays
