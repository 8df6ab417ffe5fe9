"""Recalibrating a bundle on a hospital's own labelled images, and measuring what that brings.

The results are cross-fitted: five folds of patients, each evaluated with what was fitted on the other four.
What is written is fitted on all of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

import pneumoscope
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import ANY_POPULATION, Target
from pneumoscope.errors import BundleError, DataError, counted
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.calibration import Method, fit_calibration, refit_target
from pneumoscope.evaluation.card import write_card
from pneumoscope.evaluation.cross_fit import FOLDS, Decisions, compare, cross_fitted, decisions_of, joined
from pneumoscope.evaluation.observe import Observed, observe
from pneumoscope.evaluation.populations import measured_population, validated_populations
from pneumoscope.evaluation.thresholds import DEFAULT_POINT
from pneumoscope.model.bundle import (
    BUNDLE_FOLDER,
    MANIFEST_FILE,
    POPULATIONS_FILE,
    Bundle,
    load_bundle,
    write_bundle,
)
from pneumoscope.model.manifest import CARD_FILE, BundleManifest, Calibration, Provenance
from pneumoscope.model.results import ParentResults, RecalibrationResult, Results
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.predict.calibration import at_prevalence
from pneumoscope.predict.predictor import Predictor

__all__ = ["FEW", "LEAST", "Recalibration", "recalibrate", "recalibrate_bundle", "set_prevalence"]

FEW = 100
"""Images of a class below which a calibration is rough, and a warning is given."""
USABLE_AUROC = 0.7
"""Least AUROC that the interval should surely reach: below it no threshold separates the classes."""
LEAST = 20
"""Images of a class below which there is nothing to fit on."""


@dataclass(frozen=True, eq=False)
class Recalibration:
    """A recalibrated bundle.

    Parameters
    ----------
    bundle : Bundle
        The new one.
    results : RecalibrationResult
        Measures before and after; the bundle's ``results.recalibration``.
    warnings : tuple of str
        Lines for people.
    """

    bundle: Bundle
    results: RecalibrationResult
    warnings: tuple[str, ...]


def recalibrate(
    bundle: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    method: Method = "vector",
    copies: int = 0,
    n_boot: int = 1000,
    progress: Progress | None = None,
) -> Recalibration:
    """Recalibrate a bundle on a hospital's images, as ``pneumoscope recalibrate`` does.

    Parameters
    ----------
    bundle : path-like
        Bundle or run folder; it is not changed.
    data : path-like
        Labelled folder, manifest or MedMNIST ``.npz`` of the hospital.
    out : path-like
        Folder of the new bundle.
    method, copies, n_boot, progress
        As for `recalibrate_bundle`.

    Raises
    ------
    BundleError, DataError
        As `recalibrate_bundle`, or if bundle or data cannot be read.
    """
    manifest = load(data, progress=progress)
    return recalibrate_bundle(
        load_bundle(bundle, allow_draft=False),
        manifest,
        Path(out),
        method=method,
        described_as=Path(data).resolve().name,
        copies=copies,
        n_boot=n_boot,
        progress=progress,
    )


def recalibrate_bundle(
    bundle: Bundle,
    manifest: Manifest,
    out: Path,
    *,
    method: Method = "vector",
    described_as: str,
    copies: int = 0,
    n_boot: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Recalibration:
    """Fit a new calibrator, operating points and conformal thresholds; write them as a new bundle.

    Where the labels do not distinguish the classes of the target, or a class has fewer than 20 images, only
    the target is calibrated against the rest, and its classes keep the shares and the conformal thresholds of
    the parent. The new bundle is validated on the population of these images, and on no other.

    Parameters
    ----------
    bundle : Bundle
        The parent; it is not changed.
    manifest : Manifest
        Labelled images of the hospital.
    out : Path
        Folder of the new bundle.
    method : {"none", "temperature", "vector"}
        How the logits are scaled; ``none`` keeps the parent's calibrator and chooses thresholds alone.
    described_as : str
        What the images are, for the record.
    copies : int
        Augmented copies of each image that are fitted on as well.
    n_boot : int
        Resamples of the patients for the intervals.
    seed : int
        Of copies, folds and resamples.
    progress : Progress, optional
        Receives the number of images done.

    Raises
    ------
    BundleError
        If `out` is the parent or holds a bundle.
    DataError
        If there are fewer than 20 images or 5 patients with, or without, the target, or a label is none of
        the bundle's classes.
    """
    _check_out(bundle, out)
    parent = bundle.manifest
    _check_enough(manifest.records, parent.target, described_as)
    predictor = Predictor(bundle, workers=available_cpus())
    progress = progress or Progress()
    progress.step("predicting")
    observed = observe(
        predictor, manifest, described_as=described_as, copies=copies, seed=seed, progress=progress
    )
    counts = _counts(observed)
    _check_enough(observed.records, parent.target, described_as)
    fitted_on = f"{described_as}{f', each with {copies} augmented copies' if copies else ''}"
    own = parent.calibrations[0]
    # A class outside the target may be absent altogether, as other diseases are in many sets.
    target_only = any(
        counts[name] < LEAST and (counts[name] > 0 or parent.target.includes(name)) for name in parent.classes
    )
    fit = _fitter(own, method, fitted_on, target_only=target_only)
    before = _decided_by(parent, observed)
    progress.step("fitting on each fold")
    after = cross_fitted(observed, manifest, fit, seed)
    progress.step("computing intervals")
    n_patients, sides = compare(observed, {"parent": before, "recalibrated": after}, n_boot, seed)
    results = RecalibrationResult(
        evaluated_on=described_as,
        population=measured_population(manifest, observed.records, described_as),
        data_fingerprint=manifest.fingerprint(),
        method=method,
        copies=copies,
        target_only=target_only,
        folds=FOLDS,
        images=len(observed.records),
        patients=n_patients,
        not_evaluated=observed.not_evaluated + len(manifest.left_out),
        images_by_class=counts,
        intervals=weighted.intervals(n_boot, seed),
        **sides,
    )
    written = _write(bundle, fit(observed), results, out)
    return Recalibration(written, results, tuple(_warnings(results, observed, parent)))


def _decided_by(parent: BundleManifest, observed: Observed) -> Decisions:
    """Return what the parent decides for each image, by the calibration of its population."""
    first = np.flatnonzero(observed.is_original)
    names = np.array(
        [
            parent.population_of(record.age, view, estimated)
            for record, view, estimated in zip(
                observed.records, observed.views, observed.estimated, strict=True
            )
        ],
        np.str_,
    )
    return joined(
        {
            name: decisions_of(observed, parent.calibration_for(str(name)), first[names == name])
            for name in np.unique(names)
        },
        names,
    )


def _fitter(
    parent: Calibration, method: Method, fitted_on: str, *, target_only: bool
) -> Callable[[Observed], Calibration]:
    """Return how each of the fits is made, those of the folds and that of the whole."""
    if target_only:
        return partial(refit_target, method=method, fitted_on=fitted_on, parent=parent, n_boot=0)
    return partial(fit_calibration, method=method, fitted_on=fitted_on, kept=parent, n_boot=0)


def _check_out(bundle: Bundle, out: Path) -> None:
    if out.resolve() == bundle.path.resolve():
        raise BundleError(f"{out}: is the bundle itself; give another --out")
    if any((place / MANIFEST_FILE).exists() for place in (out, out / BUNDLE_FOLDER)):
        raise BundleError(f"{out}: holds a bundle already; give another folder")
    nearest = next((place for place in (out, *out.parents) if place.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise DataError(f"{nearest}: is a file; give a folder for the new bundle")


def _counts(observed: Observed) -> dict[str, int]:
    """Count images by class, and those whose label is only the target's name under that name."""
    possible = observed.possible[observed.is_original]
    certain = possible.sum(axis=1) == 1
    counts = {name: int((possible[:, k] & certain).sum()) for k, name in enumerate(observed.classes)}
    return counts if certain.all() else counts | {observed.target.name: int((~certain).sum())}


def _check_enough(records: Sequence[Record], target: Target, described_as: str) -> None:
    for name, positive in (("without", False), ("with", True)):
        chosen = [record for record in records if target.includes(record.label) == positive]
        patients = len({record.patient_id for record in chosen})
        if len(chosen) < LEAST or patients < FOLDS:
            raise DataError(
                f"{described_as}: {counted(len(chosen), 'image')} of {counted(patients, 'patient')} {name} "
                f"{target.name} are too few to recalibrate on; give at least {LEAST} of {FOLDS} patients, "
                f"better {FEW} and more"
            )


def _warnings(results: RecalibrationResult, observed: Observed, parent: BundleManifest) -> list[str]:
    counts, target = dict(results.images_by_class), observed.target
    if results.target_only:
        positive = sum(count for name, count in counts.items() if target.includes(name))
        counts = {name: count for name, count in counts.items() if not target.includes(name)}
        counts[target.name] = positive
    lines = []
    trained = any(record.split in ("", "train") for record in observed.records)
    if trained and parent.was_trained_on(results.data_fingerprint):
        lines.append(
            f"{results.evaluated_on}: the bundle was trained on this data set, so that what is fitted and "
            "measured on it is optimistic; give images of patients it was not trained on"
        )
    few = [
        f"{count} {name}"
        for name, count in counts.items()
        if count < FEW and (count or target.includes(name) or name == target.name)
    ]
    if few:
        lines.append(
            f"too few images ({', '.join(few)}): below {FEW} per class the new thresholds are rough; "
            "see the intervals"
        )
    if results.target_only:
        lines.append(
            f"fewer than {LEAST} images of a class are labelled: {target.name} is calibrated against the "
            "rest, its classes keep the parent's calibration"
        )
    low = results.recalibrated.auroc.low
    if low is None or low < USABLE_AUROC:
        lines.append(
            "the network hardly separates these images (see AUROC), and no calibration fixes that; train "
            "it on images of this kind"
        )
    return lines


def _write(bundle: Bundle, fitted: Calibration, results: RecalibrationResult, out: Path) -> Bundle:
    """Write the child: the parent's files, its own calibration, results and card."""
    parent = bundle.manifest
    # Results on the images that a threshold was chosen on are optimistic: cross-fitted ones replace them.
    reached = results.recalibrated.operating_points
    points = tuple(
        replace(
            point,
            population=ANY_POPULATION,
            patients=results.patients,
            sensitivity=reached[point.name].sensitivity,
            specificity=reached[point.name].specificity,
        )
        for point in fitted.operating_points
    )
    # Network, gate and the classifier of views are the parent's, and so is what was measured of them.
    kept_results = {name: getattr(parent.results, name) for name in ("gate", "views", "speed")}
    own = Results(recalibration=results, parent=_parent_results(bundle), **kept_results)
    # One calibration for all images: nothing depends on the population any more.
    calibration = fitted.model_copy(update={"population": ANY_POPULATION, "operating_points": points})
    manifest = parent.model_copy(
        update={
            "state": "evaluated",
            "calibrations": (calibration,),
            "populations": (),
            "validated": validated_populations(own),
            "default_operating_point": DEFAULT_POINT,
            "provenance": _provenance(bundle),
            "results": own,
        }
    )
    kept = parent.files.keys() - {CARD_FILE, POPULATIONS_FILE}
    manifest = manifest.model_copy(update={"files": {name: parent.files[name] for name in sorted(kept)}})
    files: dict[str, bytes | Path] = {name: bundle.path / name for name in kept}
    return write_bundle(out, manifest, {**files, CARD_FILE: write_card(manifest).encode()})


def _parent_results(parent: Bundle) -> ParentResults:
    results = parent.manifest.results
    return ParentResults(
        identity=parent.identity, evaluation=results.evaluation, recalibration=results.recalibration
    )


def _provenance(parent: Bundle) -> Provenance:
    return parent.manifest.provenance.model_copy(
        update={
            "parent": parent.identity,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "code_version": pneumoscope.__version__,
        }
    )


def set_prevalence(bundle: Bundle, prevalence: float, out: Path) -> Bundle:
    """Write a new bundle whose probabilities and thresholds are for another prevalence.

    See `pneumoscope.predict.calibration.at_prevalence`. Sensitivity and specificity are the parent's, whose
    results the card repeats; nothing is measured.

    Parameters
    ----------
    bundle : Bundle
        The parent; it is not changed.
    prevalence : float
        Expected share of images with the target, above 0 and below 1.
    out : Path
        Folder of the new bundle.

    Raises
    ------
    BundleError
        If `out` is the parent or holds a bundle, or the parent does not state the prevalence of its
        calibration.
    """
    _check_out(bundle, out)
    parent = bundle.manifest
    kept = {name: getattr(parent.results, name) for name in ("gate", "populations", "views", "speed")}
    results = Results(parent=_parent_results(bundle), **kept)
    manifest = at_prevalence(parent, prevalence).model_copy(
        update={"state": "calibrated", "provenance": _provenance(bundle), "results": results}
    )
    files: dict[str, bytes | Path] = {name: bundle.path / name for name in parent.files.keys() - {CARD_FILE}}
    return write_bundle(out, manifest, {**files, CARD_FILE: write_card(manifest).encode()})
