"""How much of a bundle's performance survives a worse image: every corruption, every strength, same images.

An image is read once, brought to the size that the corruptions are defined at, changed, and evaluated as any
other: through the gate, the lung crop and the network. So what is measured is what a hospital would see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Estimate, Radiograph, ViewPosition
from pneumoscope.errors import DataError, UnreadableImageError
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.corruptions import (
    CORRUPTIONS,
    REFERENCE_SIDE,
    SHORTCUTS,
    TRANSFERS,
    Corruption,
    at_aspect,
    shorter_side_to,
)
from pneumoscope.evaluation.scores import BoolArray, FloatArray
from pneumoscope.image.decode import read_radiograph
from pneumoscope.model.measures import (
    Corrupted,
    CorruptedMeasures,
    CorruptionGroup,
    Robustness,
    RobustnessMeasures,
    Strength,
)
from pneumoscope.parallel import CHUNK, Progress, in_order
from pneumoscope.predict.predictor import Predictor

__all__ = ["GROUPS", "CorruptionPlan", "chosen_records", "measure_robustness"]

GROUPS = {"medmnist_c": CORRUPTIONS, "transfer": TRANSFERS, "shortcut": SHORTCUTS}
"""Corruptions by the field of `Robustness` that they belong to."""

Pixels = npt.NDArray[np.float32]

_MEASURES = ("auroc", "sensitivity", "specificity", "rejected")
_UNDEFINED = "at some strength no image of one class was evaluated"
# An aspect that differs by less is rounding.
_SAME_ASPECT = 0.02
# What became of an image: evaluated, rejected by the gate, or not subject to the change.
_EVALUATED, _REJECTED, _ABSENT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Condition:
    """One change at one strength; `make` returns None for an image that it does not apply to."""

    group: str
    name: str
    setting: float | None
    make: Callable[[Pixels, Record], Pixels | None]


@dataclass(frozen=True, slots=True)
class CorruptionPlan:
    """How robustness is measured.

    Parameters
    ----------
    images : int, optional
        Most images to use, by whole patients and evenly over the labels; all if not given.
    seed : int
        Of the choice of patients, the noise and the resampling.
    """

    images: int | None = None
    seed: int = 0


def measure_robustness(
    predictor: Predictor,
    manifest: Manifest,
    plan: CorruptionPlan,
    *,
    n_boot: int = 1000,
    progress: Progress | None = None,
) -> Robustness:
    """Evaluate every image unchanged and under every corruption at every strength.

    Parameters
    ----------
    predictor : Predictor
        Its operating points decide.
    manifest : Manifest
        Labelled images.
    plan : CorruptionPlan
        Which images, and by which seed.
    n_boot : int
        Resamples of the patients for the intervals; changes are measured on the same resample as clean.
    progress : Progress, optional
        Receives the number of images done.

    Returns
    -------
    Robustness
        ``clean``, and by group each corruption with its ``strengths`` (values) and the mean over the
        strengths (with intervals); ``*_change`` is the difference to clean.

    Raises
    ------
    DataError
        If no image could be read, or every patient has more images than may be used.
    """
    progress = progress or Progress()
    records = chosen_records(manifest.records, plan.images, plan.seed)
    conditions = _conditions(plan.seed)
    work = partial(_evaluate, predictor, manifest, conditions)
    rows = progress.collect(in_order(records, work, workers=predictor.workers, chunk=2), len(records))
    read = np.array([len(row) > 0 for row in rows], dtype=np.bool_)
    if not read.any():
        raise DataError(f"{manifest.name}: no image could be read, so there is nothing to corrupt")
    target = predictor.bundle.manifest.target
    evaluated = [record for record, one in zip(records, read, strict=True) if one]
    table = _Table(
        np.stack([row for row in rows if len(row)]),
        np.array([target.includes(record.label) for record in evaluated], dtype=np.bool_),
        [record.patient_id for record in evaluated],
    )
    clean, groups = _results(table, conditions, n_boot, plan.seed)
    return Robustness.model_validate(
        {
            "images": len(evaluated),
            "patients": table.n_patients,
            "side": REFERENCE_SIDE,
            "seed": plan.seed,
            "resamples": n_boot,
            "clean": clean,
            **groups,
        }
    )


def chosen_records(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """Draw whole patients, up to `count` images and evenly over the labels; return them in their old order.

    A patient is drawn for the label that most of the patient's images have, but each image counts for its
    own. A patient with more images than still fit is left out.

    Raises
    ------
    DataError
        If every patient has more than `count` images.
    """
    if count is None or count >= len(records):
        return list(records)
    by_patient: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        by_patient.setdefault(record.patient_id, []).append(index)
    rng = np.random.default_rng(seed)
    queues: dict[str, list[list[int]]] = {}
    for indices in by_patient.values():
        ((label, _),) = Counter(records[index].label for index in indices).most_common(1)
        queues.setdefault(label, []).append(indices)
    for queue in queues.values():
        rng.shuffle(queue)
    chosen: list[int] = []
    images: Counter[str] = Counter()
    while queues and len(chosen) < count:
        label = min(queues, key=lambda name: (images[name], name))
        patient = queues[label].pop()
        if not queues[label]:
            del queues[label]
        if len(chosen) + len(patient) <= count:
            chosen += patient
            images.update(records[index].label for index in patient)
    if not chosen:
        raise DataError(f"every patient has more than {count} images, and none is split; take more images")
    return [records[index] for index in sorted(chosen)]


def _conditions(seed: int) -> list[_Condition]:
    """Unchanged first, then every corruption at every strength."""
    conditions = [_Condition("", "clean", None, lambda pixels, _: pixels)]
    for group, corruptions in GROUPS.items():
        for corruption in corruptions:
            for strength, setting in enumerate(corruption.settings, start=1):
                make = partial(_corrupted, corruption, strength, seed)
                conditions.append(_Condition(group, corruption.name, setting, make))
    return [
        *conditions,
        _Condition("transfer", "aspect_squashed", None, _squashed),
        _Condition("transfer", "aspect_restored", None, _restored),
    ]


def _corrupted(corruption: Corruption, strength: int, seed: int, pixels: Pixels, record: Record) -> Pixels:
    return corruption.corrupt(pixels, strength, key=record.path, seed=seed)


def _squashed(pixels: Pixels, _: Record) -> Pixels | None:
    return None if _is_aspect(pixels, 1.0) else at_aspect(pixels, 1.0)


def _restored(pixels: Pixels, record: Record) -> Pixels | None:
    """Undo a squashing, where the manifest knows the size of the original."""
    if not (record.width and record.height) or _is_aspect(pixels, record.width / record.height):
        return None
    return at_aspect(pixels, record.width / record.height)


def _is_aspect(pixels: Pixels, aspect: float) -> bool:
    height, width = pixels.shape
    return bool(abs(width / height / aspect - 1) < _SAME_ASPECT)


def _evaluate(
    predictor: Predictor, manifest: Manifest, conditions: Sequence[_Condition], records: Sequence[Record]
) -> list[FloatArray]:
    """Return, for each record, its row of `_Table`; an empty one if unreadable."""
    return [_evaluate_one(predictor, manifest, conditions, record) for record in records]


def _evaluate_one(
    predictor: Predictor, manifest: Manifest, conditions: Sequence[_Condition], record: Record
) -> FloatArray:
    side = max(REFERENCE_SIDE, predictor.bundle.manifest.input.decode_side)
    try:
        radiograph = read_radiograph(manifest.resolve(record), min_side=side)
    except UnreadableImageError:
        return np.empty((0, 3))
    age, view = radiograph.age, radiograph.view
    radiograph = replace(
        radiograph,
        age=record.age if age is None else age,
        view=ViewPosition(record.view) if view is ViewPosition.UNKNOWN and record.view else view,
    )
    out = np.full((len(conditions), 3), (np.nan, np.nan, _ABSENT))
    for batch in _batches(radiograph, conditions, record):
        predictions = predictor.predict_radiographs([changed for _, changed in batch])
        for (index, _), prediction in zip(batch, predictions, strict=True):
            if prediction.p_target is None:
                out[index] = (np.nan, np.nan, _REJECTED)
            else:
                out[index] = (prediction.p_target, bool(prediction.positive), _EVALUATED)
    return out


def _batches(
    radiograph: Radiograph, conditions: Sequence[_Condition], record: Record
) -> Iterator[list[tuple[int, Radiograph]]]:
    pixels = shorter_side_to(radiograph.pixels, REFERENCE_SIDE)
    batch: list[tuple[int, Radiograph]] = []
    for index, condition in enumerate(conditions):
        changed = condition.make(pixels, record)
        if changed is not None:
            height, width = changed.shape
            batch.append((index, replace(radiograph, pixels=changed, height=height, width=width)))
        if len(batch) == CHUNK:
            yield batch
            batch = []
    if batch:
        yield batch


class _Table:
    """Probability, decision and fate of N images under C conditions.

    Parameters
    ----------
    rows : ndarray of float64, shape (N, C, 3)
        Probability of the target, whether the decision is for it, and `_EVALUATED`, `_REJECTED` or `_ABSENT`.
    truth : ndarray of bool, shape (N,)
        Whether the label counts as the target.
    patients : sequence of str, length N
    """

    def __init__(self, rows: FloatArray, truth: BoolArray, patients: Sequence[str]) -> None:
        self.p, self.positive, self.fate = rows[:, :, 0], rows[:, :, 1] == 1, rows[:, :, 2]
        self.truth = truth
        _, index = np.unique(patients, return_inverse=True)
        self.patients = index.astype(np.int64)
        self.n_patients = int(self.patients.max()) + 1

    def applies(self, condition: int) -> BoolArray:
        """Which images the change applies to, shape (N,)."""
        mask: BoolArray = self.fate[:, condition] != _ABSENT
        return mask

    def measures(self, condition: int, among: BoolArray, weights: FloatArray) -> FloatArray:
        """Measures of one condition on some images under each weighting, shape (4, B)."""
        evaluated = among & (self.fate[:, condition] == _EVALUATED)
        truth, w = self.truth[evaluated], weights[:, evaluated]
        positive = self.positive[evaluated, condition]
        auroc, _ = weighted.ranking(self.p[evaluated, condition], truth, w)
        sensitivity = weighted.share(positive, truth, w)
        specificity = weighted.share(~positive, ~truth, w)
        rejected = weighted.share(self.fate[:, condition] == _REJECTED, among, weights)
        return np.stack([auroc, sensitivity, specificity, rejected])


def _results(
    table: _Table, conditions: Sequence[_Condition], n_boot: int, seed: int
) -> tuple[RobustnessMeasures, dict[str, CorruptionGroup]]:
    numbers = range(len(conditions))
    applies = np.stack([table.applies(number) for number in numbers])
    # Where a change applies to some images only, it is compared with those images unchanged.
    some = [number for number in numbers if not applies[number].all()]
    measured = weighted.replicates(
        table.patients,
        n_boot,
        seed,
        lambda weights: (
            {(number, number): table.measures(number, applies[number], weights) for number in numbers}
            | {(0, number): table.measures(0, applies[number], weights) for number in some}
        ),
    )
    clean = measured[0, 0]
    groups = {}
    for group in GROUPS:
        sections: dict[str, Corrupted] = {}
        means = []
        for name in dict.fromkeys(one.name for one in conditions if one.group == group):
            strengths = [i for i, one in enumerate(conditions) if (one.group, one.name) == (group, name)]
            among = applies[strengths[0]]
            if not among.any():
                continue
            mean = np.mean([measured[number, number] for number in strengths], axis=0)
            sections[name] = Corrupted.model_validate(
                {
                    "images": int(among.sum()),
                    "strengths": [_values(measured[i, i][:, 0], conditions[i].setting) for i in strengths],
                    **_estimates(mean, table.n_patients, measured.get((0, strengths[0]), clean)),
                }
            )
            if among.all():  # what concerns some images only is no part of the mean over all
                means.append(mean)
        over_all = _estimates(np.mean(means, axis=0), table.n_patients, clean)
        groups[group] = CorruptionGroup(mean=CorruptedMeasures.model_validate(over_all), corruptions=sections)
    return RobustnessMeasures.model_validate(_estimates(clean, table.n_patients)), groups


def _values(measured: FloatArray, setting: float | None) -> Strength:
    values = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(_MEASURES, measured, strict=True)
    }
    return Strength(setting=setting, **values)


def _estimates(
    measured: FloatArray, n_patients: int, reference: FloatArray | None = None
) -> dict[str, Estimate]:
    """Estimates of replicates, shape (4, 1 + B), and of their differences from a reference."""
    replicates = dict(zip(_MEASURES, measured, strict=True))
    if reference is not None:
        lost = measured - reference
        replicates |= {f"{name}_change": values for name, values in zip(_MEASURES, lost, strict=True)}
    return {
        name: weighted.estimate(values, n_patients, reason=_UNDEFINED) for name, values in replicates.items()
    }
