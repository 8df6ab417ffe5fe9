"""Fits the frontal-chest classifier of the gate, and measures both of its errors source by source.

Chest radiographs of every source and other images of every kind count the same. The limit is chosen on
held-out patients so that hardly any chest of any source is rejected. The effect on a source or a kind that
the classifier was not fitted on is measured by leaving out each in turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Radiograph
from pneumoscope.errors import DataError, UnreadableImageError, require_extra
from pneumoscope.evaluation.non_chest import KINDS_OF_CHESTS, KINDS_OF_DRAWINGS, non_chests
from pneumoscope.image.decode import read_radiograph
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.results import GateMeasures
from pneumoscope.parallel import CHUNK, Progress, available_cpus
from pneumoscope.predict.chest import ChestClassifier, chest_features
from pneumoscope.predict.estimates import feature_moments
from pneumoscope.predict.inputs import expand
from pneumoscope.predict.predictor import Output, Predictor

__all__ = ["FittedChest", "drawn", "fit_chest", "other_images", "two_folds"]

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

# Images of one source, and of one kind of other images that is made here.
MOST_CHESTS, EACH_KIND = 800, 100
# Chests that other images are made of.
MATERIAL, MATERIAL_SIDE = 60, 400
# Inverse strength of the ridge penalty: chosen with sources and kinds left out in turn, not with those
# fitted on.
PENALTY = 0.3
# Share of held-out images of a source's chests that the limit may reject, and the greatest limit.
MOST_REJECTED, GREATEST_LIMIT = 0.003, 0.5


@dataclass(frozen=True, eq=False)
class FittedChest:
    """The classifier, its limit and its errors.

    Parameters
    ----------
    classifier : ChestClassifier
        Fitted on everything.
    min_chest : float
        The limit on its probability.
    measures : dict of str to GateMeasures
        By source of chests and kind of other images.
    """

    classifier: ChestClassifier
    min_chest: float
    measures: dict[str, GateMeasures]


@dataclass(frozen=True, eq=False)
class _Group:
    """Features of one source of chests, or one kind of other images; rows of one fold belong together."""

    features: Floats
    folds: npt.NDArray[np.int64]
    is_chest: bool


def fit_chest(
    bundle: Bundle, sources: Mapping[str, Manifest], others: Path, *, progress: Progress | None = None
) -> FittedChest:
    """Fit the classifier on the features of a bundle's network.

    Parameters
    ----------
    bundle : Bundle
        With a lung segmenter; its gate is overridden.
    sources : mapping of str to Manifest
        Frontal chest radiographs by source.
    others : Path
        Folder of images of other kinds: other body parts, lateral views, photographs. A kind is a subfolder,
        or the letters that file names begin with.
    progress : Progress, optional
        Receives the number of images done.

    Raises
    ------
    DataError
        If a source has no chest that can be read, or the folder no image.
    """
    progress = progress or Progress()
    predictor = Predictor(bundle, workers=available_cpus(), force=True)
    groups = {name: _chests(predictor, manifest, progress) for name, manifest in sources.items()}
    if empty := [name for name, group in groups.items() if not len(group.features)]:
        raise DataError(f"{', '.join(empty)}: no readable chest radiograph to fit the gate on; leave it out")
    groups |= _real_others(predictor, others, progress)
    progress.step("fitting the gate: drawings and altered chests")
    groups |= _made_others(predictor, _material(sources), progress)
    groups = {name: group for name, group in groups.items() if len(group.features)}
    progress.step("fitting the gate: classifier")
    held_out = _held_out(groups)
    limit = _limit([held_out[name] for name, group in groups.items() if group.is_chest])
    measures = {}
    for done, (name, group) in enumerate(groups.items()):
        progress.update(done, len(groups))
        others_left = _without(groups, name)
        if any(other.is_chest is group.is_chest for other in others_left.values()):
            left_out = _rejected(_probabilities(_fit(others_left), group.features), limit)
        else:
            left_out = None
        measures[name] = GateMeasures(
            images=len(group.features),
            chest=group.is_chest,
            rejected=_rejected(held_out[name], limit),
            rejected_left_out=left_out,
        )
    return FittedChest(_fit(groups), limit, measures)


def _limit(sources: Sequence[Values]) -> float:
    """Return the greatest limit that rejects no more of any source's held-out images than it may."""
    # A limit between two images, as quantiles are by default, rejects one more than that.
    return min(GREATEST_LIMIT, *(float(np.quantile(p, MOST_REJECTED, method="lower")) for p in sources))


def _rejected(probabilities: Values, limit: float) -> float:
    return float((probabilities < limit).mean())


def _without(groups: Mapping[str, _Group], name: str) -> dict[str, _Group]:
    return {other: group for other, group in groups.items() if other != name}


def _fit(groups: Mapping[str, _Group], fold: int | None = None) -> ChestClassifier:
    """Fit on all rows but those of a fold; each group weighs the same among chests, or among others."""
    with require_extra("evaluate", "Fitting the gate"):
        from sklearn.linear_model import LogisticRegression
    parts = [(group, group.features[group.folds != fold]) for group in groups.values()]
    rows = np.concatenate([part for _, part in parts]).astype(np.float64)
    truth = np.concatenate([np.full(len(part), group.is_chest) for group, part in parts])
    counts = {side: sum(group.is_chest is side for group in groups.values()) for side in (True, False)}
    weights = np.concatenate(
        [np.full(len(part), 1 / (max(1, len(part)) * counts[group.is_chest])) for group, part in parts]
    )
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    model = LogisticRegression(C=PENALTY, max_iter=5000)
    model.fit((rows - mean) / scale, truth, sample_weight=weights * len(rows) / 2)
    return ChestClassifier(
        mean.astype(np.float32),
        scale.astype(np.float32),
        model.coef_[0].astype(np.float32),
        float(model.intercept_[0]),
    )


def _probabilities(classifier: ChestClassifier, features: Floats) -> Values:
    return np.array([classifier(row) for row in features])


def _held_out(groups: Mapping[str, _Group]) -> dict[str, Values]:
    """Return the probability of each row by the classifier that was fitted without its fold."""
    found = {name: np.zeros(len(group.features)) for name, group in groups.items()}
    for fold in (0, 1):
        classifier = _fit(groups, fold)
        for name, group in groups.items():
            rows = group.folds == fold
            found[name][rows] = _probabilities(classifier, group.features[rows])
    return found


def _group(outputs: Sequence[Output], keys: Sequence[str], *, is_chest: bool) -> _Group:
    """Gather the features of images that have any; images of one key go to one fold."""
    kept = [
        (chest_features(feature_moments(one.features), one.standardised.lungs), key)
        for one, key in zip(outputs, keys, strict=True)
        if one.features is not None and one.standardised is not None and one.standardised.lungs is not None
    ]
    folds = two_folds([key for _, key in kept])
    return _Group(np.array([row for row, _ in kept], np.float32), folds, is_chest)


def two_folds(keys: Sequence[str]) -> npt.NDArray[np.int64]:
    """Divide rows into two folds, shape (N,), so that rows of one key, such as a patient, stay together."""
    known = {key: number for number, key in enumerate(sorted(set(keys)))}
    sides = np.random.default_rng(0).permutation(len(known)) % 2
    return np.array([sides[known[key]] for key in keys], np.int64)


def drawn(records: Sequence[Record], most: int) -> list[Record]:
    """Return at most this many records, drawn at random but always the same, in their order."""
    if len(records) <= most:
        return list(records)
    chosen = np.random.default_rng(0).choice(len(records), most, replace=False)
    return [records[index] for index in sorted(chosen)]


def _chests(predictor: Predictor, manifest: Manifest, progress: Progress) -> _Group:
    progress.step("fitting the gate: chest radiographs")
    records = drawn(manifest.records, MOST_CHESTS)
    paths = [manifest.resolve(record) for record in records]
    outputs = progress.collect((one for one, *_ in predictor.outputs_iter(paths)), len(paths))
    return _group(outputs, [record.patient_id for record in records], is_chest=True)


def _real_others(predictor: Predictor, folder: Path, progress: Progress) -> dict[str, _Group]:
    """Gather the images of a folder by kind."""
    progress.step("fitting the gate: other images")
    found = other_images(folder)
    paths, kinds = list(found), list(found.values())
    outputs = progress.collect((one for one, *_ in predictor.outputs_iter(paths)), len(paths))
    groups = {}
    for kind in sorted(set(kinds)):
        own = [index for index, other in enumerate(kinds) if other == kind]
        names = [paths[index].name for index in own]
        groups[kind] = _group([outputs[index] for index in own], names, is_chest=False)
    return groups


def other_images(folder: Path) -> dict[Path, str]:
    """Return the images of a folder with their kind: the subfolder, or the letters a file name begins with.

    Raises
    ------
    DataError
        If there is none.
    """
    paths = [Path(item.source) for item in expand(folder) if isinstance(item.source, str)]
    if not paths:
        raise DataError(f"{folder}: no image of another kind to fit the gate on; correct --not-chest")
    return {path: _kind(path, folder) for path in paths}


def _kind(path: Path, folder: Path) -> str:
    if path.parent != folder:
        return path.relative_to(folder).parts[0]
    letters = re.match(r"[A-Za-z]+", path.stem)
    return letters[0].lower() if letters else folder.name


def _material(sources: Mapping[str, Manifest]) -> list[Floats]:
    """Read some chests of each source, at the size that other images are made at."""
    found: list[Floats] = []
    for manifest in sources.values():
        for record in drawn(manifest.records, MATERIAL // max(1, len(sources))):
            try:
                found.append(read_radiograph(manifest.resolve(record), min_side=MATERIAL_SIDE).pixels)
            except UnreadableImageError:  # listed where the images are gathered
                continue
    return found


def _made_others(predictor: Predictor, material: list[Floats], progress: Progress) -> dict[str, _Group]:
    kinds = [*KINDS_OF_DRAWINGS, *(KINDS_OF_CHESTS if material else ())]
    outputs: dict[str, list[Output]] = {kind: [] for kind in kinds}
    made = list(non_chests(material, EACH_KIND))
    for start in range(0, len(made), CHUNK):
        part = made[start : start + CHUNK]
        found = predictor.outputs_of(
            [Radiograph(pixels, kind, "png", *pixels.shape) for kind, pixels in part]
        )
        for (kind, _), output in zip(part, found, strict=True):
            outputs[kind].append(output)
        progress.update(start + len(part), len(made))
    return {
        f"made: {kind}": _group(found, [str(number) for number in range(len(found))], is_chest=False)
        for kind, found in outputs.items()
    }
