"""Fits the classifier that estimates the population of an image where its age is not stated."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Population
from pneumoscope.errors import require_extra
from pneumoscope.evaluation.chest import drawn
from pneumoscope.model.bundle import MODEL_FILE, Bundle
from pneumoscope.model.results import PopulationMeasures
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.populations import PopulationClassifier, feature_moments
from pneumoscope.predict.predictor import Predictor

__all__ = ["FittedPopulations", "fit_populations"]

Floats = npt.NDArray[np.float32]

# Images of one source and population: more change nothing but the time it takes.
MOST_IMAGES = 500
# Inverse strength of the ridge penalty.
PENALTY = 0.01


@dataclass(frozen=True, eq=False)
class FittedPopulations:
    """A classifier of populations that is not written yet.

    Parameters
    ----------
    classifier : PopulationClassifier
    content : bytes
        Of ``populations.npz``.
    measures : dict of str to PopulationMeasures
        By population, on held-out images.
    """

    classifier: PopulationClassifier
    content: bytes
    measures: dict[str, PopulationMeasures]


def fit_populations(
    bundle: Bundle,
    training: Manifest,
    held_out: Manifest,
    populations: Sequence[Population],
    *,
    progress: Progress | None = None,
) -> FittedPopulations | None:
    """Fit on training images whose population is known, and measure on held-out ones.

    Every source of a population counts the same, whatever its size.

    Parameters
    ----------
    bundle : Bundle
        Its network gives the features, also of images that its gate would reject.
    training, held_out : Manifest
        With ages, or views, where they are known.
    populations : sequence of Population
        That the bundle is calibrated for.
    progress : Progress, optional
        Receives the number of images done.

    Returns
    -------
    FittedPopulations or None
        None where fewer than two of the populations have training images.
    """
    progress = progress or Progress()
    predictor = Predictor(
        bundle, workers=available_cpus(), force=True, pipeline=Pipeline.of_bundle(bundle, force=True)
    )
    rows, names, weights = _gathered(predictor, training, populations, progress)
    if len(set(names)) < 2:
        return None
    classifier = _fit(rows, names, weights)
    tested, truth, _ = _gathered(predictor, held_out, populations, progress)
    found = [classifier(row) for row in tested]
    measures = {}
    for name in dict.fromkeys(truth):
        guesses = [guess for guess, own in zip(found, truth, strict=True) if own == name]
        measures[name] = PopulationMeasures(images=len(guesses), correct=guesses.count(name) / len(guesses))
    return FittedPopulations(classifier, _content(classifier, bundle), measures)


def _gathered(
    predictor: Predictor, manifest: Manifest, populations: Sequence[Population], progress: Progress
) -> tuple[Floats, list[str], npt.NDArray[np.float64]]:
    """Return features, population and weight of the images whose population is known."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in manifest.records:
        name = next((one.name for one in populations if _is_known(one, record)), None)
        if name is not None:
            groups[name, record.source].append(record)
    rows, names, weights = [], [], []
    chosen = [(name, record) for (name, _), own in groups.items() for record in drawn(own, MOST_IMAGES)]
    paths = [manifest.resolve(record) for _, record in chosen]
    outputs = progress.collect((one for one, *_ in predictor.outputs_iter(paths)), len(paths))
    sources = {name: sum(name == other for other, _ in groups) for name, _ in groups}
    for (name, record), output in zip(chosen, outputs, strict=True):
        if output.features is None:
            continue
        rows.append(feature_moments(output.features))
        names.append(name)
        weights.append(1 / (sources[name] * min(MOST_IMAGES, len(groups[name, record.source]))))
    return np.array(rows, np.float32), names, np.array(weights)


def _is_known(population: Population, record: Record) -> bool:
    bounded = population.ages != (None, None) or bool(population.views)
    return bounded and population.includes(record.age, record.view)


def _fit(rows: Floats, names: list[str], weights: npt.NDArray[np.float64]) -> PopulationClassifier:
    with require_extra("evaluate", "Fitting the classifier of populations"):
        from sklearn.linear_model import LogisticRegression
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    model = LogisticRegression(C=PENALTY, max_iter=5000)
    model.fit((rows - mean) / scale, names, sample_weight=weights * len(rows) / weights.sum())
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row, of the second class against the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    known = tuple(str(name) for name in model.classes_)
    return PopulationClassifier(known, mean, scale, weight.astype(np.float32), bias.astype(np.float32))


def _content(classifier: PopulationClassifier, bundle: Bundle) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        names=np.array(classifier.names),
        network=np.array(bundle.manifest.files[MODEL_FILE]),
        mean=classifier.mean,
        scale=classifier.scale,
        weight=classifier.weight,
        bias=classifier.bias,
    )
    return buffer.getvalue()
