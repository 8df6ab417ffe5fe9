"""Pneumoscope reads chest X-rays: how likely pneumonia is, of which subtype, and where in the image.

For research; not a medical device.

>>> from pneumoscope import Predictor
>>> predictor = Predictor.load()                      # doctest: +SKIP
>>> prediction = predictor.predict("chest.dcm")[0]    # doctest: +SKIP
>>> prediction.p_target, prediction.decision          # doctest: +SKIP
(0.93, 'pneumonia')

The public interface is what `__all__` lists. All other modules are private and may change without notice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pneumoscope.data.manifest import Manifest, Record
    from pneumoscope.domain import (
        CodedConcept,
        DatasetDescription,
        Estimate,
        Explanation,
        OperatingPoint,
        Population,
        Prediction,
        Radiograph,
        Target,
        ViewPosition,
    )
    from pneumoscope.errors import (
        BundleError,
        DataError,
        DownloadError,
        MissingExtraError,
        OtherProcessError,
        PneumoscopeError,
        Reason,
        RecipeError,
        UnreadableImageError,
    )
    from pneumoscope.evaluation.bundles import evaluate
    from pneumoscope.evaluation.recalibration import recalibrate
    from pneumoscope.experiment.run import train
    from pneumoscope.image.decode import read_radiograph
    from pneumoscope.model.bundle import Bundle, load_bundle
    from pneumoscope.parallel import Progress
    from pneumoscope.predict.predictor import ExplainedPrediction, Predictor

__version__ = "0.2.0"

# Where each public name is defined. It is imported on first use: `--help` must not wait for a runtime, nor
# prediction for the training stack.
_DEFINED_IN = {
    "pneumoscope.data.manifest": ("Manifest", "Record"),
    "pneumoscope.domain": (
        "CodedConcept",
        "DatasetDescription",
        "Estimate",
        "Explanation",
        "OperatingPoint",
        "Population",
        "Prediction",
        "Radiograph",
        "Target",
        "ViewPosition",
    ),
    "pneumoscope.errors": (
        "BundleError",
        "DataError",
        "DownloadError",
        "MissingExtraError",
        "OtherProcessError",
        "PneumoscopeError",
        "Reason",
        "RecipeError",
        "UnreadableImageError",
    ),
    "pneumoscope.evaluation.bundles": ("evaluate",),
    "pneumoscope.evaluation.recalibration": ("recalibrate",),
    "pneumoscope.experiment.run": ("train",),
    "pneumoscope.image.decode": ("read_radiograph",),
    "pneumoscope.model.bundle": ("Bundle", "load_bundle"),
    "pneumoscope.parallel": ("Progress",),
    "pneumoscope.predict.predictor": ("ExplainedPrediction", "Predictor"),
}
_MODULES = {name: module for module, names in _DEFINED_IN.items() for name in names}

__all__ = [
    "Bundle",
    "BundleError",
    "CodedConcept",
    "DataError",
    "DatasetDescription",
    "DownloadError",
    "Estimate",
    "ExplainedPrediction",
    "Explanation",
    "Manifest",
    "MissingExtraError",
    "OperatingPoint",
    "OtherProcessError",
    "PneumoscopeError",
    "Population",
    "Prediction",
    "Predictor",
    "Progress",
    "Radiograph",
    "Reason",
    "RecipeError",
    "Record",
    "Target",
    "UnreadableImageError",
    "ViewPosition",
    "__version__",
    "evaluate",
    "load_bundle",
    "read_radiograph",
    "recalibrate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
