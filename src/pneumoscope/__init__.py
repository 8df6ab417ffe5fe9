"""Pneumoscope reads a chest X-ray and says how likely it shows pneumonia, of which kind, and where.

For research; not a medical device.

>>> from pneumoscope import Predictor
>>> predictor = Predictor.load()                       # doctest: +SKIP
>>> predictor.predict("chest.dcm")[0].p_pneumonia      # doctest: +SKIP
0.93
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pneumoscope.domain import Explanation, OperatingPoint, Prediction, Radiograph
    from pneumoscope.errors import PneumoscopeError, Reason
    from pneumoscope.image.decode import read_radiograph
    from pneumoscope.model.bundle import Bundle, load_bundle
    from pneumoscope.predict.predictor import Examination, Predictor

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Examination",
    "Explanation",
    "OperatingPoint",
    "PneumoscopeError",
    "Prediction",
    "Predictor",
    "Radiograph",
    "Reason",
    "__version__",
    "load_bundle",
    "read_radiograph",
]

# Loaded on first use: the command line must answer `--help` without waiting for a runtime.
_HOMES = {
    "Bundle": "pneumoscope.model.bundle",
    "Examination": "pneumoscope.predict.predictor",
    "Explanation": "pneumoscope.domain",
    "OperatingPoint": "pneumoscope.domain",
    "PneumoscopeError": "pneumoscope.domain",
    "Prediction": "pneumoscope.domain",
    "Predictor": "pneumoscope.predict.predictor",
    "Radiograph": "pneumoscope.domain",
    "Reason": "pneumoscope.domain",
    "load_bundle": "pneumoscope.model.bundle",
    "read_radiograph": "pneumoscope.image.decode",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
