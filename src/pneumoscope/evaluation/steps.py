"""Steps that write into a bundle, each once: calibration, its own evaluation, external validation."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Population
from pneumoscope.errors import DataError
from pneumoscope.evaluation.calibration import Method, fit_calibration
from pneumoscope.evaluation.card import write_card
from pneumoscope.evaluation.estimation import Estimators
from pneumoscope.evaluation.gate import FittedGate
from pneumoscope.evaluation.observe import MeanFeatures, Observed, observe
from pneumoscope.evaluation.populations import validated_populations
from pneumoscope.evaluation.recalibration import LEAST
from pneumoscope.evaluation.thresholds import DEFAULT_POINT
from pneumoscope.model.bundle import (
    GATE_FILE,
    POPULATIONS_FILE,
    VIEWS_FILE,
    Bundle,
    head_bytes,
    write_bundle,
)
from pneumoscope.model.manifest import CARD_FILE, HEAD_FILE, BundleManifest
from pneumoscope.model.results import Evaluation, ExternalValidation, Results, Speed
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.predict.cache import ImageCache
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.predictor import Predictor

__all__ = [
    "add_external_validation",
    "calibrate_bundle",
    "current_external",
    "measure_speed",
    "sign_bundle",
]

SPEED_IMAGES = 256
ONE_BY_ONE = 20


def calibrate_bundle(
    bundle: Bundle,
    manifest: Manifest,
    *,
    method: Method,
    described_as: str,
    copies: int = 0,
    seed: int = 0,
    gate: FittedGate | None = None,
    populations: Sequence[Population] = (),
    estimators: Estimators = Estimators(),  # noqa: B008  (frozen)
    cache: ImageCache | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Fit calibrator, operating points, prediction sets and the background of heat maps; write them.

    The bundle's state becomes ``calibrated``; results of earlier calibrations are removed.

    Parameters
    ----------
    bundle : Bundle
        Its own calibrations are replaced.
    manifest : Manifest
        Images that the network was not trained on and that it will not be evaluated on.
    method : {"none", "temperature", "vector"}
        How the logits are scaled.
    described_as : str
        What the images are, for the record.
    copies : int
        Augmented copies of each image that are fitted on as well (`augmented_copies`), an image and its
        copies weighing as one: thresholds chosen on unchanged images alone do not hold on another device.
    seed : int
        Of the copies and of the resampling.
    gate : FittedGate, optional
        From `fit_gate`: it decides which images are fitted on, and is written too.
    populations : sequence of Population
        Those that get a calibration of their own, where at least 20 images with and 20 without the target are
        known to belong to them; ages and views are those of the records.
    estimators : Estimators, optional
        From `fit_populations` and `fit_views`: images without an age belong to the population that is
        estimated, here as in prediction; they are written too.
    cache : ImageCache, optional
        Where standardised images are kept; not used with copies, which need the decoded image.
    progress : Progress, optional
        Receives the number of images done, and which populations have too few.

    Raises
    ------
    DataError
        If no image could be evaluated, or none is with, or none without, the target.
    """
    progress = progress or Progress()
    content = bundle.manifest
    limits = gate.limits if gate else content.gate
    predictor = _predictor(bundle, gate, estimators, None if copies else cache)
    background = MeanFeatures(content.target)
    observed = observe(
        predictor,
        manifest,
        described_as=described_as,
        copies=copies,
        seed=seed,
        collectors=(background,),
        progress=progress,
    )
    progress.step("fitting calibrator and operating points")
    fitted_on = f"{described_as}, each with {copies} augmented copies" if copies else described_as
    calibrations = [fit_calibration(observed, method, fitted_on=fitted_on, seed=seed)]
    own = [one for one in populations if _has_enough(observed, one, progress)]
    for population in own:
        part = observed.of_images(_of_population(observed, population))
        words = f"{fitted_on}, {population.describe()}"
        calibrations.append(
            fit_calibration(part, method, fitted_on=words, population=population.name, seed=seed)
        )
    # Of the images that it assigns to a population without a calibration, the default one decides.
    by_population = estimators.populations if own else None
    written = content.model_copy(
        update={
            "state": "calibrated",
            "gate": limits,
            "calibrations": tuple(calibrations),
            "populations": tuple(own),
            "validated": (),
            "default_operating_point": DEFAULT_POINT,
            "results": Results(
                speed=content.results.speed,
                gate=gate.measures if gate else content.results.gate,
                populations=by_population.measures if by_population else {},
                views=estimators.views.measures if estimators.views else {},
            ),
        }
    )
    files: dict[str, bytes | Path] = {
        HEAD_FILE: head_bytes(bundle.head_weight, bundle.head_bias, background.mean_)
    }
    if gate:
        files[GATE_FILE] = gate.content
    if by_population:
        files[POPULATIONS_FILE] = by_population.content
    if estimators.views:
        files[VIEWS_FILE] = estimators.views.content
    return write_bundle(bundle.path, written, files)


def _predictor(
    bundle: Bundle, gate: FittedGate | None, estimators: Estimators, cache: ImageCache | None
) -> Predictor:
    """Return the predictor of a bundle, with parts that are not written yet in place of its own."""
    pipeline = Pipeline.of_bundle(
        bundle,
        limits=gate.limits if gate else None,
        novelty=gate.novelty if gate else None,
        classifier=gate.classifier if gate else None,
        populations=estimators.populations.classifier if estimators.populations else None,
        views=estimators.views.classifier if estimators.views else None,
        cache=cache,
    )
    return Predictor(bundle, workers=available_cpus(), pipeline=pipeline)


def _of_population(observed: Observed, population: Population) -> npt.NDArray[np.intp]:
    belongs = [
        population.includes(record.age, view) or (record.age is None and estimated == population.name)
        for record, view, estimated in zip(observed.records, observed.views, observed.estimated, strict=True)
    ]
    return np.flatnonzero(np.array(belongs, dtype=np.bool_))


def _has_enough(observed: Observed, population: Population, progress: Progress) -> bool:
    truth = observed.is_positive[observed.is_original][_of_population(observed, population)]
    positive = int(truth.sum())
    if min(positive, len(truth) - positive) >= LEAST:
        return True
    progress.message(
        f"{population.name}: {positive} images with and {len(truth) - positive} without "
        f"{observed.target.name} are too few for a calibration of its own; the default one is used"
    )
    return False


def sign_bundle(bundle: Bundle, evaluation: Evaluation, *, speed: Speed | None = None) -> Bundle:
    """Write a bundle's own evaluation, the populations it validates, and the model card.

    The bundle's state becomes ``evaluated``. External results of the same decisions are kept.

    Parameters
    ----------
    bundle : Bundle
        The one that was evaluated, without a change since.
    evaluation : Evaluation
        From `evaluate_bundle`.
    speed : Speed, optional
        From `measure_speed`; the one that the bundle has is kept if not given.
    """
    manifest = bundle.manifest
    results = manifest.results.model_copy(
        update={
            "evaluation": evaluation,
            "external": current_external(manifest),
            "speed": speed or manifest.results.speed,
        }
    )
    signed = manifest.model_copy(
        update={"state": "evaluated", "results": results, "validated": validated_populations(results)}
    )
    return write_bundle(bundle.path, signed, {CARD_FILE: write_card(signed).encode()})


def add_external_validation(bundle: Bundle, name: str, evaluation: Evaluation) -> Bundle:
    """Store results on another set beside a bundle's own, and show them in its card.

    The bundle's own evaluation and its validated populations stay; an older entry of the same name is
    replaced.

    Parameters
    ----------
    bundle : Bundle
        Evaluated by `evaluate_bundle`, without a change since.
    name : str
        What the card calls the set, in a word or two.
    evaluation : Evaluation
        From `evaluate_bundle`.

    Raises
    ------
    DataError
        If the name is empty.
    """
    if not (name := " ".join(name.split())):
        raise DataError("external results need a name; give one that describes the set, such as 'adults'")
    manifest = bundle.manifest
    # File names of mistakes at another hospital are not for the card.
    kept = {field: getattr(evaluation, field) for field in ExternalValidation.model_fields}
    entry = ExternalValidation(**(kept | {"decisions": manifest.decision_sha256}))
    external = {**current_external(manifest), name: entry}
    results = manifest.results.model_copy(update={"external": external})
    signed = manifest.model_copy(update={"results": results})
    return write_bundle(bundle.path, signed, {CARD_FILE: write_card(signed).encode()})


def current_external(manifest: BundleManifest) -> dict[str, ExternalValidation]:
    """Return the external results that were measured with the decisions that the bundle makes now."""
    decisions = manifest.decision_sha256
    return {name: one for name, one in manifest.results.external.items() if one.decisions == decisions}


def measure_speed(bundle: Bundle, paths: Sequence[Path]) -> Speed:
    """Time `predict` from files to predictions, after a first pass that fills the caches.

    Parameters
    ----------
    bundle : Bundle
    paths : sequence of Path
        Images that have a prediction; the first 256 are taken.
    """
    taken = list(paths[:SPEED_IMAGES])
    predictor = Predictor(bundle, workers=available_cpus())
    single = Predictor(bundle, workers=1)
    predictor.predict(taken)
    began = time.perf_counter()
    predictor.predict(taken)
    rate = len(taken) / (time.perf_counter() - began)
    times = []
    for path in taken[:ONE_BY_ONE]:
        began = time.perf_counter()
        single.predict([path])
        times.append(time.perf_counter() - began)
    size = statistics.median(path.stat().st_size for path in taken) / 1024
    return Speed(
        images_per_second=rate,
        latency_ms=1e3 * statistics.median(times),
        measured_on=f"{len(taken)} files of {size:.0f} KiB (median), {available_cpus()} processor cores, "
        f"{platform.machine()}",
    )
