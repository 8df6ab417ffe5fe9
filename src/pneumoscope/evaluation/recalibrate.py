"""Recalibrating a bundle on a site's own labelled images, and saying honestly what that brings.

The figures are cross-fitted: five folds of patients, each evaluated with what was fitted on the other four. What
is written is fitted on all of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pneumoscope
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import folds
from pneumoscope.domain import OperatingPoint
from pneumoscope.errors import BundleError, DataError
from pneumoscope.evaluation.calibration import Calibration, Method, fit_calibration, refit_against_normal
from pneumoscope.evaluation.card import write_card
from pneumoscope.evaluation.observe import Observed, observe
from pneumoscope.evaluation.recalibrated import Answers, answers_of, compare
from pneumoscope.model.bundle import BUNDLE_FOLDER, CARD_FILE, MANIFEST_FILE, Bundle, write_bundle
from pneumoscope.model.manifest import BundleManifest
from pneumoscope.predict.predictor import Predictor

__all__ = ["FEW", "LEAST", "Recalibration", "recalibrate_bundle"]

FOLDS = 5
SHARED_RESULTS = ("speed",)
"""What was measured of the parent and holds for the child, whose network and gate are the same."""
FEW = 100
"""Images of a class below which a calibration is a guess, and a warning is given."""
USABLE_AUROC = 0.7
"""What the ranking should surely reach: below, thresholds are only a choice between kinds of error."""
LEAST = 20
"""Images of a class below which there is nothing to fit on."""


@dataclass(frozen=True, eq=False)
class Recalibration:
    """What came of it.

    Parameters
    ----------
    bundle : Bundle
        The new one.
    results : dict
        Figures before and after, as they stand in the new bundle under ``results.recalibration``.
    warnings : tuple of str
        Lines for people.
    """

    bundle: Bundle
    results: dict[str, Any]
    warnings: tuple[str, ...]


def recalibrate_bundle(
    bundle: Bundle,
    manifest: Manifest,
    out: Path,
    *,
    method: Method = "vector",
    described_as: str,
    views: int = 0,
    n_boot: int = 1000,
    seed: int = 0,
) -> Recalibration:
    """Fit a new calibrator, operating points and conformal thresholds; write them as a bundle of their own.

    Where the labels do not tell the subtypes of pneumonia apart, or a kind has fewer than 20 images, pneumonia
    is calibrated against normal, and the kinds keep the shares and the conformal thresholds of the parent.

    Parameters
    ----------
    bundle : Bundle
        The parent; it is left as it is.
    manifest : Manifest
        Labelled images of the site.
    out : Path
        Folder of the new bundle.
    method : {"none", "temperature", "vector"}
        How the logits are scaled; ``none`` keeps the parent's calibrator and chooses thresholds alone.
    described_as : str
        What the images are, for the record.
    views : int
        Mildly disturbed copies of each image that are fitted on as well.
    n_boot : int
        Resamples of the patients for the intervals.
    seed : int
        Of disturbances, folds and resamples.

    Raises
    ------
    BundleError
        If `out` is the parent or holds a bundle.
    DataError
        If there are fewer than 20 images or 5 patients with, or without, pneumonia, or a label is none of
        the bundle's findings.
    """
    _check_target(bundle, out)
    observed = observe(Predictor.load(bundle.path), manifest, views=views, seed=seed)
    counts = _counts(observed, bundle.manifest)
    _check_enough(observed, manifest)
    subtypes_known = all(counts[name] >= LEAST for name in bundle.manifest.findings[1:])
    fitted_on = f"{described_as}{f', each with {views} disturbed views' if views else ''}"
    job = _Job(bundle.manifest, method, fitted_on, subtypes_known=subtypes_known)
    answers = _cross_fitted(observed, manifest, job, seed)
    parent = answers_of(observed, Calibration(*_own(bundle.manifest)), np.flatnonzero(observed.as_it_is))
    results = {
        "evaluated_on": described_as,
        "data_fingerprint": manifest.fingerprint(),
        "method": method,
        "views": views,
        "against_normal_only": not subtypes_known,
        "folds": FOLDS,
        "images": len(observed.records),
        "not_evaluated": observed.not_evaluated,
        "images_by_class": counts,
        **compare(observed, parent, answers, n_boot=n_boot, seed=seed),
    }
    written = _write(bundle, job.fit(observed), results, out)
    return Recalibration(written, results, tuple(_warnings(results, job)))


@dataclass(frozen=True)
class _Job:
    """How each of the fits is made, that of a fold like that of the whole."""

    parent: BundleManifest
    method: Method
    fitted_on: str
    subtypes_known: bool

    def fit(self, observed: Observed) -> Calibration:
        if self.subtypes_known:
            kept = self.parent.calibrator
            return fit_calibration(observed, self.method, fitted_on=self.fitted_on, kept=kept)
        return refit_against_normal(observed, self.method, fitted_on=self.fitted_on, parent=self.parent)


def _own(manifest: BundleManifest) -> tuple[Any, ...]:
    return manifest.calibrator, manifest.operating_points, manifest.conformal, manifest.conformal_alpha


def _check_target(bundle: Bundle, out: Path) -> None:
    if out.resolve() == bundle.path.resolve():
        raise BundleError(f"{out}: is the bundle itself; give another --out, it stays as it is")
    if any((place / MANIFEST_FILE).exists() for place in (out, out / BUNDLE_FOLDER)):
        raise BundleError(f"{out}: holds a bundle already; give another folder")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; give a folder for the new bundle")


def _counts(observed: Observed, parent: BundleManifest) -> dict[str, int]:
    """Count images by class, and those whose label leaves the kind open under ``pneumonia``."""
    possible = observed.possible[observed.as_it_is]
    certain = possible.sum(axis=1) == 1
    counts = {name: int((possible[:, k] & certain).sum()) for k, name in enumerate(parent.findings)}
    return counts if certain.all() else counts | {"pneumonia": int((~certain).sum())}


def _check_enough(observed: Observed, manifest: Manifest) -> None:
    first = observed.as_it_is
    for name, wanted in (("without", False), ("with", True)):
        chosen = first & (observed.is_pneumonia == wanted)
        images, patients = int(chosen.sum()), len(np.unique(observed.patients[chosen]))
        if images < LEAST or patients < FOLDS:
            raise DataError(
                f"{manifest.root}: {images} images of {patients} patients {name} pneumonia are too few "
                f"to recalibrate on; give at least {LEAST} of {FOLDS} patients, better {FEW} and more"
            )


def _warnings(results: Mapping[str, Any], job: _Job) -> list[str]:
    counts, findings = results["images_by_class"], job.parent.findings
    if job.subtypes_known:
        evaluated = {name: counts[name] for name in findings}
    else:
        evaluated = {"normal": counts["normal"], "pneumonia": sum(counts.values()) - counts["normal"]}
    lines = []
    if few := [f"{count} {name}" for name, count in evaluated.items() if count < FEW]:
        lines.append(
            f"too few images ({', '.join(few)}): below {FEW} a class the new thresholds are rough; "
            "see the intervals"
        )
    if not job.subtypes_known:
        lines.append(
            f"fewer than {LEAST} images of a subtype of pneumonia are labelled: pneumonia is calibrated "
            "against normal, its kinds stay the parent's"
        )
    low = results["recalibrated"]["auroc"]["low"]
    if low is None or low < USABLE_AUROC:
        lines.append(
            "the network hardly tells these images apart (see AUROC), and no calibration fixes that; train "
            "it on images of this kind"
        )
    return lines


def _cross_fitted(observed: Observed, manifest: Manifest, job: _Job, seed: int) -> Answers:
    """Evaluate each image as it is with what was fitted on the other patients."""
    parts = []
    everything = np.arange(len(observed.records))
    for held_out in folds(manifest.with_records(observed.records), FOLDS, seed):
        fitted = job.fit(observed.of_images(np.setdiff1d(everything, held_out)))
        rows = np.flatnonzero(observed.as_it_is)[held_out]
        parts.append((held_out, answers_of(observed, fitted, rows)))
    return Answers.joined(parts)


def _write(bundle: Bundle, fitted: Calibration, results: dict[str, Any], out: Path) -> Bundle:
    """Write the child: the parent's files, its own calibration and card, and whose figures are whose."""
    parent = bundle.manifest
    reached = results["recalibrated"]["operating_points"]
    # In-sample figures would flatter: the cross-fitted ones take their place.
    points = tuple(
        OperatingPoint(
            point.name,
            point.threshold,
            reached[point.name]["sensitivity"]["value"],
            reached[point.name]["specificity"]["value"],
        )
        for point in fitted.operating_points
    )
    shared = {name: fact for name, fact in parent.results.items() if name in SHARED_RESULTS}
    provenance = parent.provenance.model_copy(
        update={
            "parent": bundle.identity,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "code_version": pneumoscope.__version__,
        }
    )
    of_parent = {name: fact for name, fact in parent.results.items() if name not in SHARED_RESULTS}
    manifest = fitted.written_into(
        parent,
        operating_points=points,
        provenance=provenance,
        results={
            **shared,
            "recalibration": results,
            "parent": {"identity": bundle.identity, "results": of_parent},
        },
    )
    files = {name: bundle.path / name for name in parent.files if name != CARD_FILE}
    card = write_card(manifest.model_dump(mode="json"), {})
    return write_bundle(out, manifest, {**files, CARD_FILE: card.encode()})
