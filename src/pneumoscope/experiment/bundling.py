"""From trained weights to a bundle for use: export, calibration, evaluation; each writes it once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import CAUTIONS
from pneumoscope.evaluation import (
    BundleEvaluation,
    Estimators,
    calibrate_bundle,
    evaluate_bundle,
    fit_gate,
    fit_populations,
    fit_views,
    sign_bundle,
)
from pneumoscope.evaluation.gate import LEAST_IMAGES
from pneumoscope.experiment.images import are_of, by_source, whole_radiographs
from pneumoscope.experiment.run_folder import Origin
from pneumoscope.model.bundle import BUNDLE_FOLDER, Bundle
from pneumoscope.parallel import Progress
from pneumoscope.predict.cache import ImageCache
from pneumoscope.training.dataset import LeftOut, Packed
from pneumoscope.training.export import export_bundle
from pneumoscope.training.history import HISTORY_FILE, epochs_done
from pneumoscope.training.networks import Network, save_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["WEIGHTS_FILE", "calibrated", "evaluated", "exported", "not_evaluated"]

WEIGHTS_FILE, KERAS_FILE = "model.safetensors", "model.h5"


def exported(
    origin: Origin, network: Network, train_set: Packed, lungs: Path | None, teachers: tuple[str, ...]
) -> Bundle:
    """Write the weights, the draft of the bundle and, where requested, the Keras file."""
    recipe, out = origin.experiment.recipe, origin.experiment.out
    save_weights(network, out / WEIGHTS_FILE)
    own = int(are_of(train_set.records, origin.manifest).sum())
    bundle = export_bundle(
        network,
        recipe,
        out / BUNDLE_FOLDER,
        provenance=origin.provenance(teachers, images=own, added_images=len(train_set) - own),
        lungs=lungs,
        train_images=train_set.images,
    )
    if origin.experiment.keras:
        from pneumoscope.training.keras_export import export_keras

        export_keras(network, out / KERAS_FILE, size=recipe.input.size)
    return bundle


def calibrated(
    origin: Origin, bundle: Bundle, images: Manifest, cache: ImageCache | None, progress: Progress
) -> Bundle:
    """Fit the gate on training images and calibrator and thresholds on validation images; write once.

    All of it is fitted on whole radiographs, since no other image is to be predicted later.
    """
    recipe, manifest = origin.experiment.recipe, origin.manifest
    images, held_out = (whole_radiographs(part, recipe) for part in (images, manifest.subset("val")))
    progress.step("fitting the gate on training patients")
    gate = fit_gate(
        bundle,
        by_source(images),
        others=origin.experiment.not_chest,
        cache=cache,
        progress=progress,
    )
    if gate is None and origin.experiment.not_chest:
        progress.message(
            f"{origin.experiment.not_chest}: the gate is not fitted on these images; it needs a recipe that "
            f"uses the lungs, and {LEAST_IMAGES} training images that pass"
        )
    estimators = Estimators()
    if len(recipe.populations) > 1:
        progress.step("fitting the classifiers of population and view")
        estimators = Estimators(
            fit_populations(bundle, images, held_out, recipe.populations, progress=progress),
            fit_views(bundle, images, held_out, origin.experiment.not_chest, progress=progress),
        )
    progress.step("calibrating on validation patients")
    return calibrate_bundle(
        bundle,
        held_out,
        gate=gate,
        method=recipe.calibration,
        copies=recipe.calibration_copies,
        populations=recipe.populations,
        estimators=estimators,
        seed=recipe.seed,
        described_as=origin.part("val"),
        cache=cache,
        progress=progress,
    )


def evaluated(
    origin: Origin, bundle: Bundle, fabric: Fabric, progress: Progress
) -> tuple[Bundle, BundleEvaluation]:
    """Evaluate on split ``test`` and write report, model card and results."""
    recipe, out = origin.experiment.recipe, origin.experiment.out
    data = bundle.manifest.provenance.data
    about = {
        "Recipe": f"{recipe.name} ({recipe.sha256[:12]})",
        "Data": f"{origin.description.name}, {len(origin.manifest)} images",
        "Additional training data": ", ".join(
            f"{one.description.name}, {one.images} images" for one in data if one.additional
        ),
        "Split": origin.split_in_words,
        "Epochs": str(epochs_done(out)),
        "Trained on": str(fabric.device.type).upper(),
    }
    evaluation = evaluate_bundle(
        bundle,
        whole_radiographs(origin.manifest.subset("test"), recipe),
        out,
        evaluated_on=origin.part("test"),
        about={name: fact for name, fact in about.items() if fact},
        history=out / HISTORY_FILE,
        progress=progress,
    )
    return sign_bundle(bundle, evaluation.metrics), evaluation


def not_evaluated(evaluation: BundleEvaluation) -> tuple[LeftOut, ...]:
    """Return the test images that were unreadable or rejected."""
    return tuple(
        LeftOut(
            row.path,
            row.status,
            next(reason for reason in row.reasons if reason not in CAUTIONS),
            row.message,
        )
        for row in evaluation.not_evaluated
    )
